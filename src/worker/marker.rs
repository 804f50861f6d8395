// SPDX-License-Identifier: Apache-2.0
//! Markers: files that a finished step leaves in the attempt's folder, so that a later attempt can go on after that
//! step.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::output::{output_failure, sync_directory, write_synced};
use super::target::{Identity, Targets};
use crate::conversion::contract::{
    COPIED_FILE, DIGESTED_FILE, FIXED_FILE, KEPT_DIR, MAX_MARKER_BYTES, METADATA_FILE, VERIFIED_FILE,
};
use crate::conversion::hex::hex;
use crate::conversion::{Claim, ConversionOptions, Failure, Metadata, Reason, chain};
use crate::files::store;

/// A step of an attempt, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Copy,
    Fix,
    Verify,
    Digest,
    Seal,
}

impl Step {
    /// Every step, the first one first.
    pub const ALL: [Self; 5] = [Self::Copy, Self::Fix, Self::Verify, Self::Digest, Self::Seal];

    /// Name of the file that exists once the step is done.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Copy => COPIED_FILE,
            Self::Fix => FIXED_FILE,
            Self::Verify => VERIFIED_FILE,
            Self::Digest => DIGESTED_FILE,
            Self::Seal => METADATA_FILE,
        }
    }
}

/// Content of a marker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    /// Digest of what was claimed: names and stamps of the members.
    claim: String,
    options: ConversionOptions,
    /// What is known of the disks after this step.
    report: Metadata,
    /// The copies in the targets, where it is there that the disks are and they can be recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copies: Option<Vec<Identity>>,
}

/// The markers of one attempt. They lie in its folder, and publishing removes them with all that metadata.json does not
/// name.
#[derive(Debug)]
pub struct Markers<'a> {
    folder: &'a Path,
    id: &'a str,
    claim: String,
    contract_version: u32,
    options: &'a ConversionOptions,
    targets: Option<&'a Targets>,
    /// The step after which the process dies; only tests ask for that.
    dies_after: Option<Step>,
}

impl<'a> Markers<'a> {
    /// Markers in `folder` that are valid for this claim, these options and the copies in these targets only.
    #[must_use]
    pub fn new(
        folder: &'a Path,
        claim: &'a Claim,
        options: &'a ConversionOptions,
        targets: Option<&'a Targets>,
        dies_after: Option<Step>,
    ) -> Self {
        Self {
            folder,
            id: claim.id.as_str(),
            claim: digest(claim),
            contract_version: claim.contract_version,
            options,
            targets,
            dies_after,
        }
    }

    /// Makes the folder ready. An earlier run of this attempt may have left it, or an earlier attempt may have left a
    /// folder to go on with; if neither is usable, the folder is empty. Returns the last step that was done in it, with
    /// its report.
    ///
    /// # Errors
    /// The system's error in the work directory.
    pub fn open(&self, work: &Path) -> Result<Option<(Step, Metadata)>, Failure> {
        let kept = work.join(KEPT_DIR);
        let (own, earlier) = (self.last(self.folder), self.last(&kept));
        let made = if own.is_some() {
            Ok(())
        } else if earlier.is_some() {
            remove(self.folder).and_then(|()| fs::rename(&kept, self.folder))
        } else {
            remove(&kept).and_then(|()| remove(self.folder)).and_then(|()| fs::create_dir(self.folder))
        };
        made.map_err(|e| output_failure(self.folder, &e))?;
        Ok(own.or(earlier))
    }

    /// The last step that is done in `folder`, with its report. Its marker must be of this conversion, made by this
    /// version of the program for the same members and options, and every disk must be there.
    fn last(&self, folder: &Path) -> Option<(Step, Metadata)> {
        let steps = [Step::Digest, Step::Verify, Step::Fix, Step::Copy];
        steps.into_iter().find_map(|step| self.read(folder, step.file()).map(|report| (step, report)))
    }

    fn read(&self, folder: &Path, name: &str) -> Option<Metadata> {
        let read = store::read_json::<Marker>(folder, name, MAX_MARKER_BYTES).unwrap_or_else(|error| {
            tracing::info!(error = chain(&error), "an earlier attempt's marker is not used");
            None
        });
        let Marker { claim, options, report, copies } = read?;
        let is_ours = claim == self.claim
            && options == *self.options
            && report.id == self.id
            && report.contract_version == self.contract_version
            && report.tool_version == env!("CARGO_PKG_VERSION");
        let mut disks = report.disks.iter();
        let is_whole = !report.disks.is_empty()
            && match self.targets {
                None => disks.all(|disk| disk.target.is_none() && open_disk(folder, &disk.file).is_ok()),
                Some(targets) => {
                    (0..).zip(disks).all(|(n, disk)| n < targets.count() && disk.target == Some(targets.named(n)))
                        && targets.hold(copies.as_deref())
                }
            };
        (is_ours && is_whole).then_some(report)
    }

    /// Writes the marker of `step` and syncs it. The disks must be on stable storage before.
    ///
    /// # Errors
    /// The system's error in the folder.
    pub fn leave(&self, step: Step, report: &Metadata) -> Result<(), Failure> {
        if step == Step::Seal {
            write_synced(self.folder, step.file(), report)?;
        } else {
            // The disks' names are synced first: a marker never exists without them.
            sync_directory(self.folder)?;
            let marker = Marker {
                claim: self.claim.clone(),
                options: self.options.clone(),
                report: report.clone(),
                copies: self.targets.and_then(Targets::identities),
            };
            write_synced(self.folder, step.file(), &marker)?;
            if step == Step::Fix {
                // It was withdrawn, and says to others that there is a copy to keep.
                write_synced(self.folder, Step::Copy.file(), &marker)?;
            }
        }
        self.reached(step);
        Ok(())
    }

    /// Withdraws the copy's marker before its disks are changed in a way that can't be done again: whoever finds the
    /// folder until the next marker is left begins anew, from the source.
    ///
    /// # Errors
    /// The system's error in the folder.
    pub(super) fn withdraw_copy(&self) -> Result<(), Failure> {
        match fs::remove_file(self.folder.join(Step::Copy.file())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(output_failure(self.folder, &error)),
            _ => sync_directory(self.folder),
        }
    }

    /// Dies here, where a test asks for it.
    fn reached(&self, step: Step) {
        if cfg!(debug_assertions) && self.dies_after == Some(step) {
            let _ = kill_process(getpid(), Signal::KILL);
            // The first process of a container is spared its own signals.
            std::process::abort();
        }
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Opens a disk of the output for reading: a regular file that lies in `folder` itself.
///
/// # Errors
/// `OutputIO` with the system's error.
pub(super) fn open_disk(folder: &Path, name: &str) -> Result<File, Failure> {
    let opened = store::open_dir(folder).and_then(|dir| store::open_untrusted(dir, folder, name));
    opened.map_err(|e| Failure::new(Reason::OutputIO, chain(&e)))
}

/// Digest of the members of a claim, by which they are recognised.
fn digest(claim: &Claim) -> String {
    let json = serde_json::to_vec(&(&claim.id, &claim.primary, &claim.members)).expect("names and numbers serialise");
    hex(Sha256::digest(json))
}
