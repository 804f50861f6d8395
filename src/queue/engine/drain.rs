// SPDX-License-Identifier: Apache-2.0
//! What is still to be claimed while draining. A watcher that is started again can't distinguish what was queued before
//! from what came since, so it reads that from a file; a daemon that drains ends. If the file has nothing, or belongs
//! to an earlier drain, draining begins with what is queued once everything in the directory has settled.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::executor::Executor;
use crate::files::paths::Paths;
use crate::files::{store, volume};
use crate::queue::scan::Name;

use super::{Engine, Home};

/// Name of the file below `{output}/.daemon/`.
const FILE: &str = "draining.json";

/// Longest file that is read, in bytes: room for a hundred thousand of the longest names.
const MAX_LENGTH: usize = 32 << 20;

/// How long draining waits for files to settle before it begins: an upload may go on for hours.
const SETTLED_AT_LAST: Duration = Duration::from_secs(30);

/// What a run leaves to the next one.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Revision of what was asked of the queue when this was last true.
    revision: i64,
    names: Vec<String>,
}

/// Whether the present revision asks for the same drain that an earlier run recorded. Another drain would be two
/// revisions later, because one revision ends the former.
fn is_the_same(remembered: i64, now: i64) -> bool {
    (0..=1).contains(&(now - remembered))
}

/// Files that were queued when draining began, by their primaries.
#[derive(Debug)]
pub(super) struct Drain {
    names: HashSet<Name>,
    /// Files of an earlier run that this run has not found stable yet.
    unsettled: HashSet<Name>,
}

impl Drain {
    /// Begins with what is queued now.
    pub(super) fn begin<'a>(ready: impl Iterator<Item = &'a Name>) -> Self {
        Self { names: ready.cloned().collect(), unsettled: HashSet::new() }
    }

    /// What an earlier run has recorded of this drain.
    pub(super) fn resume(paths: &Paths, revision: i64) -> Option<Self> {
        let found = store::read_json::<Remembered>(&paths.daemon(), FILE, MAX_LENGTH).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "what was queued when draining began is not known; all is drained");
            None
        });
        let same = found.filter(|found| is_the_same(found.revision, revision))?;
        let names: HashSet<Name> = same.names.into_iter().map(Name::from).collect();
        Some(Self { unsettled: names.clone(), names })
    }

    /// Records the drain for a later run.
    pub(super) fn remember(&self, paths: &Paths, revision: i64) {
        let names = self.names.iter().map(|name| name.as_ref().to_owned()).collect();
        if let Err(error) = store::write_json(&paths.daemon().join(FILE), &Remembered { revision, names }) {
            tracing::warn!(error = %chain(&error), "a restart will not know what was queued when draining began");
        }
    }

    /// Removes the record: nothing is drained any more.
    pub(super) fn forget(paths: &Paths) {
        match volume::remove_file(&paths.daemon().join(FILE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove what was remembered of draining");
            }
            _ => {}
        }
    }

    pub(super) fn contains(&self, primary: &str) -> bool {
        self.names.contains(primary)
    }

    /// Receives what is in the directory, and which of it is stable.
    pub(super) fn found<'a>(&mut self, ready: impl Iterator<Item = &'a Name>, is_there: impl Fn(&str) -> bool) {
        if !self.unsettled.is_empty() {
            let ready: HashSet<&Name> = ready.collect();
            self.unsettled.retain(|name| !ready.contains(name) && is_there(name));
        }
    }

    /// How many files are still to be claimed.
    pub(super) fn left<'a>(&self, ready: impl Iterator<Item = &'a Name>) -> usize {
        self.unsettled.len() + ready.filter(|primary| self.contains(primary)).count()
    }
}

impl<E: Executor> Engine<E> {
    /// Records for a later run what is drained, or that nothing is.
    pub(super) fn remember_drain(&self) {
        let Home::Cluster { revision, .. } = &self.settings.home else { return };
        match &self.drain {
            Some(drain) => drain.remember(&self.settings.paths, *revision),
            None => Drain::forget(&self.settings.paths),
        }
    }

    /// A drain of what is queued now; `None` while files have yet to settle.
    pub(super) fn begun_drain(&self) -> Option<Drain> {
        self.has_settled.then(|| Drain::begin(self.intake.ready()))
    }

    /// Updates the drain with what the round found; begins it if it had to wait.
    pub(super) fn look_at_drain(&mut self, now: Duration) {
        self.has_settled |= self.intake.is_at_rest() || now >= SETTLED_AT_LAST;
        if self.run_state == RunState::Draining && self.drain.is_none() {
            self.drain = self.begun_drain();
            if self.drain.is_some() {
                self.remember_drain();
            }
        }
        if let Some(drain) = &mut self.drain {
            drain.found(self.intake.ready(), |name| self.intake.may_hold(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::tempdir;

    use super::*;

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|&name| Name::from(name)).collect()
    }

    #[test]
    fn what_was_queued_is_left_over_a_restart_until_it_is_claimed_or_gone_and_nothing_else_is() {
        let place = tempdir().unwrap();
        let paths = Paths::new(place.path().join("queue"), place.path().join("output"));
        fs::create_dir_all(paths.daemon()).unwrap();
        let queued = names(&["a.img", "b.img", "gone.img"]);
        let before = Drain::begin(queued.iter());
        before.remember(&paths, 7);
        assert_eq!(before.left(names(&["a.img", "late.img"]).iter()), 1);

        let mut after = Drain::resume(&paths, 8).unwrap();
        assert_eq!(after.left([].iter()), 3, "nothing was looked at yet");
        after.found(names(&["a.img"]).iter(), |name| name != "gone.img");
        assert_eq!(after.left(names(&["a.img", "late.img"]).iter()), 2, "a.img, which is stable, and b.img");
        after.found(names(&["b.img"]).iter(), |_| true);
        assert_eq!(after.left(names(&["b.img"]).iter()), 1, "a.img was claimed");
        assert_eq!(after.left(names(&["late.img"]).iter()), 0);
        assert!(after.contains("b.img") && !after.contains("late.img"));

        Drain::forget(&paths);
        Drain::forget(&paths);
        assert!(Drain::resume(&paths, 7).is_none());
    }

    #[test]
    fn what_was_remembered_of_another_drain_is_of_no_use() {
        let place = tempdir().unwrap();
        let paths = Paths::new(place.path().join("queue"), place.path().join("output"));
        fs::create_dir_all(paths.daemon()).unwrap();
        Drain::begin(names(&["a.img"]).iter()).remember(&paths, 7);
        let is_resumed = [6, 7, 8, 9].map(|revision| Drain::resume(&paths, revision).is_some());
        assert_eq!(is_resumed, [false, true, true, false]);
        fs::write(paths.daemon().join(FILE), r#"["a.img"]"#).unwrap();
        assert!(Drain::resume(&paths, 7).is_none());
    }
}
