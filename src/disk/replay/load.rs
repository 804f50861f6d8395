// SPDX-License-Identifier: Apache-2.0
//! Reads a batch's bytes from the source.

use std::ops::Range;

use super::batch::Batch;
use crate::disk::buffer::Buffer;
use crate::disk::units::SECTOR_BYTES;
use crate::disk::{Error, Location, Region, frame};

/// Compressed pieces that lie this close together in the file are read in one go, unless the gap is longer than the
/// pieces: no budget counts its memory.
const MAX_GAP: u64 = 8 << 10;

/// A batch whose bytes were read.
pub(crate) struct Loaded {
    pub guest: Range<u64>,
    /// What is not zero in it, in guest order.
    pub pieces: Vec<Piece>,
    /// The guest bytes, so far only those that are stored as they are.
    pub buffer: Buffer,
    /// Compressed bytes.
    pub input: Buffer,
    /// What was read, in the order of the files.
    pub reads: Vec<Read>,
}

/// A piece of a batch.
pub(crate) struct Piece {
    /// Where in the buffer its guest bytes belong.
    pub place: Range<usize>,
    pub bytes: Bytes,
}

/// Where the bytes of a piece are.
pub(crate) enum Bytes {
    /// In the buffer already.
    InBuffer,
    /// In the input, compressed.
    Compressed(Stream),
}

/// A stream that decodes to a piece's guest bytes.
pub(crate) struct Stream {
    pub codec: Codec,
    /// Its bytes in the input.
    pub input: Range<usize>,
    /// Where it lies in the source, for errors.
    pub file: usize,
    pub offset: u64,
}

/// What a stream is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// RFC 1951.
    Deflate,
    /// RFC 1950.
    Zlib,
    /// RFC 8878.
    Zstd,
}

/// A part of a file that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub file: usize,
    pub range: Range<u64>,
    pub target: Target,
}

/// Where the first byte of what was read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Input(usize),
    Buffer(usize),
}

impl Loaded {
    /// Guest bytes that are in `buffer` as they are, from its start.
    pub(crate) fn stored(guest: Range<u64>, buffer: Buffer) -> Self {
        let pieces = vec![Piece { place: 0..length(guest.end - guest.start), bytes: Bytes::InBuffer }];
        Self { guest, pieces, buffer, input: Buffer::default(), reads: Vec::new() }
    }

    /// Guest bytes.
    pub(crate) fn len(&self) -> usize {
        length(self.guest.end - self.guest.start)
    }

    /// The bytes of one of its reads.
    pub(crate) fn bytes(&self, read: &Read) -> &[u8] {
        let len = length(read.range.end - read.range.start);
        match read.target {
            Target::Input(start) => &self.input[start..start + len],
            Target::Buffer(start) => &self.buffer[start..start + len],
        }
    }
}

/// Reads what `batch` needs into `buffer`, which is as long as the batch or longer, and `input`.
pub(crate) fn load(regions: &[Region], batch: Batch, mut buffer: Buffer, mut input: Buffer) -> Result<Loaded, Error> {
    let Plan { reads, places, input: len } = plan(regions, &batch)?;
    input.resize(len);
    for Read { file, range, target } in &reads {
        let region = &regions[*file];
        let len = length(range.end - range.start);
        let target = match *target {
            Target::Input(start) => {
                // Whole sectors, for direct I/O, where the region has them.
                let rest = usize::try_from(region.len().saturating_sub(range.start)).unwrap_or(usize::MAX);
                let whole = len.next_multiple_of(SECTOR_BYTES);
                &mut input[start..start + if whole <= rest { whole } else { len }]
            }
            Target::Buffer(start) => &mut buffer[start..start + len],
        };
        region.read_once_at(target, range.start)?;
    }
    let mut pieces = Vec::with_capacity(batch.pieces.len());
    for (extent, read) in batch.pieces.iter().zip(places) {
        let bytes = match extent.at {
            // Bytes that no piece covers are zero.
            Location::Zero => continue,
            Location::Stored { .. } => Bytes::InBuffer,
            Location::Deflate { file, offset, zlib, .. } => {
                let codec = if zlib { Codec::Zlib } else { Codec::Deflate };
                Bytes::Compressed(Stream { codec, input: read, file, offset })
            }
            Location::Zstd { file, offset, .. } => {
                Bytes::Compressed(Stream { codec: Codec::Zstd, input: read, file, offset })
            }
            Location::Framed { file, offset, .. } => {
                Bytes::Compressed(unframed(&regions[file], extent.guest.start, &input, read, (file, offset))?)
            }
        };
        let place = length(extent.guest.start - batch.guest.start)..length(extent.guest.end - batch.guest.start);
        pieces.push(Piece { place, bytes });
    }
    Ok(Loaded { guest: batch.guest, pieces, buffer, input, reads })
}

/// The stream for guest byte `guest`, which follows a marker. `read` is the range of the input that begins with the
/// marker; in the source it begins at `offset` of `region`, which is number `file`.
fn unframed(
    region: &Region,
    guest: u64,
    input: &[u8],
    read: Range<usize>,
    (file, offset): (usize, u64),
) -> Result<Stream, Error> {
    let reach = read.len() as u64;
    let marker = *input[read.clone()].first_chunk().expect("it reaches over its marker at least");
    let len = frame::data_len(marker, guest).map_err(|message| Error::corrupt(region.name(), offset, message))?;
    let most = reach - frame::BYTES;
    if u64::from(len) > most {
        let message = format!("the grain for guest byte {guest} has {len} bytes, where {most} are left for it");
        let is_cut = offset + reach == region.len();
        let refuse = if is_cut { Error::truncated } else { Error::corrupt };
        return Err(refuse(region.name(), offset, message));
    }
    let start = read.start + frame::LEN;
    let input = start..start + length(len.into());
    Ok(Stream { codec: Codec::Zlib, input, file, offset: offset + frame::BYTES })
}

/// What to read for a batch.
struct Plan {
    reads: Vec<Read>,
    /// Where in the input each piece's bytes will be.
    places: Vec<Range<usize>>,
    /// Length of the input. Each read begins at a multiple of [`SECTOR_BYTES`] in it.
    input: usize,
}

fn plan(regions: &[Region], batch: &Batch) -> Result<Plan, Error> {
    let mut reads: Vec<Read> = Vec::new();
    let mut places = vec![0..0; batch.pieces.len()];
    let mut packed = Vec::new();
    for (number, piece) in batch.pieces.iter().enumerate() {
        let (file, offset, len) = match piece.at {
            Location::Zero => continue,
            Location::Stored { file, offset } => {
                let target = Target::Buffer(length(piece.guest.start - batch.guest.start));
                reads.push(Read { file, range: offset..offset + piece.len(), target });
                continue;
            }
            Location::Deflate { file, offset, len, zlib } => {
                (file, offset, bounded(&regions[file], offset, len, zlib)?)
            }
            Location::Zstd { file, offset, len } => (file, offset, bounded(&regions[file], offset, len, false)?),
            Location::Framed { file, offset, reach } => (file, offset, u64::from(reach)),
        };
        packed.push((file, offset, len, number));
    }
    // In the file's order: some writers go through the guest backwards.
    packed.sort_unstable();
    let mut filled: usize = 0;
    for (file, offset, len, number) in packed {
        let start = match reads.last_mut() {
            Some(Read { file: of, range, target: Target::Input(start) })
                if *of == file && offset <= range.end + MAX_GAP.min(len) =>
            {
                range.end = range.end.max(offset + len);
                *start + length(offset - range.start)
            }
            _ => {
                let start = filled.next_multiple_of(SECTOR_BYTES);
                reads.push(Read { file, range: offset..offset + len, target: Target::Input(start) });
                start
            }
        };
        filled = filled.max(start + length(len));
        places[number] = start..start + length(len);
    }
    reads.sort_unstable_by_key(|read| (read.file, read.range.start));
    Ok(Plan { reads, places, input: filled.next_multiple_of(SECTOR_BYTES) })
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

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within a batch")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Extent;

    #[test]
    fn what_lies_between_pieces_takes_no_more_memory_than_they_do() {
        const APART: u64 = 8000;
        for len in [12, 600, 9000] {
            let piece = |n: u64| Extent {
                guest: n * 512..(n + 1) * 512,
                at: Location::Zstd { file: 0, offset: n * (APART + len), len: u32::try_from(len).unwrap() },
            };
            let batch = Batch { guest: 0..2048 * 512, pieces: (0..2048).map(piece).collect() };
            let file = std::sync::Arc::new(tempfile::tempfile().unwrap());
            let plan = plan(&[Region::whole(file, "x", u64::MAX)], &batch).unwrap();
            let most = 2 * batch.input() + batch.pieces.len() * SECTOR_BYTES;
            assert!(plan.input <= most, "{} bytes for {} of input", plan.input, batch.input());
        }
    }
}
