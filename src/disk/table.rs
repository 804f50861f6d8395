// SPDX-License-Identifier: Apache-2.0
//! A table of equal entries in a file, read one page at a time.

use std::ops::Range;

use super::buffer::is_zero;
use super::{Error, Extent, Location};

/// How much of a table is held. A block allocation table may have hundreds of MiB; walked in order, it costs one read
/// for each page.
const PAGE: usize = 64 * 1024;
/// Bytes that are compared with zeros at once: whole entries of every table.
const RUN: usize = 128;

/// `entries` entries of `N` bytes from byte `offset`. The caller has checked that the table lies inside its file.
pub(crate) struct Table<const N: usize> {
    offset: u64,
    entries: u64,
    page: Vec<u8>,
    /// Index of the page's first entry.
    first: u64,
    /// Entries from here on, up to the page's end, are known to be zero.
    zeros: u64,
}

impl<const N: usize> Table<N> {
    /// Reads nothing yet.
    pub(crate) fn new(offset: u64, entries: u64) -> Self {
        Self { offset, entries, page: Vec::new(), first: 0, zeros: u64::MAX }
    }

    /// Where entry `index` lies in the file, for errors.
    pub(crate) fn place(&self, index: u64) -> u64 {
        self.offset + index * N as u64
    }

    /// How many entries from `index` on are zero, as far as the page at hand shows: a bound from below.
    pub(crate) fn zeros(&mut self, index: u64) -> u64 {
        let held = self.first + (self.page.len() / N) as u64;
        if !(self.first..held).contains(&index) {
            return 0;
        }
        if index < self.zeros {
            let at = |index: u64| usize::try_from(index - self.first).expect("a page's entries fit") * N;
            let rest = &self.page[at(index)..];
            if is_zero(rest) {
                self.zeros = index;
                return held - index;
            }
            let zeros = rest.chunks(RUN).take_while(|run| is_zero(run)).map(<[u8]>::len).sum::<usize>();
            return (zeros / N) as u64;
        }
        held - index
    }

    /// Entry `index`, which must be below `entries`. `read` fills a buffer from a place in the file.
    /// It returns whether there was anything but zeros to read, as far as it knows.
    pub(crate) fn entry(
        &mut self,
        index: u64,
        read: impl Fn(&mut [u8], u64) -> Result<bool, Error>,
    ) -> Result<[u8; N], Error> {
        debug_assert!(index < self.entries);
        let held = (self.page.len() / N) as u64;
        if index < self.first || index >= self.first + held {
            let per_page = (PAGE / N) as u64;
            let first = index - index % per_page;
            let count = per_page.min(self.entries - first);
            self.page.resize(usize::try_from(count).expect("a page's entries fit") * N, 0);
            let place = self.place(first);
            let is_data = match read(&mut self.page, place) {
                Ok(is_data) => is_data,
                Err(e) => {
                    self.page.clear();
                    return Err(e);
                }
            };
            self.first = first;
            self.zeros = if is_data { u64::MAX } else { first };
        }
        let at = usize::try_from(index - self.first).expect("a page's entries fit") * N;
        Ok(super::fields::array(&self.page, at))
    }
}

/// Numbers of the blocks of `block` bytes that `range` meets, of `blocks` in all.
pub(crate) fn blocks_within(range: &Range<u64>, block: u64, blocks: u64) -> Range<u64> {
    range.start / block..range.end.div_ceil(block).min(blocks)
}

/// A block of the guest's disk; an entry of a table says where it lies in the file.
pub(crate) struct Block {
    index: u64,
    guest: Range<u64>,
}

impl Block {
    /// Block `index` of a disk of `size` bytes; the last one may end with the disk, not with the block.
    pub(crate) fn nth(index: u64, block: u64, size: u64) -> Self {
        let start = index * block;
        Self { index, guest: start..(start + block).min(size) }
    }

    /// Its bytes of the guest's disk.
    pub(crate) fn len(&self) -> u64 {
        self.guest.end - self.guest.start
    }

    /// It reads as zeros.
    pub(crate) fn zero(self) -> Extent {
        Extent { guest: self.guest, at: Location::Zero }
    }

    /// It lies at `offset` of the file `name`, which has `len` bytes; `entry` is the place of the entry that says so.
    pub(crate) fn stored(self, offset: u64, name: &str, len: u64, entry: u64) -> Result<Extent, Error> {
        if offset.checked_add(self.len()).is_none_or(|end| end > len) {
            let message = format!("block {} lies at byte {offset}, but the file ends at byte {len}", self.index);
            return Err(Error::truncated(name, entry, message));
        }
        Ok(Extent { guest: self.guest, at: Location::Stored { file: 0, offset } })
    }
}
