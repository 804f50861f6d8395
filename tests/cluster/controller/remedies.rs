// SPDX-License-Identifier: Apache-2.0
//! A watcher that meets a problem at its start reports it, stays, and goes on once it is mended.

use std::fs;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, condition};
use hyper2kvm::cluster::controller::objects::Image;
use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::json;

use super::{phase, saying};
use crate::controller::stage::Stage;
use crate::harness::{Need, left_out};

/// The message of a condition, once it has this status and reason.
async fn says(stage: &Stage, kind: &str, status: &str, reason: &str) -> String {
    let wanted = (status.to_owned(), reason.to_owned());
    let queue = stage.until::<HyperConversion>("q", |queue| saying(queue, kind).as_ref() == Some(&wanted)).await;
    condition(&queue.status.unwrap().conditions, kind).unwrap().message.clone()
}

#[tokio::test]
async fn a_ledger_that_is_damaged_or_newer_is_a_condition_until_it_is_moved_aside() {
    let Some(stage) = Stage::open("ledger").await else { return };
    let root = tempfile::tempdir().unwrap();
    let daemon = root.path().join("output/.daemon");
    let ledger = daemon.join("deduplication.db");
    fs::create_dir_all(&daemon).unwrap();
    fs::write(&ledger, [0x5a; 8192]).unwrap();
    stage.queue("q", &json!({"fileStableTimeoutSeconds": 1})).await;
    stage.watch("q", root.path()).await;
    let said = says(&stage, "StorageReady", "False", "LedgerUnusable").await;
    assert!(said.contains("output/.daemon/deduplication.db is damaged") && said.contains("move it aside"), "{said}");
    assert_eq!(fs::read(&ledger).unwrap(), [0x5a; 8192], "it is left as it is");

    fs::rename(&ledger, daemon.join("damaged.db")).unwrap();
    Connection::open(daemon.join("newer.db")).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    fs::rename(daemon.join("newer.db"), &ledger).unwrap();
    let newer = |queue: &HyperConversion| {
        let storage = queue.status.as_ref().and_then(|status| condition(&status.conditions, "StorageReady"));
        storage.is_some_and(|said| said.message.contains("schema version 99, this program knows 1"))
    };
    stage.until::<HyperConversion>("q", newer).await;

    fs::remove_file(&ledger).unwrap();
    says(&stage, "StorageReady", "True", "Probed").await;
    fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    assert!(stage.first_conversion().await.starts_with("web01-"));

    // Nor does it lose anything when the ledger is damaged while it works.
    fs::write(&ledger, [0x5a; 8192]).unwrap();
    fs::write(root.path().join("queue/web02.img"), [8; 4096]).unwrap();
    let said = says(&stage, "StorageReady", "False", "LedgerUnusable").await;
    assert!(said.contains("is damaged") && said.contains("move it aside"), "{said}");
    fs::remove_file(&ledger).unwrap();
    says(&stage, "StorageReady", "True", "Probed").await;
    let made = |source: &'static str| move |all: &[ConversionJob]| all.iter().any(|c| c.spec.source.path == source);
    let conversions = stage.conversions_once(made("web02.img")).await;
    assert!(conversions.len() == 2 && made("web01.img")(&conversions), "{conversions:#?}");
    assert!(conversions.iter().all(|c| phase(c) != Some(JobPhase::Cancelled)), "{conversions:#?}");
}

#[tokio::test]
async fn a_specification_that_only_an_older_schema_let_in_is_a_condition_until_it_is_corrected() {
    let Some(mut stage) = Stage::empty("older-schema", Need::ControlPlane).await else { return };
    let root = tempfile::tempdir().unwrap();
    let image = Image { name: "example.com/hyper2kvm:1".into(), pull_policy: "Never".into() };
    stage.queue("q", &json!({"fileStableTimeoutSeconds": 1})).await;
    if !stage.namespace.store("q", r#""maxVirtualSize":"64Ti""#, r#""maxVirtualSize":"64 TB""#) {
        return left_out("what only an older schema lets in: another's cluster stores it");
    }
    stage.replace_controller(image.clone()).await;
    let said = says(&stage, "Ready", "False", "InvalidSpec").await;
    assert!(said.starts_with("spec.conversion.maxVirtualSize: \"64 TB\" is no size: a whole number"), "{said}");
    stage.watch("q", root.path()).await;
    // The volumes are checked; the queue isn't.
    stage.file(&root.path().join("output/.daemon/deduplication.db")).await;
    fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    let spec = json!({"spec": {"conversion": {"maxVirtualSize": "64Ti"}}});
    stage.merge::<HyperConversion>("q", &spec).await;
    assert!(stage.first_conversion().await.starts_with("web01-"));
    says(&stage, "Ready", "False", "WatcherUnavailable").await;

    // Nor does a bad specification end a watcher that works.
    stage.namespace.store("q", r#""backoffMultiplier":"2.0""#, r#""backoffMultiplier":"x2""#);
    stage.replace_controller(image).await;
    let said = says(&stage, "Ready", "False", "InvalidSpec").await;
    assert_eq!(said, "spec.retryPolicy.backoffMultiplier: \"x2\" is no number from 1 to 10");
    fs::write(root.path().join("queue/web02.img"), [8; 4096]).unwrap();
    let spec = json!({"spec": {"retryPolicy": {"backoffMultiplier": "2.0"}}});
    stage.merge::<HyperConversion>("q", &spec).await;
    stage.conversions_once(|all| all.len() == 2).await;
}

#[tokio::test]
async fn a_pod_that_kubernetes_refuses_is_a_condition_that_names_its_part_of_the_specification() {
    let Some(stage) = Stage::open("pods").await else { return };
    let too_much = json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}});
    stage.queue("q", &json!({"worker": {"resources": too_much}})).await;
    let said = says(&stage, "Ready", "False", "InvalidSpec").await;
    assert!(said.starts_with("spec.worker: Kubernetes refuses the pod that it asks for: Job"), "{said}");
    assert!(
        said.contains("must be less than or equal to memory limit") && said.ends_with("correct it there"),
        "{said}"
    );

    let watcher = json!({"tolerations": [{"operator": "Exists", "value": "no"}]});
    let spec = json!({"spec": {"worker": {"resources": {"requests": null}}, "watcher": watcher}});
    stage.merge::<HyperConversion>("q", &spec).await;
    let names_watcher = |queue: &HyperConversion| {
        let ready = queue.status.as_ref().and_then(|status| condition(&status.conditions, "Ready"));
        ready.is_some_and(|said| said.message.starts_with("spec.watcher: Kubernetes refuses the pod"))
    };
    stage.until::<HyperConversion>("q", names_watcher).await;
    stage.merge::<HyperConversion>("q", &json!({"spec": {"watcher": {"tolerations": null}}})).await;
    says(&stage, "Ready", "False", "WatcherUnavailable").await;
}

#[tokio::test]
async fn a_secret_that_is_missing_is_a_condition_until_it_is_there() {
    let Some(stage) = Stage::open("secret").await else { return };
    let root = tempfile::tempdir().unwrap();
    // As the kubelet mounts an optional Secret that does not exist.
    let mounted = root.path().join("secrets/webhook");
    fs::create_dir_all(&mounted).unwrap();
    let webhook = json!({"type": "generic", "urlSecretRef": {"name": "hooks", "key": "address"}});
    stage.queue("q", &json!({"notifications": {"webhook": webhook}})).await;
    stage.watch("q", root.path()).await;
    let said = says(&stage, "NotificationsReady", "False", "SecretMissing").await;
    assert_eq!(
        said,
        "spec.notifications.webhook.urlSecretRef: Secret hooks is not there, or has no key address: create it, and it is \
         used within two minutes"
    );
    says(&stage, "StorageReady", "True", "Probed").await;
    fs::write(mounted.join("url"), "http://127.0.0.1:9/hook\n").unwrap();
    says(&stage, "NotificationsReady", "True", "Configured").await;
}

#[tokio::test]
async fn a_duplicate_whose_names_are_longer_than_its_object_holds_is_reported_all_the_same() {
    let Some(stage) = Stage::open("long-name").await else { return };
    let root = tempfile::tempdir().unwrap();
    let daemon = root.path().join("output/.daemon");
    fs::create_dir_all(&daemon).unwrap();
    let (name, now) = (format!("{}.img", "n".repeat(200)), Timestamp::now());
    // As the original program makes it.
    let before = Connection::open(daemon.join("deduplication.db")).unwrap();
    before
        .execute_batch(&format!(
            "CREATE TABLE processed_files (id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL,
                 filepath TEXT NOT NULL, file_size INTEGER NOT NULL, md5_hash TEXT, processed_at TEXT NOT NULL,
                 output_path TEXT, status TEXT NOT NULL, UNIQUE(filename, file_size));
             INSERT INTO processed_files(filename, filepath, file_size, processed_at, output_path, status)
             VALUES ('{name}', '/queue/{name}', 4096, '{now:.6}', '/output/2026-01-17/{name}', 'success');"
        ))
        .unwrap();
    drop(before);
    stage.queue("q", &json!({"fileStableTimeoutSeconds": 1})).await;
    stage.watch("q", root.path()).await;
    says(&stage, "StorageReady", "True", "Probed").await;
    fs::write(root.path().join("queue").join(&name), [7; 4096]).unwrap();
    let conversion = stage.first_conversion().await;
    // Phase and conditions are two writes, in either order.
    let is_over = |c: &ConversionJob| {
        let duplicate_of = c.status.as_ref().and_then(|status| status.duplicate_of.as_ref());
        phase(c) == Some(JobPhase::Duplicate) && duplicate_of.is_some()
    };
    let over = stage.until::<ConversionJob>(&conversion, is_over).await;
    let told = over.status.unwrap().duplicate_of.unwrap();
    assert!(told.len() == 253 && told.starts_with(&format!("{name} of {now:.6}")), "{told}");
}
