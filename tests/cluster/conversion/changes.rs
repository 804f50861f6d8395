// SPDX-License-Identifier: Apache-2.0
//! A specification that changes while its queue is watched, and a source that failed for good, tried again by hand.

use std::fs;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::{Class, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::plugin;
use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Queue, files, reasons, runs};

/// Identity of a pod, and how often each of its containers was restarted.
fn life(pod: &Pod) -> (Option<String>, Vec<i32>) {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    (pod.uid(), containers.map(|container| container.restart_count).collect())
}

/// An object as the API server has it, with its version.
async fn stored(queue: &Queue, name: &str) -> Value {
    serde_json::to_value(queue.api::<ConversionJob>().get(name).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_changed_specification_reaches_the_watcher_that_runs_and_only_what_shapes_its_pod_makes_another() {
    let spec = json!({"maxConcurrentJobs": 1, "conversion": {"maxVirtualSize": "1Mi"}});
    let Some(queue) = Queue::open("changed", spec, json!({})).await else { return };
    queue.bring("disk.img", &guest(2, 51));
    let failed = queue.ended("disk.img", JobPhase::Failed).await;
    let failure = failed.status.as_ref().unwrap().state.failure.clone().unwrap();
    assert_eq!((failure.reason, failure.class), (Reason::TooLarge, Class::Permanent), "{failure:?}");
    let before = stored(&queue, &failed.name_any()).await;
    assert_eq!(before["status"]["sourceLocation"], ".errors/disk.img");
    let pod = queue.api::<Pod>().get(&queue.pod()).await.unwrap();
    assert_eq!(life(&pod).1, [0, 0]);

    // The cause is gone: the source is converted from where it lies. The watcher's additions to the disk follow the
    // present specification.
    let raised = json!({"maxVirtualSize": "64Ti", "emitDomainXml": true});
    queue.patch(&json!({"spec": {"maxConcurrentJobs": 2, "conversion": raised}}));
    plugin(&queue, &["retry", &failed.name_any()]);
    let again = queue.ended(".errors/disk.img", JobPhase::Succeeded).await;
    assert_eq!((again.uid() == failed.uid(), reasons(&again)), (false, vec![None]));
    let status = again.status.unwrap();
    let disk = queue.output(&status.outputs[0].path);
    holds(&disk, &guest(2, 51));
    assert_eq!(files(disk.parent().unwrap()), ["disk.qcow2", "domain.xml", "metadata.json"]);
    assert!(fs::read(queue.queue(&status.source_location.unwrap())).unwrap() == guest(2, 51));
    assert_eq!(files(&queue.queue(".errors")), Vec::<String>::new());
    queue.counted([1, 1, 0, 0, 0]).await;
    assert_eq!(stored(&queue, &failed.name_any()).await, before);

    // Two slots now.
    queue.patch(&json!({"metadata": {"annotations": {"test.hyper2kvm.io/hang": "1"}}}));
    for name in ["one.img", "two.img"] {
        queue.bring(name, &guest(1, 52));
    }
    for name in ["one.img", "two.img"] {
        queue.conversion(name, "running", runs).await;
    }
    assert_eq!(life(&queue.api::<Pod>().get(&queue.pod()).await.unwrap()), life(&pod));

    // A change that a running pod can't take replaces the pod; the new one continues the work under way.
    queue.patch(&json!({"spec": {"watcher": {"resources": {"requests": {"cpu": "11m"}}}}}));
    let is_other = |now: &Pod| now.uid() != pod.uid() && now.status.as_ref().is_some_and(is_ready);
    let other = queue.until::<Pod>(&queue.pod(), "another, ready", is_other).await;
    let resources = other.spec.unwrap().containers[0].resources.clone().unwrap();
    assert_eq!(resources.requests.unwrap()["cpu"].0, "11m");
    queue.ready();
    for name in ["one.img", "two.img"] {
        assert_eq!(reasons(&queue.conversion(name, "running", runs).await), [None], "{name}");
    }
}

fn is_ready(status: &k8s_openapi::api::core::v1::PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
