// SPDX-License-Identifier: Apache-2.0
//! A queue with more files than are claimed ahead, drained across a restart of its watcher. Nothing is converted.

use std::fs;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::Site;
use crate::controller::stage::Stage;
use crate::harness::{Cluster, Need};
use crate::support::protocol;

/// One more than `maxConcurrentJobs` and the artifacts that are claimed ahead.
const FILES: usize = 1 + 32 + 1;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_queued_when_draining_began_is_claimed_whoever_watches_and_what_came_since_is_not() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(stage) = Stage::empty("draining", Need::ControlPlane).await else { return };
    stage.queue("q", &json!({"maxConcurrentJobs": 1})).await;
    let uid = stage.get::<HyperConversion>("q").await.uid().unwrap();
    let site = Site::new();
    let queue = site.0.path().join("queue");
    let waiting = || -> Vec<String> {
        let names = fs::read_dir(&queue).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    };
    for n in 0..FILES {
        fs::write(queue.join(format!("disk{n}.img")), [7; 4096]).unwrap();
    }
    let namespace = stage.namespace.name.as_str();
    let [watcher, sidecar] = site.start(&cluster.kubeconfig, namespace, &uid);
    let shows = |figure: &str| protocol::ask(&site.socket(), b"stats").contains(figure);
    sidecar.until("queued", || shows(&format!("\"current_queue_depth\":{FILES},")));
    let last = waiting();
    assert_eq!(last.len(), 1, "{last:?}");
    // Another change in the same patch makes the watcher start a new engine.
    let change = json!({"spec": {"runState": "Draining", "companionTimeoutSeconds": 3601}});
    stage.merge::<HyperConversion>("q", &change).await;
    sidecar.until("draining", || shows("\"draining\":true,"));

    drop(watcher);
    fs::write(queue.join("late.img"), [7; 8192]).unwrap();
    let watcher = site.start_one("watcher", &cluster.kubeconfig, namespace, &uid);
    // Room for two.
    let conversions = stage.api::<ConversionJob>();
    for gone in &conversions.list(&ListParams::default()).await.unwrap().items[..2] {
        conversions.delete(&gone.name_any(), &DeleteParams::default()).await.unwrap();
    }
    watcher.until("drained but for what came late", || waiting() == ["late.img"]);
    watcher.until("all settled", || shows("\"settling\":0,"));
    let made = conversions.list(&ListParams::default()).await.unwrap().items;
    assert!(made.iter().any(|conversion| conversion.spec.source.path == last[0]), "{last:?}");
    assert_eq!((made.len(), waiting()), (FILES - 2, vec!["late.img".to_owned()]));
    // It does not wait for a slot.
    watcher.until("counted", || shows(&format!("\"current_queue_depth\":{},", FILES - 2)));

    // Draining begins anew while no watcher runs: files that came meanwhile count as queued.
    drop(watcher);
    for run_state in ["Running", "Draining"] {
        stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": run_state}})).await;
    }
    let watcher = site.start_one("watcher", &cluster.kubeconfig, namespace, &uid);
    watcher.until("drained of what came late", || waiting().is_empty());

    // The state that a watcher leaves if it dies before it recorded what is queued.
    drop(watcher);
    fs::remove_file(site.0.path().join("output/.daemon/draining.json")).unwrap();
    fs::write(queue.join("later.img"), [7; 12288]).unwrap();
    conversions.delete(&made[0].name_any(), &DeleteParams::default()).await.unwrap();
    let watcher = site.start_one("watcher", &cluster.kubeconfig, namespace, &uid);
    watcher.until("drained of what was there", || waiting().is_empty());
}
