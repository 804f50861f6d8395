// SPDX-License-Identifier: Apache-2.0
//! `VirtualBox` disk images: dynamic and static ones, version 1.1.
//!
//! A header of 512 bytes, a map of one 32-bit little-endian block number for each block of the disk, and the blocks
//! from `data` on. The layout is the one of `VirtualBox`'s `VDICore.h` (`VDIHEADER1PLUS`).

use std::ops::Range;

use super::coalesce::coalesce;
use super::fields::{le32, le64};
use super::occupancy::{Taken, survey};
use super::table::{self, Block, Table};
use super::{Error, Extent, Location, Region};
use crate::conversion::{Reason, Remedy};

/// The signature, little-endian at byte 0x40.
pub(super) const SIGNATURE: u32 = 0xBEDA_107F;
/// Where the signature lies.
pub(super) const SIGNATURE_AT: u64 = 0x40;

const VERSION: u32 = 0x0001_0001;
const HEADER: usize = 512;
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;
/// Entry of a block that was never written.
const FREE: u32 = 0xFFFF_FFFF;
/// Entry of a block that was discarded and reads as zeros.
const ZERO: u32 = 0xFFFF_FFFE;
/// Block sizes accepted, in bytes. Every known writer makes blocks of 1 MiB; the header would allow others.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 64 * 1024..=256 * 1024 * 1024;

/// A VDI whose header and whole block map were checked.
#[derive(Clone, Debug)]
pub struct Vdi {
    region: Region,
    kind: &'static str,
    size: u64,
    block: u64,
    /// Blocks the disk's size needs; the map may have more.
    blocks: u64,
    map: u64,
    data: u64,
    allocated: u64,
    warnings: Vec<String>,
}

impl Vdi {
    /// Checks the header and every entry of the block map. `limit` is the largest virtual size taken, in bytes.
    pub fn open(region: &Region, limit: u64) -> Result<Self, Error> {
        let mut header = [0; HEADER];
        region.read_exact_at(&mut header, 0)?;
        let mut vdi = Self::parse(region, &header, limit)?;
        vdi.check_tables(&header)?;
        vdi.allocated = vdi.survey()?;
        Ok(vdi)
    }

    fn parse(region: &Region, header: &[u8], limit: u64) -> Result<Self, Error> {
        let name = region.name();
        let corrupt = |at: u64, message: String| Err(Error::corrupt(name, at, message));
        if le32(header, 0x40) != SIGNATURE {
            return Err(Error::refuse(Reason::FormatMismatch, name, "is no VDI").at(SIGNATURE_AT));
        }
        let version = le32(header, 0x44);
        if version != VERSION {
            let message = format!("VDI version {}.{} is not supported, only 1.1 is", version >> 16, version & 0xFFFF);
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(0x44));
        }
        let kind = match le32(header, 0x4C) {
            DYNAMIC => "vdi dynamic",
            STATIC => "vdi static",
            3 | 4 => {
                let message = "is a child that needs its parent: merge its snapshots first";
                let error = Error::refuse(Reason::UnsafeReference, name, message).at(0x4C);
                return Err(error.with_remedy(Remedy::MergeVdi));
            }
            other => return corrupt(0x4C, format!("has the unknown VDI type {other}")),
        };
        for (at, what) in [(0x1A8, "link"), (0x1B8, "parent")] {
            if header[at..at + 16].iter().any(|&byte| byte != 0) {
                let message = format!("names a {what} image: merge its snapshots first");
                let error = Error::refuse(Reason::UnsafeReference, name, message).at(at as u64);
                return Err(error.with_remedy(Remedy::MergeVdi));
            }
        }
        let sector = le32(header, 0x168);
        if sector != 512 {
            let message = format!("has sectors of {sector} bytes");
            return Err(Error::refuse(Reason::UnsupportedSectorSize, name, message).at(0x168));
        }
        let block = le32(header, 0x178);
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return corrupt(0x178, format!("has blocks of {block} bytes"));
        }
        if le32(header, 0x17C) != 0 {
            let message = "stores extra bytes before each block";
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(0x17C));
        }
        let stated = le64(header, 0x170);
        if stated == 0 {
            return corrupt(0x170, "has a disk of no bytes".into());
        }
        if stated > limit {
            let message = format!("has a disk of {stated} bytes, more than the {limit} allowed");
            return Err(Error::refuse(Reason::TooLarge, name, message).at(0x170));
        }
        let mut warnings = Vec::new();
        let size = stated.next_multiple_of(512);
        if size != stated {
            warnings.push(format!("{name}: the disk's size of {stated} bytes was rounded up to whole sectors"));
        }
        let block = u64::from(block);
        Ok(Self {
            region: region.clone(),
            kind,
            size,
            block,
            blocks: size.div_ceil(block),
            map: u64::from(le32(header, 0x154)),
            data: u64::from(le32(header, 0x158)),
            allocated: 0,
            warnings,
        })
    }

    /// Map and data lie behind the header, apart from each other and inside the file.
    fn check_tables(&self, header: &[u8]) -> Result<(), Error> {
        let name = self.region.name();
        let len = self.region.len();
        let entries = u64::from(le32(header, 0x180));
        if entries < self.blocks {
            let message = format!("has {entries} blocks where its size needs {}", self.blocks);
            return Err(Error::corrupt(name, 0x180, message));
        }
        if self.map < HEADER as u64 {
            return Err(Error::corrupt(name, 0x154, format!("has its block map at byte {}", self.map)));
        }
        let map_end = self.map + entries * 4;
        if map_end > self.data {
            let message = format!("its block map, to byte {map_end}, runs into the data from byte {}", self.data);
            return Err(Error::corrupt(name, 0x158, message));
        }
        if map_end > len {
            let message = format!("needs a block map to byte {map_end}, but the file ends at byte {len}");
            return Err(Error::truncated(name, self.map, message));
        }
        let allocated = u64::from(le32(header, 0x184));
        if allocated > entries {
            let message = format!("says that {allocated} of its {entries} blocks are allocated");
            return Err(Error::corrupt(name, 0x184, message));
        }
        // The disk's last block may end with the disk, not with the block.
        let unused = self.blocks * self.block - self.size;
        let needed = self.data + (allocated * self.block).saturating_sub(unused);
        if needed > len {
            let message = format!("needs {allocated} blocks to byte {needed}, but the file ends at byte {len}");
            return Err(Error::truncated(name, self.data, message));
        }
        Ok(())
    }

    /// Walks the whole map once: every block inside the file, none used twice. Returns the bytes allocated.
    fn survey(&self) -> Result<u64, Error> {
        survey(&self.region, self.block, |occupancy| {
            let mut table = Table::new(self.map, self.blocks);
            let mut allocated = 0;
            for index in 0..self.blocks {
                occupancy.pay(&self.region)?;
                let extent = self.block(&mut table, index)?;
                if let Location::Stored { offset, .. } = extent.at {
                    allocated += extent.len();
                    occupancy.claim(offset - self.data, self.block).map_err(|Taken| {
                        let message = format!("block {index} lies where another block lies");
                        Error::corrupt(self.region.name(), table.place(index), message)
                    })?;
                }
            }
            Ok(allocated)
        })
    }

    fn block(&self, table: &mut Table<4>, index: u64) -> Result<Extent, Error> {
        let entry = u32::from_le_bytes(table.entry(index, |buffer, at| self.region.read_table_at(buffer, at))?);
        let block = Block::nth(index, self.block, self.size);
        if entry == FREE || entry == ZERO {
            return Ok(block.zero());
        }
        let offset = self.data + u64::from(entry) * self.block;
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
        self.kind
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
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
        let mut table = Table::new(self.map, self.blocks);
        coalesce((0..self.blocks).map(move |index| self.block(&mut table, index)))
    }

    /// The blocks of the disk that `range` meets.
    pub(super) fn extents_within(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'_> {
        let mut table = Table::new(self.map, self.blocks);
        let blocks = table::blocks_within(range, self.block, self.blocks);
        coalesce(blocks.map(move |index| self.block(&mut table, index)))
    }
}

#[cfg(test)]
mod tests;
