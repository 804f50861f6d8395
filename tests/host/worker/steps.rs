// SPDX-License-Identifier: Apache-2.0
//! An attempt that is cut short between two steps, and the next that goes on after the last one done.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Output;

use rstest::rstest;
use serde_json::Value;

use super::{Bench, said, signal, until};

const OPTIONS: &str = r#"{"outFormat":"qcow2","checksum":true}"#;

/// A claim whose attempts make a qcow2 disk and its digest.
fn bench() -> Bench {
    Bench::new("disk.raw", &vec![7; 300_000])
}

/// An attempt that writes `folder`, killed after it has left this file, if any.
fn attempt(bench: &Bench, folder: &str, options: &str, dies_after: Option<&str>) -> Output {
    let mut command = bench.command();
    command.env("HYPER2KVM_FOLDER", folder).env("HYPER2KVM_OPTIONS", options);
    if let Some(marker) = dies_after {
        command.env("HYPER2KVM_TEST_DIE", marker);
    }
    command.output().unwrap()
}

fn killed(bench: &Bench, folder: &str, after: &str) {
    let output = attempt(bench, folder, OPTIONS, Some(after));
    assert_eq!(output.status.signal(), Some(9), "{}", said(&output));
    assert!(bench.work().join(folder).join(after).exists());
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// The folder is complete and holds the disk as a whole conversion makes it.
fn is_whole(bench: &Bench, folder: &str) {
    let folder = bench.work().join(folder);
    let metadata: Value = serde_json::from_slice(&fs::read(folder.join("metadata.json")).unwrap()).unwrap();
    let other = self::bench();
    let output = attempt(&other, "whole", OPTIONS, None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let whole = other.work().join("whole");
    let expected: Value = serde_json::from_slice(&fs::read(whole.join("metadata.json")).unwrap()).unwrap();
    for key in ["contractVersion", "id", "toolVersion", "source", "disks", "sideFiles", "warnings"] {
        assert_eq!(metadata[key], expected[key], "{key}");
    }
    assert_eq!(fs::read(folder.join("disk.qcow2")).unwrap(), fs::read(whole.join("disk.qcow2")).unwrap());
}

#[rstest]
fn an_attempt_goes_on_after_the_last_step_that_an_earlier_one_has_done(
    #[values("copied.json", "verified.json", "digested.json", "metadata.json")] after: &str,
    #[values("pod", "another-pod")] folder: &str,
) {
    let bench = bench();
    killed(&bench, "pod", after);
    assert_eq!(bench.work().join("pod/metadata.json").exists(), after == "metadata.json");
    let copied = inode(&bench.work().join("pod/disk.qcow2"));
    if folder != "pod" {
        // As the engine hands it to an attempt of another number.
        fs::rename(bench.work().join("pod"), bench.work().join("kept")).unwrap();
    }
    let output = attempt(&bench, folder, OPTIONS, None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(inode(&bench.work().join(folder).join("disk.qcow2")), copied, "it was copied again");
    is_whole(&bench, folder);
    assert!(!bench.work().join("kept").exists());
}

#[test]
fn an_attempt_may_be_killed_after_each_of_its_steps() {
    let bench = bench();
    for after in ["copied.json", "verified.json", "digested.json", "metadata.json"] {
        killed(&bench, "pod", after);
    }
    assert_eq!(attempt(&bench, "pod", OPTIONS, None).status.code(), Some(0));
    is_whole(&bench, "pod");
}

/// Runs a second attempt after a first one was killed with its copy done and `change` was made; it copies anew.
fn copies_anew(options: &str, change: impl FnOnce(&Bench)) {
    let bench = bench();
    killed(&bench, "pod", "copied.json");
    // Held open, so that its inode is not given to the next one.
    let _held = fs::File::open(bench.work().join("pod/disk.qcow2")).unwrap();
    let copied = inode(&bench.work().join("pod/disk.qcow2"));
    change(&bench);
    let output = attempt(&bench, "pod", options, None);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_ne!(inode(&bench.work().join("pod/disk.qcow2")), copied, "it was not copied again");
    if options == OPTIONS {
        is_whole(&bench, "pod");
    }
}

/// Changes a file of JSON.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut content = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut content);
    fs::write(path, content.to_string()).unwrap();
}

#[test]
fn a_copy_with_other_options_is_not_gone_on_with() {
    copies_anew(r#"{"outFormat":"qcow2","compress":"zlib","checksum":true}"#, |_| {});
}

#[test]
fn a_copy_of_another_claim_is_not_gone_on_with() {
    copies_anew(OPTIONS, |bench| {
        let marker = bench.work().join("pod/copied.json");
        edit(&marker, |marker| marker["claim"] = "0".repeat(64).into());
    });
    copies_anew(OPTIONS, |bench| {
        let content = fs::read(&bench.member).unwrap();
        fs::remove_file(&bench.member).unwrap();
        fs::write(&bench.member, content).unwrap();
        bench.write_claim();
    });
}

#[test]
fn a_copy_by_another_version_is_not_gone_on_with() {
    copies_anew(OPTIONS, |bench| {
        let marker = bench.work().join("pod/copied.json");
        edit(&marker, |marker| marker["report"]["toolVersion"] = "0.0.1".into());
    });
}

#[test]
fn what_is_no_marker_or_no_disk_is_not_gone_on_with() {
    copies_anew(OPTIONS, |bench| fs::write(bench.work().join("pod/copied.json"), "{").unwrap());
    copies_anew(OPTIONS, |bench| {
        let disk = bench.work().join("pod/disk.qcow2");
        fs::remove_file(&disk).unwrap();
        std::os::unix::fs::symlink(&bench.member, disk).unwrap();
    });
    copies_anew(OPTIONS, |bench| {
        let marker = bench.work().join("pod/copied.json");
        edit(&marker, |marker| marker["report"]["disks"][0]["file"] = "../../claim/disk.raw".into());
    });
}

#[test]
fn a_folder_without_a_marker_is_waste() {
    let bench = bench();
    fs::create_dir(bench.work().join("pod")).unwrap();
    fs::write(bench.work().join("pod/disk.qcow2"), "half").unwrap();
    assert_eq!(attempt(&bench, "pod", OPTIONS, None).status.code(), Some(0));
    is_whole(&bench, "pod");
}

#[test]
fn a_copy_that_proves_bad_is_made_anew_by_the_next_attempt() {
    let bench = bench();
    killed(&bench, "pod", "copied.json");
    let disk = fs::File::options().write(true).open(bench.work().join("pod/disk.qcow2")).unwrap();
    disk.write_all_at(&[0xff; 104], 0).unwrap();
    let output = attempt(&bench, "pod", OPTIONS, None);
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(bench.failure()["failure"]["stage"], "verify");
    assert!(bench.folder_is_gone());
    assert_eq!(attempt(&bench, "pod", OPTIONS, None).status.code(), Some(0));
    is_whole(&bench, "pod");
}

#[test]
fn an_attempt_that_is_told_to_end_keeps_its_whole_copy_and_no_metadata() {
    let bench = bench();
    // Copied in a moment, for it stores nothing, and digested for minutes.
    fs::File::options().write(true).open(&bench.member).unwrap().set_len(1 << 38).unwrap();
    bench.write_claim();
    let mut command = bench.command();
    let child = command.env("HYPER2KVM_OPTIONS", r#"{"outFormat":"raw","checksum":true}"#).spawn().unwrap();
    until("its disk is verified", || bench.work().join("pod/verified.json").exists());
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
    assert_eq!(bench.failure()["failure"]["reason"], "Disrupted");
    assert!(bench.work().join("pod/disk.raw").exists() && !bench.work().join("pod/metadata.json").exists());
}
