// SPDX-License-Identifier: Apache-2.0
//! Files that are packed as a whole: one stream of gzip, xz, zstd or bzip2, or the entries of a zip.
//!
//! A stream is unpacked from its start to its end, never from the middle. Where a raw disk is in it, its bytes go
//! straight into the copy ([`PackedRaw`]); any other image is unpacked once, into bounded scratch ([`unpack`]).

mod decoder;
pub(super) mod entries;
pub(super) mod frames;
mod raw;
mod scratch;

pub(super) use self::raw::{PIECE, PackedRaw, surplus_warning};
#[cfg(test)]
pub(super) use self::scratch::CHUNK;
pub(super) use self::scratch::{Bounds, Unpacked, no_room, too_long, unpack};

use std::io;

use self::decoder::Decoder;
use super::buffer::is_zero;
use super::detect::{Content, Packing};
use super::{Error, Region};
use crate::conversion::Reason;

/// No disk that anybody uses is this much longer than its packed form, beyond the grace: bzip2 makes a byte of half a
/// million zeros, and a disk has more in it than zeros.
const MAX_RATIO: u64 = 1 << 17;
const LENGTH_GRACE: u64 = 16 << 30;
/// The same for bytes that take room because they aren't all zeros: deflate reaches 1,032.
const MAX_DATA_RATIO: u64 = 1100;
const DATA_GRACE: u64 = 256 << 20;
/// Bytes that count as data or as zeros at once.
const BLOCK: usize = 64 << 10;
/// Longest rest of a tar that is known by its length to have no further disk in it: a record of tar(1), 10 KiB, and
/// the two blocks that end it.
pub(super) const MAX_REST: u64 = 11 << 10;

/// How the bytes of a stream are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Whole(Packing),
    /// An entry of a zip.
    Deflate,
    Stored,
}

/// What a zip says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stated {
    size: u64,
    crc32: u32,
}

/// Says of the file `name` whether the bytes behind a part are as they were expected.
pub(super) type CheckRest = fn(name: &str, rest: &[u8]) -> Result<(), Error>;

/// A part of what is packed: a member of a tar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub start: u64,
    pub len: u64,
    /// Where nobody looked behind it yet: says whether what follows, [`MAX_REST`] bytes at most, is as it was expected.
    pub check_rest: Option<CheckRest>,
}

/// Packed bytes, and how to unpack them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    region: Region,
    codec: Codec,
    stated: Option<Stated>,
    part: Option<Part>,
}

impl Stream {
    /// The whole of `region`.
    pub(super) fn of(region: &Region, packing: Packing) -> Self {
        Self { region: region.clone(), codec: Codec::Whole(packing), stated: None, part: None }
    }

    /// Only a part of what is unpacked.
    pub(super) fn part(&self, part: Part) -> Self {
        Self { part: Some(part), ..self.clone() }
    }

    /// What errors call it.
    pub(super) fn name(&self) -> &str {
        self.region.name()
    }

    /// Where the packed bytes are.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// What people call the packing.
    pub(super) const fn packing(&self) -> &'static str {
        match self.codec {
            Codec::Whole(packing) => packing.as_str(),
            Codec::Deflate | Codec::Stored => "zip",
        }
    }

    /// The extension of a file that is packed so.
    pub(super) const fn packing_extension(&self) -> &'static str {
        match self.codec {
            Codec::Whole(packing) => Content::Packed(packing).extension(),
            Codec::Deflate | Codec::Stored => Content::Zip.extension(),
        }
    }

    /// Length of what is packed, where the packing tells without being unpacked. Found wrong at the end, it is `Corrupt`.
    pub(super) fn size(&self) -> Option<u64> {
        match self.codec {
            _ if self.part.is_some() => self.part.map(|part| part.len),
            Codec::Whole(packing) => frames::size(&self.region, packing),
            Codec::Deflate | Codec::Stored => self.stated.map(|stated| stated.size),
        }
    }

    /// Whether what is packed ends at most [`MAX_REST`] bytes behind `end`, as far as the packing states its length: a
    /// gzip states it modulo 2^32.
    pub(super) fn ends_close_to(&self, end: u64) -> bool {
        let rest = match (self.size(), self.codec) {
            (Some(size), _) => size.checked_sub(end),
            (None, Codec::Whole(Packing::Gzip)) => frames::gzip_length(&self.region)
                .map(|length| u64::from(length.wrapping_sub(u32::try_from(end & 0xFFFF_FFFF).expect("32 bits")))),
            _ => None,
        };
        rest.is_some_and(|rest| rest <= MAX_REST)
    }

    /// Begins to unpack.
    ///
    /// # Errors
    /// `OutOfMemory`; `UnsupportedFormat` where it would need too much of it.
    pub(super) fn open(&self) -> Result<Unpacking, Error> {
        if let Codec::Whole(Packing::Zstd) = self.codec {
            frames::check_window(&self.region)?;
        }
        Ok(Unpacking {
            decoder: Decoder::new(&self.region, self.codec)?,
            stream: self.clone(),
            left: self.part.map(|part| part.len),
            crc32: crc32fast::Hasher::new(),
            done: 0,
            data: 0,
            reported: 0,
        })
    }

    /// The first bytes of what is packed, `len` of them or all.
    ///
    /// # Errors
    /// As [`Unpacking::fill`].
    pub(super) fn beginning(&self, len: usize) -> Result<Vec<u8>, Error> {
        let mut head = vec![0; len];
        let filled = self.open()?.fill(&mut head)?;
        head.truncate(filled);
        Ok(head)
    }
}

/// A stream that is being unpacked.
pub(super) struct Unpacking {
    decoder: Decoder,
    stream: Stream,
    /// Bytes of the part that are still to come.
    left: Option<u64>,
    crc32: crc32fast::Hasher,
    /// Bytes unpacked, and those of them that lie in pieces that aren't all zeros.
    done: u64,
    data: u64,
    /// Packed bytes that were reported.
    reported: u64,
}

impl Unpacking {
    /// Fills `buffer`, unless what is unpacked ends before. Behind a part, the stream is unpacked to its end all the
    /// same, for its checksums.
    ///
    /// # Errors
    /// `Truncated` and `Corrupt` with the place in the packed file, `TooLarge` for a bomb, `SourceIO`, `Cancelled`.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let (Some(left), Some(part)) = (self.left, self.stream.part) else { return self.fill_whole(buffer) };
        if self.done < part.start {
            self.skip(part.start)?;
        }
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let filled = self.fill_whole(&mut buffer[..len])?;
        if filled < len {
            let message = format!("is a {} that ends within its disk", self.stream.packing());
            return Err(Error::truncated(self.stream.name(), self.decoder.position(), message));
        }
        self.left = Some(left - filled as u64);
        if len < buffer.len() {
            self.end(part)?;
        }
        Ok(filled)
    }

    /// Unpacks up to `to`.
    fn skip(&mut self, to: u64) -> Result<(), Error> {
        let mut buffer = vec![0; BLOCK];
        while self.done < to {
            let len = usize::try_from(to - self.done).unwrap_or(usize::MAX).min(BLOCK);
            if self.fill_whole(&mut buffer[..len])? < len {
                break;
            }
        }
        Ok(())
    }

    /// Unpacks what is behind a part.
    fn end(&mut self, part: Part) -> Result<(), Error> {
        self.skip(part.start.saturating_add(part.len).saturating_add(511) & !511)?;
        let (mut buffer, mut rest) = (vec![0; BLOCK], Vec::new());
        loop {
            let filled = self.fill_whole(&mut buffer)?;
            if part.check_rest.is_some() {
                rest.extend_from_slice(&buffer[..filled]);
                if rest.len() as u64 > MAX_REST {
                    let message = "has more behind its disk than its length says; pack it again";
                    return Err(Error::corrupt(self.stream.name(), self.decoder.position(), message));
                }
            }
            if filled < buffer.len() {
                break;
            }
        }
        part.check_rest.map_or(Ok(()), |check| check(self.stream.name(), &rest))
    }

    /// The same of the whole stream.
    fn fill_whole(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        // Little input may unpack to a lot of output.
        self.stream.region.check()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match self.decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.refuse(e)),
            }
        }
        self.check(&buffer[..filled], filled < buffer.len())?;
        Ok(filled)
    }

    /// Packed bytes consumed since the last call: how progress is counted.
    pub(super) fn advanced(&mut self) -> u64 {
        let consumed = self.decoder.position();
        consumed - std::mem::replace(&mut self.reported, consumed)
    }

    /// Bytes behind the stream's end that don't belong to it.
    pub(super) fn surplus(&self) -> u64 {
        self.decoder.surplus()
    }

    fn check(&mut self, bytes: &[u8], is_last: bool) -> Result<(), Error> {
        let (name, at) = (self.stream.name(), self.decoder.position());
        self.done += bytes.len() as u64;
        self.data += bytes.chunks(BLOCK).filter(|piece| !is_zero(piece)).map(<[u8]>::len).sum::<usize>() as u64;
        let bomb = |times: u64| {
            let message = format!("unpacks to more than {times} times its length, as no disk does; unpack it by hand");
            Err(Error::refuse(Reason::TooLarge, name, message).at(at))
        };
        if self.done > LENGTH_GRACE.saturating_add(at.saturating_mul(MAX_RATIO)) {
            return bomb(MAX_RATIO);
        }
        if self.data > DATA_GRACE.saturating_add(at.saturating_mul(MAX_DATA_RATIO)) {
            return bomb(MAX_DATA_RATIO);
        }
        let Some(stated) = self.stream.stated else { return Ok(()) };
        self.crc32.update(bytes);
        if self.done > stated.size || (is_last && self.done < stated.size) {
            let message = format!("unpacks to {} bytes or more, where {} are stated", self.done, stated.size);
            return Err(Error::corrupt(name, at, message));
        }
        if is_last && self.crc32.clone().finalize() != stated.crc32 {
            return Err(Error::corrupt(name, at, "its checksum is wrong"));
        }
        Ok(())
    }

    /// Returns our own errors as they are; any other is the decoder's, about the stream.
    fn refuse(&self, error: io::Error) -> Error {
        let (name, at) = (self.stream.name(), self.decoder.position());
        let packing = self.stream.packing();
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                return Error::truncated(name, at, format!("the {packing} stream ends too early"));
            }
            io::ErrorKind::OutOfMemory => return Error::reading(name, at, error),
            _ => {}
        }
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) if decoder::is_out_of_bounds(&error) => {
                let message =
                    "needs more memory to be unpacked than is given; pack it again, with a smaller dictionary";
                Error::refuse(Reason::UnsupportedFormat, name, message).at(at)
            }
            Err(_) => Error::corrupt(name, at, format!("is a {packing} whose stream or checksum is wrong")),
        }
    }
}

#[cfg(test)]
mod tests;
