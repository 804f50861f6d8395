// SPDX-License-Identifier: Apache-2.0
//! The API server refuses wrong objects with a message that says what is wrong and what to do.

mod objects;

use hyper2kvm::cluster::api::{GROUP, VERSION};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::harness::{self, Cluster, Need};

fn api(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// The smallest valid queue.
fn queue(name: &str) -> Value {
    json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": name},
        "spec": {
            "queue": {"claimName": "images", "subPath": "queue"},
            "output": {"claimName": "images", "subPath": "output"},
        },
    })
}

/// The smallest valid conversion.
fn conversion(name: &str) -> Value {
    json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
        "spec": {"queueRef": {"name": "vmware-exit"}, "source": {"path": "web01.ova"}},
    })
}

/// Lays `change` over `object`, as a JSON merge patch does.
fn overlaid(mut object: Value, change: &Value) -> Value {
    fn lay(under: &mut Value, over: &Value) {
        match (under, over) {
            (Value::Object(under), Value::Object(over)) => {
                for (key, value) in over {
                    if value.is_null() {
                        under.remove(key);
                    } else {
                        lay(under.entry(key).or_insert(Value::Null), value);
                    }
                }
            }
            (under, over) => *under = over.clone(),
        }
    }
    lay(&mut object, change);
    object
}

/// Creates the object as a dry run.
async fn try_out(client: &Client, namespace: &str, object: Value) -> kube::Result<DynamicObject> {
    let kind = object["kind"].as_str().expect("an object has a kind").to_owned();
    let object = serde_json::from_value(object).expect("an object has metadata");
    let strictly = PostParams { dry_run: true, ..PostParams::default() };
    api(client, namespace, &kind).create(&strictly, &object).await
}

/// The API server's message, without the words with which every refusal begins, and without its remark that it
/// skipped rules because the schema had refused already.
fn refusal<T>(result: kube::Result<T>) -> String {
    const REMARK: &str = ", <nil>: Invalid value: null: some validation rules were not checked because the object was \
                          invalid; correct the existing errors to complete validation";
    match result {
        Ok(_) => "accepted".to_owned(),
        Err(kube::Error::Api(status)) => {
            let cause = status.message.split_once("is invalid: ").map_or(status.message.as_str(), |(_, cause)| cause);
            match cause.strip_prefix('[').and_then(|list| list.strip_suffix(&format!("{REMARK}]"))) {
                Some(list) if !list.contains(", spec.") => list.to_owned(),
                Some(list) => format!("[{list}]"),
                None => cause.to_owned(),
            }
        }
        Err(error) => panic!("no answer: {error}"),
    }
}

#[tokio::test]
async fn every_bad_object_is_refused_with_its_message() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("bad");
    let client = cluster.client().await;
    let mut wrong = Vec::new();
    for (base, changes) in [(queue("bad"), objects::queues()), (conversion("bad"), objects::conversions())] {
        for (change, message) in changes {
            let said = refusal(try_out(&client, &namespace.name, overlaid(base.clone(), &change)).await);
            if said != message {
                wrong.push(format!("{change}\n  expected: {message}\n  said:     {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_must_not_change_can_not_be_changed() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("frozen");
    let client = cluster.client().await;
    for (object, changes) in
        [(queue("frozen"), objects::queue_changes()), (conversion("frozen"), objects::conversion_changes())]
    {
        let kind = object["kind"].as_str().expect("an object has a kind").to_owned();
        let objects = api(&client, &namespace.name, &kind);
        let object = serde_json::from_value(object).expect("an object has metadata");
        let created = objects.create(&PostParams::default(), &object).await.expect("the base is in order");
        for (change, message) in changes {
            let patched = objects.patch(&created.name_any(), &PatchParams::default(), &Patch::Merge(&change)).await;
            assert_eq!(refusal(patched), message, "{change}");
        }
    }
}

#[tokio::test]
async fn good_objects_are_taken_and_get_their_defaults() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("good");
    let client = cluster.client().await;
    for change in objects::good_queues() {
        let taken = try_out(&client, &namespace.name, overlaid(queue("good"), &change)).await;
        assert!(taken.is_ok(), "{change}: {taken:?}");
    }
    for change in objects::good_conversions() {
        let taken = try_out(&client, &namespace.name, overlaid(conversion("good"), &change)).await;
        assert!(taken.is_ok(), "{change}: {taken:?}");
    }

    let smallest = try_out(&client, &namespace.name, queue("small")).await.expect("the smallest queue is in order");
    let spec: hyper2kvm::cluster::api::HyperConversionSpec =
        serde_json::from_value(smallest.data["spec"].clone()).expect("what was stored is read back");
    let ours: hyper2kvm::cluster::api::HyperConversionSpec =
        serde_json::from_value(queue("small")["spec"].clone()).expect("the smallest queue is in order");
    assert_eq!(spec, ours, "schema and program have the same defaults");
}

#[tokio::test]
async fn a_status_keeps_its_conditions_by_type_and_its_columns_show_it() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("columns");
    let client = cluster.client().await;
    let objects = api(&client, &namespace.name, "ConversionJob");
    let object = serde_json::from_value(conversion("web01")).expect("an object has metadata");
    objects.create(&PostParams::default(), &object).await.expect("the base is in order");
    let since = "2026-01-17T09:45:00Z";
    let said = |manager: &str, status: Value| {
        let apply = json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "status": status});
        let objects = objects.clone();
        let parameters = PatchParams::apply(manager);
        async move {
            objects.patch_status("web01", &parameters, &Patch::Apply(&apply)).await.expect("the status is in order")
        }
    };
    said("controller", json!({"phase": "Converting", "attemptCount": 1,
        "attempts": [{"number": 1, "nodeName": "node0"}, {"number": 2, "nodeName": "node1"}],
        "conditions": [{"type": "Converted", "status": "Unknown", "reason": "Running", "message": "", "lastTransitionTime": since}]}))
    .await;
    let both = said("watcher", json!({"staged": 2, "duration": "2m5s",
        "failure": {"reason": "SourceIO", "class": "Transient", "phase": "conversion", "message": "EIO", "suggestion": ""},
        "progress": {"percent": 42, "stage": "copy", "bytesDone": 1, "bytesTotal": 2, "updatedTime": since},
        "outputs": [{"path": "2026-01-17/web01/web01.qcow2", "format": "qcow2", "virtualSizeBytes": 1, "allocatedBytes": 1}],
        "conditions": [{"type": "Succeeded", "status": "Unknown", "reason": "Running", "message": "", "lastTransitionTime": since}]}))
    .await;
    let types: Vec<_> = both.data["status"]["conditions"]
        .as_array()
        .expect("two managers wrote conditions")
        .iter()
        .map(|condition| condition["type"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(types, ["Converted", "Succeeded"]);

    let table =
        harness::run(cluster.kubectl().args(["-n", &namespace.name, "get", "hcj", "-o", "wide", "--no-headers"]));
    let mut columns: Vec<_> = table.split_whitespace().collect();
    columns.remove(6);
    assert_eq!(
        columns,
        [
            "web01",
            "vmware-exit",
            "web01.ova",
            "Converting",
            "42",
            "1",
            "SourceIO",
            "node1",
            "2m5s",
            "2026-01-17/web01/web01.qcow2"
        ]
    );
}

#[test]
fn kubectl_explains_every_part() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    for (part, says) in [
        ("hconv.spec.queue", "Directory that is watched."),
        ("hconv.spec.runState", "What is asked for: Running"),
        ("hcj.spec.source.path", "relative to the queue's directory"),
        ("hcj.status.staged", "The attempt that may start"),
    ] {
        let text = harness::run(cluster.kubectl().args(["explain", part]));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(says), "{part}: {text}");
    }
}
