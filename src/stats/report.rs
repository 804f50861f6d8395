// SPDX-License-Identifier: Apache-2.0
//! A snapshot in the shape of stats.json and as the logged summary.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{JobStats, Snapshot, TypeTotals, two_decimals, whole_seconds};
use crate::conversion::admission::RunState;

/// stats.json, and `stats` in the control socket's reply. Keys are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatsReport {
    #[serde(with = "whole_seconds")]
    pub daemon_start_time: Timestamp,
    pub uptime_seconds: f64,
    pub uptime_hours: f64,
    /// Successes.
    pub total_processed: u64,
    /// Failed for good.
    pub total_failed: u64,
    pub total_retried: u64,
    pub total_cancelled: u64,
    pub total_duplicates: u64,
    pub success_rate_percent: f64,
    pub average_processing_time_seconds: f64,
    pub current_queue_depth: u64,
    pub active_jobs: u64,
    /// Files that are not stable yet.
    pub settling: u64,
    /// Conversions that wait for their next attempt.
    pub retrying: u64,
    /// Notifications that wait for their delivery.
    pub notifications_pending: u64,
    pub notifications_given_up: u64,
    pub current_jobs: Vec<JobStats>,
    pub by_file_type: BTreeMap<String, TypeReport>,
    pub recent_completed: Vec<JobStats>,
    #[serde(with = "whole_seconds::option")]
    pub last_activity: Option<Timestamp>,
    pub paused: bool,
    pub draining: bool,
    pub stopping: bool,
    pub version: String,
    /// Outputs of single files that turned out to be members of what was converted later.
    pub total_superseded: u64,
    /// Conversions that were given back.
    pub total_given_back: u64,
    /// Entries of the queue directory that are never taken.
    pub ignored: u64,
    /// What retention has removed: sources of conversions from `.processed/` and `.errors/`, published directories, and
    /// the bytes of all of them.
    pub total_removed_processed: u64,
    pub total_removed_errors: u64,
    pub total_removed_outputs: u64,
    pub total_removed_bytes: u64,
    /// In the file only: when it was written.
    #[serde(with = "whole_seconds::option", skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<Timestamp>,
}

/// One file type of `by_file_type`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TypeReport {
    pub processed: u64,
    pub failed: u64,
    pub success_rate_percent: f64,
    pub average_time_seconds: f64,
}

impl From<&TypeTotals> for TypeReport {
    fn from(totals: &TypeTotals) -> Self {
        Self {
            processed: totals.succeeded,
            failed: totals.failed,
            success_rate_percent: totals.success_rate_percent(),
            average_time_seconds: totals.average_seconds(),
        }
    }
}

impl Snapshot {
    /// The snapshot as the control socket shows it at `now`.
    #[must_use]
    pub fn report(&self, now: Timestamp) -> StatsReport {
        let uptime = self.uptime(now).as_secs_f64();
        StatsReport {
            daemon_start_time: self.daemon_start_time,
            uptime_seconds: two_decimals(uptime),
            uptime_hours: two_decimals(uptime / 3600.0),
            total_processed: self.totals.all.succeeded,
            total_failed: self.totals.all.failed,
            total_retried: self.totals.retried,
            total_cancelled: self.totals.cancelled,
            total_duplicates: self.totals.duplicates,
            success_rate_percent: self.totals.all.success_rate_percent(),
            average_processing_time_seconds: self.totals.all.average_seconds(),
            current_queue_depth: self.queue_depth,
            active_jobs: self.active_jobs(),
            settling: self.settling,
            retrying: self.retrying,
            notifications_pending: self.notifications.pending,
            notifications_given_up: self.notifications.given_up,
            current_jobs: self.current_jobs.clone(),
            by_file_type: self.totals.by_type.iter().map(|(name, totals)| (name.clone(), totals.into())).collect(),
            recent_completed: self.recent_completed.clone(),
            last_activity: self.last_activity,
            paused: self.run_state == RunState::Paused,
            draining: self.run_state == RunState::Draining,
            stopping: self.run_state == RunState::Stopped,
            version: self.version.clone(),
            total_superseded: self.totals.superseded,
            total_given_back: self.totals.given_back,
            ignored: self.ignored,
            total_removed_processed: self.totals.removed.processed,
            total_removed_errors: self.totals.removed.errors,
            total_removed_outputs: self.totals.removed.outputs,
            total_removed_bytes: self.totals.removed.bytes,
            last_updated: None,
        }
    }

    /// The snapshot as stats.json shows it, written `now`.
    #[must_use]
    pub fn file_report(&self, now: Timestamp) -> StatsReport {
        StatsReport { last_updated: Some(now), ..self.report(now) }
    }
}

/// The lines of the summary, logged one by one: people grep for each.
#[must_use]
pub fn summary(snapshot: &Snapshot, now: Timestamp) -> Vec<String> {
    let report = snapshot.report(now);
    let mut lines = vec![
        "📊 DAEMON STATISTICS".to_owned(),
        format!("Uptime: {:.1} hours", report.uptime_hours),
        format!("Total Processed: {}", report.total_processed),
        format!("Total Failed: {}", report.total_failed),
        format!("Total Retried: {}", report.total_retried),
        format!("Total Cancelled: {}", report.total_cancelled),
        format!("Total Duplicates: {}", report.total_duplicates),
        format!("Success Rate: {:.1}%", report.success_rate_percent),
        format!("Avg Processing Time: {:.1}s", report.average_processing_time_seconds),
        format!("Queue Depth: {}", report.current_queue_depth),
        format!("Active Jobs: {}", report.active_jobs),
    ];
    if !report.by_file_type.is_empty() {
        lines.push("By File Type:".to_owned());
    }
    for (name, totals) in &report.by_file_type {
        lines.push(format!(
            "  {name}: {} ok, {} failed, {:.1}% success",
            totals.processed, totals.failed, totals.success_rate_percent
        ));
    }
    lines
}
