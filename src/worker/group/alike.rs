// SPDX-License-Identifier: Apache-2.0
//! Files whose names differ from one that a descriptor gives only in case, or in how accents are composed: systems that
//! take such names for one wrote the descriptor, or copied the files.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::Dir;

use crate::conversion::file_name::folded;
use crate::disk::descriptor::References;

/// The names in a directory.
pub(super) struct Alike {
    /// By their folded form; those that are not UTF-8 are left out.
    names: HashMap<String, Vec<String>>,
}

impl Alike {
    /// Most entries of a directory that are looked at. In one with more, nothing is known to be the only one alike.
    const MAX_ENTRIES: usize = 1 << 16;

    /// Lists a directory; of one that can't be listed nothing is known.
    pub(super) fn list(directory: &OwnedFd) -> Self {
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        let Ok(entries) = Dir::read_from(directory) else { return Self { names } };
        for (number, entry) in entries.enumerate() {
            let Ok(entry) = entry else { return Self { names: HashMap::new() } };
            if number == Self::MAX_ENTRIES {
                return Self { names: HashMap::new() };
            }
            if let Ok(name) = entry.file_name().to_str() {
                names.entry(folded(name)).or_default().push(name.to_owned());
            }
        }
        Self { names }
    }

    /// The files that look like the one called `name`, by the first of its spellings that has any.
    pub(super) fn of(&self, named: &References, name: &str) -> &[String] {
        let found = named.spellings(name).find_map(|spelling| self.names.get(&folded(spelling)));
        found.map_or(&[], Vec::as_slice)
    }
}
