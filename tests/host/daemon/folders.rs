// SPDX-License-Identifier: Apache-2.0
//! A dropped folder is one machine, however it comes and whatever lies beside it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use super::groups::{CAPACITY, names, stream_optimized};
use crate::support::daemon::{Daemon, EACH_SECOND, Site, disk};
use crate::support::ova;

/// Longer than three equal looks, a second apart.
const STALL: Duration = Duration::from_secs(6);

/// A folder outside of the queue with these files.
fn folder(site: &Site, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = site.dir.path().join("elsewhere").join(name);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

/// A machine with one disk, whose content differs by `n`.
fn machine(site: &Site, name: &str, n: u8) -> PathBuf {
    let ovf = ova::ovf(&[("disk1.vmdk", CAPACITY)]);
    folder(site, name, &[("vm.ovf", ovf.as_bytes()), ("disk1.vmdk", &stream_optimized(n))])
}

fn copy(from: &Path, into: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(into).status().unwrap().success());
}

fn published(site: &Site, stem: &str) -> PathBuf {
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    site.output().join(day).join(stem)
}

/// The first byte of a published disk.
fn first_byte(site: &Site, stem: &str) -> u8 {
    let raw = site.dir.path().join("guest.raw");
    let disk = published(site, stem).join(format!("{stem}.qcow2"));
    let status = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(disk).arg(&raw).status().unwrap();
    assert!(status.success());
    fs::read(raw).unwrap()[0]
}

/// Paths of the files below a directory of the queue, each from there.
fn below(site: &Site, directory: &str) -> Vec<String> {
    fn walk(at: &Path, from: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, from, found);
            } else {
                found.push(path.strip_prefix(from).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let from = site.queue().join(directory);
    let mut found = Vec::new();
    walk(&from, &from, &mut found);
    found.sort();
    found
}

/// Paths of archived files, below the directory of the date.
fn archived(site: &Site) -> Vec<String> {
    let day = site.names("queue/.processed");
    day.first().map(|day| below(site, &format!(".processed/{day}"))).unwrap_or_default()
}

#[test]
fn a_copied_folder_is_one_machine_and_is_archived_as_a_folder() {
    let site = Site::new("");
    let daemon = site.start();
    let web01 = machine(&site, "web01", 7);
    fs::write(web01.join("notes.txt"), "kept with it").unwrap();
    copy(&web01, &site.queue());
    daemon.until("it is archived", || archived(&site).len() == 3);
    assert_eq!(archived(&site), names(&["web01/disk1.vmdk", "web01/notes.txt", "web01/vm.ovf"]));
    assert_eq!((site.published(), site.disks()), (names(&["web01"]), names(&["web01.qcow2"])));
    assert_eq!(first_byte(&site, "web01"), 7);
    assert_eq!((site.waiting(), site.names("queue/.processing")), (vec![], names(&[".lock", ".owner.json"])));
    assert_eq!(daemon.stats()["total_processed"], 1);
}

/// Files that come into a folder of the queue one by one, each after a pause over the looks.
fn one_by_one(order: &[(&str, Vec<u8>)]) {
    let site = Site::new("");
    let daemon = site.start_with(EACH_SECOND);
    let folder = site.queue().join("web01");
    fs::create_dir(&folder).unwrap();
    for (name, content) in order {
        sleep(STALL);
        assert_eq!(site.waiting(), ["web01"], "{}", daemon.log());
        fs::write(folder.join(name), content).unwrap();
    }
    is_converted(&site, &daemon);
}

fn is_converted(site: &Site, daemon: &Daemon<'_>) {
    daemon.until("it is archived", || archived(site) == ["web01/disk1.vmdk", "web01/vm.ovf"]);
    assert_eq!((first_byte(site, "web01"), site.disks()), (3, names(&["web01.qcow2"])));
    assert_eq!(daemon.stats()["total_processed"], 1, "{}", daemon.log());
}

fn descriptor() -> Vec<u8> {
    ova::ovf(&[("disk1.vmdk", CAPACITY)]).into_bytes()
}

#[test]
fn a_folder_whose_ovf_comes_first_waits_for_its_disk() {
    one_by_one(&[("vm.ovf", descriptor()), ("disk1.vmdk", stream_optimized(3))]);
}

#[test]
fn a_folder_whose_disk_comes_first_waits_for_its_ovf() {
    one_by_one(&[("disk1.vmdk", stream_optimized(3)), ("vm.ovf", descriptor())]);
}

#[test]
fn a_folder_with_a_writer_that_stalls_is_not_taken() {
    let site = Site::new("");
    let daemon = site.start_with(EACH_SECOND);
    let (folder, stream) = (site.queue().join("web01"), stream_optimized(3));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("vm.ovf"), descriptor()).unwrap();
    let mut disk = File::create(folder.join("disk1.vmdk")).unwrap();
    disk.set_len(stream.len() as u64).unwrap();
    disk.write_all(&stream[..stream.len() / 2]).unwrap();
    sleep(STALL);
    assert_eq!(site.waiting(), ["web01"], "{}", daemon.log());
    disk.write_all(&stream[stream.len() / 2..]).unwrap();
    drop(disk);
    is_converted(&site, &daemon);
}

#[test]
fn a_folder_that_is_moved_in_is_taken_after_three_looks_and_one_without_an_ovf_that_is_copied_is_not() {
    let site = Site::new("quiet_period: 3600");
    let daemon = site.start();
    let (first, second) = (disk(1), disk(2));
    let moved = folder(&site, "moved", &[("b.raw", &first), ("Virtual Hard Disks/a.raw", &second), ("vm.nvram", b"x")]);
    fs::rename(moved, site.queue().join("moved")).unwrap();
    copy(&folder(&site, "copied", &[("b.raw", &first)]), &site.queue());
    daemon.until("it is archived", || archived(&site).len() == 3);
    assert_eq!(archived(&site), names(&["moved/Virtual Hard Disks/a.raw", "moved/b.raw", "moved/vm.nvram"]));
    // Without an OVF the disks of a folder are those of one machine.
    assert_eq!(site.disks(), ["moved-disk0.qcow2", "moved-disk1.qcow2"]);
    assert_eq!((site.published(), site.waiting()), (names(&["moved"]), names(&["copied"])));
    fs::rename(site.queue().join("copied"), site.queue().join("renamed")).unwrap();
    daemon.until("it is published", || site.published() == ["moved", "renamed"]);
}

#[test]
fn two_folders_and_the_queue_itself_never_see_each_others_files() {
    let site = Site::new("max_concurrent_jobs: 2");
    let daemon = site.start();
    copy(&machine(&site, "web01", 1), &site.queue());
    copy(&machine(&site, "web02", 2), &site.queue());
    // An OVF whose disk lies in another folder only.
    let ovf = descriptor();
    site.drop_file("web03.ovf", &ovf);
    daemon.until("both are archived", || archived(&site).len() == 4);
    assert_eq!(archived(&site), names(&["web01/disk1.vmdk", "web01/vm.ovf", "web02/disk1.vmdk", "web02/vm.ovf"]));
    assert_eq!((first_byte(&site, "web01"), first_byte(&site, "web02")), (1, 2));
    assert_eq!(site.waiting(), ["web03.ovf"]);
}

#[test]
fn a_descriptor_finds_its_files_wherever_they_lie_in_its_folder() {
    let site = Site::new("");
    let daemon = site.start();
    let web01 = folder(
        &site,
        "web01",
        &[("vm.ovf", &descriptor()), ("Virtual Hard Disks/disk1.vmdk", &stream_optimized(4)), ("Snapshots/.keep", b"")],
    );
    fs::create_dir_all(web01.join("Virtual Machines/3F2504E0")).unwrap();
    fs::rename(web01, site.queue().join("web01")).unwrap();
    daemon.until("it is archived", || archived(&site).len() == 3);
    assert_eq!(first_byte(&site, "web01"), 4);
}

#[test]
fn a_folder_that_misses_a_member_is_converted_when_that_comes_and_fails_when_it_does_not() {
    let site = Site::new("companion_timeout: 8");
    let daemon = site.start();
    for name in ["web01", "web02"] {
        copy(&folder(&site, name, &[("vm.ovf", &descriptor())]), &site.queue());
    }
    for name in ["web01", "web02"] {
        let waits = format!("{name}/vm.ovf waits for disk1.vmdk, which it names; without it, it fails in 1 min");
        daemon.until("it is told what it waits for", || daemon.lines(&waits).len() == 1);
    }
    daemon.until("they are counted", || daemon.stats()["settling"] == 2);
    assert_eq!(site.waiting(), ["web01", "web02"], "{}", daemon.log());
    fs::write(site.queue().join("web01/disk1.vmdk"), stream_optimized(5)).unwrap();
    daemon.until("one is converted", || site.published() == ["web01"]);
    assert_eq!(daemon.lines("waits for disk1.vmdk").len(), 2);
    daemon.until("the other has failed", || site.queue().join(".errors/web02.error.json").exists());
    assert_eq!(below(&site, ".errors"), ["web02.error.json", "web02/vm.ovf"]);
    let error = site.error_file("web02");
    assert_eq!((&error["reason"], &error["filename"]), (&"MissingMember".into(), &"web02/vm.ovf".into()), "{error}");
    // Completed and moved back by hand.
    fs::write(site.queue().join(".errors/web02/disk1.vmdk"), stream_optimized(6)).unwrap();
    fs::rename(site.queue().join(".errors/web02"), site.queue().join("web02")).unwrap();
    daemon.until("it is converted", || site.published() == ["web01", "web02"]);
    assert_eq!(first_byte(&site, "web02"), 6);
}

#[test]
fn a_folder_that_failed_is_tried_again_as_a_whole() {
    let site = Site::new("retry_policy: {max_retries: 2, retry_delay: 3, backoff_multiplier: 1}");
    let daemon = site.start_with(&[("HYPER2KVM_TEST_FAIL", "SourceIO:1")]);
    copy(&machine(&site, "web01", 8), &site.queue());
    let parked = ["web01.error.json", "web01/disk1.vmdk", "web01/vm.ovf"];
    daemon.until("it waits for its retry", || below(&site, ".errors") == parked);
    daemon.until("it is archived", || archived(&site) == ["web01/disk1.vmdk", "web01/vm.ovf"]);
    assert_eq!((first_byte(&site, "web01"), below(&site, ".errors")), (8, vec![]));
    assert_eq!(daemon.stats()["total_retried"], 1);
    // And one of its name that comes again on this day gets a number, its output too.
    copy(&machine(&site, "web01", 9), &site.queue());
    daemon.until("it is archived", || archived(&site).len() == 4);
    assert_eq!(&archived(&site)[..2], ["web01-1/disk1.vmdk", "web01-1/vm.ovf"]);
    assert_eq!(site.published(), ["web01", "web01-1"]);
}

#[test]
fn a_folder_stays_as_it_is_where_sources_are_not_archived_and_is_converted_once() {
    let site = Site::new("archive_processed: false");
    for _ in 0..2 {
        let daemon = site.start();
        if site.waiting().is_empty() {
            copy(&machine(&site, "web01", 1), &site.queue());
        }
        daemon.until("it is published", || site.published() == ["web01"]);
        daemon.until("it is back", || below(&site, "web01") == ["disk1.vmdk", "vm.ovf"]);
        sleep(Duration::from_secs(2));
        assert_eq!((site.published(), daemon.stats()["total_failed"].as_u64()), (names(&["web01"]), Some(0)));
    }
}

#[test]
fn a_file_that_comes_while_its_folder_is_converted_is_not_lost() {
    let site = Site::new("");
    let daemon = site.start();
    copy(&folder(&site, "web01", &[("a.raw", &disk(1))]), &site.queue());
    // Its writer has the folder open, and does not see that it was moved.
    let open = File::open(site.queue().join("web01")).unwrap();
    daemon.until("it is claimed", || site.waiting().is_empty());
    let late = format!("/proc/self/fd/{}/b.raw", open.as_raw_fd());
    fs::write(late, disk(2)).unwrap();
    daemon.until("nothing is under way", || daemon.status("active_jobs") == 0 && archived(&site).len() == 2);
    assert_eq!(archived(&site), ["web01/a.raw", "web01/b.raw"]);
}

#[test]
fn what_is_no_machine_is_told_once_and_stays() {
    let site = Site::new("");
    let daemon = site.start();
    let (one, image) = (disk(1), stream_optimized(1));
    let linked = folder(&site, "linked", &[("vm.raw", &one)]);
    symlink("/etc/passwd", linked.join("other.raw")).unwrap();
    let ovf = descriptor();
    for folder in [
        linked,
        folder(&site, "deep", &[("a/b/vm.raw", &one)]),
        folder(&site, "several", &[("a.ovf", &ovf), ("disk1.vmdk", &image), ("other.raw", &one)]),
        folder(&site, "text", &[("readme.txt", b"x")]),
        folder(&site, "twins", &[("a/vm.raw", &one), ("b/vm.raw", &one)]),
        folder(&site, "snapshot", &[("vm.vhdx", &one), ("vm_1.avhdx", &one)]),
        folder(&site, "zero", &[("vm.raw", b"")]),
        folder(&site, ".hidden", &[("vm.raw", &one)]),
        folder(&site, "upload.part", &[("vm.raw", &one)]),
    ] {
        fs::rename(&folder, site.queue().join(folder.file_name().unwrap())).unwrap();
    }
    fs::create_dir(site.queue().join("empty")).unwrap();
    daemon.until("they are counted", || daemon.stats()["ignored"] == 8);
    sleep(Duration::from_secs(3));
    for (name, text) in [
        ("linked/other.raw", "is a symbolic link"),
        ("deep/a/b", "lies too deep"),
        ("several", "holds more than one machine"),
        ("text", "is a folder without a disk image"),
        ("empty", "is a folder without a disk image"),
        ("twins/b/vm.raw", "has the name of another disk"),
        ("snapshot/vm_1.avhdx", "belongs to a snapshot"),
        ("zero/vm.raw", "is empty"),
    ] {
        let told = daemon.lines(&format!("refused: {name} {text}"));
        assert_eq!(told.len(), 1, "{name}: {told:?}\n{}", daemon.log());
    }
    assert_eq!(daemon.lines("refused: ").len(), 8, "{}", daemon.log());
    assert_eq!(site.published(), Vec::<String>::new());
    // What is corrected is taken.
    fs::remove_file(site.queue().join("linked/other.raw")).unwrap();
    fs::write(site.queue().join("empty/vm.raw"), one).unwrap();
    daemon.until("they are converted", || site.published() == ["empty", "linked"]);
}

#[test]
fn a_folder_whose_file_is_mended_in_errors_is_taken_again_as_a_whole() {
    let site = Site::new("");
    let daemon = site.start();
    let broken = folder(&site, "web01", &[("vm.vhdx", &[7; 4096]), ("notes.txt", b"kept with it")]);
    copy(&broken, &site.queue());
    daemon.until("it has failed", || site.queue().join(".errors/web01.error.json").exists());
    assert_eq!(site.error_file("web01")["reason"], "Corrupt");
    let errors = site.queue().join(".errors/web01");
    fs::write(errors.join("other.raw"), disk(1)).unwrap();
    fs::remove_file(errors.join("vm.vhdx")).unwrap();
    let made =
        Command::new("qemu-img").args(["create", "-q", "-f", "vhdx"]).arg(errors.join("vm.vhdx")).arg("1M").status();
    assert!(made.unwrap().success());
    daemon.until("it is archived", || archived(&site).len() == 3);
    assert_eq!(archived(&site), names(&["web01/notes.txt", "web01/other.raw", "web01/vm.vhdx"]));
    assert_eq!((site.disks(), below(&site, ".errors")), (names(&["web01-disk0.qcow2", "web01-disk1.qcow2"]), vec![]));
}
