// SPDX-License-Identifier: Apache-2.0
//! Makes artifacts of what was seen: groups of files, folders, and what belongs to neither.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::conversion::{Failure, Reason, Witness, printable};
use crate::disk::descriptor::descriptor_of;
use crate::queue::arrival::Arrival;
use crate::queue::companions::{self, File, TakenBack, Verdict};
use crate::queue::folder::{self, Decision, Rest};
use crate::queue::scan::{self, Name, Refusal, Refused, Role};
use crate::queue::settle::EQUAL_LOOKS;
use crate::queue::writers::Writer;

use super::{Intake, OfFolder, Ready, Recall, Seen};
use crate::queue::engine::folders::Inside;

/// How many looks long a folder must stand still, whatever the quiet period, where more files may follow: whoever copies
/// one file after the other pauses between them.
const FOLLOWING_LOOKS: u32 = 12;

/// What helps where a folder misses a file.
const INTO_FOLDER: &str = "Copy every missing file into the folder, where it lies; it is then taken again";

/// Between two looks at whether a file is still open.
const OPEN_POLL: Duration = Duration::from_secs(1);

impl Intake {
    /// Everything that may belong to an artifact, as the grouping wants it: the files of the queue directory itself, and
    /// those of each folder.
    pub(super) fn files(&mut self, now: Duration) -> (BTreeMap<Name, File>, BTreeMap<Name, Inside>) {
        let mut files = BTreeMap::new();
        let mut folders: BTreeMap<Name, Inside> = BTreeMap::new();
        let mut empty = Vec::new();
        let accounts = self.entries.keys().filter_map(|account| Some((scan::download_of(account)?, account)));
        let accounts: HashMap<&str, &Name> = accounts.collect();
        for (name, Seen { entry, age, .. }) in &self.entries {
            let last_change = self.settling.last_change(name).unwrap_or_default();
            let is_stable = self.settling.is_stable(name)
                && match self.arrivals.look(
                    entry,
                    accounts.get(name.as_ref()).copied(),
                    now.saturating_sub(last_change).saturating_add(*age),
                    now,
                ) {
                    Arrival::Complete(_) => true,
                    // It is grouped again when the account goes.
                    Arrival::Download => false,
                    // No event may tell of its end, where it was opened under another name.
                    Arrival::Open => {
                        let at = now + OPEN_POLL;
                        self.next_group = Some(self.next_group.map_or(at, |other| other.min(at)));
                        false
                    }
                    Arrival::Short(rest) | Arrival::Quiet(rest) | Arrival::Restless(rest) => {
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
            let is_account = scan::download_of(name).is_some_and(|of| files.contains_key(of));
            if is_account || disks.beside(name).is_some() {
                continue;
            }
            let refusal = Refusal::of_companion(name);
            let due = file.last_change + self.companion_timeout;
            let is_awaited = match refusal {
                Refusal::Machine => false,
                _ => refusal.may_be_named_later(name) || companions::is_kept_beside(name),
            };
            if is_awaited && now < due {
                self.next_group = Some(self.next_group.map_or(due, |at| at.min(due)));
                continue;
            }
            let refusal = if refusal == Refusal::Other { self.ignored.look(&self.directory, entry) } else { refusal };
            refused.push(Refused { name: name.as_ref().to_owned(), inode: entry.inode, refusal });
        }
        self.ignored.set_unnamed(refused);
    }

    pub(super) fn group_folders(&mut self, mut folders: BTreeMap<Name, Inside>, now: Duration) {
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
        if inside.is_settling {
            return None;
        }
        let following = self.look_interval * FOLLOWING_LOOKS;
        if let Some(upload) = folder.content.upload.clone() {
            let told_at = still_at.max(folder.changed_at + following);
            self.folders.resting += 1;
            if self.is_due(told_at, now) && self.folders.tell(name, &upload) {
                tracing::info!(
                    "{name} stands still, and {upload} is an upload under way or what one left: the folder is taken once \
                     that file is complete or removed"
                );
            }
            return None;
        }
        let is_moved_in = folder.is_as_found && self.arrivals.writer(name) == Writer::Moved;
        let quiet = now.saturating_sub(folder.changed_at) + folder.age;
        let quiet = inside.quiet.map_or(quiet, |of_files| of_files.min(quiet));
        let rested_at = |rest: Duration| still_at.max(now + rest.saturating_sub(quiet));
        let (complete_at, quiet_at) = (rested_at(following), rested_at(following.max(self.arrivals.quiet_period())));
        let entry = folder.entry.clone();
        let mut verdicts = Vec::new();
        let timeout = self.companion_timeout;
        companions::group(&inside.files, |_, _, _| None, now, timeout, |verdict| verdicts.push(verdict));
        match folder::decide(verdicts, &inside.files) {
            Decision::Settle => None,
            Decision::Wait { primary, missing, until } => {
                self.is_due(until, now);
                self.folders.resting += 1;
                if self.folders.tell(name, &missing.join("\n")) {
                    let primary = inside.paths.get(&primary).unwrap_or(&primary);
                    report_waiting(primary, &missing, until.saturating_sub(now));
                }
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
                let failure = failure.map(|failure| match failure.reason {
                    Reason::MissingMember => Failure { suggestion: INTO_FOLDER.to_owned(), ..failure },
                    _ => failure,
                });
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

    pub(super) fn take_in(&mut self, verdict: Verdict, before: &BTreeMap<Name, Vec<String>>, now: Duration) {
        match verdict {
            Verdict::Ready { primary, members, taken_back } => self.add_ready(primary, members, taken_back, None, None),
            Verdict::Incomplete { primary, members, failure } => {
                self.add_ready(primary, members, Vec::new(), Some(failure), None);
            }
            Verdict::Waiting { primary, missing, until } => {
                self.next_group = Some(self.next_group.map_or(until, |at| at.min(until)));
                if before.get(&primary) != Some(&missing) {
                    report_waiting(&primary, &missing, until.saturating_sub(now));
                }
                self.waiting.insert(primary, missing);
            }
            Verdict::Recall { primary, member, id } => self.recalls.push(Recall { primary, member, id }),
            // It stands still, and its descriptor would say whether it is whole.
            Verdict::Settling { primary, unsettled }
                if descriptor_of(&primary).is_some()
                    && *unsettled == [primary.clone()]
                    && self.arrivals.is_waiting(&primary) =>
            {
                if !before.contains_key(&primary) {
                    report_waiting(&primary, &[], self.companion_timeout);
                }
                self.waiting.insert(primary, Vec::new());
            }
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
}

/// Tells once for what a descriptor or an extent waits, and what happens where that does not come.
fn report_waiting(primary: &Name, missing: &[String], left: Duration) {
    let minutes = left.as_secs().div_ceil(60);
    let awaited = match (missing, descriptor_of(primary)) {
        ([], Some(descriptor)) => format!("its descriptor ({descriptor})"),
        ([], None) => "its descriptor".to_owned(),
        ([one], _) => format!("{}, which it names", printable(one)),
        ([one, others @ ..], _) => format!("{} and {} more, which it names", printable(one), others.len()),
    };
    tracing::info!(file = %primary, "{primary} waits for {awaited}; without it, it fails in {minutes} min");
}
