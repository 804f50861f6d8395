// SPDX-License-Identifier: Apache-2.0
//! FAT12, FAT16 and FAT32 with long names, as the EFI system partition has it.
//!
//! From Microsoft's "FAT32 File System Specification" 1.03. A node is the first cluster of a file and its length, or a
//! directory's first cluster and [`DIRECTORY`].

use std::rc::Rc;

use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Node, Stat};
use crate::guest::budget::Budget;
use crate::guest::disk::Volume;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{byte, le16, le32, size, slice};

/// Stands in a node where a file has its length; a length has 32 bits.
const DIRECTORY: u64 = u64::MAX;
/// Cluster number that stands for the root directory of FAT12 and FAT16, which has none.
const FIXED_ROOT: u64 = 0;
/// Largest cluster that any system writes.
const MAX_CLUSTER: u64 = 256 << 10;
/// Bytes of a directory that are read; the format allows 2 MiB.
const MAX_DIRECTORY: usize = 2 << 20;

/// A FAT file system.
pub(in crate::guest) struct Fat {
    volume: Volume,
    /// Bits of a table entry: 12, 16 or 32.
    bits: u64,
    cluster: u64,
    clusters: u64,
    table: u64,
    fixed_root: (u64, u64),
    data: u64,
    root: u64,
    budget: Rc<Budget>,
}

impl Fat {
    pub(in crate::guest) fn open(volume: &Volume) -> Result<Self> {
        let boot = volume.bytes(0, 512)?;
        let sector = u64::from(le16(&boot, 11)?);
        let cluster = u64::from(byte(&boot, 13)?) * sector;
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || cluster == 0 || cluster > MAX_CLUSTER {
            return Err(Error::corrupt("has FAT's sectors or clusters of no possible size"));
        }
        let either = |small: u16, large: u32| if small == 0 { u64::from(large) } else { u64::from(small) };
        let table = u64::from(le16(&boot, 14)?) * sector;
        let table_len = either(le16(&boot, 22)?, le32(&boot, 36)?) * sector;
        let fixed = u64::from(le16(&boot, 17)?) * 32;
        let fixed_start = table + u64::from(byte(&boot, 16)?) * table_len;
        let data = fixed_start + fixed.next_multiple_of(sector);
        let total = either(le16(&boot, 19)?, le32(&boot, 32)?) * sector;
        let clusters = total.min(volume.len()).saturating_sub(data) / cluster;
        // The specification decides by the number of clusters alone.
        let bits = match clusters {
            0..4085 => 12,
            4085..65_525 => 16,
            _ => 32,
        };
        let is_32 = le16(&boot, 22)? == 0;
        let (bits, root) = if is_32 { (32, u64::from(le32(&boot, 44)?)) } else { (bits, FIXED_ROOT) };
        Ok(Self {
            volume: volume.clone(),
            bits,
            cluster,
            clusters,
            table,
            fixed_root: (fixed_start, fixed),
            data,
            root,
            budget: Rc::clone(&volume.budget),
        })
    }

    /// The cluster behind `cluster`; `None` at the end of the chain.
    fn next(&self, cluster: u64) -> Result<Option<u64>> {
        self.budget.step()?;
        let at = self.table + cluster * self.bits / 8;
        let (next, bad) = match self.bits {
            12 => {
                let pair = u64::from(le16(&self.volume.bytes(at, 2)?, 0)?);
                (if cluster.is_multiple_of(2) { pair & 0xFFF } else { pair >> 4 }, 0xFF7)
            }
            16 => (u64::from(le16(&self.volume.bytes(at, 2)?, 0)?), 0xFFF7),
            _ => (u64::from(le32(&self.volume.bytes(at, 4)?, 0)?) & 0x0FFF_FFFF, 0x0FFF_FFF7),
        };
        if next >= bad {
            return Ok(None);
        }
        self.place(next).map(|_| Some(next))
    }

    /// Where a cluster lies.
    fn place(&self, cluster: u64) -> Result<u64> {
        let index = cluster.checked_sub(2).filter(|index| *index < self.clusters);
        let index = index.ok_or_else(|| Error::corrupt(format!("has no cluster {cluster}")))?;
        Ok(self.data + index * self.cluster)
    }

    /// The bytes of a directory.
    fn directory(&self, node: Node) -> Result<Vec<u8>> {
        if node.1 != DIRECTORY {
            return Err(Error::Missing);
        }
        if node.0 == FIXED_ROOT {
            let (start, len) = self.fixed_root;
            return self.volume.bytes(start, size(len)?);
        }
        let mut bytes = Vec::new();
        let mut at = Some(node.0);
        while let Some(cluster) = at {
            if bytes.len() >= MAX_DIRECTORY {
                return Err(Error::corrupt("has a directory without an end"));
            }
            bytes.extend(self.volume.bytes(self.place(cluster)?, size(self.cluster)?)?);
            at = self.next(cluster)?;
        }
        Ok(bytes)
    }
}

impl FileSystem for Fat {
    fn root(&self) -> Node {
        Node(self.root, DIRECTORY)
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>> {
        let bytes = self.directory(directory)?;
        let mut entries = Vec::new();
        let mut long = Vec::new();
        for raw in bytes.as_chunks::<32>().0 {
            self.budget.step()?;
            let (first, attributes) = (raw[0], raw[11]);
            if first == 0 || entries.len() >= MAX_ENTRIES {
                break;
            }
            if first == 0xE5 {
                long.clear();
            } else if attributes & 0x3F == 0x0F {
                // Parts of a long name, the last first: 13 characters each.
                if first & 0x40 != 0 {
                    long.clear();
                }
                if long.len() < 20 {
                    long.insert(0, [&raw[1..11], &raw[14..26], &raw[28..32]].concat());
                }
            } else if attributes & 0x08 != 0 {
                long.clear();
            } else {
                let name = if long.is_empty() { short_name(raw) } else { long_name(&long) };
                long.clear();
                let cluster = u64::from(le16(raw, 26)?) | u64::from(le16(raw, 20)?) << 16;
                // A directory's entry of its parent names cluster 0 for the root.
                let len = if attributes & 0x10 != 0 { DIRECTORY } else { u64::from(le32(raw, 28)?) };
                if name != b"." && name != b".." {
                    entries.push(Entry { name, node: Node(cluster, len) });
                }
            }
        }
        Ok(entries)
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let entries = self.list(directory)?;
        let found = entries.into_iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
        found.map(|entry| entry.node).ok_or(Error::Missing)
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        Ok(if node.1 == DIRECTORY {
            Stat { kind: Kind::Directory, len: 0 }
        } else {
            Stat { kind: Kind::File, len: node.1 }
        })
    }

    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize> {
        let len = target.len().min(size(node.1.saturating_sub(offset))?);
        let (mut cluster, mut start, mut filled) = (node.0, 0, 0);
        while filled < len {
            let at = offset + filled as u64;
            if at >= start + self.cluster {
                start += self.cluster;
                cluster = self.next(cluster)?.ok_or_else(|| Error::corrupt("a file ends before its length"))?;
                continue;
            }
            let within = at - start;
            let count = (len - filled).min(size(self.cluster - within)?);
            self.volume.read_at(&mut target[filled..filled + count], self.place(cluster)? + within)?;
            filled += count;
        }
        Ok(filled)
    }

    fn link(&self, _: Node) -> Result<Vec<u8>> {
        Err(Error::Missing)
    }
}

fn short_name(raw: &[u8; 32]) -> Vec<u8> {
    let trimmed = |bytes: &[u8]| bytes.trim_ascii_end().to_vec();
    let (name, extension) = (trimmed(&raw[..8]), trimmed(&raw[8..11]));
    // Windows NT's flags: the base or the extension is in lower case.
    let lower = |mut bytes: Vec<u8>, is_lower: bool| {
        if is_lower {
            bytes.make_ascii_lowercase();
        }
        bytes
    };
    let name = lower(name, raw[12] & 0x08 != 0);
    let extension = lower(extension, raw[12] & 0x10 != 0);
    if extension.is_empty() { name } else { [name, extension].join(&b'.') }
}

fn long_name(parts: &[Vec<u8>]) -> Vec<u8> {
    crate::guest::fields::utf16(&parts.concat()).into_bytes()
}

/// Whether the table says that the volume was not unmounted; FAT12 has no such mark.
pub(in crate::guest) fn is_dirty(volume: &Volume) -> Result<Option<bool>> {
    let fat = Fat::open(volume)?;
    let entry = fat.table + fat.bits / 8;
    Ok(match fat.bits {
        16 => Some(le16(&volume.bytes(entry, 2)?, 0)? & 0x8000 == 0),
        32 => Some(le32(slice(&volume.bytes(entry, 4)?, 0, 4)?, 0)? & 0x0800_0000 == 0),
        _ => None,
    })
}
