// SPDX-License-Identifier: Apache-2.0
//! How far a conversion is, counted in memory and written to a small file for those who watch it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

use crate::conversion::report::StageReport;
use crate::conversion::{CONTRACT_VERSION, Progress, Stage};
use crate::disk::CopyControl;
use crate::files::store;

/// Shortest time between two writes of the file.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a conversion and those who watch or end it share.
#[derive(Debug, Default)]
pub struct Meter {
    stage: AtomicU8,
    /// When each stage began.
    begun: Mutex<Vec<StageReport>>,
    /// Counts what the pipeline has done, and tells it to end.
    pub copy: CopyControl,
    total: AtomicU64,
    interrupted: AtomicBool,
}

impl Meter {
    /// Ends the conversion from outside.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
        self.copy.cancel();
    }

    /// Whether it was ended from outside.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Records the step that begins now.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.last().is_none_or(|last| last.stage != stage) {
            begun.push(StageReport { stage, start_time: Timestamp::now() });
        }
    }

    /// The stages so far, in their order.
    pub(super) fn stages(&self) -> Vec<StageReport> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the number of guest bytes in all disks and passes.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// The step that runs now.
    #[must_use]
    pub fn stage(&self) -> Stage {
        const STAGES: [Stage; 7] =
            [Stage::Inspect, Stage::Plan, Stage::Copy, Stage::Fix, Stage::Boot, Stage::Verify, Stage::Report];
        STAGES[usize::from(self.stage.load(Ordering::Relaxed)).min(STAGES.len() - 1)]
    }

    /// The progress for those who watch.
    #[must_use]
    pub fn read(&self, now: Timestamp) -> Progress {
        let (done, known) = self.copy.progress();
        // The pipeline knows a disk only when it begins with it; the plan knows all of them.
        let total = self.total.load(Ordering::Relaxed).max(known);
        Progress {
            contract_version: CONTRACT_VERSION,
            stage: self.stage(),
            bytes_done: done.min(total),
            bytes_total: total,
            updated_time: now,
        }
    }
}

/// Calls `show` with a meter's progress every `interval`, and once more when dropped.
#[derive(Debug)]
pub struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts to call `show`.
    pub fn start(meter: Arc<Meter>, interval: Duration, mut show: impl FnMut(Progress) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                show(meter.read(Timestamp::now()));
                thread::park_timeout(interval);
            }
            show(meter.read(Timestamp::now()));
        });
        Self { stop, thread: Some(thread) }
    }

    /// Starts to write progress.json at `path`, at most once a second and only when something has changed.
    pub fn write_file(meter: Arc<Meter>, path: PathBuf) -> Self {
        let mut last = None;
        Self::start(meter, INTERVAL, move |progress| {
            let seen = (progress.stage, progress.bytes_done, progress.bytes_total);
            if last == Some(seen) {
                return;
            }
            last = Some(seen);
            // No conversion fails for a missing progress file: the next write may succeed, and the executor sees that
            // nothing moves. No fsync: a stale file misleads nobody after a crash.
            if let Err(error) = store::replace_json(&path, &progress) {
                tracing::debug!(%error, "cannot write the progress file");
            }
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // If the ticker panicked, only the display is lost.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_holds_the_last_progress_when_the_ticker_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("progress.json");
        let meter = Arc::new(Meter::default());
        let ticker = Ticker::write_file(Arc::clone(&meter), path.clone());
        meter.set_total(200);
        meter.enter(Stage::Copy);
        drop(ticker);
        let progress: Progress = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((progress.stage, progress.bytes_total), (Stage::Copy, 200));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
