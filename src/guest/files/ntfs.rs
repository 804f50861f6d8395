// SPDX-License-Identifier: Apache-2.0
//! NTFS, by the crate `ntfs`. It is behind a boundary: sizes that it would take memory for are checked before, its reads
//! are paid for from the budget, and should it panic, that is an error of this file system.

use std::io::SeekFrom;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::indexes::NtfsFileNameIndex;
use ntfs::structured_values::{NtfsIndexRoot, NtfsVolumeFlags};
use ntfs::{KnownNtfsFileRecordNumber, Ntfs, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek};

use super::{Entry, FileSystem, Kind, Node, Stat};
use crate::guest::budget::Budget;
use crate::guest::disk::{Cursor, Volume};
use crate::guest::error::{Error, Result};
use crate::guest::fields::{byte, le16};

/// Largest cluster, and largest record of a directory, that is read: Windows' largest ordinary cluster.
const MAX_UNIT: u32 = 64 << 10;

/// An NTFS.
pub(in crate::guest) struct Windows {
    volume: Volume,
    ntfs: Ntfs,
    budget: Rc<Budget>,
}

impl Windows {
    pub(in crate::guest) fn open(volume: &Volume) -> Result<Self> {
        let boot = volume.bytes(0, 512)?;
        let sector = u32::from(le16(&boot, 11)?);
        let per_cluster = match byte(&boot, 13)? {
            count @ 0..=128 => u32::from(count),
            power => 1_u32.checked_shl(u32::from(256 - u16::from(power))).unwrap_or(u32::MAX),
        };
        let is_possible = sector.checked_mul(per_cluster).is_some_and(|cluster| (1..=MAX_UNIT).contains(&cluster));
        // A record is 1 to 4 KiB: as a power of two with a sign, or as one cluster.
        if !is_possible || !matches!(byte(&boot, 64)?, 1..=8 | 0xF4..=0xF6) {
            return Err(Error::corrupt("has NTFS' clusters or records of no possible size"));
        }
        let budget = Rc::clone(&volume.budget);
        let ntfs = guarded(|| {
            let mut source = volume.cursor();
            let mut ntfs = Ntfs::new(&mut source).map_err(refused)?;
            ntfs.read_upcase_table(&mut source).map_err(refused)?;
            Ok(ntfs)
        })?;
        Ok(Self { volume: volume.clone(), ntfs, budget })
    }

    /// Calls `ask` with an open file.
    fn with<T>(&self, node: Node, ask: impl FnOnce(&NtfsFile, &mut Cursor) -> Result<T>) -> Result<T> {
        self.budget.step()?;
        guarded(|| {
            let mut source = self.volume.cursor();
            let file = self.ntfs.file(&mut source, node.0).map_err(refused)?;
            ask(&file, &mut source)
        })
    }
}

impl FileSystem for Windows {
    fn root(&self) -> Node {
        Node(KnownNtfsFileRecordNumber::RootDirectory as u64, 0)
    }

    /// Nothing that is asked of Windows needs a listing.
    fn list(&self, _: Node) -> Result<Vec<Entry>> {
        Err(Error::unsupported("is a directory of NTFS, which is not listed"))
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let Ok(name) = std::str::from_utf8(name) else { return Err(Error::Missing) };
        self.with(directory, |file, source| {
            if !file.is_directory() {
                return Err(Error::Missing);
            }
            check_index(file, source)?;
            let index = file.directory_index(source).map_err(refused)?;
            let mut finder = index.finder();
            let found = NtfsFileNameIndex::find(&mut finder, &self.ntfs, source, name).ok_or(Error::Missing)?;
            Ok(Node(found.map_err(refused)?.file_reference().file_record_number(), 0))
        })
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        self.with(node, |file, source| {
            if file.is_directory() {
                return Ok(Stat { kind: Kind::Directory, len: 0 });
            }
            let data = file.data(source, "").ok_or(Error::Missing)?.map_err(refused)?;
            let len = data.to_attribute().map_err(refused)?.value_length();
            Ok(Stat { kind: Kind::File, len })
        })
    }

    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize> {
        self.with(node, |file, source| {
            let data = file.data(source, "").ok_or(Error::Missing)?.map_err(refused)?;
            let attribute = data.to_attribute().map_err(refused)?;
            let mut value: NtfsAttributeValue = attribute.value(source).map_err(refused)?;
            value.seek(source, SeekFrom::Start(offset)).map_err(refused)?;
            let mut filled = 0;
            while filled < target.len() {
                self.budget.step()?;
                match value.read(source, &mut target[filled..]).map_err(refused)? {
                    0 => break,
                    more => filled += more,
                }
            }
            Ok(filled)
        })
    }

    fn link(&self, _: Node) -> Result<Vec<u8>> {
        Err(Error::Missing)
    }
}

/// Fails where the directory's records are larger than any, for the crate takes memory for them as they say.
fn check_index(file: &NtfsFile, source: &mut Cursor) -> Result<()> {
    let mut attributes = file.attributes();
    while let Some(item) = attributes.next(source) {
        let item = item.map_err(refused)?;
        let attribute = item.to_attribute().map_err(refused)?;
        if attribute.ty().map_err(refused)? == NtfsAttributeType::IndexRoot {
            let root = attribute.resident_structured_value::<NtfsIndexRoot>().map_err(refused)?;
            if root.index_record_size() > MAX_UNIT {
                return Err(Error::corrupt("has a directory with records of no possible size"));
            }
        }
    }
    Ok(())
}

/// Whether Windows marked the volume as in use.
pub(in crate::guest) fn is_dirty(volume: &Volume) -> Result<bool> {
    let windows = Windows::open(volume)?;
    guarded(|| {
        let information = windows.ntfs.volume_info(&mut volume.cursor()).map_err(refused)?;
        Ok(information.flags().contains(NtfsVolumeFlags::IS_DIRTY))
    })
}

/// The result of `ask`, or an error where the crate panics.
fn guarded<T>(ask: impl FnOnce() -> Result<T>) -> Result<T> {
    let asked = catch_unwind(AssertUnwindSafe(ask));
    asked.unwrap_or_else(|_| Err(Error::corrupt("has an NTFS that its reader cannot cope with")))
}

fn refused(error: NtfsError) -> Error {
    match error {
        // The crate hands our own errors on.
        NtfsError::Io(source) => source.into(),
        NtfsError::AttributeNotFound { .. } => Error::Missing,
        other => Error::corrupt(other.to_string()),
    }
}
