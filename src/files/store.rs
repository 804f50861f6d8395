// SPDX-License-Identifier: Apache-2.0
//! Small files: written whole or not at all, and read so that no other process can block the read.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::paths::is_plain_name;
use super::{names, volume};

/// Why a small file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A symlink, a FIFO, a directory: not read.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    #[error("{} is larger than {limit} bytes", .path.display())]
    TooLong { path: PathBuf, limit: usize },
    #[error("{} is not what it should be", .path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Replaces `path` with these bytes in one step: temporary file, fsync, rename, fsync of the directory. Mode 0644
/// less umask.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write_mode(path, bytes, 0o644)
}

/// The same with another mode, less umask.
pub(crate) fn write_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    put(path, bytes, mode, Durability::Synced).map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

/// Writes `value` as indented JSON with a final newline, in one step.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| StoreError::Write { path: path.to_owned(), source: source.into() })?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// The same without syncing: readers see the old content or the new, but after a power cut it may be lost.
pub(crate) fn replace_json(path: &Path, value: &impl serde::Serialize) -> Result<(), StoreError> {
    let written = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .and_then(|bytes| put(path, &bytes, 0o644, Durability::Unsynced));
    written.map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    Synced,
    Unsynced,
}

fn put(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temporary = dir.join(names::temporary(&name.to_string_lossy()));
    // Whatever lies under the temporary name, left by a crash or put there, is removed first: it is never written
    // through.
    match volume::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = volume::create_file(&temporary, mode).and_then(|file| {
        volume::write(&file, &temporary, bytes)?;
        if durability == Durability::Unsynced {
            return volume::rename(&temporary, path);
        }
        volume::sync_file(&file, &temporary)?;
        volume::rename(&temporary, path)?;
        volume::sync_dir(dir)
    });
    if written.is_err() {
        // Best effort: the next write to this name removes it too.
        volume::remove_file(&temporary).ok();
    }
    written
}

/// Opens a directory, never through a symlink in its last component.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|e| StoreError::Read { path: path.to_owned(), source: e.into() })
}

/// Opens a directory by its path below `dir`, through no symlink; an empty path is `dir` itself.
pub(crate) fn open_dir_below(dir: &Path, below: &str) -> Result<OwnedFd, StoreError> {
    let mut opened = open_dir(dir)?;
    for name in below.split('/').filter(|name| !name.is_empty()) {
        opened = open_beneath(&opened, OsStr::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| StoreError::Read { path: dir.join(below), source: e.into() })?;
    }
    Ok(opened)
}

/// Opens the file `name` in a directory that others may write to: beneath it, without symlinks, without blocking,
/// regular files only. `dir_path` is for errors.
pub(crate) fn open_untrusted(dir: impl AsFd, dir_path: &Path, name: &str) -> Result<File, StoreError> {
    let path = dir_path.join(name);
    let cannot = |source: io::Error| StoreError::Read { path: path.clone(), source };
    if !is_plain_name(name) {
        return Err(cannot(io::ErrorKind::InvalidInput.into()));
    }
    let fd = match open_beneath(dir.as_fd(), OsStr::new(name), OFlags::RDONLY) {
        Ok(fd) => fd,
        // ELOOP: a symlink. ENXIO: a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Err(StoreError::NotRegular(path)),
        Err(e) => return Err(cannot(e.into())),
    };
    let file = File::from(fd);
    let is_regular = file.metadata().map_err(cannot)?.is_file();
    if is_regular { Ok(file) } else { Err(StoreError::NotRegular(path)) }
}

/// Opens one plain component beneath `dir` without following symlinks and without blocking.
pub(crate) fn open_beneath(dir: impl AsFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_component(dir.as_fd(), name, flags, Mode::empty())
}

/// The same for reading and writing; creates the file where it is missing, with mode 0644 less umask.
pub(super) fn create_beneath(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    open_component(dir.as_fd(), OsStr::new(name), OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o644))
}

fn open_component(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    or_without_openat2(openat2(dir, name, flags, mode, resolve), name, || openat(dir, name, flags, mode))
}

/// Older kernels and some seccomp profiles refuse openat2 (with ENOSYS or EPERM). For one plain component,
/// `O_NOFOLLOW` gives the same guarantee.
fn or_without_openat2(
    opened: Result<OwnedFd, Errno>,
    name: &OsStr,
    open: impl FnOnce() -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    match opened {
        Err(Errno::NOSYS | Errno::PERM) if !name.as_bytes().contains(&b'/') => open(),
        opened => opened,
    }
}

/// Reads the file `name` in a directory that others may write to, at most `limit` bytes of it.
pub(crate) fn read_untrusted(dir: impl AsFd, dir_path: &Path, name: &str, limit: usize) -> Result<Vec<u8>, StoreError> {
    let file = open_untrusted(dir, dir_path, name)?;
    let path = dir_path.join(name);
    let mut bytes = Vec::new();
    // Reading one byte more than allowed detects a longer file, whatever size it reports.
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| StoreError::Read { path: path.clone(), source })?;
    if bytes.len() > limit { Err(StoreError::TooLong { path, limit }) } else { Ok(bytes) }
}

/// Reads a small JSON file in a directory that others may write to; `None` where there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    dir_path: &Path,
    name: &str,
    limit: usize,
) -> Result<Option<T>, StoreError> {
    let missing =
        |e: &StoreError| matches!(e, StoreError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound);
    let bytes = match open_dir(dir_path).and_then(|dir| read_untrusted(dir, dir_path, name, limit)) {
        Ok(bytes) => bytes,
        Err(e) if missing(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StoreError::Malformed { path: dir_path.join(name), source })
}

/// Removes a file and syncs its directory. A missing file is no error.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match volume::remove_file(path) {
        Ok(()) => volume::sync_dir(path.parent().unwrap_or(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    removed.map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::mkfifoat;
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn a_sandbox_without_openat2_opens_plain_names_all_the_same() {
        let dir = tempdir().unwrap();
        let open = || openat(CWD, dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        for (answer, name, opens) in [
            (Errno::NOSYS, "a", true),
            (Errno::PERM, "a", true),
            (Errno::PERM, "a/b", false),
            (Errno::LOOP, "a", false),
        ] {
            let opened = or_without_openat2(Err(answer), OsStr::new(name), open);
            assert_eq!(opened.is_ok(), opens, "{answer:?} {name}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let dir = tempdir().unwrap();
        for name in ["a.json".to_owned(), "x".repeat(255), "new\nline".to_owned()] {
            let path = dir.path().join(&name);
            fs::write(dir.path().join(names::temporary(&name)), "what a crash left").unwrap();
            for text in ["one", "two"] {
                write(&path, text.as_bytes()).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            }
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            remove(&path).unwrap();
            remove(&path).unwrap();
        }
    }

    #[test]
    fn a_symlink_planted_under_the_temporary_name_is_not_written_through() {
        let dir = tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::write(&canary, "untouched").unwrap();
        symlink(&canary, dir.path().join(names::temporary("a"))).unwrap();
        write(&dir.path().join("a"), b"text").unwrap();
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    }

    #[test]
    fn only_a_short_regular_file_is_read() {
        let dir = tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("good"), "12345").unwrap();
        fs::write(at("long"), "123456").unwrap();
        fs::create_dir(at("dir")).unwrap();
        symlink("good", at("link")).unwrap();
        mkfifoat(CWD, at("fifo"), Mode::RWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let read = |name| read_untrusted(open_dir(dir.path()).unwrap(), dir.path(), name, 5);
        assert_eq!(read("good").unwrap(), b"12345");
        assert!(matches!(read("long"), Err(StoreError::TooLong { limit: 5, .. })));
        for name in ["dir", "link", "fifo", "socket"] {
            assert!(matches!(read(name), Err(StoreError::NotRegular(_))), "{name}: {:?}", read(name));
        }
        for name in ["../good", "/etc/passwd", "none"] {
            assert!(matches!(read(name), Err(StoreError::Read { .. })), "{name}");
        }
    }

    #[test]
    fn a_missing_record_is_none_and_a_malformed_one_an_error() {
        let dir = tempdir().unwrap();
        assert_eq!(read_json::<u32>(dir.path(), "a", 9).unwrap(), None);
        assert_eq!(read_json::<u32>(&dir.path().join("none"), "a", 9).unwrap(), None);
        write_json(&dir.path().join("a"), &7).unwrap();
        assert_eq!(read_json::<u32>(dir.path(), "a", 9).unwrap(), Some(7));
        fs::write(dir.path().join("a"), "{").unwrap();
        assert!(matches!(read_json::<u32>(dir.path(), "a", 9), Err(StoreError::Malformed { .. })));
    }
}
