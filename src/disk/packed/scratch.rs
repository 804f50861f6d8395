// SPDX-License-Identifier: Apache-2.0
//! Unpacks a stream once, into a scratch file that is bounded and gone with its process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Stream;
use crate::conversion::Reason;
use crate::conversion::options::ByteSize;
use crate::disk::buffer::is_zero;
use crate::disk::{Error, Region};

/// Bytes unpacked at a time.
pub(crate) const CHUNK: usize = 256 << 10;

/// Zeros of this size and place become holes in the scratch file.
const HOLE: usize = 4096;

/// How much a stream may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most bytes in all.
    pub length: u64,
    /// Most bytes that aren't zeros, and so occupy the scratch volume.
    pub stored: u64,
    /// Enough bytes: what comes behind them is left packed.
    pub enough: u64,
}

/// What was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub region: Region,
    /// Bytes that it occupies.
    pub stored: u64,
    /// Whether it is all of it.
    pub is_whole: bool,
    /// Bytes behind the stream's end that don't belong to it.
    pub surplus: u64,
}

/// Unpacks `stream` into `scratch`, an empty file, and counts the packed bytes as progress.
///
/// # Errors
/// `TooLarge` beyond the length, `OutputFull` beyond what may be stored, and as unpacking and writing do.
pub(in crate::disk) fn unpack(stream: &Stream, scratch: File, bounds: Bounds) -> Result<Unpacked, Error> {
    let packed = stream.region();
    let writing = |at, e| Error::writing("scratch file", at, e);
    let mut unpacking = stream.open()?;
    let mut buffer = vec![0; CHUNK];
    let (mut length, mut stored) = (0, 0);
    packed.expect(packed.len());
    let is_whole = loop {
        let filled = unpacking.fill(&mut buffer)?;
        packed.advance(unpacking.advanced());
        for (index, piece) in buffer[..filled].chunks(HOLE).enumerate().filter(|(_, piece)| !is_zero(piece)) {
            stored += piece.len() as u64;
            if stored > bounds.stored {
                return Err(no_room(stream, stored, bounds.stored));
            }
            let at = length + (index * HOLE) as u64;
            scratch.write_all_at(piece, at).map_err(|e| writing(at, e))?;
        }
        length += filled as u64;
        if length > bounds.length {
            return Err(too_long(stream, bounds.length));
        }
        if filled < CHUNK {
            break true;
        }
        if length >= bounds.enough {
            break false;
        }
    };
    scratch.set_len(length).map_err(|e| writing(length, e))?;
    let region = packed.unpacked(Arc::new(scratch), length);
    Ok(Unpacked { region, stored, is_whole, surplus: unpacking.surplus() })
}

/// It would be longer than anything that is taken.
pub(in crate::disk) fn too_long(stream: &Stream, most: u64) -> Error {
    let message = format!("is a {} that unpacks to more than {}", stream.packing(), ByteSize(most));
    Error::refuse(Reason::TooLarge, stream.name(), message)
}

/// The scratch space does not suffice.
pub(in crate::disk) fn no_room(stream: &Stream, needed: u64, room: u64) -> Error {
    let message =
        format!("needs {} of scratch space or more to be unpacked, {} are free", ByteSize(needed), ByteSize(room));
    let full = Error::refuse(Reason::OutputFull, stream.name(), message);
    Error { needed_bytes: Some(needed), ..full }
}
