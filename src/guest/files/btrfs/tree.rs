// SPDX-License-Identifier: Apache-2.0
//! Trees: nodes with keys and pointers, leaves with items.

use crate::guest::error::{Error, Result};
use crate::guest::fields::{byte, le32, le64, size, slice};

/// Length of a node's header, of a pointer, and of an item's head.
const HEADER: usize = 101;
const POINTER: usize = 33;
const ITEM: usize = 25;
/// Levels of a tree, by its definition.
const MAX_LEVEL: u8 = 8;

/// The order of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const LEN: usize = 17;

    /// The first possible key of an object.
    pub(super) fn first(object: u64) -> Self {
        Self { object, kind: 0, offset: 0 }
    }

    pub(super) fn read(bytes: &[u8], at: usize) -> Result<Self> {
        Ok(Self { object: le64(bytes, at)?, kind: byte(bytes, at + 8)?, offset: le64(bytes, at + 9)? })
    }
}

/// An item of a leaf.
pub(super) struct Item<'a> {
    pub(super) key: Key,
    pub(super) data: &'a [u8],
}

/// Reads the node at a logical address.
type ReadNode<'a> = dyn Fn(u64) -> Result<Vec<u8>> + 'a;

fn count(node: &[u8], entry: usize) -> Result<usize> {
    let count = size(le32(node, 96)?.into())?;
    // More than a node has room for is corrupt.
    slice(node, HEADER, count.saturating_mul(entry))?;
    Ok(count)
}

fn expect_level(node: &[u8], level: u8) -> Result<()> {
    if byte(node, 100)? != level || level > MAX_LEVEL {
        return Err(Error::corrupt("has a tree with a node of another level"));
    }
    Ok(())
}

fn item(node: &[u8], index: usize) -> Result<Item<'_>> {
    let at = HEADER + index * ITEM;
    let (offset, len) = (size(le32(node, at + 17)?.into())?, size(le32(node, at + 21)?.into())?);
    Ok(Item { key: Key::read(node, at)?, data: slice(node, HEADER.saturating_add(offset), len)? })
}

/// Index of the child of `node` that may hold `key`.
fn child(node: &[u8], count: usize, key: &Key) -> Result<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        if Key::read(node, HEADER + middle * POINTER)? <= *key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.saturating_sub(1))
}

/// Calls `visit` with every item from `from` on, until it returns false. Whether it went on to the end.
pub(super) fn walk(
    read: &ReadNode,
    logical: u64,
    level: u8,
    from: Key,
    visit: &mut dyn FnMut(Item) -> Result<bool>,
) -> Result<bool> {
    let node = read(logical)?;
    expect_level(&node, level)?;
    let Some(below) = level.checked_sub(1) else {
        for index in 0..count(&node, ITEM)? {
            let item = item(&node, index)?;
            if item.key >= from && !visit(item)? {
                return Ok(false);
            }
        }
        return Ok(true);
    };
    let count = count(&node, POINTER)?;
    for index in child(&node, count, &from)?..count {
        if !walk(read, le64(&node, HEADER + index * POINTER + Key::LEN)?, below, from, visit)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The last item whose key is not greater than `key`.
pub(super) fn last_up_to(read: &ReadNode, root: (u64, u8), key: Key) -> Result<Option<(Key, Vec<u8>)>> {
    let (mut logical, mut level) = root;
    loop {
        let node = read(logical)?;
        expect_level(&node, level)?;
        let Some(below) = level.checked_sub(1) else {
            let mut found = None;
            for index in 0..count(&node, ITEM)? {
                let item = item(&node, index)?;
                if item.key > key {
                    break;
                }
                found = Some(index);
            }
            return found.map(|index| item(&node, index).map(|item| (item.key, item.data.to_vec()))).transpose();
        };
        let count = count(&node, POINTER)?;
        if count == 0 {
            return Ok(None);
        }
        logical = le64(&node, HEADER + child(&node, count, &key)? * POINTER + Key::LEN)?;
        level = below;
    }
}
