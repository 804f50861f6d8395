// SPDX-License-Identifier: Apache-2.0
//! What keeps a queue's watcher from running, and how its `HyperConversion` shows that.

use std::time::{Duration, Instant};

use hyper2kvm::cluster::api::{HyperConversion, condition};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{image, pulls};
use crate::controller::stage::Stage;
use crate::harness::Need;

/// The message of the condition `WatcherAvailable`, once it has this reason and the message contains `words`.
pub(super) async fn unavailable(stage: &Stage, queue: &str, reason: &str, words: &str) -> String {
    let message = |queue: &HyperConversion| {
        let said = condition(&queue.status.as_ref()?.conditions, "WatcherAvailable")?.clone();
        (said.status == "False" && said.reason == reason && said.message.contains(words)).then_some(said.message)
    };
    let said = stage.until::<HyperConversion>(queue, |queue| message(queue).is_some()).await;
    let ready = condition(&said.status.as_ref().unwrap().conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "WatcherUnavailable"));
    message(&said).unwrap()
}

/// A queue with a watcher that any node may take.
async fn queue(stage: &Stage, name: &str, spec: Value) {
    let path = |directory: &str| json!({"claimName": "images", "subPath": format!("{name}/{directory}")});
    let mut whole = json!({"watcher": {}, "queue": path("queue"), "output": path("output")});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    stage.queue(name, &whole).await;
}

#[tokio::test]
async fn a_watcher_whose_image_or_claim_is_not_to_be_had_says_so() {
    // Nothing listens there.
    let Some(stage) = Stage::open_where("watcher-image", Need::Node, image("127.0.0.1:9/hyper2kvm:1")).await else {
        return;
    };
    stage.namespace.volume("images", "ReadWriteMany");
    queue(&stage, "image", json!({})).await;
    let nowhere = |directory: &str| json!({"claimName": "nowhere", "subPath": directory});
    queue(&stage, "claim", json!({"queue": nowhere("queue"), "output": nowhere("output")})).await;
    let said = unavailable(&stage, "claim", "Unschedulable", "persistentvolumeclaim \"nowhere\" not found").await;
    assert!(said.ends_with("and that a node has what the pod asks for"), "{said}");
    stage.until::<Pod>("image-watcher-0", pulls).await;
    let since = Instant::now();
    let said = unavailable(&stage, "image", "WatcherImage", "ImagePull").await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(
        said.contains("127.0.0.1:9/hyper2kvm:1") && said.ends_with("Check the image name and pull secrets"),
        "{said}"
    );
}

#[tokio::test]
async fn a_watcher_that_may_not_start_or_does_not_stay_says_how_that_ended() {
    // An image of another program, present on the node, and without a user.
    let Some(stage) = Stage::open_where("watcher-crash", Need::OwnNode, image("localhost/pause:1")).await else {
        return;
    };
    stage.namespace.volume("images", "ReadWriteMany");
    queue(&stage, "root", json!({})).await;
    queue(&stage, "crash", json!({"securityContext": {"runAsUser": 1000}})).await;
    let said = unavailable(&stage, "root", "WatcherConfig", "CreateContainerConfigError").await;
    assert!(said.contains("image will run as root") && said.contains("Check the queue's securityContext"), "{said}");
    let said = unavailable(&stage, "crash", "Crashing", "container sidecar ended with exit code 128").await;
    assert!(said.contains("hyper2kvm-operator"), "{said}");
    assert!(said.ends_with("Read its log: kubectl logs crash-watcher-0 -c sidecar"), "{said}");
}

#[tokio::test]
async fn a_watcher_whose_pod_is_refused_says_so_in_the_words_of_who_refused_it() {
    let Some(stage) = Stage::open("watcher-quota").await else { return };
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
    stage.namespace.apply(&quota.to_string());
    queue(&stage, "q", json!({})).await;
    let since = stage.first_event("q-watcher", "FailedCreate", "quota").await;
    let said = unavailable(&stage, "q", "WatcherConfig", "is forbidden: ").await;
    let took = Timestamp::now().duration_since(since);
    assert!(took < SignedDuration::from_secs(10), "{took:?}");
    assert!(
        said.contains("quota")
            && said.contains("Check the queue's securityContext and spec.watcher.resources and ")
            && said.ends_with("the namespace's quotas, limits and pod security level"),
        "{said}"
    );
}
