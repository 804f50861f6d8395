// SPDX-License-Identifier: Apache-2.0
//! A full output volume: the queue waits, reports it once, and goes on by itself. Needs root, to mount a small tmpfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, Site};
use crate::support::random::Random;
use crate::support::server::{Manner, Server};

const MIB: usize = 1 << 20;

/// A site whose output directory is a volume of this many MiB; `None`, reported on standard error, where it can't be
/// mounted.
struct Volume {
    /// Goes before the directory around it.
    _mount: Mount,
    site: Site,
    server: Server,
}

/// A small volume.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, mib: usize) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "hyper2kvm-test"]).arg(at);
        match mount.output() {
            Ok(done) if done.status.success() => Some(Self(at.to_owned())),
            Ok(done) => {
                eprintln!("left out: a full volume: {}", String::from_utf8_lossy(&done.stderr));
                None
            }
            Err(error) => {
                eprintln!("left out: a full volume: no mount: {error}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Before the directory around it is removed; the daemon has ended.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes every byte that is left, with this file.
fn fill_up(ballast: &Path) {
    let mut chunk = 64 << 10;
    let mut file = fs::File::create(ballast).unwrap();
    while chunk > 0 {
        if std::io::Write::write_all(&mut file, &vec![1; chunk]).is_err() {
            chunk /= 2;
        }
    }
}

impl Volume {
    fn of(mib: usize, config: &str) -> Option<Self> {
        let server = Server::start(Manner::Answers);
        let notifications = format!("notifications: {{enabled: true, webhook_url: \"{}\"}}", server.url());
        let site = Site::new(&format!("{config}\n{notifications}"));
        fs::create_dir(site.output()).unwrap();
        let mount = Mount::tmpfs(&site.output(), mib)?;
        Some(Self { _mount: mount, site, server })
    }

    fn ballast(&self) -> PathBuf {
        self.site.output().join("ballast")
    }

    fn fill(&self, mib: usize) {
        fs::write(self.ballast(), vec![1; mib * MIB]).unwrap();
    }

    /// Fills every byte that is left.
    fn fill_up(&self) {
        fill_up(&self.ballast());
    }

    /// Expects one notification, with figures that explain it.
    fn expect_told(&self, needed_at_least: usize) {
        let told = self.server.next();
        assert_eq!(told["event"], "output_full", "{told}");
        let figure = |key: &str| usize::try_from(told[key].as_u64().unwrap()).unwrap();
        assert!(figure("needed_bytes") >= needed_at_least, "{told}");
        assert!(figure("free_bytes") < figure("needed_bytes"), "{told}");
    }

    /// Expects nothing half-written, nothing failed, the source kept.
    fn expect_held(&self, daemon: &Daemon<'_>, published: &[&str]) {
        let site = &self.site;
        assert_eq!(site.disks(), published);
        assert_eq!(site.in_errors(), Vec::<String>::new());
        assert_eq!(daemon.stats()["total_failed"], 0);
        let mut left = Vec::new();
        disks_below(&site.output().join(".work"), &mut left);
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    /// Makes room, and expects that what waits goes on without another notification.
    fn expect_going_on(&self, daemon: &Daemon<'_>, archived: &[&str], disks: &[&str]) {
        fs::remove_file(self.ballast()).unwrap();
        daemon.until("it goes on", || self.site.archived() == archived);
        assert_eq!(self.site.disks(), disks);
        assert_eq!(daemon.stats()["total_failed"], 0);
        assert_eq!(self.server.posted.try_iter().collect::<Vec<Value>>(), Vec::<Value>::new());
    }
}

fn disks_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            disks_below(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|e| e == "qcow2" || e == "raw") {
            found.push(entry.path());
        }
    }
}

#[test]
fn what_finds_no_room_waits_while_what_fits_goes_on() {
    let Some(volume) = Volume::of(48, "") else { return };
    let mut random = Random::seeded("no room before the start");
    volume.fill(30);
    let daemon = volume.site.start();
    volume.site.drop_file("large.raw", &random.bytes(24 * MIB));
    volume.expect_told(24 * MIB);
    volume.site.drop_file("small.raw", &random.bytes(MIB));
    daemon.until("the small one is converted", || volume.site.archived() == ["small.raw"]);
    volume.expect_held(&daemon, &["small.qcow2"]);
    assert_eq!(daemon.lines("no room for large.raw").len(), 1);
    volume.expect_going_on(&daemon, &["large.raw", "small.raw"], &["large.qcow2", "small.qcow2"]);
}

#[test]
fn a_copy_that_finds_the_volume_full_in_the_middle_waits_too() {
    // The size of a compressed output is not known before.
    let Some(volume) = Volume::of(48, "compress: zstd") else { return };
    let mut random = Random::seeded("no room in the middle");
    volume.fill(30);
    let daemon = volume.site.start();
    volume.site.drop_file("large.raw", &random.bytes(24 * MIB));
    volume.expect_told(18 * MIB);
    volume.expect_held(&daemon, &[]);
    volume.expect_going_on(&daemon, &["large.raw"], &["large.qcow2"]);
}

#[test]
fn an_output_that_outgrows_its_source_is_not_tried_again_and_again() {
    let Some(volume) = Volume::of(48, "compress: zlib") else { return };
    let mut random = Random::seeded("larger than its source");
    let source = small_source_of_a_large_disk(volume.site.dir.path(), &mut random);
    // Room for the source is not room for the output.
    assert!(source.len() < 17 * MIB);
    volume.fill(29);
    let daemon = volume.site.start();
    volume.site.drop_file("large.qcow2", &source);
    volume.expect_told(18 * MIB);
    volume.expect_held(&daemon, &[]);
    daemon.until("free space is looked at again", || daemon.lines("attempt started").len() > 1 || waited(&daemon));
    assert_eq!(daemon.lines("attempt started").len(), 1, "{}", daemon.log());
    volume.expect_going_on(&daemon, &["large.qcow2"], &["large.qcow2"]);
}

#[test]
fn a_volume_without_a_single_free_byte_holds_the_queue() {
    let Some(volume) = Volume::of(16, "") else { return };
    let mut random = Random::seeded("not a byte free");
    let daemon = volume.site.start();
    volume.fill_up();
    volume.site.drop_file("vm.raw", &random.bytes(MIB));
    volume.expect_told(MIB);
    volume.expect_held(&daemon, &[]);
    volume.expect_going_on(&daemon, &["vm.raw"], &["vm.qcow2"]);
}

#[test]
fn a_daemon_started_on_a_full_volume_waits_for_room() {
    let Some(volume) = Volume::of(16, "") else { return };
    volume.fill_up();
    volume.site.drop_file("vm.raw", &Random::seeded("full at the start").bytes(MIB));
    let mut daemon = volume.site.spawn(&[]);
    crate::support::daemon::until("it says what it waits for", || daemon.lines("waiting for space").len() == 1);
    assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
    daemon.until("it answers all the same", || daemon.try_ask("status").is_some());
    assert_eq!(daemon.ask("stats")["status"], "error");
    assert_eq!(daemon.ask("pause")["message"], "Daemon paused");
    assert_eq!(daemon.ask("status")["paused"], true);
    fs::remove_file(volume.ballast()).unwrap();
    daemon.until("it goes on, paused", || {
        daemon.try_ask("stats").is_some_and(|r| r["stats"]["current_queue_depth"] == 1)
    });
    assert_eq!(daemon.ask("status")["paused"], true);
    daemon.ask("resume");
    daemon.until("it converts", || volume.site.archived() == ["vm.raw"]);
}

#[test]
fn a_daemon_that_waits_for_room_at_its_start_obeys_stop_and_sigterm() {
    let Some(volume) = Volume::of(16, "") else { return };
    volume.fill_up();
    for by_signal in [true, false] {
        let mut daemon = volume.site.spawn(&[]);
        daemon.until("it answers", || daemon.try_ask("status").is_some());
        if by_signal {
            daemon.signal(rustix::process::Signal::TERM);
        } else {
            assert_eq!(daemon.ask("stop")["message"], "Stopping daemon");
        }
        assert!(daemon.end_within(Duration::from_secs(5)).success());
        assert!(!volume.site.output().join(".daemon/control.sock").exists());
    }
}

#[test]
fn what_is_larger_than_the_whole_volume_fails_at_once_and_says_so() {
    let Some(volume) = Volume::of(16, "") else { return };
    let daemon = volume.site.start();
    volume.site.drop_file("huge.raw", &Random::seeded("larger than the volume").bytes(24 * MIB));
    daemon.until("it fails", || daemon.stats()["total_failed"] == 1);
    daemon.until("its report is there", || volume.site.queue().join(".errors/huge.raw.error.json").exists());
    let report = volume.site.error_file("huge.raw");
    assert_eq!((&report["reason"], &report["retry_info"]["next_retry_at"]), (&"TooLarge".into(), &Value::Null));
    assert!(report["error"].as_str().unwrap().contains("in all"), "{report}");
    assert!(report["suggestion"].as_str().unwrap().contains("larger output volume"), "{report}");
}

#[test]
fn any_number_of_disks_that_find_no_room_keep_none_that_fits() {
    let Some(volume) = Volume::of(48, "") else { return };
    // Little to copy, much to write.
    let (raw, qcow2) = (volume.site.dir.path().join("large.raw"), volume.site.dir.path().join("large.qcow2"));
    fs::write(&raw, vec![7; 24 * MIB]).unwrap();
    let mut convert = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
    let made = convert.args(["convert", "--compress=zlib", "-o"]).arg(&qcow2).arg(&raw).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let content = fs::read(&qcow2).unwrap();
    volume.fill(30);
    let daemon = volume.site.start();
    // More than are claimed at once.
    for n in 0..38 {
        volume.site.drop_file(&format!("large{n}.qcow2"), &content);
    }
    daemon.until("none fits", || daemon.lines("no room for large").len() == 38);
    volume.site.drop_file("small.raw", &Random::seeded("what fits").bytes(MIB));
    daemon.until("what fits is converted", || volume.site.archived() == ["small.raw"]);
    volume.expect_held(&daemon, &["small.qcow2"]);
}

#[test]
fn a_full_queue_volume_holds_the_queue_is_told_once_and_leaves_nothing() {
    let server = Server::start(Manner::Answers);
    let notifications = format!("notifications: {{enabled: true, webhook_url: \"{}\"}}", server.url());
    let site = Site::new(&notifications);
    let Some(mount) = Mount::tmpfs(&site.queue(), 4) else { return };
    let mut daemon = site.start();
    let (part, ballast) = (site.queue().join("vm.raw.part"), site.queue().join(".ballast"));
    fs::write(&part, crate::support::daemon::disk(0)).unwrap();
    fill_up(&ballast);
    fs::rename(&part, site.queue().join("vm.raw")).unwrap();
    let told = server.next();
    assert_eq!((&told["event"], &told["level"]), (&"queue_full".into(), &"warning".into()), "{told}");
    assert_eq!(told["queue_path"], site.queue().to_str().unwrap());
    let waiting = daemon.ask("status")["waiting_for"].clone();
    assert!(waiting.as_str().is_some_and(|text| text.contains("full")), "{waiting}");
    // Two more tries.
    std::thread::sleep(Duration::from_secs(11));
    let claims = || site.names("queue/.processing").into_iter().filter(|name| !name.starts_with('.')).count();
    assert_eq!(claims(), 0);
    assert_eq!(daemon.lines("the queue holds").len(), 1, "{}", daemon.log());
    assert!(daemon.lines("heartbeat").len() < 2, "{}", daemon.log());
    assert!(daemon.child.try_wait().unwrap().is_none());
    fs::remove_file(ballast).unwrap();
    daemon.until("it goes on", || site.archived() == ["vm.raw"]);
    assert!(daemon.ask("status").get("waiting_for").is_none());
    assert_eq!(server.posted.try_iter().collect::<Vec<Value>>(), Vec::<Value>::new());
    drop(daemon);
    drop(mount);
}

#[test]
fn a_queue_volume_that_becomes_read_only_is_told_once_and_goes_on_when_it_is_writable() {
    let server = Server::start(Manner::Answers);
    let notifications = format!("notifications: {{enabled: true, webhook_url: \"{}\"}}", server.url());
    let site = Site::new(&notifications);
    let Some(mount) = Mount::tmpfs(&site.queue(), 4) else { return };
    let daemon = site.start_with(crate::support::daemon::EACH_SECOND);
    // The daemon has files open for writing on the mount, so a second one that can only be read lies over it.
    let run = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).arg(site.queue()).status().unwrap().success());
    };
    fs::write(site.queue().join("vm.raw"), crate::support::daemon::disk(0)).unwrap();
    run("mount", &["--bind", site.queue().to_str().unwrap()]);
    run("mount", &["-o", "remount,bind,ro"]);
    let told = server.next();
    assert_eq!((&told["event"], &told["path"]), (&"volume_read_only".into(), &site.queue().to_str().unwrap().into()));
    daemon.until("it is shown", || {
        daemon.ask("status")["waiting_for"].as_str().is_some_and(|text| text.contains("can only be read"))
    });
    // It is told once the heartbeat has failed for a while; claims were tried again meanwhile.
    daemon.until("the heartbeat is given up", || !daemon.lines("the heartbeat can't be written").is_empty());
    assert_eq!(daemon.lines("can only be read now").len(), 1, "{}", daemon.log());
    assert_eq!(daemon.lines("cannot claim").len(), 1, "{}", daemon.log());
    run("umount", &[]);
    daemon.until("it goes on", || site.archived() == ["vm.raw"]);
    assert!(daemon.ask("status").get("waiting_for").is_none());
    drop(daemon);
    drop(mount);
}

/// A few seconds after the first check of the volume.
fn waited(daemon: &Daemon<'_>) -> bool {
    let Some(held) = daemon.lines("the queue holds").pop() else { return false };
    let now = jiff::Timestamp::now().as_duration().as_secs_f64();
    now - crate::support::daemon::second(&held) > Duration::from_secs(5).as_secs_f64()
}

/// A disk of 24 MiB that zstd shrinks and zlib does not: its clusters repeat at distances beyond zlib's window.
fn small_source_of_a_large_disk(dir: &Path, random: &mut Random) -> Vec<u8> {
    const CLUSTER: usize = 64 << 10;
    let mut disk = Vec::new();
    while disk.len() < 24 * MIB {
        let period = random.bytes(40_000);
        disk.extend(period.iter().cycle().take(CLUSTER));
    }
    let (raw, qcow2) = (dir.join("large.raw"), dir.join("large.qcow2"));
    fs::write(&raw, disk).unwrap();
    let mut convert = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
    let made = convert.args(["convert", "--compress=zstd", "-o"]).arg(&qcow2).arg(&raw).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read(qcow2).unwrap()
}
