// SPDX-License-Identifier: Apache-2.0
//! Conversions that a person requests by creating an object.

use std::fs;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, condition};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{job_uid, phase, saying};
use crate::controller::stage::Stage;

/// Reason and message of the condition Admitted.
fn admitted(conversion: &ConversionJob) -> Option<(&str, &str)> {
    let condition = condition(&conversion.status.as_ref()?.conditions, "Admitted")?;
    Some((&condition.reason, &condition.message))
}

/// Makes a conversion of `web01.img` with this metadata and these further fields in its specification.
async fn make(stage: &Stage, metadata: Value, further: &Value) {
    let mut spec = json!({"queueRef": {"name": "q"}, "source": {"path": "web01.img"}});
    spec.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    let object = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    stage.api::<ConversionJob>().create(&PostParams::default(), &object).await.unwrap();
}

#[tokio::test]
async fn a_conversion_made_by_hand_takes_its_path_before_the_scan_does_and_an_unfit_one_ends() {
    let Some(stage) = Stage::open("by-hand").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({})).await;
    stage.watch("q", root.path()).await;
    stage.until::<HyperConversion>("q", |queue| saying(queue, "StorageReady").is_some()).await;
    let queue = root.path().join("queue");
    fs::create_dir_all(queue.join(".processed/2026-01-17")).unwrap();
    fs::write(queue.join(".processed/2026-01-17/web01.img"), [7; 4096]).unwrap();
    stage.request("again", "q", ".processed/2026-01-17/web01.img").await;
    stage.request("mine", "q", "web02.img").await;
    stage.request("linked", "q", "link/web01.img").await;
    std::os::unix::fs::symlink(".processed/2026-01-17", queue.join("link")).unwrap();
    fs::write(queue.join("web02.img"), [8; 4096]).unwrap();
    for (name, file) in [("again", "web01.img"), ("mine", "web02.img")] {
        stage.until::<ConversionJob>(name, |c| job_uid(c).is_some()).await;
        assert!(queue.join(".processing").join(name).join(file).exists(), "{file}");
    }
    let linked = stage.until::<ConversionJob>("linked", |c| phase(c) == Some(JobPhase::Failed)).await;
    let status = linked.status.unwrap();
    assert_eq!(status.state.failure.map(|failure| failure.reason), Some(Reason::UnsafeReference));
    let told = &condition(&status.conditions, "Succeeded").unwrap().message;
    assert!(told.ends_with(". Consolidate snapshots and export one self-contained disk"), "{told}");
    let all = stage.api::<ConversionJob>().list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 3, "the scan took what was asked for");
    stage.api::<ConversionJob>().delete("again", &DeleteParams::default()).await.unwrap();
    stage.gone::<Job>("again-1").await;
    stage
        .until::<HyperConversion>("q", |queue| {
            let totals = queue.status.as_ref().and_then(|status| status.totals);
            totals.is_some_and(|totals| totals.cancelled == 1)
        })
        .await;
    assert_eq!(stage.file(&queue.join(".errors/web01.img")).await, [7; 4096]);
}

#[tokio::test]
async fn a_conversion_made_by_hand_goes_with_its_queue() {
    let Some(stage) = Stage::open("owned").await else { return };
    stage.queue("q", &json!({})).await;
    let queue = stage.get::<HyperConversion>("q").await;
    let mut former = queue.owner_ref(&()).unwrap();
    former.uid = "earlier".into();
    make(&stage, json!({"name": "former", "ownerReferences": [former]}), &json!({})).await;
    stage.request("mine", "q", "web01.img").await;
    let is_owned =
        |c: &ConversionJob| c.owner_references().iter().any(|owner| Some(&owner.uid) == queue.uid().as_ref());
    let owned = stage.until::<ConversionJob>("mine", is_owned).await;
    assert_eq!(owned.spec.source.path, "web01.img");
    stage.gone::<ConversionJob>("former").await;
    stage.api::<HyperConversion>().delete("q", &DeleteParams::default()).await.unwrap();
    stage.gone::<ConversionJob>("mine").await;
}

#[tokio::test]
async fn an_object_of_the_queue_that_no_claim_stands_for_is_taken_up() {
    let Some(stage) = Stage::open("orphan").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({})).await;
    // As `kubectl get -o yaml` shows one, and as it remains when its claim and the ledger are lost.
    let owner = stage.get::<HyperConversion>("q").await.controller_owner_ref(&()).unwrap();
    make(&stage, json!({"name": "copied", "ownerReferences": [owner]}), &json!({})).await;
    make(&stage, json!({"name": "repeated"}), &json!({"duplicateOf": "web01.img"})).await;
    fs::create_dir_all(root.path().join("queue")).unwrap();
    fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    stage.watch("q", root.path()).await;
    stage.until::<ConversionJob>("copied", |c| job_uid(c).is_some()).await;
    assert!(root.path().join("queue/.processing/copied/web01.img").exists());
    let over = stage.until::<ConversionJob>("repeated", |c| phase(c) == Some(JobPhase::Cancelled)).await;
    let told = over.status.unwrap().state.failure.unwrap().message;
    assert!(told.starts_with("spec.duplicateOf is for conversions that the queue finds to be repeated"), "{told}");
}

#[tokio::test]
async fn what_is_asked_of_a_queue_that_is_stopped_or_drains_or_pauses_says_so() {
    let Some(stage) = Stage::open("held").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({"runState": "Stopped"})).await;
    stage.watch("q", root.path()).await;
    stage.request("mine", "q", "web01.img").await;
    for state in ["Stopped", "Draining", "Paused"] {
        stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": state}})).await;
        let says = |c: &ConversionJob| admitted(c).is_some_and(|(reason, _)| reason == state);
        let held = stage.until::<ConversionJob>("mine", says).await;
        let (_, message) = admitted(&held).unwrap();
        assert!(message.contains("once spec.runState of its HyperConversion is Running"), "{message}");
    }
    fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": "Running"}})).await;
    stage.until::<ConversionJob>("mine", |c| job_uid(c).is_some()).await;
    assert_eq!(admitted(&stage.get("mine").await).map(|(reason, _)| reason), Some("Admitted"));
}
