//! `helm upgrade` to another image while a queue is at work: nothing is lost, nothing is done twice.
#![cfg(feature = "cluster")]

#[path = "cluster/harness.rs"]
mod harness;
#[path = "cluster_conversion/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use harness::{Cluster, Need, in_tree, run};
use hyper2kvm::cluster::api::{HyperConversion, JobPhase};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;
use stage::{Queue, files};

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
    let Some(queue) = Queue::open("upgraded", settings, json!({})).await else { return };
    let cluster = Cluster::shared(Need::Node).expect("the queue was opened on it");
    let Some(state) = &cluster.state else { return harness::left_out("another's node takes no second image") };
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
