// SPDX-License-Identifier: Apache-2.0
//! What lies in the queue directory: looked at, settled, and grouped into artifacts that may be claimed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::conversion::{ConversionId, Failure, Member, Stamp};
use crate::disk::descriptor::{References, StatedSize};
use crate::ledger::LeftSource;
use crate::queue::arrival::Patience;
use crate::queue::companions::{self, Elsewhere, TakenBack};
use crate::queue::scan::{self, Entry, Name};
use crate::queue::settle::Settling;
use crate::queue::writers::Writers;

use super::arrivals::Arrivals;
use super::denied::Denied;
use super::events::Events;
use super::folders::Folders;
use super::ignored::Ignored;
use super::world::World;

mod artifact;
mod groups;
mod looks;

pub(super) use artifact::{Artifact, OfFolder, State};

/// Shortest time between two groupings: a thousand files that become stable at once are grouped together.
const REGROUP: Duration = Duration::from_millis(50);

/// An artifact as it is kept while it waits: there may be ten thousand of them.
#[derive(Debug)]
struct Ready {
    primary: Name,
    /// The other members.
    companions: Vec<Name>,
    taken_back: Vec<TakenBack>,
    failure: Option<Box<Failure>>,
    folder: Option<Box<OfFolder>>,
}

/// A file in the directory.
#[derive(Debug)]
struct Seen {
    entry: Entry,
    /// Whether it was logged as queued.
    is_announced: bool,
    /// For a file that was there at the start: how long it had not changed when it was first seen.
    age: Duration,
}

/// How long an intake waits for each thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Time between two looks at a file that is to settle.
    pub look_interval: Duration,
    /// How long a file may change before a warning.
    pub stable_timeout: Duration,
    /// How long members that a descriptor names, or the missing end of a file, are waited for.
    pub companion_timeout: Duration,
    /// How long a file must be quiet where neither its writer nor its format decides.
    pub quiet_period: Duration,
}

/// A conversion that is to give its only member back, because this descriptor names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recall {
    pub primary: Name,
    pub member: String,
    pub id: ConversionId,
}

/// What is known of the queue directory.
#[derive(Debug)]
pub(super) struct Intake {
    directory: PathBuf,
    companion_timeout: Duration,
    world: World,
    /// Time between two looks at a file that is to settle.
    look_interval: Duration,
    settling: Settling,
    arrivals: Arrivals,
    folders: Folders,
    entries: BTreeMap<Name, Seen>,
    /// What each descriptor names, with the descriptor's state when it was read.
    references: HashMap<Name, (Stamp, Arc<References>)>,
    /// The references of every other file: none.
    no_references: Arc<References>,
    ignored: Ignored,
    left: HashMap<String, LeftSource>,
    denied: Denied,
    ready: Vec<Ready>,
    /// Descriptors and extents that wait for files which may never come, with what is missing.
    waiting: BTreeMap<Name, Vec<String>>,
    recalls: Vec<Recall>,
    /// Members that manifests have disproved, each with its primary.
    disproved: HashMap<Stamp, Vec<Name>>,
    /// Whether the groups must be made again.
    is_dirty: bool,
    next_scan: Duration,
    /// The next listing is not before then, whatever events say.
    soonest_scan: Duration,
    /// When the groups may change because time has passed, or may be made again.
    next_group: Option<Duration>,
    last_group: Duration,
    /// Why the last scan failed.
    scan_failed: Option<String>,
    /// Whether the directory was listed since the start.
    has_scanned: bool,
}

impl Intake {
    pub(super) fn new(
        directory: PathBuf,
        pace: Pace,
        (writers, events): (Writers, Events),
        left: Vec<LeftSource>,
        world: World,
    ) -> Self {
        let patience = Patience { quiet_period: pace.quiet_period, rest: pace.companion_timeout };
        Self {
            arrivals: Arrivals::new(directory.clone(), writers, (patience, pace.look_interval), &world),
            directory,
            companion_timeout: pace.companion_timeout,
            world,
            look_interval: pace.look_interval,
            folders: Folders::new(events),
            settling: Settling::new(pace.look_interval, pace.stable_timeout),
            entries: BTreeMap::new(),
            references: HashMap::new(),
            no_references: Arc::default(),
            ignored: Ignored::default(),
            left: left.into_iter().map(|source| (source.path.clone(), source)).collect(),
            denied: Denied::default(),
            ready: Vec::new(),
            waiting: BTreeMap::new(),
            recalls: Vec::new(),
            disproved: HashMap::new(),
            is_dirty: true,
            next_scan: Duration::ZERO,
            soonest_scan: Duration::ZERO,
            next_group: None,
            last_group: Duration::ZERO,
            scan_failed: None,
            has_scanned: false,
        }
    }

    /// Sets other times from now on; a file that is settling is looked at as often as before.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.companion_timeout = pace.companion_timeout;
        self.settling.set_timeout(pace.stable_timeout);
        self.arrivals.set_patience(Patience { quiet_period: pace.quiet_period, rest: pace.companion_timeout });
    }

    /// Receives the name that an event carries.
    pub(super) fn hint(&mut self, name: &str, now: Duration) {
        // Its writer may have closed it, which does not change the file.
        let is_waiting = self.arrivals.is_waiting(name);
        self.is_dirty |= is_waiting;
        if self.settling.hint(name, now) && !is_waiting {
            return;
        }
        if self.folders.get(name).is_some() || scan::folder_of(name).is_some() && !self.entries.contains_key(name) {
            self.scan_soon();
        } else {
            self.look_at(name, now);
        }
    }

    /// Something came into a folder, or left it.
    fn scan_soon(&mut self) {
        self.next_scan = self.next_scan.min(self.soonest_scan);
    }

    /// Looks at what is due.
    pub(super) fn look(&mut self, now: Duration) {
        if now >= self.next_scan {
            self.scan(now);
        }
        for name in self.settling.take_due(now) {
            self.look_at(&name, now);
        }
    }

    /// When something is due next.
    pub(super) fn wake(&self) -> Duration {
        let group = if self.is_dirty { Some(self.last_group + REGROUP) } else { self.next_group };
        [self.settling.next_look(), group].into_iter().flatten().fold(self.next_scan, Duration::min)
    }

    /// Makes the groups again if something changed. `elsewhere` finds members that aren't in the directory.
    pub(super) fn group(
        &mut self,
        elsewhere: impl Fn(&Name, &str, Option<StatedSize>) -> Option<Elsewhere>,
        now: Duration,
    ) {
        let due = self.next_group.is_some_and(|at| at <= now);
        if !(self.is_dirty && now >= self.last_group + REGROUP || due) {
            return;
        }
        self.is_dirty = false;
        self.last_group = now;
        self.next_group = None;
        let (files, folders) = self.files(now);
        self.ready.clear();
        self.recalls.clear();
        let timeout = self.companion_timeout;
        let before = std::mem::take(&mut self.waiting);
        companions::group(&files, elsewhere, now, timeout, |verdict| self.take_in(verdict, &before, now));
        self.group_folders(folders, now);
        let settling = &self.settling;
        self.ready.sort_by_key(|artifact| settling.first_sight(&artifact.primary));
    }

    /// Primaries of the artifacts that may be claimed, the first seen first.
    pub(super) fn ready(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.ready.iter().map(|ready| &ready.primary)
    }

    /// Whether the directory may hold this name, stable or not.
    pub(super) fn may_hold(&self, name: &str) -> bool {
        self.scan_failed.is_some() || self.entries.contains_key(name)
    }

    /// One of [`Intake::ready`], by its index there.
    pub(super) fn primary_at(&self, index: usize) -> Option<&Name> {
        self.ready.get(index).map(|ready| &ready.primary)
    }

    /// The artifact of [`Intake::primary_at`].
    pub(super) fn ready_at(&self, index: usize) -> Option<Artifact> {
        let Ready { primary, companions, taken_back, failure, folder } = self.ready.get(index)?;
        let names = std::iter::once(primary).chain(companions);
        let members: Vec<_> = names.filter_map(|name| self.entries.get(name)).map(|seen| seen.entry.clone()).collect();
        let of_members = members.iter().filter_map(|member| self.arrivals.witness(&member.name)).max();
        let complete_by = of_members.max(folder.as_ref().map(|folder| folder.witness));
        let (primary, taken_back, folder) = (primary.clone(), taken_back.clone(), folder.as_deref().cloned());
        Some(Artifact { primary, members, taken_back, failure: failure.as_deref().cloned(), complete_by, folder })
    }

    /// When the first of its members was seen, since it last stood still.
    pub(super) fn first_sight(&self, artifact: &Artifact) -> Option<Duration> {
        artifact.members.iter().filter_map(|member| self.settling.first_sight(&member.name)).min()
    }

    /// Conversions that are to give their member back.
    pub(super) fn recalls(&mut self) -> Vec<Recall> {
        std::mem::take(&mut self.recalls)
    }

    /// Entries that are never taken.
    pub(super) fn ignored(&self) -> usize {
        self.ignored.count()
    }

    /// Files that are seen and wait to be whole: for their end, or for the files that they name.
    pub(super) fn incomplete(&self) -> usize {
        self.unsettled() + self.waiting.keys().filter(|name| !self.arrivals.is_waiting(name)).count()
    }

    /// Files that are seen and not complete.
    fn unsettled(&self) -> usize {
        self.settling.unsettled() + self.arrivals.waiting() + self.folders.resting
    }

    /// Whether everything that lies there is stable and grouped.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.is_dirty && self.scan_failed.is_none() && self.unsettled() == 0
    }

    /// Forgets an artifact that was claimed by its name, for somebody who asked for it.
    pub(super) fn requested(&mut self, primary: &str, name: &str, members: &[Entry]) {
        for member in members {
            self.drop_entry(&member.name);
        }
        self.drop_folder(name);
        self.ready.retain(|other| *other.primary != *primary);
    }

    /// Forgets an artifact that was moved out of the directory.
    pub(super) fn claimed(&mut self, artifact: &Artifact) {
        match &artifact.folder {
            Some(folder) => self.drop_folder(&folder.entry.name),
            None => artifact.members.iter().for_each(|member| self.drop_entry(&member.name)),
        }
        self.ready.retain(|other| other.primary != artifact.primary);
    }

    /// The artifact changed while it was being claimed: its members settle anew.
    pub(super) fn disturbed(&mut self, artifact: &Artifact, now: Duration) {
        self.claimed(artifact);
        self.is_dirty = true;
        if artifact.folder.is_some() {
            return self.scan_soon();
        }
        for member in &artifact.members {
            self.look_at(&member.name, now);
        }
    }

    /// These sources stay where they are, converted.
    pub(super) fn leave(&mut self, left: &[LeftSource]) {
        self.left.extend(left.iter().map(|source| (source.path.clone(), source.clone())));
        self.is_dirty = true;
    }

    /// Takes up those of these files that were converted and stayed where they are. `false` if there is none.
    pub(super) fn take_up(&mut self, names: &[&str], now: Duration) -> bool {
        let mut is_any = false;
        for name in names {
            if self.left.remove(*name).is_some() {
                self.look_at(name, now);
                is_any |= self.entries.contains_key(*name);
            }
        }
        is_any
    }

    /// Leaves an artifact alone that may not be moved.
    pub(super) fn deny(&mut self, primary: &Name, members: &[Entry]) {
        self.denied.hold(&self.directory, primary, members);
        for member in members {
            self.drop_entry(&member.name);
            self.drop_folder(&member.name);
        }
    }

    /// A manifest says that this member is not the primary's. Returns whether that is news.
    pub(super) fn disprove(&mut self, primary: &str, member: Stamp) -> bool {
        let primaries = self.disproved.entry(member).or_default();
        let is_new = !primaries.iter().any(|other| **other == *primary);
        if is_new {
            primaries.push(primary.into());
        }
        is_new
    }

    /// Members that manifests have disproved, each with its primaries.
    pub(super) fn disproved(&self) -> &HashMap<Stamp, Vec<Name>> {
        &self.disproved
    }

    /// The members of a conversion lie where they stay; `is_given_back`: in the directory, because one of them changed.
    pub(super) fn ended(&mut self, members: &[Member], is_given_back: bool) {
        let names = members.iter().map(|member| member.name.as_str());
        if is_given_back { self.arrivals.gave_back(names) } else { self.arrivals.ended(names) }
    }

    /// Something outside the directory changed: the groups are made again.
    pub(super) fn regroup(&mut self) {
        self.is_dirty = true;
    }

    /// Whether the file is left alone: it was converted and stays where it is (there is nothing to wait for, not even
    /// after a restart), or it may not be moved.
    fn is_left(&self, entry: &Entry) -> bool {
        let is_converted = self.left.get(entry.name.as_ref()).is_some_and(|left| left.stamp() == entry.stamp());
        is_converted || self.denied.holds(&entry.name)
    }

    /// Whether all of these were converted and stay where they are.
    pub(super) fn are_left(&self, members: &[Member]) -> bool {
        members.iter().all(|member| self.left.get(&member.name).is_some_and(|left| left.stamp() == member.stamp()))
    }

    /// Whether this file was converted, stayed where it is, and was written to since.
    pub(super) fn was_written_to(&self, entry: &Entry) -> bool {
        let left = self.left.get(entry.name.as_ref());
        left.is_some_and(|left| left.inode == entry.inode && left.stamp() != entry.stamp())
    }

    /// Why the queue directory can't be listed.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.scan_failed.as_deref()
    }
}

#[cfg(test)]
mod tests;
