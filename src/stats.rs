// SPDX-License-Identifier: Apache-2.0
//! What was done so far: counters, the snapshot of them, and the texts made from it.
//!
//! One task counts (into [`Totals`], kept by the ledger) and publishes a [`Snapshot`]. stats.json, the control
//! socket, `/metrics` and the hourly summary are all views of the same snapshot, so that they never contradict each
//! other.

mod file;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::conversion::admission::RunState;
use crate::conversion::file_name::extension;
use crate::conversion::retention::Removal;

pub use file::{WriteError, write};
pub use report::{StatsReport, TypeReport, summary};

/// How many finished conversions a snapshot remembers.
pub const RECENT: usize = 10;

/// The state of a conversion, in the words of stats.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    Processing,
    Success,
    Failed,
    Retrying,
}

/// One conversion as stats.json shows it; the keys are the ones its readers know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStats {
    /// Name of the file that was dropped (of the descriptor, for a group).
    pub filename: String,
    /// Its extension, see [`file_type`].
    pub file_type: String,
    /// Its size in MiB (of the whole group), two decimals.
    pub file_size_mb: f64,
    #[serde(with = "whole_seconds")]
    pub start_time: Timestamp,
    #[serde(with = "whole_seconds::option")]
    pub end_time: Option<Timestamp>,
    /// Seconds from start to end, two decimals; null while it runs.
    pub duration_seconds: Option<f64>,
    pub status: JobStatus,
    /// Why it failed, or why the last attempt did.
    pub error: Option<String>,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// Retries so far, this one included.
    pub retry_count: u32,
    /// Whole percent of the guest's data worked through, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_percent: Option<u8>,
}

impl JobStats {
    /// An attempt that starts `now`; `retry_count` is 0 for the first.
    #[must_use]
    pub fn started(filename: &str, size_bytes: u64, retry_count: u32, now: Timestamp) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "two decimals of a size for a person")]
        let mebibytes = size_bytes as f64 / f64::from(1 << 20);
        Self {
            filename: filename.to_owned(),
            file_type: file_type(filename),
            file_size_mb: two_decimals(mebibytes),
            start_time: now,
            end_time: None,
            duration_seconds: None,
            status: JobStatus::Processing,
            error: None,
            suggestion: None,
            retry_count,
            progress_percent: None,
        }
    }

    /// The same, ended `now`.
    #[must_use]
    pub fn ended(mut self, status: JobStatus, error: Option<String>, now: Timestamp) -> Self {
        self.duration_seconds = Some(two_decimals(elapsed(self.start_time, now).as_secs_f64()));
        self.end_time = Some(now);
        self.status = status;
        self.error = error;
        self.progress_percent = None;
        self
    }
}

/// Counters of one file type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypeTotals {
    pub succeeded: u64,
    /// Failed for good.
    pub failed: u64,
    /// Sum of the successes' durations, milliseconds.
    pub succeeded_ms: u64,
}

impl TypeTotals {
    /// Percentage of successes among all ends, 0 to 100 with two decimals; 0 before the first end.
    #[must_use]
    pub fn success_rate_percent(&self) -> f64 {
        let ended = self.succeeded.saturating_add(self.failed);
        if ended == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "two decimals of a rate for a person")]
        let rate = self.succeeded as f64 / ended as f64;
        two_decimals(rate * 100.0)
    }

    /// Mean duration of the successes in seconds, two decimals; 0 while there is none.
    #[must_use]
    pub fn average_seconds(&self) -> f64 {
        if self.succeeded == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "two decimals of a mean for a person")]
        let mean = self.succeeded_ms as f64 / self.succeeded as f64;
        two_decimals(mean / 1000.0)
    }

    fn add_success(&mut self, duration: Duration) {
        self.succeeded += 1;
        self.succeeded_ms = self.succeeded_ms.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }
}

/// Hours that [`Totals::by_hour`] keeps: the last day, and the hour that has begun.
const HOURS: i64 = 25;

/// Counters of one hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HourTotals {
    pub succeeded: u64,
    /// Failed for good.
    pub failed: u64,
    /// Size of the sources of the successes.
    pub bytes: u64,
}

/// What retention has removed, counted by conversions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Removed {
    /// Sources from `.processed/`.
    pub processed: u64,
    /// Sources from `.errors/`.
    pub errors: u64,
    /// Published directories.
    pub outputs: u64,
    /// Bytes of all of them; of outputs, those that were allocated.
    pub bytes: u64,
}

/// All counts since the ledger began, across restarts. Serialised as the ledger stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Conversions that ended well or failed for good, of every type.
    pub all: TypeTotals,
    /// Retries that were scheduled.
    pub retried: u64,
    pub duplicates: u64,
    pub cancelled: u64,
    /// Conversions that were given back, because their source changed or belongs to another artifact.
    pub given_back: u64,
    /// Outputs of single files that turned out to be members of what was converted later.
    pub superseded: u64,
    /// What retention has removed.
    pub removed: Removed,
    /// The same as `all` by file type (extension without dot, lower case).
    pub by_type: BTreeMap<String, TypeTotals>,
    /// Counts of the last hours, by the hour since the epoch (UTC).
    pub by_hour: BTreeMap<i64, HourTotals>,
}

impl Totals {
    /// Counts a conversion of so many bytes that was published at `end`.
    pub fn count_success(&mut self, filename: &str, duration: Duration, bytes: u64, end: Timestamp) {
        self.all.add_success(duration);
        self.by_type.entry(file_type(filename)).or_default().add_success(duration);
        let of_hour = self.hour(end);
        of_hour.succeeded += 1;
        of_hour.bytes = of_hour.bytes.saturating_add(bytes);
    }

    /// Counts a conversion that failed for good at `end`.
    pub fn count_failure(&mut self, filename: &str, end: Timestamp) {
        self.all.failed += 1;
        self.by_type.entry(file_type(filename)).or_default().failed += 1;
        self.hour(end).failed += 1;
    }

    /// The counters of this hour. Older ones than a day go, and so do those of a clock that was ahead.
    fn hour(&mut self, now: Timestamp) -> &mut HourTotals {
        let hour = now.as_second().div_euclid(3600);
        self.by_hour.retain(|kept, _| (hour - HOURS + 1..=hour).contains(kept));
        self.by_hour.entry(hour).or_default()
    }

    /// Counts a retry, when it is scheduled.
    pub fn count_retry(&mut self) {
        self.retried += 1;
    }

    /// Counts a file skipped because it was converted before.
    pub fn count_duplicate(&mut self) {
        self.duplicates += 1;
    }

    /// Counts outputs that a whole replaces.
    pub fn count_superseded(&mut self, outputs: u64) {
        self.superseded += outputs;
    }

    /// Counts what retention has removed of a conversion.
    pub fn count_removed(&mut self, what: Removal, bytes: u64) {
        *match what {
            Removal::Processed => &mut self.removed.processed,
            Removal::Errors => &mut self.removed.errors,
            Removal::Output => &mut self.removed.outputs,
        } += 1;
        self.removed.bytes = self.removed.bytes.saturating_add(bytes);
    }

    /// Counts a conversion that was given back.
    pub fn count_given_back(&mut self) {
        self.given_back += 1;
    }

    /// Counts a conversion that ended as cancelled.
    pub fn count_cancelled(&mut self) {
        self.cancelled += 1;
    }
}

/// What became of notifications since the ledger began, and how many wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NotificationTotals {
    /// Decided on, and not delivered yet.
    pub pending: u64,
    pub sent: u64,
    /// Refused by the receiver, older than a day, or too many.
    pub given_up: u64,
}

/// The state at one moment. Also the file by which a watcher reports to its sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Version of the program that took it.
    pub version: String,
    /// When that program started.
    pub daemon_start_time: Timestamp,
    /// When something was last started, progressed or finished; absent before the first.
    #[serde(default)]
    pub last_activity: Option<Timestamp>,
    pub run_state: RunState,
    /// Stable files that wait for a slot, claimed or not; without those that wait for a retry and, while draining,
    /// those that came since.
    pub queue_depth: u64,
    /// Files seen that are not stable yet.
    pub settling: u64,
    /// Conversions that wait for their next attempt.
    pub retrying: u64,
    /// The first [`MAX_WAITING`] conversions that wait for a slot or for their next attempt.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Attempts that run now.
    pub current_jobs: Vec<JobStats>,
    /// The last [`RECENT`] conversions that ended, the oldest first.
    pub recent_completed: Vec<JobStats>,
    pub totals: Totals,
    #[serde(default)]
    pub notifications: NotificationTotals,
    /// Entries of the queue directory that are never taken.
    #[serde(default)]
    pub ignored: u64,
    /// The room that the output volume lacks, while something waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortage: Option<Shortage>,
    /// What the queue's own volume lacks, while a file can't be claimed for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_shortage: Option<Shortage>,
    /// Why nothing is done, while a volume is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Why files or conversions can't go on although the volumes are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// Why the queue directory can't be listed, while that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Whether the queue is stopped and everything that ran is ended and cleared away.
    #[serde(default)]
    pub is_at_rest: bool,
}

/// How many waiting conversions a snapshot names.
pub const MAX_WAITING: usize = 20;

/// A conversion that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    pub filename: String,
    /// For what, in a sentence.
    pub why: String,
}

/// Missing room on the output volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shortage {
    /// What the first waiting conversion needs.
    pub needed_bytes: u64,
    /// What was free at that time.
    pub free_bytes: u64,
}

impl Snapshot {
    /// The snapshot at `start`, before anything was done.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            daemon_start_time: start,
            last_activity: None,
            run_state: RunState::default(),
            queue_depth: 0,
            settling: 0,
            retrying: 0,
            waiting: Vec::new(),
            current_jobs: Vec::new(),
            recent_completed: Vec::new(),
            totals: Totals::default(),
            notifications: NotificationTotals::default(),
            ignored: 0,
            shortage: None,
            queue_shortage: None,
            waiting_for: None,
            held_by: None,
            unreadable: None,
            is_at_rest: false,
        }
    }

    /// Attempts that run now.
    #[must_use]
    pub fn active_jobs(&self) -> u64 {
        self.current_jobs.len() as u64
    }

    /// Time since the start; zero if the clock was set back beyond it.
    #[must_use]
    pub fn uptime(&self, now: Timestamp) -> Duration {
        elapsed(self.daemon_start_time, now)
    }
}

/// The type a file is counted under: its extension, lower case and without the dot; `unknown` without one.
#[must_use]
pub fn file_type(filename: &str) -> String {
    match extension(filename) {
        "" => "unknown".to_owned(),
        extension => extension.to_lowercase(),
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from).max(SignedDuration::ZERO)).unwrap_or_default()
}

fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// RFC 3339 in UTC without fractions: the only form that `jq`'s `fromdateiso8601` reads.
mod whole_seconds {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.0}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(deserializer)
    }

    pub(super) mod option {
        use super::{Deserialize, Deserializer, Serializer, Timestamp};

        #[expect(clippy::ref_option, reason = "serde calls it so")]
        pub(crate) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
            Option::deserialize(deserializer)
        }
    }
}

#[cfg(test)]
mod tests;
