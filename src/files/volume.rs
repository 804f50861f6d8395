// SPDX-License-Identifier: Apache-2.0
//! All changes that the queue makes to a volume pass through here.
//!
//! In a simulation (`simulated`) the same calls are recorded, so that a power cut can undo what was not synced, and
//! they fail where a seed says so.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

#[cfg(test)]
pub(crate) mod simulated;

/// A change that is about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Replaces anything that has the new name.
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Remove(PathBuf),
    CreateDir(PathBuf),
    CreateFile(PathBuf),
    Write(PathBuf),
    SyncFile(PathBuf),
    SyncDir(PathBuf),
}

/// Makes the change.
#[cfg(not(test))]
fn through<T, E>(_: impl FnOnce() -> Change, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    act()
}

/// Makes the change, or lets the simulation of this thread decide.
#[cfg(test)]
fn through<T, E: From<Errno>>(change: impl FnOnce() -> Change, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    match simulated::current() {
        Some(volume) => volume.through(&change(), act),
        None => act(),
    }
}

/// Renames, replacing anything that has the new name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    through(|| Change::Rename { from: from.to_owned(), to: to.to_owned() }, || fs::rename(from, to))
}

/// Renames if the new name is free.
pub(crate) fn rename_no_replace(from: &Path, to: &Path) -> Result<(), Errno> {
    through(
        || Change::Rename { from: from.to_owned(), to: to.to_owned() },
        || renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE),
    )
}

/// Renames between two open directories.
pub(crate) fn rename_at(from: impl AsFd, name: &std::ffi::CStr, to: impl AsFd, new: &str) -> Result<(), Errno> {
    through(
        || Change::Rename { from: beneath(&from, &path(name)), to: beneath(&to, Path::new(new)) },
        || renameat(&from, name, &to, new),
    )
}

/// Gives a file (or a symlink, as itself) a further name.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    through(|| Change::Link { from: from.to_owned(), to: to.to_owned() }, || fs::hard_link(from, to))
}

/// Removes the name of anything but a directory.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    through(|| Change::Remove(path.to_owned()), || fs::remove_file(path))
}

/// Removes an empty directory.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    through(|| Change::Remove(path.to_owned()), || fs::remove_dir(path))
}

/// Removes a name in an open directory.
pub(crate) fn unlink_at(dir: impl AsFd, name: &Path, flags: AtFlags) -> Result<(), Errno> {
    through(|| Change::Remove(beneath(&dir, name)), || unlinkat(&dir, name, flags))
}

/// Makes a directory of this mode, less umask.
pub(crate) fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    through(|| Change::CreateDir(path.to_owned()), || DirBuilder::new().mode(mode).create(path))
}

/// The same, with missing parents.
pub(crate) fn create_dir_all(path: &Path, mode: u32) -> io::Result<()> {
    match create_dir(path, mode) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) => {
                create_dir_all(parent, mode)?;
                create_dir_all(path, mode)
            }
            None => Err(e),
        },
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done,
    }
}

/// Creates a file of this mode, less umask, that must not exist.
pub(crate) fn create_file(path: &Path, mode: u32) -> io::Result<File> {
    through(
        || Change::CreateFile(path.to_owned()),
        || OpenOptions::new().write(true).create_new(true).mode(mode).open(path),
    )
}

/// Writes all bytes; `path` is the path of the file.
pub(crate) fn write(mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    through(|| Change::Write(path.to_owned()), || file.write_all(bytes))
}

/// Syncs a file's bytes.
pub(crate) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    through(|| Change::SyncFile(path.to_owned()), || file.sync_all())
}

/// Syncs a directory's names.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    through(|| Change::SyncDir(path.to_owned()), || File::open(path)?.sync_all())
}

/// Change time of a file; `told` is what the system reports. In a simulation, the time of the simulation's last
/// change.
pub(crate) fn changed_at(inode: u64, told: i128) -> i128 {
    #[cfg(test)]
    if let Some(volume) = simulated::current() {
        return volume.changed_at(inode);
    }
    let _ = inode;
    told
}

fn path(name: &std::ffi::CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn beneath(dir: &impl AsFd, name: &Path) -> PathBuf {
    match dir.as_fd().as_raw_fd() {
        at if at == CWD.as_raw_fd() => name.to_owned(),
        at => PathBuf::from(format!("/proc/self/fd/{at}")).join(name),
    }
}
