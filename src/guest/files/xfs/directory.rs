// SPDX-License-Identifier: Apache-2.0
//! Names in directories: within the inode, or in blocks.

use crate::guest::budget::Budget;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{array, be16, be32, be64, byte, slice};
use crate::guest::files::{Entry, MAX_ENTRIES, Node};

/// Marks unused space in a block.
const UNUSED: u16 = 0xFFFF;

/// Collects the entries of one directory.
pub(super) struct List<'a> {
    pub(super) entries: Vec<Entry>,
    budget: &'a Budget,
    has_kinds: bool,
}

impl<'a> List<'a> {
    pub(super) fn new(budget: &'a Budget, has_kinds: bool) -> Self {
        Self { entries: Vec::new(), budget, has_kinds }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    fn push(&mut self, name: &[u8], inode: u64) -> Result<()> {
        self.budget.step()?;
        if name != b"." && name != b".." && !self.is_full() {
            self.entries.push(Entry { name: name.to_vec(), node: Node(inode, 0) });
        }
        Ok(())
    }

    /// Entries within the inode.
    pub(super) fn short_form(&mut self, bytes: &[u8]) -> Result<()> {
        let (count, large) = (byte(bytes, 0)?, byte(bytes, 1)?);
        let width = if large > 0 { 8 } else { 4 };
        let count = count.max(large);
        let mut at = 2 + width;
        for _ in 0..count {
            let len = usize::from(byte(bytes, at)?);
            let name = slice(bytes, at + 3, len)?;
            at += 3 + len + usize::from(self.has_kinds);
            let inode = if large > 0 { be64(bytes, at)? } else { u64::from(be32(bytes, at)?) };
            at += width;
            self.push(name, inode)?;
        }
        Ok(())
    }

    /// Entries of one block.
    pub(super) fn block(&mut self, block: &[u8], is_5: bool) -> Result<()> {
        let is_single = match array(block, 0)? {
            [b'X', b'D', b'2', b'B'] | [b'X', b'D', b'B', b'3'] => true,
            [b'X', b'D', b'2', b'D'] | [b'X', b'D', b'D', b'3'] => false,
            _ => return Err(Error::corrupt("has a directory with a foreign block")),
        };
        let mut end = block.len();
        if is_single {
            // A table for searching and its length lie at the end.
            let count = usize::try_from(be32(block, block.len() - 8)?).unwrap_or(usize::MAX);
            end = (block.len() - 8).saturating_sub(count.saturating_mul(8));
        }
        let mut at = if is_5 { 64 } else { 16 };
        while at < end {
            if be16(block, at)? == UNUSED {
                let len = usize::from(be16(block, at + 2)?);
                if len == 0 {
                    return Err(Error::corrupt("has a directory with an endless gap"));
                }
                at += len;
                continue;
            }
            let (inode, len) = (be64(block, at)?, usize::from(byte(block, at + 8)?));
            if len == 0 {
                return Err(Error::corrupt("has a directory with an empty name"));
            }
            self.push(slice(block, at + 9, len)?, inode)?;
            // The name, its kind, padding to eight bytes, and a tag of two.
            at += (9 + len + usize::from(self.has_kinds) + 2).next_multiple_of(8);
        }
        Ok(())
    }
}
