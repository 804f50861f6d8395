// SPDX-License-Identifier: Apache-2.0
//! Progress of running attempts: polled every second, written at a limited rate, with stalls timed by this process's
//! own clock.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::api::ProgressReport;
use crate::conversion::{Attempt, ConversionId, Progress, Stage};
use crate::executor::progress::{self, Seen};
use crate::files::store::StoreError;

/// Shortest time between two writes of one conversion's progress.
const PROGRESS_WRITE_INTERVAL: Duration = Duration::from_secs(5);

/// An attempt whose container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub id: ConversionId,
    pub attempt: Attempt,
    /// Its work directory.
    pub work: PathBuf,
}

/// What one poll of an attempt found.
#[derive(Debug)]
pub(super) struct PolledProgress {
    pub id: ConversionId,
    pub attempt: Attempt,
    pub found: Result<Option<Progress>, StoreError>,
}

/// Polls all of them, on a thread that may block on a file system.
pub(super) fn poll(running: Vec<Running>) -> JoinHandle<Vec<PolledProgress>> {
    tokio::task::spawn_blocking(move || {
        let polled = running.into_iter().map(|Running { id, attempt, work }| {
            let found = progress::read(&work);
            PolledProgress { id, attempt, found }
        });
        polled.collect()
    })
}

/// What is known of the progress of running attempts.
#[derive(Debug)]
pub(super) struct Watch {
    /// Time without progress after which an attempt is stalled.
    stall_after: Duration,
    attempts: HashMap<ConversionId, Watched>,
}

#[derive(Debug)]
struct Watched {
    attempt: Attempt,
    seen: Seen,
    progress: Option<Progress>,
    /// When the worker's last step was seen.
    at: Timestamp,
    said: Option<(Stage, u8, Instant)>,
    is_stalled: bool,
}

impl Watch {
    /// Of no attempt yet.
    pub(super) fn new(stall_after: Duration) -> Self {
        Self { stall_after, attempts: HashMap::new() }
    }

    /// The attempts that run now. Starts the clock of a new one, and forgets those that have ended.
    pub(super) fn keep(&mut self, running: &[Running], now: Instant) {
        let present: HashSet<_> = running.iter().map(|running| (&running.id, running.attempt)).collect();
        self.attempts.retain(|id, watched| present.contains(&(id, watched.attempt)));
        for running in running {
            self.attempts.entry(running.id.clone()).or_insert_with(|| Watched {
                attempt: running.attempt,
                seen: Seen::nothing(now),
                progress: None,
                at: Timestamp::UNIX_EPOCH,
                said: None,
                is_stalled: false,
            });
        }
    }

    /// Receives a poll's result; whether the attempt made progress. One that could not be polled is not called
    /// stalled.
    pub(super) fn receive(&mut self, polled: PolledProgress, now: Instant, wall: Timestamp) -> bool {
        let Some(watched) = self.attempts.get_mut(&polled.id).filter(|watched| watched.attempt == polled.attempt)
        else {
            return false;
        };
        let progress = match polled.found {
            Ok(progress) => progress,
            Err(error @ StoreError::Read { .. }) => {
                tracing::debug!(conversion = %polled.id, %error, "cannot look at the progress");
                return false;
            }
            // A file that breaks the format counts as no progress.
            Err(_) => None,
        };
        if let Some(progress) = progress
            && watched.seen.moved(&progress, now)
        {
            watched.progress = Some(progress);
            watched.at = wall;
            watched.is_stalled = false;
            return true;
        }
        watched.is_stalled = watched.seen.still(now) >= self.stall_after;
        false
    }

    /// How far a conversion's running attempt is.
    pub(super) fn of(&self, id: &ConversionId) -> Option<&Progress> {
        self.attempts.get(id)?.progress.as_ref()
    }

    /// What to write now: a new percent or stage, at most every five seconds for each conversion.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(ConversionId, ProgressReport)> {
        let mut due = Vec::new();
        for (id, watched) in &mut self.attempts {
            let Some(progress) = &watched.progress else { continue };
            let (stage, percent) = (progress.stage, progress.percent());
            let is_new = watched.said.is_none_or(|(said_stage, said_percent, at)| {
                (said_stage, said_percent) != (stage, percent)
                    && now.saturating_duration_since(at) >= PROGRESS_WRITE_INTERVAL
            });
            if is_new {
                watched.said = Some((stage, percent, now));
                due.push((id.clone(), report(progress, watched.at)));
            }
        }
        due
    }

    /// Attempts without progress for too long.
    pub(super) fn stalled(&self) -> Vec<(ConversionId, Attempt)> {
        let stalled = self.attempts.iter().filter(|(_, watched)| watched.is_stalled);
        stalled.map(|(id, watched)| (id.clone(), watched.attempt)).collect()
    }
}

/// The progress for the status. The numbers are a worker's: they are cut to what the API server can hold.
fn report(progress: &Progress, at: Timestamp) -> ProgressReport {
    let held = |bytes: u64| bytes.min(i64::MAX.unsigned_abs());
    ProgressReport {
        percent: progress.percent(),
        stage: progress.stage,
        bytes_done: held(progress.bytes_done.min(progress.bytes_total)),
        bytes_total: held(progress.bytes_total),
        updated_time: at,
    }
}

#[cfg(test)]
mod tests;
