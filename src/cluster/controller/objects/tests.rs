// SPDX-License-Identifier: Apache-2.0
//! A snapshot of every built object.
#![expect(clippy::needless_pass_by_value, reason = "json! reads best where it is used")]

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use super::*;
use crate::cluster::api::{ConversionJob, InvalidSetting};
use crate::cluster::defaults::QueueDefaults;
use crate::conversion::Attempt;
use worker::JobContext;

fn queue(spec: Value) -> HyperConversion {
    let mut object = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
        "metadata": {"name": "vmware-exit", "namespace": "migration", "uid": "queue-uid"},
        "spec": {
            "queue": {"claimName": "images", "subPath": "queue"},
            "output": {"claimName": "images", "subPath": "output"},
        },
    });
    let fields = object["spec"].as_object_mut().unwrap();
    fields.extend(spec.as_object().unwrap().clone());
    serde_json::from_value(object).unwrap()
}

fn plain() -> HyperConversion {
    queue(json!({}))
}

/// A queue in which every setting of pods is set.
fn ornate() -> HyperConversion {
    queue(json!({
        "queue": {"claimName": "inbox", "subPath": ""},
        "output": {"claimName": "disks", "subPath": "a/b"},
        "conversion": {"outFormat": "qcow2", "compress": "zstd", "activeDeadlineSeconds": 600},
        "securityContext": {"runAsUser": 1_000_680_000, "runAsGroup": 0, "fsGroup": 1000, "supplementalGroups": [2000],
                            "seLinuxOptions": {"level": "s0:c1,c2"}},
        "notifications": {
            "webhook": {"urlSecretRef": {"name": "hooks", "key": "slack"}, "headersSecretRef": {"name": "headers"}},
            "email": {"host": "smtp.example.com", "from": "a@example.com", "to": ["b@example.com"], "credentialsSecretRef": {"name": "smtp"}},
        },
        "watcher": {
            "resources": {"limits": {"memory": "64Mi"}},
            "sidecarResources": {"requests": {"cpu": "1m"}},
            "labels": {"team": "a"}, "annotations": {"example.com/a": "b"},
            "priorityClassName": "high", "runtimeClassName": "kata",
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "migration", "operator": "Exists"}],
            "proxy": {"httpsProxy": "http://proxy:3128", "noProxy": "10.0.0.0/8"},
            "trustedCaConfigMapRef": {"name": "ca"},
        },
        "worker": {
            "resources": {"requests": {"cpu": "1"}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "migration", "operator": "Exists"}],
            "priorityClassName": "low", "runtimeClassName": "kata",
            "labels": {"team": "a"}, "annotations": {"example.com/a": "b", "linkerd.io/inject": "enabled"},
            "jobLabels": {"kueue.x-k8s.io/priority-class": "low"}, "queueName": "batch", "requireLandlock": true,
        },
        "log": "debug",
        "imagePullSecrets": [{"name": "registry"}],
    }))
}

fn conversion() -> ConversionJob {
    serde_json::from_value(json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob",
        "metadata": {"name": "web01-3fa9c1d2", "namespace": "migration", "uid": "conversion-uid"},
        "spec": {"queueRef": {"name": "vmware-exit"}, "source": {"path": "web01.ova"}},
    }))
    .unwrap()
}

fn image() -> Image {
    Image { name: "example.com/hyper2kvm:1".into(), pull_policy: "IfNotPresent".into() }
}

fn images() -> Images {
    let fixer = Image { name: "example.com/hyper2kvm-fixer:1".into(), ..image() };
    Images { own: image(), fixer: Some(fixer) }
}

fn job(queue: &HyperConversion, context: &JobContext) -> k8s_openapi::api::batch::v1::Job {
    let id = "web01-3fa9c1d2".parse().unwrap();
    worker::job(queue, &conversion(), &id, Attempt(2), target::Task::Files, context).unwrap()
}

fn shared() -> JobContext {
    JobContext { images: images(), one_node: false }
}

#[test]
fn the_watcher_of_a_plain_queue() {
    insta::assert_yaml_snapshot!(watcher::stateful_set(&plain(), &image(), &QueueDefaults::default(), true));
}

#[test]
fn the_watcher_of_a_queue_with_everything() {
    insta::assert_yaml_snapshot!(watcher::stateful_set(&ornate(), &image(), &QueueDefaults::default(), true));
}

#[test]
fn what_a_watcher_may_do() {
    let queue = plain();
    insta::assert_yaml_snapshot!((access::service_account(&queue), access::role(&queue), access::role_binding(&queue)));
}

#[test]
fn who_may_talk_to_whom() {
    insta::assert_yaml_snapshot!((network::worker_policy(&plain()), network::watcher_policy(&plain())));
}

#[test]
fn the_job_of_a_plain_queue() {
    insta::assert_yaml_snapshot!(job(&plain(), &shared()));
}

#[test]
fn the_job_of_a_queue_with_everything_on_volumes_of_one_node_under_kueue() {
    insta::assert_yaml_snapshot!(job(&ornate(), &JobContext { one_node: true, ..shared() }));
}

#[test]
fn every_container_has_requests_and_limits_of_cpu_and_memory_unless_others_are_set() {
    let set = |spec: Value| {
        let queue = queue(spec);
        let watcher = watcher::stateful_set(&queue, &image(), &QueueDefaults::default(), true)
            .spec
            .unwrap()
            .template
            .spec
            .unwrap();
        let worker = job(&queue, &shared()).spec.unwrap().template.spec.unwrap();
        let all = watcher.init_containers.into_iter().flatten().chain(watcher.containers).chain(worker.containers);
        all.map(|container| json!(container.resources.unwrap())).collect::<Vec<_>>()
    };
    for resources in set(json!({})) {
        for list in ["requests", "limits"] {
            for resource in ["cpu", "memory"] {
                assert!(resources[list][resource].is_string(), "{list}.{resource}: {resources}");
            }
        }
    }
    // A memory limit that is left out deliberately is one that the requests name alone.
    let some = set(json!({"worker": {"resources": {"requests": {"cpu": "1"}}}}));
    let expected = json!({"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"memory": "256Mi"}});
    assert_eq!(some[2], expected);
    let all = set(json!({"watcher": {"sidecarResources": {"limits": {"cpu": "1", "memory": "1Gi"}}}}));
    assert_eq!(all[0], json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
}

#[test]
fn labels_that_are_asked_for_do_not_replace_the_operator_s_own() {
    let asked = json!({"hyper2kvm.io/queue": "other", "team": "a", "sidecar.istio.io/inject": "true"});
    let queue = queue(json!({"worker": {"labels": asked, "jobLabels": asked}, "watcher": {"labels": asked}}));
    let job = job(&queue, &shared());
    let watcher = watcher::stateful_set(&queue, &image(), &QueueDefaults::default(), true)
        .spec
        .unwrap()
        .template
        .metadata
        .unwrap();
    let pod = job.spec.unwrap().template.metadata.unwrap();
    for labels in [job.metadata.labels, pod.labels, watcher.labels] {
        let labels = labels.unwrap();
        let found = ["hyper2kvm.io/queue", "team", "sidecar.istio.io/inject"].map(|name| labels[name].as_str());
        assert_eq!(found, ["vmware-exit", "a", "true"]);
    }
}

#[test]
fn a_template_s_digest_changes_with_what_shapes_the_pod_alone() {
    let digest = |queue: &HyperConversion, context: &JobContext| {
        job(queue, context).metadata.annotations.unwrap()[names::ANNOTATION_TEMPLATE].clone()
    };
    let first = digest(&plain(), &shared());
    assert_eq!(first, digest(&queue(json!({"maxConcurrentJobs": 7, "runState": "Paused"})), &shared()));
    let corrected = Images { own: Image { name: "example.com/hyper2kvm:2".into(), ..image() }, ..images() };
    assert_ne!(first, digest(&plain(), &JobContext { images: corrected, ..shared() }));
    let other = Images { fixer: None, ..images() };
    assert_eq!(first, digest(&plain(), &JobContext { images: other, ..shared() }), "no guest is fixed");
}

/// The worker's pod of a queue with these settings of the guest, of a conversion with others of its own.
fn pod_for(guest: &Value, own: &Value, task: target::Task, images: Images) -> Result<PodSpec, InvalidSetting> {
    let mut conversion = conversion();
    conversion.spec.conversion = serde_json::from_value(json!({"guest": own})).unwrap();
    let resources = json!({"limits": {"cpu": "1"}});
    let queue = queue(json!({"conversion": {"guest": guest}, "worker": {"fixResources": resources}}));
    let id = "web01-3fa9c1d2".parse().unwrap();
    let job = worker::job(&queue, &conversion, &id, Attempt(1), task, &JobContext { images, one_node: false })?;
    Ok(job.spec.unwrap().template.spec.unwrap())
}

/// Image, limits, and what the worker is told of the guest.
fn shape(pod: &PodSpec) -> (&str, Value, Value) {
    let container = &pod.containers[0];
    let options = container.env.iter().flatten().find(|one| one.name == "HYPER2KVM_OPTIONS").unwrap();
    let guest = serde_json::from_str::<Value>(options.value.as_ref().unwrap()).unwrap()["guest"].clone();
    let image = container.image.as_deref().unwrap().rsplit('/').next().unwrap();
    (image, json!(container.resources)["limits"].clone(), guest)
}

#[test]
fn a_worker_that_fixes_guests_has_another_image_and_more_memory_and_one_that_looks_has_not() {
    let (task, nothing) = (target::Task::Files, json!({}));
    let built = |guest: &Value, own: &Value, task| pod_for(guest, own, task, images()).unwrap();
    let effort = json!({"mode": "BestEffort", "networkNames": "Leave"});
    let check = json!({"mode": "off", "timeoutSeconds": 300});
    let told = |fix, names| json!({"fix": fix, "names": names, "bootCheck": check, "accelerator": "tcg"});
    let more = json!({"cpu": "1", "memory": "1Gi"});
    let plain = json!({"cpu": "2", "memory": "256Mi"});
    let expected = ("hyper2kvm-fixer:1", more.clone(), told("best-effort", "leave"));
    assert_eq!(shape(&built(&effort, &nothing, task)), expected);
    let looked = ("hyper2kvm:1", plain.clone(), told("best-effort", "leave"));
    assert_eq!(shape(&built(&effort, &nothing, target::Task::Plan)), looked);
    let off = ("hyper2kvm:1", plain, Value::Null);
    assert_eq!(shape(&built(&effort, &json!({"mode": "Off"}), task)), off);
    let own = ("hyper2kvm-fixer:1", more, told("require", "keep"));
    assert_eq!(shape(&built(&nothing, &json!({"mode": "Require"}), task)), own);
    for (guest, field) in
        [(effort, "conversion.guest.mode"), (json!({"bootCheck": {"mode": "Warn"}}), "conversion.guest.bootCheck.mode")]
    {
        let error = pod_for(&guest, &nothing, task, Images { fixer: None, ..images() }).unwrap_err();
        assert_eq!(error.field, field);
    }
}

#[test]
fn a_worker_that_tries_whether_guests_boot_has_memory_for_them_and_kvm_where_it_is_asked_for() {
    let check = json!({"mode": "Require", "timeoutSeconds": 60});
    for (guest, task, image, limits, accelerator) in [
        (
            json!({"bootCheck": check}),
            target::Task::Files,
            "hyper2kvm-fixer:1",
            json!({"cpu": "1", "memory": "2560Mi"}),
            "tcg",
        ),
        (
            json!({"bootCheck": check, "accelerator": "KVM"}),
            target::Task::Files,
            "hyper2kvm-fixer:1",
            json!({"cpu": "1", "memory": "2560Mi", "devices.kubevirt.io/kvm": "1"}),
            "kvm",
        ),
        (
            json!({"bootCheck": check, "accelerator": "KVM"}),
            target::Task::Plan,
            "hyper2kvm:1",
            json!({"cpu": "2", "memory": "256Mi"}),
            "kvm",
        ),
    ] {
        let pod = pod_for(&guest, &json!({}), task, images()).unwrap();
        let told = json!({"fix": "off", "names": "keep", "accelerator": accelerator,
                          "bootCheck": {"mode": "require", "timeoutSeconds": 60}});
        assert_eq!(shape(&pod), (image, limits, told), "{guest} {task:?}");
    }
    // Nothing runs, so no device is wanted.
    let idle = pod_for(&json!({"accelerator": "KVM"}), &json!({}), target::Task::Files, images()).unwrap();
    assert_eq!(shape(&idle), ("hyper2kvm:1", json!({"cpu": "2", "memory": "256Mi"}), Value::Null));
}

#[test]
fn a_worker_that_fixes_guests_reads_virtio_s_drivers_from_their_claim() {
    let seen = |guest: Value, task| {
        let pod = pod_for(&guest, &json!({}), task, images()).unwrap();
        let mounts = pod.containers[0].volume_mounts.iter().flatten();
        let mount = mounts.clone().find(|mount| mount.mount_path == "/virtio-win").map(|mount| json!(mount));
        let claims = pod.volumes.iter().flatten().filter_map(|volume| volume.persistent_volume_claim.as_ref());
        let claims: Vec<_> = claims.map(|claim| claim.claim_name.clone()).collect();
        (mount, claims, shape(&pod).2["virtioWin"].clone())
    };
    let drivers =
        |mode: &str, claim: &str, path: &str| json!({"mode": mode, "virtioWin": {"claimName": claim, "path": path}});
    let task = target::Task::Files;
    let (mount, claims, told) = seen(drivers("BestEffort", "drivers", "virtio-win"), task);
    let expected = json!({"name": "virtio-win", "mountPath": "/virtio-win", "subPath": "virtio-win", "readOnly": true});
    assert_eq!((mount.unwrap(), told), (expected, json!("/virtio-win")));
    assert_eq!(claims, ["images", "drivers"]);
    // One volume for each claim.
    let (mount, claims, _) = seen(drivers("Require", "images", ""), task);
    assert_eq!(mount.unwrap(), json!({"name": "queue", "mountPath": "/virtio-win", "readOnly": true}));
    assert_eq!(claims, ["images"]);
    let mut checked = drivers("Off", "drivers", "");
    checked["bootCheck"] = json!({"mode": "Warn"});
    for (guest, task) in [
        (checked, task),
        (drivers("Off", "drivers", ""), task),
        (drivers("Require", "drivers", ""), target::Task::Plan),
    ] {
        let (mount, claims, _) = seen(guest, task);
        assert_eq!((mount, claims), (None, vec!["images".to_owned()]));
    }
}

#[test]
fn tests_ask_for_faults_through_annotations() {
    let mut queue = plain();
    queue.metadata.annotations = Some([("test.hyper2kvm.io/fail".to_owned(), "SourceIO".to_owned())].into());
    let pod = job(&queue, &shared()).spec.unwrap().template.spec.unwrap();
    let variable = pod.containers[0].env.as_ref().unwrap().last().unwrap();
    assert_eq!((variable.name.as_str(), variable.value.as_deref()), ("HYPER2KVM_TEST_FAIL", Some("SourceIO")));
}
