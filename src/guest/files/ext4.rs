// SPDX-License-Identifier: Apache-2.0
//! ext2, ext3 and ext4, by the crate `ext4-view`: it reads the journal too, so that a guest that was not shut down is
//! read as it would be after its next start.

use std::cell::RefCell;
use std::error::Error as StdError;
use std::rc::Rc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType, PathBuf};

use super::{Entry, FileSystem, Kind, MAX_ENTRIES, Node, Stat};
use crate::guest::budget::Budget;
use crate::guest::disk::Volume;
use crate::guest::error::{Error, Result};
use crate::guest::fields::{le16, le32, size};

/// Most block groups: 16 TiB at 128 MiB each. The crate holds them all.
const MAX_GROUPS: u64 = 1 << 17;
/// Paths that were asked for, at most.
const MAX_NODES: usize = 100_000;

/// What the superblock tells without the crate.
pub(in crate::guest) struct Superblock {
    /// Mounted, or with a journal that must be replayed.
    pub(in crate::guest) dirty: bool,
    groups: u64,
}

/// Reads the superblock, which the caller recognised.
pub(in crate::guest) fn superblock(bytes: &[u8]) -> Result<Superblock> {
    let (state, incompatible) = (le16(bytes, 58)?, le32(bytes, 96)?);
    let low = u64::from(le32(bytes, 4)?);
    let high = if incompatible & 0x80 == 0 { 0 } else { u64::from(le32(bytes, 0x150)?) };
    let per_group = u64::from(le32(bytes, 32)?);
    if per_group == 0 {
        return Err(Error::corrupt("its block groups have no blocks"));
    }
    // Bit 0 of the state: unmounted cleanly. A feature says that the journal is to be replayed.
    Ok(Superblock { dirty: state & 1 == 0 || incompatible & 4 != 0, groups: (low | high << 32).div_ceil(per_group) })
}

/// The volume as the crate reads it.
struct Source(Volume);

impl Ext4Read for Source {
    fn read(&mut self, start_byte: u64, dst: &mut [u8]) -> std::result::Result<(), Box<dyn StdError + Send + Sync>> {
        self.0.read_at(dst, start_byte).map_err(Into::into)
    }
}

/// An ext file system.
pub(in crate::guest) struct Ext {
    ext4: Ext4,
    /// Nodes are places in this list.
    paths: RefCell<Vec<PathBuf>>,
    /// The file that was read last.
    open: RefCell<Option<(Node, File)>>,
    budget: Rc<Budget>,
}

impl Ext {
    pub(in crate::guest) fn open(volume: &Volume) -> Result<Self> {
        let superblock = superblock(&volume.bytes(1024, 1024)?)?;
        if superblock.groups > MAX_GROUPS {
            return Err(Error::unsupported(format!("has more than {MAX_GROUPS} block groups")));
        }
        let ext4 = Ext4::load(Box::new(Source(volume.clone()))).map_err(refused)?;
        Ok(Self {
            ext4,
            paths: RefCell::new(vec![PathBuf::new(b"/")]),
            open: RefCell::default(),
            budget: Rc::clone(&volume.budget),
        })
    }

    fn path(&self, node: Node) -> Result<PathBuf> {
        self.paths.borrow().get(size(node.0)?).cloned().ok_or(Error::Missing)
    }

    fn node(&self, path: PathBuf) -> Result<Node> {
        let mut paths = self.paths.borrow_mut();
        if paths.len() >= MAX_NODES {
            return Err(Error::Spent("too many files were looked at"));
        }
        paths.push(path);
        Ok(Node(paths.len() as u64 - 1, 0))
    }
}

impl FileSystem for Ext {
    fn root(&self) -> Node {
        Node(0, 0)
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.ext4.read_dir(&self.path(directory)?).map_err(refused)?.take(MAX_ENTRIES) {
            self.budget.step()?;
            let entry = entry.map_err(refused)?;
            let name = entry.file_name().as_ref().to_vec();
            if name != b"." && name != b".." {
                entries.push(Entry { node: self.node(entry.path())?, name });
            }
        }
        Ok(entries)
    }

    fn child(&self, directory: Node, name: &[u8]) -> Result<Node> {
        self.budget.step()?;
        if name.contains(&0) || name.len() > 255 {
            return Err(Error::Missing);
        }
        let path = self.path(directory)?.join(name);
        self.ext4.symlink_metadata(&path).map_err(refused)?;
        self.node(path)
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        self.budget.step()?;
        let found = self.ext4.symlink_metadata(&self.path(node)?).map_err(refused)?;
        let kind = match found.file_type() {
            FileType::Directory => Kind::Directory,
            FileType::Regular => Kind::File,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        Ok(Stat { kind, len: found.len() })
    }

    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize> {
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_none_or(|(of, _)| *of != node) {
            *open = Some((node, self.ext4.open(&self.path(node)?).map_err(refused)?));
        }
        let (_, file) = open.as_mut().expect("it was just opened");
        if file.position() != offset {
            file.seek_to(offset).map_err(refused)?;
        }
        let mut filled = 0;
        while filled < target.len() {
            self.budget.step()?;
            match file.read_bytes(&mut target[filled..]).map_err(refused)? {
                0 => break,
                more => filled += more,
            }
        }
        Ok(filled)
    }

    fn link(&self, node: Node) -> Result<Vec<u8>> {
        let target = self.ext4.read_link(&self.path(node)?).map_err(refused)?;
        Ok(target.as_ref().to_vec())
    }
}

fn refused(error: Ext4Error) -> Error {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => Error::Missing,
        Ext4Error::Io(source) => {
            source.downcast::<Error>().map_or_else(|e| Error::corrupt(e.to_string()), |error| *error)
        }
        Ext4Error::Incompatible(what) => Error::unsupported(what.to_string()),
        Ext4Error::Encrypted => Error::unsupported("is encrypted"),
        other => Error::corrupt(other.to_string()),
    }
}
