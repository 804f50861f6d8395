// SPDX-License-Identifier: Apache-2.0
//! Reads a registry hive ("regf"): keys by path, and their values. [`edit`] changes one.
//!
//! From Maxim Suhanov's "Windows registry file format specification". A hive is a header of 4 KiB and cells, each with its
//! length before it; offsets count from behind the header. All numbers are little-endian.

pub mod edit;

use std::rc::Rc;

use crate::guest::budget::Budget;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{le16, le32, size, slice, utf16};
use crate::guest::tree::Found;

/// Bytes before the first cell.
const HEADER: u64 = 4096;
/// Longest cell that is read: a list of 65,535 keys has 512 KiB.
const MAX_CELL: usize = 1 << 20;
/// Keys and values of one key that are looked at.
const MAX_ELEMENTS: u32 = 65_536;
/// Lists within lists: the format has two levels.
const MAX_DEPTH: usize = 3;
/// Marks a value's data that stands in the place of its offset.
const INLINE: u32 = 1 << 31;
/// No list.
const NONE: u32 = u32::MAX;

/// Where a hive's bytes come from.
pub(in crate::guest) trait Source {
    /// Reads up to `target.len()` bytes at `offset`; fewer only at the end.
    fn read(&self, offset: u64, target: &mut [u8]) -> Result<usize>;
}

impl Source for Found {
    fn read(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        Self::read(self, offset, target)
    }
}

/// An open hive.
pub(in crate::guest) struct Hive<S = Found> {
    file: S,
    root: u32,
    is_dirty: bool,
    budget: Rc<Budget>,
}

/// A key that was read.
pub(in crate::guest) struct Key {
    offset: u32,
    cell: Vec<u8>,
}

impl<S: Source> Hive<S> {
    pub(in crate::guest) fn open(file: S, budget: &Rc<Budget>) -> Result<Self> {
        let mut header = [0; 512];
        let len = file.read(0, &mut header)?;
        if len < header.len() || !header.starts_with(b"regf") {
            return Err(Error::corrupt("is no registry hive"));
        }
        // The two sequence numbers differ while a write is under way.
        let is_dirty = le32(&header, 4)? != le32(&header, 8)?;
        Ok(Self { file, root: le32(&header, 36)?, is_dirty, budget: Rc::clone(budget) })
    }

    /// Whether changes lie in its log.
    pub(in crate::guest) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// The key at `path` below the root.
    pub(in crate::guest) fn key(&self, path: &[&str]) -> Result<Key> {
        let mut key = self.named(self.root)?;
        for name in path {
            key = self.child(&key, name)?;
        }
        Ok(key)
    }

    /// The key `name` below `key`, whatever its case.
    pub(in crate::guest) fn child(&self, key: &Key, name: &str) -> Result<Key> {
        if le32(&key.cell, 20)? == 0 {
            return Err(Error::Missing);
        }
        self.search(le32(&key.cell, 28)?, name, 0)?.ok_or(Error::Missing)
    }

    /// The text of a value.
    pub(in crate::guest) fn text(&self, key: &Key, name: &str) -> Result<String> {
        let (kind, data) = self.value(key, name)?;
        // REG_SZ and REG_EXPAND_SZ.
        if matches!(kind, 1 | 2) {
            Ok(utf16(&data))
        } else {
            Err(Error::corrupt("has a value of another kind than text"))
        }
    }

    /// The number of a value.
    pub(in crate::guest) fn number(&self, key: &Key, name: &str) -> Result<u32> {
        let (kind, data) = self.value(key, name)?;
        // REG_DWORD.
        if kind == 4 { le32(&data, 0) } else { Err(Error::corrupt("has a value of another kind than a number")) }
    }

    /// The cell at `offset`, without its length.
    fn cell(&self, offset: u32) -> Result<Vec<u8>> {
        self.budget.step()?;
        let place = HEADER + u64::from(offset);
        let mut length = [0; 4];
        let nowhere = || Error::corrupt("has a registry hive with a cell that lies nowhere");
        if self.file.read(place, &mut length)? < length.len() {
            return Err(nowhere());
        }
        // Cells in use have negative lengths.
        let length = i32::from_le_bytes(length);
        let len = size(u64::from(length.unsigned_abs()))?;
        if length >= 0 || !(8..=MAX_CELL).contains(&len) {
            return Err(nowhere());
        }
        let mut cell = vec![0; len - 4];
        if self.file.read(place + 4, &mut cell)? < cell.len() {
            return Err(nowhere());
        }
        Ok(cell)
    }

    fn named(&self, offset: u32) -> Result<Key> {
        let cell = self.cell(offset)?;
        if cell.starts_with(b"nk") && cell.len() >= 76 {
            Ok(Key { offset, cell })
        } else {
            Err(Error::corrupt("has a registry hive with a foreign cell where a key belongs"))
        }
    }

    /// The key `name` in the list at `offset`.
    fn search(&self, offset: u32, name: &str, depth: usize) -> Result<Option<Key>> {
        let broken = || Error::corrupt("has a registry hive with a broken list of keys");
        let list = self.cell(offset)?;
        let count = usize::from(le16(&list, 2)?);
        let (width, is_index) = match slice(&list, 0, 2)? {
            b"lf" | b"lh" => (8, false),
            b"li" => (4, false),
            b"ri" if depth < MAX_DEPTH => (4, true),
            _ => return Err(broken()),
        };
        for index in 0..count {
            let target = le32(&list, 4 + index * width)?;
            let found = if is_index {
                self.search(target, name, depth + 1)?
            } else {
                let key = self.named(target)?;
                let is_wanted = key.name()?.eq_ignore_ascii_case(name);
                is_wanted.then_some(key)
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Kind and data of the value `name`.
    fn value(&self, key: &Key, name: &str) -> Result<(u32, Vec<u8>)> {
        let (_, cell) = self.value_cell(key, name)?.ok_or(Error::Missing)?;
        let (len, kind) = (le32(&cell, 4)?, le32(&cell, 12)?);
        if len & INLINE != 0 {
            return Ok((kind, slice(&cell, 8, size((len & !INLINE).min(4).into())?)?.to_vec()));
        }
        let data = self.cell(le32(&cell, 8)?)?;
        Ok((kind, slice(&data, 0, size(len.into())?)?.to_vec()))
    }

    /// The cell of the value `name`, whatever its case, with its offset.
    fn value_cell(&self, key: &Key, name: &str) -> Result<Option<(u32, Vec<u8>)>> {
        let (count, list) = (le32(&key.cell, 36)?, le32(&key.cell, 40)?);
        if count == 0 || list == NONE {
            return Ok(None);
        }
        let list = self.cell(list)?;
        for index in 0..count.min(MAX_ELEMENTS) {
            let offset = le32(&list, size(u64::from(index) * 4)?)?;
            let cell = self.cell(offset)?;
            if !cell.starts_with(b"vk") {
                return Err(Error::corrupt("has a registry hive with a foreign cell where a value belongs"));
            }
            let own = name_at(&cell, 20, usize::from(le16(&cell, 2)?), le16(&cell, 16)? & 1 != 0)?;
            if own.eq_ignore_ascii_case(name) {
                return Ok(Some((offset, cell)));
            }
        }
        Ok(None)
    }
}

impl Key {
    fn name(&self) -> Result<String> {
        name_at(&self.cell, 76, usize::from(le16(&self.cell, 72)?), le16(&self.cell, 2)? & 0x20 != 0)
    }
}

/// A name in one byte for each character, or in UTF-16.
fn name_at(cell: &[u8], at: usize, len: usize, is_narrow: bool) -> Result<String> {
    let bytes = slice(cell, at, len)?;
    Ok(if is_narrow { bytes.iter().map(|byte| char::from(*byte)).collect() } else { utf16(bytes) })
}
