// SPDX-License-Identifier: Apache-2.0
//! Moves that never replace what is there, and that are on disk when they return.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use super::volume;

/// How a move is done where the file system knows `RENAME_NOREPLACE`, and where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// `renameat2(RENAME_NOREPLACE)`, and [`Method::Fallback`] where that is unknown.
    #[default]
    NoReplace,
    /// Files by link and unlink; directories by plain rename, which fails on a non-empty target.
    Fallback,
}

/// Why a move was not done. Nothing was replaced.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The name at the target is taken.
    #[error("{} exists already", .0.display())]
    Taken(PathBuf),
    /// There is nothing at the source.
    #[error("{} is gone", .0.display())]
    Gone(PathBuf),
    /// The file system has no way to move without replacing.
    #[error("the file system cannot move {} without replacing what may be there", .from.display())]
    Unsupported {
        from: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The system refused the move.
    #[error("cannot move {} to {}", .from.display(), .to.display())]
    Move {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory's entries could not be brought to disk.
    #[error("cannot sync {}", .path.display())]
    Sync {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl MoveError {
    /// The system's error behind it, where there is one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Taken(_) | Self::Gone(_) => None,
            Self::Unsupported { source, .. } | Self::Move { source, .. } | Self::Sync { source, .. } => Some(source),
        }
    }
}

/// Moves a file (or a symlink, as itself) to a name that is free, and syncs both parents.
pub fn move_file(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    rename_file(from, to, method)?;
    sync_parents(from, to)
}

/// The same without syncing: whoever moves several files syncs each directory once, the target's first.
pub fn rename_file(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    match without_replacing(from, to, method) {
        Some(done) => done,
        None => link_and_unlink(from, to),
    }
}

/// Moves a directory to a name that is free (or, by the fallback, an empty directory), and syncs both parents.
pub fn move_dir(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    match without_replacing(from, to, method) {
        Some(done) => done?,
        None => match volume::rename(from, to) {
            Ok(()) => {}
            Err(e) => {
                let taken = matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists
                );
                return Err(if taken { MoveError::Taken(to.to_owned()) } else { failed(from, to, e) });
            }
        },
    }
    sync_parents(from, to)
}

/// Creates a directory and the parents it lacks (mode 0777 less umask) and syncs what was changed.
pub fn create_dir(path: &Path) -> Result<(), MoveError> {
    let cannot = |source| MoveError::Move { from: path.to_owned(), to: path.to_owned(), source };
    match volume::create_dir(path, 0o777) {
        Ok(()) => sync_dir(path.parent().unwrap_or(path)).inspect_err(|_| {
            // Whoever tries again must not find it and take it for synced.
            let _ = volume::remove_dir(path);
        }),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) => {
                create_dir(parent)?;
                create_dir(path)
            }
            None => Err(cannot(e)),
        },
        Err(e) => Err(cannot(e)),
    }
}

/// Brings a directory's entries to disk.
pub fn sync_dir(path: &Path) -> Result<(), MoveError> {
    volume::sync_dir(path).map_err(|source| MoveError::Sync { path: path.to_owned(), source })
}

/// Whether anything, even a dangling symlink, has this name.
pub fn is_taken(path: &Path) -> io::Result<bool> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// `None`: this file system or kernel doesn't know `RENAME_NOREPLACE`.
fn without_replacing(from: &Path, to: &Path, method: Method) -> Option<Result<(), MoveError>> {
    if method == Method::Fallback {
        return None;
    }
    match volume::rename_no_replace(from, to) {
        Ok(()) => Some(Ok(())),
        Err(Errno::EXIST) => Some(Err(MoveError::Taken(to.to_owned()))),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => None,
        Err(e) => Some(Err(failed(from, to, e.into()))),
    }
}

fn link_and_unlink(from: &Path, to: &Path) -> Result<(), MoveError> {
    // `fs::hard_link` is linkat without AT_SYMLINK_FOLLOW: a symlink is linked as itself.
    if let Err(e) = volume::link(from, to) {
        // A server that answered twice says that the name is taken, though by this very file.
        if e.kind() == io::ErrorKind::AlreadyExists && is_same_file(from, to) {
            return unlink(from, to);
        }
        return Err(match e.kind() {
            io::ErrorKind::AlreadyExists => MoveError::Taken(to.to_owned()),
            io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied | io::ErrorKind::TooManyLinks => {
                MoveError::Unsupported { from: from.to_owned(), source: e }
            }
            _ => failed(from, to, e),
        });
    }
    // Both names stand now. Until the new one is on disk, the old one must not go.
    sync_dir(parent(to))?;
    unlink(from, to)
}

fn unlink(from: &Path, to: &Path) -> Result<(), MoveError> {
    volume::remove_file(from).map_err(|e| failed(from, to, e))
}

/// Whether both names are one file, symlinks not followed.
#[must_use]
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn sync_parents(from: &Path, to: &Path) -> Result<(), MoveError> {
    // The new name first: a crash in between may show two names, never none.
    sync_dir(parent(to))?;
    if parent(from) == parent(to) { Ok(()) } else { sync_dir(parent(from)) }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(from: &Path, to: &Path, source: io::Error) -> MoveError {
    // The target's directory may be what is missing; only a missing source is `Gone`.
    if source.kind() == io::ErrorKind::NotFound && matches!(is_taken(from), Ok(false)) {
        return MoveError::Gone(from.to_owned());
    }
    MoveError::Move { from: from.to_owned(), to: to.to_owned(), source }
}

#[cfg(test)]
mod tests;
