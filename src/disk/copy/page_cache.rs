// SPDX-License-Identifier: Apache-2.0
//! Drops the source's pages behind the copy. They are charged to the process that reads, and allocating a fresh page
//! for every 4 KiB of a large image costs more than reading it.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};

use crate::disk::Region;
use crate::disk::replay::load::Read;

/// Bytes dropped at once. This and the lag are small, so that a page used again soon is still in the CPU's cache.
const STEP: u64 = 2 << 20;
/// Distance kept from the last read, in bytes: earlier reads may still be under way this far back, a few batches.
const LAG: u64 = 4 << 20;

/// The pages of the source's regions, and how far they are dropped.
pub(super) struct PageCache<'a> {
    regions: &'a [Region],
    dropped: Vec<AtomicU64>,
}

impl<'a> PageCache<'a> {
    /// Tells the kernel that the regions are read from front to back.
    pub(super) fn new(regions: &'a [Region]) -> Self {
        for region in regions {
            advise(region, 0, region.len(), Advice::Sequential);
        }
        Self { regions, dropped: regions.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Drops pages well before `reads`. Where one is still needed, it is only read again.
    pub(super) fn drop_before(&self, reads: &[Read]) {
        let Some(read) = reads.last() else { return };
        let dropped = self.dropped[read.file].load(Ordering::Relaxed);
        let end = read.range.start.saturating_sub(LAG);
        let is_first = || self.dropped[read.file].compare_exchange(dropped, end, Ordering::Relaxed, Ordering::Relaxed);
        if end >= dropped + STEP && is_first().is_ok() {
            advise(&self.regions[read.file], dropped, end - dropped, Advice::DontNeed);
        }
    }
}

impl Drop for PageCache<'_> {
    fn drop(&mut self) {
        for region in self.regions {
            advise(region, 0, region.len(), Advice::DontNeed);
        }
    }
}

/// A hint, so a refusal changes nothing.
fn advise(region: &Region, offset: u64, len: u64, advice: Advice) {
    let Some((file, start)) = region.file() else { return };
    let _ = fadvise(file, start + offset, std::num::NonZeroU64::new(len), advice);
}
