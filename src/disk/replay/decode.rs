// SPDX-License-Identifier: Apache-2.0
//! Turns a batch's bytes into guest bytes.

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::{DecompressionError, Decompressor, adler32};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::load::{Bytes, Codec, Loaded, Piece};
use crate::disk::{Error, Image};

/// Largest window of a zstd stream in a qcow2 cluster: log2 of the largest cluster.
const ZSTD_WINDOW_LOG: u32 = 21;
/// zlib's header, and its adler32 at the end (RFC 1950, section 2.2).
pub(crate) const ZLIB_HEADER: usize = 2;
const ZLIB_TRAILER: usize = 4;

/// The decoders of one thread.
pub(crate) struct Decode {
    inflate: Decompressor,
    /// zlib's own inflate, which QEMU uses: it refuses symbols that RFC 1951 rules out and libdeflate accepts.
    strict: Decompress,
    zstd: Option<Decoder<'static>>,
    scratch: Vec<u8>,
}

impl Decode {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompressor::new(), strict: Decompress::new(false), zstd: None, scratch: Vec::new() }
    }

    /// Decodes a batch of `image`: `loaded.buffer` then has the guest's bytes, and zeros behind the batch's end.
    pub(crate) fn run(&mut self, image: &Image, loaded: &mut Loaded) -> Result<(), Error> {
        let Loaded { guest, pieces, buffer, input, .. } = loaded;
        let size = image.virtual_size();
        let mut done = 0;
        for Piece { place, bytes } in pieces {
            buffer[done..place.start].fill(0);
            done = place.end;
            let Bytes::Compressed(stream) = bytes else { continue };
            let target = &mut buffer[place.clone()];
            // The disk may end within its last cluster or grain, which is whole in the file.
            let ends_disk = guest.start + place.end as u64 == size;
            let most = if ends_disk { target.len().max(image.unit()) } else { target.len() };
            let input = &input[stream.input.clone()];
            self.stream(stream.codec, input, target, most).map_err(|what| {
                let message = format!("the data for guest byte {} {what}", guest.start + place.start as u64);
                Error::corrupt(image.regions[stream.file].name(), stream.offset, message)
            })?;
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// Decodes `input` into `target`. The stream may yield up to `most` bytes; those beyond `target` are dropped. The
    /// error says what is wrong with it.
    fn stream(&mut self, codec: Codec, input: &[u8], target: &mut [u8], most: usize) -> Result<(), String> {
        let needed = target.len();
        let decoded = match codec {
            Codec::Deflate | Codec::Zlib => {
                let zlib = codec == Codec::Zlib;
                match self.inflate(input, zlib, target) {
                    Err(DecompressionError::InsufficientSpace) if most > needed => {
                        self.longer(target, most, |decode, scratch| decode.inflate(input, zlib, scratch).ok())
                    }
                    decoded => decoded.ok(),
                }
            }
            Codec::Zstd => match self.zstd(input, target, needed) {
                None if most > needed => {
                    self.longer(target, most, |decode, scratch| decode.zstd(input, scratch, needed))
                }
                decoded => decoded,
            },
        };
        match decoded {
            Some(len) if len == needed => Ok(()),
            Some(len) => Err(format!("decodes to {len} bytes, expected {needed}")),
            None => Err("can't be decoded, or its checksum differs".to_owned()),
        }
    }

    fn inflate(&mut self, input: &[u8], zlib: bool, target: &mut [u8]) -> Result<usize, DecompressionError> {
        if zlib { self.inflate.zlib_decompress(input, target) } else { self.inflate.deflate_decompress(input, target) }
    }

    /// Decodes a stream that yields more than `target` holds, but no more than `most` bytes.
    fn longer(
        &mut self,
        target: &mut [u8],
        most: usize,
        decode: impl FnOnce(&mut Self, &mut [u8]) -> Option<usize>,
    ) -> Option<usize> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(most, 0);
        let decoded = decode(self, &mut scratch).map(|len| {
            let kept = len.min(target.len());
            target[..kept].copy_from_slice(&scratch[..kept]);
            kept
        });
        self.scratch = scratch;
        decoded
    }

    /// Decodes zstd frames, one behind the other, until they have yielded `needed` bytes. As QEMU has it, each must be
    /// whole, with the checksum that it announces, and fit into `target`; what follows them in `input` is not looked at.
    fn zstd(&mut self, input: &[u8], target: &mut [u8], needed: usize) -> Option<usize> {
        let decoder = match &mut self.zstd {
            Some(decoder) => {
                decoder.reinit().ok()?;
                decoder
            }
            none => {
                let mut decoder = Decoder::new().ok()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
                none.insert(decoder)
            }
        };
        let mut source = InBuffer::around(input);
        let mut sink = OutBuffer::around(target);
        loop {
            let (before, filled) = (source.pos(), sink.pos());
            let more = decoder.run(&mut source, &mut sink).ok()?;
            let stuck = source.pos() == before && sink.pos() == filled;
            if more == 0 && sink.pos() >= needed {
                return Some(sink.pos());
            }
            if stuck {
                return None;
            }
        }
    }

    /// Inflates a zlib stream into `target` and returns its deflate part where it may be passed on as it is: as QEMU
    /// inflates it, it fills `target` exactly and ends with its adler32 at the end of `input`. `None` says nothing
    /// about the stream: decode it the usual way.
    pub(crate) fn pass_through<'a>(&mut self, input: &'a [u8], target: &mut [u8]) -> Option<&'a [u8]> {
        let (header, rest) = input.split_first_chunk::<ZLIB_HEADER>()?;
        let (body, trailer) = rest.split_last_chunk::<ZLIB_TRAILER>()?;
        if !is_zlib_header(*header) {
            return None;
        }
        self.strict.reset(false);
        let is_whole = matches!(self.strict.decompress(body, target, FlushDecompress::Finish), Ok(Status::StreamEnd))
            && self.strict.total_in() == body.len() as u64
            && self.strict.total_out() == target.len() as u64
            && adler32(target).to_be_bytes() == *trailer;
        is_whole.then_some(body)
    }
}

/// Deflate with a window of 32 KiB at most and no dictionary, and the check bits right (RFC 1950, section 2.2).
fn is_zlib_header([cmf, flg]: [u8; ZLIB_HEADER]) -> bool {
    cmf & 0x0F == 8 && cmf >> 4 <= 7 && flg & 0x20 == 0 && u16::from_be_bytes([cmf, flg]).is_multiple_of(31)
}
