// SPDX-License-Identifier: Apache-2.0
//! Requests against a directory, and by a clock that the tests hold.

use std::fs::{create_dir_all, write};
use std::os::unix::fs::symlink;

use tempfile::{TempDir, tempdir};

use super::*;

fn request(path: &str, companions: &[&str]) -> Request {
    Request {
        id: "retry-1".parse().unwrap(),
        path: path.to_owned(),
        companions: companions.iter().map(|&name| name.to_owned()).collect(),
        emit: None,
        unfit: None,
    }
}

fn queue() -> TempDir {
    let queue = tempdir().unwrap();
    for directory in [".errors/vm-1", ".processed/2026-01-17", ".processing/x-1"] {
        create_dir_all(queue.path().join(directory)).unwrap();
    }
    queue
}

fn names(found: &Found) -> Vec<&str> {
    match found {
        Found::Whole(members) => members.iter().map(|member| member.name.as_ref()).collect(),
        other => panic!("{other:?}"),
    }
}

fn reason(found: &Found) -> Reason {
    match found {
        Found::Unfit(failure) => failure.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_found_wherever_sources_lie() {
    let queue = queue();
    for path in ["a.ova", ".errors/a.ova", ".errors/vm-1/a.ova", ".processed/2026-01-17/a.ova"] {
        write(queue.path().join(path), "x").unwrap();
        let found = find(queue.path(), &request(path, &[])).unwrap();
        assert_eq!(names(&found), ["a.ova"], "{path}");
    }
}

#[test]
fn a_descriptor_brings_what_it_names_unless_the_request_says_what_belongs_to_it() {
    let queue = queue();
    let descriptor = "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"b-flat.vmdk\" 0\n";
    write(queue.path().join(".errors/b.vmdk"), descriptor).unwrap();
    let found = |companions: &[&str]| find(queue.path(), &request(".errors/b.vmdk", companions)).unwrap();
    assert_eq!(found(&[]), Found::Missing(vec!["b-flat.vmdk".to_owned()]));
    write(queue.path().join(".errors/b-flat.vmdk"), "x").unwrap();
    write(queue.path().join(".errors/a.nvram"), "x").unwrap();
    assert_eq!(names(&found(&[])), ["b.vmdk", "b-flat.vmdk"]);
    assert_eq!(names(&found(&["a.nvram"])), ["b.vmdk", "a.nvram"]);
    assert_eq!(found(&["gone"]), Found::Missing(vec!["gone".to_owned()]));
}

#[test]
fn what_leads_elsewhere_or_is_no_file_is_refused() {
    let queue = queue();
    let outside = tempdir().unwrap();
    write(outside.path().join("a.ova"), "secret").unwrap();
    symlink(outside.path(), queue.path().join("link")).unwrap();
    symlink(outside.path().join("a.ova"), queue.path().join("b.ova")).unwrap();
    write(queue.path().join(".processing/x-1/a.ova"), "x").unwrap();
    write(queue.path().join("empty.ova"), "").unwrap();
    for (path, expected) in [
        ("../a.ova", Reason::UnsafeReference),
        ("/etc/passwd", Reason::UnsafeReference),
        ("link/a.ova", Reason::UnsafeReference),
        (".processing/x-1/a.ova", Reason::UnsafeReference),
        ("claim.json", Reason::UnsafeReference),
        ("b.ova", Reason::UnsupportedFormat),
        (".errors/vm-1", Reason::UnsupportedFormat),
        ("empty.ova", Reason::UnsupportedFormat),
    ] {
        assert_eq!(reason(&find(queue.path(), &request(path, &[])).unwrap()), expected, "{path}");
    }
}

fn entry(touched: i64, size: u64) -> Entry {
    let ns = i128::from(touched) * 1_000_000_000;
    Entry { name: "a.ova".into(), kind: Kind::Regular, size, mtime_ns: ns, ctime_ns: ns, inode: 1, device: 1 }
}

#[test]
fn a_file_that_has_been_still_is_taken_at_once_and_another_when_it_is() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let request = request("a.ova", &[]);
    let whole = |touched, size| Found::Whole(vec![entry(touched, size)]);
    let mut sought = Sought::default();
    let verdict = sought.judge(whole(1000, 1), &request, Duration::ZERO, at(1010));
    assert_eq!(verdict, Verdict::Take(vec![entry(1000, 1)], None));

    let mut sought = Sought::default();
    // The clock of the file's writer may be ahead of ours.
    for (now, size, taken) in [(0, 1, false), (2, 2, false), (4, 2, false), (5, 2, true)] {
        let verdict = sought.judge(whole(9000, size), &request, Duration::from_secs(now), at(1000));
        assert_eq!(verdict != Verdict::Wait, taken, "{now}");
    }
}

#[test]
fn what_does_not_come_in_a_minute_is_missing() {
    let request = request(".errors/a.ova", &[]);
    for (missing, expected) in [("a.ova", Reason::SourceMissing), ("disk.vmdk", Reason::MissingMember)] {
        let mut sought = Sought::default();
        let mut judge = |second| {
            let found = Found::Missing(vec![missing.to_owned()]);
            sought.judge(found, &request, Duration::from_secs(second), Timestamp::UNIX_EPOCH)
        };
        assert_eq!(judge(59), Verdict::Wait);
        let Verdict::Decline(failure) = judge(60) else { panic!("{missing} is waited for") };
        assert_eq!(failure.reason, expected);
    }
}

#[test]
fn a_requested_folder_is_one_machine() {
    let queue = queue();
    let folder = queue.path().join(".errors/web01");
    create_dir_all(folder.join("disks")).unwrap();
    write(folder.join("disks/a.raw"), "x").unwrap();
    write(folder.join("b.raw"), "x").unwrap();
    write(folder.join("notes.txt"), "x").unwrap();
    let Found::Folder(found, members) = find(queue.path(), &request(".errors/web01", &[])).unwrap() else {
        panic!("it is a folder")
    };
    let members: Vec<&str> = members.iter().map(|member| member.name.as_ref()).collect();
    assert_eq!((found.entry.name.as_ref(), members), ("web01", vec!["web01/disks/a.raw", "web01/b.raw"]));
    assert_eq!(found.disks, ["web01/disks/a.raw", "web01/b.raw"]);
    symlink("b.raw", folder.join("link.raw")).unwrap();
    let found = find(queue.path(), &request(".errors/web01", &[])).unwrap();
    assert_eq!(reason(&found), Reason::UnsupportedFormat);
}
