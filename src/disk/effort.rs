// SPDX-License-Identifier: Apache-2.0
//! What checking the tables of a source may cost: one budget for all its files and all walks over their tables.
//!
//! A file of one MiB can hold tables that point all over a hole of terabytes. What a walk costs is bounded by what the
//! files really store, so that no image of an honest writer meets the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;
use crate::conversion::{Reason, Remedy};

/// Entries that may be looked at whatever the files store: one to two seconds.
const BASE: u64 = 1 << 27;
/// Entries more for each byte that the files store. A table's byte costs an eighth of an entry in each walk.
const FOR_EACH_BYTE: u64 = 1;
/// What it costs to read a table that lies apart from the last one, in entries.
const OF_A_READ: u64 = 64;
/// Most ranges of tables that are held in memory, in 32 MiB. With one table in each, that is 64 TiB of disks in grains
/// of 64 KiB.
const RANGES: u64 = 2 << 20;

/// The budget that the regions of one source share.
#[derive(Clone, Debug)]
pub(super) struct Effort(Arc<Left>);

#[derive(Debug)]
struct Left {
    entries: AtomicU64,
    ranges: AtomicU64,
}

impl Effort {
    /// For files that store so many bytes together.
    pub(super) fn of_bytes(stored: u64) -> Self {
        let entries = BASE.saturating_add(stored.saturating_mul(FOR_EACH_BYTE));
        Self(Arc::new(Left { entries: AtomicU64::new(entries), ranges: AtomicU64::new(RANGES) }))
    }

    /// Adds what a file stores that was made meanwhile.
    pub(super) fn grow(&self, stored: u64) {
        self.0.entries.fetch_add(stored.saturating_mul(FOR_EACH_BYTE), Ordering::Relaxed);
    }

    /// Spends so many entries of `file`.
    ///
    /// # Errors
    /// `Corrupt` once the budget is spent.
    pub(super) fn spend(&self, file: &str, entries: u64) -> Result<(), Error> {
        take(&self.0.entries, entries).ok_or_else(|| scattered(file))
    }

    /// Spends a read of `bytes` bytes of a table of `file`.
    pub(super) fn spend_read(&self, file: &str, bytes: usize) -> Result<(), Error> {
        self.spend(file, OF_A_READ + bytes as u64 / 8)
    }

    /// Takes room for a range.
    pub(super) fn hold_range(&self, file: &str) -> Result<(), Error> {
        take(&self.0.ranges, 1).ok_or_else(|| scattered(file))
    }
}

impl Default for Effort {
    fn default() -> Self {
        Self::of_bytes(0)
    }
}

fn take(left: &AtomicU64, wanted: u64) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(wanted)).ok().map(drop)
}

/// The refusal of tables that can't be checked at a bounded price.
pub(super) fn scattered(file: &str) -> Error {
    let message = "its tables are scattered too widely to be checked for overlaps";
    Error::refuse(Reason::Corrupt, file, message).with_remedy(Remedy::WriteTablesAnew)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_one_for_all_who_share_it() {
        let effort = Effort::default();
        let other = effort.clone();
        effort.spend("a", BASE - 10).unwrap();
        other.spend("b", 10).unwrap();
        assert_eq!(effort.spend("a", 1).unwrap_err().reason, Reason::Corrupt);
        for _ in 0..RANGES {
            other.hold_range("b").unwrap();
        }
        assert_eq!(effort.hold_range("a").unwrap_err().remedy, Some(Remedy::WriteTablesAnew));
    }
}
