// SPDX-License-Identifier: Apache-2.0
//! Run states of a queue, set in every way, and shown everywhere.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::Reason;
use hyper2kvm::conversion::admission::RunState;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{is_parked, plugin, plugin_command};
use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files, own, pod_of, reasons, runs};
use crate::harness::{Cluster, Need, run};

const HANG: &str = "test.hyper2kvm.io/hang";

/// Waits until object, column, socket and stats.json show this run state.
async fn shown(queue: &Queue, run_state: RunState) {
    queue.asked(run_state).await;
    let columns = run(queue.kubectl().args(["get", "hconv", &queue.name, "--no-headers"]));
    assert_eq!(columns.split_whitespace().nth(2), Some(format!("{run_state:?}").as_str()), "{columns}");
    let words = [("paused", RunState::Paused), ("draining", RunState::Draining), ("stopping", RunState::Stopped)];
    let is_so = |said: &Value| words.iter().all(|(word, state)| said[word] == json!(run_state == *state));
    queue
        .eventually(&format!("{run_state:?} by its socket and in stats.json"), || {
            let stats = fs::read(queue.output(".daemon/stats.json")).unwrap_or_default();
            let socket = queue.try_ctl(&["status", "--json"]);
            [stats, socket].iter().all(|text| serde_json::from_slice(text).is_ok_and(|said| is_so(&said)))
        })
        .await;
}

fn kubectl(queue: &Queue, run_state: &str) {
    queue.patch(&json!({"spec": {"runState": run_state}}));
}

fn is_staged(conversion: &ConversionJob) -> bool {
    let status = conversion.status.as_ref();
    status.is_some_and(|status| status.state.staged == 1 && status.phase == Some(JobPhase::Queued))
}

#[tokio::test]
async fn what_is_asked_by_one_way_is_seen_by_every_other_and_outlives_the_watcher() {
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let Some(queue) = Queue::open("asked", json!({"retryPolicy": {"retryDelaySeconds": 1}}), json!({})).await else {
        return;
    };
    assert!(queue.ctl("pause").starts_with('✅'));
    shown(&queue, RunState::Paused).await;
    queue.bring("first.img", &guest(1, 5));
    let waiting = queue.conversion("first.img", "staged", is_staged).await;
    queue.kill("watcher").await;
    shown(&queue, RunState::Paused).await;
    assert_eq!(queue.jobs_of(&waiting).await, Vec::<String>::new());
    kubectl(&queue, "Running");
    queue.ended("first.img", JobPhase::Succeeded).await;
    shown(&queue, RunState::Running).await;

    // Stopped: running attempts end uncounted, and nothing more is claimed.
    queue.patch(&json!({"metadata": {"annotations": {HANG: "1"}}}));
    queue.bring("second.img", &guest(1, 6));
    let running = queue.conversion("second.img", "running", runs).await;
    assert!(queue.ctl("stop").starts_with('✅'));
    queue.asked(RunState::Stopped).await;
    let pod = format!("pod/{}", pod_of(&running).unwrap());
    run(queue.kubectl().args(["wait", "--for=delete", "--timeout=60s", &pod]));
    // As the kubelet does for a pod that was only starting: it creates the directory to mount, with no access for
    // others.
    let work = queue.output(&format!(".work/{}/1", running.name_any()));
    queue.eventually("cleared", || !work.exists()).await;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&work).unwrap();
    queue.patch(&json!({"metadata": {"annotations": {HANG: null}}}));
    queue.bring("third.img", &guest(1, 7));
    // Nothing is left to do: its pod goes, and says where it can be had.
    queue.says("Ready", "False", "Stopped").await;
    run(queue.kubectl().args(["wait", "--for=delete", "--timeout=60s", &format!("pod/{}", queue.pod())]));
    assert_eq!(queue.conversions().await.len(), 2);
    assert!(queue.queue("third.img").exists());
    let refused = plugin_command(&queue, &["history", "asked"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("asked is stopped and has no pod"), "{said}");

    plugin(&queue, &["resume", "asked"]);
    let over = queue.ended("second.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::Disrupted), None]);
    assert_eq!(over.status.as_ref().unwrap().attempt_count, Some(1));
    holds(&queue.output(&over.status.unwrap().outputs[0].path), &guest(1, 6));
    queue.ended("third.img", JobPhase::Succeeded).await;

    // Drained: what was queued is finished, retries included, and nothing more is claimed.
    queue.patch(&json!({"metadata": {"annotations": {HANG: "1"}}}));
    queue.bring("fourth.img", &guest(1, 8));
    let running = queue.conversion("fourth.img", "running", runs).await;
    assert!(queue.ctl("drain").starts_with('✅'));
    shown(&queue, RunState::Draining).await;
    queue.bring("fifth.img", &guest(1, 9));
    queue.kill("watcher").await;
    shown(&queue, RunState::Draining).await;
    queue.says("Drained", "False", "Draining").await;
    queue.patch(&json!({"metadata": {"annotations": {HANG: null}}}));
    run(queue.kubectl().args(["delete", "pod", &pod_of(&running).unwrap()]));
    run(queue.kubectl().args(["wait", "--for=condition=Drained", "--timeout=60s", "hconv/asked"]));
    let over = queue.ended("fourth.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::Killed), None]);
    queue.counted([4, 0, 0, 1, 0]).await;
    shown(&queue, RunState::Draining).await;
    assert!(queue.queue("fifth.img").exists());
    assert_eq!(queue.conversions().await.len(), 4);
    kubectl(&queue, "Running");
    queue.ended("fifth.img", JobPhase::Succeeded).await;
    assert_eq!(files(&queue.queue(".processed")).len(), 5);
}

#[tokio::test]
async fn a_retry_that_is_due_while_the_queue_is_paused_waits_whoever_watches() {
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let fault = json!({"test.hyper2kvm.io/fail": "SourceIO:1"});
    let Some(queue) = Queue::open("due", json!({"retryPolicy": {"retryDelaySeconds": 5}}), fault).await else { return };
    queue.bring("disk.img", &guest(1, 11));
    let parked = queue.queue(".errors/disk.img");
    let waiting = queue.conversion("disk.img", "parked", |c| is_parked(c, 1, &parked)).await;
    kubectl(&queue, "Paused");
    let due = waiting.status.unwrap().state.next_retry_time.unwrap();
    queue.eventually("due", || Timestamp::now() > due).await;
    queue.kill("watcher").await;
    // A watcher that has seen this file has seen the earlier one, too.
    queue.bring("other.img", &guest(1, 12));
    queue.conversion("other.img", "staged", is_staged).await;
    let still = queue.conversion("disk.img", "there", |_| true).await.status.unwrap().state;
    assert_eq!((still.staged, parked.exists()), (1, true));
    queue.patch(
        &json!({"spec": {"runState": "Running"}, "metadata": {"annotations": {"test.hyper2kvm.io/fail": null}}}),
    );
    let over = queue.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::SourceIO), None]);
    queue.counted([2, 0, 0, 1, 0]).await;
}

#[tokio::test]
async fn where_the_output_takes_no_socket_it_is_elsewhere_and_found_there() {
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare(&operator, "no-socket", (65532, 0)).await;
    // A directory in the socket's place: like a volume that refuses sockets.
    fs::create_dir_all(queue.output(".daemon/control.sock")).unwrap();
    own(&queue.output(".daemon"), (65532, 0));
    queue.declare(&json!({}), &json!({}));
    queue.ready();
    let told = queue.says("StorageReady", "True", "SocketElsewhere").await;
    assert!(told.contains("the control socket is /run/hyper2kvm/control.sock"), "{told}");
    let shown = queue.ctl("stats");
    assert!(shown.contains("  Processed: 0\n"), "{shown}");
    assert!(queue.ctl("pause").starts_with('✅'));
    queue.asked(RunState::Paused).await;
}
