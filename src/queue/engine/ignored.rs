// SPDX-License-Identifier: Apache-2.0
//! Entries of the queue directory that are never claimed: each is logged once, and counted while it lies there.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::conversion::Stamp;
use crate::disk::ending::fitting_extension;
use crate::files::store;
use crate::queue::scan::{self, Entry, Name, Refusal, Refused};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    /// Entries refused by their kind or name: those of the last listing, and those looked at since.
    listed: HashSet<Refused>,
    /// Entries refused because no other file names them, as the last grouping found.
    unnamed: HashSet<Refused>,
    /// Folders that are not taken, each by the entry because of which it isn't.
    folders: HashSet<Refused>,
    /// What the content of files of unknown extensions says, each looked at once.
    looked_at: HashMap<Name, (Stamp, Refusal)>,
}

impl Ignored {
    /// Sets the entries that are refused by their kind or name.
    pub(super) fn list(&mut self, refused: Vec<Refused>) {
        let listed = refused.into_iter().collect();
        report(&listed, &self.listed);
        self.listed = listed;
    }

    /// Adds one entry that is refused by its kind or name.
    pub(super) fn add(&mut self, refused: Refused) {
        let listed = HashSet::from([refused]);
        report(&listed, &self.listed);
        self.listed.extend(listed);
    }

    /// Sets the entries that are refused because nothing names them.
    pub(super) fn set_unnamed(&mut self, refused: Vec<Refused>) {
        let unnamed: HashSet<_> = refused.into_iter().collect();
        report(&unnamed, &self.unnamed);
        let names: HashSet<&str> = unnamed.iter().map(|refused| refused.name.as_str()).collect();
        self.looked_at.retain(|name, _| names.contains(name.as_ref()));
        self.unnamed = unnamed;
    }

    /// Sets the folders that are not taken.
    pub(super) fn set_folders(&mut self, refused: Vec<Refused>) {
        let folders = refused.into_iter().collect();
        report(&folders, &self.folders);
        self.folders = folders;
    }

    /// Why a file of an unknown extension is refused: it may be a disk under another name. One that can't be read is
    /// none.
    pub(super) fn look(&mut self, directory: &Path, entry: &Entry) -> Refusal {
        if let Some((_, refusal)) = self.looked_at.get(&entry.name).filter(|(seen, _)| *seen == entry.stamp()) {
            return *refusal;
        }
        let opened = store::open_dir(directory).and_then(|dir| store::open_untrusted(dir, directory, &entry.name));
        let fitting = opened.ok().and_then(|file| fitting_extension(file, &entry.name));
        let refusal = fitting.map_or(Refusal::Other, Refusal::Misnamed);
        self.looked_at.insert(entry.name.clone(), (entry.stamp(), refusal));
        refusal
    }

    pub(super) fn count(&self) -> usize {
        self.listed.len() + self.unnamed.len() + self.folders.len()
    }
}

fn report(refused: &HashSet<Refused>, before: &HashSet<Refused>) {
    let mut new: Vec<&Refused> = refused.difference(before).collect();
    new.sort_unstable_by_key(|refused| &refused.name);
    for refused in new {
        let until = match scan::folder_of(&refused.name) {
            Some(folder) => format!("; {folder} stays until then"),
            None => String::new(),
        };
        tracing::warn!(file = %refused.name, "refused: {} {}{until}", refused.name, refused.refusal.text());
    }
}
