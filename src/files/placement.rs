// SPDX-License-Identifier: Apache-2.0
//! Where the members of an artifact go: chosen, recorded by the caller, then carried out. Each of these steps is safe
//! to repeat.
//!
//! A single file takes the first free name of `vm.vmdk`, `vm-1.vmdk`, …. The members of a group keep their names; if
//! one of them is taken, the whole group goes into the first free directory of `vm-1/`, `vm-2/`, …. A folder is moved as a
//! whole, and takes the first free name of `vm`, `vm-1`, ….

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::moves::{self, Method, MoveError, create_dir, is_same_file, is_taken};
use super::names;
use super::recorded::Recorded;
use crate::conversion::{Claim, Member, Stamp};

/// How many names are tried before we call it a fault.
const MAX_SUFFIX: u32 = 100_000;

/// One member on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    pub from: PathBuf,
    pub to: PathBuf,
    /// The member as it was claimed, by which it is recognised after a crash.
    pub member: Member,
    /// Whether it is a folder with all that it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_folder: bool,
}

/// Where every member of an artifact goes, the primary first. The ledger's row holds it while it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Directory that all members go to, except those that go back to where else they came from.
    pub dir: PathBuf,
    pub moves: Vec<PlannedMove>,
}

/// Why a placement was not chosen or not carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// Somebody took the name since it was chosen: choose again with [`Placement::again`].
    #[error("{} was taken meanwhile", .0.display())]
    Taken(PathBuf),
    /// These members are neither where they were nor where they go; the others were moved.
    #[error("{} is gone", .0.join(", "))]
    Gone(Vec<String>),
    /// No name is free.
    #[error("no name is free for {name} in {}", .dir.display())]
    NoName { dir: PathBuf, name: String },
    #[error("cannot look at {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot move the members of an artifact")]
    Move(#[from] MoveError),
}

/// Where a member is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    AtSource,
    AtTarget,
    /// One file under both names: a move by link that was cut short.
    AtBoth,
    Nowhere,
}

impl Placement {
    /// Chooses free names in `dir` for the members of `claim`, which lie in `source`.
    pub fn choose(claim: &Claim, source: &Path, dir: &Path) -> Result<Self, PlacementError> {
        let found = claim.moved().iter().map(|m| (source.join(&m.name), m.clone()));
        choose(&found.collect::<Vec<_>>(), dir, claim.stem(), claim.folder.is_some())
    }

    /// The same names in `dir` itself, without a suffix; `None` where one is taken.
    pub fn original(claim: &Claim, source: &Path, dir: &Path) -> Result<Option<Self>, PlacementError> {
        Self::exactly(claim, source, dir, |member| dir.join(&member.name))
    }

    /// Each member to the path that `place` gives it, most of them in `dir`; `None` where one is taken.
    pub fn exactly(
        claim: &Claim,
        source: &Path,
        dir: &Path,
        place: impl Fn(&Member) -> PathBuf,
    ) -> Result<Option<Self>, PlacementError> {
        let is_folder = claim.folder.is_some();
        let moves: Vec<_> = claim
            .moved()
            .iter()
            .map(|m| PlannedMove { from: source.join(&m.name), to: place(m), member: m.clone(), is_folder })
            .collect();
        for planned in &moves {
            if taken(&planned.to)? && planned.whereabouts() == Whereabouts::AtSource {
                return Ok(None);
            }
        }
        Ok(Some(Self { dir: dir.to_owned(), moves }))
    }

    /// The way back: from the targets of this placement to the original names in `dir`.
    #[must_use]
    pub fn reversed(&self, dir: &Path) -> Self {
        let moves = self.moves.iter().map(|planned| PlannedMove {
            from: planned.to.clone(),
            to: dir.join(&planned.member.name),
            ..planned.clone()
        });
        Self { dir: dir.to_owned(), moves: moves.collect() }
    }

    /// Chooses again below `parent` after a name was taken: members that had arrived already move on from where they
    /// are.
    pub fn again(&self, parent: &Path, stem: &str) -> Result<Self, PlacementError> {
        let found = self.moves.iter().map(|planned| {
            let arrived = matches!(planned.whereabouts(), Whereabouts::AtTarget);
            (if arrived { planned.to.clone() } else { planned.from.clone() }, planned.member.clone())
        });
        choose(&found.collect::<Vec<_>>(), parent, stem, self.moves.iter().any(|planned| planned.is_folder))
    }

    /// Directories that members go to.
    fn targets(&self) -> BTreeSet<&Path> {
        let parents = self.moves.iter().filter_map(|planned| planned.to.parent());
        parents.chain([self.dir.as_path()]).collect()
    }

    fn move_members(&self, method: Method) -> Result<(), PlacementError> {
        let mut gone = Vec::new();
        for planned in &self.moves {
            match planned.carry_out(method) {
                Ok(()) => {}
                Err(MoveError::Taken(path)) => return Err(PlacementError::Taken(path)),
                Err(MoveError::Gone(_)) => gone.push(planned.member.name.clone()),
                Err(e) => return Err(e.into()),
            }
        }
        if gone.is_empty() { Ok(()) } else { Err(PlacementError::Gone(gone)) }
    }

    /// Syncs each directory once, those of the new names first: a crash in between may leave a member two names, never
    /// none.
    fn sync(&self) -> Result<(), PlacementError> {
        let targets = self.targets();
        for dir in &targets {
            moves::sync_dir(dir)?;
        }
        let left: BTreeSet<&Path> = self.moves.iter().filter_map(|planned| planned.from.parent()).collect();
        for dir in left.difference(&targets) {
            match moves::sync_dir(dir) {
                // An earlier run had moved all of them, and removed the directory.
                Err(e) if e.io().is_some_and(|source| source.kind() == io::ErrorKind::NotFound) => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    /// Where each file goes of an artifact that is placed as a whole, with the member that it is.
    #[must_use]
    pub fn files<'a>(&'a self, claim: &'a Claim) -> Vec<(PathBuf, &'a Member)> {
        let of_folder = |planned: &'a PlannedMove| {
            claim.members.iter().map(|member| (planned.to.join(claim.within(member)), member)).collect::<Vec<_>>()
        };
        let of = |planned: &'a PlannedMove| {
            if planned.is_folder { of_folder(planned) } else { vec![(planned.to.clone(), &planned.member)] }
        };
        self.moves.iter().flat_map(of).collect()
    }

    /// Where the primary goes.
    #[must_use]
    pub fn primary(&self) -> &Path {
        self.moves.first().map_or(&self.dir, |planned| &planned.to)
    }
}

impl Recorded<Placement> {
    /// Moves every member that has not arrived, and brings the moves to disk. Repeating it after a crash, or after
    /// success, is safe.
    pub fn carry_out(&self, method: Method) -> Result<(), PlacementError> {
        for dir in self.targets() {
            create_dir(dir)?;
        }
        let moved = self.move_members(method);
        // Also after an error halfway: what is recorded next relies on where each member is.
        self.sync()?;
        moved
    }
}

impl PlannedMove {
    /// Where the member is now.
    #[must_use]
    pub fn whereabouts(&self) -> Whereabouts {
        match (self.is_at(&self.from), self.is_at(&self.to)) {
            (true, true) if is_same_file(&self.from, &self.to) => Whereabouts::AtBoth,
            (true, _) => Whereabouts::AtSource,
            (false, true) => Whereabouts::AtTarget,
            (false, false) => Whereabouts::Nowhere,
        }
    }

    /// Whether it lies there: for a folder, a directory with its inode or, because some file systems hand out new ones,
    /// with its modification time.
    #[must_use]
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        if !self.is_folder {
            return is_member(path, &self.member);
        }
        let is_it = |found: fs::Metadata| {
            let stamp = Stamp::of(&found);
            found.is_dir() && (stamp.inode == self.member.inode || stamp.mtime_ns == self.member.mtime_ns)
        };
        fs::symlink_metadata(path).is_ok_and(is_it)
    }

    fn carry_out(&self, method: Method) -> Result<(), MoveError> {
        match self.whereabouts() {
            Whereabouts::AtSource if self.is_folder => moves::rename_dir(&self.from, &self.to, method),
            Whereabouts::AtTarget => Ok(()),
            Whereabouts::Nowhere => Err(MoveError::Gone(self.from.clone())),
            Whereabouts::AtSource => moves::rename_file(&self.from, &self.to, method),
            // renameat2 would find the target taken; link and unlink finish what they began.
            Whereabouts::AtBoth => moves::rename_file(&self.from, &self.to, Method::Fallback),
        }
    }
}

/// Whether `path` is this member: it has the same inode, or, because some file systems hand out new ones, the same size
/// and modification time.
#[must_use]
pub(crate) fn is_member(path: &Path, member: &Member) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        let same_inode = found.ino() == member.inode;
        let mtime_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        found.is_file() && (same_inode || (found.len() == member.size_bytes && mtime_ns == member.mtime_ns))
    })
}

fn choose(found: &[(PathBuf, Member)], dir: &Path, stem: &str, is_folder: bool) -> Result<Placement, PlacementError> {
    let is_single = found.len() == 1;
    for k in 0..MAX_SUFFIX {
        let target = if is_single || k == 0 { dir.to_owned() } else { dir.join(names::suffixed_dir(stem, k)) };
        if target != dir && taken(&target)? {
            continue;
        }
        let named = |name: &str| match (is_folder, is_single) {
            (true, _) => names::suffixed_dir(name, k),
            (false, true) => names::suffixed_file(name, k),
            (false, false) => name.to_owned(),
        };
        let planned = |(from, m): &(PathBuf, Member)| PlannedMove {
            from: from.clone(),
            to: target.join(named(&m.name)),
            member: m.clone(),
            is_folder,
        };
        let moves: Vec<_> = found.iter().map(planned).collect();
        let mut free = true;
        for planned in &moves {
            free &= !taken(&planned.to)?;
        }
        if free {
            return Ok(Placement { dir: target, moves });
        }
    }
    Err(PlacementError::NoName { dir: dir.to_owned(), name: stem.to_owned() })
}

fn taken(path: &Path) -> Result<bool, PlacementError> {
    is_taken(path).map_err(|source| PlacementError::Look { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
