// SPDX-License-Identifier: Apache-2.0
//! Disks that are compressed as a whole: inflated once, into bounded scratch.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::{Error, Region};
use crate::conversion::Reason;

/// Bytes read and inflated at a time.
const CHUNK: usize = 256 << 10;

/// Zeros of this size and place become holes in the scratch file.
const HOLE: usize = 4096;

/// How much a gzip may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Most bytes in all.
    pub length: u64,
    /// Most bytes that aren't zeros, and so occupy the scratch volume.
    pub stored: u64,
}

/// Inflates every gzip member of `region` into `scratch`, an empty file; their checksums are verified (RFC 1952). Gives
/// the inflated bytes, and how many of them are stored.
///
/// # Errors
/// `TooLarge` beyond `bounds`, `Corrupt` and `Truncated`, and as reading and writing do.
pub(super) fn inflate(region: &Region, scratch: File, bounds: Bounds) -> Result<(Region, u64), Error> {
    let mut decoder = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, Sequential { region, at: 0 }));
    let mut buffer = vec![0; CHUNK];
    let (mut length, mut stored) = (0u64, 0u64);
    loop {
        // Checked for each chunk, because little input may inflate to a lot of output.
        region.check()?;
        let filled = fill(&mut decoder, &mut buffer).map_err(|e| refuse(region, e))?;
        if filled == 0 {
            break;
        }
        for (index, piece) in buffer[..filled].chunks(HOLE).enumerate() {
            if piece.iter().all(|b| *b == 0) {
                continue;
            }
            stored += piece.len() as u64;
            if stored > bounds.stored {
                return Err(too_large(region, "occupies", bounds.stored));
            }
            let at = length + (index * HOLE) as u64;
            scratch.write_all_at(piece, at).map_err(|e| Error::writing("scratch file", at, e))?;
        }
        length += filled as u64;
        if length > bounds.length {
            return Err(too_large(region, "inflates to", bounds.length));
        }
    }
    scratch.set_len(length).map_err(|e| Error::writing("scratch file", length, e))?;
    Ok((region.unpacked(Arc::new(scratch), length), stored))
}

fn too_large(region: &Region, does: &str, most: u64) -> Error {
    Error::refuse(Reason::TooLarge, region.name(), format!("is a gzip that {does} more than {most} bytes"))
}

/// Returns our own errors as they are; any other is the decoder's, about the stream.
fn refuse(region: &Region, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => Error::refuse(Reason::Truncated, region.name(), "is a gzip that ends too early"),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            Error::refuse(Reason::Corrupt, region.name(), "is a gzip whose stream or checksum is wrong")
        }
        _ => match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => Error::reading(region.name(), 0, error),
        },
    }
}

/// Fills the buffer, unless the input ends before: full buffers keep writes to the scratch file aligned.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

/// Reads a region from its start to its end.
struct Sequential<'a> {
    region: &'a Region,
    at: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.region.len() - self.at).unwrap_or(buffer.len()).min(buffer.len());
        self.region.read_exact_at(&mut buffer[..len], self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
