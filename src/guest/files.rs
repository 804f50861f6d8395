// SPDX-License-Identifier: Apache-2.0
//! Files of a guest, whatever the file system: one interface over all readers.

pub(super) mod btrfs;
pub(super) mod ext4;
pub(super) mod fat;
pub(super) mod ntfs;
pub(super) mod xfs;

use std::io::{self, Read};
use std::rc::Rc;

use super::error::{Error, Result};
use super::fields::size;

/// A file of a file system: its inode, and what else the reader needs to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(pub(super) u64, pub(super) u64);

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
    Other,
}

impl Kind {
    /// By the mode of an inode, as Unix has it.
    pub(super) fn of_mode(mode: u16) -> Self {
        match mode >> 12 {
            4 => Self::Directory,
            8 => Self::File,
            10 => Self::Link,
            _ => Self::Other,
        }
    }
}

/// What an inode says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    pub(super) len: u64,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) node: Node,
}

/// Entries of a directory that are looked at.
pub(super) const MAX_ENTRIES: usize = 20_000;
/// Longest target of a symbolic link.
pub(super) const MAX_LINK: u64 = 4096;

/// A file system that is read.
pub(super) trait FileSystem {
    /// The directory that is mounted where nothing else is said.
    fn root(&self) -> Node;

    /// The directory that subvolumes are named from.
    fn top(&self) -> Node {
        self.root()
    }

    /// Entries without `.` and `..`, at most [`MAX_ENTRIES`].
    fn list(&self, directory: Node) -> Result<Vec<Entry>>;

    /// The entry `name` of a directory; `Missing` where there is none.
    fn child(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let entries = self.list(directory)?;
        entries.into_iter().find(|entry| entry.name == name).map(|entry| entry.node).ok_or(Error::Missing)
    }

    fn stat(&self, node: Node) -> Result<Stat>;

    /// Reads at most `target.len()` bytes from `offset`; 0 only at the end.
    fn read(&self, node: Node, offset: u64, target: &mut [u8]) -> Result<usize>;

    /// The target of a symbolic link.
    fn link(&self, node: Node) -> Result<Vec<u8>>;
}

/// A file system that is shared by what reads it.
pub(super) type Shared = Rc<dyn FileSystem>;

/// An open file.
pub(super) struct File {
    pub(super) files: Shared,
    pub(super) node: Node,
    pub(super) at: u64,
}

impl Read for File {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let len = self.files.read(self.node, self.at, target)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The bytes of a file of at most `most` bytes.
pub(super) fn contents(files: &dyn FileSystem, node: Node, most: usize) -> Result<Vec<u8>> {
    let stat = files.stat(node)?;
    if stat.kind != Kind::File {
        return Err(Error::unsupported("is no regular file"));
    }
    let len = size(stat.len)?;
    if len > most {
        return Err(Error::unsupported(format!("has {len} bytes, more than the {most} that are read")));
    }
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match files.read(node, filled as u64, &mut bytes[filled..])? {
            0 => return Err(Error::corrupt("ends before its length")),
            more => filled += more,
        }
    }
    Ok(bytes)
}
