// SPDX-License-Identifier: Apache-2.0
//! Changes a registry hive in place: new cells go into bins behind the last one, and of the old cells only the numbers change
//! that lead to them. Nothing is rebuilt, so that what is not understood here stays as it was.
//!
//! From Maxim Suhanov's "Windows registry file format specification".

mod cells;
mod keys;

use std::fmt::Display;
use std::rc::Rc;

use super::{Hive, INLINE, Key, NONE, Source};
use crate::guest::budget::{Budget, Limits};
use crate::guest::error::{Error, Result, existing};
use crate::guest::fields::{le32, size, slice};

/// Largest hive that is changed: it is held in memory. `SYSTEM` has 10 to 40 MiB.
pub const MAX_HIVE: u64 = 128 << 20;
/// Most bytes that are added to a hive.
const MAX_GROWTH: usize = 4 << 20;
/// Longest data of a value that stands in one cell; longer data is split, which is not written here.
const MAX_DATA: usize = 16_344;
/// Bins have a multiple of this, and a header of 32 bytes.
const BIN: usize = 4096;
const BIN_HEADER: usize = 32;
/// Cells of a hive have a multiple of this.
const CELL: usize = 8;
/// Place of the header's checksum, which is over what stands before it.
const CHECKSUM: usize = 508;
/// Flag of a key whose name has one byte for each character; of a value it is 1.
const NARROW_KEY: u16 = 0x20;
/// First minor version whose lists have hashes ("lh").
const HASHED: u32 = 5;

/// A hive that cannot be changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HiveError {
    /// Its last changes are in its log alone.
    #[error("it has changes in its log that it does not have itself")]
    Dirty,
    #[error("it {0}")]
    Broken(String),
}

impl From<Error> for HiveError {
    fn from(error: Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A value's kind and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `REG_SZ`.
    Text(&'a str),
    /// `REG_EXPAND_SZ`: with variables in it.
    Expandable(&'a str),
    /// `REG_MULTI_SZ`.
    Texts(&'a [&'a str]),
    /// `REG_DWORD`.
    Number(u32),
    /// `REG_BINARY`.
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn encode(&self) -> (u32, Vec<u8>) {
        let utf16 = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        match self {
            Self::Text(text) => (1, utf16(text)),
            Self::Expandable(text) => (2, utf16(text)),
            Self::Bytes(bytes) => (3, bytes.to_vec()),
            Self::Number(number) => (4, number.to_le_bytes().to_vec()),
            Self::Texts(texts) => (7, texts.iter().flat_map(|text| utf16(text)).chain([0, 0]).collect()),
        }
    }
}

impl Source for Vec<u8> {
    fn read(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let len = rest.len().min(target.len());
        target[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// A hive in memory.
pub struct Editor {
    hive: Hive<Vec<u8>>,
    /// Bytes of all bins, and of those that were there at the start.
    bins: usize,
    bins_before: usize,
    /// The free rest of the last bin that was added: offset and length.
    room: (usize, usize),
    is_changed: bool,
}

impl Editor {
    /// Opens the hive `bytes`. All that is done with it costs no more than `limits`.
    ///
    /// # Errors
    /// It is no hive, contradicts itself, or its last changes are in its log.
    pub fn open(bytes: Vec<u8>, limits: &Limits) -> std::result::Result<Self, HiveError> {
        let hive = Hive::open(bytes, &Rc::new(Budget::new(limits)))?;
        if hive.is_dirty() {
            return Err(HiveError::Dirty);
        }
        let header = slice(&hive.file, 0, BIN)?;
        if le32(header, CHECKSUM)? != checksum(header) {
            return Err(HiveError::Dirty);
        }
        let broken = |why: &str| HiveError::Broken(why.to_owned());
        // Major version 1, a primary file, loaded into memory as it is.
        if (le32(header, 20)?, le32(header, 28)?, le32(header, 32)?) != (1, 0, 1)
            || !(3..=6).contains(&le32(header, 24)?)
        {
            return Err(broken("is of a version that is not known"));
        }
        let bins = size(le32(header, 40)?.into())?;
        if bins == 0 || !bins.is_multiple_of(BIN) || hive.file.len() - BIN < bins {
            return Err(broken("ends before its last bin"));
        }
        Ok(Self { hive, bins, bins_before: bins, room: (0, 0), is_changed: false })
    }

    /// The number of a value; `None` where there is no such key or value.
    ///
    /// # Errors
    /// The hive is broken, or the value is no number.
    pub fn number(&self, path: &[&str], name: &str) -> std::result::Result<Option<u32>, HiveError> {
        let Some(key) = existing(self.hive.key(path))? else { return Ok(None) };
        Ok(existing(self.hive.number(&key, name))?)
    }

    /// Whether there is a key.
    ///
    /// # Errors
    /// The hive is broken.
    pub fn has(&self, path: &[&str]) -> std::result::Result<bool, HiveError> {
        Ok(existing(self.hive.key(path))?.is_some())
    }

    /// Gives the key at `path`, which is made where it is not there, the value `name`; an empty name is its default value.
    ///
    /// # Errors
    /// The hive is broken, or has no room. It may have been changed in part, and must not be written then.
    pub fn set(&mut self, path: &[&str], name: &str, value: &Value<'_>) -> std::result::Result<(), HiveError> {
        let mut key = self.hive.key(&[])?;
        for part in path {
            key = match existing(self.hive.child(&key, part))? {
                Some(child) => child,
                None => self.add_key(&key, part)?,
            };
        }
        let (kind, data) = value.encode();
        let is_same = existing(self.hive.value(&key, name))?.is_some_and(|before| before == (kind, data.clone()));
        if is_same {
            return Ok(());
        }
        Ok(self.set_value(&key, name, kind, &data)?)
    }

    /// The changed hive, or the same bytes where nothing was changed.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let Self { hive: Hive { mut file, .. }, bins, is_changed, .. } = self;
        if is_changed {
            let sequence = u32_at(&file, 4).wrapping_add(1).to_le_bytes();
            file[4..8].copy_from_slice(&sequence);
            file[8..12].copy_from_slice(&sequence);
            file[40..44].copy_from_slice(&number(bins).to_le_bytes());
            let sum = checksum(&file).to_le_bytes();
            file[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
        }
        file
    }

    /// Adds the key `name` below `parent`, with the same security.
    fn add_key(&mut self, parent: &Key, name: &str) -> Result<Key> {
        check_name(name)?;
        let security = le32(&parent.cell, 44)?;
        let descriptor = self.hive.cell(security)?;
        if !descriptor.starts_with(b"sk") {
            return Err(Error::corrupt("has a registry hive with a foreign cell where security belongs"));
        }
        let references = le32(&descriptor, 12)?.checked_add(1).ok_or_else(|| full("references"))?;
        let mut cell = vec![0; 76];
        cell[..2].copy_from_slice(b"nk");
        cell[2..4].copy_from_slice(&NARROW_KEY.to_le_bytes());
        // The hive's own time: the key is as old as what it was added to.
        cell[4..12].copy_from_slice(slice(&self.hive.file, 12, 8)?);
        for (at, number) in [(16, parent.offset), (28, NONE), (32, NONE), (40, NONE), (44, security), (48, NONE)] {
            cell[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        cell[72..74].copy_from_slice(&length(name.len())?.to_le_bytes());
        cell.extend_from_slice(name.as_bytes());
        let offset = self.allocate(&cell)?;
        self.put(security, 12, &references.to_le_bytes())?;
        self.insert(parent, name, offset)?;
        self.hive.named(offset)
    }

    fn set_value(&mut self, key: &Key, name: &str, kind: u32, data: &[u8]) -> Result<()> {
        if data.len() > MAX_DATA {
            return Err(full("bytes in one value"));
        }
        let len = number(data.len());
        let (len, place) = if data.len() <= 4 {
            let mut inline = [0; 4];
            inline[..data.len()].copy_from_slice(data);
            (len | INLINE, inline)
        } else {
            (len, self.allocate(data)?.to_le_bytes())
        };
        let description = [&len.to_le_bytes()[..], &place, &kind.to_le_bytes()].concat();
        if let Some((offset, before)) = self.hive.value_cell(key, name)? {
            let (len, place) = (le32(&before, 4)?, le32(&before, 8)?);
            // What is longer is split over several cells, which stay as waste.
            if len & INLINE == 0 && (1..=MAX_DATA).contains(&size(len.into())?) {
                self.release(place)?;
            }
            self.put(offset, 4, &description)?;
        } else {
            let offset = self.add_value(name, &description)?;
            self.list_value(key, offset)?;
        }
        let longest = [(60, number(name.len() * 2)), (64, number(data.len()))];
        for (at, len) in longest {
            let longest = le32(&key.cell, at)?.max(len);
            self.put(key.offset, at, &longest.to_le_bytes())?;
        }
        Ok(())
    }

    fn add_value(&mut self, name: &str, description: &[u8]) -> Result<u32> {
        if !name.is_empty() {
            check_name(name)?;
        }
        let is_narrow = u16::from(!name.is_empty()).to_le_bytes();
        let name_len = length(name.len())?.to_le_bytes();
        self.allocate(&[&b"vk"[..], &name_len, description, &is_narrow, &[0; 2], name.as_bytes()].concat())
    }

    /// Puts a value into the list of `key`.
    fn list_value(&mut self, key: &Key, offset: u32) -> Result<()> {
        let (count, list) = (le32(&key.cell, 36)?, le32(&key.cell, 40)?);
        let added = count.checked_add(1).ok_or_else(|| full("values"))?;
        let mut offsets = Vec::new();
        if count > 0 {
            let cell = self.hive.cell(list)?;
            let len = size(u64::from(count) * 4)?;
            offsets.extend_from_slice(slice(&cell, 0, len)?);
            self.release(list)?;
        }
        offsets.extend_from_slice(&offset.to_le_bytes());
        let list = self.allocate(&offsets)?;
        self.put(key.offset, 36, &added.to_le_bytes())?;
        self.put(key.offset, 40, &list.to_le_bytes())
    }
}

/// The header's checksum.
fn checksum(header: &[u8]) -> u32 {
    let words = header[..CHECKSUM].as_chunks::<4>().0;
    match words.iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word)) {
        0 => 1,
        u32::MAX => u32::MAX - 1,
        sum => sum,
    }
}

fn check_name(name: &str) -> Result<()> {
    let is_plain =
        (1..=255).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\');
    if is_plain { Ok(()) } else { Err(Error::unsupported(format!("cannot have a name like {name:?}"))) }
}

fn full(what: impl Display) -> Error {
    Error::unsupported(format!("has no room for more {what}"))
}

/// A length or offset, which a new bin bounds.
fn number(value: usize) -> u32 {
    u32::try_from(value).expect("a hive has less than 2 GiB")
}

fn length(value: usize) -> Result<u16> {
    u16::try_from(value).map_err(|_| full("characters in a name"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    le32(bytes, at).expect("the header has 4096 bytes")
}

#[cfg(test)]
#[path = "../../../../tests/support/hive.rs"]
pub(crate) mod made;
#[cfg(test)]
mod tests;
