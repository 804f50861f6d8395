// SPDX-License-Identifier: Apache-2.0
//! Uploads that pause: nothing half-written is taken while somebody can know that it is.

use std::fs::{self, File, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::daemon::{EACH_SECOND, Site, disk};
use crate::support::{ova, vmdk};

/// Longer than three equal looks, a second apart.
const STALL: Duration = Duration::from_secs(8);

/// The published directory of this name.
fn published(site: &Site, stem: &str) -> PathBuf {
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    site.output().join(day).join(stem)
}

fn metadata(site: &Site, stem: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(published(site, stem).join("metadata.json")).unwrap()).unwrap()
}

/// The disk of this stem, as its guest sees it.
fn guest_bytes(site: &Site, stem: &str) -> Vec<u8> {
    let disk = published(site, stem).join(format!("{stem}.qcow2"));
    let raw = site.dir.path().join("guest.raw");
    let status = Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(disk).arg(&raw).status().unwrap();
    assert!(status.success());
    fs::read(raw).unwrap()
}

#[test]
fn an_upload_that_stalls_with_its_file_open_is_not_taken_before_its_writer_closes_it() {
    let site = Site::new("");
    let daemon = site.start_with(EACH_SECOND);
    let content = disk(1);
    let half = content.len() / 1024 * 512;
    let mut plain = File::create(site.queue().join("plain.raw")).unwrap();
    plain.write_all(&content[..half]).unwrap();
    let mut preallocated = File::create(site.queue().join("preallocated.raw")).unwrap();
    preallocated.set_len(content.len() as u64).unwrap();
    preallocated.write_all(&content[..half]).unwrap();
    sleep(STALL);
    assert_eq!(site.published(), Vec::<String>::new(), "{}", daemon.log());
    assert_eq!(daemon.lines("File stable").len(), 0, "{}", daemon.log());
    assert_eq!(daemon.lines("its writer has it open").len(), 2, "{}", daemon.log());
    let closed = Instant::now();
    for mut file in [plain, preallocated] {
        file.seek(SeekFrom::Start(half as u64)).unwrap();
        file.write_all(&content[half..]).unwrap();
    }
    daemon.until("both are published", || site.published().len() == 2);
    assert!(closed.elapsed() > Duration::from_secs(3), "three looks come first: {:?}", closed.elapsed());
    for name in ["plain", "preallocated"] {
        assert_eq!(guest_bytes(&site, name), content);
    }
}

#[test]
fn a_file_whose_writer_nobody_saw_must_stand_still_for_the_quiet_period() {
    let site = Site::new("quiet_period: 6");
    fs::write(site.queue().join("early.raw"), disk(1)).unwrap();
    let daemon = site.start();
    // A link has no writer that an event could tell of.
    let aside = site.dir.path().join("aside.raw");
    fs::write(&aside, disk(2)).unwrap();
    fs::hard_link(&aside, site.queue().join("linked.raw")).unwrap();
    daemon.until("it is told", || daemon.lines("nobody can see its writer").len() == 2);
    assert_eq!(site.published(), Vec::<String>::new(), "{}", daemon.log());
    daemon.until("they are published", || site.published() == ["early", "linked"]);
}

#[test]
fn a_writer_that_no_event_tells_of_is_seen_by_what_it_has_open() {
    let site = Site::new("");
    let content = disk(1);
    let half = content.len() / 2;
    let begin = |path: &Path| {
        let mut file = File::create(path).unwrap();
        file.write_all(&content[..half]).unwrap();
        file
    };
    let aside = |name: &str| site.dir.path().join(name);
    let early = begin(&site.queue().join("early.raw"));
    let daemon = site.start_with(EACH_SECOND);
    let renamed = begin(&aside("renamed"));
    fs::rename(aside("renamed"), site.queue().join("renamed.raw")).unwrap();
    let linked = begin(&aside("linked"));
    fs::hard_link(aside("linked"), site.queue().join("linked.raw")).unwrap();
    // Closed by one of two, and by one that only touches it; opened again, and not written to yet.
    let shared = begin(&site.queue().join("shared.raw"));
    drop(File::options().append(true).open(site.queue().join("shared.raw")).unwrap());
    drop(begin(&site.queue().join("again.raw")));
    let mut again = File::options().write(true).open(site.queue().join("again.raw")).unwrap();
    again.seek(SeekFrom::End(0)).unwrap();
    sleep(STALL);
    assert_eq!(site.published(), Vec::<String>::new(), "{}", daemon.log());
    assert_eq!(daemon.lines("its writer has it open").len(), 5, "{}", daemon.log());
    for mut file in [early, renamed, linked, shared, again] {
        file.write_all(&content[half..]).unwrap();
    }
    daemon.until("all are published", || site.published().len() == 5);
    for name in ["early", "renamed", "linked", "shared", "again"] {
        assert_eq!(guest_bytes(&site, name), content, "{name}");
    }
}

#[test]
fn the_mark_at_a_formats_end_spares_the_quiet_period() {
    let site = Site::new("quiet_period: 3600");
    let content = disk(1);
    let stream = vmdk::built(&vmdk::Sparse::stream_optimized(content.len() as u64), &content);
    let archive = ova::ova("whole", &[("disk1.vmdk", &stream, content.len() as u64)]);
    fs::write(site.queue().join("whole.ova"), &archive).unwrap();
    fs::write(site.queue().join("half.ova"), &archive[..archive.len() / 2]).unwrap();
    fs::write(site.queue().join("stream.vmdk"), &stream).unwrap();
    let daemon = site.start();
    daemon.until("what is whole is published", || site.published() == ["stream", "whole"]);
    daemon.until("the half is told of", || daemon.lines("half.ova stands still, and its end is missing").len() == 1);
    // The rest of it, by a writer that is seen.
    let mut half = File::options().append(true).open(site.queue().join("half.ova")).unwrap();
    half.write_all(&archive[archive.len() / 2..]).unwrap();
    drop(half);
    daemon.until("the rest is published", || site.published() == ["half", "stream", "whole"]);
    assert_eq!(daemon.stats()["total_failed"], 0);
}

#[test]
fn what_waited_long_before_the_start_need_not_wait_again() {
    let site = Site::new("quiet_period: 2");
    fs::write(site.queue().join("old.raw"), disk(1)).unwrap();
    sleep(Duration::from_secs(3));
    let daemon = site.start();
    daemon.until("it is published", || site.published() == ["old"]);
    assert_eq!(daemon.lines("nobody can see its writer").len(), 0, "{}", daemon.log());
}

#[test]
fn a_change_of_mode_costs_no_attempt() {
    let site = Site::new("compress: zlib");
    let content: Vec<u8> = (0..96_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let daemon = site.start_with(EACH_SECOND);
    site.drop_file("vm.raw", &content);
    // By its descriptor the mode of the file changes wherever it is moved.
    let file = File::open(site.queue().join("vm.raw")).unwrap();
    let mut changes = 0;
    daemon.until("it is published", || {
        changes += 1;
        file.set_permissions(Permissions::from_mode(0o600 + (changes & 1) * 0o040)).unwrap();
        site.published() == ["vm"]
    });
    assert_eq!(daemon.lines("attempt started").len(), 1, "{}", daemon.log());
    assert_eq!(guest_bytes(&site, "vm"), content);
}

#[test]
fn what_is_written_after_its_conversion_is_noticed_marked_and_converted_again() {
    let site = Site::new("quiet_period: 1");
    let daemon = site.start();
    let (half, whole) = (disk(1)[..32 << 10].to_vec(), disk(1));
    site.drop_file("vm.raw", &half);
    site.drop_file("late.qcow2", &[1; 100]);
    daemon.until("one is archived, one failed", || {
        site.archived() == ["vm.raw"] && site.in_errors() == ["late.qcow2"] && daemon.stats()["total_failed"] == 1
    });
    let day = site.names("queue/.processed").remove(0);
    let archived = site.queue().join(".processed").join(day).join("vm.raw");
    File::options().append(true).open(archived).unwrap().write_all(&whole[32 << 10..]).unwrap();
    let (plain, qcow2) = (site.dir.path().join("whole.raw"), site.dir.path().join("vm.qcow2"));
    fs::write(&plain, &whole).unwrap();
    let made = Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&plain, &qcow2]).status().unwrap();
    assert!(made.success());
    fs::write(site.queue().join(".errors/late.qcow2"), fs::read(qcow2).unwrap()).unwrap();
    daemon.until("both are converted", || site.published() == ["late", "vm", "vm-1"]);
    assert_eq!(guest_bytes(&site, "late"), whole);
    assert_eq!(daemon.lines("changed after it was taken").len(), 2, "{}", daemon.log());
    daemon.until("no report is left", || site.names("queue/.errors").is_empty());
    assert!(metadata(&site, "vm")["sourceChangedAt"].is_string());
    assert_eq!(metadata(&site, "vm-1").get("sourceChangedAt"), None);
    assert_eq!(metadata(&site, "vm-1")["source"]["sizeBytes"], whole.len());
}

#[test]
fn what_is_written_where_it_stayed_after_its_conversion_is_marked_too() {
    let site = Site::new("archive_processed: false");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(1)[..32 << 10]);
    daemon.until("it is converted, and back", || site.published() == ["vm"] && site.waiting() == ["vm.raw"]);
    let mut file = File::options().append(true).open(site.queue().join("vm.raw")).unwrap();
    file.write_all(&disk(1)[32 << 10..]).unwrap();
    drop(file);
    daemon.until("it is converted again", || site.published() == ["vm", "vm-1"]);
    assert_eq!(daemon.lines("changed after it was taken").len(), 1, "{}", daemon.log());
    assert!(metadata(&site, "vm")["sourceChangedAt"].is_string());
    assert_eq!(metadata(&site, "vm-1").get("sourceChangedAt"), None);
}

#[test]
fn another_file_in_the_place_of_an_archived_source_is_left_alone() {
    let site = Site::new("quiet_period: 1");
    let daemon = site.start();
    let archive = || site.queue().join(".processed").join(site.names("queue/.processed").remove(0));
    for name in ["vm.raw", "other.raw"] {
        site.drop_file(name, &disk(1)[..32 << 10]);
    }
    daemon.until("both are archived", || site.archived() == ["other.raw", "vm.raw"]);
    // A person made room, and another disk of that name took it.
    fs::remove_file(archive().join("vm.raw")).unwrap();
    site.drop_file("vm.raw", &disk(2));
    daemon.until("it is archived", || site.archived() == ["other.raw", "vm.raw"] && site.published().len() == 3);
    File::options().append(true).open(archive().join("other.raw")).unwrap().write_all(&disk(1)[32 << 10..]).unwrap();
    daemon.until("one look sees what changed", || daemon.lines("changed after it was taken").len() == 1);
    daemon.until("it is converted again", || site.published() == ["other", "other-1", "vm", "vm-1"]);
    assert_eq!(daemon.lines("vm.raw changed after it was taken").len(), 0, "{}", daemon.log());
    assert_eq!(metadata(&site, "vm").get("sourceChangedAt"), None);
}

/// A raw disk of 64 KiB with an MBR whose only partition ends where the disk does.
fn partitioned() -> Vec<u8> {
    let mut content = disk(1);
    content[446 + 4] = 0x83;
    content[446 + 8..446 + 12].copy_from_slice(&8_u32.to_le_bytes());
    content[446 + 12..446 + 16].copy_from_slice(&120_u32.to_le_bytes());
    content[510..512].copy_from_slice(&[0x55, 0xAA]);
    content
}

#[test]
fn a_raw_upload_in_closed_pieces_is_taken_when_its_partitions_are_there() {
    let site = Site::new("quiet_period: 60");
    let daemon = site.start_with(EACH_SECOND);
    let content = partitioned();
    for piece in content.chunks(content.len() / 4) {
        assert_eq!(site.published(), Vec::<String>::new(), "{}", daemon.log());
        let mut file = File::options().create(true).append(true).open(site.queue().join("vm.raw")).unwrap();
        file.write_all(piece).unwrap();
        drop(file);
        sleep(Duration::from_secs(6));
    }
    daemon.until("it is published", || site.published() == ["vm"]);
    assert_eq!(guest_bytes(&site, "vm"), content);
    assert_eq!(daemon.lines("vm.raw stands still, and its end is missing").len(), 3, "{}", daemon.log());
    assert_eq!(daemon.stats()["total_processed"], 1);
    // Whoever renames a file to its name says that it is whole; one that was interrupted does so, too (rsync --partial).
    site.drop_file("renamed.raw", &content[..32 << 10]);
    daemon.until("it is told", || daemon.lines("renamed.raw stands still, and its end is missing").len() == 1);
    fs::write(site.queue().join("renamed.raw"), &content).unwrap();
    daemon.until("it is published", || site.published() == ["renamed", "vm"]);
    // No disk has a part of a sector.
    fs::write(site.queue().join("odd.raw"), &disk(2)[..1000]).unwrap();
    daemon.until("it is told", || daemon.lines("odd.raw stands still, and its end is missing").len() == 1);
}
