// SPDX-License-Identifier: Apache-2.0
//! Cells: changed where they are, given back, and added in bins behind the last one.

use super::super::INLINE;
use super::{BIN, BIN_HEADER, CELL, Editor, MAX_GROWTH, full, number};
use crate::guest::error::{Error, Result};
use crate::guest::fields::{size, slice};

impl Editor {
    /// Changes bytes of a cell that is in use.
    pub(super) fn put(&mut self, offset: u32, at: usize, bytes: &[u8]) -> Result<()> {
        slice(&self.hive.cell(offset)?, at, bytes.len())?;
        let place = self.place(offset)? + 4 + at;
        self.hive.file[place..place + bytes.len()].copy_from_slice(bytes);
        self.is_changed = true;
        Ok(())
    }

    /// Marks a cell as free.
    pub(super) fn release(&mut self, offset: u32) -> Result<()> {
        let len = number(self.hive.cell(offset)?.len() + 4);
        let place = self.place(offset)?;
        self.hive.file[place..place + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// Where a cell stands in the file.
    fn place(&self, offset: u32) -> Result<usize> {
        let offset = size(offset.into())?;
        let is_within = offset.is_multiple_of(CELL) && offset < self.bins;
        if is_within {
            Ok(BIN + offset)
        } else {
            Err(Error::corrupt("has a registry hive with a cell behind its bins"))
        }
    }

    /// A new cell with `content`.
    pub(super) fn allocate(&mut self, content: &[u8]) -> Result<u32> {
        let len = (content.len() + 4).next_multiple_of(CELL);
        if self.room.1 < len {
            self.add_bin(len)?;
        }
        let (offset, room) = self.room;
        let place = BIN + offset;
        let file = &mut self.hive.file;
        file[place..place + len].fill(0);
        file[place..place + 4].copy_from_slice(&number(len).wrapping_neg().to_le_bytes());
        file[place + 4..place + 4 + content.len()].copy_from_slice(content);
        if room > len {
            file[place + len..place + len + 4].copy_from_slice(&number(room - len).to_le_bytes());
        }
        self.room = (offset + len, room - len);
        self.is_changed = true;
        Ok(number(offset))
    }

    /// Adds a bin with room for a cell of `len` bytes.
    fn add_bin(&mut self, len: usize) -> Result<()> {
        let size = (BIN_HEADER + len).next_multiple_of(BIN);
        let is_possible = self.bins - self.bins_before + size <= MAX_GROWTH && self.bins + size < INLINE as usize;
        if !is_possible {
            return Err(full("bytes"));
        }
        let (offset, end) = (self.bins, BIN + self.bins + size);
        let file = &mut self.hive.file;
        let time: [u8; 8] = file[12..20].try_into().expect("it has eight bytes");
        file.resize(file.len().max(end), 0);
        let bin = &mut file[BIN + offset..end];
        bin.fill(0);
        bin[..4].copy_from_slice(b"hbin");
        bin[4..8].copy_from_slice(&number(offset).to_le_bytes());
        bin[8..12].copy_from_slice(&number(size).to_le_bytes());
        bin[20..28].copy_from_slice(&time);
        bin[BIN_HEADER..BIN_HEADER + 4].copy_from_slice(&number(size - BIN_HEADER).to_le_bytes());
        self.bins += size;
        self.room = (offset + BIN_HEADER, size - BIN_HEADER);
        Ok(())
    }
}
