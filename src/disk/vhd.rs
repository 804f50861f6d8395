// SPDX-License-Identifier: Apache-2.0
//! Virtual PC and Hyper-V disk images (VHD), fixed and dynamic.
//!
//! From Microsoft's "Virtual Hard Disk Image Format Specification" 1.0: a footer of 512 bytes ends the file; a dynamic
//! disk has a copy of it at byte 0, a header, and a table with one 32-bit sector number for each block. All numbers are
//! big-endian. A block is a sector bitmap, which only differencing disks need, and its data.

mod footer;

use std::ops::Range;

use self::footer::{End, FOOTER, Footer, Kind, checksum_holds};
use super::coalesce::coalesce;
use super::extent::Extents;
use super::fields::{be32, be64};
use super::occupancy::{Occupancy, Taken, survey};
use super::raw::Raw;
use super::table::{self, Block, Table};
use super::units::SECTOR;
use super::{Error, Extent, Location, Region, raw};
use crate::conversion::Reason;

/// Length of the dynamic disk header.
const HEADER: usize = 1024;
/// Table entry of a block that was never written.
const FREE: u32 = 0xFFFF_FFFF;
/// The default is 2 MiB; 512 KiB is the other size seen. Smaller ones would only make the table huge.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 64 * 1024..=256 * 1024 * 1024;

/// A VHD whose footer, header and whole block table were checked.
#[derive(Clone, Debug)]
pub struct Vhd {
    region: Region,
    size: u64,
    allocated: u64,
    body: Body,
    warnings: Vec<String>,
}

#[derive(Clone, Debug)]
enum Body {
    /// The disk as it is, from the file's start.
    Fixed(Raw),
    Dynamic(Blocks),
}

#[derive(Clone, Debug)]
struct Blocks {
    /// Place of the dynamic disk header.
    header: u64,
    table: u64,
    /// Entries the disk's size needs; the table may have more.
    needed: u64,
    entries: u64,
    block: u64,
    /// Length of the sector bitmap before each block's data.
    bitmap: u64,
}

impl Vhd {
    /// Checks footers, header and every entry of the block table. `limit` is the largest virtual size taken, in bytes.
    pub fn open(region: &Region, limit: u64) -> Result<Self, Error> {
        let name = region.name();
        if region.len() < FOOTER as u64 {
            return Err(Error::truncated(name, region.len(), "is shorter than its footer"));
        }
        let (footer, end) = Footer::read(region)?;
        let size = footer.disk_size();
        if size > limit {
            let message = format!("has a disk of {size} bytes, more than the {limit} allowed");
            return Err(Error::refuse(Reason::TooLarge, name, message).at(footer.place));
        }
        let mut warnings = Vec::new();
        if footer.saved_state {
            warnings.push(format!("{name}: the machine was suspended; its memory is lost, the disk may need a check"));
        }
        let place = end.place(region.len());
        let body = match footer.kind {
            Kind::Fixed => Body::Fixed(fixed(region, place, size)?),
            Kind::Dynamic => Body::Dynamic(Blocks::read(region, &footer, size)?),
        };
        let mut vhd = Self { region: region.clone(), size, allocated: 0, body, warnings };
        let mut end = end;
        vhd.allocated = match &vhd.body {
            Body::Fixed(raw) => raw.data_bytes().unwrap_or(size),
            Body::Dynamic(blocks) => {
                let (allocated, behind) = vhd.survey(blocks, if end == End::Lost { None } else { Some(place) })?;
                if end == End::Lost {
                    end = vhd.look_behind(behind, &footer)?;
                }
                allocated
            }
        };
        vhd.warnings.extend(match end {
            End::At(_) => None,
            End::Padded(_, padding) => {
                Some(format!("{name}: was padded with {padding} bytes behind its footer, which are left out"))
            }
            End::Lost => Some(format!("{name}: its footer at the end is missing; the copy at its start was read")),
            End::Damaged(_) => {
                Some(format!("{name}: its footer at the end is damaged; the copy at its start was read"))
            }
        });
        Ok(vhd)
    }

    /// Whether the footer of a dynamic disk lies behind its last block, at byte `behind`, before a padding.
    fn look_behind(&self, behind: u64, copy: &Footer) -> Result<End, Error> {
        let Some(padding) = self.region.len().checked_sub(behind + FOOTER as u64) else { return Ok(End::Lost) };
        let mut bytes = [0; FOOTER];
        self.region.read_exact_at(&mut bytes, behind)?;
        Ok(match Footer::parse(&self.region, &bytes, 0) {
            Ok(footer) if footer == *copy => End::Padded(behind, padding),
            _ => End::Lost,
        })
    }

    /// Walks the whole table once: every block inside the file, none on another or on the metadata. Returns the bytes
    /// allocated, and the first byte behind all of that.
    fn survey(&self, blocks: &Blocks, footer: Option<u64>) -> Result<(u64, u64), Error> {
        let name = self.region.name();
        let fixed = |occupancy: &mut Occupancy, offset: u64, len: u64, what: &str| {
            let message = || format!("its {what} lies on other metadata");
            occupancy.claim(offset, len).map_err(|Taken| Error::corrupt(name, offset, message()))
        };
        survey(&self.region, SECTOR, |occupancy| {
            fixed(occupancy, 0, FOOTER as u64, "footer's copy")?;
            fixed(occupancy, blocks.header, HEADER as u64, "header")?;
            fixed(occupancy, blocks.table, blocks.entries * 4, "block table")?;
            let mut table = Table::new(blocks.table, blocks.entries);
            let mut allocated = 0;
            let mut behind =
                (blocks.header + HEADER as u64).max((blocks.table + blocks.entries * 4).next_multiple_of(SECTOR));
            for index in 0..blocks.needed {
                occupancy.pay(&self.region)?;
                let extent = self.block(blocks, &mut table, index)?;
                if let Location::Stored { offset, .. } = extent.at {
                    allocated += extent.len();
                    behind = behind.max(offset + blocks.block);
                    occupancy.claim(offset - blocks.bitmap, blocks.bitmap + extent.len()).map_err(|Taken| {
                        let message = format!("block {index} lies where something else lies");
                        Error::corrupt(name, table.place(index), message)
                    })?;
                }
            }
            if let Some(footer) = footer {
                fixed(occupancy, footer, FOOTER as u64, "footer")?;
            }
            Ok((allocated, behind))
        })
    }

    fn block(&self, blocks: &Blocks, table: &mut Table<4>, index: u64) -> Result<Extent, Error> {
        let entry = u32::from_be_bytes(table.entry(index, |buffer, at| self.region.read_table_at(buffer, at))?);
        let block = Block::nth(index, blocks.block, self.size);
        if entry == FREE {
            return Ok(block.zero());
        }
        let offset = u64::from(entry) * SECTOR + blocks.bitmap;
        block.stored(offset, self.region.name(), self.region.len(), table.place(index))
    }

    /// Bytes of the guest's disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// For people: format and kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.body {
            Body::Fixed(_) => "vhd fixed",
            Body::Dynamic(_) => "vhd dynamic",
        }
    }

    /// Guest bytes that the file holds: no more than these can be data.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.allocated
    }

    /// What a person should know, though it stops nothing.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The disk in guest order, without gaps.
    #[must_use]
    pub fn extents(&self) -> Extents<'_> {
        match &self.body {
            Body::Fixed(raw) => Box::new(raw.extents()),
            Body::Dynamic(blocks) => {
                let mut table = Table::new(blocks.table, blocks.entries);
                Box::new(coalesce((0..blocks.needed).map(move |index| self.block(blocks, &mut table, index))))
            }
        }
    }

    /// The extents of a fixed disk, or the blocks of a dynamic one that `range` meets.
    pub(super) fn extents_within(&self, range: &Range<u64>) -> Extents<'_> {
        match &self.body {
            Body::Fixed(raw) => Box::new(raw.extents()),
            Body::Dynamic(blocks) => {
                let mut table = Table::new(blocks.table, blocks.entries);
                let within = table::blocks_within(range, blocks.block, blocks.needed);
                Box::new(coalesce(within.map(move |index| self.block(blocks, &mut table, index))))
            }
        }
    }
}

/// Whether the file is a fixed disk with zeros behind its footer. By its last bytes alone it would be none.
pub(super) fn is_padded(region: &Region) -> Result<bool, Error> {
    Ok(region.len() >= FOOTER as u64 && footer::before_zeros(region)?.is_some())
}

/// The data of a fixed disk, which ends before its footer at byte `footer`.
fn fixed(region: &Region, footer: u64, size: u64) -> Result<Raw, Error> {
    let data = region.part(region.name(), 0, size).filter(|_| size <= footer);
    let Some(data) = data else {
        let message = format!("needs {size} bytes of data, but its footer lies at byte {footer}");
        return Err(Error::truncated(region.name(), footer, message));
    };
    raw::open(&data)
}

impl Blocks {
    /// The dynamic disk header that the footer points to.
    fn read(region: &Region, footer: &Footer, size: u64) -> Result<Self, Error> {
        let name = region.name();
        let place = footer.data_offset;
        let mut header = [0; HEADER];
        region.read_exact_at(&mut header, place)?;
        if &header[..8] != b"cxsparse" {
            return Err(Error::corrupt(name, place, "has no dynamic disk header where its footer says"));
        }
        if !checksum_holds(&header, 36) {
            return Err(Error::corrupt(name, place, "the dynamic disk header's checksum is wrong"));
        }
        if be32(&header, 24) >> 16 != 1 {
            let message = format!("has a dynamic disk header of version {}", be32(&header, 24) >> 16);
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(place + 24));
        }
        let block = be32(&header, 32);
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return Err(Error::corrupt(name, place + 32, format!("has blocks of {block} bytes")));
        }
        let block = u64::from(block);
        let table = be64(&header, 16);
        let entries = u64::from(be32(&header, 28));
        let needed = size.div_ceil(block);
        if entries < needed {
            let message = format!("has a table of {entries} blocks where its size needs {needed}");
            return Err(Error::corrupt(name, place + 28, message));
        }
        if !table.is_multiple_of(SECTOR) || !place.is_multiple_of(SECTOR) {
            return Err(Error::corrupt(name, place + 16, "its header or block table begins within a sector"));
        }
        if table.checked_add(entries * 4).is_none_or(|end| end > region.len()) {
            let message = format!("needs a table of {entries} blocks, but the file ends at byte {}", region.len());
            return Err(Error::truncated(name, table, message));
        }
        // One bit for each sector, in whole sectors.
        let bitmap = (block / SECTOR / 8).next_multiple_of(SECTOR);
        Ok(Self { header: place, table, needed, entries, block, bitmap })
    }
}

#[cfg(test)]
mod tests;
