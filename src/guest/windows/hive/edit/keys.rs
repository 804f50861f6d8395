// SPDX-License-Identifier: Apache-2.0
//! Lists of keys: each in the order of names, and lists of such lists.

use super::super::{Key, MAX_DEPTH};
use super::{Editor, HASHED, full, length};
use crate::guest::error::{Error, Result};
use crate::guest::fields::{le16, le32, slice};

impl Editor {
    /// Puts the key at `offset` into the list of `parent`.
    pub(super) fn insert(&mut self, parent: &Key, name: &str, offset: u32) -> Result<()> {
        let count = le32(&parent.cell, 20)?;
        let added = count.checked_add(1).ok_or_else(|| full("keys"))?;
        if count == 0 {
            let kind = if le32(&self.hive.file, 24)? < HASHED { *b"lf" } else { *b"lh" };
            let list = self.allocate(&[&kind[..], &1_u16.to_le_bytes(), &element(kind, name, offset)].concat())?;
            self.put(parent.offset, 28, &list.to_le_bytes())?;
        } else {
            let list = le32(&parent.cell, 28)?;
            if let Some(moved) = self.insert_into(list, name, offset, 0)? {
                self.put(parent.offset, 28, &moved.to_le_bytes())?;
            }
        }
        self.put(parent.offset, 20, &added.to_le_bytes())?;
        // In bytes of UTF-16.
        let longest = le16(&parent.cell, 52)?.max(length(name.len() * 2)?);
        self.put(parent.offset, 52, &longest.to_le_bytes())
    }

    /// Puts a key into the list at `list`, by the order of names; returns where the list is now, if it had to be moved.
    fn insert_into(&mut self, list: u32, name: &str, offset: u32, depth: usize) -> Result<Option<u32>> {
        let cell = self.hive.cell(list)?;
        let (kind, count) = ([cell[0], cell[1]], usize::from(le16(&cell, 2)?));
        if kind == *b"ri" {
            // The list whose last key is behind the new one, or the last list.
            for index in 0..count {
                let at = 4 + 4 * index;
                let below = le32(&cell, at)?;
                if index + 1 < count && self.is_before(self.last(below, depth + 1)?, name)? {
                    continue;
                }
                if let Some(moved) = self.insert_into(below, name, offset, depth + 1)? {
                    self.put(list, at, &moved.to_le_bytes())?;
                }
                return Ok(None);
            }
            return Err(broken_list());
        }
        let width = width(kind).filter(|_| depth <= MAX_DEPTH).ok_or_else(broken_list)?;
        let mut place = 0;
        while place < count && self.is_before(le32(&cell, 4 + place * width)?, name)? {
            place += 1;
        }
        let added = u16::try_from(count + 1).map_err(|_| full("keys"))?;
        let (before, after) = slice(&cell, 4, count * width)?.split_at(place * width);
        let new = [&kind[..], &added.to_le_bytes(), before, &element(kind, name, offset), after].concat();
        let moved = self.allocate(&new)?;
        self.release(list)?;
        Ok(Some(moved))
    }

    /// The last key of a list.
    fn last(&self, list: u32, depth: usize) -> Result<u32> {
        let cell = self.hive.cell(list)?;
        let index = usize::from(le16(&cell, 2)?).checked_sub(1).ok_or_else(broken_list)?;
        let kind = [cell[0], cell[1]];
        if kind == *b"ri" && depth < MAX_DEPTH {
            return self.last(le32(&cell, 4 + 4 * index)?, depth + 1);
        }
        le32(&cell, 4 + index * width(kind).ok_or_else(broken_list)?)
    }

    /// Whether the key at `offset` stands before one called `name`.
    fn is_before(&self, offset: u32, name: &str) -> Result<bool> {
        let own = self.hive.named(offset)?.name()?;
        Ok(upper(&own).lt(upper(name)))
    }
}

/// An element of a list of keys.
fn element(kind: [u8; 2], name: &str, offset: u32) -> Vec<u8> {
    let mark = match &kind {
        b"lf" => {
            let mut hint = [0; 4];
            let len = name.len().min(4);
            hint[..len].copy_from_slice(&name.as_bytes()[..len]);
            hint.to_vec()
        }
        b"lh" => upper(name)
            .fold(0_u32, |hash, unit| hash.wrapping_mul(37).wrapping_add(u32::from(unit)))
            .to_le_bytes()
            .to_vec(),
        _ => Vec::new(),
    };
    [&offset.to_le_bytes()[..], &mark].concat()
}

/// Bytes of an element.
pub(super) fn width(kind: [u8; 2]) -> Option<usize> {
    match &kind {
        b"lf" | b"lh" => Some(8),
        b"li" => Some(4),
        _ => None,
    }
}

/// The units by which names are ordered.
pub(super) fn upper(name: &str) -> impl Iterator<Item = u16> {
    name.encode_utf16().map(|unit| {
        let Some(one) = char::from_u32(unit.into()) else { return unit };
        let mut upper = one.to_uppercase();
        match (upper.next(), upper.next()) {
            (Some(upper), None) => u16::try_from(u32::from(upper)).unwrap_or(unit),
            _ => unit,
        }
    })
}

fn broken_list() -> Error {
    Error::corrupt("has a registry hive with a broken list of keys")
}
