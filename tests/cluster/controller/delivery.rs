// SPDX-License-Identifier: Apache-2.0
//! Disks on claims of their own and the machine that has them: a real API server with `KubeVirt`'s definition, the real
//! controller and watcher; the tests act as the kubelet and as the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, VolumeState, condition};
use hyper2kvm::cluster::controller::objects::Image;
use hyper2kvm::conversion::TerminationMessage;
use hyper2kvm::conversion::{Failure, Reason};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::phase;
use super::stage::Stage;
use crate::harness::{Cluster, run};

const GIB: u64 = 1 << 30;

fn image() -> Image {
    Image { name: "example.com/hyper2kvm:1".into(), pull_policy: "Never".into() }
}

/// What a worker writes of an appliance of two disks.
fn plan() -> Value {
    let disk = |file: &str, bytes: u64| json!({"file": file, "member": format!("{file}.vmdk"), "virtualSizeBytes": bytes, "boot": true});
    json!({
        "contractVersion": 2,
        "disks": [disk("disk0", GIB), disk("disk1", 2 * GIB)],
        "machines": [{
            "describedBy": "ovf", "name": "Web 01", "sockets": 2, "coresPerSocket": 1, "memoryMib": 2048, "firmware": "bios",
            "disks": [{"file": "disk0", "bootOrder": 1}, {"file": "disk1"}],
            "cards": [{"network": "VM Network", "mac": "00:50:56:9a:12:34", "connected": true, "device": "e1000"}],
        }],
    })
}

/// Puts the plan into a status as the watcher does.
async fn planned(stage: &Stage, name: &str, plan: &Value) {
    let mut plan = plan.clone();
    plan.as_object_mut().unwrap().remove("contractVersion");
    let patch = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
        "status": {"plan": plan},
    });
    let params = PatchParams::apply("hyper2kvm-plan").force();
    stage.api::<ConversionJob>().patch_status(name, &params, &Patch::Apply(patch)).await.unwrap();
}

/// A conversion up to the Job that converts: staged, planned, staged again.
async fn converting(stage: &Stage, name: &str, plan: &Value) -> Job {
    stage.staged(name, 1).await;
    stage.until::<Job>(&format!("{name}-1"), |_| true).await;
    planned(stage, name, plan).await;
    stage.until::<ConversionJob>(name, |c| attempts(c) == 1 && open_attempt(c).is_none()).await;
    stage.staged(name, 2).await;
    stage.until::<Job>(&format!("{name}-2"), |_| true).await
}

fn attempts(conversion: &ConversionJob) -> usize {
    conversion.status.as_ref().map_or(0, |status| status.state.attempts.len())
}

fn open_attempt(conversion: &ConversionJob) -> Option<u32> {
    conversion.status.as_ref()?.state.open_attempt().map(|open| open.number.0)
}

fn says(conversion: &ConversionJob, kind: &str) -> Option<(String, String)> {
    let condition = condition(&conversion.status.as_ref()?.conditions, kind)?;
    Some((condition.status.clone(), condition.reason.clone()))
}

fn states(conversion: &ConversionJob) -> Vec<VolumeState> {
    conversion.status.iter().flat_map(|status| &status.volumes).map(|volume| volume.state).collect()
}

/// Names of the claims, with whether each is complete and who owns it.
async fn claims(stage: &Stage) -> BTreeMap<String, (Option<String>, usize)> {
    let all = stage.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap().items;
    all.into_iter()
        .map(|claim| {
            let complete = claim.labels().get("hyper2kvm.io/complete").cloned();
            (claim.name_any(), (complete, claim.owner_references().len()))
        })
        .collect()
}

/// The machines of the namespace.
fn machines(stage: &Stage) -> Vec<Value> {
    let list = run(stage.namespace.kubectl().args(["get", "virtualmachines.kubevirt.io", "-o", "json"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

fn target() -> Value {
    json!({
        "target": {"storageClassName": "none", "volumeMode": "Block", "labels": {"backup": "gold"}},
        "virtualMachine": {"networks": [{"source": "*", "pod": {}}]},
    })
}

/// The claims are complete and nobody's, and one machine, halted, has them.
async fn assert_delivered(stage: &Stage, name: &str) {
    let complete = (Some("true".to_owned()), 0);
    let expected = [("web-01-disk-0", complete.clone()), ("web-01-disk-1", complete)];
    assert_eq!(claims(stage).await, expected.map(|(name, state)| (name.to_owned(), state)).into());
    let machines = machines(stage);
    assert_eq!(machines.len(), 1, "{machines:?}");
    assert_eq!(machines[0]["metadata"]["name"], "web-01");
    assert_eq!(machines[0]["metadata"]["labels"]["hyper2kvm.io/conversion"], name);
    assert_eq!(machines[0]["spec"]["runStrategy"], "Halted");
    let volumes = &machines[0]["spec"]["template"]["spec"]["volumes"];
    let claims: Vec<_> = volumes.as_array().unwrap().iter().map(|v| &v["persistentVolumeClaim"]["claimName"]).collect();
    assert_eq!(claims, ["web-01-disk-0", "web-01-disk-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_gets_a_claim_for_each_disk_and_a_halted_machine_that_has_them() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(stage) = Stage::open("delivery").await else { return };
    stage.queue("q", &target()).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    stage.staged(name, 1).await;
    stage.until::<ConversionJob>(name, |c| phase(c) == Some(JobPhase::Planning)).await;
    let variables = |job: &Job| {
        let pod = job.spec.clone().unwrap().template.spec.unwrap();
        let all = pod.containers[0].env.clone().unwrap_or_default();
        let value = |name: &str| all.iter().find(|variable| variable.name == name).and_then(|v| v.value.clone());
        (value("HYPER2KVM_STEP"), value("HYPER2KVM_TARGETS"))
    };
    let job = stage.until::<Job>(&format!("{name}-1"), |_| true).await;
    assert_eq!(variables(&job), (Some("plan".to_owned()), None));
    assert_eq!(claims(&stage).await, BTreeMap::new(), "nothing is made before the sizes are known");
    let job = converting(&stage, name, &plan()).await;

    // The claims are there, incomplete, and the conversion's; the machine was asked about and is not there.
    let incomplete = (Some("false".to_owned()), 1);
    let expected = [("web-01-disk-0", incomplete.clone()), ("web-01-disk-1", incomplete)];
    assert_eq!(claims(&stage).await, expected.map(|(name, state)| (name.to_owned(), state)).into());
    let claim = stage.get::<PersistentVolumeClaim>("web-01-disk-1").await;
    let spec = claim.spec.clone().unwrap();
    assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "2147483648");
    assert_eq!((spec.volume_mode.as_deref(), claim.labels()["backup"].as_str()), (Some("Block"), "gold"));
    let targets = r#"[{"path":"/dev/hyper2kvm-target-0"},{"path":"/dev/hyper2kvm-target-1"}]"#;
    assert_eq!(variables(&job), (Some("convert".to_owned()), Some(targets.to_owned())));
    let pod = job.spec.unwrap().template.spec.unwrap();
    let devices: Vec<_> = pod.containers[0].volume_devices.iter().flatten().map(|d| d.device_path.as_str()).collect();
    assert_eq!(devices, ["/dev/hyper2kvm-target-0", "/dev/hyper2kvm-target-1"]);
    let accepted = Some(("Unknown".to_owned(), "Accepted".to_owned()));
    stage.until::<ConversionJob>(name, |c| says(c, "MachineCreated") == accepted).await;
    assert_eq!(machines(&stage), Vec::<Value>::new());

    let pod = stage.end_pod(&format!("{name}-2"), 0, "").await;
    let done = stage.until::<ConversionJob>(name, |c| phase(c) == Some(JobPhase::Publishing)).await;
    assert_eq!(done.status.as_ref().unwrap().state.converted, Some(pod));
    assert_eq!(says(&done, "TargetReady"), Some(("True".to_owned(), "Complete".to_owned())));
    assert_eq!(says(&done, "MachineCreated"), Some(("True".to_owned(), "Created".to_owned())));
    assert_delivered(&stage, name).await;
    let columns = run(stage.namespace.kubectl().args(["get", "hcj", "-o", "wide"]));
    assert!(columns.contains("MACHINE") && columns.contains("web-01"), "{columns}");

    // They outlive the conversion.
    stage.api::<ConversionJob>().delete(name, &DeleteParams::default()).await.unwrap();
    stage.gone::<ConversionJob>(name).await;
    assert_delivered(&stage, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_again_and_again_makes_every_claim_and_the_machine_once() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(mut stage) = Stage::open("delivery-killed").await else { return };
    stage.queue("q", &target()).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    let mut ended = false;
    for round in 0u64..400 {
        let seen = stage.get::<ConversionJob>(name).await;
        if phase(&seen) == Some(JobPhase::Publishing) {
            break;
        }
        assert!(round < 399, "{seen:#?}");
        let status = seen.status.clone().unwrap_or_default();
        if open_attempt(&seen).is_none() && attempts(&seen) < 2 {
            stage.staged(name, u32::try_from(attempts(&seen) + 1).unwrap()).await;
        }
        if open_attempt(&seen) == Some(1) && status.plan.is_none() {
            planned(&stage, name, &plan()).await;
        }
        if open_attempt(&seen) == Some(2) && !ended && stage.exists::<Job>(&format!("{name}-2")).await {
            stage.end_pod(&format!("{name}-2"), 0, "").await;
            ended = true;
        }
        // Between any two requests of it: their times are not known, so that the kills move through them.
        tokio::time::sleep(Duration::from_millis(37 * (round % 17))).await;
        stage.replace_controller(image()).await;
    }
    assert_delivered(&stage, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_else_s_is_never_touched_and_what_is_incomplete_goes_with_its_conversion() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(stage) = Stage::open("delivery-names").await else { return };
    let theirs = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "web-01-disk-0",
        "labels": {"hyper2kvm.io/complete": "false", "hyper2kvm.io/conversion": "web01-3fa9c1d2"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}}});
    stage.namespace.apply(&theirs.to_string());
    let before = stage.get::<PersistentVolumeClaim>("web-01-disk-0").await;
    stage.queue("q", &target()).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    converting(&stage, name, &plan()).await;
    let seen = stage.get::<ConversionJob>(name).await.status.unwrap();
    let names: Vec<_> = seen.volumes.iter().map(|volume| volume.claim_name.as_str()).collect();
    assert_eq!(names, ["web-01-2-disk-0", "web-01-2-disk-1"]);
    assert_eq!(seen.virtual_machine.unwrap().name, "web-01-2");

    // A worker that failed for good leaves nothing behind.
    let failure = Failure::new(Reason::Corrupt, "grain 7 is damaged");
    let message = serde_json::to_string(&TerminationMessage { contract_version: 2, failure }).unwrap();
    stage.end_pod(&format!("{name}-2"), 10, &message).await;
    let over = stage.until::<ConversionJob>(name, |c| states(c) == [VolumeState::Deleted; 2]).await;
    assert_eq!(phase(&over), Some(JobPhase::Failed));
    for claim in ["web-01-2-disk-0", "web-01-2-disk-1"] {
        stage.gone::<PersistentVolumeClaim>(claim).await;
    }
    assert_eq!(machines(&stage), Vec::<Value>::new());
    let after = stage.get::<PersistentVolumeClaim>("web-01-disk-0").await;
    assert_eq!((after.uid(), after.resource_version()), (before.uid(), before.resource_version()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_too_small_is_made_larger_and_a_machine_that_is_refused_waits_for_a_person() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(stage) = Stage::open("delivery-refused").await else { return };
    stage.queue("q", &target()).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    let mut greedy = plan();
    greedy["machines"][0]["sockets"] = json!(100);
    greedy["machines"][0]["coresPerSocket"] = json!(100);
    stage.staged(name, 1).await;
    stage.until::<Job>(&format!("{name}-1"), |_| true).await;
    planned(&stage, name, &greedy).await;
    stage.until::<ConversionJob>(name, |c| attempts(c) == 1 && open_attempt(c).is_none()).await;
    stage.staged(name, 2).await;
    let refused = Some(("False".to_owned(), "MachineRefused".to_owned()));
    let waits = stage.until::<ConversionJob>(name, |c| says(c, "Admitted") == refused).await;
    let said = condition(&waits.status.unwrap().conditions, "MachineCreated").unwrap().message.clone();
    assert!(said.contains("asks for 10000 processors") && said.contains("limits.cpus of the queue is 64"), "{said}");
    assert_eq!(claims(&stage).await, BTreeMap::new());

    // The person wants the disks alone.
    stage.merge::<HyperConversion>("q", &json!({"spec": {"virtualMachine": {"create": "Never"}}})).await;
    stage.until::<Job>(&format!("{name}-2"), |_| true).await;
    let too_small = Failure {
        needed_bytes: Some(GIB + 1),
        targets: vec![0],
        ..Failure::new(Reason::TargetTooSmall, "1 byte is missing")
    };
    let message = serde_json::to_string(&TerminationMessage { contract_version: 2, failure: too_small }).unwrap();
    stage.end_pod(&format!("{name}-2"), 12, &message).await;
    let small = stage.get::<PersistentVolumeClaim>("web-01-disk-0").await;
    let fitting = stage.get::<PersistentVolumeClaim>("web-01-disk-1").await;
    stage.until::<ConversionJob>(name, |c| open_attempt(c).is_none()).await;
    stage.staged(name, 3).await;
    let retried = stage.until::<ConversionJob>(name, |c| open_attempt(c) == Some(3)).await;
    assert_eq!(retried.status.unwrap().attempt_count, Some(0));
    let larger = stage.get::<PersistentVolumeClaim>("web-01-disk-0").await;
    assert_ne!(larger.uid(), small.uid());
    let asked = larger.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0.parse::<u64>().unwrap();
    // What was told, in whole MiB, and a quarter.
    assert_eq!(asked, ((1025 * 5_u64).div_ceil(4)) << 20);
    assert_eq!(stage.get::<PersistentVolumeClaim>("web-01-disk-1").await.uid(), fitting.uid());
    stage.end_pod(&format!("{name}-3"), 0, "").await;
    let done = stage.until::<ConversionJob>(name, |c| phase(c) == Some(JobPhase::Publishing)).await;
    assert_eq!(states(&done), [VolumeState::Complete; 2]);
    assert_eq!(machines(&stage), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_two_machines_gets_both_each_on_its_own_disks_and_without_an_address_that_another_has() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(stage) = Stage::open("delivery-two").await else { return };
    let other = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "other"},
        "spec": {"runStrategy": "Halted", "template": {"spec": {"domain": {"devices": {"interfaces": [
            {"name": "a", "bridge": {}, "macAddress": "00-50-56-9A-12-34"}]}}, "networks": [{"name": "a", "pod": {}}]}}}});
    stage.namespace.apply(&other.to_string());
    let mut queue = target();
    queue["virtualMachine"]["preference"] = json!("debian");
    stage.queue("q", &queue).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    let mut plan = plan();
    let mut second = plan["machines"][0].clone();
    plan["machines"][0]["disks"] = json!([{"file": "disk1", "bootOrder": 1}]);
    second["disks"] = json!([{"file": "disk0", "bootOrder": 1}]);
    second["name"] = json!("Other");
    second["cards"][0]["mac"] = json!("00:50:56:9a:12:99");
    plan["machines"].as_array_mut().unwrap().push(second);
    converting(&stage, name, &plan).await;
    let incomplete = (Some("false".to_owned()), 1);
    let expected = [("other-2-disk-0", incomplete.clone()), ("web-01-disk-0", incomplete)];
    assert_eq!(claims(&stage).await, expected.map(|(name, state)| (name.to_owned(), state)).into());
    stage.end_pod(&format!("{name}-2"), 0, "").await;
    let done = stage.until::<ConversionJob>(name, |c| phase(c) == Some(JobPhase::Publishing)).await;
    assert_eq!(says(&done, "MachineCreated"), Some(("True".to_owned(), "Doubts".to_owned())));
    let said = condition(&done.status.as_ref().unwrap().conditions, "MachineCreated").unwrap().message.clone();
    assert!(
        said.starts_with("the 2 machines are there. web-01: network card 1 (VM Network) gets a new address"),
        "{said}"
    );
    let made: BTreeMap<String, Value> = machines(&stage)
        .into_iter()
        .map(|machine| (machine["metadata"]["name"].as_str().unwrap().to_owned(), machine))
        .collect();
    assert_eq!(made.keys().collect::<Vec<_>>(), ["other", "other-2", "web-01"]);
    for (machine, claim, mac) in
        [("web-01", "web-01-disk-0", Value::Null), ("other-2", "other-2-disk-0", json!("00:50:56:9a:12:99"))]
    {
        let pod = &made[machine]["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().unwrap();
        assert_eq!((volumes.len(), &volumes[0]["persistentVolumeClaim"]["claimName"]), (1, &json!(claim)));
        assert_eq!(pod["domain"]["devices"]["interfaces"][0]["macAddress"], mac);
        assert_eq!(made[machine]["spec"]["preference"]["name"], "debian");
    }
    // What is somebody else's is as it was.
    assert_eq!(made["other"]["metadata"]["labels"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_profile_that_nobody_applies_is_told_with_what_to_do() {
    if Cluster::with_kubevirt().is_none() {
        return;
    }
    let Some(stage) = Stage::open("delivery-profile").await else { return };
    let queue = json!({"target": {"storageClassName": "none", "volumeMode": "FromStorageProfile"}});
    stage.queue("q", &queue).await;
    let name = "web01-3fa9c1d2";
    stage.conversion(name, "q").await;
    stage.staged(name, 1).await;
    stage.until::<Job>(&format!("{name}-1"), |_| true).await;
    planned(&stage, name, &plan()).await;
    stage.until::<ConversionJob>(name, |c| attempts(c) == 1 && open_attempt(c).is_none()).await;
    stage.staged(name, 2).await;
    let refused = Some(("False".to_owned(), "TargetPending".to_owned()));
    let waits = stage.until::<ConversionJob>(name, |c| says(c, "TargetReady") == refused).await;
    let said = condition(&waits.status.unwrap().conditions, "TargetReady").unwrap().message.clone();
    assert!(
        said.contains("claim web-01-disk-0 is refused") && said.contains("spec.accessModes: Required value"),
        "{said}"
    );
    assert!(said.ends_with("or set target.volumeMode and accessModes and retry the source"), "{said}");
}
