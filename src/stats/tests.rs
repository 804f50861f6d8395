// SPDX-License-Identifier: Apache-2.0
//! Tests of counters and views.
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_768_642_800 + seconds).expect("a time in 2026")
}

fn busy() -> Snapshot {
    let notifications = NotificationTotals { pending: 2, sent: 9, given_up: 1 };
    let mut snapshot = Snapshot { queue_depth: 3, settling: 1, retrying: 1, notifications, ..Snapshot::new(at(0)) };
    snapshot.version = "1.2.3".to_owned();
    snapshot.last_activity = Some(at(45_000));
    snapshot.run_state = RunState::Paused;
    snapshot.current_jobs = vec![JobStats::started("big.OVA", 3 << 30, 1, at(44_990))];
    for _ in 0..30 {
        snapshot.totals.count_success("a.vmdk", Duration::from_millis(125_300), 1 << 20, at(10));
    }
    snapshot.totals.count_failure("b.VMDK", at(112));
    snapshot.totals.count_retry();
    snapshot.totals.count_duplicate();
    snapshot.totals.count_cancelled();
    snapshot.totals.count_superseded(2);
    snapshot.ignored = 3;
    for (what, bytes) in [(Removal::Processed, 5), (Removal::Errors, 6), (Removal::Output, 7), (Removal::Output, 8)] {
        snapshot.totals.count_removed(what, bytes);
    }
    let failed = JobStats::started("b.VMDK", 1_572_864, 3, at(100)).ended(
        JobStatus::Failed,
        Some("grain table beyond the end".to_owned()),
        at(112),
    );
    snapshot.recent_completed.push(failed);
    snapshot
}

#[test]
fn stats_json_has_the_keys_its_readers_know() {
    let json = serde_json::to_value(busy().file_report(at(45_000))).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "daemon_start_time": "2026-01-17T09:40:00Z",
            "uptime_seconds": 45_000.0,
            "uptime_hours": 12.5,
            "total_processed": 30,
            "total_failed": 1,
            "total_retried": 1,
            "total_cancelled": 1,
            "total_duplicates": 1,
            "success_rate_percent": 96.77,
            "average_processing_time_seconds": 125.3,
            "current_queue_depth": 3,
            "active_jobs": 1,
            "settling": 1,
            "retrying": 1,
            "notifications_pending": 2,
            "notifications_given_up": 1,
            "current_jobs": [{
                "filename": "big.OVA", "file_type": "ova", "file_size_mb": 3072.0,
                "start_time": "2026-01-17T22:09:50Z", "end_time": null, "duration_seconds": null,
                "status": "processing", "error": null, "retry_count": 1,
            }],
            "by_file_type": {"vmdk": {
                "processed": 30, "failed": 1, "success_rate_percent": 96.77, "average_time_seconds": 125.3,
            }},
            "recent_completed": [{
                "filename": "b.VMDK", "file_type": "vmdk", "file_size_mb": 1.5,
                "start_time": "2026-01-17T09:41:40Z", "end_time": "2026-01-17T09:41:52Z", "duration_seconds": 12.0,
                "status": "failed", "error": "grain table beyond the end", "retry_count": 3,
            }],
            "last_activity": "2026-01-17T22:10:00Z",
            "paused": true,
            "draining": false,
            "stopping": false,
            "version": "1.2.3",
            "total_superseded": 2,
            "total_given_back": 0,
            "ignored": 3,
            "total_removed_processed": 1,
            "total_removed_errors": 1,
            "total_removed_outputs": 2,
            "total_removed_bytes": 26,
            "last_updated": "2026-01-17T22:10:00Z",
        })
    );
}

#[test]
fn only_the_file_says_when_it_was_written() {
    let json = serde_json::to_value(busy().report(at(1))).unwrap();
    assert_eq!(json.get("last_updated"), None);
}

#[test]
fn nothing_done_divides_by_nothing() {
    let report = Snapshot::new(at(0)).report(at(-5));
    assert_eq!(
        (report.success_rate_percent, report.average_processing_time_seconds, report.uptime_seconds),
        (0.0, 0.0, 0.0)
    );
}

#[test]
fn times_carry_no_fraction_and_come_back() {
    let now: Timestamp = "2026-01-17T09:45:00.987654321Z".parse().unwrap();
    let job = JobStats::started("a.raw", 1, 0, now).ended(JobStatus::Success, None, now);
    let text = serde_json::to_string(&job).unwrap();
    assert!(text.contains(r#""end_time":"2026-01-17T09:45:00Z""#), "{text}");
    let back: JobStats = serde_json::from_str(&text).unwrap();
    assert_eq!(back.end_time, Some("2026-01-17T09:45:00Z".parse().unwrap()));
}

#[test]
fn a_snapshot_survives_the_way_to_the_sidecar() {
    let snapshot = busy();
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
}

#[test]
fn totals_of_an_older_ledger_are_taken_as_they_are() {
    let totals: Totals = serde_json::from_str(r#"{"all":{"succeeded":2},"somethingNew":1}"#).unwrap();
    assert_eq!(totals, Totals { all: TypeTotals { succeeded: 2, ..TypeTotals::default() }, ..Totals::default() });
}

#[test]
fn files_are_counted_by_extension() {
    for (name, expected) in [("A.VMDK", "vmdk"), ("x.tar.ova", "ova"), ("plain", "unknown"), ("dot.", "unknown")] {
        assert_eq!(file_type(name), expected);
    }
}

#[test]
fn the_summary_says_what_people_grep_for() {
    assert_eq!(
        summary(&busy(), at(45_000)),
        [
            "📊 DAEMON STATISTICS",
            "Uptime: 12.5 hours",
            "Total Processed: 30",
            "Total Failed: 1",
            "Total Retried: 1",
            "Total Cancelled: 1",
            "Total Duplicates: 1",
            "Success Rate: 96.8%",
            "Avg Processing Time: 125.3s",
            "Queue Depth: 3",
            "Active Jobs: 1",
            "By File Type:",
            "  vmdk: 30 ok, 1 failed, 96.8% success",
        ]
    );
}

#[test]
fn stats_json_replaces_whatever_lies_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let elsewhere = directory.path().join("elsewhere");
    std::fs::write(&path, "{half of").unwrap();
    std::os::unix::fs::symlink(&elsewhere, directory.path().join("stats.json.tmp")).unwrap();

    write(&path, &busy().file_report(at(7))).unwrap();

    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["last_updated"], "2026-01-17T09:40:07Z");
    assert!(!elsewhere.exists(), "a planted link must not be followed");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    std::fs::write(&elsewhere, "with mode 0666 less umask").unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&elsewhere) & !0o022, "exporters under other users read it");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = write(std::path::Path::new("/nonexistent/stats.json"), &busy().file_report(at(0))).unwrap_err();
    assert_eq!(error.to_string(), "cannot write /nonexistent/stats.json.tmp");
}
