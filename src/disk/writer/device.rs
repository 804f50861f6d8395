// SPDX-License-Identifier: Apache-2.0
//! Raw output to a block device: every byte of it is defined, and its first MiB is written last.
//!
//! ```text
//!  zero the first and last MiB, sync ─▶ data and zeros, but for the first MiB ─▶ zeros to the end, sync ─▶ first MiB, sync
//! ```
//!
//! Wherever this ends early, the device begins with zeros: no firmware finds a disk on it.

use std::ops::Range;

use super::coded::{Coded, Coding, Content};
use super::ends::Ends;
use super::job::WriteJob;
use super::output::Output;
use crate::conversion::Reason;
use crate::conversion::options::ByteSize;
use crate::disk::Error;
use crate::disk::buffer::{ALIGNMENT, Buffer};
use crate::disk::device::Geometry;

/// Bytes that are held back to the end, and bytes at the device's end that are zeroed first: both ends of a GPT, and the
/// headers of what Linux finds on a device.
const EDGE: u64 = 1 << 20;

/// Shortest range that is worth a request of its own to be zeroed; shorter ones are written with the data around.
const SHORTEST_HOLE: u64 = 64 << 10;

/// A disk being written to a device.
#[derive(Debug)]
pub(crate) struct Device {
    size: u64,
    geometry: Geometry,
    /// Writes begin and end at multiples of it, but for the device's end.
    unit: u64,
    name: String,
    ends: Ends,
    /// The first bytes of the disk, [`EDGE`] at most.
    first: Vec<u8>,
    /// All before it is placed.
    placed: u64,
    /// The last piece, where the device ends within a unit.
    rest: Option<(u64, Vec<u8>)>,
}

impl Device {
    /// # Errors
    /// `TargetTooSmall`.
    pub(super) fn new(size: u64, geometry: Geometry, name: &str) -> Result<Self, Error> {
        if size > geometry.bytes {
            let message = format!(
                "the disk has {} ({size} bytes), and the device has {} ({} bytes)",
                ByteSize(size),
                ByteSize(geometry.bytes),
                geometry.bytes
            );
            let error = Error::refuse(Reason::TargetTooSmall, name, message);
            return Err(Error { needed_bytes: Some(size), ..error });
        }
        let first = usize::try_from(EDGE.min(geometry.bytes)).expect("a MiB at most");
        Ok(Self {
            size,
            geometry,
            unit: u64::from(geometry.sector).max(ALIGNMENT as u64),
            name: name.to_owned(),
            ends: Ends::default(),
            first: vec![0; first],
            placed: EDGE.min(geometry.bytes),
            rest: None,
        })
    }

    pub(super) fn coding(&self) -> Coding {
        Coding::Runs { unit: usize::try_from(self.unit).expect("a sector fits into memory") }
    }

    /// Makes what was on the device unknown to whoever looks at it, before anything else is changed.
    pub(super) fn begin(&self, output: &Output) -> Result<(), Error> {
        let bytes = self.geometry.bytes;
        let end = self.placed.max(bytes.saturating_sub(EDGE) / self.unit * self.unit);
        output.zero(0..self.placed)?;
        output.zero(end..bytes)?;
        output.sync()
    }

    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) -> Result<(), Error> {
        self.ends.keep(&coded, Some(self.size), &self.name)?;
        let Coded { guest, mut buffer, content } = coded;
        let Content::Runs(runs) = content else { unreachable!("this writer asks for runs") };
        let mut parts: Vec<(u64, Range<usize>)> = Vec::with_capacity(runs.len());
        let mut zeros = Vec::new();
        for run in runs {
            let (start, end) = (guest.start + run.start as u64, guest.start + run.end as u64);
            self.hold_back(start, &buffer[run]);
            let start = start.max(self.placed);
            let end = self.pad(start, end, guest.start, &mut buffer);
            if start >= end {
                continue;
            }
            // Zeros of the batch itself that are too few for a request of their own.
            let is_near = self.placed >= guest.start && start - self.placed < SHORTEST_HOLE;
            let start = if is_near { self.placed } else { start };
            let inside = |at: u64| usize::try_from(at - guest.start).expect("a batch is a few MiB");
            match parts.last_mut() {
                Some((_, last)) if last.end == inside(start) => last.end = inside(end),
                _ => parts.push((start, inside(start)..inside(end))),
            }
            if start > self.placed {
                zeros.push(self.placed..start);
            }
            self.placed = end;
        }
        jobs.push(WriteJob { buffer, parts, zeros });
        Ok(())
    }

    /// Keeps what `bytes`, from the disk's byte `start` on, have of the first ones.
    fn hold_back(&mut self, start: u64, bytes: &[u8]) {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        if let Some(first) = self.first.get_mut(start..) {
            let len = first.len().min(bytes.len());
            first[..len].copy_from_slice(&bytes[..len]);
        }
    }

    /// Completes the last unit of `start..end` with zeros, and returns its end. Where the device ends before, that unit
    /// is kept for the end.
    fn pad(&mut self, start: u64, end: u64, base: u64, buffer: &mut Buffer) -> u64 {
        let whole = end.next_multiple_of(self.unit);
        if start >= end || whole == end {
            return end;
        }
        let inside = |at: u64| usize::try_from(at - base).expect("a batch is a few MiB");
        if whole > self.geometry.bytes {
            let cut = end / self.unit * self.unit;
            self.rest = Some((cut, buffer[inside(cut)..inside(end)].to_vec()));
            return cut;
        }
        if inside(whole) > buffer.len() {
            buffer.resize(inside(whole));
        }
        buffer[inside(end)..inside(whole)].fill(0);
        whole
    }

    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        self.ends.check(&self.name)?;
        output.zero(self.placed..self.geometry.bytes)?;
        output.buffered()?;
        if let Some((at, bytes)) = &self.rest {
            output.write(bytes, *at)?;
        }
        output.sync()?;
        output.write(&self.first, 0)?;
        output.sync()
    }
}
