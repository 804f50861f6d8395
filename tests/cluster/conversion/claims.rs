// SPDX-License-Identifier: Apache-2.0
//! From a dropped appliance to a halted machine on claims of its own: local volumes of the node, which wait for their
//! first consumer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase, VolumeState, condition};
use hyper2kvm::conversion::{AttemptKind, Reason};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::copies::copied;
use super::disks::guest;
use super::stage::{Operator, Queue, files, pod_of, reasons, runs};
use super::{ANY_USER, plugin};
use crate::harness::run;
use crate::support::{ova, vmdk};
use crate::volumes::Volumes;

/// Group of the process that runs a guest in `KubeVirt`.
const KUBEVIRT_GROUP: u32 = 107;

const MIB: usize = 1 << 20;

/// What QEMU reads from a VMDK.
fn raw(member: &[u8]) -> Vec<u8> {
    let here = tempfile::tempdir().unwrap();
    let (image, raw) = (here.path().join("disk.vmdk"), here.path().join("disk.raw"));
    fs::write(&image, member).unwrap();
    run(Command::new("qemu-img").args(["convert", "-f", "vmdk", "-O", "raw"]).arg(image).arg(&raw));
    fs::read(raw).unwrap()
}

/// Whether the disk is there from the first byte, and nothing but zeros behind it.
fn assert_holds(found: &[u8], disk: &[u8], claim: &str) {
    assert!(found.len() >= disk.len(), "{claim} has {} bytes of {}", found.len(), disk.len());
    let (head, tail) = found.split_at(disk.len());
    let differs = head.iter().zip(disk).position(|(found, wanted)| found != wanted);
    assert_eq!(differs, None, "{claim}: the first byte that differs");
    assert_eq!(tail.iter().position(|byte| *byte != 0), None, "{claim}: the first byte that is not zero");
}

/// What became of an appliance of two disks that was dropped.
struct Delivered {
    conversion: ConversionJob,
    machine: Value,
    /// The claims in the disks' order, with the volume that each has.
    claims: Vec<(String, String)>,
}

async fn delivered(queue: &Queue, volumes: &Volumes) -> Delivered {
    let delivered = dropped(queue, volumes).await;
    let status = delivered.conversion.status.clone().unwrap();
    let kinds: Vec<_> = status.state.attempts.iter().map(|attempt| attempt.kind).collect();
    assert_eq!((kinds, status.attempt_count), (vec![Some(AttemptKind::Plan), None], Some(1)));
    assert_eq!(status.volumes.iter().map(|volume| volume.remade).collect::<Vec<_>>(), [0, 0]);
    delivered
}

/// The members of an appliance of two disks, and the appliance.
fn appliance() -> ([Vec<u8>; 2], Vec<u8>) {
    // The second is no whole number of MiB.
    let disks = [guest(24, 41), guest(9, 42)[..9 * MIB - (64 << 10)].to_vec()];
    let members = disks.each_ref().map(|disk| vmdk::built(&vmdk::Sparse::stream_optimized(disk.len() as u64), disk));
    let appliance = ova::ova(
        "web01",
        &[
            ("web01-disk1.vmdk", &members[0], disks[0].len() as u64),
            ("web01-disk2.vmdk", &members[1], disks[1].len() as u64),
        ],
    );
    (members, appliance)
}

async fn dropped(queue: &Queue, volumes: &Volumes) -> Delivered {
    queue.bring("web01.ova", &appliance().1);
    whole(queue, volumes).await
}

/// Waits for the dropped appliance's end, and compares all that is there with what was dropped.
async fn whole(queue: &Queue, volumes: &Volumes) -> Delivered {
    let (members, appliance) = appliance();
    let conversion = queue.ended("web01.ova", JobPhase::Succeeded).await;
    let status = conversion.status.clone().unwrap();
    assert_eq!(status.volumes.iter().map(|volume| volume.state).collect::<Vec<_>>(), [VolumeState::Complete; 2]);

    let mut claims = Vec::new();
    for (volume, member) in status.volumes.iter().zip(&members) {
        let claim = queue.until::<PersistentVolumeClaim>(&volume.claim_name, "there", |_| true).await;
        assert_eq!(claim.labels()["hyper2kvm.io/complete"], "true");
        assert_eq!(claim.owner_references(), []);
        let bound = claim.spec.unwrap().volume_name.unwrap();
        assert_holds(&volumes.devices[&bound].bytes(), &raw(member), &volume.claim_name);
        claims.push((volume.claim_name.clone(), bound));
    }
    assert_eq!(claims.iter().map(|(claim, _)| claim.as_str()).collect::<Vec<_>>(), ["sample-disk-0", "sample-disk-1"]);

    let machine = run(queue.kubectl().args(["get", "virtualmachines.kubevirt.io", "sample", "-o", "json"]));
    let machine: Value = serde_json::from_str(&machine).unwrap();
    assert_eq!(machine["spec"]["runStrategy"], "Halted");
    assert_eq!(machine["metadata"]["ownerReferences"], Value::Null);
    let mounted: Vec<_> = machine["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str().unwrap())
        .collect();
    assert_eq!(mounted, ["sample-disk-0", "sample-disk-1"]);
    let printed = plugin(queue, &["vm", &conversion.name_any()]);
    let printed: Value = serde_yaml::from_str(&printed).unwrap();
    assert_eq!(printed["spec"], machine["spec"]);

    // Below the output lies what describes them, and no disk.
    let published = files(&queue.output(""));
    let of_appliance: Vec<_> = published.iter().filter(|path| path.contains("web01")).collect();
    assert!(matches!(of_appliance.as_slice(), [only] if only.ends_with("web01/metadata.json")), "{published:?}");
    let metadata: Value = serde_json::from_slice(&fs::read(queue.output(of_appliance[0])).unwrap()).unwrap();
    assert_eq!(metadata["disks"].as_array().unwrap().len(), 2);
    assert_eq!(fs::read(queue.queue(&status.source_location.unwrap())).unwrap(), appliance);
    Delivered { conversion, machine, claims }
}

/// Copies the disks out of their claims as the plugin says.
fn assert_copied(queue: &Queue, delivered: &Delivered) {
    let claims: Vec<_> = delivered.claims.iter().map(|(claim, _)| claim.as_str()).collect();
    let Some(copies) = copied(queue, &delivered.conversion.name_any(), &claims) else { return };
    for ((copy, member), claim) in copies.iter().zip(appliance().0).zip(claims) {
        assert!(*copy == raw(&member), "the copy of {claim}");
    }
}

/// What the API server says to a request of the controller's account, which it refuses.
fn refused(queue: &Queue, words: &[&str]) -> String {
    let release = queue.operator.release();
    let path = "jsonpath={.items[0].spec.template.spec.serviceAccountName}";
    let selector = "--selector=app.kubernetes.io/name=hyper2kvm-operator";
    let account = run(release.kubectl().args(["get", "deployments", selector, "-o", path]));
    let account = format!("--as=system:serviceaccount:{}:{account}", release.name);
    let output = queue.kubectl().arg(account).args(words).output().unwrap();
    assert!(!output.status.success(), "{words:?} is admitted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_appliance_that_is_dropped_becomes_file_systems_of_its_disks_and_a_halted_machine() {
    let Some(operator) = Operator::delivering("claims-files") else { return };
    let Some(volumes) = Volumes::new(&operator.namespace, "Filesystem", &[(64, 64), (16, 16)]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    let delivered = delivered(&queue, &volumes).await;
    assert_copied(&queue, &delivered);
    let Delivered { conversion, mut machine, claims } = delivered;
    for (claim, bound) in &claims {
        let image = volumes.devices[bound].mount.as_ref().unwrap().join("disk.img");
        let found = fs::metadata(&image).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o777), (KUBEVIRT_GROUP, 0o660), "{claim}");
        assert_eq!(found.len() % MIB as u64, 0, "{claim}");
        assert!(!image.with_extension("img.part").exists());
    }

    // Whatever the controller's code does, it can't take them back.
    let claim = claims[0].0.as_str();
    let said = refused(&queue, &["delete", "pvc", claim, "--wait=false"]);
    assert!(said.contains("the controller changes and deletes no claim that is complete or not its own"), "{said}");
    let said = refused(&queue, &["label", "pvc", claim, "--overwrite", "hyper2kvm.io/complete=false"]);
    assert!(said.contains("the controller changes and deletes no claim that is complete or not its own"), "{said}");
    machine["metadata"] = json!({"name": "other", "labels": machine["metadata"]["labels"]});
    machine["spec"]["runStrategy"] = json!("Manual");
    let manifest = tempfile::NamedTempFile::new().unwrap();
    fs::write(manifest.path(), machine.to_string()).unwrap();
    let said = refused(&queue, &["create", "-f", manifest.path().to_str().unwrap()]);
    assert!(said.contains("the controller makes machines with its label, halted or running"), "{said}");

    // They outlive their conversion and its queue.
    run(queue.kubectl().args(["delete", "hcj", &conversion.name_any(), "--timeout=60s"]));
    run(queue.kubectl().args(["delete", "hconv", &queue.name, "--timeout=60s"]));
    run(queue.kubectl().args(["get", "vm/sample", "pvc/sample-disk-0", "pvc/sample-disk-1"]));
}

#[tokio::test]
async fn an_appliance_that_is_dropped_becomes_devices_without_a_byte_of_their_last_tenant_whoever_the_pods_are() {
    let Some(operator) = Operator::delivering("claims-devices") else { return };
    let Some(volumes) = Volumes::new(&operator.namespace, "Block", &[(64, 64), (16, 16)]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
        "securityContext": {"runAsUser": ANY_USER, "runAsGroup": 0},
    });
    let queue = Queue::prepare(&operator, "machines", (0, 0)).await;
    queue.declare(&spec, &json!({}));
    queue.ready();
    let delivered = delivered(&queue, &volumes).await;
    assert_copied(&queue, &delivered);
    for (claim, bound) in &delivered.claims {
        let device = &volumes.devices[bound];
        assert_eq!(device.bytes().len() % (16 * MIB), 0, "{claim} is read to the device's end");
    }
}

#[tokio::test]
async fn claims_whose_file_system_is_too_small_are_made_anew_larger() {
    let Some(operator) = Operator::delivering("claims-small") else { return };
    // The smallest that is large enough by its word is not. A volume that a claim had is not given to another.
    let sizes = [(10, 8), (32, 32), (64, 64), (65, 65)];
    let Some(volumes) = Volumes::new(&operator.namespace, "Filesystem", &sizes) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
        "retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    let Delivered { conversion, claims, .. } = dropped(&queue, &volumes).await;
    assert_eq!(reasons(&conversion), [None, Some(Reason::TargetTooSmall), None]);
    let used: Vec<_> = claims.iter().map(|(_, bound)| bound.as_str()).collect();
    assert!(!used.iter().any(|bound| bound.ends_with("-local-0")), "{used:?}");
    // Nothing of the first attempt passes for a disk.
    for (name, device) in &volumes.devices {
        let is_disk = device.mount.as_ref().unwrap().join("disk.img").exists();
        assert_eq!(is_disk, used.contains(&name.as_str()), "{name}");
    }
}

#[tokio::test]
async fn a_quota_is_told_and_a_worker_that_is_killed_on_its_claims_is_followed_by_another_on_the_same() {
    let Some(operator) = Operator::delivering("claims-killed") else { return };
    let Some(volumes) = Volumes::new(&operator.namespace, "Block", &[(64, 64), (16, 16)]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
        "retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    // The queue's own, and one more.
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two-claims"},
        "spec": {"hard": {"persistentvolumeclaims": "2"}}});
    operator.namespace.apply(&quota.to_string());
    run(queue.kubectl().args(["wait", "--for=jsonpath={.status.used}", "--timeout=60s", "resourcequota/two-claims"]));
    queue.bring("web01.ova", &appliance().1);
    let target_ready = |c: &ConversionJob| {
        let conditions = c.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
        condition(&conditions, "TargetReady").map(|said| (said.reason.clone(), said.message.clone()))
    };
    let is_pending = |c: &ConversionJob| target_ready(c).is_some_and(|(reason, _)| reason == "TargetPending");
    let held = queue.conversion("web01.ova", "held by the quota", is_pending).await;
    let (_, said) = target_ready(&held).unwrap();
    assert!(said.contains("claim sample-disk-1 is refused") && said.contains("exceeded quota: two-claims"), "{said}");

    // Where it is let on, its worker stays at its work.
    let hang = |value: Value| json!({"metadata": {"annotations": {"test.hyper2kvm.io/hang": value}}});
    queue.patch(&hang(json!("1")));
    run(queue.kubectl().args(["delete", "resourcequota", "two-claims"]));
    let running = queue.conversion("web01.ova", "running", runs).await;
    let claims =
        |c: &ConversionJob| c.status.iter().flat_map(|s| &s.volumes).map(|v| v.uid.clone()).collect::<Vec<_>>();
    let before = claims(&running);
    queue.patch(&hang(Value::Null));
    operator.namespace.kill_container(&pod_of(&running).unwrap(), "worker");
    let Delivered { conversion, .. } = whole(&queue, &volumes).await;
    assert_eq!(reasons(&conversion), [None, Some(Reason::Killed), None]);
    assert_eq!(claims(&conversion), before);
}

#[tokio::test]
async fn a_worker_that_dies_when_its_disks_have_their_names_is_followed_by_one_that_knows_them() {
    let Some(operator) = Operator::delivering("claims-sealed") else { return };
    let Some(volumes) = Volumes::new(&operator.namespace, "Filesystem", &[(64, 64), (16, 16)]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
        "retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1},
    });
    let queue =
        Queue::open_with(&operator, "machines", &spec, &json!({"test.hyper2kvm.io/die": "metadata.json:2"})).await;
    let Delivered { conversion, claims, .. } = dropped(&queue, &volumes).await;
    assert_eq!(reasons(&conversion), [None, Some(Reason::Internal), None]);
    let died = conversion.status.unwrap().state.attempts[1].end_time.unwrap();
    for (claim, bound) in &claims {
        let image = volumes.devices[bound].mount.as_ref().unwrap().join("disk.img");
        let made = Timestamp::try_from(fs::metadata(image).unwrap().created().unwrap()).unwrap();
        assert!(made < died, "{claim} was written anew at {made}, after {died}");
    }
}

#[tokio::test]
async fn claims_on_volumes_of_a_node_that_is_gone_are_made_anew() {
    let Some(operator) = Operator::delivering("claims-lost") else { return };
    // The smallest that is large enough is taken first.
    let sizes = [(32, 32), (16, 16), (64, 64), (17, 17)];
    let Some(volumes) = Volumes::bound(&operator.namespace, "Block", &sizes, "Immediate", &[0]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block", "lostAfterSeconds": 10},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
        "retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    let Delivered { conversion, claims, .. } = dropped(&queue, &volumes).await;
    assert_eq!(reasons(&conversion), [None, Some(Reason::TargetLost), None]);
    assert!(claims[0].1.ends_with("-local-2") && claims[1].1.ends_with("-local-3"), "{claims:?}");
    assert_eq!(volumes.devices[&format!("{}-local-0", volumes.class)].bytes()[0], 0xa5, "nobody wrote to it");
}

#[tokio::test]
async fn claims_that_are_given_to_their_machine_go_with_it_and_nothing_else_of_them_changes() {
    let Some(operator) = Operator::delivering("claims-owned") else { return };
    let Some(volumes) = Volumes::new(&operator.namespace, "Block", &[(64, 64), (16, 16)]) else { return };
    let spec = json!({
        "target": {"storageClassName": volumes.class, "volumeMode": "Block"},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}], "deleteClaimsWithMachine": true},
    });
    let queue = Queue::open_with(&operator, "machines", &spec, &json!({})).await;
    queue.bring("web01.ova", &appliance().1);
    let over = queue.ended("web01.ova", JobPhase::Succeeded).await;
    let claims: Vec<_> = over.status.unwrap().volumes.into_iter().map(|volume| volume.claim_name).collect();
    for claim in &claims {
        let claim = queue.until::<PersistentVolumeClaim>(claim, "there", |_| true).await;
        let owners: Vec<_> =
            claim.owner_references().iter().map(|owner| (owner.kind.as_str(), owner.name.as_str())).collect();
        assert_eq!(
            (owners.as_slice(), claim.labels()["hyper2kvm.io/complete"].as_str()),
            (&[("VirtualMachine", "sample")][..], "true")
        );
    }
    // What it may do with a complete claim ends there.
    let said = refused(&queue, &["delete", "pvc", &claims[0], "--wait=false"]);
    assert!(said.contains("the controller changes and deletes no claim that is complete or not its own"), "{said}");
    let other = json!([{"op": "add", "path": "/metadata/ownerReferences/-", "value":
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "6c1f0f1e-0000-4000-8000-000000000009"}}]);
    for patch in [
        other,
        json!([{"op": "remove", "path": "/metadata/ownerReferences"}]),
        json!([{"op": "add", "path": "/metadata/labels/other", "value": "x"}]),
    ] {
        let said = refused(&queue, &["patch", "pvc", &claims[0], "--type=json", "--patch", &patch.to_string()]);
        assert!(said.contains("the controller changes and deletes no claim"), "{patch}: {said}");
    }
    run(queue.kubectl().args(["delete", "virtualmachines.kubevirt.io", "sample"]));
    for claim in &claims {
        run(queue.kubectl().args(["wait", "--for=delete", "--timeout=60s", &format!("pvc/{claim}")]));
    }
}
