// SPDX-License-Identifier: Apache-2.0
//! Progress of attempts: read from where workers write it; stalls are timed by this process's own clock.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::conversion::contract::PROGRESS_FILE;
use crate::conversion::{Progress, Stage};
use crate::files::store::{self, StoreError};

/// Time without progress after which an attempt is ended.
pub const STALL_AFTER: Duration = Duration::from_secs(600);

/// How often progress is looked at: the worker writes it at most so often.
pub const PROGRESS_POLL: Duration = Duration::from_secs(1);

/// Largest progress file that is read.
const MAX_PROGRESS: usize = 4 << 10;

/// The progress that a worker wrote in this work directory; `None` before its first. Never blocks on the file.
pub fn read(work: &Path) -> Result<Option<Progress>, StoreError> {
    store::read_json(work, PROGRESS_FILE, MAX_PROGRESS)
}

/// The last progress that differed from the one before, and when it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    bytes: Option<(Stage, u64)>,
    since: Instant,
}

impl Seen {
    /// Nothing was seen yet; the clock runs from `now`.
    #[must_use]
    pub fn nothing(now: Instant) -> Self {
        Self { bytes: None, since: now }
    }

    /// Receives a progress; whether it differs from the last.
    pub fn moved(&mut self, progress: &Progress, now: Instant) -> bool {
        let bytes = Some((progress.stage, progress.bytes_done));
        let moved = bytes != self.bytes;
        if moved {
            self.bytes = bytes;
            self.since = now;
        }
        moved
    }

    /// How long the progress has not changed.
    #[must_use]
    pub fn still(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}
