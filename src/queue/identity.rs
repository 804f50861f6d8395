// SPDX-License-Identifier: Apache-2.0
//! Which queue directory and which output directory belong together, so that neither is mistaken for one of another
//! pair, nor an empty mount point for one of them.
//!
//! Each of the two holds [`FILE`], with its own id and its partner's. They are made at the first use, before anything
//! else: first the proposals on both sides, then one rename after the other. The next start completes what a crash left
//! of that.
//!
//! ```text
//!  neither has one ──▶ proposals on both ──▶ output's renamed ──▶ queue's renamed: a pair
//!  one has one, or both have others' ──▶ refused, unless it is said that they are meant (adopted)
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::paths::Paths;
use crate::files::store::{self, StoreError};
use crate::files::volume;

/// Name of the identity in both directories: hidden, so that no scan takes it up.
pub const FILE: &str = ".hyper2kvm-volume";

/// What [`FILE`] will be.
const PROPOSAL: &str = ".hyper2kvm-volume.new";

/// Longest identity that is read, in bytes; ours have less than 200.
const MAX_BYTES: usize = 4 << 10;

/// Gives a random UUID at each reading (random(4)).
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

/// What a directory is to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Queue,
    Output,
}

/// Content of [`FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub role: Role,
    /// Random, one per directory.
    pub id: String,
    /// The id of the other directory of the pair.
    pub partner: String,
}

/// Why two directories are not accepted as a pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The other directory belongs to one that has an identity.
    #[error("{} has no {FILE}, which {} expects there: is its volume mounted?", .dir.display(), .partner.display())]
    Unmarked { dir: PathBuf, partner: PathBuf },
    /// Both belong to others.
    #[error("{} and {} do not belong together, as their {FILE} says: is another volume mounted?", .queue.display(), .output.display())]
    Strangers { queue: PathBuf, output: PathBuf },
}

/// Why it is not known whether two directories are a pair, or why they were not made one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot look at {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the identity of {}", .dir.display())]
    Read {
        dir: PathBuf,
        #[source]
        source: StoreError,
    },
    #[error("cannot write the identity of {}", .dir.display())]
    Write {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl IdentityError {
    /// The system's error behind it, where there is one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Refused(_) => None,
            Self::Look { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Read { source, .. } => match source {
                StoreError::Read { source, .. } | StoreError::Write { source, .. } => Some(source),
                StoreError::NotRegular(_) | StoreError::TooLong { .. } | StoreError::Malformed { .. } => None,
            },
        }
    }
}

/// A volume that is not where it was.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    #[error("the volume of {} is not there", .0.display())]
    Gone(PathBuf),
    /// It is there, with the same identity, as another mount: what is open of it lies on the old one.
    #[error("the volume of {} was mounted anew", .0.display())]
    Anew(PathBuf),
    #[error("cannot look at {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What was seen of one of the two directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    identity: Option<Identity>,
    proposal: Option<Identity>,
    /// Whether a version without identities worked here.
    is_used: bool,
}

/// What is to be done before two directories are worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan(Step);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// They are a pair.
    Keep { queue: Identity, output: Identity },
    /// Give the proposals that stand there their final names.
    Complete { queue: Identity, output: Identity },
    /// Make them a pair; where a directory has an id, it keeps it.
    Make { queue: Option<String>, output: Option<String> },
}

/// Two directories that belong together, as they were when they were taken into use.
#[derive(Clone, Debug)]
pub struct Volumes {
    queue: Known,
    output: Known,
}

#[derive(Clone, Debug)]
struct Known {
    path: PathBuf,
    identity: Identity,
    /// Device and inode.
    place: (u64, u64),
}

/// Looks at two directories, which need not exist, and decides what is to be done before they are used. Changes
/// nothing. `is_meant`: a person declared these two a pair, whatever they belonged to.
pub fn plan(queue: &Path, output: &Path, is_meant: bool) -> Result<Plan, IdentityError> {
    // Only a start of this product makes these, and every start does.
    let paths = Paths::new(queue, output);
    let seen = (see(queue, &paths.processing(), Role::Queue)?, see(output, &paths.work(), Role::Output)?);
    match decide(seen.0, seen.1, is_meant) {
        Ok(step) => Ok(Plan(step)),
        Err(Unfit::Unmarked(Role::Queue)) => {
            Err(Refusal::Unmarked { dir: queue.to_owned(), partner: output.to_owned() }.into())
        }
        Err(Unfit::Unmarked(Role::Output)) => {
            Err(Refusal::Unmarked { dir: output.to_owned(), partner: queue.to_owned() }.into())
        }
        Err(Unfit::Strangers) => Err(Refusal::Strangers { queue: queue.to_owned(), output: output.to_owned() }.into()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    /// This directory lacks what its partner expects.
    Unmarked(Role),
    Strangers,
}

fn decide(queue: Seen, output: Seen, is_meant: bool) -> Result<Step, Unfit> {
    let pairs = [
        (&queue.identity, &output.identity, true),
        (&queue.proposal, &output.identity, false),
        (&queue.identity, &output.proposal, false),
        (&queue.proposal, &output.proposal, false),
    ];
    for (a, b, is_final) in pairs {
        if let (Some(a), Some(b)) = (a, b)
            && is_pair(a, b)
        {
            let (queue, output) = (a.clone(), b.clone());
            return Ok(if is_final { Step::Keep { queue, output } } else { Step::Complete { queue, output } });
        }
    }
    let (of_queue, of_output) = (queue.identity.map(|known| known.id), output.identity.map(|known| known.id));
    let unfit = match (&of_queue, &of_output) {
        (Some(_), Some(_)) => Some(Unfit::Strangers),
        (Some(_), None) => Some(Unfit::Unmarked(Role::Output)),
        (None, Some(_)) => Some(Unfit::Unmarked(Role::Queue)),
        // A version without identities worked on one and has never seen the other.
        (None, None) if queue.is_used && !output.is_used => Some(Unfit::Unmarked(Role::Output)),
        (None, None) if output.is_used && !queue.is_used => Some(Unfit::Unmarked(Role::Queue)),
        (None, None) => None,
    };
    match unfit {
        Some(unfit) if !is_meant => Err(unfit),
        _ => Ok(Step::Make { queue: of_queue, output: of_output }),
    }
}

fn is_pair(queue: &Identity, output: &Identity) -> bool {
    (queue.role, output.role) == (Role::Queue, Role::Output)
        && (&queue.partner, &output.partner) == (&output.id, &queue.id)
}

impl Plan {
    /// Whether the plan makes a pair, or makes one anew.
    #[must_use]
    pub fn makes_a_pair(&self) -> bool {
        matches!(self.0, Step::Make { .. })
    }

    /// Carries the plan out; both directories must exist. Nothing else may be written to them before.
    pub fn carry_out(self, paths: &Paths) -> Result<Volumes, IdentityError> {
        let (queue, output) = match self.0 {
            Step::Keep { queue, output } => (queue, output),
            Step::Complete { queue, output } => {
                finish(paths.output(), &output)?;
                finish(paths.queue(), &queue)?;
                (queue, output)
            }
            Step::Make { queue, output } => {
                let (of_queue, of_output) = (id(queue, paths.queue())?, id(output, paths.output())?);
                let output = Identity { role: Role::Output, id: of_output.clone(), partner: of_queue.clone() };
                let queue = Identity { role: Role::Queue, id: of_queue, partner: of_output };
                propose(paths.queue(), &queue)?;
                propose(paths.output(), &output)?;
                finish(paths.output(), &output)?;
                finish(paths.queue(), &queue)?;
                (queue, output)
            }
        };
        Ok(Volumes { queue: Known::of(paths.queue(), queue)?, output: Known::of(paths.output(), output)? })
    }
}

impl Volumes {
    /// Whether both directories are where they were, and the same ones. Where one has the same identity and is another
    /// mount, it is [`Away::Anew`]. Looks at each of them once; reads nothing while they are the same.
    pub fn look(&self) -> Result<(), Away> {
        self.queue.look()?;
        self.output.look()
    }
}

impl Known {
    fn of(path: &Path, identity: Identity) -> Result<Self, IdentityError> {
        let place = place(path).map_err(|source| IdentityError::Look { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), identity, place })
    }

    fn look(&self) -> Result<(), Away> {
        let look = |source| Away::Look { path: self.path.clone(), source };
        match place(&self.path) {
            Ok(place) if place == self.place => Ok(()),
            Ok(_) => match read(&self.path, FILE) {
                Ok(Some(found)) if found == self.identity => Err(Away::Anew(self.path.clone())),
                Err(StoreError::Read { source, .. }) => Err(look(source)),
                Ok(_) | Err(_) => Err(Away::Gone(self.path.clone())),
            },
            Err(error) if is_absent(&error) => Err(Away::Gone(self.path.clone())),
            Err(error) => Err(look(error)),
        }
    }
}

/// Whether a directory is a queue in use, as far as can be seen.
pub(super) fn is_queue(dir: &Path) -> bool {
    read(dir, FILE).is_ok_and(|found| found.is_some_and(|found| found.role == Role::Queue))
}

fn place(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn see(dir: &Path, mark_of_use: &Path, role: Role) -> Result<Seen, IdentityError> {
    let found = |name: &str| match read(dir, name) {
        Ok(found) => Ok(found.filter(|found| found.role == role)),
        Err(StoreError::Read { source, .. }) if is_absent(&source) => Ok(None),
        Err(source) => Err(IdentityError::Read { dir: dir.to_owned(), source }),
    };
    let is_used = match fs::symlink_metadata(mark_of_use) {
        Ok(_) => true,
        Err(error) if is_absent(&error) => false,
        Err(source) => return Err(IdentityError::Look { path: mark_of_use.to_owned(), source }),
    };
    Ok(Seen { identity: found(FILE)?, proposal: found(PROPOSAL)?, is_used })
}

/// Reads an identity; `None` where there is no file, or one that we did not write.
fn read(dir: &Path, name: &str) -> Result<Option<Identity>, StoreError> {
    // The directory may be reached through a link: the directory that it leads to is the one that is used.
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(source) => return Err(StoreError::Read { path: dir.to_owned(), source }),
    };
    match store::read_json(&dir, name, MAX_BYTES) {
        Err(StoreError::Malformed { .. } | StoreError::TooLong { .. } | StoreError::NotRegular(_)) => Ok(None),
        read => read,
    }
}

fn id(kept: Option<String>, dir: &Path) -> Result<String, IdentityError> {
    let random = || fs::read_to_string(RANDOM).map(|text| text.trim().to_owned());
    kept.map_or_else(random, Ok).map_err(|source| IdentityError::Write { dir: dir.to_owned(), source })
}

fn propose(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    store::write_json(&dir.join(PROPOSAL), identity).map_err(|error| {
        let source = match error {
            StoreError::Write { source, .. } | StoreError::Read { source, .. } => source,
            other => io::Error::other(other),
        };
        IdentityError::Write { dir: dir.to_owned(), source }
    })
}

/// Gives the proposal its final name, unless that was done before.
fn finish(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let writing = |source| IdentityError::Write { dir: dir.to_owned(), source };
    match volume::rename(&dir.join(PROPOSAL), &dir.join(FILE)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let found = read(dir, FILE).map_err(|source| IdentityError::Read { dir: dir.to_owned(), source })?;
            if found.as_ref() != Some(identity) {
                return Err(writing(error));
            }
        }
        Err(error) => return Err(writing(error)),
    }
    volume::sync_dir(dir).map_err(writing)
}

#[cfg(test)]
mod tests;
