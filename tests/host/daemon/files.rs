// SPDX-License-Identifier: Apache-2.0
//! Names, kinds and contents of dropped files; duplicates; twenty at once.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::time::Duration;

use serde_json::json;

use crate::support::daemon::{EACH_SECOND, Site, at_best, disk, second};
use crate::support::vmdk::{self, Sparse};

#[test]
fn two_files_of_one_stem_are_two_outputs_and_capitals_count_as_small() {
    let site = Site::new("");
    let daemon = site.start();
    let vmdk = |n| vmdk::built(&Sparse::stream_optimized(64 << 10), &disk(n));
    site.drop_file("vm.vmdk", &vmdk(0));
    site.drop_file("vm.raw", &disk(1));
    site.drop_file("UP.VMDK", &vmdk(2));
    daemon.until("three are archived", || site.archived() == ["UP.VMDK", "vm.raw", "vm.vmdk"]);
    assert_eq!(site.published(), ["UP", "vm", "vm-1"]);
    assert_eq!(site.disks(), ["UP.qcow2", "vm.qcow2", "vm.qcow2"]);
    daemon.until("three are counted", || daemon.stats()["total_processed"] == 3);
    assert_eq!(daemon.stats()["by_file_type"]["vmdk"]["processed"], 2);
}

#[test]
fn what_is_no_disk_image_is_refused_once_and_left_where_it_is() {
    let site = Site::new("");
    let queue = site.queue();
    fs::write(queue.join("empty.raw"), "").unwrap();
    fs::write(queue.join(".hidden.raw"), disk(0)).unwrap();
    fs::write(queue.join("upload.raw.part"), disk(0)).unwrap();
    fs::create_dir(queue.join("dir.vmdk")).unwrap();
    symlink("/etc/hostname", queue.join("link.raw")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, queue.join("fifo.raw"), rustix::fs::Mode::RWXU).unwrap();
    let before = site.names("queue");
    let daemon = site.start();
    site.drop_file("good.raw", &disk(0));
    daemon.until("the good one is archived", || site.archived() == ["good.raw"]);
    for name in ["empty.raw", "dir.vmdk", "link.raw", "fifo.raw"] {
        daemon.until("it is refused", || !daemon.lines(&format!("refused: {name} ")).is_empty());
        assert_eq!(daemon.lines(&format!("refused: {name} ")).len(), 1, "{name}");
    }
    let still: Vec<_> = site.names("queue").into_iter().filter(|name| before.contains(name)).collect();
    assert_eq!(still, before);
}

#[test]
fn what_is_never_taken_is_told_at_once_with_what_to_do_and_counted() {
    use std::os::unix::ffi::OsStrExt as _;
    let site = Site::new("");
    let queue = site.queue();
    let untold = [".hidden", "x.vmdk.part", "an.mf", "an.nvram", "an-disk1.vmdk.000000000"];
    let dropped = ["vm.rar", "vm.7z", "vm.vmx", "disk.gz", "vm-000001.avhdx", "notes.txt", "cd.iso"];
    for name in dropped.into_iter().chain(untold) {
        fs::write(queue.join(name), "something").unwrap();
    }
    fs::write(queue.join("volume"), [b"QFI\xFB\0\0\0\x03".as_slice(), &[0; 504]].concat()).unwrap();
    fs::write(queue.join("old.dd"), disk(1)).unwrap();
    fs::create_dir(queue.join("web01")).unwrap();
    fs::create_dir(queue.join("lost+found")).unwrap();
    symlink("/etc/hostname", queue.join("link")).unwrap();
    fs::write(queue.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(queue.join("socket")).unwrap();
    let daemon = site.start();
    let told = [
        ("vm.rar", "unpack it and move the disk images here"),
        ("vm.7z", "unpack it and move the disk images here"),
        ("vm.vmx", "export the machine as OVF or OVA, or move its disks here"),
        ("disk.gz", "let its name end in that, as in .img.gz"),
        ("volume", "rename it to end in .qcow2"),
        ("old.dd", "rename it to end in .raw"),
        ("vm-000001.avhdx", "merge or delete the snapshot and move the disk here"),
        ("notes.txt", "is no disk image, and nothing here names it"),
        ("cd.iso", "is no disk image, and nothing here names it"),
        ("web01", "is a folder without a disk image; put the machine's disks into it, or move it away"),
        ("link", "is a symbolic link, which is never followed; move the file itself here"),
        ("caf\u{fffd}", "has a name that is not UTF-8; rename it"),
        ("socket", "is a socket, not a disk image"),
    ];
    daemon.until("all are counted", || daemon.stats()["ignored"] == told.len());
    fs::remove_file(queue.join("vm.rar")).unwrap();
    daemon.until("one is gone", || daemon.stats()["ignored"] == told.len() - 1);
    for (name, remedy) in told {
        let lines = daemon.lines(&format!("refused: {name} "));
        assert!(matches!(&lines[..], [line] if line.contains(remedy)), "{name}: {lines:?}");
    }
    assert_eq!(daemon.lines("refused: ").len(), told.len());
    // Without vm.rar, and with lost+found and what is not told but hidden.
    let visible = |entry: &fs::DirEntry| !entry.file_name().as_bytes().starts_with(b".");
    assert_eq!(
        fs::read_dir(&queue).unwrap().map(Result::unwrap).filter(visible).count(),
        told.len() + untold.len() - 1
    );
}

#[test]
fn packed_disks_are_converted_under_their_stems() {
    let site = Site::new("");
    let daemon = site.start();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    site.drop_file("web.img.gz", &gzip(&disk(1)));
    site.drop_file("db.vmdk.gz", &gzip(&vmdk::built(&Sparse::stream_optimized(64 << 10), &disk(2))));
    daemon.until("both are archived", || site.archived() == ["db.vmdk.gz", "web.img.gz"]);
    assert_eq!(site.published(), ["db", "web"]);
    assert_eq!(site.disks(), ["db.qcow2", "web.qcow2"]);
}

#[test]
fn twenty_files_at_once_are_all_vetted_within_three_and_a_half_seconds() {
    at_best(|| {
        let site = Site::new("");
        let daemon = site.start_with(EACH_SECOND);
        daemon.ask("pause");
        let dropped = jiff::Timestamp::now().as_duration().as_secs_f64();
        for n in 0..20 {
            site.drop_file(&format!("vm{n}.raw"), &disk(n));
        }
        daemon.until("all are queued", || daemon.lines("📥 New file queued").len() == 20);
        let last = daemon.lines("📥 New file queued").iter().map(|line| second(line)).fold(0.0, f64::max);
        if last - dropped <= 3.5 { Ok(()) } else { Err(format!("the last one was vetted after {} s", last - dropped)) }
    });
}

#[test]
fn a_growing_file_is_not_converted_and_holds_up_nobody() {
    let site = Site::new("");
    let daemon = site.start_with(EACH_SECOND);
    let growing = site.queue().join("growing.raw");
    let mut file = OpenOptions::new().create(true).append(true).open(growing).unwrap();
    site.drop_file("still.raw", &disk(0));
    daemon.until("the finished one is archived", || {
        file.write_all(&[1; 512]).unwrap();
        site.archived() == ["still.raw"]
    });
    assert_eq!(site.waiting(), ["growing.raw"]);
    drop(file);
    daemon.until("the other one follows", || site.archived() == ["growing.raw", "still.raw"]);
}

#[test]
fn a_duplicate_is_archived_and_counted_and_another_size_is_none() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is converted", || site.archived() == ["vm.raw"]);
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is a duplicate", || daemon.stats()["total_duplicates"] == 1);
    assert_eq!(daemon.lines("⏭️ Skipping duplicate: vm.raw (originally processed: ").len(), 1);
    site.drop_file("vm.raw", &disk(1)[..8192]);
    daemon.until("another size is converted", || daemon.stats()["total_processed"] == 2);
    daemon.until("all three are archived", || site.archived() == ["vm-1.raw", "vm-2.raw", "vm.raw"]);
    assert_eq!(site.published(), ["vm", "vm-1"]);
}

#[test]
fn a_repaired_upload_of_the_same_name_and_size_is_converted() {
    for config in ["", "deduplication_use_md5: true"] {
        let site = Site::new(config);
        let daemon = site.start();
        site.drop_file("vm.raw", &disk(1));
        daemon.until("it is archived", || site.archived() == ["vm.raw"]);
        site.drop_file("vm.raw", &disk(2));
        daemon.until("the other is converted", || site.published() == ["vm", "vm-1"]);
        // The last one is what is compared with.
        site.drop_file("vm.raw", &disk(2));
        daemon.until("it is a duplicate", || daemon.stats()["total_duplicates"] == 1);
        assert_eq!(daemon.stats()["total_processed"], 2);
    }
}

#[test]
fn by_md5_a_file_of_another_name_is_a_duplicate_too() {
    let site = Site::new("deduplication_use_md5: true");
    let daemon = site.start();
    site.drop_file("one.raw", &disk(0));
    daemon.until("it is converted", || site.archived() == ["one.raw"]);
    site.drop_file("two.raw", &disk(0));
    daemon.until("the other is a duplicate", || daemon.stats()["total_duplicates"] == 1);
    assert_eq!(site.published(), ["one"]);
}

#[test]
fn a_source_left_in_place_is_never_converted_twice() {
    let site = Site::new("archive_processed: false\nenable_deduplication: false");
    let mut daemon = site.start();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is converted and back", || site.published() == ["vm"] && site.waiting() == ["vm.raw"]);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.end_within(Duration::from_secs(10));
    let daemon = site.start();
    site.drop_file("next.raw", &disk(1));
    daemon.until("the next one is converted", || site.published().contains(&"next".to_owned()));
    daemon.until("it is counted", || daemon.stats()["total_processed"] == 2);
    assert_eq!(site.published(), ["next", "vm"]);
}

#[test]
fn a_broken_image_fails_once_with_a_reason() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("bad.vmdk", &"x".repeat(3 << 19).into_bytes());
    daemon.until("it is counted", || daemon.stats()["total_failed"] == 1);
    daemon.until("it lies in .errors", || site.in_errors() == ["bad.vmdk"]);
    daemon.until("its report is there", || site.queue().join(".errors/bad.vmdk.error.json").exists());
    let mut report = site.error_file("bad.vmdk");
    let told = report["exception_traceback"].take();
    assert!(told.as_str().is_some_and(|text| text.contains("has no signature of a .vmdk file")), "{told}");
    for (section, key) in [("system_info", "disk_space_free_gb"), ("system_info", "memory_available_gb")] {
        assert!(report[section][key].take().as_f64().is_some_and(|gb| gb > 0.0), "{key}");
    }
    let time = report["timestamp"].take();
    // RFC 3339, UTC, whole seconds: 2026-01-17T09:45:00Z.
    assert!(time.as_str().is_some_and(|time| time.len() == 20 && time.ends_with('Z')), "{time}");
    assert!(report["id"].take().as_str().is_some_and(|id| id.starts_with("bad-")));
    assert_eq!(
        report,
        json!({
            "filename": "bad.vmdk",
            "filepath": site.queue().join("bad.vmdk"),
            "file_size_mb": 1.5,
            "timestamp": null,
            "error": "bad.vmdk: has no signature of a .vmdk file (at byte 0)",
            "phase": "conversion",
            "exception_traceback": null,
            "suggestion": "Re-export the VM from source, the disk image may be corrupted",
            "system_info": {
                "python_version": null,
                "version": env!("CARGO_PKG_VERSION"),
                "disk_space_free_gb": null,
                "memory_available_gb": null,
            },
            "retry_info": {"retry_count": 0, "max_retries": 3, "next_retry_at": null},
            "reason": "Corrupt",
            "complete_by": "Writer", "class": "Permanent",
            "stage": "inspect",
            "id": null,
        })
    );
    let mut job = daemon.stats()["recent_completed"][0].take();
    for key in ["start_time", "end_time", "duration_seconds"] {
        assert!(!job[key].take().is_null(), "{key}");
    }
    assert_eq!(
        job,
        json!({
            "filename": "bad.vmdk",
            "file_type": "vmdk",
            "file_size_mb": 1.5,
            "start_time": null,
            "end_time": null,
            "duration_seconds": null,
            "status": "failed",
            "error": "bad.vmdk: has no signature of a .vmdk file (at byte 0)",
            "suggestion": "Re-export the VM from source, the disk image may be corrupted",
            "retry_count": 0,
        })
    );
    assert_eq!(daemon.lines("attempt started").len(), 1);
    assert_eq!(daemon.lines("❌ Failed: bad.vmdk: has no signature of a .vmdk file (at byte 0) ").len(), 1);
}

#[test]
fn a_preallocated_file_is_not_converted_while_it_is_filled() {
    let site = Site::new("out_format: raw");
    let daemon = site.start();
    let whole = disk(3);
    let filled = fs::File::create(site.queue().join("filled.raw")).unwrap();
    filled.set_len(whole.len() as u64).unwrap();
    site.drop_file("still.raw", &disk(0));
    daemon.until("the finished one is archived", || {
        // Its size never changes again, and only its last byte is still to be written.
        filled.write_all_at(&[9], 0).unwrap();
        site.archived() == ["still.raw"]
    });
    assert_eq!(site.waiting(), ["filled.raw"]);
    filled.write_all_at(&whole, 0).unwrap();
    drop(filled);
    daemon.until("the other one follows", || site.archived() == ["filled.raw", "still.raw"]);
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    assert!(fs::read(site.output().join(day).join("filled/filled.raw")).unwrap() == whole);
}

#[test]
fn a_hard_link_is_converted_and_its_other_name_is_left_alone() {
    let site = Site::new("");
    let daemon = site.start();
    let other = site.dir.path().join("other.raw");
    fs::write(&other, disk(1)).unwrap();
    fs::hard_link(&other, site.queue().join("vm.raw")).unwrap();
    daemon.until("it is archived", || site.archived() == ["vm.raw"]);
    assert_eq!(site.disks(), ["vm.qcow2"]);
    assert!(fs::read(&other).unwrap() == disk(1));
}
