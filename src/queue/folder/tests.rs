// SPDX-License-Identifier: Apache-2.0
//! Folders on a disk, and decisions about their files.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use tempfile::tempdir;

use super::*;
use crate::conversion::Reason;
use crate::disk::descriptor::References;
use crate::queue::companions;

fn listed(files: &[&str]) -> (tempfile::TempDir, Content) {
    let dir = tempdir().unwrap();
    for path in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let content = list(dir.path(), "web01").unwrap();
    (dir, content)
}

fn fault(files: &[&str]) -> Option<(String, Refusal)> {
    listed(files).1.fault.map(|fault| (fault.name, fault.refusal))
}

#[test]
fn a_folder_is_listed_with_the_folders_in_it() {
    let (dir, content) = listed(&["web01/vm.ovf", "web01/Disks/a.vhdx", "web01/.hidden", "web01/@eaDir/a/b.raw"]);
    let names: Vec<_> = content.files.iter().map(|file| file.name.as_ref()).collect();
    assert_eq!(names, ["web01/.hidden", "web01/Disks/a.vhdx", "web01/vm.ovf"]);
    assert_eq!((content.folders, content.fault), (vec!["web01/Disks".to_owned()], None));
    fs::create_dir_all(dir.path().join("web01/Disks/empty")).unwrap();
    assert_eq!(list(dir.path(), "web01").unwrap().fault, None);
    assert_eq!(list(dir.path(), "none").unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn the_entry_because_of_which_a_folder_is_not_taken_is_named() {
    assert_eq!(fault(&["web01/a/b/vm.raw"]), Some(("web01/a/b".to_owned(), Refusal::Deep)));
    assert_eq!(fault(&["web01/vm.avhdx", "web01/vm.vhdx"]), Some(("web01/vm.avhdx".to_owned(), Refusal::Checkpoint)));
    let of = |part: u32, snapshot: &str| format!("web01/vm.hdd/vm.hdd.{part}.{{{snapshot}}}.hds");
    assert_eq!(fault(&[&of(0, "5fbaabe3"), "web01/vm.hdd/DiskDescriptor.xml", "web01/b.hdd.0.{5fbaabe3}.hds"]), None);
    for second in [of(0, "6fbaabe3"), of(1, "5fbaabe3")] {
        let found = fault(&[&of(0, "5fbaabe3"), &second]);
        assert_eq!(found, Some((second, Refusal::Bundle)), "a snapshot, or a part");
    }
    assert_eq!(fault(&["web01/.hyper2kvm-volume", "web01/a.raw"]), Some(("web01".to_owned(), Refusal::Queue)));
    assert_eq!(fault(&["web01/a/.hyper2kvm-volume", "web01/a.raw"]), Some(("web01/a".to_owned(), Refusal::Queue)));
    assert_eq!(fault(&["web01/vm.raw", "web01/a/vm.raw"]), Some(("web01/vm.raw".to_owned(), Refusal::Twin)));
    assert_eq!(fault(&["web01/notes.txt", "web01/a/notes.txt", "web01/a/vm.raw"]), None);
    let (dir, _) = listed(&["web01/vm.raw"]);
    symlink("vm.raw", dir.path().join("web01/link.raw")).unwrap();
    let fault = list(dir.path(), "web01").unwrap().fault.unwrap();
    assert_eq!((fault.name.as_str(), fault.refusal), ("web01/link.raw", Refusal::Symlink));
}

#[test]
fn an_upload_under_way_is_known_by_its_name() {
    for upload in [
        "a/vm.raw.part",
        ".d1.vhdx.Ab12Cd",
        ".rsync-partial/d1.vhdx",
        ".rsync-partial/notes",
        ".~tmp~/d1.vhdx",
        "a/.tmp/.d1.vhdx.Ab12Cd",
        "d1.vhdx.1a2b3c4d.partial",
        "d1.vhdx.aria2",
        "d1.vhdx.ST",
        ".in.d1.vhdx.",
        "d1.vhdx.download",
        "d1.vhdx.upload",
        "d1.vhdx~",
        ".d1.qcow2.xz",
    ] {
        let path = format!("web01/{upload}");
        assert_eq!(listed(&["web01/vm.raw", &path]).1.upload, Some(path));
    }
    for other in ["part", "._vm.raw", ".DS_Store", "notes.st", "notes~", ".git/config", ".Trash-1000/files/d1.vhdx"] {
        assert_eq!(listed(&["web01/vm.raw", &format!("web01/{other}")]).1.upload, None, "{other}");
    }
}

/// Files that have settled; of descriptors, what they require.
fn decided(files: &[(&str, &[&str])], now: u64) -> Decision {
    let file = |required: &[&str]| File {
        is_stable: true,
        size: 512,
        first_sight: Duration::ZERO,
        last_change: Duration::ZERO,
        references: Arc::new(References {
            required: required.iter().map(|&name| name.to_owned()).collect(),
            optional: if required.is_empty() { Vec::new() } else { vec!["vm.mf".to_owned()] },
            ..References::default()
        }),
        not_of: Vec::new(),
    };
    let files: BTreeMap<Name, File> =
        files.iter().map(|(name, required)| (Name::from(*name), file(required))).collect();
    let mut verdicts = Vec::new();
    let seconds = Duration::from_secs;
    companions::group(&files, |_, _, _| None, seconds(now), seconds(60), |verdict| verdicts.push(verdict));
    decide(verdicts, &files)
}

fn take(members: &[&str], disks: &[&str], rest: Rest) -> Decision {
    let names = |names: &[&str]| names.iter().map(|&name| Name::from(name)).collect::<Vec<_>>();
    Decision::Take { primary: members[0].into(), members: names(members), disks: names(disks), failure: None, rest }
}

#[test]
fn a_folder_is_one_machine_or_it_is_refused() {
    let ovf = ("vm.ovf", &["a.vmdk"][..]);
    let none: &[&str] = &[];
    for (files, decision) in [
        (&[ovf, ("a.vmdk", none)][..], take(&["vm.ovf", "a.vmdk"], &[], Rest::Optional)),
        (&[ovf, ("a.vmdk", none), ("vm.mf", none)], take(&["vm.ovf", "a.vmdk", "vm.mf"], &[], Rest::Looks)),
        (
            &[ovf],
            Decision::Wait {
                primary: "vm.ovf".into(),
                missing: vec!["a.vmdk".to_owned()],
                until: Duration::from_secs(60),
            },
        ),
        (&[("a.vmdk", none), ("notes.txt", none)], take(&["a.vmdk"], &[], Rest::Quiet)),
        (&[("a.raw", none), ("b.raw", none)], take(&["a.raw", "b.raw"], &["a.raw", "b.raw"], Rest::Quiet)),
        (
            &[("a.vmdk", &["a-flat.vmdk"]), ("a-flat.vmdk", none), ("b.raw", none)],
            take(&["a.vmdk", "a-flat.vmdk", "b.raw"], &["a.vmdk", "b.raw"], Rest::Quiet),
        ),
        (&[ovf, ("a.vmdk", none), ("b.vmdk", none)], Decision::Refuse(Refusal::Several)),
        (&[("a.ova", none), ("b.ova", none)], Decision::Refuse(Refusal::Several)),
        (&[("notes.txt", none)], Decision::Refuse(Refusal::NoDisk)),
        (&[], Decision::Refuse(Refusal::NoDisk)),
    ] {
        assert_eq!(decided(files, 3), decision, "{files:?}");
    }
    let Decision::Take { failure: Some(failure), .. } = decided(&[ovf], 61) else { panic!("it fails in the end") };
    assert_eq!(failure.reason, Reason::MissingMember);
    let files = [("A.vmdk", none), ovf, ("z.raw", none)];
    let Decision::Take { primary, members, failure: Some(failure), .. } = decided(&files, 61) else {
        panic!("it is one machine, which lacks a disk: {:?}", decided(&files, 61));
    };
    assert_eq!((primary, members.len(), failure.reason), ("vm.ovf".into(), 3, Reason::MissingMember));
    assert!(failure.message.ends_with("; beside it is what nothing names: A.vmdk, z.raw"), "{}", failure.message);
}
