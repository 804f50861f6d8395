// SPDX-License-Identifier: Apache-2.0
//! Hyper-V disk images (VHDX), fixed and dynamic.
//!
//! From Microsoft's MS-VHDX. The first MiB holds two headers and two region tables, each with a CRC-32C; the regions are
//! the metadata and the block table, which has one 64-bit entry for each block and, after every `chunk ratio` of them,
//! one for a sector bitmap that only differencing disks use. All numbers are little-endian.

mod guid;
mod header;
mod log;
mod metadata;
mod patched;

use std::ops::Range;

use self::header::{MIB, Regions, Span};
use self::metadata::Metadata;
use self::patched::{Patched, Patches};
use super::coalesce::coalesce;
use super::occupancy::{Taken, survey};
use super::table::{self, Block, Table};
use super::{Error, Extent, Location, Region};
use crate::conversion::{Reason, Remedy};

/// Sectors that the bitmap block of one chunk describes, by the specification.
const CHUNK_SECTORS: u64 = 1 << 23;

/// A VHDX whose headers, metadata, log and whole block table were checked.
#[derive(Clone, Debug)]
pub struct Vhdx {
    file: Patched,
    metadata: Metadata,
    bat: Span,
    allocated: u64,
    warnings: Vec<String>,
}

impl Vhdx {
    /// Checks all metadata and every entry of the block table. A log that was not replayed is replayed in memory.
    /// `limit` is the largest virtual size taken, in bytes.
    pub fn open(region: &Region, limit: u64) -> Result<Self, Error> {
        let name = region.name();
        let mut warnings = Vec::new();
        let mut patches = Patches::new();
        let logs = header::logs(region, &mut warnings)?;
        if let Some((lost, at)) = logs.lost
            && log::holds(region, lost)?
        {
            // Nobody can say whether they were applied.
            let message = "its newer header is damaged, and its log holds entries that belong to it";
            return Err(Error::corrupt(name, at, message).with_remedy(Remedy::ReplayLog));
        }
        let place = logs.current;
        if let Some(place) = place {
            let entries;
            (patches, entries) = log::replay(region, place)?;
            warnings.push(if entries > 0 {
                format!("{name}: was not closed; {entries} entries of its log were applied")
            } else {
                format!("{name}: was not closed; its log has no valid entries and was left out")
            });
        }
        let regions = header::regions(region, &mut warnings)?;
        let file = Patched::new(region, patches);
        let metadata = Metadata::read(&file, regions.metadata, limit)?;
        let mut vhdx = Self { file, metadata, bat: regions.bat, allocated: 0, warnings };
        let needed = vhdx.entries() * 8;
        if needed > regions.bat.len {
            let message = format!("has a block table of {} bytes where its size needs {needed}", regions.bat.len);
            return Err(Error::corrupt(name, regions.bat.offset, message));
        }
        vhdx.allocated = vhdx.survey(&regions, place.map(|log| Span { offset: log.offset, len: log.len }))?;
        Ok(vhdx)
    }

    /// Walks the whole table once: every block inside the file, none on another or on the metadata. Returns the bytes
    /// allocated.
    fn survey(&self, regions: &Regions, log: Option<Span>) -> Result<u64, Error> {
        let name = self.file.name();
        let mut spans = vec![Span { offset: 0, len: MIB }];
        spans.extend(log);
        spans.extend(&regions.all);
        spans.sort_unstable();
        survey(self.file.region(), MIB, |occupancy| {
            for span in &spans {
                let message = || Error::corrupt(name, span.offset, "its regions overlap");
                occupancy.claim(span.offset, span.len).map_err(|Taken| message())?;
            }
            let mut table = self.table();
            let mut allocated = 0;
            let mut index = 0;
            while index < self.blocks() {
                occupancy.pay(self.file.region())?;
                let extent = self.step(&mut table, index)?;
                if let Location::Stored { offset, .. } = extent.at {
                    allocated += extent.len();
                    occupancy.claim(offset, extent.len()).map_err(|Taken| {
                        let message = format!("block {index} lies where something else lies");
                        Error::corrupt(name, self.place(&table, index), message)
                    })?;
                }
                index = extent.guest.end.div_ceil(self.metadata.block);
            }
            Ok(allocated)
        })
    }

    /// Block `index`, or all that the page at hand shows as not present from it on.
    fn step(&self, table: &mut Table<8>, index: u64) -> Result<Extent, Error> {
        let zeros = table.zeros(index + index / self.chunk_ratio());
        // A bitmap's entry may be among them before each chunk.
        let blocks = zeros.saturating_sub(zeros / self.chunk_ratio() + 1).min(self.blocks() - index);
        if blocks < 2 {
            return self.block(table, index);
        }
        let start = index * self.metadata.block;
        let end = (start + blocks * self.metadata.block).min(self.metadata.size);
        Ok(Extent { guest: start..end, at: Location::Zero })
    }

    fn block(&self, table: &mut Table<8>, index: u64) -> Result<Extent, Error> {
        let name = self.file.name();
        let position = index + index / self.chunk_ratio();
        let entry = u64::from_le_bytes(table.entry(position, |buffer, at| self.file.read_table_at(buffer, at))?);
        let block = Block::nth(index, self.metadata.block, self.metadata.size);
        let corrupt = |message: String| Err(Error::corrupt(name, table.place(position), message));
        // Bits 3 to 19 are reserved; the offset is in MiB from bit 20 on.
        if entry & 0x000F_FFF8 != 0 {
            return corrupt(format!("the table's entry {entry:#018x} of block {index} has reserved bits set"));
        }
        match entry & 7 {
            // Not present, undefined, zero, unmapped; 5 is unmapped in files of the format's drafts.
            0..=3 | 5 => return Ok(block.zero()),
            6 => {}
            7 => return corrupt(format!("block {index} is partly its parent's, but there is no parent")),
            state => return corrupt(format!("block {index} has the unknown state {state}")),
        }
        let offset = entry & !(MIB - 1);
        let len = block.len();
        let extent = block.stored(offset, name, self.file.len(), table.place(position))?;
        if let Some(at) = self.file.changed(offset..offset + len) {
            let message = "its log changes data, not only metadata; open it once where it was made";
            let error = Error::refuse(Reason::UnsupportedFormat, name, message).at(at);
            return Err(error.with_remedy(Remedy::ReplayLog));
        }
        Ok(extent)
    }

    fn table(&self) -> Table<8> {
        Table::new(self.bat.offset, self.entries())
    }

    fn place(&self, table: &Table<8>, index: u64) -> u64 {
        table.place(index + index / self.chunk_ratio())
    }

    fn blocks(&self) -> u64 {
        self.metadata.size.div_ceil(self.metadata.block)
    }

    /// Entries of the table: those of the blocks and the bitmaps' between them.
    fn entries(&self) -> u64 {
        let blocks = self.blocks();
        blocks + (blocks - 1) / self.chunk_ratio()
    }

    fn chunk_ratio(&self) -> u64 {
        CHUNK_SECTORS * 512 / self.metadata.block
    }

    /// Bytes of the guest's disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.metadata.size
    }

    /// For people: format and kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.metadata.fixed { "vhdx fixed" } else { "vhdx dynamic" }
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
        let mut table = self.table();
        let mut index = 0;
        coalesce(std::iter::from_fn(move || {
            let step = (index < self.blocks()).then(|| self.step(&mut table, index))?;
            index = step.as_ref().map_or(index + 1, |extent| extent.guest.end.div_ceil(self.metadata.block));
            Some(step)
        }))
    }

    /// The blocks of the disk that `range` meets.
    pub(super) fn extents_within(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'_> {
        let mut table = self.table();
        let blocks = table::blocks_within(range, self.metadata.block, self.blocks());
        coalesce(blocks.map(move |index| self.block(&mut table, index)))
    }
}

#[cfg(test)]
mod tests;
