// SPDX-License-Identifier: Apache-2.0
//! Entries of the queue directory that are never taken: told once each, and counted while they lie there.

use std::collections::HashSet;

use crate::queue::scan::Refused;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    /// What shows by its kind or name: of the last listing, and what was looked at since.
    listed: HashSet<Refused>,
    /// What shows by what the other files name: of the last grouping.
    unnamed: HashSet<Refused>,
}

impl Ignored {
    /// These are refused by what they are, and no others.
    pub(super) fn list(&mut self, refused: Vec<Refused>) {
        let listed = refused.into_iter().collect();
        report(&listed, &self.listed);
        self.listed = listed;
    }

    /// So is this one, too.
    pub(super) fn add(&mut self, refused: Refused) {
        let listed = HashSet::from([refused]);
        report(&listed, &self.listed);
        self.listed.extend(listed);
    }

    /// Nothing that lies there names these, and no others.
    pub(super) fn set_unnamed(&mut self, refused: Vec<Refused>) {
        let unnamed = refused.into_iter().collect();
        report(&unnamed, &self.unnamed);
        self.unnamed = unnamed;
    }

    pub(super) fn count(&self) -> usize {
        self.listed.len() + self.unnamed.len()
    }
}

fn report(refused: &HashSet<Refused>, before: &HashSet<Refused>) {
    let mut new: Vec<&Refused> = refused.difference(before).collect();
    new.sort_unstable_by_key(|refused| &refused.name);
    for refused in new {
        tracing::warn!(file = %refused.name, "refused: {} {}", refused.name, refused.refusal.text());
    }
}
