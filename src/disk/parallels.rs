// SPDX-License-Identifier: Apache-2.0
//! Parallels' expanding disks (`.hdd`, `.hds`), of both kinds: numbers of sectors up to 2 TiB, and beyond.
//!
//! A header of 64 bytes, a table (BAT) of one 32-bit little-endian number for each cluster of the disk, and the
//! clusters. The layout is the one of QEMU's `docs/interop/parallels.txt`. A plain disk of Parallels is raw and has no
//! header.

use std::ops::Range;

use super::coalesce::coalesce;
use super::fields::{le32, le64};
use super::occupancy::{Taken, survey};
use super::table::{self, Block, Table};
use super::units::SECTOR;
use super::{Error, Extent, Location, Region};
use crate::conversion::Reason;

/// The kind whose table counts in sectors.
pub(super) const OLD: &[u8; 16] = b"WithoutFreeSpace";
/// The kind whose table counts in clusters.
pub(super) const EXTENDED: &[u8; 16] = b"WithouFreSpacExt";

const VERSION: u32 = 2;
const HEADER: u64 = 64;
/// The mark of a disk that some program has open, or did not close.
const IN_USE: u32 = 0x746F_6E59;
/// Cluster sizes taken, in sectors. Parallels makes 63 (old versions) and 2,048; QEMU takes any.
const TRACKS: std::ops::RangeInclusive<u32> = 1..=1 << 19;

/// A Parallels disk whose header and whole table were checked.
#[derive(Clone, Debug)]
pub struct Parallels {
    region: Region,
    size: u64,
    /// Bytes of a cluster.
    cluster: u64,
    /// What one step of a table's number is, in bytes.
    step: u64,
    /// Clusters that the disk's size needs; the table may have more.
    clusters: u64,
    /// Where clusters may begin.
    data: u64,
    allocated: u64,
    warnings: Vec<String>,
}

impl Parallels {
    /// Checks the header and every entry of the table. `limit` is the largest virtual size taken, in bytes.
    pub(super) fn open(region: &Region, limit: u64) -> Result<Self, Error> {
        let mut header = [0; 64];
        region.read_exact_at(&mut header, 0)?;
        let mut disk = Self::parse(region, &header, limit)?;
        disk.check_places(&header)?;
        disk.allocated = disk.survey()?;
        Ok(disk)
    }

    fn parse(region: &Region, header: &[u8; 64], limit: u64) -> Result<Self, Error> {
        let name = region.name();
        let extended = header.starts_with(EXTENDED);
        if !extended && !header.starts_with(OLD) {
            return Err(Error::refuse(Reason::FormatMismatch, name, "is no Parallels disk").at(0));
        }
        if le32(header, 16) != VERSION {
            let message = format!("is a Parallels disk of version {}, only {VERSION} is read", le32(header, 16));
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(16));
        }
        let tracks = le32(header, 28);
        if !TRACKS.contains(&tracks) {
            return Err(Error::corrupt(name, 28, format!("has clusters of {tracks} sectors")));
        }
        // The old kind never used the upper half.
        let sectors = if extended { le64(header, 36) } else { u64::from(le32(header, 36)) };
        if sectors == 0 {
            return Err(Error::corrupt(name, 36, "has a disk of no bytes"));
        }
        let size = sectors.saturating_mul(SECTOR);
        if size > limit {
            let message = format!("has a disk of {size} bytes, more than the {limit} allowed");
            return Err(Error::refuse(Reason::TooLarge, name, message).at(36));
        }
        let cluster = u64::from(tracks) * SECTOR;
        let mut warnings = Vec::new();
        if le32(header, 44) == IN_USE {
            warnings.push(format!("{name}: was not closed by the program that had it open"));
        }
        if le64(header, 56) != 0 {
            warnings.push(format!("{name}: its extensions (bitmaps of changes) are ignored"));
        }
        Ok(Self {
            region: region.clone(),
            size,
            cluster,
            step: if extended { cluster } else { SECTOR },
            clusters: size.div_ceil(cluster),
            data: 0,
            allocated: 0,
            warnings,
        })
    }

    /// The table lies behind the header, inside the file, and before the clusters.
    fn check_places(&mut self, header: &[u8; 64]) -> Result<(), Error> {
        let (name, len) = (self.region.name(), self.region.len());
        let entries = u64::from(le32(header, 32));
        if entries < self.clusters {
            let message = format!("has a table of {entries} clusters where its size needs {}", self.clusters);
            return Err(Error::corrupt(name, 32, message));
        }
        let end = HEADER + entries * 4;
        if end > len {
            let message = format!("needs a table to byte {end}, but the file ends at byte {len}");
            return Err(Error::truncated(name, HEADER, message));
        }
        // Some writers leave it 0: the clusters then follow the table.
        let stated = u64::from(le32(header, 48)) * SECTOR;
        if stated != 0 && stated < end {
            let message = format!("its table, to byte {end}, runs into the clusters from byte {stated}");
            return Err(Error::corrupt(name, 48, message));
        }
        self.data = end;
        Ok(())
    }

    /// Walks the whole table once: every cluster inside the file, none used twice. Returns the bytes allocated.
    fn survey(&self) -> Result<u64, Error> {
        let name = self.region.name();
        // Clusters of the old kind may begin at any sector.
        survey(&self.region, self.step, |occupancy| {
            let mut table = self.table();
            let mut allocated = 0;
            for index in 0..self.clusters {
                let extent = self.cluster(&mut table, index)?;
                let Location::Stored { offset, .. } = extent.at else { continue };
                if offset < self.data {
                    let message = format!("cluster {index} lies at byte {offset}, in the header or the table");
                    return Err(Error::corrupt(name, table.place(index), message));
                }
                allocated += extent.len();
                occupancy.claim(offset, self.cluster).map_err(|Taken| {
                    let message = format!("cluster {index} lies where another cluster lies");
                    Error::corrupt(name, table.place(index), message)
                })?;
            }
            Ok(allocated)
        })
    }

    fn table(&self) -> Table<4> {
        Table::new(HEADER, self.clusters)
    }

    fn cluster(&self, table: &mut Table<4>, index: u64) -> Result<Extent, Error> {
        let entry = u32::from_le_bytes(table.entry(index, |buffer, at| self.region.read_table_at(buffer, at))?);
        let block = Block::nth(index, self.cluster, self.size);
        if entry == 0 {
            return Ok(block.zero());
        }
        block.stored(u64::from(entry) * self.step, self.region.name(), self.region.len(), table.place(index))
    }

    /// Bytes of the guest's disk.
    #[must_use]
    pub(super) fn virtual_size(&self) -> u64 {
        self.size
    }

    /// For people: format and kind.
    #[must_use]
    #[expect(clippy::unused_self, reason = "readers answer for themselves")]
    pub(super) fn kind(&self) -> &'static str {
        "parallels expanding"
    }

    /// Guest bytes that the file holds: no more than these can be data.
    #[must_use]
    pub(super) fn data_bytes(&self) -> u64 {
        self.allocated
    }

    /// What a person should know, though it stops nothing.
    #[must_use]
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The disk in guest order, without gaps.
    pub(super) fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
        let mut table = self.table();
        coalesce((0..self.clusters).map(move |index| self.cluster(&mut table, index)))
    }

    /// The clusters of the disk that `range` meets.
    pub(super) fn extents_within(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'_> {
        let mut table = self.table();
        let clusters = table::blocks_within(range, self.cluster, self.clusters);
        coalesce(clusters.map(move |index| self.cluster(&mut table, index)))
    }
}

#[cfg(test)]
mod tests;
