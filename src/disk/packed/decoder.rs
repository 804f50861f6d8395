// SPDX-License-Identifier: Apache-2.0
//! The decoders, behind one function that reads on.
//!
//! Each takes streams that are joined one behind the other, as pigz, pixz, pzstd and bgzip write them. Formats: RFC
//! 1952 (gzip), the .xz file format 1.2.1 (padding between streams), RFC 8878 (zstd, skippable frames).

use std::io::{self, BufRead, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::{DeflateDecoder, GzDecoder};
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream as XzStream};

use super::Codec;
use crate::disk::detect::{BZIP2, GZIP, Packing};
use crate::disk::{Error, Region};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Most memory that an xz may ask for: `xz -9` takes 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// Longest tail that is passed over behind one member. Some vendors append a signature there, and gzip(1) and bzip2(1)
/// ignore it too.
const MAX_SURPLUS: u64 = 64 << 10;

/// See the module's documentation.
pub(super) enum Decoder {
    Stored(Input),
    Deflate(DeflateDecoder<Input>),
    /// Gzip and bzip2.
    Members(Members),
    Xz(XzDecoder<Input>),
    Zstd(zstd::stream::read::Decoder<'static, Input>),
}

impl Decoder {
    pub(super) fn new(region: &Region, codec: Codec) -> Result<Self, Error> {
        let input = Input::new(region);
        let failed = |error: io::Error| Error::reading(region.name(), 0, error);
        Ok(match codec {
            Codec::Stored => Self::Stored(input),
            Codec::Deflate => Self::Deflate(DeflateDecoder::new(input)),
            Codec::Whole(Packing::Gzip) => Self::Members(Members::new(Member::gzip(input))),
            Codec::Whole(Packing::Xz) => {
                let stream = XzStream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(|e| failed(e.into()))?;
                Self::Xz(XzDecoder::new_stream(input, stream))
            }
            Codec::Whole(Packing::Zstd) => Self::Zstd(zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?),
            Codec::Whole(Packing::Bzip2) => Self::Members(Members::new(Member::bzip2(input))),
        })
    }

    /// Reads on; 0 at the end of the last stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(input) => input.read(buffer),
            Self::Deflate(decoder) => decoder.read(buffer),
            Self::Members(members) => members.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }

    /// How many packed bytes were consumed.
    pub(super) fn position(&self) -> u64 {
        match self {
            Self::Stored(input) => input.position(),
            Self::Deflate(decoder) => decoder.get_ref().position(),
            Self::Members(members) => members.position(),
            Self::Xz(decoder) => decoder.get_ref().position(),
            Self::Zstd(decoder) => decoder.get_ref().position(),
        }
    }

    /// Bytes behind the end that were passed over.
    pub(super) fn surplus(&self) -> u64 {
        match self {
            Self::Members(members) => members.surplus,
            _ => 0,
        }
    }
}

/// Whether a decoder says that its memory does not suffice.
pub(super) fn is_out_of_bounds(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<liblzma::stream::Error>());
    matches!(inner, Some(liblzma::stream::Error::MemLimit))
}

/// Reads a region from its start to its end.
pub(super) struct Input {
    region: Region,
    buffer: Vec<u8>,
    /// What of the buffer is still to be consumed.
    start: usize,
    end: usize,
    /// Where the next read begins.
    next: u64,
}

impl Input {
    fn new(region: &Region) -> Self {
        Self { region: region.clone(), buffer: vec![0; CHUNK], start: 0, end: 0, next: 0 }
    }

    fn position(&self) -> u64 {
        self.next - (self.end - self.start) as u64
    }

    fn rest(&self) -> u64 {
        self.region.len() - self.position()
    }

    /// The next `len` bytes, fewer at the end.
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.end - self.start < len && self.next < self.region.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let rest = usize::try_from(self.region.len() - self.next).unwrap_or(usize::MAX);
            let more = rest.min(self.buffer.len() - self.end);
            let place = &mut self.buffer[self.end..self.end + more];
            self.region.read_exact_at(place, self.next).map_err(io::Error::other)?;
            self.end += more;
            self.next += more as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Passes over zeros.
    fn skip_zeros(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.peek(1)?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            if zeros == 0 {
                return Ok(());
            }
            self.consume(zeros);
        }
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    fn consume(&mut self, amount: usize) {
        self.start += amount;
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        self.consume(len);
        Ok(len)
    }
}

/// The members of a gzip or a bzip2, one behind the other; each has its own checksum.
pub(super) struct Members {
    now: Now,
    /// Members that have ended.
    ended: u64,
    surplus: u64,
}

enum Now {
    Member(Member),
    /// Behind the last member, at this place.
    Over(u64),
}

enum Member {
    Gzip(Box<GzDecoder<Input>>),
    Bzip2(Box<BzDecoder<Input>>),
}

impl Member {
    fn gzip(input: Input) -> Self {
        Self::Gzip(Box::new(GzDecoder::new(input)))
    }

    fn bzip2(input: Input) -> Self {
        Self::Bzip2(Box::new(BzDecoder::new(input)))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(member) => member.read(buffer),
            Self::Bzip2(member) => member.read(buffer),
        }
    }

    fn position(&self) -> u64 {
        match self {
            Self::Gzip(member) => member.get_ref().position(),
            Self::Bzip2(member) => member.get_ref().position(),
        }
    }

    /// What follows this member, which has ended: the next one, or its input where there is none.
    fn next(self) -> io::Result<Result<Self, Input>> {
        match self {
            Self::Gzip(member) => {
                let mut input = member.into_inner();
                Ok(if input.peek(GZIP.len())?.starts_with(GZIP) { Ok(Self::gzip(input)) } else { Err(input) })
            }
            Self::Bzip2(member) => {
                let mut input = member.into_inner();
                Ok(if input.peek(BZIP2.len())?.starts_with(BZIP2) { Ok(Self::bzip2(input)) } else { Err(input) })
            }
        }
    }
}

impl Members {
    const fn new(first: Member) -> Self {
        Self { now: Now::Member(first), ended: 0, surplus: 0 }
    }

    fn position(&self) -> u64 {
        match &self.now {
            Now::Member(member) => member.position(),
            Now::Over(at) => *at,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Now::Member(member) = &mut self.now else { return Ok(0) };
            let filled = member.read(buffer)?;
            if filled > 0 {
                return Ok(filled);
            }
            self.ended += 1;
            let end = member.position();
            let Now::Member(member) = std::mem::replace(&mut self.now, Now::Over(end)) else { return Ok(0) };
            let mut input = match member.next()? {
                Ok(next) => {
                    self.now = Now::Member(next);
                    continue;
                }
                Err(input) => input,
            };
            input.skip_zeros()?;
            self.now = Now::Over(input.position());
            if input.rest() > 0 {
                if self.ended > 1 || input.rest() > MAX_SURPLUS {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "no member follows"));
                }
                self.surplus = input.rest();
                self.now = Now::Over(input.position() + input.rest());
            }
        }
    }
}
