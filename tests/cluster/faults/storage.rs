// SPDX-License-Identifier: Apache-2.0
//! Volumes that this watcher, or any, can't use: a condition says so, and nothing is touched.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use hyper2kvm::cluster::api::{HyperConversion, JobPhase, condition};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, own, reasons};
use crate::harness::run;

/// A small volume over a queue's output, gone when the test ends.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

#[tokio::test]
async fn a_full_output_volume_holds_the_queue_until_there_is_room() {
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare(&operator, "full", (65532, 0)).await;
    let output = queue.output("");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m,uid=65532,gid=0,mode=0770", "hyper2kvm-test"])
        .arg(&output));
    let _mounted = Mounted(output);
    queue.declare(&json!({}), &json!({}));
    queue.ready();
    fs::write(queue.output("ballast"), vec![1; 11 << 20]).unwrap();
    queue.bring("disk.img", &guest(8, 31));
    let message = queue.says("StorageReady", "False", "NoSpace").await;
    assert!(message.contains("make room"), "{message}");
    queue.says("Ready", "False", "NoSpace").await;
    fs::remove_file(queue.output("ballast")).unwrap();
    let over = queue.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::OutputFull), None]);
    assert_eq!(over.status.as_ref().unwrap().attempt_count, Some(1));
    holds(&queue.output(&over.status.unwrap().outputs[0].path), &guest(8, 31));
    queue.says("StorageReady", "True", "Probed").await;
}

#[tokio::test]
async fn a_claim_that_the_watcher_may_not_write_is_a_condition_until_it_may() {
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare(&operator, "unwritable", (0, 0)).await;
    own(&queue.queue(""), (65532, 0));
    queue.declare(&json!({}), &json!({}));
    let told = queue.says("StorageReady", "False", "PermissionDenied").await;
    assert!(told.contains("/var/lib/hyper2kvm/output"), "{told}");
    assert_eq!(queue.says("Ready", "False", "PermissionDenied").await, told);
    own(&queue.output(""), (65532, 0));
    queue.ready();
    queue.says("StorageReady", "True", "Probed").await;
}

#[tokio::test]
async fn a_secret_that_is_not_there_keeps_no_watcher_from_starting() {
    let webhook = json!({"type": "generic", "urlSecretRef": {"name": "nowhere", "key": "address"}});
    let Some(queue) = Queue::open("secretless", json!({"notifications": {"webhook": webhook}}), json!({})).await else {
        return;
    };
    let said = queue.says("NotificationsReady", "False", "SecretMissing").await;
    assert!(said.starts_with("spec.notifications.webhook.urlSecretRef: Secret nowhere is not there"), "{said}");
    queue.bring("disk.img", &guest(1, 95));
    queue.ended("disk.img", JobPhase::Succeeded).await;
}

#[tokio::test]
async fn of_those_who_want_one_directory_the_first_has_it_and_the_others_wait() {
    let Some(first) = Queue::open("first", json!({}), json!({})).await else { return };
    let said = storage(&first);
    // Another queue sees the same directories by a claim of its own.
    let second = first.beside("second").await;
    second.declare(&json!({}), &json!({}));
    // A pod made by hand, as the first one's stateful set makes them.
    let mut twin = first.api::<Pod>().get(&first.pod()).await.unwrap();
    twin.metadata = ObjectMeta { name: Some("twin".to_owned()), ..ObjectMeta::default() };
    twin.status = None;
    let spec = twin.spec.as_mut().unwrap();
    (spec.hostname, spec.node_name) = (None, None);
    first.api::<Pod>().create(&PostParams::default(), &twin).await.unwrap();
    let told = second.says("StorageReady", "False", "Locked").await;
    assert!(
        told.ends_with("is in use by first-watcher-0: give this queue directories of its own, or end the other"),
        "{told}"
    );
    // Whatever the twin reports of their queue, the holder of the locks reports last.
    let is_corrected = |said: &[String]| said.contains(&"Locked".to_owned()) && said.ends_with(&["Probed".to_owned()]);
    first.eventually("corrected", || is_corrected(&said.lock().unwrap())).await;

    first.bring("disk.img", &guest(1, 91));
    let over = first.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [None]);
    holds(&first.output(&over.status.unwrap().outputs[0].path), &guest(1, 91));
    first.counted([1, 0, 0, 0, 0]).await;
    assert_eq!((first.conversions().await.len(), second.conversions().await.len()), (1, 0));
    let log = run(first.kubectl().args(["logs", "twin", "-c", "watcher"]));
    assert!(log.contains("is in use by first-watcher-0"), "{log}");
}

/// The reasons that a queue's condition StorageReady has, one after the other.
fn storage(queue: &Queue) -> Arc<Mutex<Vec<String>>> {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&seen);
    let api = queue.api::<HyperConversion>();
    let of_queue = watcher::Config::default().fields(&format!("metadata.name={}", queue.name));
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(api, of_queue));
        while let Some(event) = events.next().await {
            let Ok(Event::Apply(queue) | Event::InitApply(queue)) = event else { continue };
            let conditions = queue.status.map(|status| status.conditions).unwrap_or_default();
            noted.lock().unwrap().extend(condition(&conditions, "StorageReady").map(|c| c.reason.clone()));
        }
    });
    seen
}
