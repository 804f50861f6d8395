// SPDX-License-Identifier: Apache-2.0
//! Where everything lies below the queue and the output directory.

use std::path::{Path, PathBuf};

use crate::conversion::contract::{CLAIM_FILE, NAME_MAX, PROCESSING_DIR, WORK_DIR};
use crate::conversion::{Attempt, ConversionId};

/// Directory in `.processing/` and `.work/` for what is being removed. Its name is no conversion's id.
const TRASH_DIR: &str = ".trash";

/// The two directories of one queue and the paths below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    queue: PathBuf,
    output: PathBuf,
}

impl Paths {
    /// The paths of these two directories, which need not exist yet.
    pub fn new(queue: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self { queue: queue.into(), output: output.into() }
    }

    /// The watched directory.
    #[must_use]
    pub fn queue(&self) -> &Path {
        &self.queue
    }

    /// The output directory.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// `.processing/`: one directory per claim.
    #[must_use]
    pub fn processing(&self) -> PathBuf {
        self.queue.join(PROCESSING_DIR)
    }

    /// `.processing/<id>/`.
    #[must_use]
    pub fn claim_dir(&self, id: &ConversionId) -> PathBuf {
        self.processing().join(id.as_str())
    }

    /// `.processing/<id>/claim.json`.
    #[must_use]
    pub fn claim_file(&self, id: &ConversionId) -> PathBuf {
        self.claim_dir(id).join(CLAIM_FILE)
    }

    /// `.errors/`: what failed, and what waits for its next attempt.
    #[must_use]
    pub fn errors(&self) -> PathBuf {
        self.queue.join(".errors")
    }

    /// `.processed/`: a directory for each day.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.queue.join(".processed")
    }

    /// `.processed/<date>/`: archived sources.
    #[must_use]
    pub fn processed(&self, date: &str) -> PathBuf {
        self.archive().join(date)
    }

    /// Where sources of a conversion lie that are being removed.
    #[must_use]
    pub fn trashed_sources(&self, id: &ConversionId) -> PathBuf {
        self.processing().join(TRASH_DIR).join(id.as_str())
    }

    /// Where the output of a conversion lies that is being removed.
    #[must_use]
    pub fn trashed_output(&self, id: &ConversionId) -> PathBuf {
        self.work().join(TRASH_DIR).join(id.as_str())
    }

    /// `{output}/.work/`: one directory per conversion.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.output.join(WORK_DIR)
    }

    /// `{output}/.work/<id>/`: one directory per attempt.
    #[must_use]
    pub fn work_of(&self, id: &ConversionId) -> PathBuf {
        self.work().join(id.as_str())
    }

    /// `{output}/.work/<id>/<n>/`.
    #[must_use]
    pub fn work_dir(&self, id: &ConversionId, attempt: Attempt) -> PathBuf {
        self.work_of(id).join(attempt.to_string())
    }

    /// `{output}/<date>/`: what was published on that day.
    #[must_use]
    pub fn published(&self, date: &str) -> PathBuf {
        self.output.join(date)
    }

    /// `{output}/.daemon/`: ledger, socket, statistics.
    #[must_use]
    pub fn daemon(&self) -> PathBuf {
        self.output.join(".daemon")
    }

    /// The directories that exist as long as the queue does, parents first.
    #[must_use]
    pub fn standing(&self) -> Vec<PathBuf> {
        let processed = self.queue.join(".processed");
        vec![
            self.queue.clone(),
            self.processing(),
            self.errors(),
            processed,
            self.output.clone(),
            self.work(),
            self.daemon(),
        ]
    }
}

/// Whether `name` is one plain component: not empty, no `/` or NUL, neither `.` nor `..`, at most 255 bytes.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    let is_short = (1..=NAME_MAX).contains(&name.len());
    is_short && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_lies_where_users_and_workers_look_for_it() {
        let paths = Paths::new("/q", "/o");
        let id: ConversionId = "vm-0000002a".parse().unwrap();
        for (path, expected) in [
            (paths.claim_file(&id), "/q/.processing/vm-0000002a/claim.json"),
            (paths.errors(), "/q/.errors"),
            (paths.processed("2026-01-17"), "/q/.processed/2026-01-17"),
            (paths.work_dir(&id, Attempt(2)), "/o/.work/vm-0000002a/2"),
            (paths.published("2026-01-17"), "/o/2026-01-17"),
            (paths.daemon(), "/o/.daemon"),
        ] {
            assert_eq!(path, Path::new(expected));
        }
    }

    #[test]
    fn a_name_with_a_way_out_is_not_plain() {
        for name in ["", ".", "..", "a/b", "../a", "/a", "a\0", &"x".repeat(256)] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        for name in ["a", "-rf", "a:b,c", "a\nb", "...", &"x".repeat(255)] {
            assert!(is_plain_name(name), "{name:?}");
        }
    }
}
