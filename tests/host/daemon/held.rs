// SPDX-License-Identifier: Apache-2.0
//! What is held back says so, and nothing that is over holds anything.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use crate::support::daemon::{Daemon, EACH_SECOND, Site, disk};
use crate::support::random::Random;

/// The one directory of published disks.
fn day(site: &Site) -> PathBuf {
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    site.output().join(day)
}

fn metadata(site: &Site, stem: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(day(site).join(stem).join("metadata.json")).unwrap()).unwrap()
}

fn guest_bytes(site: &Site, stem: &str) -> Vec<u8> {
    let file = metadata(site, stem)["disks"][0]["file"].as_str().unwrap().to_owned();
    let raw = site.dir.path().join("guest.raw");
    let disk = day(site).join(stem).join(file);
    assert!(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(disk).arg(&raw).status().unwrap().success());
    fs::read(raw).unwrap()
}

fn waiting_for(daemon: &Daemon<'_>) -> String {
    daemon.ask("status")["waiting_for"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_is_repaired_where_it_stayed_is_converted_again_also_between_the_samples() {
    let site = Site::new("archive_processed: false");
    let daemon = site.start();
    let mut content = Random::seeded("repaired").bytes(1 << 20);
    site.drop_file("vm.raw", &content);
    daemon.until("it is converted, and back", || site.published() == ["vm"] && site.waiting() == ["vm.raw"]);
    content[300_000..300_008].copy_from_slice(b"REPAIRED");
    let file = File::options().write(true).open(site.queue().join("vm.raw")).unwrap();
    file.write_all_at(b"REPAIRED", 300_000).unwrap();
    drop(file);
    daemon.until("it is converted again", || site.published() == ["vm", "vm-1"]);
    assert!(guest_bytes(&site, "vm-1") == content);
    assert!(metadata(&site, "vm")["sourceChangedAt"].is_string());
    assert_eq!(daemon.stats()["total_duplicates"], 0);
}

#[test]
fn a_file_that_was_touched_where_it_stayed_leaves_its_output_as_it_is_where_md5_tells() {
    let site = Site::new("archive_processed: false\ndeduplication_use_md5: true");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is converted, and back", || site.published() == ["vm"] && site.waiting() == ["vm.raw"]);
    File::options().write(true).open(site.queue().join("vm.raw")).unwrap().set_modified(SystemTime::now()).unwrap();
    daemon.until("it is a duplicate", || daemon.stats()["total_duplicates"] == 1);
    assert_eq!(metadata(&site, "vm").get("sourceChangedAt"), None);
    assert_eq!(site.published(), ["vm"]);
}

#[test]
fn what_programs_keep_beside_an_upload_holds_it_and_is_told_once() {
    let site = Site::new("");
    let daemon = site.start();
    fs::write(site.queue().join("vm.raw.aria2"), "x").unwrap();
    fs::write(site.queue().join("vm.raw"), disk(1)).unwrap();
    let folder = site.queue().join("web01");
    fs::create_dir_all(folder.join(".rsync-partial")).unwrap();
    fs::write(folder.join("d0.raw"), disk(2)).unwrap();
    fs::write(folder.join(".rsync-partial/d1.raw"), &disk(3)[..512]).unwrap();
    daemon
        .until("the download is told", || daemon.lines("vm.raw.aria2 says that its download is not whole").len() == 1);
    let told = "web01/.rsync-partial/d1.raw is an upload under way or what one left";
    daemon.until("the upload is told", || daemon.lines(told).len() == 1);
    assert_eq!(site.published(), Vec::<String>::new(), "{}", daemon.log());
    assert!(daemon.stats()["settling"].as_u64() >= Some(2));
    fs::remove_file(site.queue().join("vm.raw.aria2")).unwrap();
    daemon.until("the file is published", || site.published() == ["vm"]);
    fs::write(folder.join(".rsync-partial/d1.raw"), disk(3)).unwrap();
    fs::rename(folder.join(".rsync-partial/d1.raw"), folder.join("d1.raw")).unwrap();
    daemon.until("the folder is published", || site.published() == ["vm", "web01"]);
    assert_eq!(site.disks().len(), 3, "{:?}", site.disks());
}

#[test]
fn the_directory_of_another_queue_is_no_machine() {
    let site = Site::new("");
    let daemon = site.start();
    let folder = site.queue().join("team1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".hyper2kvm-volume"), "{}").unwrap();
    fs::write(folder.join("a.raw"), disk(1)).unwrap();
    daemon.until("it is told", || daemon.lines("refused: team1 is a directory of another queue").len() == 1);
    assert!(folder.join("a.raw").exists());
}

#[test]
fn an_image_that_was_only_made_waits_until_something_is_in_it() {
    let site = Site::new("quiet_period: 60");
    let daemon = site.start();
    let (path, raw) = (site.queue().join("vm.qcow2"), site.dir.path().join("data.raw"));
    fs::write(&raw, disk(1)).unwrap();
    let length = disk(1).len().to_string();
    assert!(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg(length)
            .status()
            .unwrap()
            .success()
    );
    daemon.until("it is told", || daemon.lines("vm.qcow2 stands still, and nothing is in it yet").len() == 1);
    let status = Command::new("qemu-img").args(["convert", "-n", "-O", "qcow2"]).arg(&raw).arg(&path).status();
    assert!(status.unwrap().success());
    daemon.until("it is published", || site.published() == ["vm"]);
    assert_eq!(guest_bytes(&site, "vm"), disk(1));
    assert_eq!(daemon.stats()["total_processed"], 1);
}

#[test]
fn what_can_not_go_on_is_counted_and_says_why() {
    let site = Site::new("");
    let daemon = site.start();
    let in_the_way = site.output().join(jiff::Zoned::now().date().to_string());
    fs::write(&in_the_way, "x").unwrap();
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is shown", || waiting_for(&daemon).contains("vm.raw can't go on: "));
    assert_eq!(daemon.status("queue_depth"), 1);
    fs::remove_file(in_the_way).unwrap();
    daemon.until("it is published", || site.archived() == ["vm.raw"]);
    daemon.until("nothing is in its way", || waiting_for(&daemon).is_empty() && daemon.status("queue_depth") == 0);
}

#[test]
fn a_source_that_shrinks_while_it_is_converted_has_changed_and_has_not_failed() {
    let site = Site::new("compress: zlib");
    let daemon = site.start_with(EACH_SECOND);
    let content = Random::seeded("shrinks").bytes(96 << 20);
    site.drop_file("vm.raw", &content);
    let reader = File::open(site.queue().join("vm.raw")).unwrap();
    daemon.until("it is converted", || daemon.status("active_jobs") == 1);
    // The same file, wherever it lies.
    let mut file = File::options().write(true).open(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
    file.set_len(64 << 10).unwrap();
    daemon.until("it is given back", || daemon.stats()["total_given_back"] == 1);
    file.set_len(0).unwrap();
    file.write_all(&content[..1 << 20]).unwrap();
    drop(file);
    daemon.until("it is published", || site.published() == ["vm"]);
    assert!(guest_bytes(&site, "vm") == content[..1 << 20]);
    assert_eq!(daemon.stats()["total_failed"], 0, "{}", daemon.log());
}

#[test]
fn a_report_goes_with_what_it_tells_of() {
    let site = Site::new("");
    let daemon = site.start();
    let errors = site.queue().join(".errors");
    for name in ["moved.qcow2", "removed.qcow2"] {
        site.drop_file(name, &[1; 100]);
        daemon.until("it has failed", || errors.join(format!("{name}.error.json")).exists());
    }
    let (raw, good) = (site.dir.path().join("plain.raw"), site.dir.path().join("good.qcow2"));
    fs::write(&raw, disk(1)).unwrap();
    assert!(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, &good]).status().unwrap().success());
    let moved = site.dir.path().join("moved.qcow2");
    fs::rename(errors.join("moved.qcow2"), &moved).unwrap();
    fs::write(&moved, fs::read(&good).unwrap()).unwrap();
    fs::rename(moved, site.queue().join("moved.qcow2")).unwrap();
    fs::remove_file(errors.join("removed.qcow2")).unwrap();
    fs::write(&raw, disk(2)).unwrap();
    assert!(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, &good]).status().unwrap().success());
    fs::rename(&good, site.queue().join("removed.qcow2")).unwrap();
    daemon.until("both are published", || site.published() == ["moved", "removed"]);
    daemon.until("no report is left", || site.names("queue/.errors").is_empty());
}

#[test]
fn an_output_that_somebody_removed_lets_its_like_be_converted_again() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is archived", || site.archived() == ["vm.raw"]);
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is skipped", || daemon.stats()["total_duplicates"] == 1);
    fs::remove_dir_all(day(&site)).unwrap();
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is converted again", || site.published() == ["vm"] && daemon.stats()["total_processed"] == 2);
    assert_eq!(daemon.stats()["total_duplicates"], 1);
}

#[test]
fn an_image_that_is_put_into_an_archived_folder_is_not_forgotten() {
    let site = Site::new("");
    let daemon = site.start();
    fs::create_dir(site.dir.path().join("web01")).unwrap();
    fs::write(site.dir.path().join("web01/a.raw"), disk(1)).unwrap();
    fs::rename(site.dir.path().join("web01"), site.queue().join("web01")).unwrap();
    daemon.until("it is archived", || site.archived() == ["a.raw"]);
    let archive = site.queue().join(".processed").join(site.names("queue/.processed").remove(0));
    fs::write(archive.join("web01/b.raw"), disk(2)).unwrap();
    daemon.until("it is converted again", || site.published() == ["web01", "web01-1"]);
    assert_eq!(metadata(&site, "web01-1")["disks"].as_array().map(Vec::len), Some(2));
    assert!(metadata(&site, "web01")["sourceChangedAt"].is_string());
}
