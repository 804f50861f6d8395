// SPDX-License-Identifier: Apache-2.0
//! Moves that never replace anything, and that are on disk when they return.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use super::volume;

/// How files are moved, depending on whether the file system supports `RENAME_NOREPLACE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// `renameat2(RENAME_NOREPLACE)`, and [`Method::Fallback`] where that is not supported.
    #[default]
    NoReplace,
    /// Files by link and unlink; directories by plain rename, which fails on a non-empty target.
    Fallback,
}

/// Why a move was not done. Nothing was replaced.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Something has the target's name.
    #[error("{} exists already", .0.display())]
    Taken(PathBuf),
    /// Nothing is at the source.
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
    /// A directory could not be made.
    #[error("cannot make {}", .path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory's entries could not be synced.
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
            Self::Unsupported { source, .. }
            | Self::Move { source, .. }
            | Self::Make { source, .. }
            | Self::Sync { source, .. } => Some(source),
        }
    }
}

/// Moves a file (or a symlink, as itself) to a free name, and syncs both parents.
pub fn move_file(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    rename_file(from, to, method)?;
    sync_parents(from, to)
}

/// The same without syncing: a caller that moves several files syncs each directory once, the target's first.
pub fn rename_file(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    match without_replacing(from, to, method) {
        Some(done) => done,
        None => link_and_unlink(from, to),
    }
}

/// Moves a directory to a free name (or, by the fallback, over an empty directory), and syncs both parents.
pub fn move_dir(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    rename_dir(from, to, method)?;
    sync_parents(from, to)
}

/// The same without syncing, as [`rename_file`].
pub fn rename_dir(from: &Path, to: &Path, method: Method) -> Result<(), MoveError> {
    if let Some(done) = without_replacing(from, to, method) {
        return done;
    }
    volume::rename(from, to).map_err(|e| {
        let taken = matches!(
            e.kind(),
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists
        );
        if taken { MoveError::Taken(to.to_owned()) } else { failed(from, to, e) }
    })
}

/// Directories that were made and could neither be synced nor removed again: whoever finds one syncs it first. A restart
/// syncs every parent anyway.
static UNSYNCED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Creates a directory and the parents it lacks (mode 0777 less umask) and syncs what was changed.
pub fn create_dir(path: &Path) -> Result<(), MoveError> {
    let cannot = |source| MoveError::Make { path: path.to_owned(), source };
    match volume::create_dir(path, 0o777) {
        Ok(()) => sync_dir(path.parent().unwrap_or(path)).inspect_err(|_| {
            // A later call must not find it and assume that it was synced.
            if volume::remove_dir(path).is_err() {
                unsynced().insert(path.to_owned());
            }
        }),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            if unsynced().contains(path) {
                sync_dir(path.parent().unwrap_or(path))?;
                unsynced().remove(path);
            }
            Ok(())
        }
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

fn unsynced() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // Each change of the set is whole, whatever panics.
    UNSYNCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Syncs a directory's entries.
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

/// `None` where this file system or kernel doesn't support `RENAME_NOREPLACE`.
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
        // A server that carries out a repeated request reports that the name is taken, though by this very file.
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
    // Both names exist now. The old one must stay until the new one is on disk.
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
    // The new name first: a crash in between may leave two names, never none.
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
    // The missing part may be the target's directory; only a missing source is `Gone`.
    if source.kind() == io::ErrorKind::NotFound && matches!(is_taken(from), Ok(false)) {
        return MoveError::Gone(from.to_owned());
    }
    MoveError::Move { from: from.to_owned(), to: to.to_owned(), source }
}

#[cfg(test)]
mod tests;
