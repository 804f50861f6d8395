// SPDX-License-Identifier: Apache-2.0
//! A snapshot as metrics for Prometheus.

use std::collections::BTreeSet;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::conversion::admission::RunState;
use crate::stats::Snapshot;

/// Content type of [`exposition`].
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// All metrics of a daemon at `now`: first under the names that exporters of stats.json use, then under ours, in base
/// units.
#[must_use]
pub(crate) fn render(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut registry = Registry::with_prefix("hyper2kvm");
    legacy(&mut registry, snapshot, now);
    outcomes(&mut registry, snapshot);
    notifications(&mut registry, snapshot);
    present(&mut registry, snapshot);
    exposition(&registry)
}

fn legacy(registry: &mut Registry, snapshot: &Snapshot, now: Timestamp) {
    let totals = &snapshot.totals;
    registry.register("processed", "Conversions that succeeded", ConstCounter::new(totals.all.succeeded));
    registry.register("failed", "Conversions that failed for good", ConstCounter::new(totals.all.failed));
    gauge(registry, "queue_depth", "Stable files that wait for a slot", snapshot.queue_depth);
    let uptime = ConstGauge::new(snapshot.uptime(now).as_secs_f64());
    registry.register("uptime_seconds", "Time since the start", uptime);
    let rate = ConstGauge::new(totals.all.success_rate_percent());
    registry.register("success_rate", "Successes among what ended, in percent", rate);
}

fn outcomes(registry: &mut Registry, snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    let conversions = Family::<Labels, Counter>::default();
    for (outcome, count) in [
        ("succeeded", totals.all.succeeded),
        ("failed", totals.all.failed),
        ("cancelled", totals.cancelled),
        ("duplicate", totals.duplicates),
        ("given_back", totals.given_back),
    ] {
        conversions.get_or_create(&vec![("outcome", outcome.to_owned())]).inc_by(count);
    }
    registry.register("conversions", "Conversions that ended, by outcome", conversions);

    let by_type = Family::<Labels, Counter>::default();
    for (file_type, of_type) in &totals.by_type {
        for (outcome, count) in [("succeeded", of_type.succeeded), ("failed", of_type.failed)] {
            let labels = vec![("type", file_type.clone()), ("outcome", outcome.to_owned())];
            by_type.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register("conversions_by_type", "Conversions that ended, by file type and outcome", by_type);

    registry.register("retries", "Attempts after the first that were scheduled", ConstCounter::new(totals.retried));
    let help = "Outputs of single files that turned out to be members of what was converted later";
    registry.register("superseded_outputs", help, ConstCounter::new(totals.superseded));
    let removed = Family::<Labels, Counter>::default();
    let kinds = [
        ("processed", totals.removed.processed),
        ("errors", totals.removed.errors),
        ("outputs", totals.removed.outputs),
    ];
    for (kind, count) in kinds {
        removed.get_or_create(&vec![("kind", kind.to_owned())]).inc_by(count);
    }
    registry.register("retention_removed", "Conversions of which retention removed this kind of files", removed);
    let help = "Bytes that retention removed";
    registry.register("retention_removed_bytes", help, ConstCounter::new(totals.removed.bytes));
    #[expect(clippy::cast_precision_loss, reason = "exact up to 285,000 years")]
    let seconds = totals.all.succeeded_ms as f64 / 1000.0;
    registry.register("conversion_seconds", "Time that successful conversions took", ConstCounter::new(seconds));
}

fn notifications(registry: &mut Registry, snapshot: &Snapshot) {
    let totals = &snapshot.notifications;
    let ended = Family::<Labels, Counter>::default();
    for (outcome, count) in [("sent", totals.sent), ("given_up", totals.given_up)] {
        ended.get_or_create(&vec![("outcome", outcome.to_owned())]).inc_by(count);
    }
    registry.register("notifications", "Notifications that were sent or given up", ended);
    gauge(registry, "notifications_pending", "Notifications that wait for their delivery", totals.pending);
}

fn present(registry: &mut Registry, snapshot: &Snapshot) {
    gauge(registry, "active_conversions", "Attempts that run now", snapshot.active_jobs());
    gauge(registry, "settling_files", "Files seen that are not stable yet", snapshot.settling);
    gauge(registry, "retrying_conversions", "Conversions that wait for their next attempt", snapshot.retrying);
    gauge(registry, "ignored_files", "Entries of the queue directory that are never taken", snapshot.ignored);

    let states = Family::<Labels, Gauge>::default();
    for state in [RunState::Running, RunState::Paused, RunState::Draining, RunState::Stopped] {
        let labels = vec![("state", format!("{state:?}").to_lowercase())];
        states.get_or_create(&labels).set(i64::from(state == snapshot.run_state));
    }
    registry.register("run_state", "Whether new work is taken up: 1 for the present state", states);

    let start = ConstGauge::new(seconds_since_epoch(snapshot.daemon_start_time));
    registry.register("start_time_seconds", "When the daemon started, since the epoch", start);
    if let Some(last) = snapshot.last_activity {
        let last = ConstGauge::new(seconds_since_epoch(last));
        let help = "When something last started, progressed or finished, since the epoch";
        registry.register("last_activity_timestamp_seconds", help, last);
    }
    let build = Family::<Labels, Gauge>::default();
    build.get_or_create(&vec![("version", snapshot.version.clone())]).set(1);
    registry.register("build_info", "The version that runs", build);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
}

fn seconds_since_epoch(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

/// Everything registered, in the text format that every scraper reads.
///
/// The encoder writes `OpenMetrics`, where a counter's samples have a suffix that its description lacks. Readers of
/// the older format, such as promtool, take the two for different metrics.
#[must_use]
pub(crate) fn exposition(registry: &Registry) -> String {
    let mut open_metrics = String::new();
    encode(&mut open_metrics, registry).expect("writing to a string does not fail");
    let counters: BTreeSet<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        let is_comment = words.next() == Some("#");
        match (is_comment, words.next(), words.next(), words.next()) {
            (true, Some("EOF" | "UNIT"), ..) => continue,
            (true, Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                text.extend(["# ", kind, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Asserts that Prometheus accepts this text without a warning.
#[cfg(test)]
pub(crate) fn promtool_takes(text: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("SKIPPED: promtool is not installed (Debian: prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
    assert!(output.status.success());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::conversion::retention::Removal;
    use crate::stats::{JobStats, NotificationTotals};

    fn busy() -> Snapshot {
        let start = Timestamp::from_second(1_768_642_800).unwrap();
        let mut snapshot = Snapshot { queue_depth: 3, settling: 1, retrying: 2, ..Snapshot::new(start) };
        snapshot.version = "1.2.3".to_owned();
        snapshot.last_activity = Some(start);
        snapshot.run_state = RunState::Paused;
        snapshot.notifications = NotificationTotals { pending: 2, sent: 5, given_up: 1 };
        snapshot.current_jobs = vec![JobStats::started("a.ova", 1, 0, start)];
        snapshot.totals.count_success("a.vmdk", Duration::from_millis(2500), 0, start);
        snapshot.totals.count_success("a.vmdk", Duration::from_millis(1000), 0, start);
        snapshot.totals.count_success("a.vmdk", Duration::from_millis(1000), 0, start);
        snapshot.totals.count_removed(Removal::Errors, 7);
        snapshot.totals.count_failure("we\"ird\\.vmdk", start);
        snapshot
    }

    fn rendered() -> String {
        let snapshot = busy();
        render(&snapshot, snapshot.daemon_start_time + Duration::from_secs(90))
    }

    #[test]
    fn the_names_of_the_stats_json_exporter_are_there() {
        let text = rendered();
        for line in [
            "# TYPE hyper2kvm_processed_total counter",
            "hyper2kvm_processed_total 3",
            "hyper2kvm_failed_total 1",
            "hyper2kvm_queue_depth 3",
            "hyper2kvm_uptime_seconds 90.0",
            "hyper2kvm_success_rate 75.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_counter_of_a_snapshot_is_shown() {
        let text = rendered();
        for line in [
            "hyper2kvm_conversions_total{outcome=\"succeeded\"} 3",
            "hyper2kvm_conversions_total{outcome=\"duplicate\"} 0",
            "hyper2kvm_conversions_by_type_total{type=\"vmdk\",outcome=\"failed\"} 1",
            "hyper2kvm_retries_total 0",
            "hyper2kvm_retention_removed_total{kind=\"errors\"} 1",
            "hyper2kvm_retention_removed_bytes_total 7",
            "hyper2kvm_conversion_seconds_total 4.5",
            "hyper2kvm_notifications_total{outcome=\"given_up\"} 1",
            "hyper2kvm_notifications_pending 2",
            "hyper2kvm_active_conversions 1",
            "hyper2kvm_settling_files 1",
            "hyper2kvm_retrying_conversions 2",
            "hyper2kvm_run_state{state=\"paused\"} 1",
            "hyper2kvm_run_state{state=\"running\"} 0",
            "hyper2kvm_start_time_seconds 1768642800.0",
            "hyper2kvm_last_activity_timestamp_seconds 1768642800.0",
            "hyper2kvm_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn promtool_finds_nothing_to_complain_about() {
        promtool_takes(&rendered());
    }
}
