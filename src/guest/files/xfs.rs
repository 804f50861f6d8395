// SPDX-License-Identifier: Apache-2.0
//! XFS, versions 4 and 5: files, directories and links, as they lie on the disk. The log is not replayed.
//!
//! From "XFS Algorithms & Data Structures". All numbers are big-endian.

mod directory;
mod extents;

use std::rc::Rc;

use self::extents::{Extent, Fork};
use super::{Entry, FileSystem, Kind, MAX_LINK, Node, Stat};
use crate::guest::budget::Budget;
use crate::guest::disk::Volume;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{be16, be32, be64, byte, size, slice};

/// Length of an inode's core: of versions 1 and 2, and of version 3.
const CORE: usize = 100;
const CORE_3: usize = 176;
/// Feature of version 4, and of version 5: directory entries tell the kind of their file.
const FTYPE_4: u32 = 0x200;
const FTYPE_5: u32 = 0x1;
/// Header of a block of a link's target in version 5.
const LINK_HEADER: usize = 56;

/// An XFS.
pub(in crate::guest) struct Xfs {
    volume: Volume,
    block: u64,
    block_log: u32,
    /// Blocks of an allocation group, and their number as a power of two.
    group_blocks: u64,
    group_log: u32,
    groups: u64,
    inode_len: usize,
    per_block_log: u32,
    inode_log: u32,
    /// Bytes of a block of a directory.
    directory_block: u64,
    is_5: bool,
    has_kinds: bool,
    root: u64,
    budget: Rc<Budget>,
}

/// An inode that was read.
struct Inode {
    kind: Kind,
    len: u64,
    fork: Fork,
}

impl Xfs {
    pub(in crate::guest) fn open(volume: &Volume) -> Result<Self> {
        let sb = volume.bytes(0, 512)?;
        let version = be16(&sb, 100)? & 0xF;
        let is_5 = version == 5;
        if !matches!(version, 4 | 5) {
            return Err(Error::unsupported(format!("is XFS of version {version}, which is not read")));
        }
        let log = |at: usize, range: std::ops::RangeInclusive<u8>| -> Result<u32> {
            let log = byte(&sb, at)?;
            if range.contains(&log) {
                Ok(u32::from(log))
            } else {
                Err(Error::corrupt("has a superblock with impossible sizes"))
            }
        };
        let (block_log, inode_log, per_block_log) = (log(120, 9..=16)?, log(122, 8..=11)?, log(123, 0..=8)?);
        let (group_log, directory_log) = (log(124, 1..=31)?, log(192, 0..=7)?);
        let features = if is_5 { be32(&sb, 216)? } else { be32(&sb, 200)? };
        if block_log + directory_log > 16 {
            return Err(Error::corrupt("has directories with blocks of more than 64 KiB"));
        }
        Ok(Self {
            volume: volume.clone(),
            block: 1 << block_log,
            block_log,
            group_blocks: u64::from(be32(&sb, 84)?),
            group_log,
            groups: u64::from(be32(&sb, 88)?),
            inode_len: 1 << inode_log,
            per_block_log,
            inode_log,
            directory_block: 1 << (block_log + directory_log),
            is_5,
            has_kinds: features & if is_5 { FTYPE_5 } else { FTYPE_4 } != 0,
            root: be64(&sb, 56)?,
            budget: Rc::clone(&volume.budget),
        })
    }

    /// Where a block lies; its number counts groups of a power of two.
    fn place(&self, block: u64) -> Result<u64> {
        let (group, within) = (block >> self.group_log, block & ((1 << self.group_log) - 1));
        if group >= self.groups || within >= self.group_blocks {
            return Err(Error::corrupt(format!("has no block {block}")));
        }
        let block = group.checked_mul(self.group_blocks).and_then(|first| first.checked_add(within));
        let place = block.and_then(|block| block.checked_mul(self.block));
        place.ok_or_else(|| Error::corrupt("has a block that lies nowhere"))
    }

    /// One block.
    fn block(&self, block: u64) -> Result<Vec<u8>> {
        self.budget.step()?;
        self.volume.bytes(self.place(block)?, size(self.block)?)
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        self.budget.step()?;
        let within = number & ((1 << self.per_block_log) - 1);
        let place = behind(self.place(number >> self.per_block_log)?, within << self.inode_log)?;
        let raw = self.volume.bytes(place, self.inode_len)?;
        if !raw.starts_with(b"IN") {
            return Err(Error::corrupt(format!("has no inode {number}")));
        }
        let core = if byte(&raw, 4)? >= 3 { CORE_3 } else { CORE };
        let fork_end = match byte(&raw, 82)? {
            0 => raw.len(),
            offset => (core + usize::from(offset) * 8).min(raw.len()),
        };
        let data = slice(&raw, core, fork_end.saturating_sub(core))?;
        // The feature of large extent counts moves the count.
        let is_large = core == CORE_3 && be64(&raw, 120)? & 0x10 != 0;
        let count = if is_large { be64(&raw, 24)? } else { u64::from(be32(&raw, 76)?) };
        let len = be64(&raw, 56)?;
        Ok(Inode { kind: Kind::of_mode(be16(&raw, 2)?), len, fork: Fork::read(byte(&raw, 5)?, data, count)? })
    }

    /// Reads from a file of these extents; ranges without one are zeros.
    fn read_extents(&self, extents: &[Extent], offset: u64, target: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < target.len() {
            self.budget.step()?;
            let at = offset + filled as u64;
            let index = extents.partition_point(|extent| extent.end() << self.block_log <= at);
            let extent = extents.get(index);
            let (start, end) = extent.map_or((u64::MAX, u64::MAX), |extent| {
                (extent.start << self.block_log, extent.end() << self.block_log)
            });
            let rest = target.len() - filled;
            if at < start {
                let count = rest.min(usize::try_from(start - at).unwrap_or(usize::MAX));
                target[filled..filled + count].fill(0);
                filled += count;
                continue;
            }
            let extent = extent.expect("it begins before its end");
            let count = rest.min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let filled_to = filled + count;
            if extent.unwritten {
                target[filled..filled_to].fill(0);
            } else {
                let place = behind(self.place(extent.block)?, at - start)?;
                self.volume.read_at(&mut target[filled..filled_to], place)?;
            }
            filled = filled_to;
        }
        Ok(())
    }
}

/// The place `bytes` behind another.
fn behind(place: u64, bytes: u64) -> Result<u64> {
    place.checked_add(bytes).ok_or_else(|| Error::corrupt("has a block that lies nowhere"))
}

impl FileSystem for Xfs {
    fn root(&self) -> Node {
        Node(self.root, 0)
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>> {
        let inode = self.inode(directory.0)?;
        if inode.kind != Kind::Directory {
            return Err(Error::Missing);
        }
        let mut list = directory::List::new(&self.budget, self.has_kinds);
        if let Fork::Local(bytes) = &inode.fork {
            list.short_form(bytes)?;
            return Ok(list.entries);
        }
        // Names lie below 32 GiB; behind them are only tables for searching.
        let most = (32_u64 << 30) >> self.block_log;
        let step = size(self.directory_block)?;
        for extent in inode.fork.extents(self)? {
            let mut at = extent.start;
            while at < extent.end().min(most) && !list.is_full() {
                let mut block = vec![0; step];
                let place = behind(self.place(extent.block)?, (at - extent.start) << self.block_log)?;
                self.volume.read_at(&mut block, place)?;
                list.block(&block, self.is_5)?;
                at += self.directory_block >> self.block_log;
            }
        }
        Ok(list.entries)
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let inode = self.inode(node.0)?;
        Ok(Stat { kind: inode.kind, len: inode.len })
    }

    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize> {
        let inode = self.inode(node.0)?;
        let len = target.len().min(usize::try_from(inode.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let target = &mut target[..len];
        match &inode.fork {
            Fork::Local(bytes) => target.copy_from_slice(slice(bytes, size(offset)?, len)?),
            fork => self.read_extents(&fork.extents(self)?, offset, target)?,
        }
        Ok(len)
    }

    fn link(&self, node: Node) -> Result<Vec<u8>> {
        let inode = self.inode(node.0)?;
        if inode.kind != Kind::Link || inode.len > MAX_LINK {
            return Err(Error::corrupt("is no link, or one that is too long"));
        }
        let len = size(inode.len)?;
        if let Fork::Local(bytes) = &inode.fork {
            return Ok(slice(bytes, 0, len)?.to_vec());
        }
        let mut target = Vec::new();
        for extent in inode.fork.extents(self)? {
            for index in 0..extent.count {
                if target.len() >= len {
                    break;
                }
                let block = self.block(extent.block + index)?;
                let header = if block.starts_with(b"XSLM") { LINK_HEADER } else { 0 };
                target.extend_from_slice(&block[header..]);
            }
        }
        Ok(slice(&target, 0, len)?.to_vec())
    }
}
