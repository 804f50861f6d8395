// SPDX-License-Identifier: Apache-2.0
//! Where the blocks of a file lie: in the inode, or in a tree below it.

use super::Xfs;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{array, be16, be64, slice};

/// Bytes of an extent.
const RECORD: usize = 16;
/// Extents of one file that are read: an initramfs in pieces of 4 KiB has fewer.
const MAX_EXTENTS: usize = 1 << 18;
/// Levels of a tree: more than the largest file needs.
const MAX_LEVEL: u16 = 9;

/// A range of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block in the file.
    pub(super) start: u64,
    pub(super) count: u64,
    /// First block in the file system.
    pub(super) block: u64,
    /// Allocated and never written: zeros.
    pub(super) unwritten: bool,
}

impl Extent {
    /// Behind its last block in the file.
    pub(super) fn end(&self) -> u64 {
        self.start + self.count
    }

    /// From its 128 bits: 1 flag, 54 bits of the start, 52 of the block, 21 of the count.
    fn read(bytes: [u8; RECORD]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        let part = |shift: u32, width: u32| u64::try_from(bits >> shift & ((1 << width) - 1)).expect("54 bits");
        Self { start: part(73, 54), block: part(21, 52), count: part(0, 21), unwritten: bits >> 127 == 1 }
    }
}

/// The data of an inode.
pub(super) enum Fork {
    /// In the inode itself.
    Local(Vec<u8>),
    Extents(Vec<Extent>),
    /// The root of a tree: its level, and the blocks below it.
    Tree {
        level: u16,
        children: Vec<u64>,
    },
    None,
}

impl Fork {
    /// From an inode's fork of the format `format` with `count` extents.
    pub(super) fn read(format: u8, bytes: &[u8], count: u64) -> Result<Self> {
        Ok(match format {
            1 => Self::Local(bytes.to_vec()),
            2 => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                Self::Extents(bytes.as_chunks().0.iter().take(count).map(|raw| Extent::read(*raw)).collect())
            }
            3 => {
                let (level, records) = (be16(bytes, 0)?, usize::from(be16(bytes, 2)?));
                // Room for keys and pointers is shared evenly, whatever is used of it.
                let room = (bytes.len() - 4) / 16;
                let pointers = slice(bytes, 4 + room * 8, records.min(room) * 8)?;
                Self::Tree {
                    level,
                    children: pointers.as_chunks().0.iter().map(|raw| u64::from_be_bytes(*raw)).collect(),
                }
            }
            _ => Self::None,
        })
    }

    /// All extents in the order of the file.
    pub(super) fn extents(&self, xfs: &Xfs) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        match self {
            Self::Extents(own) => extents.clone_from(own),
            Self::Tree { level, children } => {
                for child in children {
                    descend(xfs, *child, level.checked_sub(1), &mut extents)?;
                }
            }
            Self::Local(_) | Self::None => {}
        }
        let is_ordered = extents.windows(2).all(|pair| pair[0].end() <= pair[1].start);
        let is_sane = extents.iter().all(|extent| extent.count > 0);
        if !is_ordered || !is_sane {
            return Err(Error::corrupt("has a file whose extents overlap"));
        }
        Ok(extents)
    }
}

/// Collects the extents of the tree below `block`, whose level must be `level`.
fn descend(xfs: &Xfs, block: u64, level: Option<u16>, extents: &mut Vec<Extent>) -> Result<()> {
    let level = level.filter(|level| *level <= MAX_LEVEL).ok_or_else(|| Error::corrupt("has a tree without leaves"))?;
    let bytes = xfs.block(block)?;
    let header = match array(&bytes, 0)? {
        [b'B', b'M', b'A', b'P'] => 24,
        [b'B', b'M', b'A', b'3'] => 72,
        _ => return Err(Error::corrupt("has a tree of extents with a foreign block")),
    };
    // What goes down one level with each step ends.
    if be16(&bytes, 4)? != level {
        return Err(Error::corrupt("has a tree of extents with a block of another level"));
    }
    let records = usize::from(be16(&bytes, 6)?);
    if level == 0 {
        let leaf = slice(&bytes, header, records * RECORD)?;
        extents.extend(leaf.as_chunks().0.iter().map(|raw| Extent::read(*raw)));
        if extents.len() > MAX_EXTENTS {
            return Err(Error::unsupported("has a file of too many extents"));
        }
        return Ok(());
    }
    let room = (bytes.len() - header) / 16;
    for index in 0..records.min(room) {
        descend(xfs, be64(&bytes, header + room * 8 + index * 8)?, level.checked_sub(1), extents)?;
    }
    Ok(())
}
