// SPDX-License-Identifier: Apache-2.0
//! Plans over trees of files; what is written to an NTFS is tested from outside (tests/host/windows.rs).

use std::fs;

use super::*;
use crate::appliance::plan::triage;
use crate::appliance::protocol::{GuestNames, Limits as JobLimits, VERSION};
use crate::conversion::guest::{Answer, Doubt, Family, OperatingSystem, Volume, Windows};
use crate::guest::hive::{Value, made};

const INF: &[u8] =
    b"[M.NTamd64]\r\n%v% = i, PCI\\VEN_1AF4&DEV_1001&REV_00\r\n%v% = i, PCI\\VEN_1AF4&DEV_1042&REV_01\r\n";

fn job() -> Job {
    Job {
        version: VERSION,
        disks: Vec::new(),
        guest_names: GuestNames::Keep,
        cards: Vec::new(),
        drivers: Vec::new(),
        limits: JobLimits::default(),
    }
}

fn guest(version: &str) -> Guest {
    let os = OperatingSystem {
        id: "windows".into(),
        version: version.into(),
        architecture: Some("x86_64".into()),
        ..OperatingSystem::default()
    };
    Guest { family: Family::Windows, os: Some(os), windows: Some(Windows::default()), ..Guest::default() }
}

fn system(has_database: bool) -> Vec<u8> {
    let mut editor = Editor::open(made::empty(5), &Limits::default()).unwrap();
    editor.set(&["Select"], "Current", &Value::Number(2)).unwrap();
    editor.set(&["ControlSet002", "Services", "disk"], "Start", &Value::Number(0)).unwrap();
    if has_database {
        editor.set(&["DriverDatabase"], "Version", &Value::Number(0)).unwrap();
    }
    editor.finish()
}

fn drivers() -> Vec<DriverFile> {
    let file = |driver: &str, name: &str, content: &[u8]| DriverFile {
        driver: driver.into(),
        name: name.into(),
        content: content.into(),
    };
    vec![
        file("viostor", "viostor.inf", INF),
        file("viostor", "viostor.sys", b"driver"),
        file("netkvm", "netkvm.inf", b"[Version]"),
    ]
}

/// A tree whose directories have other letters than Windows' own.
fn tree(hive: &[u8]) -> (tempfile::TempDir, Mounted) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("WINDOWS/system32/config")).unwrap();
    fs::create_dir_all(root.path().join("WINDOWS/system32/Drivers")).unwrap();
    fs::write(root.path().join("WINDOWS/system32/config/SYSTEM"), hive).unwrap();
    let files = Mounted::new(root.path()).unwrap();
    (root, files)
}

fn refusal(guest: &Guest, hive: &[u8], drivers: &[DriverFile]) -> (Unfixed, String) {
    let (_root, files) = tree(hive);
    let Refusal { reason, message } = plan(guest, &files, &job(), drivers).unwrap_err();
    (reason, message)
}

#[test]
fn the_driver_starts_at_boot_by_the_database_that_its_windows_has() {
    for has_database in [true, false] {
        let (_root, files) = tree(&system(has_database));
        let plan = plan(&guest("10.0.20348"), &files, &job(), &drivers()).unwrap();
        let paths: Vec<_> = plan.changes.iter().map(|change| change.path.as_str()).collect();
        let expected = [
            "/WINDOWS/system32/Drivers/viostor.sys",
            "/WINDOWS/hyper2kvm/viostor/viostor.inf",
            "/WINDOWS/hyper2kvm/viostor/viostor.sys",
            "/WINDOWS/hyper2kvm/netkvm/netkvm.inf",
            "/WINDOWS/hyper2kvm/firstboot.cmd",
            "/WINDOWS/system32/config/SYSTEM",
        ];
        assert_eq!(paths, expected);
        let Act::Edit(hive) = &plan.changes[5].act else { panic!("{:?}", plan.changes[5].act) };
        let hive = Editor::open(hive.clone(), &Limits::default()).unwrap();
        assert_eq!(hive.number(&["ControlSet002", "Services", "viostor"], "Start").unwrap(), Some(0));
        assert_eq!(hive.number(&["ControlSet002", "Services", "hyper2kvm"], "Start").unwrap(), Some(2));
        for device in ["VEN_1AF4&DEV_1001&REV_00", "VEN_1AF4&DEV_1042&REV_01"] {
            assert_eq!(hive.has(&["DriverDatabase", "DeviceIds", "PCI", device]).unwrap(), has_database);
            let critical = format!("PCI#{device}");
            let path = ["ControlSet002", "Control", "CriticalDeviceDatabase", &critical];
            assert_eq!(hive.has(&path).unwrap(), !has_database);
        }
        assert_eq!(plan.left[0].what, "netkvm");
    }
}

#[test]
fn what_cannot_be_treated_is_refused_by_name() {
    let (good, given) = (system(true), drivers());
    let server = guest("10.0.20348");
    let (reason, message) = refusal(&server, &good, &given[2..]);
    assert_eq!(reason, Unfixed::GuestDriversMissing, "{message}");
    let other = vec![DriverFile { content: b"PCI\\VEN_1AF4&DEV_1000".to_vec(), ..given[0].clone() }, given[1].clone()];
    assert_eq!(refusal(&server, &good, &other).0, Unfixed::GuestDriversMissing);
    assert_eq!(refusal(&guest("5.2.3790"), &good, &given).0, Unfixed::GuestUnsupported);
    let mut arm = server.clone();
    arm.os.as_mut().unwrap().architecture = Some("aarch64".into());
    assert_eq!(refusal(&arm, &good, &given).0, Unfixed::GuestUnsupported);
    let mut dirty = good.clone();
    dirty[4] += 1;
    let (reason, message) = refusal(&server, &dirty, &given);
    assert_eq!(reason, Unfixed::GuestHibernated, "{message}");
    assert!(message.ends_with("start Windows once and shut it down wholly."), "{message}");
    assert_eq!(refusal(&server, b"regf", &given).0, Unfixed::GuestUnsupported);
    let mut doubtful = Guest { windows: None, ..server.clone() };
    doubtful.doubts.push(Doubt { what: "SYSTEM".into(), why: "is no registry hive".into() });
    assert_eq!(refusal(&doubtful, &good, &given).0, Unfixed::GuestUnsupported);
    let empty = Editor::open(made::empty(5), &Limits::default()).unwrap().finish();
    assert!(refusal(&server, &empty, &given).1.contains("does not say which control set is current"));
}

#[test]
fn a_windows_that_was_not_shut_down_is_refused() {
    let mut sleeping = guest("10.0.20348");
    sleeping.windows.as_mut().unwrap().hibernated = Answer::Yes;
    let mut used = guest("10.0.20348");
    used.root = Some("disk 0 partition 1".into());
    used.volumes = vec![Volume {
        name: "disk 0 partition 1".into(),
        content: "ntfs".into(),
        dirty: Some(true),
        ..Volume::default()
    }];
    for guest in [&sleeping, &used] {
        assert_eq!(triage(guest).unwrap_err().reason, Unfixed::GuestHibernated);
    }
    used.volumes[0].dirty = Some(false);
    assert_eq!(triage(&used), Ok(true));
}
