// SPDX-License-Identifier: Apache-2.0
//! File events of the queue directory: hints by which files are looked at sooner, and signs of each file's writer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::queue::scan;
use crate::queue::writers::{Sign, Writers};

/// Greatest number of names that wait to be looked at. Further hints are dropped: the next rescan finds the files.
const WAITING: usize = 1024;

/// Keeps events coming while a clone of it lives. Without a watcher there are none.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Mutex<Option<RecommendedWatcher>>>);

impl Events {
    /// Watches one more directory, below the first one. If that fails, its files are found by rescans alone.
    pub(super) fn also_watch(&self, directory: &Path) {
        if let Some(watcher) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive)
        {
            tracing::debug!(directory = %directory.display(), %error, "no file events of a folder");
        }
    }

    /// Watches it no more.
    pub(super) fn unwatch(&self, directory: &Path) {
        if let Some(watcher) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            // Nothing is left to be watched where the directory is gone.
            let _ = watcher.unwatch(directory);
        }
    }
}

/// What the engine receives of the queue directory between its own looks.
#[derive(Debug)]
pub struct Hints {
    /// Names that events carry: paths from the queue directory.
    pub names: mpsc::Receiver<String>,
    /// The writers of the files, as far as events tell.
    pub writers: Writers,
    /// By which folders are watched too.
    pub events: Events,
}

/// Watches a directory. If the system gives no events (or no more watches), files are found by rescans alone, and every
/// writer stays unknown.
#[must_use]
pub fn watch(directory: &Path) -> (Events, Hints) {
    let (sender, names) = mpsc::channel(WAITING);
    let writers = Writers::default();
    let (of_hints, root) = (writers.clone(), directory.to_owned());
    let handler = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return writers.forget_all() };
        if event.need_rescan() {
            return writers.forget_all();
        }
        if !is_telling(event.kind) {
            return;
        }
        let sign = sign(event.kind);
        let paths = event.paths.iter().filter_map(|path| path.strip_prefix(&root).ok());
        for name in paths.filter(|path| is_of_interest(path)).filter_map(|path| path.to_str()) {
            if let Some(sign) = sign {
                writers.observe(name, sign);
            }
            // The engine is behind, or has ended.
            let _ = sender.try_send(name.to_owned());
        }
    };
    let watcher = notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher));
    let watcher = watcher
        .inspect_err(|error| tracing::warn!(%error, "no file events; new files are found by looking every second"))
        .ok();
    let events = Events(Arc::new(Mutex::new(watcher)));
    (events.clone(), Hints { names, writers: of_hints, events })
}

/// Whether an event of this path, relative to the queue directory, is of interest. In a folder every file is: it is
/// taken as a whole.
fn is_of_interest(path: &Path) -> bool {
    path.components().next().is_some_and(|first| scan::is_of_interest(first.as_os_str()))
}

/// Whether an event is of any use: reading a file, as our own hashing does, says nothing.
fn is_telling(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The sign of the writer in an event; `None` where only names, modes or owners changed.
fn sign(kind: EventKind) -> Option<Sign> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Sign::Closed),
        EventKind::Modify(ModifyKind::Data(_)) => Some(Sign::Modified),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Sign::Arrived),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => Some(Sign::Gone),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::queue::writers::Writer;

    fn until(writers: &Writers, name: &str, wanted: Writer) {
        let since = Instant::now();
        while writers.of(name) != wanted {
            assert!(since.elapsed() < Duration::from_secs(20), "{name} is {:?}, not {wanted:?}", writers.of(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_kernel_tells_who_still_writes() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("queue");
        fs::create_dir(&queue).unwrap();
        let (_events, hints) = watch(&queue);
        let writers = &hints.writers;
        let mut file = File::create(queue.join("vm.raw")).unwrap();
        file.write_all(b"half").unwrap();
        until(writers, "vm.raw", Writer::Open);
        drop(fs::read(queue.join("vm.raw")).unwrap());
        drop(file);
        until(writers, "vm.raw", Writer::Closed);
        let mut file = File::options().append(true).open(queue.join("vm.raw")).unwrap();
        file.write_all(b"the rest").unwrap();
        until(writers, "vm.raw", Writer::Open);
        drop(file);
        until(writers, "vm.raw", Writer::Closed);
        fs::rename(queue.join("vm.raw"), queue.join("renamed.raw")).unwrap();
        until(writers, "renamed.raw", Writer::Moved);
        until(writers, "vm.raw", Writer::Unknown);
        // Preallocated, with nothing written.
        let file = File::create(queue.join("preallocated.raw")).unwrap();
        file.set_len(1 << 20).unwrap();
        until(writers, "preallocated.raw", Writer::Open);
        drop(file);
        until(writers, "preallocated.raw", Writer::Closed);
        // An event that only changes names or rights is no sign of a writer.
        fs::write(dir.path().join("aside"), "x").unwrap();
        fs::hard_link(dir.path().join("aside"), queue.join("linked.raw")).unwrap();
        fs::write(queue.join("last.raw"), "x").unwrap();
        until(writers, "last.raw", Writer::Closed);
        assert_eq!(writers.of("linked.raw"), Writer::Unknown);
    }
}
