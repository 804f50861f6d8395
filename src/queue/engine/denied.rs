// SPDX-License-Identifier: Apache-2.0
//! Files that we may not move (immutable, or another's in a sticky directory). They fail as `PermissionDenied`, stay
//! where they are, and are tried again when they or their rights have changed.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use crate::conversion::lifecycle::{Observation, advance};
use crate::conversion::{Claim, ConversionId, Failure, Reason};
use crate::executor::Executor;
use crate::ledger::{Change, ConversionRow};
use crate::queue::claim::{self, ClaimError};
use crate::queue::error_file;
use crate::queue::scan::{self, Entry, Name};

use super::{Engine, Error, Result};

const REMEDY: &str = "Let the daemon's user move it: take the attribute away (chattr -i, -a), own the file, take the \
                      sticky bit from the directory (chmod -t), or let it write to the folder (chmod g+w)";

/// Files of the queue directory that are left alone until they, or the rights to the directory, change.
#[derive(Debug, Default)]
pub(super) struct Denied {
    files: HashMap<Name, Held>,
    /// Mode, owner and group of the directory at the last look.
    rights: Option<(u32, u32, u32)>,
}

fn rights(directory: &Path) -> Option<(u32, u32, u32)> {
    fs::metadata(directory).ok().map(|found| (found.mode(), found.uid(), found.gid()))
}

#[derive(Debug)]
struct Held {
    /// Primary of the artifact that the file belongs to: its members are held, and released, together.
    primary: Name,
    inode: u64,
    ctime_ns: i128,
}

impl Denied {
    /// Leaves these members of one artifact alone from now on.
    pub(super) fn hold(&mut self, directory: &Path, primary: &Name, members: &[Entry]) {
        self.look_at_directory(directory);
        if self.files.is_empty() {
            self.rights = rights(directory);
        }
        for member in members {
            let held = Held { primary: primary.clone(), inode: member.inode, ctime_ns: member.ctime_ns };
            self.files.insert(member.name.clone(), held);
        }
    }

    /// Whether this file is left alone.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Releases all files when the rights to the directory have changed. To be called before each listing.
    pub(super) fn look_at_directory(&mut self, directory: &Path) {
        if self.files.is_empty() {
            return;
        }
        let now = rights(directory);
        if now.is_some() && std::mem::replace(&mut self.rights, now) != now {
            self.files.clear();
        }
    }

    /// Releases the artifacts of which this file is a member, if its content or its rights have changed.
    pub(super) fn look_at(&mut self, entry: &Entry) {
        let Some(held) = self.files.get(&entry.name) else { return };
        if (held.inode, held.ctime_ns) != (entry.inode, entry.ctime_ns) {
            let primary = held.primary.clone();
            self.files.retain(|_, held| held.primary != primary);
        }
    }
}

impl<E: Executor> Engine<E> {
    /// Ends a claim whose members may not be moved: it fails if that was not reported before, otherwise it is
    /// forgotten. Returns the error if it is of another kind, or concerns the directory.
    pub(super) async fn deny(&mut self, id: &ConversionId, error: ClaimError) -> Result<()> {
        let Some(row) = self.conversions.get(id).map(|conversion| conversion.row.clone()) else { return Ok(()) };
        let paths = &self.settings.paths;
        let origin = claim::origin(paths, &row.claim);
        let Some((path, why)) = error.denied(paths) else { return Err(error.into()) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let dir = path.parent().unwrap_or(path).display();
        let message = format!("{name}: cannot be moved out of {dir}: {why}; it stays there");
        claim::put_back(paths, &row.claim, self.settings.method)?;
        let look = |source| Error::Look { path: origin.clone(), source };
        let mut members = Vec::new();
        for member in row.claim.moved() {
            members.extend(scan::look(&origin, &member.name).map_err(look)?);
        }
        let is_told = is_told(paths, &row.claim, &members);
        if row.claim.origin.is_empty() {
            self.intake.deny(&Name::from(row.claim.entry_name()), &members);
        }
        if is_told {
            claim::remove(paths, id)?;
            return self.forget_row(id).await;
        }
        self.reject(&row, Failure { suggestion: REMEDY.to_owned(), ..Failure::new(Reason::PermissionDenied, message) })
            .await
    }

    /// Ends the conversion before any attempt.
    async fn reject(&mut self, row: &ConversionRow, failure: Failure) -> Result<()> {
        let rejected = Observation::Rejected(failure);
        let (status, _) = advance(row.status.clone(), rejected, &self.settings.policy, self.wall());
        self.change(&row.id, Change::Submitted(status)).await?;
        self.submit(&row.id).await
    }

    /// Removes the report of a file that could not be moved then, and is being converted now.
    pub(super) fn forget_denial(&self, claim: &Claim) -> Result<()> {
        let primary = self.settings.paths.errors().join(claim.entry_name());
        match error_file::read(&primary) {
            Some(told) if told.reason == Reason::PermissionDenied && !primary.exists() => {
                Ok(error_file::remove(&primary, &self.settings.paths.errors())?)
            }
            _ => Ok(()),
        }
    }
}

/// Whether an error.json reports this already, and the files have not changed since.
fn is_told(paths: &crate::files::Paths, claim: &Claim, members: &[Entry]) -> bool {
    let Some(told) = error_file::read(&paths.errors().join(claim.entry_name())) else { return false };
    // error.json has whole seconds.
    let until = told.timestamp.saturating_add(SignedDuration::from_secs(1)).unwrap_or(Timestamp::MAX);
    told.reason == Reason::PermissionDenied && members.iter().all(|member| member.ctime_ns <= until.as_nanosecond())
}
