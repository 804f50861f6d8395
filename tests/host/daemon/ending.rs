// SPDX-License-Identifier: Apache-2.0
//! Signals, stop, drain, pause, and the second daemon.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::{Daemon, Site, disk};

const HANG: &[(&str, &str)] = &[("HYPER2KVM_TEST_HANG", "1")];

#[test]
fn sigterm_ends_an_idle_daemon_in_order() {
    let site = Site::new("");
    let mut daemon = site.start();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(2)).code(), Some(0));
    assert!(!daemon.lines("📊 DAEMON STATISTICS").is_empty());
    assert!(!site.output().join(".daemon/control.sock").exists());
    let stats = std::fs::read(site.output().join(".daemon/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats).unwrap();
    assert_eq!(stats["total_processed"], 0);
}

#[test]
fn a_daemon_that_is_stopped_while_it_starts_ends_in_order() {
    let site = Site::new("");
    // In several of its steps.
    for after in [0, 10, 30, 100] {
        let mut daemon = site.spawn(&[]);
        let caught = format!("/proc/{}/status", daemon.child.id());
        daemon.until("it receives signals", || {
            let status = std::fs::read_to_string(&caught).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
            u64::from_str_radix(mask, 16).unwrap() & (1 << (Signal::TERM.as_raw() - 1)) != 0
        });
        std::thread::sleep(Duration::from_millis(after));
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0), "{after} ms:\n{}", daemon.log());
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_in_the_temporary_directory() {
    let site = Site::new("");
    let temporary = site.dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut daemon = site.start_with(&[HANG[0], ("TMPDIR", temporary.to_str().unwrap())]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.status("active_jobs") == 1);
    daemon.signal(Signal::KILL);
    daemon.end_within(Duration::from_secs(10));
    assert_eq!(site.names("tmp"), Vec::<String>::new());
}

#[test]
fn sigterm_amid_work_loses_nothing_and_the_next_start_finishes_all() {
    let site = Site::new("max_concurrent_jobs: 3");
    let mut daemon = site.start_with(HANG);
    for n in 0..8 {
        site.drop_file(&format!("vm{n}.raw"), &disk(n));
    }
    daemon.until("three run and five wait", || daemon.status("active_jobs") == 3 && daemon.status("queue_depth") == 5);
    let workers = daemon.workers();
    assert_eq!(workers.len(), 3);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    for worker in workers {
        assert!(!Path::new(&format!("/proc/{worker}")).exists(), "worker {worker} lives on");
    }
    assert_eq!(site.published(), Vec::<String>::new());
    assert_eq!(site.in_errors(), Vec::<String>::new());

    let daemon = site.start();
    daemon.until("all eight are archived", || site.archived().len() == 8);
    daemon.until("all are counted", || daemon.stats()["total_processed"] == 8);
    assert_eq!(site.published().len(), 8);
    assert_eq!(daemon.stats()["total_retried"], 0);
    daemon.until("nothing is left behind", || site.names("output/.work").is_empty());
}

#[test]
fn a_pause_survives_a_restart_and_resume_undoes_it() {
    let site = Site::new("");
    let mut daemon = site.start();
    assert_eq!(daemon.ask("pause")["message"], "Daemon paused");
    site.drop_file("vm.raw", &disk(0));
    daemon.until("the file is seen", || daemon.status("queue_depth") == 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(5)).code(), Some(0));

    let daemon = site.start();
    assert_eq!(daemon.ask("status")["paused"], true);
    daemon.until("the file is there again", || daemon.status("queue_depth") == 1);
    assert_eq!(site.published(), Vec::<String>::new());
    assert_eq!(daemon.ask("resume")["message"], "Daemon resumed");
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
}

#[test]
fn stop_is_answered_at_once_and_leaves_no_partial_output() {
    let site = Site::new("");
    let mut daemon = site.start_with(HANG);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.workers().len() == 1);
    let worker = daemon.workers()[0];
    assert_eq!(daemon.ask("stop")["message"], "Stopping daemon");
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    assert!(!Path::new(&format!("/proc/{worker}")).exists());
    assert_eq!((site.published(), site.in_errors()), (vec![], vec![]));
    // Of the conversion that is to go on, only the directory remains.
    let works = site.names("output/.work");
    assert!(works.iter().all(|id| site.names(&format!("output/.work/{id}")).is_empty()), "{works:?}");
}

#[test]
fn stop_ends_an_idle_daemon_in_order() {
    let site = Site::new("");
    let mut daemon = site.start();
    let asked = Instant::now();
    assert_eq!(daemon.ask("stop"), serde_json::json!({"status": "ok", "message": "Stopping daemon"}));
    assert!(asked.elapsed() < Duration::from_secs(1), "answered after {:?}", asked.elapsed());
    assert_eq!(daemon.end_within(Duration::from_secs(2)).code(), Some(0));
    assert_eq!(daemon.lines("📊 DAEMON STATISTICS").len(), 1);
    assert!(!site.output().join(".daemon/control.sock").exists());
}

#[test]
fn a_second_signal_ends_at_once() {
    let site = Site::new("");
    let mut daemon = site.start_with(HANG);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.workers().len() == 1);
    daemon.signal(Signal::INT);
    daemon.signal(Signal::TERM);
    daemon.end_within(Duration::from_secs(6));
}

#[test]
fn drain_finishes_the_queue_and_takes_nothing_more() {
    let site = Site::new("max_concurrent_jobs: 1");
    let mut daemon = site.start();
    daemon.ask("pause");
    for n in 0..3 {
        site.drop_file(&format!("vm{n}.raw"), &disk(n));
    }
    daemon.until("three wait", || daemon.status("queue_depth") == 3);
    assert_eq!(daemon.ask("drain")["message"], "Draining queue");
    site.drop_file("late.raw", &disk(9));
    assert_eq!(daemon.end_within(Duration::from_secs(60)).code(), Some(0));
    assert_eq!(site.archived(), ["vm0.raw", "vm1.raw", "vm2.raw"]);
    assert_eq!(site.waiting(), ["late.raw"]);
}

#[test]
fn the_second_daemon_on_one_directory_refuses() {
    let site = Site::new("");
    let daemon = site.start();
    let mut second = site.spawn(&[]);
    assert_eq!(second.end_within(Duration::from_secs(20)).code(), Some(2));
    assert_eq!(daemon.ask("status")["status"], "ok");
}

#[test]
fn a_second_daemon_on_one_of_two_directories_refuses_and_adopts_nothing() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    let (queue, output) = (site.dir.path().join("q2"), site.dir.path().join("o2"));
    for (option, other) in [("--output-dir", &output), ("--watch-dir", &queue)] {
        for adopt in [&[][..], &["--adopt"]] {
            let other = other.to_str().unwrap();
            let mut second = site.spawn_with(&[&[option, other], adopt].concat(), &[]);
            assert_eq!(second.end_within(Duration::from_secs(20)).code(), Some(2), "{}", second.log());
            let pid = daemon.pid().as_raw_nonzero();
            assert_eq!(second.lines(&format!("is in use by process {pid} on")).len(), 1, "{}", second.log());
        }
    }
    stop(daemon);
    let daemon = site.start();
    site.drop_file("next.raw", &disk(1));
    daemon.until("it works on", || site.archived() == ["next.raw", "vm.raw"]);
}

#[test]
fn a_directory_in_a_queue_is_no_other_queue_and_no_output() {
    let site = Site::new("");
    let daemon = site.start();
    for (option, below) in [("--watch-dir", ".processed"), ("--watch-dir", "sub"), ("--output-dir", "out/deep")] {
        let inner = site.queue().join(below);
        let other = if option == "--watch-dir" { "--output-dir" } else { "--watch-dir" };
        let (inner, beside) = (inner.to_str().unwrap(), site.dir.path().join("beside"));
        let arguments = [option, inner, other, beside.to_str().unwrap()];
        let mut second = site.spawn_with(&arguments, &[]);
        assert_eq!(second.end_within(Duration::from_secs(20)).code(), Some(2), "{}", second.log());
        assert_eq!(second.lines("which is a queue").len(), 1, "{}", second.log());
        assert!(!beside.join(".hyper2kvm-volume").exists());
    }
    stop(daemon);
}

#[test]
fn sigusr1_logs_the_summary_and_harms_nobody() {
    let site = Site::new("");
    let daemon = site.start();
    daemon.signal(Signal::USR1);
    daemon.until("the summary is logged", || !daemon.lines("Total Processed: 0").is_empty());
    assert_eq!(daemon.ask("status")["status"], "ok");
}

#[test]
fn sigterm_while_paused_with_a_backlog_loses_nothing() {
    let site = Site::new("");
    let mut daemon = site.start();
    daemon.ask("pause");
    for n in 0..8 {
        site.drop_file(&format!("vm{n}.raw"), &disk(n));
    }
    daemon.until("eight wait", || daemon.status("queue_depth") == 8);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    let daemon = site.start();
    daemon.ask("resume");
    daemon.until("all eight are archived", || site.archived().len() == 8);
    daemon.until("all are counted", || daemon.stats()["total_processed"] == 8);
}

#[test]
fn a_daemon_that_is_told_no_directories_says_what_to_give_it() {
    for arguments in [&["daemon"][..], &["daemon", "--watch-dir", "/nowhere"]] {
        let refused = Command::new(env!("CARGO_BIN_EXE_hyper2kvm")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("--config FILE") && said.contains("--output-dir DIR"), "{said}");
    }
}

fn stop(mut daemon: Daemon<'_>) {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0), "{}", daemon.log());
}
