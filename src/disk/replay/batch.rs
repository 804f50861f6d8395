//! Cuts a map into batches: pieces of work that one thread reads, decodes and encodes at once.

use std::ops::Range;

use crate::conversion::Reason;
use crate::disk::extent::MAX_COMPRESSED;
use crate::disk::{Error, Extent, Location};

/// Guest bytes of a batch, unless a compressed extent reaches further. A multiple of every cluster written here.
pub const BATCH: u64 = 1 << 20;
/// Batches begin and end at multiples of this, but for the disk's end: the output's cluster.
pub const CLUSTER: u64 = CLUSTER_BYTES as u64;
/// The same, as a length in memory.
pub const CLUSTER_BYTES: usize = 64 << 10;

/// Compressed input after which a batch ends at the next boundary; grains that do not shrink, and of which no more is known
/// than the most they can be, still make a whole batch.
pub const INPUT: usize = 5 << 18;
/// Compressed input that no batch may exceed.
const MAX_INPUT: usize = 8 << 20;

/// One step of a copy, in guest order.
#[derive(Debug)]
pub enum Step {
    /// Nothing but zeros, up to this guest byte.
    Zero(u64),
    Data(Batch),
}

/// A stretch of guest bytes with something in it.
#[derive(Debug)]
pub struct Batch {
    pub guest: Range<u64>,
    /// What is not zero in it, in guest order.
    pub pieces: Vec<Extent>,
}

impl Batch {
    /// Guest bytes.
    pub fn len(&self) -> usize {
        usize::try_from(self.guest.end - self.guest.start).expect("a batch is a few MiB")
    }

    /// Bytes of compressed input.
    pub fn input(&self) -> usize {
        self.pieces.iter().map(|piece| compressed_len(&piece.at) as usize).sum()
    }
}

/// Bytes of input to read for a compressed extent, 0 for others.
pub fn compressed_len(at: &Location) -> u32 {
    match *at {
        Location::Deflate { len, .. } | Location::Zstd { len, .. } => len,
        Location::Marked { reach, .. } => reach,
        Location::Zero | Location::Stored { .. } => 0,
    }
}

/// The batches of a map.
pub struct Batches<I> {
    extents: I,
    /// What is left of the extent at hand.
    rest: Option<Extent>,
    at: u64,
    size: u64,
    name: String,
}

impl<I: Iterator<Item = Result<Extent, Error>>> Batches<I> {
    /// Batches of a disk of `size` bytes; `name` is for errors.
    pub fn new(extents: I, size: u64, name: String) -> Self {
        Self { extents, rest: None, at: 0, size, name }
    }

    /// The next step; `None` at the disk's end.
    pub fn next(&mut self) -> Result<Option<Step>, Error> {
        let start = self.at;
        if start == self.size {
            return match self.extents.next() {
                None => Ok(None),
                Some(Err(e)) => Err(e),
                Some(Ok(_)) => Err(self.broken("goes on behind the disk's end")),
            };
        }
        let full = (start / BATCH + 1) * BATCH;
        let mut pieces = Vec::new();
        let mut input = 0;
        while self.at < self.size {
            let extent = self.take()?;
            if extent.at == Location::Zero {
                if pieces.is_empty() && self.is_boundary(extent.guest.end, start) {
                    let end = if extent.guest.end == self.size { self.size } else { floor(extent.guest.end) };
                    self.put_back(extent, end);
                    return Ok(Some(Step::Zero(self.at)));
                }
                let end = extent.guest.end.min(full.max(ceil(extent.guest.start)));
                self.put_back(extent, end);
            } else if compressed_len(&extent.at) > 0 {
                self.at = extent.guest.end;
                input += compressed_len(&extent.at) as usize;
                pieces.push(extent);
            } else {
                let end = extent.guest.end.min(full.max(ceil(extent.guest.start + 1)));
                pieces.push(self.put_back(extent, end));
            }
            if (self.at >= full || input >= INPUT) && self.at.is_multiple_of(CLUSTER) {
                break;
            }
            if self.at - start > 4 * MAX_COMPRESSED || input > MAX_INPUT {
                return Err(self.broken("has compressed extents that no cluster boundary parts"));
            }
        }
        if pieces.is_empty() {
            return Ok(Some(Step::Zero(self.at)));
        }
        Ok(Some(Step::Data(Batch { guest: start..self.at, pieces })))
    }

    /// Whether zeros up to `end` are a step of their own: at least to the next boundary behind `start`.
    fn is_boundary(&self, end: u64, start: u64) -> bool {
        end == self.size || floor(end) > start
    }

    /// Takes the extent at hand or the next one, which must begin where the last ended.
    fn take(&mut self) -> Result<Extent, Error> {
        let extent = match self.rest.take() {
            Some(extent) => extent,
            None => match self.extents.next() {
                Some(extent) => extent?,
                None => return Err(self.broken("ends before the disk does")),
            },
        };
        if extent.guest.start != self.at || extent.is_empty() || extent.guest.end > self.size {
            return Err(self.broken("has a gap or an overlap"));
        }
        if compressed_len(&extent.at) > 0 && extent.len() > MAX_COMPRESSED {
            return Err(self.broken("has a compressed extent of more than 2 MiB"));
        }
        Ok(extent)
    }

    /// Keeps what lies behind `end` for later and returns what lies before.
    fn put_back(&mut self, mut extent: Extent, end: u64) -> Extent {
        if end < extent.guest.end {
            let at = match extent.at {
                Location::Stored { file, offset } => {
                    Location::Stored { file, offset: offset + (end - extent.guest.start) }
                }
                other => other,
            };
            self.rest = Some(Extent { guest: end..extent.guest.end, at });
            extent.guest.end = end;
        }
        self.at = end;
        extent
    }

    fn broken(&self, what: &str) -> Error {
        let message = format!("the map {what}, near guest byte {}", self.at);
        Error::refuse(Reason::Internal, self.name.clone(), message)
    }
}

fn floor(at: u64) -> u64 {
    at / CLUSTER * CLUSTER
}

fn ceil(at: u64) -> u64 {
    at.next_multiple_of(CLUSTER)
}
