// SPDX-License-Identifier: Apache-2.0
//! Removes what a worker left, however deeply nested, and with whatever permissions.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use super::volume;
use crate::conversion::contract::COPIED_FILE;

/// Removes a directory with its content, or a file; a missing one is no error. Follows no symlinks, and needs three
/// open files at any depth: directories are moved up to the top before they are emptied.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match remove_entry(CWD, path) {
        Ok(Removed::Gone) => Ok(()),
        Ok(Removed::IsDirectory) => {
            empty(path)?;
            match volume::unlink_at(CWD, path, AtFlags::REMOVEDIR) {
                Err(Errno::NOENT) | Ok(()) => Ok(()),
                Err(e) => Err(e.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// The same for the content of a directory, which itself stays; a missing one is no error.
pub(crate) fn empty(path: &Path) -> io::Result<()> {
    match open(CWD, path) {
        Ok(top) => flatten(top.as_fd()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether an attempt's folder is more than waste: it has a whole copy, by the marker that stands in it. Whether that is
/// to be believed, the next attempt sees.
#[must_use]
pub(crate) fn holds_copy(folder: &Path) -> bool {
    folder.join(COPIED_FILE).symlink_metadata().is_ok_and(|found| found.is_file())
}

enum Removed {
    Gone,
    IsDirectory,
}

/// Empties `top`.
fn flatten(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut pulled_up = 0_u64;
    loop {
        let mut was_empty = true;
        for name in names(top)? {
            was_empty = false;
            match remove_entry(top, name_of(name.as_c_str()))? {
                Removed::Gone => {}
                Removed::IsDirectory => {
                    let inner = open(top, name.as_c_str())?;
                    for child in names(inner.as_fd())? {
                        if let Removed::IsDirectory = remove_entry(inner.as_fd(), name_of(child.as_c_str()))? {
                            // Moving a directory to another parent needs write permission on the directory itself.
                            drop(open(inner.as_fd(), child.as_c_str())?);
                            pull_up(inner.as_fd(), child.as_c_str(), top, &mut pulled_up)?;
                        }
                    }
                    volume::unlink_at(top, name_of(name.as_c_str()), AtFlags::REMOVEDIR)?;
                }
            }
        }
        if was_empty {
            return Ok(());
        }
    }
}

fn pull_up(from: BorrowedFd<'_>, name: &std::ffi::CStr, top: BorrowedFd<'_>, count: &mut u64) -> io::Result<()> {
    loop {
        *count += 1;
        match volume::rename_at(from, name, top, &format!(".waste-{count}")) {
            Ok(()) => return Ok(()),
            // The worker used this name already.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn remove_entry(dir: impl AsFd, name: &Path) -> Result<Removed, Errno> {
    match volume::unlink_at(dir.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Removed::Gone),
        // POSIX says EPERM for directories, Linux EISDIR. An empty one can be removed even where we may not read it.
        Err(Errno::ISDIR | Errno::PERM) => match volume::unlink_at(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(Removed::Gone),
            Err(_) => Ok(Removed::IsDirectory),
        },
        Err(e) => Err(e),
    }
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // O_PATH needs no permission on the directory itself, which may be unreadable.
    let handle = openat(dir.as_fd(), name, flags | OFlags::PATH, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mode = fs::metadata(&path)?.permissions().mode();
    if mode & 0o700 != 0o700 {
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    }
    Ok(openat(dir, name, flags | OFlags::RDONLY, Mode::empty())?)
}

fn name_of(name: &std::ffi::CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_tree_goes_with_all_that_was_planted_in_it_and_nothing_else() {
        let dir = tempdir().unwrap();
        let (waste, canary) = (dir.path().join("waste"), dir.path().join("canary"));
        fs::create_dir_all(waste.join("a/b/c")).unwrap();
        fs::create_dir_all(waste.join(".waste-1/full")).unwrap();
        fs::write(waste.join(".waste-2"), "").unwrap();
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("kept"), "").unwrap();
        symlink(&canary, waste.join("a/link")).unwrap();
        rustix::fs::mkfifoat(CWD, waste.join("a/b/fifo"), Mode::RWXU).unwrap();
        for closed in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(waste.join(closed), Permissions::from_mode(0o000)).unwrap();
        }
        remove(&waste).unwrap();
        remove(&waste).unwrap();
        assert!(!waste.exists() && canary.join("kept").exists());
    }

    #[test]
    fn a_symlink_or_a_file_goes_by_itself() {
        let dir = tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/etc", &link).unwrap();
        remove(&link).unwrap();
        assert!(fs::symlink_metadata(&link).is_err());
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn no_nesting_is_too_deep() {
        let dir = tempdir().unwrap();
        let waste = dir.path().join("waste");
        fs::create_dir(&waste).unwrap();
        let mut at = open(CWD, &waste).unwrap();
        for _ in 0..3000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(&at, "d").unwrap();
        }
        drop(at);
        remove(&waste).unwrap();
        assert!(!waste.exists());
    }
}
