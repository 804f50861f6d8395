// SPDX-License-Identifier: Apache-2.0
//! Faults on the real node: evictions, too little memory, unusable volumes, compromised workers, a queue that is made
//! again, watchers that die at a given step.

mod compromised;
mod confined;
mod failpoints;
mod silence;
mod storage;

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::{Class, Reason};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Queue, files, pod_of, reasons, runs};
use crate::harness::run;

const HANG: &str = "test.hyper2kvm.io/hang";
const FAIL: &str = "test.hyper2kvm.io/fail";

fn annotate(queue: &Queue, key: &str, value: Value) {
    let mut annotations = json!({});
    annotations[key] = value;
    queue.patch(&json!({"metadata": {"annotations": annotations}}));
}

/// Asks for a pod's eviction, as `kubectl drain` does.
fn evict(queue: &Queue, pod: &str) {
    let namespace = &queue.operator.namespace.name;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    let wish =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}});
    let mut create = queue.kubectl();
    let mut child = create.args(["create", "--raw", &path, "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(wish.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn a_worker_that_is_evicted_is_started_again_uncounted() {
    let Some(queue) = Queue::open("evicted", json!({}), json!({HANG: "1"})).await else { return };
    queue.bring("disk.img", &guest(1, 21));
    let running = queue.conversion("disk.img", "running", runs).await;
    annotate(&queue, HANG, Value::Null);
    evict(&queue, &pod_of(&running).unwrap());
    let over = queue.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::Disrupted), None]);
    let status = over.status.unwrap();
    assert_eq!(status.attempt_count, Some(1));
    holds(&queue.output(&status.outputs[0].path), &guest(1, 21));
    queue.counted([1, 0, 0, 0, 0]).await;
}

#[tokio::test]
async fn a_worker_that_needs_more_memory_than_it_may_have_is_tried_once_more_and_no_further() {
    let spec = json!({
        "worker": {"resources": {"limits": {"memory": "12Mi"}}},
        "retryPolicy": {"maxRetries": 3, "retryDelaySeconds": 1},
    });
    let Some(queue) = Queue::open("small", spec, json!({})).await else { return };
    queue.bring("disk.img", &guest(64, 22));
    let over = queue.ended("disk.img", JobPhase::Failed).await;
    assert_eq!(reasons(&over), [Some(Reason::OutOfMemory); 2]);
    let failure = over.status.unwrap().state.failure.unwrap();
    assert_eq!(
        (failure.class, failure.message.as_str()),
        (Class::Permanent, "the kernel killed the worker at its memory limit")
    );
    assert_eq!(queue.error_file("disk.img")["reason"], json!("OutOfMemory"));
    queue.eventually("tidied up", || files(&queue.output(".work")).is_empty()).await;
    queue.counted([0, 1, 0, 1, 0]).await;
}

#[tokio::test]
async fn a_queue_made_anew_takes_up_the_files_that_the_former_one_had_claimed() {
    let spec = json!({"maxConcurrentJobs": 1, "retryPolicy": {"maxRetries": 3, "retryDelaySeconds": 3600}});
    let Some(queue) = Queue::open("anew", spec.clone(), json!({FAIL: "SourceIO:1"})).await else { return };
    queue.bring("parked.img", &guest(1, 61));
    queue.eventually("parked", || queue.queue(".errors/parked.img").exists()).await;
    queue.patch(&json!({"metadata": {"annotations": {FAIL: null, HANG: "1"}}}));
    queue.bring("running.img", &guest(1, 62));
    let running = queue.conversion("running.img", "running", runs).await;
    queue.bring("waiting.img", &guest(1, 63));
    queue.conversion("waiting.img", "staged", |c| c.status.as_ref().is_some_and(|s| s.state.staged == 1)).await;

    run(queue.kubectl().args(["delete", "hconv", "anew", "--timeout=60s"]));
    run(queue.kubectl().args(["wait", "--for=delete", "--timeout=90s", &format!("pod/{}", queue.pod())]));
    let kept = files(&queue.queue(""));
    for name in [".errors/parked.img", &format!(".processing/{}/running.img", running.name_any())] {
        assert!(kept.iter().any(|path| path == name), "{name}: {kept:?}");
    }
    queue.declare(&spec, &json!({}));
    queue.ready();
    for (name, seed) in [("running.img", 62), ("waiting.img", 63)] {
        let over = queue.ended(name, JobPhase::Succeeded).await;
        assert_ne!(over.uid(), running.uid());
        holds(&queue.output(&over.status.unwrap().outputs[0].path), &guest(1, seed));
    }
    queue.counted([2, 0, 0, 1, 1]).await;
    assert_eq!(queue.error_file("parked.img")["reason"], json!("Cancelled"));
    assert!(fs::read(queue.queue(".errors/parked.img")).unwrap() == guest(1, 61));
    let claims: Vec<_> = files(&queue.queue(".processing")).into_iter().filter(|path| !path.starts_with('.')).collect();
    assert!(claims.is_empty(), "{claims:?}");
}

#[tokio::test]
async fn the_same_content_under_another_name_is_a_duplicate_by_md5() {
    let Some(queue) = Queue::open("by-md5", json!({"deduplication": {"useMd5": true}}), json!({})).await else {
        return;
    };
    queue.bring("first.img", &guest(1, 71));
    queue.ended("first.img", JobPhase::Succeeded).await;
    queue.bring("second.img", &guest(1, 71));
    let again = queue.ended("second.img", JobPhase::Duplicate).await;
    assert!(again.spec.duplicate_of.starts_with("first.img of "), "{}", again.spec.duplicate_of);
    assert_eq!(queue.jobs_of(&again).await, Vec::<String>::new());
    queue.counted([1, 0, 1, 0, 0]).await;
}

fn by_hand(queue: &Queue, name: &str, path: &str, conversion: &Value) -> std::process::Output {
    let object = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
        "spec": {"queueRef": {"name": queue.name}, "source": {"path": path}, "conversion": conversion},
    });
    let mut apply = queue.kubectl();
    let piped = apply.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn a_conversion_made_by_hand_has_its_file_to_itself_and_one_of_nothing_ends() {
    let Some(queue) = Queue::open("by-hand", json!({}), json!({})).await else { return };
    assert!(by_hand(&queue, "nothing", "nothing.img", &json!({})).status.success());
    let refused = by_hand(&queue, "outside", "../outside.img", &json!({}));
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("source.path"));
    // Files settle faster than kubectl starts; while the queue is stopped, nothing is claimed.
    queue.patch(&json!({"spec": {"runState": "Stopped"}}));
    queue.says("Stopped", "True", "AtRest").await;
    queue.bring("disk.img", &guest(1, 81));
    assert!(by_hand(&queue, "mine", "disk.img", &json!({"emitDomainXml": true})).status.success());
    queue.patch(&json!({"spec": {"runState": "Running"}}));
    let over = queue.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(over.name_any(), "mine");
    let disk = queue.output(&over.status.unwrap().outputs[0].path);
    holds(&disk, &guest(1, 81));
    assert_eq!(files(disk.parent().unwrap()), ["disk.qcow2", "domain.xml", "metadata.json"]);
    let missing = queue.ended("nothing.img", JobPhase::Cancelled).await;
    assert_eq!(missing.status.unwrap().state.failure.unwrap().reason, Reason::SourceMissing);
    let all: Vec<ConversionJob> = queue.conversions().await;
    assert_eq!(all.len(), 2, "the scan took what an object had asked for");
}
