//! What is still to be claimed while draining. A watcher that is started again finds it in a file, since it can't tell
//! what was queued before from what came since; a daemon that drains ends.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;

use crate::conversion::chain;
use crate::queue::layout::Layout;
use crate::queue::scan::Name;
use crate::queue::store;

/// Name of the file below `{output}/.daemon/`.
const FILE: &str = "draining.json";

/// Longest file that is read, in bytes: a hundred thousand names of the longest kind.
const MAX_LENGTH: usize = 32 << 20;

/// Files that were queued when draining began, by primary.
#[derive(Debug)]
pub(super) struct Drain {
    names: HashSet<Name>,
    /// Those of an earlier run that this one has not found stable yet.
    unsettled: HashSet<Name>,
}

impl Drain {
    /// What is queued now.
    pub fn begin<'a>(ready: impl Iterator<Item = &'a Name>) -> Self {
        Self { names: ready.cloned().collect(), unsettled: HashSet::new() }
    }

    /// What an earlier run has remembered.
    pub fn resume(layout: &Layout) -> Self {
        let found = store::read_json::<Vec<String>>(&layout.daemon(), FILE, MAX_LENGTH).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "what was queued when draining began is not known; it stays");
            None
        });
        let names: HashSet<Name> = found.unwrap_or_default().into_iter().map(Name::from).collect();
        Self { unsettled: names.clone(), names }
    }

    /// Lets a later run know.
    pub fn remember(&self, layout: &Layout) {
        let names: Vec<&str> = self.names.iter().map(AsRef::as_ref).collect();
        if let Err(error) = store::write_json(&layout.daemon().join(FILE), &names) {
            tracing::warn!(error = %chain(&error), "a restart will not know what was queued when draining began");
        }
    }

    /// Nothing is drained any more.
    pub fn forget(layout: &Layout) {
        match fs::remove_file(layout.daemon().join(FILE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove what was remembered of draining");
            }
            _ => {}
        }
    }

    pub fn contains(&self, primary: &str) -> bool {
        self.names.contains(primary)
    }

    /// Takes note of what is in the directory, and of what of it is stable.
    pub fn found<'a>(&mut self, ready: impl Iterator<Item = &'a Name>, is_there: impl Fn(&str) -> bool) {
        if !self.unsettled.is_empty() {
            let ready: HashSet<&Name> = ready.collect();
            self.unsettled.retain(|name| !ready.contains(name) && is_there(name));
        }
    }

    /// How many are still to be claimed.
    pub fn left<'a>(&self, ready: impl Iterator<Item = &'a Name>) -> usize {
        self.unsettled.len() + ready.filter(|primary| self.contains(primary)).count()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|&name| Name::from(name)).collect()
    }

    #[test]
    fn what_was_queued_is_left_over_a_restart_until_it_is_claimed_or_gone_and_nothing_else_is() {
        let place = tempdir().unwrap();
        let layout = Layout::new(place.path().join("queue"), place.path().join("output"));
        fs::create_dir_all(layout.daemon()).unwrap();
        let queued = names(&["a.img", "b.img", "gone.img"]);
        let before = Drain::begin(queued.iter());
        before.remember(&layout);
        assert_eq!(before.left(names(&["a.img", "late.img"]).iter()), 1);

        let mut after = Drain::resume(&layout);
        assert_eq!(after.left([].iter()), 3, "nothing was looked at yet");
        after.found(names(&["a.img"]).iter(), |name| name != "gone.img");
        assert_eq!(after.left(names(&["a.img", "late.img"]).iter()), 2, "a.img, which is stable, and b.img");
        after.found(names(&["b.img"]).iter(), |_| true);
        assert_eq!(after.left(names(&["b.img"]).iter()), 1, "a.img was claimed");
        assert_eq!(after.left(names(&["late.img"]).iter()), 0);
        assert!(after.contains("b.img") && !after.contains("late.img"));

        Drain::forget(&layout);
        Drain::forget(&layout);
        assert_eq!(Drain::resume(&layout).left([].iter()), 0);
    }
}
