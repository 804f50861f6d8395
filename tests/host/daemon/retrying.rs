// SPDX-License-Identifier: Apache-2.0
//! Retries: their schedule, the files between attempts, and what survives a restart.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use rstest::rstest;
use rustix::process::Signal;

use crate::support::daemon::{Site, at_best, disk, second};
use crate::support::server::{Manner, Server};

const POLICY: &str = "retry_policy: {enabled: true, max_retries: 3, retry_delay: 2, backoff_multiplier: 2.0}";

#[test]
fn a_transient_failure_is_tried_at_0_2_6_and_14_seconds_over_a_restart() {
    at_best(|| {
        let starts = starts_of_what_fails_for_good();
        for (n, due) in [(1, 2.0), (2, 6.0), (3, 14.0)] {
            let waited = starts[n] - starts[0];
            // A clock that is off by a rounding error is still on time.
            assert!(waited >= due - 0.01, "attempt {} after {waited} s, due after {due} s", n + 1);
            if waited > due + 0.5 {
                return Err(format!("attempt {} after {waited} s, due after {due} s", n + 1));
            }
        }
        Ok(())
    });
}

/// Start times of all attempts at a file that always fails, across a restart. Checks the messages and files on the
/// way.
fn starts_of_what_fails_for_good() -> Vec<f64> {
    let server = Server::start(Manner::Answers);
    let site = Site::new(&format!("{POLICY}\nnotifications: {{enabled: true, webhook_url: \"{}\"}}", server.url()));
    let fail = [("HYPER2KVM_TEST_FAIL", "SourceIO")];
    let mut daemon = site.start_with(&fail);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is parked", || site.in_errors() == ["vm.raw"]);
    daemon.until("its report lies beside it", || site.queue().join(".errors/vm.raw.error.json").exists());
    let report = site.error_file("vm.raw");
    assert_eq!((&report["reason"], &report["class"]), (&"SourceIO".into(), &"Transient".into()));
    assert_eq!(report["retry_info"]["retry_count"], 0);
    assert!(report["retry_info"]["next_retry_at"].is_string());
    assert_eq!(daemon.lines("Retry 1/3 for vm.raw in 2s").len(), 1);
    daemon.until("the third attempt has failed", || daemon.lines("Retry 3/3 for vm.raw in 8s").len() == 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    let before = daemon.lines("attempt started");

    let daemon = site.start_with(&fail);
    daemon.until("it has failed for good", || daemon.lines("❌ Failed: vm.raw").len() == 1);
    let starts: Vec<f64> = before.iter().chain(&daemon.lines("attempt started")).map(|line| second(line)).collect();
    assert_eq!(starts.len(), 4);
    let told = server.next();
    assert_eq!((&told["event"], &told["retry_count"]), (&"conversion_failure".into(), &3.into()));
    let report = site.queue().join(".errors/vm.raw.error.json");
    daemon.until("the last report says so", || {
        report.exists() && site.error_file("vm.raw")["retry_info"]["next_retry_at"].is_null()
    });
    assert_eq!(site.error_file("vm.raw")["retry_info"]["retry_count"], 3);
    daemon.until("it is counted", || daemon.stats()["total_failed"] == 1);
    assert_eq!(daemon.stats()["total_retried"], 3);
    assert_eq!(site.in_errors(), ["vm.raw"]);
    assert_eq!(server.posted.try_iter().collect::<Vec<_>>(), Vec::<serde_json::Value>::new(), "told once");
    starts
}

#[test]
fn a_success_removes_what_was_said_about_earlier_attempts() {
    let site = Site::new("retry_policy: {retry_delay: 1}");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO:1")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    assert_eq!(site.names("queue/.errors"), Vec::<String>::new());
    assert_eq!(daemon.lines("🔄 Retrying vm.raw (attempt 2)").len(), 1);
}

#[rstest]
fn a_worker_killed_between_two_steps_is_followed_by_one_that_goes_on(
    #[values("copied.json", "verified.json", "digested.json", "metadata.json")] marker: &str,
    #[values(false, true)] restarts: bool,
) {
    let site = Site::new("checksum: true\nretry_policy: {retry_delay: 2}");
    let mut daemon = site.start_with(&[("HYPER2KVM_TEST_DIE", &format!("{marker}:1"))]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is parked", || site.in_errors() == ["vm.raw"]);
    assert_eq!(site.published(), Vec::<String>::new());
    let id = site.names("output/.work").remove(0);
    let folder = site.output().join(".work").join(id).join("1/worker");
    assert_eq!(folder.join("metadata.json").exists(), marker == "metadata.json");
    let copied = fs::metadata(folder.join("vm.qcow2")).unwrap().ino();
    if restarts {
        drop(daemon);
        daemon = site.start();
    }
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    let published = format!("output/{day}/vm");
    assert_eq!(site.names(&published), ["metadata.json", "vm.qcow2"]);
    let disk = site.dir.path().join(published).join("vm.qcow2");
    assert_eq!(fs::metadata(disk).unwrap().ino(), copied, "it was copied again");
    daemon.until("its work directory is gone", || site.names("output/.work").is_empty());
}

#[test]
fn without_retries_a_failure_is_final_at_once() {
    let site = Site::new("retry_policy: {enabled: false}");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is counted", || daemon.stats()["total_failed"] == 1);
    daemon.until("its report is there", || site.queue().join(".errors/vm.raw.error.json").exists());
    assert!(site.error_file("vm.raw")["retry_info"]["next_retry_at"].is_null());
    assert_eq!(daemon.stats()["total_retried"], 0);
}

#[test]
fn a_corrected_file_of_the_same_name_takes_the_place_of_a_retry() {
    let site = Site::new("retry_policy: {retry_delay: 3600}");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO:1")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is parked", || site.in_errors() == ["vm.raw"]);
    site.drop_file("vm.raw", &disk(1)[..8192]);
    daemon.until("the old one is given up, the new one parked", || site.in_errors() == ["vm-1.raw", "vm.raw"]);
    daemon.until("that is counted", || daemon.stats()["total_cancelled"] == 1);
    assert_eq!(fs::read(site.queue().join(".errors/vm.raw")).unwrap(), disk(0));
}

#[test]
fn what_is_moved_back_by_hand_is_a_new_conversion() {
    let site = Site::new("retry_policy: {enabled: false}");
    let mut daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it has failed", || daemon.stats()["total_failed"] == 1 && site.in_errors() == ["vm.raw"]);
    daemon.signal(Signal::TERM);
    daemon.end_within(Duration::from_secs(10));
    fs::rename(site.queue().join(".errors/vm.raw"), site.queue().join("vm.raw")).unwrap();
    let daemon = site.start();
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    assert_eq!(daemon.stats()["total_processed"], 1);
}

#[test]
fn what_waited_for_a_retry_is_taken_up_when_a_damaged_ledger_was_moved_aside() {
    let site = Site::new("retry_policy: {max_retries: 3, retry_delay: 4, backoff_multiplier: 1.0}");
    let mut daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it waits for its second retry", || daemon.lines("Retry 2/3 for vm.raw").len() == 1);
    daemon.until("in its place", || {
        site.in_errors() == ["vm.raw"]
            && site.queue().join(".errors/vm.raw.error.json").exists()
            && site.error_file("vm.raw")["retry_info"]["retry_count"] == 1
    });
    daemon.signal(Signal::TERM);
    daemon.end_within(Duration::from_secs(10));
    for name in site.names("output/.daemon").iter().filter(|name| name.starts_with("deduplication.db")) {
        fs::remove_file(site.output().join(".daemon").join(name)).unwrap();
    }
    let daemon = site.start();
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    assert_eq!(daemon.lines("🔄 Retrying vm.raw (attempt 3)").len(), 1, "{}", daemon.log());
    daemon.until("nothing is left", || site.names("queue/.errors").is_empty());
}
