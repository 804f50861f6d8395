// SPDX-License-Identifier: Apache-2.0
//! QEMU's qcow2 images as a source: versions 2 and 3, deflated and zstd clusters, subclusters.
//!
//! From QEMU's `docs/interop/qcow2.txt`. An L1 table points to L2 tables, an L2 table to clusters; all numbers are
//! big-endian. An image that names another file is refused. The disk's past (snapshots, bitmaps, a saved machine
//! state) is left out, with a warning.

mod entry;
mod header;
pub(super) mod offsets;
mod walk;

use std::collections::VecDeque;
use std::ops::Range;

use self::entry::Entry;
use self::header::Header;
use self::offsets::HostOffset;
use self::walk::{Step, Walk};
use super::coalesce::coalesce;
use super::occupancy::{Occupancy, Taken, survey};
use super::table::Table;
use super::{Error, Extent, Location, Region};
use crate::conversion::{Reason, Remedy};

/// Subclusters of a cluster, by the specification.
const SUBCLUSTERS: u64 = 32;

/// A qcow2 whose header and all L1 and L2 tables were checked.
#[derive(Clone, Debug)]
pub struct Qcow2 {
    region: Region,
    header: Header,
    /// Bytes of the guest's disk, in whole sectors.
    size: u64,
    stored: u64,
    warnings: Vec<String>,
}

impl Qcow2 {
    /// Checks the header and walks all tables of the active disk. `limit` is the largest virtual size taken, in bytes.
    pub fn open(region: &Region, limit: u64) -> Result<Self, Error> {
        let name = region.name();
        let header = Header::read(region)?;
        if header.size == 0 {
            return Err(Error::corrupt(name, 24, "has a disk of no bytes"));
        }
        if header.size > limit {
            let message = format!("has a disk of {} bytes, more than the {limit} allowed", header.size);
            return Err(Error::refuse(Reason::TooLarge, name, message).at(24));
        }
        let size = header.size.div_ceil(512).saturating_mul(512);
        let mut image = Self { region: region.clone(), header, size, stored: 0, warnings: Vec::new() };
        let needed = size.div_ceil(image.header.l2_bytes());
        if image.header.l1_entries < needed {
            let message =
                format!("has an L1 table of {} entries where its size needs {needed}", image.header.l1_entries);
            return Err(Error::corrupt(name, 36, message));
        }
        let (stored, cut) = image.survey()?;
        image.stored = stored;
        image.warnings = image.remarks(needed)?;
        if let Some(guest) = cut {
            let len = region.len();
            image.warnings.push(format!(
                "{name}: ends within the cluster of guest byte {guest}, at byte {len}; zeros were read behind that"
            ));
        }
        Ok(image)
    }

    /// Walks all tables: every cluster inside the file, none used twice, none on a table. Returns the guest bytes
    /// stored, and the guest byte whose cluster is cut by the file's end.
    fn survey(&self) -> Result<(u64, Option<u64>), Error> {
        let header = &self.header;
        let mut tables = [
            (HostOffset(0), self.cluster(), "header"),
            (HostOffset(header.l1_offset), header.l1_entries * 8, "L1 table"),
            (HostOffset(header.refcount_offset), header.refcount_clusters << header.cluster_bits, "refcount table"),
        ];
        tables.sort_unstable();
        survey(&self.region, self.cluster(), |occupancy| {
            for (offset, len, what) in tables {
                self.claim(occupancy, offset, len, offset.0, || format!("its {what} lies on another table"))?;
            }
            let (mut stored, mut cut) = (0, None);
            for step in Walk::new(&self.region, &self.header, self.size) {
                occupancy.pay(&self.region)?;
                match step? {
                    Step::Table { host, place } => {
                        self.claim(occupancy, host, self.cluster(), place, || {
                            "its L2 table lies on other data".into()
                        })?;
                    }
                    Step::Clusters { guest, entry, place } => {
                        self.check(occupancy, &guest, entry, place)?;
                        if self.is_cut(&guest, entry) {
                            cut = Some(guest.start);
                        }
                        stored += self.stored_of(&guest, entry);
                    }
                }
            }
            Ok((stored, cut))
        })
    }

    fn claim(
        &self,
        occupancy: &mut Occupancy,
        offset: HostOffset,
        len: u64,
        place: u64,
        message: impl Fn() -> String,
    ) -> Result<(), Error> {
        occupancy.claim(offset.0, len).map_err(|Taken| Error::corrupt(self.region.name(), place, message()))
    }

    /// Checks one cluster: it lies in the file and overlaps nothing. Compressed ones may share a cluster of the file,
    /// but no two begin at the same byte.
    fn check(&self, occupancy: &mut Occupancy, guest: &Range<u64>, entry: Entry, place: u64) -> Result<(), Error> {
        let twice = || format!("the cluster of guest byte {} lies where something else lies", guest.start);
        match entry {
            Entry::Unallocated | Entry::Zero { host: HostOffset(0) } => Ok(()),
            Entry::Compressed { host, len } => {
                self.present(host, 1, guest, place)?;
                occupancy.share(host.0, len).map_err(|Taken| Error::corrupt(self.region.name(), place, twice()))
            }
            Entry::Zero { host } => self.claim(occupancy, host, self.cluster(), place, twice),
            Entry::Standard { host } => {
                self.present(host, guest.end - guest.start, guest, place)?;
                self.claim(occupancy, host, self.cluster(), place, twice)
            }
            Entry::Subclusters { host, stored } => {
                for (part, offset) in self.stored_parts(guest, host, stored) {
                    self.present(offset, part.end - part.start, guest, place)?;
                }
                self.claim(occupancy, host, self.cluster(), place, twice)
            }
        }
    }

    /// How many of `len` bytes from `offset` are in the file. The last cluster may be cut: as QEMU has it, zeros are behind
    /// the end of the file.
    fn present(&self, offset: HostOffset, len: u64, guest: &Range<u64>, place: u64) -> Result<u64, Error> {
        if offset.0 >= self.region.len() {
            let message = format!(
                "the cluster of guest byte {} lies at byte {}, but the file ends at byte {}",
                guest.start,
                offset.0,
                self.region.len()
            );
            let error = Error::truncated(self.region.name(), place, message);
            return Err(error.with_remedy(Remedy::CopyAgain));
        }
        Ok(len.min(self.region.len() - offset.0))
    }

    /// Whether the file ends within the cluster of `guest`.
    fn is_cut(&self, guest: &Range<u64>, entry: Entry) -> bool {
        let reaches_beyond = |offset: HostOffset, len: u64| offset.0 + len > self.region.len();
        match entry {
            Entry::Standard { host } => reaches_beyond(host, guest.end - guest.start),
            Entry::Subclusters { host, stored } => self
                .stored_parts(guest, host, stored)
                .any(|(part, offset)| reaches_beyond(offset, part.end - part.start)),
            Entry::Unallocated | Entry::Zero { .. } | Entry::Compressed { .. } => false,
        }
    }

    fn stored_of(&self, guest: &Range<u64>, entry: Entry) -> u64 {
        match entry {
            Entry::Unallocated | Entry::Zero { .. } => 0,
            Entry::Standard { .. } | Entry::Compressed { .. } => guest.end - guest.start,
            Entry::Subclusters { host, stored } => {
                self.stored_parts(guest, host, stored).map(|(part, _)| part.end - part.start).sum()
            }
        }
    }

    /// The subclusters of `guest` whose bit is set in `stored`, and where each lies.
    fn stored_parts(
        &self,
        guest: &Range<u64>,
        host: HostOffset,
        stored: u32,
    ) -> impl Iterator<Item = (Range<u64>, HostOffset)> + use<> {
        let size = self.cluster() / SUBCLUSTERS;
        let guest = guest.clone();
        (0..SUBCLUSTERS).filter(move |part| stored >> part & 1 == 1).filter_map(move |part| {
            let start = guest.start + part * size;
            let range = start..(start + size).min(guest.end);
            (!range.is_empty()).then_some((range, host.plus(part * size)))
        })
    }

    fn remarks(&self, needed: u64) -> Result<Vec<String>, Error> {
        let name = self.region.name();
        let mut remarks = Vec::new();
        if self.size != self.header.size {
            let stated = self.header.size;
            remarks.push(format!("{name}: the disk's size of {stated} bytes was rounded up to whole sectors"));
        }
        if self.header.dirty {
            remarks.push(format!("{name}: was not closed; the disk is as after a power cut"));
        }
        if self.header.snapshots > 0 {
            let count = self.header.snapshots;
            remarks.push(format!("{name}: {count} internal snapshots are left out; the current state is converted"));
        }
        if self.header.bitmaps {
            remarks.push(format!("{name}: bitmaps for incremental backup are left out"));
        }
        let mut l1 = Table::<8>::new(self.header.l1_offset, self.header.l1_entries);
        for index in needed..self.header.l1_entries {
            if l1.entry(index, |buffer, at| self.region.read_table_at(buffer, at))? != [0; 8] {
                remarks.push(format!("{name}: a saved machine state is left out"));
                break;
            }
        }
        Ok(remarks)
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Bytes of the guest's disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// For people: format and kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (self.header.version, self.header.extended_l2) {
            (2, _) => "qcow2 version 2",
            (_, false) => "qcow2 version 3",
            (_, true) => "qcow2 version 3 with subclusters",
        }
    }

    /// Guest bytes that the file holds, compressed or not: no more than these can be data.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.stored
    }

    /// What a person should know, though it stops nothing.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The disk in guest order, without gaps. The last compressed cluster decodes to a whole cluster, even where the
    /// disk ends within it.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
        coalesce(Pieces { image: self, walk: Walk::new(&self.region, &self.header, self.size), parts: VecDeque::new() })
    }

    /// The clusters that `range` meets.
    pub(super) fn extents_within(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'_> {
        let cluster = self.header.cluster();
        let end = range.end.next_multiple_of(cluster).min(self.size);
        let walk = Walk::new(&self.region, &self.header, end).from(range.start / cluster * cluster);
        coalesce(Pieces { image: self, walk, parts: VecDeque::new() })
    }

    fn location(&self, entry: Entry) -> Location {
        match entry {
            Entry::Unallocated | Entry::Zero { .. } | Entry::Subclusters { .. } => Location::Zero,
            Entry::Standard { host } => Location::Stored { file: 0, offset: host.0 },
            Entry::Compressed { host, len } => {
                let len = u32::try_from(len.min(self.region.len() - host.0)).expect("13 bits of sectors fit");
                if self.header.zstd {
                    Location::Zstd { file: 0, offset: host.0, len }
                } else {
                    Location::Deflate { file: 0, offset: host.0, len, zlib: false }
                }
            }
        }
    }
}

/// The map before neighbours are joined.
struct Pieces<'a> {
    image: &'a Qcow2,
    walk: Walk<'a>,
    /// What is left of a cluster with subclusters.
    parts: VecDeque<Extent>,
}

impl Pieces<'_> {
    fn extent(&mut self, guest: Range<u64>, entry: Entry, place: u64) -> Result<Option<Extent>, Error> {
        match entry {
            Entry::Unallocated | Entry::Zero { .. } => {}
            Entry::Standard { host } => {
                let there = self.image.present(host, guest.end - guest.start, &guest, place)?;
                let behind = guest.start + there..guest.end;
                if !behind.is_empty() {
                    self.parts.push_back(Extent { guest: behind, at: Location::Zero });
                }
                return Ok(Some(Extent { guest: guest.start..guest.start + there, at: self.image.location(entry) }));
            }
            Entry::Compressed { host, .. } => {
                self.image.present(host, 1, &guest, place)?;
            }
            Entry::Subclusters { host, stored } => {
                let mut reached = guest.start;
                for (mut part, offset) in self.image.stored_parts(&guest, host, stored) {
                    let there = self.image.present(offset, part.end - part.start, &guest, place)?;
                    part.end = part.start + there;
                    if reached < part.start {
                        self.parts.push_back(Extent { guest: reached..part.start, at: Location::Zero });
                    }
                    reached = part.end;
                    self.parts.push_back(Extent { guest: part, at: Location::Stored { file: 0, offset: offset.0 } });
                }
                if reached < guest.end {
                    self.parts.push_back(Extent { guest: reached..guest.end, at: Location::Zero });
                }
                return Ok(self.parts.pop_front());
            }
        }
        Ok(Some(Extent { at: self.image.location(entry), guest }))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Some(Ok(part));
            }
            match self.walk.next()? {
                Err(e) => return Some(Err(e)),
                Ok(Step::Table { .. }) => {}
                Ok(Step::Clusters { guest, entry, place }) => {
                    if let Some(extent) = self.extent(guest, entry, place).transpose() {
                        return Some(extent);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
