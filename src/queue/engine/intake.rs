// SPDX-License-Identifier: Apache-2.0
//! What lies in the queue directory: looked at, settled, and grouped into artifacts that may be claimed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::conversion::{ConversionId, Failure, Member, Stamp, Witness};
use crate::disk::descriptor::{References, StatedSize};
use crate::ledger::LeftSource;
use crate::queue::arrival::{Arrival, Patience};
use crate::queue::companions::{self, Elsewhere, File, TakenBack, Verdict};
use crate::queue::folder::{self, Decision, Rest};
use crate::queue::scan::{self, Entry, Kind, Listing, Name, Refusal, Refused, Role};
use crate::queue::settle::{EQUAL_LOOKS, Event, Settling};
use crate::queue::writers::{Writer, Writers};

use super::arrivals::Arrivals;
use super::events::Events;
use super::folders::{Folders, Inside};
use super::ignored::Ignored;
use super::world::World;

use super::denied::Denied;

/// Shortest time between two listings of the directory. File events show files sooner.
const RESCAN: Duration = Duration::from_secs(1);

/// The pause after a listing is at least this many times as long as the listing: ten thousand waiting files must cost
/// next to nothing.
const RESCAN_SHARE: u32 = 100;

/// How many looks long a folder must stand still, whatever the quiet period, where more files may follow: whoever copies
/// one file after the other pauses between them.
const FOLLOWING_LOOKS: u32 = 12;

/// The same for listings that events ask for, because something came into a folder.
const SOONEST_RESCAN: Duration = Duration::from_millis(100);
const SOONEST_SHARE: u32 = 10;

/// Between two looks at whether a file is still open.
const OPEN_POLL: Duration = Duration::from_secs(1);

/// Shortest time between two groupings: a thousand files that become stable at once are grouped together.
const REGROUP: Duration = Duration::from_millis(50);

/// An artifact that is whole, or will never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Artifact {
    pub primary: Name,
    /// The primary first.
    pub members: Vec<Entry>,
    /// Further members, which were converted by themselves before.
    pub taken_back: Vec<TakenBack>,
    /// Why it fails without an attempt.
    pub failure: Option<Failure>,
    /// The weakest witness that its members are complete; absent where no witness was asked.
    pub complete_by: Option<Witness>,
    /// The folder that it is, if it is one.
    pub folder: Option<OfFolder>,
}

/// What an artifact is besides its members, if it is a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfFolder {
    pub entry: Entry,
    /// Members that are disks by themselves, where there are several and no OVF.
    pub disks: Vec<Name>,
    /// What told that no file is to follow.
    witness: Witness,
}

impl Artifact {
    /// Sum of its members' sizes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.entries().map(|member| member.size).sum()
    }

    /// All its members, wherever they lie.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.members.iter().chain(self.taken_back.iter().map(|taken| &taken.entry))
    }

    /// The name by which people find it in the queue directory: that of the folder, or of the primary.
    pub(super) fn entry_name(&self) -> &Name {
        self.folder.as_ref().map_or(&self.primary, |folder| &folder.entry.name)
    }

    /// Identifies the present state of these files.
    pub(super) fn state(&self) -> State {
        self.entries().map(|member| (member.name.clone(), member.stamp())).collect()
    }
}

pub(super) type State = Vec<(Name, Stamp)>;

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
            arrivals: Arrivals::new(directory.clone(), writers, patience, &world),
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
        companions::group(&files, elsewhere, now, timeout, |verdict| self.take_in(verdict));
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

    /// Files that are seen and not complete.
    pub(super) fn unsettled(&self) -> usize {
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

    /// Something outside the directory changed: the groups are made again.
    pub(super) fn regroup(&mut self) {
        self.is_dirty = true;
    }

    fn scan(&mut self, now: Duration) {
        let begun = tokio::time::Instant::now();
        self.denied.look_at_directory(&self.directory);
        let listed = scan::list(&self.directory).and_then(|listing| self.list_folders(listing, now));
        let mut listing = match listed {
            Ok(listing) => listing,
            Err(error) => {
                self.report_failed_scan(&error);
                self.next_scan = now + RESCAN * 5;
                return;
            }
        };
        if self.scan_failed.take().is_some() {
            tracing::info!("the queue directory can be read again");
        }
        self.ignored.list(listing.refused);
        if listing.is_partial {
            tracing::warn!(limit = scan::MAX_ENTRIES, "the queue directory holds more files than are looked at");
        }
        listing.entries.iter().for_each(|entry| self.denied.look_at(entry));
        listing.entries.retain(|entry| scan::folder_of(&entry.name).is_some() || !self.is_left(entry));
        let events = self.settling.observe_all(&listing.entries, now);
        for entry in listing.entries {
            self.put_entry(entry);
        }
        for (name, event) in events {
            self.take_event(&name, event);
        }
        self.has_scanned = true;
        self.next_scan = now + RESCAN.max(begun.elapsed() * RESCAN_SHARE);
        self.soonest_scan = now + SOONEST_RESCAN.max(begun.elapsed() * SOONEST_SHARE);
    }

    /// Adds the files of all folders to a listing.
    fn list_folders(&mut self, mut listing: Listing, now: Duration) -> io::Result<Listing> {
        listing.folders.iter().for_each(|folder| self.denied.look_at(folder));
        listing.folders.retain(|folder| !self.denied.holds(&folder.name));
        self.folders.retain(&self.directory, &listing.folders);
        for folder in std::mem::take(&mut listing.folders) {
            let age = if self.has_scanned { Duration::ZERO } else { self.age(&folder) };
            let (name, inode) = (folder.name.clone(), folder.inode);
            match self.folders.look(&self.directory, folder, age, now) {
                Ok(is_changed) => self.is_dirty |= is_changed,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.folders.forget(&self.directory, &name),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.folders.forget(&self.directory, &name);
                    let name = name.as_ref().to_owned();
                    listing.refused.push(Refused { name, inode, refusal: Refusal::Closed });
                }
                Err(error) => return Err(error),
            }
            let files = self.folders.get(&name).map(|folder| folder.content.files.iter().cloned());
            listing.entries.extend(files.into_iter().flatten());
        }
        listing.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn look_at(&mut self, name: &str, now: Duration) {
        let looked = scan::look(&self.directory, name);
        if let Ok(Some(entry)) = &looked {
            self.denied.look_at(entry);
        }
        match looked {
            Ok(Some(entry)) if scan::folder_of(name).is_none() && self.is_left(&entry) => self.drop_entry(name),
            Ok(Some(entry)) => match role_here(&entry) {
                Role::Folder => self.scan_soon(),
                Role::Candidate | Role::Companion => {
                    let events = self.settling.observe(&entry, now);
                    self.put_entry(entry);
                    for event in events {
                        self.take_event(name, event);
                    }
                }
                Role::Refused(refusal) => {
                    self.drop_entry(name);
                    self.ignored.add(Refused { name: name.to_owned(), inode: entry.inode, refusal });
                }
                Role::Ignored => {}
            },
            Ok(None) => self.drop_entry(name),
            Err(error) => self.report_failed_scan(&error),
        }
    }

    fn put_entry(&mut self, entry: Entry) {
        let before = self.entries.get(&entry.name);
        if before.is_some_and(|before| before.entry.stamp() == entry.stamp() && before.entry.kind == entry.kind) {
            // At most its mode or owner changed, and a claim looks at it again anyway.
            if let Some(seen) = self.entries.get_mut(&entry.name) {
                seen.entry = entry;
            }
        } else {
            self.is_dirty = true;
            let is_announced = before.is_some_and(|before| before.is_announced && before.entry.inode == entry.inode);
            let age = if self.has_scanned { Duration::ZERO } else { self.age(&entry) };
            self.arrivals.forget(&entry.name);
            self.entries.insert(entry.name.clone(), Seen { entry, is_announced, age });
        }
    }

    /// How long ago its status changed (ctime). A writer can set back the modification time, but not this one.
    fn age(&self, entry: &Entry) -> Duration {
        let age = self.world.now().as_nanosecond() - entry.ctime_ns;
        u64::try_from(age).map_or(Duration::ZERO, Duration::from_nanos)
    }

    fn drop_folder(&mut self, name: &str) {
        self.folders.forget(&self.directory, name);
        let below = |file: &&Name| scan::folder_of(file) == Some(name);
        let files: Vec<Name> = self.entries.keys().filter(below).cloned().collect();
        for file in files {
            self.drop_entry(&file);
        }
    }

    fn drop_entry(&mut self, name: &str) {
        self.settling.forget(name);
        self.arrivals.forget(name);
        self.references.remove(name);
        self.is_dirty |= self.entries.remove(name).is_some();
    }

    fn take_event(&mut self, name: &str, event: Event) {
        let entry = self.entries.get(name).map(|seen| &seen.entry);
        let is_disk = entry.is_some_and(|entry| scan::role(entry) == Role::Candidate);
        match event {
            Event::Growing { size } | Event::Unsettled { size } if is_disk => {
                tracing::info!("File still growing: {name} ({})", scan::size_text(size));
            }
            Event::Stable { .. } => self.is_dirty = true,
            Event::Overdue { since, .. } if is_disk => {
                tracing::warn!(file = name, seconds = since.as_secs(), "file is not stable yet; it is watched further");
            }
            Event::Gone => self.drop_entry(name),
            Event::Growing { .. } | Event::Unsettled { .. } | Event::Overdue { .. } => {}
        }
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

    /// Everything that may belong to an artifact, as the grouping wants it: the files of the queue directory itself, and
    /// those of each folder.
    fn files(&mut self, now: Duration) -> (BTreeMap<Name, File>, BTreeMap<Name, Inside>) {
        let mut files = BTreeMap::new();
        let mut folders: BTreeMap<Name, Inside> = BTreeMap::new();
        let mut empty = Vec::new();
        for (name, Seen { entry, age, .. }) in &self.entries {
            let last_change = self.settling.last_change(name).unwrap_or_default();
            let is_stable = self.settling.is_stable(name)
                && match self.arrivals.look(entry, now.saturating_sub(last_change).saturating_add(*age), now) {
                    Arrival::Complete(_) => true,
                    // No event may tell of its end, where it was opened under another name.
                    Arrival::Open => {
                        let at = now + OPEN_POLL;
                        self.next_group = Some(self.next_group.map_or(at, |other| other.min(at)));
                        false
                    }
                    Arrival::Short(rest) | Arrival::Quiet(rest) => {
                        let at = now + rest;
                        self.next_group = Some(self.next_group.map_or(at, |other| other.min(at)));
                        false
                    }
                };
            let folder = scan::folder_of(name).map(|folder| folders.entry(folder.into()).or_default());
            if is_stable && entry.size == 0 {
                if scan::role(entry) == Role::Candidate {
                    let refused =
                        Refused { name: name.as_ref().to_owned(), inode: entry.inode, refusal: Refusal::Empty };
                    match folder {
                        Some(folder) => folder.empty = Some(refused),
                        None => empty.push(refused),
                    }
                }
                continue;
            }
            let references = match self.references.get(name) {
                Some((seen, references)) if *seen == entry.stamp() => references.clone(),
                _ if companions::may_be_descriptor(entry) => {
                    let references = companions::read_references(&self.directory, name).unwrap_or_default();
                    let references = Arc::new(references);
                    self.references.insert(name.clone(), (entry.stamp(), references.clone()));
                    references
                }
                _ => self.no_references.clone(),
            };
            let first_sight = self.settling.first_sight(name).unwrap_or_default();
            let size = entry.size;
            let not_of = self.disproved.get(&entry.stamp()).cloned().unwrap_or_default();
            let file = File { is_stable, size, first_sight, last_change, references, not_of };
            match folder {
                Some(folder) => folder.add(entry, file, now.saturating_sub(last_change).saturating_add(*age)),
                None => drop(files.insert(name.clone(), file)),
            }
        }
        self.ignore_unnamed(&files, empty, now);
        (files, folders)
    }

    /// Records the files that are no disks and that nobody names, and those that are empty.
    fn ignore_unnamed(&mut self, files: &BTreeMap<Name, File>, empty: Vec<Refused>, now: Duration) {
        let references = files.values().map(|file| &file.references).filter(|references| !references.is_empty());
        let named: HashSet<&str> = references
            .flat_map(|r| r.required.iter().chain(&r.optional).chain(r.written.values()))
            .map(String::as_str)
            .collect();
        let disks = companions::Disks::among(files);
        let mut refused = empty;
        for (name, file) in files.iter().filter(|(name, file)| file.is_stable && !named.contains(name.as_ref())) {
            let Some(Seen { entry, .. }) =
                self.entries.get(name).filter(|seen| scan::role(&seen.entry) == Role::Companion)
            else {
                continue;
            };
            if disks.beside(name).is_some() {
                continue;
            }
            let refusal = Refusal::of_companion(name);
            let due = file.last_change + self.companion_timeout;
            if (refusal.may_be_named_later() || companions::is_kept_beside(name)) && now < due {
                self.next_group = Some(self.next_group.map_or(due, |at| at.min(due)));
                continue;
            }
            let refusal = if refusal == Refusal::Other { self.ignored.look(&self.directory, entry) } else { refusal };
            refused.push(Refused { name: name.as_ref().to_owned(), inode: entry.inode, refusal });
        }
        self.ignored.set_unnamed(refused);
    }

    fn group_folders(&mut self, mut folders: BTreeMap<Name, Inside>, now: Duration) {
        let mut refused = Vec::new();
        self.folders.resting = 0;
        for name in self.folders.names() {
            let inside = folders.remove(&name).unwrap_or_default();
            refused.extend(self.judge_folder(&name, &inside, now));
        }
        self.ignored.set_folders(refused);
    }

    /// Decides about one folder; returns what keeps it from being taken, if that is to be reported.
    fn judge_folder(&mut self, name: &Name, inside: &Inside, now: Duration) -> Option<Refused> {
        let folder = self.folders.get(name)?;
        let still_at = folder.changed_at + self.look_interval * EQUAL_LOOKS;
        if let Some(fault) = folder.content.fault.clone().or_else(|| inside.empty.clone()) {
            return self.is_due(still_at, now).then_some(fault);
        }
        if inside.is_settling || folder.content.is_unfinished() {
            return None;
        }
        let is_moved_in = folder.is_as_found && self.arrivals.writer(name) == Writer::Moved;
        let quiet = now.saturating_sub(folder.changed_at) + folder.age;
        let quiet = inside.quiet.map_or(quiet, |of_files| of_files.min(quiet));
        let following = self.look_interval * FOLLOWING_LOOKS;
        let rested_at = |rest: Duration| still_at.max(now + rest.saturating_sub(quiet));
        let (complete_at, quiet_at) = (rested_at(following), rested_at(following.max(self.arrivals.quiet_period())));
        let entry = folder.entry.clone();
        let mut verdicts = Vec::new();
        let timeout = self.companion_timeout;
        companions::group(&inside.files, |_, _, _| None, now, timeout, |verdict| verdicts.push(verdict));
        match folder::decide(verdicts, &inside.files) {
            Decision::Settle => None,
            Decision::Wait(until) => {
                self.is_due(until, now);
                None
            }
            Decision::Refuse(refusal) => {
                let is_due = self.is_due(quiet_at, now);
                is_due.then(|| Refused { name: name.as_ref().to_owned(), inode: entry.inode, refusal })
            }
            Decision::Take { primary, members, disks, failure, rest } => {
                let (due, witness) = match rest {
                    _ if is_moved_in => (still_at, Witness::Writer),
                    Rest::Looks => (still_at, Witness::Format),
                    Rest::Optional => (complete_at, Witness::Format),
                    Rest::Quiet => (quiet_at, Witness::Quiet),
                };
                if !self.is_due(due, now) {
                    self.folders.resting += 1;
                    return None;
                }
                let path = |base: &Name| inside.paths.get(base).cloned();
                let members: Vec<Name> = members.iter().filter_map(path).collect();
                let disks = disks.iter().filter_map(path).collect();
                let is_left = |path: &Name| self.entries.get(path).is_some_and(|seen| self.is_left(&seen.entry));
                if !members.iter().all(is_left)
                    && let Some(primary) = path(&primary)
                {
                    self.add_ready(primary, members, Vec::new(), failure, Some(OfFolder { entry, disks, witness }));
                }
                None
            }
        }
    }

    /// Whether this moment has come; if not, the groups are made again then.
    fn is_due(&mut self, at: Duration, now: Duration) -> bool {
        if now < at {
            self.next_group = Some(self.next_group.map_or(at, |other| other.min(at)));
        }
        now >= at
    }

    fn take_in(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Ready { primary, members, taken_back } => self.add_ready(primary, members, taken_back, None, None),
            Verdict::Incomplete { primary, members, failure } => {
                self.add_ready(primary, members, Vec::new(), Some(failure), None);
            }
            Verdict::Waiting { until, .. } => {
                self.next_group = Some(self.next_group.map_or(until, |at| at.min(until)));
            }
            Verdict::Recall { primary, member, id } => self.recalls.push(Recall { primary, member, id }),
            Verdict::Settling { .. } => {}
        }
    }

    fn add_ready(
        &mut self,
        primary: Name,
        mut members: Vec<Name>,
        taken_back: Vec<TakenBack>,
        failure: Option<Failure>,
        folder: Option<OfFolder>,
    ) {
        let Some(seen) = self.entries.get_mut(&primary) else { return };
        if !std::mem::replace(&mut seen.is_announced, true) {
            tracing::info!("📥 New file queued: {primary}");
        }
        members.retain(|name| *name != primary);
        members.shrink_to_fit();
        let (failure, folder) = (failure.map(Box::new), folder.map(Box::new));
        self.ready.push(Ready { primary, companions: members, taken_back, failure, folder });
    }

    /// Why the queue directory can't be listed.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.scan_failed.as_deref()
    }

    fn report_failed_scan(&mut self, error: &io::Error) {
        if self.scan_failed.replace(error.to_string()).is_none() {
            tracing::error!(directory = %self.directory.display(), %error, "cannot look at the queue directory");
        }
    }
}

/// What an entry is. In a folder every file is at least a companion: the folder is taken as a whole.
fn role_here(entry: &Entry) -> Role {
    match scan::role(entry) {
        Role::Ignored if entry.kind == Kind::Regular && scan::folder_of(&entry.name).is_some() => Role::Companion,
        role => role,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_left_in_place_does_not_settle_again_unless_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.raw");
        std::fs::write(&path, "converted").unwrap();
        let member = scan::look(directory.path(), "vm.raw").unwrap().unwrap().member();
        let left = LeftSource {
            path: "vm.raw".to_owned(),
            inode: member.inode,
            size_bytes: member.size_bytes,
            mtime_ns: member.mtime_ns,
        };
        let second = Duration::from_secs(1);
        let pace = Pace {
            look_interval: second,
            stable_timeout: 30 * second,
            companion_timeout: 3600 * second,
            quiet_period: Duration::ZERO,
        };
        let mut intake =
            Intake::new(directory.path().to_owned(), pace, Default::default(), vec![left], World::default());
        intake.look(Duration::ZERO);
        intake.hint("vm.raw", Duration::ZERO);
        assert_eq!(intake.unsettled(), 0);
        std::fs::write(&path, "another one").unwrap();
        intake.hint("vm.raw", second);
        // This was the first look; three more make it stable.
        for n in 2..5 {
            assert_eq!((intake.unsettled(), intake.ready().len()), (1, 0));
            intake.look(n * second);
            intake.group(|_, _, _| None, n * second);
        }
        assert_eq!(intake.ready().map(AsRef::as_ref).collect::<Vec<&str>>(), ["vm.raw"]);
    }
}
