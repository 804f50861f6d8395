//! Reads a batch's bytes from the source.

use std::ops::Range;

use super::batch::Batch;
use crate::disk::buffer::Buffer;
use crate::disk::region::SECTOR;
use crate::disk::vmdk::marker;
use crate::disk::{Error, Location, Region};

/// Compressed pieces that lie this close together in the file are read in one go, unless what lies between them is more
/// than they are: it takes memory that no budget knows.
const MAX_GAP: u64 = 8 << 10;

/// The bytes of a batch as they are in the source.
pub struct Loaded {
    pub batch: Batch,
    /// The guest bytes, so far only those that are stored as they are.
    pub buffer: Buffer,
    /// Compressed bytes.
    pub input: Buffer,
    /// Where in `input` each piece's bytes are; empty for stored ones.
    pub places: Vec<Range<usize>>,
    /// What was read, in the order of the files.
    pub runs: Vec<Run>,
}

/// A stretch of a file that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub file: usize,
    pub range: Range<u64>,
    pub place: Place,
}

/// Where the first byte of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Input(usize),
    Buffer(usize),
}

impl Loaded {
    /// The bytes of one of its runs.
    pub fn bytes(&self, run: &Run) -> &[u8] {
        let len = length(run.range.end - run.range.start);
        match run.place {
            Place::Input(start) => &self.input[start..start + len],
            Place::Buffer(start) => &self.buffer[start..start + len],
        }
    }
}

/// Reads what `batch` needs into `buffer`, which is as long as the batch or longer, and `input`. Grains behind markers
/// become zlib streams.
pub fn load(regions: &[Region], mut batch: Batch, mut buffer: Buffer, mut input: Buffer) -> Result<Loaded, Error> {
    let Plan { runs, mut places, input: len } = plan(regions, &batch)?;
    input.resize(len);
    for Run { file, range, place } in &runs {
        let region = &regions[*file];
        let len = length(range.end - range.start);
        let target = match *place {
            Place::Input(start) => {
                // Whole sectors, for direct I/O, where the region has them.
                let rest = usize::try_from(region.len().saturating_sub(range.start)).unwrap_or(usize::MAX);
                let whole = len.next_multiple_of(SECTOR);
                &mut input[start..start + if whole <= rest { whole } else { len }]
            }
            Place::Buffer(start) => &mut buffer[start..start + len],
        };
        region.read_once_at(target, range.start)?;
    }
    for (piece, place) in batch.pieces.iter_mut().zip(&mut places) {
        let Location::Marked { file, offset, reach } = piece.at else { continue };
        let marker = *input[place.clone()].first_chunk().expect("it reaches over its marker at least");
        let len = marker::data_len(marker, piece.guest.start)
            .map_err(|message| Error::corrupt(regions[file].name(), offset, message))?;
        let most = u64::from(reach) - marker::BYTES;
        if u64::from(len) > most {
            let (region, guest) = (&regions[file], piece.guest.start);
            let message = format!("the grain for guest byte {guest} has {len} bytes, where {most} are left for it");
            let is_cut = offset + u64::from(reach) == region.len();
            let refuse = if is_cut { Error::truncated } else { Error::corrupt };
            return Err(refuse(region.name(), offset, message));
        }
        let start = place.start + marker::LEN;
        *place = start..start + length(len.into());
        piece.at = Location::Deflate { file, offset: offset + marker::BYTES, len, zlib: true };
    }
    Ok(Loaded { batch, buffer, input, places, runs })
}

/// What to read for a batch.
struct Plan {
    runs: Vec<Run>,
    /// Where in the input each piece's bytes will be.
    places: Vec<Range<usize>>,
    /// Length of the input. Each run begins at a multiple of [`SECTOR`] in it.
    input: usize,
}

fn plan(regions: &[Region], batch: &Batch) -> Result<Plan, Error> {
    let mut runs: Vec<Run> = Vec::new();
    let mut places = vec![0..0; batch.pieces.len()];
    let mut packed = Vec::new();
    for (number, piece) in batch.pieces.iter().enumerate() {
        let (file, offset, len) = match piece.at {
            Location::Zero => continue,
            Location::Stored { file, offset } => {
                let place = Place::Buffer(length(piece.guest.start - batch.guest.start));
                runs.push(Run { file, range: offset..offset + piece.len(), place });
                continue;
            }
            Location::Deflate { file, offset, len, zlib } => {
                (file, offset, bounded(&regions[file], offset, len, zlib)?)
            }
            Location::Zstd { file, offset, len } => (file, offset, bounded(&regions[file], offset, len, false)?),
            Location::Marked { file, offset, reach } => (file, offset, u64::from(reach)),
        };
        packed.push((file, offset, len, number));
    }
    // In the file's order: some writers go through the guest backwards.
    packed.sort_unstable();
    let mut filled: usize = 0;
    for (file, offset, len, number) in packed {
        let start = match runs.last_mut() {
            Some(Run { file: of, range, place: Place::Input(start) })
                if *of == file && offset <= range.end + MAX_GAP.min(len) =>
            {
                range.end = range.end.max(offset + len);
                *start + length(offset - range.start)
            }
            _ => {
                let start = filled.next_multiple_of(SECTOR);
                runs.push(Run { file, range: offset..offset + len, place: Place::Input(start) });
                start
            }
        };
        filled = filled.max(start + length(len));
        places[number] = start..start + length(len);
    }
    runs.sort_unstable_by_key(|run| (run.file, run.range.start));
    Ok(Plan { runs, places, input: filled.next_multiple_of(SECTOR) })
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
            let most = 2 * batch.input() + batch.pieces.len() * SECTOR;
            assert!(plan.input <= most, "{} bytes for {} of input", plan.input, batch.input());
        }
    }
}
