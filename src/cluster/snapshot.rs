// SPDX-License-Identifier: Apache-2.0
//! What watcher and sidecar report to each other: two small files in the in-memory volume that they share.
//!
//! The watcher writes [`WatcherSnapshot`] whenever something changes, the sidecar [`SocketReport`] when it binds its
//! socket. Each file has one writer and is replaced by temp and rename, so that a reader finds the old content or the
//! new. Both outlive the containers, and go with the pod.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::store::{self, StoreError};
use crate::stats::Snapshot;

/// The watcher's file below [`super::names::RUN_DIR`].
pub(crate) const WATCHER_FILE: &str = "snapshot.json";
/// The sidecar's file below [`super::names::RUN_DIR`].
pub(crate) const SOCKET_FILE: &str = "socket.json";

/// Longest file that is read, in bytes: some hundred for each of at most 1000 conversions that run.
const MAX_LENGTH: usize = 4 << 20;

/// The watcher's last state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WatcherSnapshot {
    /// Whether the watcher holds the locks of both queue and output. Without them the sidecar binds and writes nothing
    /// on the output's volume: another watcher may.
    pub locked: bool,
    pub stats: Snapshot,
}

/// Where the sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketReport {
    /// The control socket's path.
    pub path: PathBuf,
    /// Why it is not below the output, in the system's words; `None` where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl WatcherSnapshot {
    /// Replaces the snapshot in `directory`.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), StoreError> {
        store::replace_json(&directory.join(WATCHER_FILE), self)
    }

    /// Withdraws an earlier watcher's claim to hold its locks; the rest stays, for answers.
    pub(crate) fn unlock(directory: &Path) -> Result<(), StoreError> {
        match Self::read(directory)? {
            Some(snapshot) if snapshot.locked => Self { locked: false, ..snapshot }.write(directory),
            _ => Ok(()),
        }
    }

    /// The snapshot in `directory`; `None` before there was one.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, StoreError> {
        store::read_json(directory, WATCHER_FILE, MAX_LENGTH)
    }
}

impl SocketReport {
    /// Replaces the report in `directory`.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), StoreError> {
        store::replace_json(&directory.join(SOCKET_FILE), self)
    }

    /// The report in `directory`; `None` as long as the sidecar has not bound a socket.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, StoreError> {
        store::read_json(directory, SOCKET_FILE, MAX_LENGTH)
    }
}

/// Why the volume of an output refuses sockets, if the sidecar reported that it does.
#[must_use]
pub(crate) fn refused_socket(run_dir: &Path) -> Option<String> {
    SocketReport::read(run_dir).ok().flatten()?.refused
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_one_writes_the_other_reads() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(WatcherSnapshot::read(run.path()).unwrap(), None);
        assert_eq!(SocketReport::read(run.path()).unwrap(), None);

        let mut stats = Snapshot::new(Timestamp::UNIX_EPOCH);
        stats.totals.count_failure("a.vmdk", Timestamp::UNIX_EPOCH);
        for locked in [false, true] {
            let snapshot = WatcherSnapshot { locked, stats: stats.clone() };
            snapshot.write(run.path()).unwrap();
            assert_eq!(WatcherSnapshot::read(run.path()).unwrap(), Some(snapshot));
        }
        WatcherSnapshot::unlock(run.path()).unwrap();
        let unlocked = WatcherSnapshot { locked: false, stats };
        assert_eq!(WatcherSnapshot::read(run.path()).unwrap(), Some(unlocked));
        let report = SocketReport { path: "/run/x".into(), refused: Some("not permitted".to_owned()) };
        report.write(run.path()).unwrap();
        assert_eq!(SocketReport::read(run.path()).unwrap(), Some(report));
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_file_of_another_version_is_an_error_that_names_it() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(WATCHER_FILE), "{").unwrap();
        let error = WatcherSnapshot::read(run.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{}/snapshot.json is not what it should be", run.path().display()));
    }
}
