// SPDX-License-Identifier: Apache-2.0
//! Grain directory and grain tables, walked piece by piece.

use std::ops::Range;

use super::header::{Header, TABLE_ENTRIES, TABLE_LEN, bytes};
use super::reserved::{self, Reserved};
use crate::conversion::{Reason, Remedy};
use crate::disk::coalesce::coalesce;
use crate::disk::frame;
use crate::disk::occupancy::survey;
use crate::disk::units::SECTOR;
use crate::disk::{Error, Extent, Location, Region};

/// Bytes of a grain table.
const TABLE_BYTES: usize = TABLE_LEN * 4;
/// Directory entries read at a time.
const DIRECTORY_CHUNK: u64 = 1024;
/// Tables read at a time, where they lie one behind the other: those of a 2 TiB disk have 256 MiB.
const TABLES_AT_ONCE: u64 = 32;

/// The tables of a sparse extent.
pub(super) struct Tables<'a> {
    region: &'a Region,
    header: &'a Header,
    reserved: &'a Reserved,
    /// A piece of the directory: the number of its first entry, and the entries.
    directory: (u64, Vec<u32>),
    /// Tables that were read together: where the first lies in the file, and their bytes.
    held: (u64, Vec<u8>),
}

/// One entry of the directory: a table with its grains, or nothing.
type Table = Option<Box<[u32; TABLE_LEN]>>;

/// What a walk over all tables found.
pub(super) struct Checked {
    /// Guest bytes in grains that exist.
    pub data: u64,
    /// Redundant tables that lack what the tables have, or can't be read.
    pub stale: u64,
    /// Where no grain may lie.
    pub reserved: Reserved,
}

/// Walks all tables: checks bounds, agreement with the redundant ones, and that grains, tables and other metadata do
/// not overlap. Where a compressed grain ends is not known yet: the copy checks that it does not reach into what lies
/// behind it.
pub(super) fn check(region: &Region, header: &Header) -> Result<Checked, Error> {
    let (file, mut ranges) = (region.name(), header.reserved());
    if header.compressed {
        // Overlapping grains are caught by their markers: each tells the one place of the guest that it is for.
        let add = |offset| reserved::add(region, &mut ranges, table_at(offset));
        Tables::new(region, header, &Reserved::default()).each_table(add)?;
        let reserved = Reserved::new(file, ranges)?;
        let (data, stale) = Tables::new(region, header, &reserved).check(|_| Ok(()))?;
        return Ok(Checked { data, stale, reserved });
    }
    let reserved = Reserved::new(file, ranges)?;
    let (data, stale) = survey(region, SECTOR, |occupancy| {
        let mut claim = |offset, len| {
            occupancy.pay(region)?;
            let taken = |_| Error::corrupt(file, offset, "two grains or tables share this place");
            occupancy.claim(offset, len).map_err(taken)
        };
        // Tables before grains, and the redundant ones first: most files have this order, and ascending offsets are
        // cheap to prove.
        Tables::new(region, header, &reserved).each_table(|offset| {
            if reserved.meets(&table_at(offset)) {
                return Err(Error::corrupt(file, offset, "a grain table lies in the image's metadata"));
            }
            claim(offset, TABLE_BYTES as u64)
        })?;
        Tables::new(region, header, &reserved).check(|offset| claim(offset, header.grain))
    })?;
    Ok(Checked { data, stale, reserved })
}

/// The bytes of the table at `offset`.
fn table_at(offset: u64) -> Range<u64> {
    offset..offset + TABLE_BYTES as u64
}

impl<'a> Tables<'a> {
    pub(super) fn new(region: &'a Region, header: &'a Header, reserved: &'a Reserved) -> Self {
        Self { region, header, reserved, directory: (0, Vec::new()), held: (0, Vec::new()) }
    }

    /// Calls `claim` with the place of every table in the file, the redundant ones first.
    fn each_table(mut self, mut claim: impl FnMut(u64) -> Result<(), Error>) -> Result<(), Error> {
        let second = self.header.redundant.map(|directory| Header { directory, ..self.header.clone() });
        if let Some(header) = &second {
            let mut twin = Tables::new(self.region, header, self.reserved);
            for number in 0..header.tables() {
                let offset = twin.directory_entry(number)?;
                let is_inside = bytes(offset) + TABLE_BYTES as u64 <= self.region.len();
                if offset != 0 && is_inside && offset != self.directory_entry(number)? {
                    claim(bytes(offset))?;
                }
            }
        }
        for number in 0..self.header.tables() {
            let offset = self.directory_entry(number)?;
            if offset != 0 {
                claim(bytes(offset))?;
            }
        }
        Ok(())
    }

    /// Returns the guest bytes in grains, and how many redundant tables are stale.
    fn check(mut self, mut claim: impl FnMut(u64) -> Result<(), Error>) -> Result<(u64, u64), Error> {
        let second = self.header.redundant.map(|directory| Header { directory, ..self.header.clone() });
        let mut twin = second.as_ref().map(|header| Tables::new(self.region, header, self.reserved));
        let (mut data, mut stale) = (0, 0);
        for number in 0..self.header.tables() {
            let table = self.table(number)?;
            if let Some(twin) = &mut twin
                && twin.is_stale(number, &table)?
            {
                stale += 1;
            }
            let Some(table) = table.filter(|table| !is_empty(table)) else { continue };
            for (index, &entry) in (0..).zip(table.iter()) {
                let Some(guest) = self.guest(number, index) else { break };
                if let Some(offset) = self.grain_at(&guest, entry)? {
                    data += guest.end - guest.start;
                    claim(offset)?;
                }
            }
        }
        Ok((data, stale))
    }

    /// Whether redundant table `number` can be left out beside `table`: it names fewer grains, or can't be true.
    ///
    /// # Errors
    /// `Corrupt` where it names another grain that may be one: two readers would see two disks.
    fn is_stale(&mut self, number: u64, table: &Table) -> Result<bool, Error> {
        let twin = match self.table(number) {
            Ok(twin) => twin,
            Err(e) if matches!(e.reason, Reason::Truncated | Reason::Corrupt) => return Ok(true),
            Err(e) => return Err(e),
        };
        if twin == *table {
            return Ok(false);
        }
        let none = [0; TABLE_LEN];
        let (entries, twins) = (table.as_deref().unwrap_or(&none), twin.as_deref().unwrap_or(&none));
        for (index, (&entry, &twin)) in (0..).zip(entries.iter().zip(twins)) {
            let Some(guest) = self.guest(number, index) else { break };
            if twin == entry || twin == 0 || self.grain_at(&guest, twin).is_err() {
                continue;
            }
            let at = self.header.directory + number * 4;
            let message = format!("grain table {number} and its redundant copy differ");
            return Err(Error::corrupt(self.region.name(), at, message).with_remedy(Remedy::RepairVmdk));
        }
        Ok(true)
    }

    /// The map: adjacent zeros and adjacent stored grains are one extent.
    pub(super) fn extents(self) -> impl Iterator<Item = Result<Extent, Error>> + Send + 'a {
        coalesce(Grains { tables: self, number: 0, index: 0, read: false, entries: None })
    }

    /// The part of the map that `range` meets, by whole grains.
    pub(super) fn extents_within(
        self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'a> {
        let (grain, end) = (range.start / self.header.grain, range.end);
        let grains = Grains {
            tables: self,
            number: grain / TABLE_ENTRIES,
            index: grain % TABLE_ENTRIES,
            read: false,
            entries: None,
        };
        let reaches = move |extent: &Result<Extent, Error>| extent.as_ref().map_or(true, |e| e.guest.start < end);
        coalesce(grains.take_while(reaches))
    }

    /// Guest bytes of grain `index` of table `number`; `None` behind the table's or the disk's last.
    pub(super) fn guest(&self, number: u64, index: u64) -> Option<Range<u64>> {
        // Behind the largest capacity there is, the byte offset would overflow.
        let start = (number * TABLE_ENTRIES + index).saturating_mul(self.header.grain);
        (index < TABLE_ENTRIES && start < self.header.capacity)
            .then(|| start..start.saturating_add(self.header.grain).min(self.header.capacity))
    }

    /// Table `number`; `None` where the directory has none.
    fn table(&mut self, number: u64) -> Result<Table, Error> {
        let offset = bytes(self.directory_entry(number)?);
        if offset == 0 {
            return Ok(None);
        }
        if offset.checked_add(TABLE_BYTES as u64).is_none_or(|end| end > self.region.len()) {
            let message = format!("grain table {number} lies past the end of the file");
            return Err(Error::truncated(self.region.name(), offset, message).with_remedy(Remedy::CopyAgain));
        }
        let raw = self.read(number, offset)?;
        let mut entries = Box::new([0; TABLE_LEN]);
        for (entry, bytes) in entries.iter_mut().zip(raw.as_chunks::<4>().0) {
            *entry = u32::from_le_bytes(*bytes);
        }
        Ok(Some(entries))
    }

    /// The bytes of table `number`, which lies at `offset` and ends within the file.
    fn read(&mut self, number: u64, offset: u64) -> Result<&[u8], Error> {
        let is_held = |(first, held): &(u64, Vec<u8>)| {
            offset.checked_sub(*first).is_some_and(|at| at + TABLE_BYTES as u64 <= held.len() as u64)
        };
        if !is_held(&self.held) {
            let most = TABLES_AT_ONCE.min(self.header.tables() - number);
            let most = most.min((self.region.len() - offset) / TABLE_BYTES as u64);
            let mut count = 1;
            while count < most && bytes(self.directory_entry(number + count)?) == offset + count * TABLE_BYTES as u64 {
                count += 1;
            }
            let (first, held) = &mut self.held;
            *first = offset;
            held.resize(usize::try_from(count).expect("few") * TABLE_BYTES, 0);
            if let Err(e) = self.region.read_table_at(held, offset) {
                held.clear();
                return Err(e);
            }
        }
        let at = usize::try_from(offset - self.held.0).expect("within what is held");
        Ok(&self.held.1[at..at + TABLE_BYTES])
    }

    fn directory_entry(&mut self, number: u64) -> Result<u32, Error> {
        let (first, entries) = &self.directory;
        if let Some(entry) = number.checked_sub(*first).and_then(|at| entries.get(usize::try_from(at).ok()?)) {
            return Ok(*entry);
        }
        let count = DIRECTORY_CHUNK.min(self.header.tables() - number);
        let mut raw = vec![0; usize::try_from(count * 4).expect("at most a chunk")];
        self.region.read_table_at(&mut raw, self.header.directory + number * 4)?;
        let entries: Vec<u32> = raw.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let entry = entries[0];
        self.directory = (number, entries);
        Ok(entry)
    }

    /// Where the grain for `guest` starts in the file; `None` where it is all zeros.
    fn grain_at(&self, guest: &Range<u64>, entry: u32) -> Result<Option<u64>, Error> {
        if entry == 0 || (entry == 1 && self.header.zero_grains) {
            return Ok(None);
        }
        let offset = bytes(entry);
        let needed = if self.header.compressed { frame::BYTES } else { guest.end - guest.start };
        let end = offset + needed;
        if end > self.region.len() {
            let message = format!("the grain for guest byte {} lies past the end of the file", guest.start);
            return Err(Error::truncated(self.region.name(), offset, message).with_remedy(Remedy::CopyAgain));
        }
        if self.reserved.meets(&(offset..end)) {
            let message = format!("the grain for guest byte {} lies in the image's metadata", guest.start);
            return Err(Error::corrupt(self.region.name(), offset, message));
        }
        Ok(Some(offset))
    }

    /// The extent of a grain; `behind` are the entries of its table behind its own.
    fn extent(&self, guest: Range<u64>, entry: u32, behind: &[u32]) -> Result<Extent, Error> {
        let Some(offset) = self.grain_at(&guest, entry)? else {
            return Ok(Extent { guest, at: Location::Zero });
        };
        if !self.header.compressed {
            return Ok(Extent { guest, at: Location::Stored { file: 0, offset } });
        }
        // Writers put one grain behind the other, and no grain reaches into the next or into metadata.
        let next = behind.iter().find(|&&entry| bytes(entry) > SECTOR).map(|&entry| bytes(entry));
        let next = next.filter(|&next| next > offset).into_iter().chain(self.reserved.next(offset));
        let end = next.fold(self.region.len(), u64::min);
        let reach = frame::most(self.header.grain).min(end - offset);
        let reach = u32::try_from(reach).expect("a few MiB");
        Ok(Extent { guest, at: Location::Framed { file: 0, offset, reach } })
    }
}

/// The map before neighbours are joined: an extent for each grain, or for a whole table without one. Not walked behind an
/// error.
struct Grains<'a> {
    tables: Tables<'a>,
    /// The grain at hand: its table's number, and its index there.
    number: u64,
    index: u64,
    /// Whether the table at hand was read.
    read: bool,
    /// The table at hand; `None` where it has no grain, or is still to be read.
    entries: Table,
}

impl Grains<'_> {
    fn next_table(&mut self) {
        (self.number, self.index, self.read) = (self.number + 1, 0, false);
    }

    fn step(&mut self) -> Result<Option<Extent>, Error> {
        while self.number < self.tables.header.tables() {
            if !self.read {
                self.read = true;
                self.entries = self.tables.table(self.number)?.filter(|entries| !is_empty(entries));
            }
            let Some(guest) = self.tables.guest(self.number, self.index) else {
                self.next_table();
                continue;
            };
            let Some(entries) = &self.entries else {
                let left = TABLE_ENTRIES - self.index;
                self.next_table();
                let end = guest.start.saturating_add(self.tables.header.grain * left);
                let end = end.min(self.tables.header.capacity);
                return Ok(Some(Extent { guest: guest.start..end, at: Location::Zero }));
            };
            let at = usize::try_from(self.index).expect("below 512");
            self.index += 1;
            return self.tables.extent(guest, entries[at], &entries[at + 1..]).map(Some);
        }
        Ok(None)
    }
}

impl Iterator for Grains<'_> {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Whether a table has no grain, as most tables of a nearly empty disk.
fn is_empty(table: &[u32; TABLE_LEN]) -> bool {
    table.iter().all(|&entry| entry == 0)
}
