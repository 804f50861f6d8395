// SPDX-License-Identifier: Apache-2.0
//! What administrators do with a queue at work: `helm upgrade` to another image, and deleting its namespace. Nothing
//! is lost, nothing is done twice.

mod stored;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use hyper2kvm::cluster::api::{HyperConversion, JobPhase};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;

use crate::conversion::stage::{Operator, Queue, files, runs};
use crate::harness::{Cluster, Need, in_tree, run};

const DISKS: u8 = 16;

/// A disk that no other one equals.
fn disk(number: u8) -> Vec<u8> {
    (0..1 << 20).map(|position: u32| position.to_le_bytes()[1].wrapping_mul(7) ^ number).collect()
}

fn image_of(set: &StatefulSet) -> Option<String> {
    set.spec.as_ref()?.template.spec.as_ref()?.containers[0].image.clone()
}

#[tokio::test]
async fn an_upgrade_under_way_loses_and_doubles_nothing_and_reaches_the_watcher() {
    let settings = json!({"maxConcurrentJobs": 2, "conversion": {"outFormat": "raw"}});
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(operator) = Operator::own("upgraded") else { return };
    let queue = Queue::open_with(&operator, "upgraded", &settings, &json!({})).await;
    let state = cluster.state.as_ref().expect("it is ours");
    let image = cluster.image().expect("the queue runs it");
    let (repository, tag) = image.rsplit_once(':').expect("the image has a tag");
    let newer = format!("{tag}-newer");
    let socket = state.join("run/containerd.sock");
    run(Command::new("ctr")
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "images", "tag", "--force", &image])
        .arg(format!("{repository}:{newer}")));

    for number in 0..DISKS {
        queue.bring(&format!("disk{number}.img"), &disk(number));
    }
    let active = |queue: &HyperConversion| queue.status.as_ref().and_then(|status| status.active) == Some(2);
    queue.until::<HyperConversion>("upgraded", "at work", active).await;
    let name = &queue.operator.namespace.name;
    run(cluster
        .helm()
        .args(["upgrade", name, "--namespace", name, "--reuse-values", "--wait"])
        .arg(format!("--set=image.tag={newer}"))
        .arg(in_tree("charts/hyper2kvm-operator")));
    let open =
        queue.conversions().await.iter().filter(|c| !c.status.as_ref().is_some_and(|s| s.state.is_terminal())).count();
    assert!(open > 0, "the upgrade came when all was over");
    let image = format!("{repository}:{newer}");
    queue
        .until::<StatefulSet>("upgraded-watcher", "of the new image", |set| image_of(set).as_ref() == Some(&image))
        .await;

    let mut published = BTreeSet::new();
    for number in 0..DISKS {
        let source = format!("disk{number}.img");
        let over = queue.ended(&source, JobPhase::Succeeded).await.status.unwrap();
        let reasons: Vec<_> = over.state.attempts.iter().filter_map(|attempt| attempt.reason).collect();
        assert!(reasons.iter().all(|reason| *reason == Reason::Superseded), "{source}: {reasons:?}");
        assert!(fs::read(queue.output(&over.outputs[0].path)).unwrap() == disk(number), "{source}");
        published.insert(over.outputs[0].path.clone());
    }
    assert_eq!((published.len(), queue.conversions().await.len()), (16, 16));
    queue.counted([16, 0, 0, 0, 0]).await;
    let disks = files(&queue.volume.join("output")).iter().filter(|path| path.contains(".raw")).count();
    assert_eq!(disks, 16);
    assert_eq!(files(&queue.queue(".processed")).len(), 16);
    run(queue.kubectl().args(["rollout", "status", "--timeout=90s", "statefulset/upgraded-watcher"]));
}

#[tokio::test]
async fn a_namespace_that_is_deleted_goes_and_its_files_stay() {
    let Some(cluster) = Cluster::shared(Need::Node) else { return };
    let Some(image) = cluster.image() else { return };
    let (watched, release) = (cluster.namespace("leaving"), cluster.namespace("staying"));
    let operator = Arc::new(Operator::install(cluster, &image, watched, Some(release)));
    let queue = Queue::prepare(&operator, "leaving", (65532, 0)).await;
    queue.declare(&json!({"maxConcurrentJobs": 1, "conversion": {"outFormat": "raw"}}), &json!({}));
    queue.ready();
    queue.bring("done.img", &disk(1));
    let published = queue.ended("done.img", JobPhase::Succeeded).await.status.unwrap().outputs[0].path.clone();
    queue.patch(&json!({"metadata": {"annotations": {"test.hyper2kvm.io/hang": "1"}}}));
    queue.bring("running.img", &disk(2));
    queue.conversion("running.img", "running", runs).await;
    queue.bring("waiting.img", &disk(3));
    queue.conversion("waiting.img", "made", |_| true).await;

    let name = &operator.namespace.name;
    run(cluster.kubectl().args(["delete", "namespace", name, "--timeout=60s"]));
    let sources = files(&queue.queue(""));
    for (name, number) in [("done.img", 1), ("running.img", 2), ("waiting.img", 3)] {
        let places: Vec<_> =
            sources.iter().filter(|path| path.ends_with(&format!("/{name}")) || *path == name).collect();
        assert_eq!(places.len(), 1, "{name}: {sources:?}");
        assert!(fs::read(queue.queue(places[0])).unwrap() == disk(number), "{name}");
    }
    assert!(fs::read(queue.output(&published)).unwrap() == disk(1));
    // Its watchers go on, although they may request nothing of it any more.
    let path = "jsonpath={.items[*].status.containerStatuses[*]['ready','restartCount']}";
    let pods = run(operator.release().kubectl().args(["get", "pods", "-o", path]));
    assert_eq!(pods, "true 0");
}
