// SPDX-License-Identifier: Apache-2.0
//! File events of the queue directory: hints that make looks come sooner, never a reason to believe anything.

use std::path::Path;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::queue::scan;

/// Names that wait to be looked at. With more, the next rescan finds what is dropped here.
const WAITING: usize = 1024;

/// Keeps events coming while it lives.
#[derive(Debug)]
pub struct Events {
    _watcher: Option<RecommendedWatcher>,
}

/// Names that events speak of. Where the system gives none (or no more watches), rescans do all the work.
#[must_use]
pub fn watch(directory: &Path) -> (Events, mpsc::Receiver<String>) {
    let (sender, hints) = mpsc::channel(WAITING);
    let handler = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if !is_telling(event.kind) {
            return;
        }
        let names = event.paths.iter().filter_map(|path| path.file_name());
        for name in names.filter(|name| scan::is_of_interest(name)).filter_map(|name| name.to_str()) {
            // The engine is behind, or has ended.
            let _ = sender.try_send(name.to_owned());
        }
    };
    let watcher = notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(directory, RecursiveMode::NonRecursive).map(|()| watcher));
    let watcher = watcher
        .inspect_err(|error| tracing::warn!(%error, "no file events; new files are found by looking every second"))
        .ok();
    (Events { _watcher: watcher }, hints)
}

/// Reading a file, as our own hashing does, tells nothing.
fn is_telling(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
