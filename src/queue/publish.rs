// SPDX-License-Identifier: Apache-2.0
//! What an attempt left: inspected, and sealed so that it can be delivered.
//!
//! ```text
//!  .work/<id>/<n>/<folder>/ ──inspect──▶ Finished ──plan, seal, record, deliver, confirm──▶ <date>/<stem>[-k]/
//!                              │
//!                              └──▶ Unpublishable: the attempt failed after all
//! ```
//!
//! The target and the way to it are in [`super::target`].
//!
//! A worker is not trusted: it may have planted symlinks, FIFOs or other people's names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use crate::conversion::contract::METADATA_FILE;
use crate::conversion::emit::{self, Emitted};
use crate::conversion::guest::report::GuestReport;
use crate::conversion::lifecycle::ONLY_FOLDER;
use crate::conversion::machine::{MAX_MACHINES, Machine};
use crate::conversion::{Attempt, CONTRACT_VERSION, Claim, ConversionId, Failure, Metadata, Reason, chain};
use crate::files::moves::{self, MoveError};
use crate::files::paths::{Paths, is_plain_name};
use crate::files::store::{self, StoreError};
use crate::files::waste;

/// Longest metadata.json that is read.
pub const MAX_METADATA_BYTES: usize = 4 << 20;

/// Longest warning, and the largest number of them, that are kept.
const MAX_WARNING: usize = 1024;
const MAX_WARNINGS: usize = 32;

/// Why we could not look at a result, or could not publish it. The attempt is not to blame.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("cannot look into {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove {}, which metadata.json does not name", .path.display())]
    Strip {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {name}")]
    Emit {
        name: String,
        #[source]
        source: StoreError,
    },
    #[error("cannot publish {}", .path.display())]
    Move {
        path: PathBuf,
        #[source]
        source: MoveError,
    },
    /// Somebody swapped the folder while it was published; what lies at `target` is not what was inspected.
    #[error("{} was swapped while it was published", .target.display())]
    Swapped { target: PathBuf },
    #[error("no name is free for {stem} in {}", .dir.display())]
    NoName { dir: PathBuf, stem: String },
}

/// What an attempt left.
#[derive(Debug)]
pub enum Inspection {
    /// Complete: may be published.
    Finished(Box<Finished>),
    /// metadata.json is missing or bad, or a file that it names is: the attempt fails with this.
    Unpublishable(Failure),
}

/// A complete folder, held open so that it can be told from another one of its name.
#[derive(Debug)]
pub struct Finished {
    /// What the worker reports, clamped, with what the files really occupy.
    pub metadata: Metadata,
    folder: PathBuf,
    dir: OwnedFd,
    named: BTreeSet<String>,
}

/// The name of the folder of a successful attempt: that of its one complete folder, where `folder` is `ONLY_FOLDER`. The
/// same as `folder` where none is complete, or several are.
pub fn found_folder(
    paths: &Paths,
    id: &ConversionId,
    attempt: Attempt,
    folder: String,
) -> Result<String, PublishError> {
    /// A worker makes one folder; a hostile one may make any number.
    const MOST_LOOKED_AT: usize = 1000;
    if folder != ONLY_FOLDER {
        return Ok(folder);
    }
    let work = paths.work_dir(id, attempt);
    let cannot = |source| PublishError::Look { path: work.clone(), source };
    let entries = match fs::read_dir(&work) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(folder),
        entries => entries.map_err(cannot)?,
    };
    let mut complete = Vec::new();
    for entry in entries.take(MOST_LOOKED_AT) {
        let entry = entry.map_err(cannot)?;
        // Anything else that it may be is refused when it is inspected.
        if entry.path().join(METADATA_FILE).symlink_metadata().is_ok() {
            complete.extend(entry.file_name().into_string());
        }
    }
    Ok(if complete.len() == 1 { complete.remove(0) } else { folder })
}

/// Looks at what attempt `attempt` of the claim's conversion left in `folder`.
pub fn inspect(paths: &Paths, claim: &Claim, attempt: Attempt, folder: &str) -> Result<Inspection, PublishError> {
    let work = paths.work_dir(&claim.id, attempt);
    let refuse = |why: String| Ok(Inspection::Unpublishable(Failure::new(Reason::Internal, why)));
    if !is_plain_name(folder) {
        return refuse(format!("the attempt's folder {folder:?} has no plain name"));
    }
    let path = work.join(folder);
    let cannot = |e: Errno| PublishError::Look { path: path.clone(), source: e.into() };
    let parent = match store::open_dir(&work) {
        Ok(parent) => parent,
        Err(StoreError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            // The directory is synced only when there is something to publish in it.
            let why = format!("the work directory of attempt {attempt} did not outlast the machine");
            return Ok(Inspection::Unpublishable(Failure::new(Reason::Disrupted, why)));
        }
        Err(e) => return refuse(chain(&e)),
    };
    let dir = match store::open_beneath(&parent, OsStr::new(folder), OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
            let what =
                if folder == ONLY_FOLDER { "folder that alone is complete" } else { &format!("folder {folder}") };
            return refuse(format!("attempt {attempt} left no {what}"));
        }
        Err(e) => return Err(cannot(e)),
    };
    match read(&dir, &path, Some(&claim.id)) {
        Ok((metadata, named)) => Ok(Inspection::Finished(Box::new(Finished { metadata, folder: path, dir, named }))),
        Err(why) => refuse(format!("what attempt {attempt} left cannot be published: {why}")),
    }
}

/// Reads the metadata of a directory that was published for conversion `id`; `None` where it is gone or bad.
#[must_use]
pub fn read_published(target: &Path, id: &ConversionId) -> Option<Metadata> {
    let dir = store::open_dir(target).ok()?;
    read(&dir, target, Some(id)).ok().map(|(metadata, _)| metadata)
}

/// Whether a published directory lies there, with all that its metadata.json names.
#[must_use]
pub fn is_published(target: &Path) -> bool {
    store::open_dir(target).is_ok_and(|dir| read(&dir, target, None).is_ok())
}

impl Finished {
    /// Makes the folder ready to be delivered, and brings it to disk: removes what metadata.json does not name, and
    /// writes these files of platforms. Safe to repeat.
    pub fn seal(&self, emitted: &[Emitted]) -> Result<(), PublishError> {
        self.strip()?;
        for file in emitted {
            let path = self.inside().join(&file.name);
            store::write(&path, file.text.as_bytes())
                .map_err(|source| PublishError::Emit { name: file.name.clone(), source })?;
        }
        let syncing = |source| PublishError::Move { path: self.folder.clone(), source };
        // Even where nothing was removed: an earlier run may have died before its removals were on the disk.
        moves::sync_dir(&self.inside()).map_err(syncing)?;
        // The folder's name, too: if a power cut took that alone, the folder would seem to have been published.
        moves::sync_dir(self.folder.parent().unwrap_or(&self.folder)).map_err(syncing)
    }

    /// Where the attempt left it.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether what lies at `path` is the very directory that was inspected.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let found = fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
        let inspected = fstat(&self.dir).map(|s| (s.st_dev, s.st_ino));
        matches!((found, inspected), (Ok(a), Ok(b)) if a == b)
    }

    /// Removes everything that metadata.json doesn't name.
    fn strip(&self) -> Result<(), PublishError> {
        let look = |source| PublishError::Look { path: self.folder.clone(), source };
        for entry in fs::read_dir(self.inside()).map_err(look)? {
            let entry = entry.map_err(look)?;
            let name = entry.file_name();
            if name == METADATA_FILE || name.to_str().is_some_and(|name| self.named.contains(name)) {
                continue;
            }
            let path = entry.path();
            waste::remove(&path).map_err(|source| PublishError::Strip { path, source })?;
        }
        Ok(())
    }

    /// A path to the inspected directory itself, wherever it is and whatever has its name now.
    fn inside(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }
}

/// Reads metadata.json, of any conversion where `id` names none, and looks at every file that it names. The error says in
/// words what is wrong with them.
fn read(dir: impl AsFd, path: &Path, id: Option<&ConversionId>) -> Result<(Metadata, BTreeSet<String>), String> {
    let bytes = store::read_untrusted(dir.as_fd(), path, METADATA_FILE, MAX_METADATA_BYTES).map_err(|e| chain(&e))?;
    let mut metadata: Metadata =
        serde_json::from_slice(&bytes).map_err(|e| format!("metadata.json is not what it should be: {e}"))?;
    if !(1..=CONTRACT_VERSION).contains(&metadata.contract_version) {
        return Err(format!("metadata.json has version {}, not {CONTRACT_VERSION}", metadata.contract_version));
    }
    if id.is_some_and(|id| metadata.id != id.as_str()) {
        return Err("metadata.json is another conversion's".to_owned());
    }
    if metadata.disks.is_empty() {
        return Err("metadata.json names no disk".to_owned());
    }
    let mut named = BTreeSet::new();
    let files = metadata.disks.iter().map(|d| &d.file).chain(&metadata.side_files);
    for name in files {
        if !is_plain_name(name) || name.starts_with('.') || name == METADATA_FILE || emit::is_reserved(name) {
            return Err(format!("metadata.json names {name:?}, which is no name for an output"));
        }
        if !named.insert(name.clone()) {
            return Err(format!("metadata.json names {name:?} twice"));
        }
    }
    for name in &metadata.side_files {
        store::open_untrusted(dir.as_fd(), path, name).map_err(|e| chain(&e))?;
    }
    for disk in &metadata.disks {
        if disk.target.is_some() {
            // It lies elsewhere: a file of its name is none of the result.
            named.remove(&disk.file);
        }
    }
    for disk in metadata.disks.iter_mut().filter(|disk| disk.target.is_none()) {
        let file = store::open_untrusted(dir.as_fd(), path, &disk.file).map_err(|e| chain(&e))?;
        let found = file.metadata().map_err(|e| format!("{}: {e}", disk.file))?;
        // st_blocks counts 512 bytes each, whatever the file system's block (stat(2)).
        disk.allocated_bytes = found.blocks().saturating_mul(512);
    }
    clamp(&mut metadata);
    Ok((metadata, named))
}

/// Shortens what is too long for the Kubernetes API or for a person.
fn clamp(metadata: &mut Metadata) {
    const MAX: u64 = i64::MAX as u64;
    metadata.duration_ms = metadata.duration_ms.min(MAX);
    metadata.source.size_bytes = metadata.source.size_bytes.min(MAX);
    for disk in &mut metadata.disks {
        disk.virtual_size_bytes = disk.virtual_size_bytes.min(MAX);
        disk.allocated_bytes = disk.allocated_bytes.min(MAX);
        disk.sha256 = disk.sha256.take().filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    metadata.machines.truncate(MAX_MACHINES);
    metadata.machines = std::mem::take(&mut metadata.machines).into_iter().map(Machine::bounded).collect();
    metadata.guest = metadata.guest.take().map(GuestReport::bounded);
    metadata.warnings.truncate(MAX_WARNINGS);
    for warning in &mut metadata.warnings {
        warning.truncate(warning.floor_char_boundary(MAX_WARNING));
    }
}

#[cfg(test)]
pub(super) mod tests;
