// SPDX-License-Identifier: Apache-2.0
//! Cuts a map into batches: pieces of work that one thread reads, decodes and encodes at once.

use std::ops::Range;

use crate::conversion::Reason;
use crate::disk::extent::MAX_COMPRESSED;
use crate::disk::units::CLUSTER;
use crate::disk::{Error, Extent, Location};

/// Guest bytes of a batch, unless a compressed extent reaches further. A multiple of every cluster written here.
pub(crate) const BATCH: u64 = 1 << 20;
const _: () = assert!(BATCH.is_multiple_of(CLUSTER));

/// Bytes of compressed input after which a batch ends at the next boundary. Grains that do not shrink, and whose
/// length is known only as an upper bound, still make a whole batch.
pub(crate) const INPUT: usize = 5 << 18;
/// Compressed input that no batch may exceed.
const MAX_INPUT: usize = 8 << 20;

/// One step of a copy, in guest order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing but zeros, up to this guest byte.
    Zero(u64),
    Data(Batch),
}

/// A range of guest bytes, not all of them zeros.
#[derive(Debug)]
pub(crate) struct Batch {
    pub guest: Range<u64>,
    /// Its extents that are not zeros, in guest order.
    pub pieces: Vec<Extent>,
}

impl Batch {
    /// Guest bytes.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.guest.end - self.guest.start).expect("a batch is a few MiB")
    }

    /// Bytes of compressed input.
    pub(crate) fn input(&self) -> usize {
        self.pieces.iter().map(|piece| compressed_len(&piece.at) as usize).sum()
    }
}

/// Bytes of input to read for a compressed extent, 0 for others.
pub(crate) fn compressed_len(at: &Location) -> u32 {
    match *at {
        Location::Deflate { len, .. } | Location::Zstd { len, .. } => len,
        Location::Framed { reach, .. } => reach,
        Location::Zero | Location::Stored { .. } => 0,
    }
}

/// The batches of a map.
pub(crate) struct Batches<I> {
    extents: I,
    /// What is left of the extent at hand.
    rest: Option<Extent>,
    at: u64,
    size: u64,
    name: String,
}

impl<I: Iterator<Item = Result<Extent, Error>>> Batches<I> {
    /// Batches of a disk of `size` bytes; `name` is for errors.
    pub(crate) fn new(extents: I, size: u64, name: String) -> Self {
        Self { extents, rest: None, at: 0, size, name }
    }

    /// The next step; `None` at the disk's end.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, Error> {
        if self.at == self.size {
            return self.check_end().map(|()| None);
        }
        let start = self.at;
        let full = (start / BATCH + 1) * BATCH;
        let mut pieces = Vec::new();
        let mut input = 0;
        while self.at < self.size {
            let extent = self.take()?;
            let is_zero = extent.at == Location::Zero;
            if is_zero
                && pieces.is_empty()
                && let Some(end) = self.boundary(start, extent.guest.end)
            {
                self.cut(extent, end);
                return Ok(Some(Step::Zero(end)));
            }
            let compressed = compressed_len(&extent.at) as usize;
            // A compressed extent is never cut; any other is cut where the batch is full, or at the next boundary.
            let end = if compressed > 0 { extent.guest.end } else { full.max(ceil(extent.guest.start + 1)) };
            let piece = self.cut(extent, end);
            if !is_zero {
                pieces.push(piece);
            }
            input += compressed;
            let is_full = self.at >= full || input >= INPUT;
            if is_full && self.at.is_multiple_of(CLUSTER) {
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

    /// Fails where the map goes on behind the disk's end.
    fn check_end(&mut self) -> Result<(), Error> {
        match self.extents.next() {
            None => Ok(()),
            Some(Err(e)) => Err(e),
            Some(Ok(_)) => Err(self.broken("goes on behind the disk's end")),
        }
    }

    /// The last place behind `start`, and no further than `end`, where a batch may end; `None` where there is none.
    fn boundary(&self, start: u64, end: u64) -> Option<u64> {
        let boundary = if end == self.size { end } else { floor(end) };
        (boundary > start).then_some(boundary)
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

    /// Takes what lies before `end`, and keeps what lies behind it for later.
    fn cut(&mut self, mut extent: Extent, end: u64) -> Extent {
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
        self.at = extent.guest.end;
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
