// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm inspect --guest`: what a person and a script are told about the system on a disk.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn inspect(image: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hyper2kvm")).arg("inspect").arg(image).args(arguments).output().expect("it runs")
}

/// An ext4 with a release file and a fstab that names a disk by its place; `None` where mkfs is missing.
fn guest(place: &Path) -> Option<std::path::PathBuf> {
    let files = place.join("files");
    fs::create_dir_all(files.join("etc")).unwrap();
    fs::create_dir_all(files.join("boot")).unwrap();
    fs::write(files.join("etc/os-release"), "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian \u{7} 12\"\n").unwrap();
    fs::write(files.join("etc/fstab"), "/dev/sda1 / ext4 defaults 0 1\n").unwrap();
    fs::write(files.join("boot/vmlinuz-6.1.0"), "MZ").unwrap();
    let image = place.join("vm.raw");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut maker = Command::new("mkfs.ext4");
    let made = maker.args(["-q", "-F", "-d"]).arg(&files).arg(&image).env("PATH", path).status();
    let Ok(made) = made else {
        println!("LEFT OUT: mkfs.ext4 is not installed (Debian: e2fsprogs)");
        return None;
    };
    assert!(made.success());
    Some(image)
}

#[test]
fn inspect_tells_what_the_guest_is_only_where_it_is_asked() {
    let place = tempfile::tempdir().unwrap();
    let Some(image) = guest(place.path()) else { return };
    let plain: Value = serde_json::from_slice(&inspect(&image, &["--json"]).stdout).unwrap();
    assert!(plain.get("guest").is_none());
    let told = inspect(&image, &["--json", "--guest", "--guest-limit", "60"]);
    assert!(told.status.success());
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["accepted"], true);
    let guest = &told["guest"];
    assert_eq!((&guest["family"], &guest["os"]["id"]), (&"linux".into(), &"debian".into()));
    assert_eq!(guest["fixes"].as_array().unwrap().iter().filter(|fix| fix["kind"] == "deviceNames").count(), 1);
    assert_eq!(guest["mounts"][0]["naming"], "name");
    // Nothing says which drivers that kernel has.
    assert_eq!(guest["virtio"]["network"], "unknown");
    assert!(!guest["doubts"].as_array().unwrap().is_empty());
}

#[test]
fn a_person_reads_the_answers_without_control_characters() {
    let place = tempfile::tempdir().unwrap();
    let Some(image) = guest(place.path()) else { return };
    let told = inspect(&image, &["--guest", "--guest-limit", "60"]);
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(text.lines().any(|line| line == "guest          Debian \u{FFFD} 12 (unknown architecture)"), "{text}");
    assert!(text.contains("fix            deviceNames (must): /etc/fstab: /dev/sda1 has another name"), "{text}");
    assert!(text.contains("virtio-blk     no, see below"), "{text}");
}
