// SPDX-License-Identifier: Apache-2.0
//! Volumes that go and come back: nothing is written under the mount, nothing is called gone that is only not seen.
//! Needs root, to mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::daemon::{Daemon, SOON, Site, disk, until};

/// Name of the file by which two directories know one another.
const IDENTITY: &str = ".hyper2kvm-volume";

/// A site one of whose directories is a mount of another one.
struct Mounted {
    site: Site,
    at: PathBuf,
}

impl Mounted {
    /// `None`, loudly, where nothing can be mounted.
    fn new(name: &str, config: &str) -> Option<Self> {
        let site = Site::new(config);
        let at = site.dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        fs::create_dir(site.dir.path().join("volume")).unwrap();
        let mounted = Self { site, at };
        if mounted.mount() {
            return Some(mounted);
        }
        eprintln!("left out: volumes that go: nothing can be mounted");
        None
    }

    fn mount(&self) -> bool {
        self.mount_from("volume")
    }

    fn mount_from(&self, name: &str) -> bool {
        let done = Command::new("mount").arg("--bind").arg(self.site.dir.path().join(name)).arg(&self.at).status();
        done.is_ok_and(|status| status.success())
    }

    fn unmount(&self) {
        assert!(Command::new("umount").arg("-l").arg(&self.at).status().unwrap().success());
    }

    /// Moves a file into the queue in one step, on its own volume.
    fn drop_file(&self, name: &str, content: &[u8]) {
        let aside = self.site.queue().join(".aside");
        fs::write(&aside, content).unwrap();
        fs::rename(aside, self.site.queue().join(name)).unwrap();
    }

    /// Nothing lies in the directory under the mount.
    fn expect_untouched(&self) {
        assert_eq!(names(&self.at), Vec::<String>::new());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Before the directory around it is removed; often gone already.
        let _ = Command::new("umount").arg("-q").arg("-l").arg(&self.at).status();
    }
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn stop(mut daemon: Daemon<'_>) {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
}

/// Whether a process has a file of this name open.
fn has_open(pid: u32, name: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|path| path.file_name().is_some_and(|it| it == name))
}

const FAILS_ONCE: &[(&str, &str)] = &[("HYPER2KVM_TEST_FAIL", "SourceIO:1")];

#[test]
fn a_volume_that_is_not_mounted_at_the_start_is_waited_for_and_nothing_is_lost() {
    for name in ["queue", "output"] {
        let Some(mounted) = Mounted::new(name, "retry_policy: {retry_delay: 2}") else { return };
        let site = &mounted.site;
        let daemon = site.start_with(FAILS_ONCE);
        mounted.drop_file("done.raw", &disk(1));
        daemon.until("one is parked", || site.in_errors() == ["done.raw"]);
        daemon.until("and converted", || site.archived() == ["done.raw"]);
        daemon.ask("pause");
        mounted.drop_file("vm.raw", &disk(0));
        daemon.until("another waits", || daemon.status("queue_depth") == 1);
        stop(daemon);
        mounted.unmount();

        let mut daemon = site.spawn(&[]);
        until("it says what it waits for", || daemon.lines("is its volume mounted?").len() == 1);
        assert!(daemon.lines("--adopt")[0].contains(&mounted.at.display().to_string()), "{}", daemon.log());
        if name == "queue" {
            daemon.until("it answers", || daemon.try_ask("status").is_some());
            let status = daemon.ask("status");
            assert!(status["waiting_for"].as_str().unwrap().contains(IDENTITY), "{status}");
        }
        // At least one more look.
        std::thread::sleep(Duration::from_secs(6));
        assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
        mounted.expect_untouched();
        assert!(mounted.mount());
        daemon.until("it goes on", || daemon.try_ask("stats").is_some_and(|reply| reply["status"] == "ok"));
        daemon.until("what waited waits", || daemon.status("queue_depth") == 1);
        daemon.ask("resume");
        daemon.until("and is converted", || site.archived() == ["done.raw", "vm.raw"]);
        daemon.until("all is counted on", || daemon.stats()["total_processed"] == 2);
        assert_eq!(daemon.stats()["total_cancelled"], 0);
    }
}

#[test]
fn a_daemon_that_waits_for_a_volume_obeys_a_signal() {
    let Some(mounted) = Mounted::new("output", "") else { return };
    stop(mounted.site.start());
    mounted.unmount();
    let daemon = mounted.site.spawn(&[]);
    until("it says what it waits for", || daemon.lines("is its volume mounted?").len() == 1);
    stop(daemon);
    mounted.expect_untouched();
}

#[test]
fn a_volume_that_goes_while_the_daemon_runs_takes_nothing_along() {
    for name in ["queue", "output"] {
        let Some(mounted) = Mounted::new(name, "retry_policy: {retry_delay: 4}") else { return };
        let site = &mounted.site;
        let mut daemon = site.start_with(FAILS_ONCE);
        mounted.drop_file("vm.raw", &disk(0));
        daemon.until("it is parked", || site.in_errors() == ["vm.raw"]);
        mounted.unmount();
        daemon.until("it says so", || daemon.lines("nothing is touched until it is back").len() == 1);
        // Beyond the retry's time and a heartbeat.
        std::thread::sleep(Duration::from_secs(8));
        assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
        mounted.expect_untouched();
        assert!(mounted.mount());
        daemon.until("it goes on", || daemon.lines("the volumes are there again").len() == 1);
        daemon.until("what waited is converted", || site.archived() == ["vm.raw"]);
        daemon.until("and counted", || daemon.stats()["total_processed"] == 1);
        assert_eq!(daemon.stats()["total_cancelled"], 0);
        assert_eq!(site.names("queue/.errors"), Vec::<String>::new());
        stop(daemon);
    }
}

#[test]
fn a_volume_that_is_mounted_anew_as_another_device_is_served_on_by_the_same_process() {
    for name in ["queue", "output"] {
        let Some(mounted) = Mounted::new(name, "retry_policy: {retry_delay: 3600}") else { return };
        let site = &mounted.site;
        let mut daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
        mounted.drop_file("vm.raw", &disk(0));
        daemon.until("it runs, its source open", || daemon.workers().iter().any(|pid| has_open(*pid, "vm.raw")));
        let copied = Command::new("cp").arg("-a").arg(mounted.at.as_path()).arg(site.dir.path().join("copy")).status();
        assert!(copied.unwrap().success());
        mounted.unmount();
        // Files of the old mount are open: it stays, and this is another one.
        assert!(mounted.mount_from("copy"));
        daemon.until("it begins anew", || daemon.lines("beginning anew").len() == 1);
        daemon.until("it is ready again", || daemon.lines("Daemon ready").len() == 2);
        daemon.until("it answers", || daemon.try_ask("status").is_some());
        assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
        // The attempt hung on the old mount.
        daemon.until("the attempt is made again", || daemon.lines("attempt started").len() == 2);
        assert_eq!(daemon.lines("another's").len(), 0, "{}", daemon.log());
        stop(daemon);
        let daemon = site.start();
        daemon.until("what waited is converted", || site.archived() == ["vm.raw"]);
        assert_eq!(
            (daemon.stats()["total_processed"].as_u64(), daemon.stats()["total_retried"].as_u64()),
            (Some(1), Some(0))
        );
    }
}

#[test]
fn a_daemon_that_drains_ends_where_a_volume_is_mounted_anew() {
    let Some(mounted) = Mounted::new("queue", "") else { return };
    let site = &mounted.site;
    let mut daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    mounted.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.workers().len() == 1);
    daemon.ask("drain");
    let copied = Command::new("cp").arg("-a").arg(mounted.at.as_path()).arg(site.dir.path().join("copy")).status();
    assert!(copied.unwrap().success());
    mounted.unmount();
    assert!(mounted.mount_from("copy"));
    assert_eq!(daemon.end_within(SOON).code(), Some(1), "{}", daemon.log());
    assert_eq!(daemon.lines("for nothing more was to be taken").len(), 1, "{}", daemon.log());
}

#[test]
fn an_attempt_that_ends_while_the_output_is_away_is_not_counted() {
    let Some(mounted) = Mounted::new("output", "") else { return };
    let daemon = mounted.site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    mounted.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.workers().len() == 1);
    mounted.unmount();
    let worker = Pid::from_raw(i32::try_from(daemon.workers()[0]).unwrap()).unwrap();
    kill_process(worker, Signal::TERM).unwrap();
    daemon.until("it says so", || daemon.lines("nothing is touched until it is back").len() == 1);
    daemon.until("it has ended", || daemon.workers().is_empty());
    // What it left is looked for a second later, and nothing tells of that.
    std::thread::sleep(Duration::from_secs(3));
    assert!(mounted.mount());
    daemon.until("it runs again", || daemon.lines("attempt started").len() == 2);
    assert_eq!(daemon.stats()["total_retried"], 0, "{}", daemon.log());
    assert_eq!(daemon.lines("Retry ").len(), 0, "{}", daemon.log());
}

#[test]
fn another_directory_in_the_place_of_one_is_taken_where_it_is_meant() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    stop(daemon);
    fs::rename(site.output(), site.dir.path().join("lost")).unwrap();
    let daemon = site.spawn(&[]);
    until("it is refused", || daemon.lines("is its volume mounted?").len() == 1);
    assert!(!site.output().exists());
    stop(daemon);
    let daemon = site.spawn_with(&["--adopt"], &[]);
    daemon.until("it is adopted", || daemon.try_ask("status").is_some());
    stop(daemon);
    let daemon = site.start();
    site.drop_file("next.raw", &disk(1));
    daemon.until("it works", || site.archived() == ["next.raw", "vm.raw"]);
}

#[test]
fn an_installation_of_the_version_before_is_adopted_in_silence() {
    let site = Site::new("");
    stop(site.start());
    for dir in [site.queue(), site.output()] {
        fs::remove_file(dir.join(IDENTITY)).unwrap();
    }
    let daemon = site.start();
    assert!(daemon.lines("WARN").is_empty() && daemon.lines("ERROR").is_empty(), "{}", daemon.log());
    assert!([site.queue(), site.output()].iter().all(|dir| dir.join(IDENTITY).exists()));
}

#[test]
fn a_lock_file_that_can_not_be_seen_for_a_moment_ends_nothing() {
    let site = Site::new("");
    let mut daemon = site.start();
    let (lock, aside) = (site.queue().join(".processing/.lock"), site.queue().join(".processing/.aside"));
    fs::rename(&lock, &aside).unwrap();
    daemon.until("it was looked at", || !daemon.lines("cannot tell whose the directories are").is_empty());
    fs::rename(&aside, &lock).unwrap();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it goes on", || site.archived() == ["vm.raw"]);
    assert!(daemon.child.try_wait().unwrap().is_none());
    fs::rename(&lock, &aside).unwrap();
    fs::write(&lock, "").unwrap();
    assert_eq!(daemon.end_within(SOON).code(), Some(1));
}

#[test]
fn an_outage_at_the_start_ends_with_a_code_that_is_tried_again() {
    let Some(mounted) = Mounted::new("queue", "") else { return };
    stop(mounted.site.start());
    let remounted = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&mounted.at).status().unwrap();
    assert!(remounted.success());
    let mut daemon = mounted.site.spawn(&[]);
    assert_eq!(daemon.end_within(SOON).code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("Read-only file system"), "{}", daemon.log());
}
