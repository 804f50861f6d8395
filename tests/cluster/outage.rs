// SPDX-License-Identifier: Apache-2.0
//! Parts of the cluster that fail in the middle of conversions and come back: nothing is lost, nothing done twice,
//! and everything is caught up. No other test uses the cluster meanwhile.

use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files, pod_of, reasons, runs};
use crate::harness::{Cluster, Need};

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(20);

/// A part of the cluster that is stopped as long as this value lives.
struct Away<'a> {
    queue: &'a Queue,
    part: &'static str,
}

impl<'a> Away<'a> {
    fn now(queue: &'a Queue, part: &'static str) -> Self {
        queue.operator.cluster.part("stop", part);
        Self { queue, part }
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.queue.operator.cluster.part("start", self.part);
    }
}

/// Whether an attempt at this source has all its disks, published or not.
fn is_done(queue: &Queue, stem: &str) -> bool {
    let found = files(&queue.output(""));
    found.iter().any(|path| path.contains(&format!("{stem}-")) && path.ends_with("/metadata.json"))
}

/// How often the containers of the queue's pod were restarted. (The controller may be, by its lease.)
async fn restarts(queue: &Queue) -> i32 {
    let status = queue.api::<Pod>().get(&queue.pod()).await.unwrap().status.unwrap();
    let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    all.map(|status| status.restart_count).sum()
}

/// The pod of a conversion that runs, as kubectl shows it.
async fn pod(queue: &Queue, running: &ConversionJob) -> Value {
    let pod = queue.api::<Pod>().get(&pod_of(running).unwrap()).await.unwrap();
    serde_json::to_value(pod).unwrap()
}

/// Conversions that take some seconds.
fn slow() -> Value {
    json!({"outFormat": "qcow2", "compress": "zstd", "compressLevel": 15})
}

#[tokio::test]
async fn conversions_go_on_while_the_api_server_is_away_and_all_is_caught_up() {
    const DISKS: u64 = 4;
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let spec = json!({"maxConcurrentJobs": 2, "conversion": slow()});
    let Some(operator) = Operator::own("outage") else { return };
    let queue = Queue::open_with(&operator, "outage", &spec, &json!({})).await;
    let name = |n| format!("disk{n}.img");
    let disk = |n| guest(24, 300 + n);
    for n in 0..DISKS {
        queue.bring(&name(n), &disk(n));
    }
    queue.ended(&name(0), JobPhase::Succeeded).await;
    queue.conversion(&name(2), "running", runs).await;
    let away = Away::now(&queue, "apiserver");
    let back = Instant::now() + OUTAGE;
    queue.bring("late.img", &disk(DISKS));
    // A worker finishes without the API server, but the queue claims no new file.
    queue.eventually("converted meanwhile", || is_done(&queue, "disk2")).await;
    queue.eventually("claimed meanwhile", || !queue.queue("late.img").exists()).await;
    sleep_until(back).await;
    drop(away);
    queue.reachable().await;

    for (name, n) in (0..DISKS).map(|n| (name(n), n)).chain([("late.img".to_owned(), DISKS)]) {
        let over = queue.ended(&name, JobPhase::Succeeded).await;
        assert_eq!(reasons(&over), [None], "{name}");
        holds(&queue.output(&over.status.unwrap().outputs[0].path), &disk(n));
    }
    queue.counted([5, 0, 0, 0, 0]).await;
    assert_eq!(queue.conversions().await.len(), 5);
    assert_eq!(files(&queue.queue(".processed")).len(), 5);
    assert_eq!(restarts(&queue).await, 0, "somebody gave up");
}

#[tokio::test]
async fn what_ends_while_the_kubelet_is_away_is_told_when_it_is_back() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let spec = json!({"retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1}, "conversion": slow()});
    let hang = json!({"test.hyper2kvm.io/hang": "1"});
    let Some(operator) = Operator::own("no-kubelet") else { return };
    let queue = Queue::open_with(&operator, "no-kubelet", &spec, &hang).await;
    queue.bring("killed.img", &guest(1, 401));
    let running = queue.conversion("killed.img", "running", runs).await;
    let killed = pod(&queue, &running).await;
    queue.patch(&json!({"metadata": {"annotations": {"test.hyper2kvm.io/hang": null}}}));
    queue.bring("disk.img", &guest(96, 402));
    let running = queue.conversion("disk.img", "running", runs).await;
    let held = pod(&queue, &running).await;
    // The conversion ends only after the kubelet has stopped the pod, however long that takes.
    assert!(queue.operator.namespace.signal_container(&held, "worker", "SIGSTOP"));
    let away = Away::now(&queue, "kubelet");
    assert!(!is_done(&queue, "disk"), "it was through already");
    assert!(queue.operator.namespace.signal_container(&held, "worker", "SIGCONT"));
    assert!(queue.operator.namespace.try_kill_container(&killed, "worker"));
    queue.eventually("converted meanwhile", || is_done(&queue, "disk")).await;
    queue.bring("late.img", &guest(1, 403));
    queue.conversion("late.img", "staged", |c| c.status.as_ref().is_some_and(|s| s.state.staged == 1)).await;
    drop(away);

    for (name, size, seed, ends) in [
        ("disk.img", 96, 402, &[None][..]),
        ("killed.img", 1, 401, &[Some(Reason::Killed), None]),
        ("late.img", 1, 403, &[None]),
    ] {
        let over = queue.ended(name, JobPhase::Succeeded).await;
        assert_eq!(reasons(&over), ends, "{name}");
        holds(&queue.output(&over.status.unwrap().outputs[0].path), &guest(size, seed));
    }
    queue.counted([3, 0, 0, 1, 0]).await;
}
