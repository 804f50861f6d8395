// SPDX-License-Identifier: Apache-2.0
//! btrfs on one device: files, directories and links of a subvolume. The log is not replayed.
//!
//! From the kernel's `btrfs_tree.h`. All numbers are little-endian. A node is an inode and the tree that it is in.

mod chunks;
mod tree;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;

use self::chunks::Chunks;
use self::tree::{Item, Key};
use super::{Entry, FileSystem, Kind, MAX_ENTRIES, MAX_LINK, Node, Stat};
use crate::guest::budget::Budget;
use crate::guest::disk::Volume;
use crate::guest::error::{Error, Result, existing};
use crate::guest::fields::{byte, le16, le32, le64, size, slice};

/// Where the superblock lies.
const SUPERBLOCK: u64 = 64 << 10;
/// Trees, by number.
const ROOT_TREE: u64 = 1;
const FS_TREE: u64 = 5;
/// The directory in the root tree that names the default subvolume.
const ROOT_DIRECTORY: u64 = 6;
/// Kinds of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
/// First inode of every subvolume: its root.
const FIRST_INODE: u64 = 256;
/// Longest name of a file.
const MAX_NAME: usize = 255;
/// Most bytes of one extent: a compressed one has 128 KiB.
const MAX_COMPRESSED: u64 = 1 << 20;

/// Where an extent of a file starts in it, and its item.
type Placed = (u64, Vec<u8>);

/// A btrfs.
pub(in crate::guest) struct Btrfs {
    volume: Volume,
    chunks: Chunks,
    node_len: usize,
    root: Node,
    /// Roots of trees that were looked up, by number.
    trees: RefCell<HashMap<u64, (u64, u8)>>,
    budget: Rc<Budget>,
}

impl Btrfs {
    pub(in crate::guest) fn open(volume: &Volume) -> Result<Self> {
        let sb = volume.bytes(SUPERBLOCK, 4096)?;
        let node_len = size(le32(&sb, 148)?.into())?;
        if !(4096..=65_536).contains(&node_len) || !node_len.is_power_of_two() {
            return Err(Error::corrupt("has nodes of no possible size"));
        }
        let array_len = size(le32(&sb, 160)?.into())?.min(2048);
        let device = le64(&sb, 201)?;
        let mut btrfs = Self {
            volume: volume.clone(),
            chunks: Chunks::of_superblock(slice(&sb, 811, array_len)?, device)?,
            node_len,
            root: Node(FIRST_INODE, FS_TREE),
            trees: RefCell::default(),
            budget: Rc::clone(&volume.budget),
        };
        let chunk_root = (le64(&sb, 88)?, byte(&sb, 199)?);
        let mut all = Chunks::default();
        btrfs.items(chunk_root, Key::first(0), &mut |item| {
            if item.key.kind == chunks::CHUNK_ITEM {
                all.push(item.key.offset, item.data, device)?;
            }
            Ok(all.len() < chunks::MAX_CHUNKS)
        })?;
        btrfs.chunks.extend(all);
        btrfs.trees.borrow_mut().insert(ROOT_TREE, (le64(&sb, 80)?, byte(&sb, 198)?));
        if let Some(tree) = btrfs.default_subvolume()? {
            btrfs.root = Node(FIRST_INODE, tree);
        }
        Ok(btrfs)
    }

    /// The tree of the subvolume that is mounted where none is named; `None` where that is the top.
    fn default_subvolume(&self) -> Result<Option<u64>> {
        let mut found = None;
        self.items_of(ROOT_TREE, Key { object: ROOT_DIRECTORY, kind: DIR_ITEM, offset: 0 }, &mut |item| {
            if (item.key.object, item.key.kind) != (ROOT_DIRECTORY, DIR_ITEM) {
                return Ok(false);
            }
            if let Some((name, location, _)) = entry(item.data)?
                && name == b"default"
            {
                found = Some(location.object);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// The root of tree `number`.
    fn tree(&self, number: u64) -> Result<(u64, u8)> {
        if let Some(root) = self.trees.borrow().get(&number) {
            return Ok(*root);
        }
        let mut found = None;
        self.items_of(ROOT_TREE, Key { object: number, kind: ROOT_ITEM, offset: 0 }, &mut |item| {
            if (item.key.object, item.key.kind) == (number, ROOT_ITEM) {
                found = Some((le64(item.data, 176)?, byte(item.data, 238)?));
            }
            Ok(false)
        })?;
        let root = found.ok_or_else(|| Error::corrupt(format!("has no tree {number}")))?;
        self.trees.borrow_mut().insert(number, root);
        Ok(root)
    }

    /// Calls `visit` with the items of a tree from `from` on, until it says that it has enough.
    fn items_of(&self, tree: u64, from: Key, visit: &mut dyn FnMut(Item) -> Result<bool>) -> Result<()> {
        self.items(self.tree(tree)?, from, visit)
    }

    fn items(&self, root: (u64, u8), from: Key, visit: &mut dyn FnMut(Item) -> Result<bool>) -> Result<()> {
        tree::walk(&|logical| self.node(logical), root.0, root.1, from, visit).map(|_| ())
    }

    /// The node of a tree at a logical address.
    fn node(&self, logical: u64) -> Result<Vec<u8>> {
        self.budget.step()?;
        let mut node = vec![0; self.node_len];
        self.read_logical(logical, &mut node)?;
        if le64(&node, 48)? != logical {
            return Err(Error::corrupt(format!("has no node at {logical}")));
        }
        Ok(node)
    }

    fn read_logical(&self, logical: u64, target: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (logical, target);
        while !rest.is_empty() {
            let (place, left) = self.chunks.place(at)?;
            let len = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (filled, behind) = rest.split_at_mut(len);
            self.volume.read_at(filled, place)?;
            at = at.wrapping_add(len as u64);
            rest = behind;
        }
        Ok(())
    }

    /// Reads what one extent has of the file's range from `offset` on, which it meets; the number of bytes.
    fn read_extent(&self, start: u64, data: &[u8], offset: u64, target: &mut [u8]) -> Result<usize> {
        let (compression, kind) = (byte(data, 16)?, byte(data, 20)?);
        let within = offset - start;
        if kind == 0 {
            let stored = slice(data, 21, data.len() - 21)?;
            let ram = le64(data, 8)?.min(MAX_COMPRESSED);
            let bytes = self.unpack(compression, stored, size(ram)?)?;
            let bytes = bytes.get(size(within)?..).unwrap_or_default();
            let len = bytes.len().min(target.len());
            target[..len].copy_from_slice(&bytes[..len]);
            return Ok(len);
        }
        let (logical, stored_len) = (le64(data, 21)?, le64(data, 29)?);
        let (from, len) = (le64(data, 37)?, le64(data, 45)?);
        let count = target.len().min(usize::try_from(len.saturating_sub(within)).unwrap_or(usize::MAX));
        let target = &mut target[..count];
        let from = from.checked_add(within).ok_or_else(|| Error::corrupt("has an extent that lies nowhere"))?;
        if logical == 0 || kind == 2 {
            target.fill(0);
        } else if compression == 0 {
            let at = logical.checked_add(from).ok_or_else(|| Error::corrupt("has an extent that lies nowhere"))?;
            self.read_logical(at, target)?;
        } else {
            if stored_len > MAX_COMPRESSED || le64(data, 8)? > MAX_COMPRESSED {
                return Err(Error::corrupt("has a compressed extent of no possible length"));
            }
            let mut stored = vec![0; size(stored_len)?];
            self.read_logical(logical, &mut stored)?;
            let bytes = self.unpack(compression, &stored, size(le64(data, 8)?)?)?;
            target.copy_from_slice(slice(&bytes, size(from)?, count)?);
        }
        Ok(count)
    }

    /// `stored` as it was before compression; `len` bytes, or fewer in a file's last extent.
    fn unpack(&self, compression: u8, stored: &[u8], len: usize) -> Result<Vec<u8>> {
        self.budget.decoded(len)?;
        let mut bytes = Vec::new();
        let mut take = |source: &mut dyn Read| source.take(len as u64).read_to_end(&mut bytes);
        match compression {
            0 => return Ok(stored.to_vec()),
            1 => take(&mut flate2::read::ZlibDecoder::new(stored))?,
            2 => return Err(Error::unsupported("is compressed with lzo, which is not read")),
            3 => take(&mut zstd::stream::read::Decoder::with_buffer(stored)?.single_frame())?,
            other => return Err(Error::unsupported(format!("is compressed in the unknown way {other}"))),
        };
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// The extent of a file that holds `offset`, with its start, or else the start of the next one.
    fn extent_at(&self, node: Node, offset: u64) -> Result<(Option<Placed>, u64)> {
        let mut before = None;
        let mut next = u64::MAX;
        let is_own = |key: &Key| (key.object, key.kind) == (node.0, EXTENT_DATA);
        let from = Key { object: node.0, kind: EXTENT_DATA, offset };
        let root = self.tree(node.1)?;
        if let Some((key, data)) = tree::last_up_to(&|logical| self.node(logical), root, from)?
            && is_own(&key)
        {
            let len = if byte(&data, 20)? == 0 { le64(&data, 8)? } else { le64(&data, 45)? };
            if key.offset.saturating_add(len) > offset {
                before = Some((key.offset, data));
            }
        }
        if before.is_none() {
            self.items(root, Key { offset: offset.saturating_add(1), ..from }, &mut |item| {
                if is_own(&item.key) {
                    next = item.key.offset;
                }
                Ok(false)
            })?;
        }
        Ok((before, next))
    }
}

/// The first entry of a directory item: name, where it leads, and its kind.
fn entry(data: &[u8]) -> Result<Option<(&[u8], Key, u8)>> {
    if data.is_empty() {
        return Ok(None);
    }
    let name_len = usize::from(le16(data, 27)?);
    if name_len > MAX_NAME {
        return Err(Error::corrupt("has a directory with a name of no possible length"));
    }
    Ok(Some((slice(data, 30, name_len)?, Key::read(data, 0)?, byte(data, 29)?)))
}

impl FileSystem for Btrfs {
    fn root(&self) -> Node {
        self.root
    }

    fn top(&self) -> Node {
        Node(FIRST_INODE, FS_TREE)
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let from = Key { object: directory.0, kind: DIR_INDEX, offset: 0 };
        self.items_of(directory.1, from, &mut |item| {
            if (item.key.object, item.key.kind) != (directory.0, DIR_INDEX) || entries.len() >= MAX_ENTRIES {
                return Ok(false);
            }
            self.budget.step()?;
            if let Some((name, location, _)) = entry(item.data)? {
                let node = match location.kind {
                    // Another subvolume.
                    ROOT_ITEM => Node(FIRST_INODE, location.object),
                    _ => Node(location.object, directory.1),
                };
                entries.push(Entry { name: name.to_vec(), node });
            }
            Ok(true)
        })?;
        Ok(entries)
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let mut found = None;
        self.items_of(node.1, Key { object: node.0, kind: INODE_ITEM, offset: 0 }, &mut |item| {
            if (item.key.object, item.key.kind) == (node.0, INODE_ITEM) {
                let mode = u16::try_from(le32(item.data, 52)? & 0xFFFF).expect("16 bits");
                found = Some(Stat { kind: Kind::of_mode(mode), len: le64(item.data, 16)? });
            }
            Ok(false)
        })?;
        found.ok_or_else(|| Error::corrupt(format!("has no inode {}", node.0)))
    }

    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize> {
        let len = self.stat(node)?.len.saturating_sub(offset);
        let len = target.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let mut filled = 0;
        while filled < len {
            let at = offset + filled as u64;
            let rest = &mut target[filled..len];
            filled += match self.extent_at(node, at)? {
                (Some((start, data)), _) => match self.read_extent(start, &data, at, rest)? {
                    0 => return Err(Error::corrupt("has an extent that ends before its length")),
                    more => more,
                },
                (None, next) => {
                    let hole = rest.len().min(usize::try_from(next - at).unwrap_or(usize::MAX));
                    rest[..hole].fill(0);
                    hole
                }
            };
        }
        Ok(len)
    }

    fn link(&self, node: Node) -> Result<Vec<u8>> {
        let stat = self.stat(node)?;
        if stat.kind != Kind::Link || stat.len > MAX_LINK {
            return Err(Error::corrupt("is no link, or one that is too long"));
        }
        let mut target = vec![0; size(stat.len)?];
        let len = self.read(node, 0, &mut target)?;
        target.truncate(len);
        Ok(target)
    }
}

/// Whether its log must be replayed.
pub(in crate::guest) fn is_dirty(volume: &Volume) -> Result<bool> {
    let sb = existing(volume.bytes(SUPERBLOCK, 4096))?.unwrap_or_default();
    Ok(le64(&sb, 96)? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_longer_than_linux_has_them() {
        let item = |len: u16| {
            let mut data = vec![b'n'; 400];
            data[27..29].copy_from_slice(&len.to_le_bytes());
            data
        };
        assert_eq!(entry(&item(255)).unwrap().map(|(name, ..)| name.len()), Some(255));
        assert!(entry(&item(256)).is_err());
    }
}
