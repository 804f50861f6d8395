// SPDX-License-Identifier: Apache-2.0
//! SIGHUP: a log file that was renamed is opened anew, and the configuration is read again.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::daemon::{Site, disk};
use crate::support::server::{Manner, Server};

#[test]
fn a_log_that_was_renamed_is_written_on_under_its_name() {
    let site = Site::new("");
    let (log, rotated) = (site.dir.path().join("daemon.log"), site.dir.path().join("daemon.log.1"));
    site.configure(&format!("log_file: {}", log.display()));
    let mut daemon = site.start();
    fs::rename(&log, &rotated).unwrap();
    daemon.signal(Signal::HUP);
    daemon.until("it is there again", || fs::read_to_string(&log).is_ok_and(|text| text.contains("read anew")));
    let old = fs::read_to_string(&rotated).unwrap();
    assert!(old.contains("Daemon ready") && !old.contains("read anew"), "{old}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(5)).code(), Some(0));
    assert!(fs::read_to_string(&log).unwrap().contains("DAEMON STATISTICS"));
}

#[test]
fn a_log_file_in_a_missing_directory_is_an_error_that_names_it_and_is_not_made() {
    let site = Site::new("");
    let (log, lost) = (site.dir.path().join("daemon.log"), site.dir.path().join("lost"));
    site.configure(&format!("log_file: {}", log.display()));
    let daemon = site.start();
    site.configure(&format!("log_file: {}", lost.join("daemon.log").display()));
    site.write_config();
    for times in 1..=2 {
        daemon.signal(Signal::HUP);
        daemon.until("it is read", || daemon.lines("configuration read anew").len() == times);
        let told = daemon.lines("the log file stays as it was");
        assert!(told.len() == times && told[0].contains(&format!("directory {} of", lost.display())), "{told:?}");
    }
    assert!(!lost.exists());
    assert!(fs::read_to_string(&log).unwrap().contains("configuration read anew"), "the old one is written on");
    assert_eq!(daemon.lines("applied").len(), 0, "nothing changed: {}", daemon.log());
    fs::create_dir(&lost).unwrap();
    daemon.signal(Signal::HUP);
    daemon.until("the new one is written", || {
        fs::read_to_string(lost.join("daemon.log")).is_ok_and(|text| !text.is_empty())
    });
    daemon.until("it is told", || daemon.lines("applied=\"log_file\"").len() == 1);
}

#[test]
fn more_conversions_run_side_by_side_after_a_reload_and_what_runs_goes_on() {
    let site = Site::new("max_concurrent_jobs: 1");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    for n in 0..4 {
        site.drop_file(&format!("vm{n}.raw"), &disk(n));
    }
    daemon.until("one runs and three wait", || daemon.status("active_jobs") == 1 && daemon.status("queue_depth") == 3);
    let first = daemon.workers();
    site.configure("max_concurrent_jobs: 3\nout_format: raw");
    site.write_config();
    daemon.signal(Signal::HUP);
    daemon.until("three run", || daemon.status("active_jobs") == 3);
    assert!(daemon.workers().contains(&first[0]), "the first goes on");
    assert_eq!(daemon.lines("need a restart: out_format").len(), 1, "{}", daemon.log());
    assert_eq!(daemon.lines("configuration read anew applied=\"max_concurrent_jobs\"").len(), 1, "{}", daemon.log());
}

#[test]
fn a_bad_configuration_is_refused_in_the_words_of_a_start_and_the_old_one_stays() {
    let site = Site::new("max_concurrent_jobs: 2");
    let daemon = site.start();
    site.configure("max_concurrent_jobs: many");
    let config = site.write_config();
    let checked = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
        .args(["daemon", "--check-config", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    let words = said.trim_end().strip_prefix("Error: ").unwrap();
    daemon.signal(Signal::HUP);
    daemon.until("it is refused", || !daemon.lines("the configuration is refused and stays as it was").is_empty());
    assert_eq!(daemon.lines(words).len(), 1, "{words}\n{}", daemon.log());
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it goes on", || site.archived() == ["vm.raw"]);
}

#[test]
fn another_webhook_hears_of_what_ends_after_a_reload() {
    let (before, after) = (Server::start(Manner::Answers), Server::start(Manner::Answers));
    let config = |server: &Server| {
        format!("notifications: {{enabled: true, on_success: true, webhook_url: \"{}\"}}", server.url())
    };
    let site = Site::new(&config(&before));
    let daemon = site.start();
    site.drop_file("vm0.raw", &disk(0));
    assert_eq!(before.next()["filename"], "vm0.raw");
    site.configure(&config(&after));
    site.write_config();
    daemon.signal(Signal::HUP);
    daemon.until("it is read", || !daemon.lines("configuration read anew").is_empty());
    site.drop_file("vm1.raw", &disk(1));
    assert_eq!(after.next()["filename"], "vm1.raw");
    assert!(before.posted.try_recv().is_err(), "the old one hears no more");
}
