// SPDX-License-Identifier: Apache-2.0
//! The walk over L1 and L2 tables, one page of each at a time.

use std::ops::Range;

use super::entry::{self, Entry};
use super::header::Header;
use super::offsets::HostOffset;
use crate::disk::table::Table;
use crate::disk::{Error, Region};

/// One step of the walk.
#[derive(Debug)]
pub(super) enum Step {
    /// An L2 table at this place in the file is entered.
    Table { host: HostOffset, place: u64 },
    /// Guest bytes of one cluster, or of several unallocated ones. `place` is the first entry's, for errors.
    Clusters { guest: Range<u64>, entry: Entry, place: u64 },
}

/// Yields the clusters in guest order, each L2 table before its clusters.
pub(super) struct Walk<'a> {
    region: &'a Region,
    header: &'a Header,
    /// Bytes of the guest's disk.
    size: u64,
    l1: Table<8>,
    /// The L2 table held and the index of its L1 entry.
    l2: Option<(u64, Table<8>)>,
    /// The guest byte reached.
    guest: u64,
}

impl<'a> Walk<'a> {
    /// The walk over the tables of `header` in `region`, up to the disk's `size` bytes.
    pub(super) fn new(region: &'a Region, header: &'a Header, size: u64) -> Self {
        let l1 = Table::new(header.l1_offset, header.l1_entries);
        Self { region, header, size, l1, l2: None, guest: 0 }
    }

    /// The walk from guest byte `guest`, the first of a cluster.
    pub(super) fn from(self, guest: u64) -> Self {
        Self { guest, ..self }
    }

    fn word(region: &Region, table: &mut Table<8>, index: u64) -> Result<u64, Error> {
        table.entry(index, |buffer, at| region.read_table_at(buffer, at)).map(u64::from_be_bytes)
    }

    fn step(&mut self) -> Result<Step, Error> {
        let (region, header) = (self.region, self.header);
        let covered = header.l2_bytes();
        let l1_index = self.guest / covered;
        if let Some((_, table)) = self.l2.as_mut().filter(|(held, _)| *held == l1_index) {
            let index = (self.guest % covered) >> header.cluster_bits;
            let (first, words) = if header.extended_l2 { (index * 2, 2) } else { (index, 1) };
            let place = table.place(first);
            let zeros = table.zeros(first) / words;
            if zeros > 1 {
                // Entries of zeros are unallocated clusters.
                let step = Step::Clusters {
                    guest: self.advance(zeros << header.cluster_bits),
                    entry: Entry::Unallocated,
                    place,
                };
                return Ok(step);
            }
            let word = Self::word(region, table, first)?;
            let bitmap = if words == 2 { Some(Self::word(region, table, first + 1)?) } else { None };
            let entry = entry::l2(word, bitmap, header.cluster_bits, header.version)
                .map_err(|message| Error::corrupt(region.name(), place, message))?;
            return Ok(Step::Clusters { guest: self.advance(header.cluster()), entry, place });
        }
        let place = self.l1.place(l1_index);
        let word = Self::word(region, &mut self.l1, l1_index)?;
        match entry::l1(word, header.cluster_bits) {
            Err(message) => Err(Error::corrupt(region.name(), place, message)),
            Ok(None) => Ok(Step::Clusters { guest: self.advance(covered), entry: Entry::Unallocated, place }),
            Ok(Some(host)) => {
                if host.0.checked_add(header.cluster()).is_none_or(|end| end > region.len()) {
                    let message = format!("needs an L2 table at byte {}, but the file ends before its end", host.0);
                    return Err(Error::truncated(region.name(), place, message));
                }
                self.l2 = Some((l1_index, Table::new(host.0, header.cluster() / 8)));
                // The table's first cluster comes with the next step, at the same guest byte.
                Ok(Step::Table { host, place })
            }
        }
    }

    fn advance(&mut self, by: u64) -> Range<u64> {
        let start = self.guest;
        self.guest = (start + by).min(self.size);
        start..self.guest
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Step, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.guest < self.size).then(|| self.step())
    }
}
