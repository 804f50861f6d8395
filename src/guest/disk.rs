// SPDX-License-Identifier: Apache-2.0
//! Bytes of the guest: disks, and volumes that are made of ranges of them.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::budget::Budget;
use super::error::{Error, Result};
use super::fields::size;
use crate::disk::view::View;

/// One disk of the guest.
#[derive(Clone)]
pub(super) struct Disk {
    view: Rc<RefCell<View>>,
    pub(super) budget: Rc<Budget>,
}

impl Disk {
    pub(super) fn new(view: View, budget: &Rc<Budget>) -> Self {
        Self { view: Rc::new(RefCell::new(view)), budget: Rc::clone(budget) }
    }

    pub(super) fn size(&self) -> u64 {
        self.view.borrow().size()
    }

    /// Reads and pays for it: what is asked for, and what had to be decoded.
    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<()> {
        self.budget.read(target.len())?;
        let mut view = self.view.borrow_mut();
        let before = view.loaded();
        view.read_at(target, offset)?;
        self.budget.read(size(view.loaded() - before)?)
    }
}

/// A range of a volume and where its bytes are.
#[derive(Clone)]
pub(super) struct Piece {
    /// Where it begins in the volume.
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) place: Place,
}

#[derive(Clone)]
pub(super) enum Place {
    /// On one disk from `offset` on.
    Linear { disk: Disk, offset: u64 },
    /// In turn on several disks, `unit` bytes at a time.
    Striped { unit: u64, stripes: Vec<(Disk, u64)> },
}

/// A disk, a partition or a logical volume: pieces one behind the other.
#[derive(Clone)]
pub(super) struct Volume {
    pieces: Rc<[Piece]>,
    pub(super) budget: Rc<Budget>,
    len: u64,
}

impl Volume {
    /// Part of a disk; what passes the disk's end is not there.
    pub(super) fn part(disk: &Disk, offset: u64, len: u64) -> Self {
        let len = len.min(disk.size().saturating_sub(offset));
        let place = Place::Linear { disk: disk.clone(), offset };
        Self::of(vec![Piece { start: 0, len, place }], &disk.budget)
    }

    /// Made of `pieces`, which follow one another without gaps from 0 on.
    pub(super) fn of(pieces: Vec<Piece>, budget: &Rc<Budget>) -> Self {
        let len = pieces.last().map_or(0, |last| last.start + last.len);
        Self { pieces: pieces.into(), budget: Rc::clone(budget), len }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The disk and the place on it of a volume that is one range.
    pub(super) fn only_range(&self) -> Option<(&Disk, u64)> {
        match &*self.pieces {
            [Piece { place: Place::Linear { disk, offset }, .. }] => Some((disk, *offset)),
            _ => None,
        }
    }

    /// Fills `target` from `offset`.
    pub(super) fn read_at(&self, target: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(target.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::corrupt(format!("byte {offset} lies behind the volume's end")));
        }
        let (mut at, mut rest) = (offset, target);
        while !rest.is_empty() {
            let index = self.pieces.partition_point(|piece| piece.start <= at) - 1;
            let piece = &self.pieces[index];
            let within = at - piece.start;
            let (disk, place, most) = match &piece.place {
                Place::Linear { disk, offset } => (disk, offset + within, piece.len - within),
                Place::Striped { unit, stripes } => {
                    let (row, at) = (within / unit, within % unit);
                    let count = stripes.len() as u64;
                    let (disk, offset) = &stripes[size(row % count)?];
                    (disk, offset + row / count * unit + at, (unit - at).min(piece.len - within))
                }
            };
            let len = rest.len().min(usize::try_from(most).unwrap_or(usize::MAX));
            let (filled, behind) = rest.split_at_mut(len);
            disk.read_at(filled, place)?;
            rest = behind;
            at += len as u64;
        }
        Ok(())
    }

    /// `len` bytes from `offset`.
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        // Before memory is taken for them.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(Error::corrupt(format!("byte {offset} lies behind the volume's end")));
        }
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// As a reader with a place of its own.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor { volume: self.clone(), at: 0 }
    }
}

/// Reads a volume as a file.
pub(super) struct Cursor {
    volume: Volume,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let left = self.volume.len().saturating_sub(self.at);
        let len = target.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.volume.read_at(&mut target[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.volume.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
