// SPDX-License-Identifier: Apache-2.0
//! Whatever hangs: questions are answered at once, a pause is not claimed to be recorded, and a signal ends the daemon
//! within ten seconds.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::daemon::{Daemon, Site, disk, until};

/// What every end is promised to take at most.
pub(super) const END: Duration = Duration::from_secs(10);

/// What an answer takes that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(super) fn answers_at_once(daemon: &Daemon<'_>) {
    for command in ["status", "stats"] {
        let asked = Instant::now();
        assert_eq!(daemon.ask(command)["status"], "ok");
        assert!(asked.elapsed() < AT_ONCE, "{command} is answered after {:?}", asked.elapsed());
    }
}

#[test]
fn a_reader_that_keeps_the_ledger_holds_up_neither_an_answer_nor_the_end() {
    let site = Site::new("");
    let mut daemon = site.start();
    let reader = Connection::open(site.output().join(".daemon/deduplication.db")).unwrap();
    reader.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for n in 0..6 {
        site.drop_file(&format!("vm{n}.raw"), &disk(n));
    }
    daemon.until("they are seen", || daemon.status("queue_depth") > 0);
    let asked = Instant::now();
    let refused = daemon.ask("pause");
    assert!(asked.elapsed() < Duration::from_secs(5), "answered after {:?}", asked.elapsed());
    assert_eq!(refused["status"], "error", "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("not recorded"), "{refused}");
    answers_at_once(&daemon);
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(END).code(), Some(0), "{}", daemon.log());
    eprintln!("with a reader on the ledger: {:?}", begun.elapsed());
    drop(daemon);

    reader.execute_batch("COMMIT").unwrap();
    let daemon = site.start();
    daemon.ask("resume");
    daemon.until("all are archived", || site.archived().len() == 6);
}

#[test]
fn a_pause_that_could_not_be_recorded_is_recorded_once_the_ledger_answers() {
    let site = Site::new("");
    let mut daemon = site.start();
    let reader = Connection::open(site.output().join(".daemon/deduplication.db")).unwrap();
    reader.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(daemon.ask("pause")["status"], "error");
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(daemon.ask("pause")["message"], "Daemon paused");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    drop(daemon);
    assert_eq!(site.start().ask("status")["paused"], true);
}

#[test]
fn a_file_that_is_being_hashed_does_not_hold_up_the_end() {
    let site = Site::new("deduplication_use_md5: true");
    let mut daemon = site.start();
    let aside = site.dir.path().join("aside");
    File::create(&aside).unwrap().set_len(12 << 30).unwrap();
    fs::rename(aside, site.queue().join("big.raw")).unwrap();
    let pid = daemon.child.id();
    let read = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        let bytes = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        bytes.parse::<u64>().unwrap()
    };
    daemon.until("it is being hashed", || read() > 64 << 20);
    answers_at_once(&daemon);
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(END).code(), Some(0), "{}", daemon.log());
    eprintln!("while hashing: {:?}", begun.elapsed());
}

#[test]
fn a_stopped_worker_does_not_hold_up_the_end() {
    let site = Site::new("");
    let mut daemon = site.start_with(&[("HYPER2KVM_TEST_HANG", "1")]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it runs", || daemon.workers().len() == 1);
    let worker = daemon.workers()[0];
    // One that is stopped before it is a program of its own holds up whoever starts it.
    let command = || fs::read_to_string(format!("/proc/{worker}/cmdline")).unwrap_or_default();
    daemon.until("it is a worker", || command().contains("worker"));
    let worker = Pid::from_raw(worker.cast_signed()).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(END).code(), Some(0), "{}", daemon.log());
}

/// An output volume that can be frozen; thawed and unmounted in the end.
struct Frozen {
    site: Site,
    mounted: PathBuf,
}

impl Frozen {
    /// `None`, with a word on standard error, where it can't be made.
    fn make(config: &str) -> Option<Self> {
        let site = Site::new(config);
        let (image, mounted) = (site.dir.path().join("volume.ext4"), site.output());
        fs::create_dir(&mounted).unwrap();
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).args([&image, &mounted]));
        if !made {
            eprintln!("left out: a frozen volume: it takes root, mkfs.ext4 and a loop device");
            return None;
        }
        Some(Self { site, mounted })
    }

    fn freeze(&self) {
        assert!(run(Command::new("fsfreeze").arg("--freeze").arg(&self.mounted)), "it cannot be frozen");
    }

    fn thaw(&self) -> bool {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.mounted))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        run(Command::new("umount").arg("--lazy").arg(&self.mounted));
    }
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|done| done.status.success())
}

/// Status and body.
pub(super) fn health(port: u16) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(AT_ONCE)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is answered at once");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Whether nothing of the process is left but threads that the kernel keeps.
pub(super) fn is_leaving(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.filter_map(Result::ok).all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap_or("X").to_owned();
        state.starts_with(['D', 'Z', 'X'])
    })
}

#[test]
fn a_frozen_volume_is_told_and_holds_up_no_answer_and_no_end() {
    let Some(mut volume) = Frozen::make("") else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    volume.site.listen = Some(port);
    let mut daemon = volume.site.start();
    assert_eq!(health(port), (200, "ok\n".to_owned()));
    volume.freeze();
    until("the health turns", || {
        answers_at_once(&daemon);
        health(port).0 == 503
    });
    let (_, why) = health(port);
    assert!(why.contains("has not answered for") || why.contains("has stood still for"), "{why}");
    let status = daemon.ask("status");
    let why = status["waiting_for"].as_str().unwrap_or_default();
    assert!(why.contains("has not answered for") || why.contains("has stood still for"), "{status}");
    let refused = daemon.ask("pause");
    assert_eq!(refused["status"], "error", "{refused}");

    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let pid = daemon.child.id();
    until("it ends as far as the kernel lets it", || is_leaving(pid));
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    assert!(volume.thaw());
    daemon.end_within(Duration::from_secs(2));
}
