// SPDX-License-Identifier: Apache-2.0
//! Guests that are fixed and tried in a worker's pod: the second image, QEMU without KVM, and the restricted profile.

use std::fs;
use std::path::Path;
use std::process::Command;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase, condition};
use hyper2kvm::conversion::guest::fix::{Outcome, Unfixed};
use hyper2kvm::conversion::machine::DiskBus;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::json;

use super::guests::{Guest, UUID, cat};
use super::stage::{Operator, Queue};
use crate::harness::{Cluster, Need, in_tree, left_out, run};

/// What a condition says: status, reason and message.
fn said(conversion: &ConversionJob, kind: &str) -> (String, String, String) {
    let conditions = conversion.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition(conditions, kind)
        .map(|said| (said.status.clone(), said.reason.clone(), said.message.clone()))
        .unwrap_or_default()
}

/// Debian's kernel, unpacked, as the fixer's image has it; `None` where it can't be fetched.
fn kernel(place: &Path) -> Option<String> {
    let mut fetch = Command::new(in_tree("tests/images/kernel.sh"));
    let fetched = fetch.arg(place).output().expect("it runs");
    if !fetched.status.success() {
        left_out(&format!("guests that are fixed: {}", String::from_utf8_lossy(&fetched.stderr).trim()));
        return None;
    }
    Some(String::from_utf8_lossy(&fetched.stdout).trim().to_owned())
}

#[tokio::test]
async fn a_guest_is_fixed_in_its_pod_and_one_that_is_refused_is_published_as_converted() {
    let Some(cluster) = Cluster::shared(Need::Node) else { return };
    let Some(image) = cluster.fixer() else { return };
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is target/tmp").join("guests/kernel");
    let Some(version) = kernel(&unpacked) else { return };
    let (repository, tag) = image.rsplit_once(':').expect("the image has a tag");
    let values = format!("--set=fixer.repository={repository},fixer.tag={tag}");
    let Some(operator) = Operator::own_with("fixing", &[&values]) else { return };

    let spec = json!({"conversion": {"outFormat": "raw", "guest": {"mode": "Require"}}});
    let queue = Queue::open_with(&operator, "fixing", &spec, &json!({})).await;
    let place = tempfile::tempdir().unwrap();
    let guest = Guest::new(place.path(), &unpacked.join("lib/modules").join(&version), &version);
    queue.bring("web01.raw", &fs::read(guest.disk("disk", 96)).unwrap());
    let conversion = queue.conversion("web01.raw", "made", |_| true).await.name_any();
    // Without KVM, beside other tests.
    run(queue.kubectl().args(["wait", "--for=condition=Succeeded", "--timeout=400s", &format!("hcj/{conversion}")]));
    let fixed = queue.ended("web01.raw", JobPhase::Succeeded).await;
    assert_eq!(
        said(&fixed, "GuestFixed"),
        ("True".into(), "Fixed".into(), "files of the guest that were changed: 5".into())
    );
    let status = fixed.status.as_ref().unwrap();
    let told = status.guest.as_ref().unwrap();
    assert_eq!((told.outcome, told.bus, told.changes), (Some(Outcome::Fixed), Some(DiskBus::Virtio), 5));
    assert_eq!(status.machine.as_ref().unwrap().disks[0].bus, DiskBus::Virtio);
    let disk = queue.output(&status.outputs[0].path);
    let fstab = String::from_utf8(cat(&guest.volume(&disk), "/etc/fstab")).unwrap();
    assert_eq!(fstab, format!("UUID={UUID} / ext4 defaults 0 1\n"));

    // The pod had the other image and its resources, and no more rights than any worker.
    let of_conversion = ListParams::default().labels(&format!("hyper2kvm.io/conversion={conversion}"));
    if let [pod] = &queue.api::<Pod>().list(&of_conversion).await.unwrap().items[..] {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(container.image.as_ref(), Some(&image));
        assert_eq!(json!(container.resources)["limits"], json!({"cpu": "2", "memory": "1Gi"}));
    }

    let check = json!({"mode": "Warn", "timeoutSeconds": 10});
    let effort = json!({"conversion": {"guest": {"mode": "BestEffort", "bootCheck": check}}});
    queue.declare(&effort, &json!({}));
    queue.ready();
    let mut closed = vec![0; 8 << 20];
    closed[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
    queue.bring("db01.raw", &closed);
    let unfixed = queue.ended("db01.raw", JobPhase::Succeeded).await;
    let (status, reason, message) = said(&unfixed, "GuestFixed");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "GuestEncrypted"));
    assert!(message.ends_with("disk 0 (luks) is encrypted; the disks are as they were converted"), "{message}");
    // It has nothing to boot.
    let (status, reason, message) = said(&unfixed, "BootChecked");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "GuestNotBooting"));
    assert!(message.starts_with("it did not write to its disks in 10 s"), "{message}");
    let told = unfixed.status.unwrap().guest.unwrap();
    assert_eq!(
        (told.outcome, told.reason, told.bus),
        (Some(Outcome::Unfixed), Some(Unfixed::GuestEncrypted), Some(DiskBus::Sata))
    );
    let words =
        ["get", "events", "-o", r"jsonpath={range .items[*]}{.involvedObject.name} {.type} {.reason}{'\n'}{end}"];
    let events = run(queue.kubectl().args(words));
    let name = unfixed.metadata.name.unwrap();
    for reason in ["GuestEncrypted", "GuestNotBooting"] {
        assert!(events.lines().any(|line| line == format!("{name} Warning {reason}")), "{events}");
    }

    let tried = json!({"conversion": {"guest": {"bootCheck": {"mode": "Require", "timeoutSeconds": 120}}}});
    queue.declare(&tried, &json!({}));
    queue.ready();
    queue.bring("app01.raw", &boots());
    let booted = queue.ended("app01.raw", JobPhase::Succeeded).await;
    let (status, reason, _) = said(&booted, "BootChecked");
    assert_eq!((status.as_str(), reason.as_str(), said(&booted, "GuestFixed").0), ("True", "Booted", String::new()));
    let told = booted.status.unwrap().guest.unwrap();
    assert_eq!((told.outcome, told.bus), (None, None), "nothing was done to it");
    assert_eq!(told.boot_check.unwrap().accelerator.as_deref(), Some("tcg"));
}

/// A disk with an encrypted system whose first sector writes the third one, by BIOS, and powers the machine off by APM.
fn boots() -> Vec<u8> {
    const CODE: &[u8] = &[
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, // a stack below this sector
        0xbe, 0x21, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, // write what the last 16 bytes say
        0xb8, 0x07, 0x53, 0xbb, 0x01, 0x00, 0xb9, 0x03, 0x00, 0xcd, 0x15, // power off
        0xf4, 0xeb, 0xfd, // halt
        0x10, 0, 1, 0, 0x00, 0x7c, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // one sector, from 0x7c00, to the third
    ];
    let mut disk = vec![0; 8 << 20];
    disk[..CODE.len()].copy_from_slice(CODE);
    disk[446] = 0x80;
    disk[450] = 0x83;
    disk[454..458].copy_from_slice(&2048_u32.to_le_bytes());
    disk[458..462].copy_from_slice(&8192_u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[1 << 20..][..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
    disk
}
