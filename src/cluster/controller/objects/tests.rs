// SPDX-License-Identifier: Apache-2.0
//! A snapshot of every built object.
#![expect(clippy::needless_pass_by_value, reason = "json! reads best where it is used")]

use serde_json::{Value, json};

use super::*;
use crate::cluster::api::ConversionJob;
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
        "securityContext": {"runAsUser": 1_000_680_000, "runAsGroup": 0, "fsGroup": 1000, "supplementalGroups": [2000]},
        "notifications": {
            "webhook": {"urlSecretRef": {"name": "hooks", "key": "slack"}, "headersSecretRef": {"name": "headers"}},
            "email": {"host": "smtp.example.com", "from": "a@example.com", "to": ["b@example.com"], "credentialsSecretRef": {"name": "smtp"}},
        },
        "watcher": {
            "resources": {"limits": {"memory": "64Mi"}},
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
            "annotations": {"example.com/a": "b"}, "queueName": "batch",
        },
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

fn job(queue: &HyperConversion, context: &JobContext) -> k8s_openapi::api::batch::v1::Job {
    let id = "web01-3fa9c1d2".parse().unwrap();
    worker::job(queue, &conversion(), &id, Attempt(2), context).unwrap()
}

fn shared() -> JobContext {
    JobContext { image: image(), one_node: false, kueue: false }
}

#[test]
fn the_watcher_of_a_plain_queue() {
    insta::assert_yaml_snapshot!(watcher::stateful_set(&plain(), &image()));
}

#[test]
fn the_watcher_of_a_queue_with_everything() {
    insta::assert_yaml_snapshot!(watcher::stateful_set(&ornate(), &image()));
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
    insta::assert_yaml_snapshot!(job(&ornate(), &JobContext { one_node: true, kueue: true, ..shared() }));
}

#[test]
fn a_job_is_left_to_run_where_kueue_is_not_served() {
    let job = job(&ornate(), &shared());
    assert_eq!(job.spec.unwrap().suspend, None);
    assert!(!job.metadata.labels.unwrap().contains_key(names::LABEL_KUEUE));
}

#[test]
fn a_template_s_digest_changes_with_what_shapes_the_pod_alone() {
    let digest = |queue: &HyperConversion, context: &JobContext| {
        job(queue, context).metadata.annotations.unwrap()[names::ANNOTATION_TEMPLATE].clone()
    };
    let first = digest(&plain(), &shared());
    assert_eq!(first, digest(&queue(json!({"maxConcurrentJobs": 7, "runState": "Paused"})), &shared()));
    let corrected = Image { name: "example.com/hyper2kvm:2".into(), ..image() };
    assert_ne!(first, digest(&plain(), &JobContext { image: corrected, ..shared() }));
}

#[test]
fn tests_ask_for_faults_through_annotations() {
    let mut queue = plain();
    queue.metadata.annotations = Some([("test.hyper2kvm.io/fail".to_owned(), "SourceIO".to_owned())].into());
    let pod = job(&queue, &shared()).spec.unwrap().template.spec.unwrap();
    let variable = pod.containers[0].env.as_ref().unwrap().last().unwrap();
    assert_eq!((variable.name.as_str(), variable.value.as_deref()), ("HYPER2KVM_TEST_FAIL", Some("SourceIO")));
}
