// SPDX-License-Identifier: Apache-2.0
//! Looks at the queue directory: its listing, each file and folder, and what their clocks say.

use std::io;
use std::time::Duration;

use crate::queue::scan::{self, Entry, Kind, Listing, Name, Refusal, Refused, Role};
use crate::queue::settle::Event;

use super::{Intake, Seen};

/// Shortest time between two listings of the directory. File events show files sooner.
const RESCAN: Duration = Duration::from_secs(1);

/// The pause after a listing is at least this many times as long as the listing: ten thousand waiting files must cost
/// next to nothing.
const RESCAN_SHARE: u32 = 100;

/// The same for listings that events ask for, because something came into a folder.
const SOONEST_RESCAN: Duration = Duration::from_millis(100);
const SOONEST_SHARE: u32 = 10;

impl Intake {
    pub(super) fn scan(&mut self, now: Duration) {
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

    pub(super) fn look_at(&mut self, name: &str, now: Duration) {
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

    pub(super) fn drop_folder(&mut self, name: &str) {
        self.folders.forget(&self.directory, name);
        let below = |file: &&Name| scan::folder_of(file) == Some(name);
        let files: Vec<Name> = self.entries.keys().filter(below).cloned().collect();
        for file in files {
            self.drop_entry(&file);
        }
    }

    pub(super) fn drop_entry(&mut self, name: &str) {
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
