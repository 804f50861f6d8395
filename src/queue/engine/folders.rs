// SPDX-License-Identifier: Apache-2.0
//! Folders that lie in the queue directory: what is in them, since when that stands still, and whether events tell of
//! them.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::queue::companions::File;
use crate::queue::folder::{self, Content};
use crate::queue::scan::{self, Entry, Name, Refused, Role};

use super::events::Events;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Folders {
    events: Events,
    found: BTreeMap<Name, Folder>,
    /// How many of them are whole and rest until they are taken, or wait for an upload in them or for a member.
    pub resting: usize,
}

/// One folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub entry: Entry,
    pub content: Content,
    /// When a name in it last came or went, or it was first seen.
    pub changed_at: Duration,
    /// Whether no name came or went since it was first seen.
    pub is_as_found: bool,
    /// For a folder that was there at the start: how long it had not changed when it was first seen.
    pub age: Duration,
    /// What it was told to wait for: an upload in it, or members.
    pub told: Option<String>,
}

impl Folders {
    pub(super) fn new(events: Events) -> Self {
        Self { events, found: BTreeMap::new(), resting: 0 }
    }

    /// Whether it is news that the folder waits for this.
    pub(super) fn tell(&mut self, name: &str, awaited: &str) -> bool {
        let Some(folder) = self.found.get_mut(name) else { return false };
        folder.told.replace(awaited.to_owned()).is_none_or(|told| told != awaited)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Folder> {
        self.found.get(name)
    }

    /// The names of all of them.
    pub(super) fn names(&self) -> Vec<Name> {
        self.found.keys().cloned().collect()
    }

    /// Lists a folder that lies in `directory`. Returns whether a name came or went.
    pub(super) fn look(&mut self, directory: &Path, entry: Entry, age: Duration, now: Duration) -> io::Result<bool> {
        let name = entry.name.clone();
        if !self.found.contains_key(&name) {
            // Watched before it is listed: what comes in between is seen twice, and not never.
            self.events.also_watch(&directory.join(name.as_ref()));
        }
        let content = folder::list(directory, &name)?;
        let known = self.found.get(&name);
        let is_watched = |path: &String| known.is_some_and(|known| known.content.folders.contains(path));
        for path in content.folders.iter().filter(|path| !is_watched(path)) {
            self.events.also_watch(&directory.join(path));
        }
        let Some(known) = self.found.get_mut(&name) else {
            self.found.insert(name, Folder { entry, content, changed_at: now, is_as_found: true, age, told: None });
            return Ok(true);
        };
        let is_changed = !has_same_names(&known.content, &content);
        if is_changed {
            (known.changed_at, known.is_as_found) = (now, false);
        }
        (known.entry, known.content) = (entry, content);
        Ok(is_changed)
    }

    /// Forgets those that are not among `listed`.
    pub(super) fn retain(&mut self, directory: &Path, listed: &[Entry]) {
        let listed: HashSet<&Name> = listed.iter().map(|entry| &entry.name).collect();
        for name in self.names().iter().filter(|name| !listed.contains(name)) {
            self.forget(directory, name);
        }
    }

    /// Forgets a folder that is gone, claimed, or left alone.
    pub(super) fn forget(&mut self, directory: &Path, name: &str) {
        let Some(folder) = self.found.remove(name) else { return };
        for path in std::iter::once(name).chain(folder.content.folders.iter().map(String::as_str)) {
            self.events.unwatch(&directory.join(path));
        }
    }
}

fn has_same_names(before: &Content, after: &Content) -> bool {
    let names = |content: &Content| content.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    names(before) == names(after)
        && before.folders == after.folders
        && before.fault == after.fault
        && before.upload == after.upload
}

/// The files of one folder, as the grouping wants them.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// By their base names.
    pub files: BTreeMap<Name, File>,
    /// Their paths, by their base names.
    pub paths: BTreeMap<Name, Name>,
    /// Whether one of them, whatever it is, has not arrived.
    pub is_settling: bool,
    /// How long none of them has changed.
    pub quiet: Option<Duration>,
    /// A disk that is empty, and has settled.
    pub empty: Option<Refused>,
}

impl Inside {
    /// Adds a file that has not changed for `quiet`. Of two of a name that are no disks, the one less deep counts.
    pub(super) fn add(&mut self, entry: &Entry, file: File, quiet: Duration) {
        self.is_settling |= !file.is_stable;
        self.quiet = Some(self.quiet.map_or(quiet, |other| other.min(quiet)));
        let depth = |path: &str| path.matches('/').count();
        let base = Name::from(scan::base(&entry.name));
        let is_deeper = self.paths.get(&base).is_some_and(|other| depth(other) <= depth(&entry.name));
        if scan::role(entry) != Role::Ignored && !is_deeper {
            self.paths.insert(base.clone(), entry.name.clone());
            self.files.insert(base, file);
        }
    }
}
