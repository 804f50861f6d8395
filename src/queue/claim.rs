// SPDX-License-Identifier: Apache-2.0
//! Moving an artifact out of the queue directory into a claim, and giving it back.
//!
//! ```text
//!  queue ──claim.json written──▶ half-made ──members moved in──▶ claimed
//!    ▲                              │                              │
//!    └──── a member changed: all ◀──┘      given back: all ◀───────┘
//! ```
//!
//! claim.json is written first, so that a restart knows every member on its way. A directory without it is no claim.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::Access;

use crate::conversion::contract::{CLAIM_FILE, MAX_CLAIM_BYTES};
use crate::conversion::{Claim, ConversionId, Member, Stamp};
use crate::files::moves::{self, Method, MoveError};
use crate::files::names;
use crate::files::paths::{Paths, is_plain_name};
use crate::files::placement::{Placement, PlacementError, PlannedMove, Whereabouts};
use crate::files::recorded::Recorded;
use crate::files::store::{self, StoreError};
use crate::files::volume;

use super::folder;
use super::scan::{self, Entry};

/// Why a claim could not be made, read, given back or removed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("cannot store the record of claim {id}")]
    Record {
        id: ConversionId,
        #[source]
        source: StoreError,
    },
    #[error("cannot move the members of claim {id}")]
    Move {
        id: ConversionId,
        #[source]
        source: PlacementError,
    },
    /// Another artifact was claimed under this id: choose another one.
    #[error("claim {0} exists already")]
    Exists(ConversionId),
    #[error("cannot make or remove the directory of claim {id}")]
    Directory {
        id: ConversionId,
        #[source]
        source: MoveError,
    },
    /// It still holds these files; removing the claim would lose track of them.
    #[error("claim {id} still holds {}", .names.join(", "))]
    NotEmpty { id: ConversionId, names: Vec<String> },
    #[error("cannot look into {}", .path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ClaimError {
    /// The member that may not be moved out of its directory, with the system's error. `None` where the error is
    /// another one, or where no file may be moved out of that directory.
    #[must_use]
    pub fn denied(&self, paths: &Paths) -> Option<(&Path, &io::Error)> {
        let Self::Move { source: PlacementError::Move(error), .. } = self else { return None };
        let (MoveError::Move { from, source, .. } | MoveError::Unsupported { from, source }) = error else {
            return None;
        };
        let is_inward = !from.starts_with(paths.processing());
        let may_move_others =
            || from.parent().is_some_and(|dir| rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok());
        let is_denied = is_inward && source.kind() == io::ErrorKind::PermissionDenied && may_move_others();
        is_denied.then_some((from, source))
    }
}

/// How claiming an artifact ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Every member lies in the claim's directory, unchanged.
    Whole,
    /// These members changed or went before they could be moved. The others are back where they came from (or in
    /// `.errors/`, where their names were taken meanwhile), and there is no claim.
    Reversed { changed: Vec<String> },
}

/// What lies in `.processing/`.
#[derive(Debug, Default)]
pub struct Claims {
    /// Claims of this queue, by their ids.
    pub own: Vec<Claim>,
    /// Claims of another UID: once their pods are gone, they go back.
    pub foreign: Vec<Claim>,
    /// Directories that hold something and are no claim, with the reason. They are left alone.
    pub strays: Vec<(PathBuf, String)>,
}

/// Claims an artifact: writes claim.json, then moves the members. Safe to repeat from any point where it was cut short:
/// it completes a half-made claim, or reverses it where a member has changed.
pub fn take(paths: &Paths, claim: &Claim, method: Method) -> Result<Taken, ClaimError> {
    record(paths, claim)?;
    resume(paths, claim, method)
}

/// Writes claim.json, the first step of [`take`].
pub fn record(paths: &Paths, claim: &Claim) -> Result<(), ClaimError> {
    let recording = |source| ClaimError::Record { id: claim.id.clone(), source };
    match read(paths, &claim.id).map_err(recording)? {
        Some(found) if found == *claim => return Ok(()),
        Some(_) => return Err(ClaimError::Exists(claim.id.clone())),
        None => {}
    }
    let dir = paths.claim_dir(&claim.id);
    let making = |source| ClaimError::Directory { id: claim.id.clone(), source };
    volume::create_dir_all(&dir, 0o777).map_err(|source| making(MoveError::Make { path: dir, source }))?;
    store::write_json(&paths.claim_file(&claim.id), claim).map_err(recording)?;
    // The directory's own name may not be on the disk yet: until it is, no member is moved.
    moves::sync_dir(&paths.processing()).map_err(making)
}

/// Completes or reverses a claim that has its claim.json: the second step of [`take`], and what a restart does.
pub fn resume(paths: &Paths, claim: &Claim, method: Method) -> Result<Taken, ClaimError> {
    let moving = |source| ClaimError::Move { id: claim.id.clone(), source };
    let inward = Recorded::found(inward(paths, claim));
    let dir = paths.claim_dir(&claim.id);
    let is_changed =
        |member: &&Member| !is_unchanged(&came_from(paths, claim, member), &dir.join(&member.name), member);
    let mut changed: Vec<_> = claim.members.iter().filter(is_changed).map(|member| member.name.clone()).collect();
    if changed.is_empty() {
        match inward.carry_out(method) {
            Ok(()) => match added(&dir, claim) {
                Ok(added) if added.is_empty() => return Ok(Taken::Whole),
                Ok(added) => changed = added,
                Err(source) => return Err(ClaimError::Look { path: dir, source }),
            },
            // The member went between the look and the move, or its name in the claim is taken.
            Err(PlacementError::Gone(_) | PlacementError::Taken(_)) => {}
            Err(e) => return Err(moving(e)),
        }
    }
    reverse(paths, claim, method)?;
    Ok(Taken::Reversed { changed })
}

/// Puts back what [`take`] has moved, and removes the claim.
fn reverse(paths: &Paths, claim: &Claim, method: Method) -> Result<(), ClaimError> {
    put_back(paths, claim, method)?;
    remove(paths, &claim.id)
}

/// Puts back what [`take`] has moved; the claim stands.
pub fn put_back(paths: &Paths, claim: &Claim, method: Method) -> Result<(), ClaimError> {
    let moving = |source| ClaimError::Move { id: claim.id.clone(), source };
    // Each member is put back by itself: an incomplete artifact need not stay together.
    for planned in inward(paths, claim).moves {
        if matches!(planned.whereabouts(), Whereabouts::AtSource | Whereabouts::Nowhere) {
            continue;
        }
        let alone =
            if planned.is_folder { claim.clone() } else { Claim { members: vec![planned.member], ..claim.clone() } };
        let (mut placement, _) = plan_return(paths, &alone).map_err(moving)?;
        // claim.json stays until all members are back: a restart looks where each member is, and moves the rest.
        while let Err(error) = Recorded::found(placement.clone()).carry_out(method) {
            if !matches!(error, PlacementError::Taken(_)) {
                return Err(moving(error));
            }
            placement = placement.again(&paths.errors(), claim.stem()).map_err(moving)?;
        }
    }
    Ok(())
}

/// Whether every member lies where it was dropped, and none in the claim.
#[must_use]
pub fn is_outside(paths: &Paths, claim: &Claim) -> bool {
    inward(paths, claim).moves.iter().all(|planned| {
        let is_same = if planned.is_folder {
            planned.is_at(&planned.from)
        } else {
            fs::symlink_metadata(&planned.from).is_ok_and(|found| is_same(&found, &planned.member))
        };
        is_same && matches!(moves::is_taken(&planned.to), Ok(false))
    })
}

/// Where members go that are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnTo {
    /// Under their names, where they came from.
    Origin,
    /// Into `.errors/`, because a name was taken where they came from.
    Errors,
}

/// Chooses where the members of a whole claim go when it is given back. Record it, carry it out, then [`remove`].
pub fn plan_return(paths: &Paths, claim: &Claim) -> Result<(Placement, ReturnTo), PlacementError> {
    let from = paths.claim_dir(&claim.id);
    match Placement::exactly(claim, &from, &origin(paths, claim), |member| came_from(paths, claim, member))? {
        Some(placement) => Ok((placement, ReturnTo::Origin)),
        None => Ok((Placement::choose(claim, &from, &paths.errors())?, ReturnTo::Errors)),
    }
}

/// Members in `dir` (usually the claim's directory) that are missing, or whose size, modification time or inode is not
/// what the claim says; and images that a claimed folder holds now and that are no members.
pub fn changed(dir: &Path, claim: &Claim) -> io::Result<Vec<String>> {
    let mut changed = Vec::new();
    for member in &claim.members {
        match fs::symlink_metadata(dir.join(&member.name)) {
            Ok(found) if is_same(&found, member) => {}
            Ok(_) => changed.push(member.name.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => changed.push(member.name.clone()),
            Err(e) => return Err(e),
        }
    }
    changed.extend(added(dir, claim)?);
    Ok(changed)
}

/// Images in the folder of this claim, which lies in `dir`, that came after its members were looked at: whoever copies a
/// folder may have it open while it is moved.
fn added(dir: &Path, claim: &Claim) -> io::Result<Vec<String>> {
    let Some(folder) = &claim.folder else { return Ok(Vec::new()) };
    match folder::list(dir, &folder.name) {
        Ok(content) => {
            let is_new = |entry: &&Entry| {
                scan::is_candidate_name(&entry.name)
                    && entry.size > 0
                    && claim.members.iter().all(|member| member.name != *entry.name)
            };
            Ok(content.files.iter().filter(is_new).map(|entry| entry.name.as_ref().to_owned()).collect())
        }
        // Then its members are gone too.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Reads the record of one claim; `None` where there is none.
pub fn read(paths: &Paths, id: &ConversionId) -> Result<Option<Claim>, StoreError> {
    store::read_json(&paths.claim_dir(id), CLAIM_FILE, MAX_CLAIM_BYTES)
}

/// Lists what lies in `.processing/`. Directories that a crash left before their claim.json are removed on the way,
/// if they are empty.
pub fn list(paths: &Paths, queue_uid: &str) -> Result<Claims, ClaimError> {
    let processing = paths.processing();
    let look = |source| ClaimError::Look { path: processing.clone(), source };
    let mut claims = Claims::default();
    for entry in fs::read_dir(&processing).map_err(look)? {
        let entry = entry.map_err(look)?;
        let name = entry.file_name();
        // The lock and its owner file.
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let id = name.to_str().and_then(|name| name.parse::<ConversionId>().ok());
        let Some(id) = id.filter(|_| entry.file_type().is_ok_and(|t| t.is_dir())) else {
            claims.strays.push((entry.path(), "is no directory of a claim".to_owned()));
            continue;
        };
        match read(paths, &id) {
            Ok(Some(claim)) => match fault(&claim, &id) {
                Some(fault) => claims.strays.push((entry.path(), fault)),
                None if claim.queue_uid == queue_uid => claims.own.push(claim),
                None => claims.foreign.push(claim),
            },
            Ok(None) => match remove(paths, &id) {
                Ok(()) => {}
                Err(e @ ClaimError::NotEmpty { .. }) => claims.strays.push((entry.path(), e.to_string())),
                Err(e) => return Err(e),
            },
            Err(e) => claims.strays.push((entry.path(), e.to_string())),
        }
    }
    claims.own.sort_by(|a, b| a.id.cmp(&b.id));
    claims.foreign.sort_by(|a, b| a.id.cmp(&b.id));
    claims.strays.sort();
    Ok(claims)
}

/// Removes a claim's record and directory, once its members have left. Gone already is fine.
pub fn remove(paths: &Paths, id: &ConversionId) -> Result<(), ClaimError> {
    let dir = paths.claim_dir(id);
    let look = |source| ClaimError::Look { path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(look(e)),
    };
    let mut left = Vec::new();
    for entry in entries {
        let name = entry.map_err(look)?.file_name().to_string_lossy().into_owned();
        if name != CLAIM_FILE && name != names::temporary(CLAIM_FILE) {
            left.push(name);
        }
    }
    if !left.is_empty() {
        left.sort();
        return Err(ClaimError::NotEmpty { id: id.clone(), names: left });
    }
    for name in [names::temporary(CLAIM_FILE), CLAIM_FILE.to_owned()] {
        match volume::remove_file(&dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(look(e)),
            _ => {}
        }
    }
    volume::remove_dir(&dir).map_err(look)?;
    moves::sync_dir(&paths.processing()).map_err(|source| ClaimError::Directory { id: id.clone(), source })
}

/// The directory that the members came from, except those that were converted alone before.
#[must_use]
pub fn origin(paths: &Paths, claim: &Claim) -> PathBuf {
    if claim.origin.is_empty() { paths.queue().to_owned() } else { paths.queue().join(&claim.origin) }
}

/// Where a member lay when it was claimed. It goes back there when it is given back.
fn came_from(paths: &Paths, claim: &Claim, member: &Member) -> PathBuf {
    match &member.alone {
        Some(alone) => paths.queue().join(&alone.location),
        None => origin(paths, claim).join(&member.name),
    }
}

fn inward(paths: &Paths, claim: &Claim) -> Placement {
    let dir = paths.claim_dir(&claim.id);
    let moves = claim.moved().iter().map(|m| PlannedMove {
        from: came_from(paths, claim, m),
        to: dir.join(&m.name),
        member: m.clone(),
        is_folder: claim.folder.is_some(),
    });
    Placement { moves: moves.collect(), dir }
}

/// Whether the member lies under one of its two names, unchanged since it was claimed.
fn is_unchanged(from: &Path, to: &Path, member: &Member) -> bool {
    [from, to].iter().any(|path| fs::symlink_metadata(path).is_ok_and(|found| is_same(&found, member)))
}

fn is_same(found: &fs::Metadata, member: &Member) -> bool {
    found.is_file() && Stamp::of(found) == member.stamp()
}

/// What makes a record invalid, if anything: we never write one like that.
fn fault(claim: &Claim, id: &ConversionId) -> Option<String> {
    let names: std::collections::BTreeSet<_> = claim.members.iter().map(|m| m.name.as_str()).collect();
    let folder = claim.folder.as_ref().map(|folder| folder.name.as_str());
    let is_sound = |name: &&str| match folder {
        Some(folder) => {
            name.split('/').all(is_plain_name) && name.strip_prefix(folder).is_some_and(|n| n.starts_with('/'))
        }
        None => is_plain_name(name),
    };
    let is_named = |name: &str| is_plain_name(name) && name != CLAIM_FILE;
    let locations = claim.members.iter().filter_map(|m| m.alone.as_ref()).map(|alone| &alone.location);
    let mut below = locations.chain([&claim.origin]).flat_map(|path| Path::new(path).components());
    let is_below = below.all(|c| matches!(c, Component::Normal(_)));
    let is_date = claim.date.len() == 10 && claim.date.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let fault = if claim.id != *id {
        "its claim.json is another claim's"
    } else if claim.members.first().is_none_or(|m| m.name != claim.primary) || names.len() != claim.members.len() {
        "its claim.json does not name the primary first and every member once"
    } else if !names.iter().all(is_sound)
        || !claim.moved().iter().all(|moved| is_named(&moved.name))
        || !is_below
        || !is_date
    {
        "its claim.json names something outside the queue directory"
    } else {
        return None;
    };
    Some(fault.to_owned())
}

#[cfg(test)]
pub(super) mod tests;
