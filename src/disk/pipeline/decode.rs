//! Reads a batch's bytes and turns them into guest bytes.

use std::ops::Range;

use libdeflater::{DecompressionError, Decompressor, adler32};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::batch::Batch;
use super::buffer::Buffer;
use crate::disk::{Error, Extent, Location, Region};

/// Compressed pieces that lie this close together in the file are read in one go.
const MAX_GAP: u64 = 8 << 10;
/// A last extent may decode to more than its length, up to the largest cluster.
const MAX_DECODED: usize = 2 << 20;
/// Largest window of a zstd stream in a qcow2 cluster: log2 of the largest cluster.
const ZSTD_WINDOW_LOG: u32 = 21;
/// zlib's header, and its adler32 at the end (RFC 1950, section 2.2).
pub const ZLIB_HEADER: usize = 2;
const ZLIB_TRAILER: usize = 4;

/// The bytes of a batch as they are in the source.
pub struct Loaded {
    pub batch: Batch,
    /// The guest bytes, so far only those that are stored as they are.
    pub buffer: Buffer,
    /// Compressed bytes.
    pub input: Vec<u8>,
    /// Where in `input` each piece's bytes are; empty for stored ones.
    pub places: Vec<Range<usize>>,
}

/// Reads what `batch` needs into `buffer`, which is as long as the batch or longer, and `input`.
pub fn load(regions: &[Region], batch: Batch, mut buffer: Buffer, mut input: Vec<u8>) -> Result<Loaded, Error> {
    input.clear();
    let mut places = Vec::with_capacity(batch.pieces.len());
    // The stretch of one file being gathered, and where in `input` it starts.
    let mut run: Option<(usize, Range<u64>, usize)> = None;
    for piece in &batch.pieces {
        let (file, offset, len) = match piece.at {
            Location::Stored { file, offset } => {
                let place = within(batch.guest.start, piece);
                regions[file].read_exact_at(&mut buffer[place], offset)?;
                places.push(0..0);
                continue;
            }
            Location::Zero => {
                places.push(0..0);
                continue;
            }
            Location::Deflate { file, offset, len, zlib } => {
                (file, offset, bounded(&regions[file], offset, len, zlib)?)
            }
            Location::Zstd { file, offset, len } => (file, offset, bounded(&regions[file], offset, len, false)?),
        };
        let end = offset + len;
        match &mut run {
            Some((of, range, start)) if *of == file && offset >= range.end && offset - range.end <= MAX_GAP => {
                let at = *start + length(offset - range.start);
                places.push(at..at + length(len));
                range.end = end;
            }
            _ => {
                read_run(regions, run.take(), &mut input)?;
                places.push(input.len()..input.len() + length(len));
                run = Some((file, offset..end, input.len()));
            }
        }
    }
    read_run(regions, run, &mut input)?;
    Ok(Loaded { batch, buffer, input, places })
}

fn read_run(regions: &[Region], run: Option<(usize, Range<u64>, usize)>, input: &mut Vec<u8>) -> Result<(), Error> {
    let Some((file, range, start)) = run else { return Ok(()) };
    input.resize(start + length(range.end - range.start), 0);
    regions[file].read_exact_at(&mut input[start..], range.start)
}

/// The length to read: exact, or cut at the end of the file where it is an upper bound.
fn bounded(region: &Region, offset: u64, len: u32, exact: bool) -> Result<u64, Error> {
    let len = u64::from(len);
    if exact {
        return Ok(len);
    }
    match region.len().checked_sub(offset) {
        Some(rest) if rest > 0 => Ok(len.min(rest)),
        _ => Err(Error::truncated(region.name(), offset, "compressed data lies past the end of the file")),
    }
}

/// The decoders of one thread.
pub struct Decode {
    inflate: Decompressor,
    zstd: Option<Decoder<'static>>,
    scratch: Vec<u8>,
}

impl Decode {
    pub fn new() -> Self {
        Self { inflate: Decompressor::new(), zstd: None, scratch: Vec::new() }
    }

    /// Makes `loaded.buffer` the guest's bytes; behind the batch's end it is filled with zeros.
    /// `size` is the disk's.
    pub fn run(&mut self, regions: &[Region], loaded: &mut Loaded, size: u64) -> Result<(), Error> {
        let Loaded { batch, buffer, input, places } = loaded;
        let mut done = 0;
        for (piece, place) in batch.pieces.iter().zip(places) {
            let target = within(batch.guest.start, piece);
            buffer[done..target.start].fill(0);
            done = target.end;
            let last = piece.guest.end == size;
            self.piece(regions, piece, &input[place.clone()], &mut buffer[target], last)?;
        }
        buffer[done..].fill(0);
        Ok(())
    }

    fn piece(
        &mut self,
        regions: &[Region],
        piece: &Extent,
        input: &[u8],
        target: &mut [u8],
        last: bool,
    ) -> Result<(), Error> {
        let (file, offset, decoded) = match piece.at {
            Location::Stored { .. } => return Ok(()),
            Location::Zero => {
                target.fill(0);
                return Ok(());
            }
            Location::Deflate { file, offset, zlib, .. } => {
                let decoded = match self.inflate(input, zlib, target) {
                    Err(DecompressionError::InsufficientSpace) if last => self.inflate_longer(input, zlib, target),
                    decoded => decoded,
                };
                (file, offset, decoded.ok())
            }
            Location::Zstd { file, offset, .. } => (file, offset, self.zstd(input, target)),
        };
        let what = match decoded {
            Some(len) if len == target.len() => return Ok(()),
            Some(len) => format!("decodes to {len} bytes, expected {}", target.len()),
            None => "can't be decoded, or its checksum differs".to_owned(),
        };
        let message = format!("the data for guest byte {} {what}", piece.guest.start);
        Err(Error::corrupt(regions[file].name(), offset, message))
    }

    fn inflate(&mut self, input: &[u8], zlib: bool, target: &mut [u8]) -> Result<usize, DecompressionError> {
        if zlib { self.inflate.zlib_decompress(input, target) } else { self.inflate.deflate_decompress(input, target) }
    }

    /// Inflates a stream that yields more than `target` takes: the last one of a disk that ends within its cluster.
    fn inflate_longer(&mut self, input: &[u8], zlib: bool, target: &mut [u8]) -> Result<usize, DecompressionError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(MAX_DECODED, 0);
        let decoded = self.inflate(input, zlib, &mut scratch);
        let decoded = decoded.map(|len| {
            let kept = len.min(target.len());
            target[..kept].copy_from_slice(&scratch[..kept]);
            kept
        });
        self.scratch = scratch;
        decoded
    }

    /// Decodes one zstd stream as far as `target` reaches; what follows it in `input` is not looked at.
    fn zstd(&mut self, input: &[u8], target: &mut [u8]) -> Option<usize> {
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
            if more == 0 || sink.pos() == sink.capacity() || stuck {
                return Some(sink.pos());
            }
        }
    }

    /// Inflates a zlib stream into `target` and returns its deflate part where it may be passed on as it is: it fills
    /// `target` exactly, and its adler32 is the last thing in `input`. `None` tells nothing: decode it the usual way.
    ///
    /// Bytes between the stream's end and a second copy of its right adler32 can't be told from a longer stream; they
    /// change nothing of what a reader of the cluster sees, since a compressed length is an upper bound there.
    pub fn pass_through<'a>(&mut self, input: &'a [u8], target: &mut [u8]) -> Option<&'a [u8]> {
        let body_end = input.len().checked_sub(ZLIB_TRAILER).filter(|&end| end > ZLIB_HEADER)?;
        let header = u16::from_be_bytes([input[0], input[1]]);
        // Method 8, a window of at most 32 KiB, no preset dictionary, header checksum (RFC 1950, section 2.2).
        let is_plain =
            header.is_multiple_of(31) && header & 0x0F00 == 0x0800 && header >> 12 <= 7 && header & 0x20 == 0;
        let body = &input[ZLIB_HEADER..body_end];
        let trailer = u32::from_be_bytes(input[body_end..].try_into().expect("four bytes"));
        let fits =
            is_plain && self.inflate.deflate_decompress(body, target) == Ok(target.len()) && adler32(target) == trailer;
        fits.then_some(body)
    }
}

/// Where in the buffer of a batch from guest byte `start` a piece's bytes belong.
pub fn within(start: u64, piece: &Extent) -> Range<usize> {
    length(piece.guest.start - start)..length(piece.guest.end - start)
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within a batch")
}
