// SPDX-License-Identifier: Apache-2.0
//! Where a sealed result is delivered to, and the way to it.
//!
//! ```text
//!  plan ──▶ seal, record ──▶ deliver ──▶ confirm
//!   ▲                          │
//!   └────── the name was taken ┘
//! ```
//!
//! A target is a directory of the output volume, and delivering to it is one rename. [`Target::plan`] chooses a free one,
//! the caller records it, and only what is recorded is delivered to: a crash after that finds the result at its old place
//! or at its new one.

use std::fs;
use std::path::{Path, PathBuf};

use super::publish::{Finished, PublishError, read_published};
use crate::conversion::lifecycle::ONLY_FOLDER;
use crate::conversion::{Attempt, ConversionId};
use crate::files::moves::{self, Method, MoveError};
use crate::files::names;
use crate::files::paths::Paths;
use crate::files::recorded::Recorded;
use crate::files::volume;

/// How many names are tried before we call it a fault.
const MAX_SUFFIX: u32 = 100_000;

/// The directory that a result is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    path: PathBuf,
}

/// The result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Something lies at the target now; [`Recorded::confirm`] finds out whether it is the result.
    Moved,
    /// Somebody took the name since it was chosen: plan again.
    Taken,
}

impl Target {
    /// The first free of `{output}/<date>/<stem>/`, `<stem>-1/`, …. Makes the directory of the date.
    pub fn plan(paths: &Paths, date: &str, stem: &str) -> Result<Self, PublishError> {
        let dir = paths.published(date);
        moves::create_dir(&dir).map_err(|source| PublishError::Move { path: dir.clone(), source })?;
        for k in 0..MAX_SUFFIX {
            let path = dir.join(names::suffixed_dir(stem, k));
            if !is_there(&path)? {
                return Ok(Self { path });
            }
        }
        Err(PublishError::NoName { dir, stem: stem.to_owned() })
    }

    /// The target that a record names, relative to the output directory.
    #[must_use]
    pub fn read(paths: &Paths, name: &str) -> Self {
        Self { path: paths.output().join(name) }
    }

    /// As it is recorded: relative to the output directory.
    #[must_use]
    pub fn name(&self, paths: &Paths) -> String {
        self.path.strip_prefix(paths.output()).unwrap_or(&self.path).to_string_lossy().into_owned()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Recorded<Target> {
    /// Whether the attempt's folder has left its place for this target. Then it is published, and whoever waited for it
    /// may have moved it already. A folder that is gone with the directory around it was lost in a power cut, unless it
    /// is found at the target. Of `ONLY_FOLDER` nobody can say that it left its place: it must be found there, too.
    pub fn has_arrived(
        &self,
        paths: &Paths,
        id: &ConversionId,
        attempt: Attempt,
        folder: &str,
    ) -> Result<bool, PublishError> {
        let work = paths.work_dir(id, attempt);
        let has_left = folder != ONLY_FOLDER && is_there(&work)?;
        Ok(!is_there(&work.join(folder))? && (has_left || read_published(&self.path, id).is_some()))
    }

    /// Moves the sealed result here, replacing nothing. Safe to repeat as long as [`Self::has_arrived`] says no.
    pub fn deliver(&self, finished: &Finished, method: Method) -> Result<Delivery, PublishError> {
        match moves::move_dir(finished.folder(), &self.path, method) {
            Ok(()) => Ok(Delivery::Moved),
            Err(MoveError::Taken(_)) => Ok(Delivery::Taken),
            Err(source) => Err(PublishError::Move { path: finished.folder().to_owned(), source }),
        }
    }

    /// Checks that what was delivered is what was inspected; a folder that was swapped in is taken out of the output
    /// directory again.
    pub fn confirm(&self, finished: &Finished, method: Method) -> Result<(), PublishError> {
        if finished.is_at(&self.path) {
            return Ok(());
        }
        self.take_down(finished, method)?;
        Err(PublishError::Swapped { target: self.path.clone() })
    }

    fn take_down(&self, finished: &Finished, method: Method) -> Result<(), PublishError> {
        let target = &self.path;
        if fs::symlink_metadata(target).is_ok_and(|found| found.is_dir()) {
            let moved = moves::move_dir(target, finished.folder(), method);
            return moved.map_err(|source| PublishError::Move { path: target.clone(), source });
        }
        volume::remove_file(target).map_err(|source| PublishError::Look { path: target.clone(), source })
    }

    /// Brings the delivery to the disk: an earlier run may have died, or failed, before that.
    pub fn sync(&self) -> Result<(), PublishError> {
        let parent = self.path.parent().unwrap_or(&self.path);
        moves::sync_dir(parent).map_err(|source| PublishError::Move { path: self.path.clone(), source })
    }
}

fn is_there(path: &Path) -> Result<bool, PublishError> {
    moves::is_taken(path).map_err(|source| PublishError::Look { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
