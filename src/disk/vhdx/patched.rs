// SPDX-License-Identifier: Apache-2.0
//! The file as it is after its log was replayed, without writing to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::{Error, Region};

/// What the log changes are counted in, by the specification.
pub(super) const LOG_SECTOR: usize = 4096;

/// Changed sectors by their offset in the file; `None` is zeros.
pub(super) type Patches = BTreeMap<u64, Option<Box<[u8; LOG_SECTOR]>>>;

/// A region with changed sectors laid over it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Patched {
    region: Region,
    patches: Arc<Patches>,
}

impl Patched {
    pub(super) fn new(region: &Region, patches: Patches) -> Self {
        Self { region: region.clone(), patches: Arc::new(patches) }
    }

    pub(super) fn name(&self) -> &str {
        self.region.name()
    }

    /// Length of the file itself.
    pub(super) fn len(&self) -> u64 {
        self.region.len()
    }

    /// The lowest changed sector within `range`.
    pub(super) fn changed(&self, range: Range<u64>) -> Option<u64> {
        let before = range.start.saturating_sub(LOG_SECTOR as u64 - 1);
        self.patches.range(before..range.end).next().map(|(&at, _)| at)
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Fills `buffer` from `offset`, changes included.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.region.read_exact_at(buffer, offset)?;
        self.patch(buffer, offset);
        Ok(())
    }

    /// The same for a part of a table; returns whether there may be anything but zeros in it.
    pub(super) fn read_table_at(&self, buffer: &mut [u8], offset: u64) -> Result<bool, Error> {
        let is_data = self.region.read_table_at(buffer, offset)?;
        self.patch(buffer, offset);
        Ok(is_data || !self.patches.is_empty())
    }

    /// Lays the changes over what was read from `offset`.
    fn patch(&self, buffer: &mut [u8], offset: u64) {
        let end = offset + buffer.len() as u64;
        let before = offset.saturating_sub(LOG_SECTOR as u64 - 1);
        for (&at, patch) in self.patches.range(before..end) {
            let first = at.max(offset);
            let last = (at + LOG_SECTOR as u64).min(end);
            let within = |from: u64| {
                let place = |position: u64| usize::try_from(position - from).expect("both lie within a buffer");
                place(first)..place(last)
            };
            match patch {
                Some(sector) => buffer[within(offset)].copy_from_slice(&sector[within(at)]),
                None => buffer[within(offset)].fill(0),
            }
        }
    }
}
