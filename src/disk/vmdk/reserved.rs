// SPDX-License-Identifier: Apache-2.0
//! Where no grain may lie.

use std::ops::Range;
use std::sync::Arc;

use crate::disk::{Error, Region};

/// The ranges of an extent's header, footer, descriptor and directories, and of its tables if it is compressed:
/// ascending, without overlaps.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved(Arc<Vec<Range<u64>>>);

impl Reserved {
    /// Puts `ranges` of the image `file` in order.
    ///
    /// # Errors
    /// `Corrupt` where two of them share a place.
    pub(super) fn new(file: &str, mut ranges: Vec<Range<u64>>) -> Result<Self, Error> {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start);
        if let Some([_, second]) = ranges.array_windows().find(|[first, second]| second.start < first.end) {
            let message = "header, descriptor, directories or tables share this place";
            return Err(Error::corrupt(file, second.start, message));
        }
        Ok(Self(Arc::new(ranges)))
    }

    /// Whether `range` overlaps any of them.
    pub(super) fn meets(&self, range: &Range<u64>) -> bool {
        let behind = self.0.partition_point(|reserved| reserved.end <= range.start);
        self.0.get(behind).is_some_and(|reserved| reserved.start < range.end)
    }

    /// Where the first of them behind `offset` begins.
    pub(super) fn next(&self, offset: u64) -> Option<u64> {
        let behind = self.0.partition_point(|reserved| reserved.start <= offset);
        self.0.get(behind).map(|reserved| reserved.start)
    }
}

/// Adds a table of the image in `region` to `ranges`. A table that begins where the last range ends extends it.
///
/// # Errors
/// `Corrupt` where the source's tables lie in too many ranges.
pub(super) fn add(region: &Region, ranges: &mut Vec<Range<u64>>, table: Range<u64>) -> Result<(), Error> {
    match ranges.last_mut() {
        Some(last) if last.end == table.start => last.end = table.end,
        _ => {
            region.effort().hold_range(region.name()).map_err(|e| e.at(table.start))?;
            ranges.push(table);
        }
    }
    Ok(())
}
