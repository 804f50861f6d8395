// SPDX-License-Identifier: Apache-2.0
//! Watchers that do not work any more: Ready means now.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::conversion::stage::{Operator, Queue, own};
use crate::harness::{Cluster, Need, run};

/// How long a silence may go unnoticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(180);

/// Status and reason of the queue's condition, as kubectl shows them.
fn said(queue: &Queue, kind: &str) -> String {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{kind}\")]['status','reason']}}");
    run(queue.operator.kubectl().args(["get", "hconv", &queue.name, "-o", &path]))
}

#[tokio::test]
async fn a_watcher_that_stands_still_is_silent_within_three_minutes_and_ready_when_it_goes_on() {
    // Its processes are stopped by their numbers on this machine.
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare(&operator, "silent", (65532, 0)).await;
    queue.declare(&json!({}), &json!({}));
    queue.ready();
    let name = format!("{}-watcher-0", queue.name);
    let pod = run(operator.kubectl().args(["get", "pod", &name, "-o", "json"]));
    let pod: Value = serde_json::from_str(&pod).unwrap();
    let since = Instant::now();
    assert!(operator.namespace.signal_container(&pod, "watcher", "SIGSTOP"));
    while said(&queue, "WatcherAvailable") != "False Silent" {
        assert!(since.elapsed() < NOTICED_WITHIN, "{}", said(&queue, "WatcherAvailable"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(said(&queue, "Ready"), "False WatcherUnavailable");
    assert!(operator.namespace.signal_container(&pod, "watcher", "SIGCONT"));
    let since = Instant::now();
    while said(&queue, "Ready") != "True Watching" {
        assert!(since.elapsed() < NOTICED_WITHIN, "{}", said(&queue, "Ready"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn a_queue_directory_that_becomes_unreadable_is_a_condition_until_it_is_readable_again() {
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare(&operator, "unreadable", (65532, 0)).await;
    own(&queue.queue(""), (65532, 0));
    queue.declare(&json!({}), &json!({}));
    queue.ready();
    let mode = |mode| fs::set_permissions(queue.queue(""), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o000);
    let since = Instant::now();
    while said(&queue, "StorageReady").starts_with("True") {
        assert!(since.elapsed() < NOTICED_WITHIN);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eprintln!("{}", said(&queue, "StorageReady"));
    mode(0o770);
    queue.says("StorageReady", "True", "Probed").await;
    queue.ready();
}
