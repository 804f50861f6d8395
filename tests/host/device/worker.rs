// SPDX-License-Identifier: Apache-2.0
//! Attempts of a worker whose disks go into targets, and plans.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};

use super::*;
use crate::worker::Bench;

const SIZE: u64 = 9 * MIB + 512;

fn attempt(bench: &Bench, targets: &Value, more: &[(&str, &str)]) -> Output {
    let mut command = bench.command();
    command.env("HYPER2KVM_TARGETS", targets.to_string()).env("HYPER2KVM_STEP", "convert");
    command.env("HYPER2KVM_OPTIONS", r#"{"outFormat":"qcow2","compress":"zlib","checksum":true}"#);
    command.envs(more.iter().copied()).output().unwrap()
}

fn metadata(bench: &Bench) -> Value {
    serde_json::from_slice(&fs::read(bench.work().join("pod/metadata.json")).unwrap()).unwrap()
}

/// An attempt that does not end well, for this reason.
fn fails(bench: &Bench, targets: &Value, reason: &str, code: i32) -> Value {
    let output = attempt(bench, targets, &[]);
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    let failure = bench.failure()["failure"].clone();
    assert_eq!(failure["reason"], reason, "{failure}");
    failure
}

#[test]
fn a_disk_goes_onto_its_device_and_metadata_says_so() {
    let bench = Bench::new("disk.raw", &guest(SIZE));
    let Some(device) = Loop::new(&bench.place, 12 * MIB, 512) else { return };
    let targets = json!([{"path": device.name()}]);
    let output = attempt(&bench, &targets, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(device.holds(&guest(SIZE)));
    let disk = &metadata(&bench)["disks"][0];
    assert_eq!((&disk["target"], &disk["format"]), (&targets[0], &json!("raw")));
    assert_eq!(disk["virtualSizeBytes"], SIZE);
    let folder = fs::read_dir(bench.work().join("pod")).unwrap();
    assert!(folder.flatten().all(|file| file.file_name().to_string_lossy().ends_with(".json")), "a disk beside it");
}

#[test]
fn an_attempt_that_is_killed_is_made_anew_on_a_device() {
    let bench = Bench::new("disk.raw", &guest(SIZE));
    let Some(device) = Loop::new(&bench.place, 12 * MIB, 4096) else { return };
    let targets = json!([{"path": device.name()}]);
    for marker in ["copied.json", "digested.json"] {
        let output = attempt(&bench, &targets, &[("HYPER2KVM_TEST_DIE", marker)]);
        assert_eq!(output.status.signal(), Some(9), "{}", said(&output));
        // Somebody else had the device meanwhile.
        File::options().write(true).open(&device.device).unwrap().write_all_at(&[STALE; 4096], 8 * MIB).unwrap();
    }
    let output = attempt(&bench, &targets, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(device.holds(&guest(SIZE)));
}

#[test]
fn a_disk_becomes_an_image_of_whole_mebibytes_in_its_directory() {
    let bench = Bench::new("disk.raw", &guest(SIZE));
    let Some(mounted) = Mounted::new(&bench.place, 40 * MIB) else { return };
    fs::write(mounted.directory.join("disk.img.part"), "what an earlier attempt left").unwrap();
    let targets = json!([{"directory": mounted.directory}]);
    let output = attempt(&bench, &targets, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let (image, disk) = (fs::read(mounted.image()).unwrap(), guest(SIZE));
    assert_eq!(image.len() as u64, 10 * MIB);
    assert!(image.starts_with(&disk) && image[disk.len()..].iter().all(|&byte| byte == 0));
    let file = fs::metadata(mounted.image()).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    assert!(!mounted.directory.join("disk.img.part").exists());
    let told = &metadata(&bench)["disks"][0];
    assert_eq!(told["target"], targets[0]);
    let raw = bench.place.path().join("guest.raw");
    fs::write(&raw, disk).unwrap();
    let digest = Command::new("sha256sum").arg(&raw).output().unwrap();
    assert!(digest.stdout.starts_with(told["sha256"].as_str().unwrap().as_bytes()), "of the guest's bytes alone");
}

#[test]
fn an_image_is_gone_on_with_only_if_it_is_the_one_that_was_made() {
    for (marker, is_replaced) in
        [("copied.json", false), ("digested.json", false), ("metadata.json", false), ("copied.json", true)]
    {
        let bench = Bench::new("disk.raw", &guest(SIZE));
        let Some(mounted) = Mounted::new(&bench.place, 40 * MIB) else { return };
        let targets = json!([{"directory": mounted.directory}]);
        let output = attempt(&bench, &targets, &[("HYPER2KVM_TEST_DIE", marker)]);
        assert_eq!(output.status.signal(), Some(9), "{}", said(&output));
        let part = mounted.directory.join("disk.img.part");
        let made = if marker == "metadata.json" { mounted.image() } else { part.clone() };
        assert_eq!(part.exists(), marker != "metadata.json", "{marker}");
        let inode = fs::metadata(&made).unwrap().ino();
        if is_replaced {
            let other = mounted.directory.join("other");
            fs::write(&other, "another").unwrap();
            fs::rename(other, &part).unwrap();
        }
        let output = attempt(&bench, &targets, &[]);
        assert_eq!(output.status.code(), Some(0), "{marker}: {}", said(&output));
        assert!(is_replaced || fs::metadata(mounted.image()).unwrap().ino() == inode, "{marker}: it was copied anew");
        assert!(fs::read(mounted.image()).unwrap().starts_with(&guest(SIZE)));
        assert_eq!(metadata(&bench)["disks"][0]["target"], targets[0]);
    }
}

#[test]
fn an_image_that_is_not_ours_is_never_replaced() {
    let bench = Bench::new("disk.raw", &guest(SIZE));
    let Some(mounted) = Mounted::new(&bench.place, 40 * MIB) else { return };
    fs::write(mounted.image(), "somebody's").unwrap();
    let failure = fails(&bench, &json!([{"directory": mounted.directory}]), "TargetInUse", 10);
    assert!(failure["message"].as_str().unwrap().contains("disk.img: exists already"), "{failure}");
    assert_eq!(fs::read(mounted.image()).unwrap(), b"somebody's");
    assert!(!mounted.directory.join("disk.img.part").exists());
}

#[test]
fn a_disk_that_just_fits_into_a_file_system_fits_and_one_of_a_mebibyte_more_does_not() {
    let place = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(&place, 30 * MIB) else { return };
    let fits = mounted.free() / MIB * MIB;
    let targets = json!([{"directory": mounted.directory}]);
    let larger = Bench::new("disk.raw", &vec![7; usize::try_from(fits + 512).unwrap()]);
    let failure = fails(&larger, &targets, "TargetTooSmall", 12);
    assert_eq!(failure["neededBytes"], fits + MIB, "{failure}");
    assert_eq!(fs::read_dir(&mounted.directory).unwrap().count(), 1, "lost+found alone");
    // Without a byte of zeros.
    let bench = Bench::new("disk.raw", &vec![7; usize::try_from(fits).unwrap()]);
    let output = attempt(&bench, &targets, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(fs::metadata(mounted.image()).unwrap().len(), fits);
}

#[test]
fn targets_that_can_not_be_had_are_failures_of_their_own() {
    let bench = Bench::new("disk.raw", &guest(SIZE));
    let Some(device) = Loop::new(&bench.place, SIZE - 512, 512) else { return };
    let failure = fails(&bench, &json!([{"path": device.name()}]), "TargetTooSmall", 12);
    assert_eq!(failure["neededBytes"], SIZE);
    assert!(device.is_untouched());
    fails(&bench, &json!([{"path": "/dev/hyper2kvm-target-99"}]), "TargetLost", 12);
    let failure = fails(&bench, &json!([{"path": bench.place.path()}]), "TargetDenied", 11);
    assert!(failure["suggestion"].as_str().unwrap().contains("device_ownership_from_security_context"), "{failure}");
    fails(&bench, &json!([{"path": device.name()}, {"directory": bench.place.path()}]), "Internal", 1);
    let output = attempt(&bench, &json!([{"path": "relative"}]), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("HYPER2KVM_TARGETS: target 0 is not a plain absolute path"), "{}", said(&output));
}

#[test]
fn a_plan_says_what_would_be_made_and_copies_nothing() {
    let mut disk = guest(SIZE);
    // A partition of Linux that a BIOS starts.
    disk[..440].fill(0x90);
    disk[446..510].fill(0);
    (disk[446], disk[450]) = (0x80, 0x83);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let bench = Bench::new("web01.raw", &disk);
    let mut command = bench.command();
    let output = command.env("HYPER2KVM_STEP", "plan").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let plan: Value = serde_json::from_slice(&fs::read(bench.work().join("plan.json")).unwrap()).unwrap();
    let planned = &plan["disks"][0];
    assert_eq!((&planned["file"], &planned["member"]), (&json!("web01.raw"), &json!("web01.raw")));
    assert_eq!(planned["virtualSizeBytes"], SIZE);
    assert_eq!((&planned["partitionTable"], &planned["firmware"]), (&json!("mbr"), &json!("bios")));
    assert_eq!(planned["boot"], true);
    assert_eq!(plan["machines"][0]["disks"][0]["file"], "web01.raw");
    assert!(!bench.work().join("pod").exists() && !bench.work().join("failure.json").exists());

    let output = bench.command().env("HYPER2KVM_STEP", "guess").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[test]
fn a_source_that_is_refused_fails_its_plan_as_it_would_fail_its_conversion() {
    let bench = Bench::new(
        "disk.qcow2",
        b"QFI\xfb and nothing behind it, padded to more than a header has: ......................",
    );
    let output = bench.command().env("HYPER2KVM_STEP", "plan").output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    assert_eq!(bench.failure()["failure"]["stage"], "inspect");
    assert!(!bench.work().join("plan.json").exists());
}
