// SPDX-License-Identifier: Apache-2.0
//! Which files are one artifact, and which still wait for others of it.
//!
//! An OVF and a VMDK descriptor take in the files that they name, and the files that those name in turn, if their sizes
//! are as stated; a VMDK also what VMware keeps beside it. Every candidate stands in exactly one [`Verdict`]: as primary, as member, or as what its primary
//! waits for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::scan::{self, Entry, Name};
use crate::conversion::{Alone, ConversionId, Failure, Reason, Remedy};
use crate::disk::descriptor::{self, References, StatedSize};

mod artifact;
mod beside;
mod named;
mod owners;

pub use beside::{Disks, is_kept_beside};
pub use named::{may_be_descriptor, read_references};

use owners::Owners;

/// A file of the queue directory, with what the grouping needs to know. An empty file that has settled is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Whether it has stopped changing.
    pub is_stable: bool,
    /// Bytes, so far.
    pub size: u64,
    /// When it was first seen.
    pub first_sight: Duration,
    /// When it last changed (or was first seen).
    pub last_change: Duration,
    /// What it names ([`read_references`]); empty for everything but descriptors.
    pub references: Arc<References>,
    /// Primaries that it belongs to by its name, and not by their manifests.
    pub not_of: Vec<Name>,
}

/// Where a file is that a descriptor names and that isn't in the queue directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// An unfinished conversion claimed it, as its only member.
    Alone(ConversionId),
    /// A conversion of it alone is about to end; where the file goes will be known soon.
    Ending,
    /// A conversion of it alone has ended, and the file still lies where that left it.
    Ended(Box<TakenBack>),
    /// It was converted by itself and can't be taken back: the reason and what to do, for a person.
    Lost(String),
    /// A file of that name was converted by itself, but its size (in bytes) was not the stated one.
    Another(u64),
    /// A file of that name was converted by itself, but its digest was not the manifest's.
    Disproved,
}

/// The source of a conversion that has ended, as a member of a later artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// The file where it lies, under the name that it was dropped by.
    pub entry: Entry,
    pub alone: Alone,
}

/// What is to be done with an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All members are there and stable: the artifact is to be claimed. The primary comes first, the others in the
    /// order of their names. Members that were converted by themselves before come from where they lie.
    Ready { primary: Name, members: Vec<Name>, taken_back: Vec<TakenBack> },
    /// These of its members still change, or nobody looks at them yet.
    Settling { primary: Name, unsettled: Vec<Name> },
    /// These of its members are missing, and may come until then.
    Waiting { primary: Name, missing: Vec<String>, until: Duration },
    /// A member was claimed as an artifact of its own: that conversion gives it back, and the primary waits.
    Recall { primary: Name, member: String, id: ConversionId },
    /// It will never be whole: it is claimed as it is, and fails.
    Incomplete { primary: Name, members: Vec<Name>, failure: Failure },
}

/// Decides about every candidate among `files`, and passes each verdict to `decided`. `elsewhere` finds files of a name
/// and size, for a primary, that aren't in the queue directory; `now` and the times in `files` are of one monotonic clock.
pub fn group(
    files: &BTreeMap<Name, File>,
    elsewhere: impl Fn(&Name, &str, Option<StatedSize>) -> Option<Elsewhere>,
    now: Duration,
    companion_timeout: Duration,
    mut decided: impl FnMut(Verdict),
) {
    let owners = Owners::find(files, now, companion_timeout);
    for (name, file) in files.iter().filter(|(name, _)| scan::is_candidate_name(name) && !owners.is_member(name)) {
        if let Some(artifact) = owners.artifact(name) {
            artifact.judge(name, files, &elsewhere, now, companion_timeout, &mut decided);
        } else if descriptor::looks_like_extent(name) {
            decided(judge_extent(name, file, now, companion_timeout));
        } else if file.is_stable {
            decided(Verdict::Ready { primary: name.clone(), members: vec![name.clone()], taken_back: Vec::new() });
        } else {
            decided(Verdict::Settling { primary: name.clone(), unsettled: vec![name.clone()] });
        }
    }
}

/// Decides about an extent whose descriptor hasn't come.
fn judge_extent(name: &Name, file: &File, now: Duration, timeout: Duration) -> Verdict {
    let primary = name.clone();
    let until = file.last_change + timeout;
    if !file.is_stable {
        return Verdict::Settling { unsettled: vec![primary.clone()], primary };
    }
    if now < until {
        return Verdict::Waiting { primary, missing: Vec::new(), until };
    }
    let message = format!(
        "{name}: looks like an extent of a VMDK, and no descriptor that names it came within {} s: {}",
        timeout.as_secs(),
        descriptor::without_descriptor(name, file.size)
    );
    let remedy = descriptor::is_flat_extent(name).then_some(Remedy::BringDescriptor);
    let failure = Failure::new(Reason::MissingMember, message).with_remedy(remedy);
    Verdict::Incomplete { members: vec![primary.clone()], primary, failure }
}

fn is_ovf(name: &str) -> bool {
    scan::extension(name) == "ovf"
}

#[cfg(test)]
mod tests;
