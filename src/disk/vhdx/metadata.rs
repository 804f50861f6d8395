// SPDX-License-Identifier: Apache-2.0
//! The metadata region: what the disk is.

use super::guid::{self, Guid};
use super::header::Span;
use super::patched::Patched;
use crate::conversion::{Reason, Remedy};
use crate::disk::Error;
use crate::disk::fields::{array, le16, le32, le64};

/// Length of the metadata table; items lie behind it.
const TABLE: usize = 64 << 10;
/// By the specification.
const MAX_ITEMS: usize = 2047;
/// The format's limit: 64 TiB.
const MAX_SIZE: u64 = 64 << 40;
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Bytes of the guest's disk.
    pub(super) size: u64,
    pub(super) block: u64,
    /// All blocks were made with the file.
    pub(super) fixed: bool,
}

/// The items that matter, each with its place in the file.
#[derive(Default)]
struct Items {
    parameters: Option<(u64, [u8; 8])>,
    size: Option<(u64, [u8; 8])>,
    logical: Option<(u64, [u8; 4])>,
}

impl Metadata {
    /// Reads and checks all items. `limit` is the largest virtual size taken, in bytes.
    pub(super) fn read(file: &Patched, region: Span, limit: u64) -> Result<Self, Error> {
        let name = file.name();
        let corrupt = |at, message: String| Err(Error::corrupt(name, at, message));
        let items = Items::read(file, region)?;
        let missing = |what| Error::corrupt(name, region.offset, format!("says no {what}"));
        let (at, parameters) = items.parameters.ok_or_else(|| missing("block size"))?;
        let (size_at, size) = items.size.ok_or_else(|| missing("disk size"))?;
        let (sector_at, sector) = items.logical.ok_or_else(|| missing("sector size"))?;
        let flags = le32(&parameters, 4);
        if flags & 2 != 0 {
            return Err(parent(name, at + 4));
        }
        let block = le32(&parameters, 0);
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return corrupt(at, format!("has blocks of {block} bytes"));
        }
        match u32::from_le_bytes(sector) {
            512 => {}
            4096 => {
                let message = "is a disk of 4096-byte sectors: its partition table could not be read afterwards";
                return Err(Error::refuse(Reason::UnsupportedSectorSize, name, message).at(sector_at));
            }
            other => return corrupt(sector_at, format!("has sectors of {other} bytes")),
        }
        let size = le64(&size, 0);
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) {
            return corrupt(size_at, format!("has a disk of {size} bytes"));
        }
        if size > limit {
            let message = format!("has a disk of {size} bytes, more than the {limit} allowed");
            return Err(Error::refuse(Reason::TooLarge, name, message).at(size_at));
        }
        Ok(Self { size, block: u64::from(block), fixed: flags & 1 != 0 })
    }
}

impl Items {
    fn read(file: &Patched, region: Span) -> Result<Self, Error> {
        let name = file.name();
        let mut table = vec![0; TABLE];
        file.read_exact_at(&mut table, region.offset)?;
        if &table[..8] != b"metadata" {
            return Err(Error::corrupt(name, region.offset, "has no metadata table where its region table says"));
        }
        let count = usize::from(le16(&table, 10));
        if count > MAX_ITEMS {
            return Err(Error::corrupt(name, region.offset + 10, format!("has {count} metadata items")));
        }
        let mut items = Self::default();
        for index in 0..count {
            let start = 32 + index * 32;
            let place = region.offset + start as u64;
            let id: Guid = array(&table, start);
            let (offset, len) = (u64::from(le32(&table, start + 16)), u64::from(le32(&table, start + 20)));
            let required = le32(&table, start + 24) & 4 != 0;
            if len != 0 && (offset < TABLE as u64 || offset + len > region.len) {
                return Err(Error::corrupt(name, place, format!("has a metadata item of {len} bytes at {offset}")));
            }
            let at = region.offset + offset;
            let twice = match id {
                guid::FILE_PARAMETERS => items.parameters.replace((at, item(file, place, at, len)?)).is_some(),
                guid::VIRTUAL_DISK_SIZE => items.size.replace((at, item(file, place, at, len)?)).is_some(),
                guid::LOGICAL_SECTOR_SIZE => items.logical.replace((at, item(file, place, at, len)?)).is_some(),
                guid::PARENT_LOCATOR => return Err(parent(name, place)),
                guid::VIRTUAL_DISK_ID | guid::PHYSICAL_SECTOR_SIZE => false,
                _ if required => {
                    let message = "needs a metadata item of unknown use";
                    return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(place));
                }
                _ => false,
            };
            if twice {
                return Err(Error::corrupt(name, place, "has one metadata item twice"));
            }
        }
        Ok(items)
    }
}

fn item<const N: usize>(file: &Patched, place: u64, at: u64, len: u64) -> Result<[u8; N], Error> {
    if len < N as u64 {
        return Err(Error::corrupt(file.name(), place, format!("has a metadata item of {len} bytes instead of {N}")));
    }
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn parent(name: &str, at: u64) -> Error {
    let message = "is a differencing disk that needs its parent: merge it first";
    Error::refuse(Reason::UnsafeReference, name, message).at(at).with_remedy(Remedy::MergeVhd)
}
