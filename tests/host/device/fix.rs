// SPDX-License-Identifier: Apache-2.0
//! Guests that are fixed where their disks lie: on devices, and in images in directories.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};

use super::*;
use crate::fix::{self, NO_SPACE, fixes, monitor};
use crate::worker::Bench;

const SIZE: u64 = 16 * MIB;

/// An attempt's claim of a guest that needs a fix, and the appliance that makes it.
struct Fixing {
    attempt: Bench,
    guest: fix::Bench,
    source: Vec<u8>,
}

impl Fixing {
    fn new(does: &str) -> Option<Self> {
        let guest = fix::Bench::new(does)?;
        let source = fs::read(guest.place.path().join("vm.raw")).unwrap();
        let attempt = Bench::new("disk.raw", &source);
        let claim = attempt.place.path().join("claim/claim.json");
        let mut told: Value = serde_json::from_slice(&fs::read(&claim).unwrap()).unwrap();
        told["contractVersion"] = json!(2);
        fs::write(claim, told.to_string()).unwrap();
        Some(Self { attempt, guest, source })
    }

    fn attempt(&self, target: &Value, mode: &str, variables: &[(&str, &str)]) -> Output {
        let options = json!({"outFormat": "qcow2", "checksum": true, "guest": {"fix": mode, "accelerator": "tcg"}});
        self.attempt
            .command()
            .env("HYPER2KVM_TARGETS", json!([target]).to_string())
            .env("HYPER2KVM_OPTIONS", options.to_string())
            .env("HYPER2KVM_APPLIANCE", self.guest.place.path().join("appliance"))
            .env("HYPER2KVM_TERMINATION_LOG", self.message())
            .env("PATH", fix::path(self.guest.place.path()))
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    fn message(&self) -> PathBuf {
        let path = self.attempt.place.path().join("message");
        fs::write(&path, "").unwrap();
        path
    }

    /// What it says at its end.
    fn told(&self) -> Value {
        serde_json::from_slice(&fs::read(self.attempt.place.path().join("message")).unwrap()).unwrap()
    }

    fn metadata(&self) -> Value {
        serde_json::from_slice(&fs::read(self.attempt.work().join("pod/metadata.json")).unwrap()).unwrap()
    }

    fn fixed(&self) -> Vec<u8> {
        fixed(&self.source)
    }
}

/// The guest's bytes as the appliance leaves them.
fn fixed(source: &[u8]) -> Vec<u8> {
    let mut disk = source.to_vec();
    disk[..0x1_0000].fill(0);
    disk[0xC0_0000..0xC2_0000].fill(0);
    disk[0x10_0000..0x11_0000].fill(0x41);
    disk[0xF_0000..0x11_0000].fill(0x42);
    disk
}

/// Reads the disk, and writes to its overlay on both sides of the first MiB's end.
fn across() -> String {
    let write = r#"qemu-io -f qcow2 -c "write -q -P 0x42 960k 128k" "$overlay" >&2"#;
    let read = r#"qemu-io -r -c "read -q 0 512" "json:$node" >&2 || exit 1"#;
    let [first, rest] = fixes().split("; ").map(str::to_owned).collect::<Vec<_>>().try_into().expect("two commands");
    format!("{read}\n{first}\nfor overlay in $overlays; do {write}; done\n{rest}")
}

#[test]
fn a_guest_is_fixed_on_its_device_and_what_an_earlier_attempt_left_there_is_made_anew() {
    let Some(fixing) = Fixing::new(&across()) else { return };
    let Some(device) = Loop::new(&fixing.attempt.place, SIZE + MIB, 512) else { return };
    let target = json!({"path": device.name()});
    let killed = fixing.attempt(&target, "require", &[("HYPER2KVM_TEST_DIE", "fixed.json:1")]);
    assert_eq!(killed.status.signal(), Some(9), "{}", said(&killed));
    let output = fixing.attempt(&target, "require", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(device.holds(&fixing.fixed()));
    let guest = &fixing.told()["guest"];
    assert_eq!((&guest["outcome"], &guest["changes"], &guest["bus"]), (&json!("fixed"), &json!(1), &json!("virtio")));
    assert_eq!(fixing.metadata()["guest"]["outcome"], "fixed");
}

#[test]
fn a_guest_is_fixed_in_its_image_and_an_attempt_goes_on_with_that() {
    let Some(fixing) = Fixing::new(&across()) else { return };
    let Some(mounted) = Mounted::new(&fixing.attempt.place, 64 * MIB) else { return };
    let target = json!({"directory": mounted.directory});
    let killed = fixing.attempt(&target, "require", &[("HYPER2KVM_TEST_DIE", "fixed.json:1")]);
    assert_eq!(killed.status.signal(), Some(9), "{}", said(&killed));
    assert!(!mounted.image().exists(), "it has its name before it is whole");
    // What was fixed is not fixed again.
    fixing.guest.appliance_does("exit 1");
    let output = fixing.attempt(&target, "require", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(fs::read(mounted.image()).unwrap() == fixing.fixed());
    assert_eq!(fixing.metadata()["guest"]["outcome"], "fixed");
}

#[test]
fn a_guest_that_is_refused_leaves_its_target_as_converted_or_fails() {
    let Some(fixing) = Fixing::new(&format!("write; echo '{}'", NO_SPACE.replace('\n', ""))) else { return };
    let Some(device) = Loop::new(&fixing.attempt.place, SIZE + MIB, 512) else { return };
    let target = json!({"path": device.name()});
    let output = fixing.attempt(&target, "best-effort", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(device.holds(&fixing.source));
    let guest = &fixing.told()["guest"];
    assert_eq!((&guest["outcome"], &guest["reason"]), (&json!("unfixed"), &json!("GuestNoSpace")));
    let output = fixing.attempt(&target, "require", &[]);
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    assert_eq!(fixing.attempt.failure()["failure"]["reason"], "GuestNoSpace");
}

#[test]
fn a_guest_is_fixed_and_tried_on_a_device_by_hand() {
    let Some(bench) = fix::Bench::new(&across()) else { return };
    let place = bench.place.path();
    let source = fs::read(place.join("vm.raw")).unwrap();
    let Some(device) = Loop::new(&bench.place, SIZE + MIB, 512) else { return };
    let off = r#"echo '{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}'"#;
    let convert = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
        command.args([
            "convert",
            "vm.raw",
            "--json",
            "--guest-limit",
            "60",
            "--appliance",
            "appliance",
            "--accelerator",
            "tcg",
        ]);
        command.args(["--force", "--fix-guest=require", "--boot-check=20", "--to-device", device.name()]).args(more);
        command.current_dir(place).env("PATH", fix::path(place)).output().unwrap()
    };
    for more in [&[][..], &["--no-sandbox"]] {
        fs::write(place.join("appliance/monitor"), monitor(26, off)).unwrap();
        let output = convert(more);
        assert!(output.status.success(), "{}", said(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["guest"]["outcome"], &told["guest"]["bootCheck"]["result"]),
            (&json!("fixed"), &json!("booted"))
        );
        assert!(device.holds(&fixed(&source)));
        // What is refused then is on the device nevertheless.
        fs::write(place.join("appliance/monitor"), monitor(0, off)).unwrap();
        let output = convert(more);
        assert_eq!(output.status.code(), Some(10), "{}", said(&output));
        assert!(said(&output).contains("the whole disk is on"), "{}", said(&output));
        assert!(device.holds(&fixed(&source)));
    }
}
