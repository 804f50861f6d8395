// SPDX-License-Identifier: Apache-2.0
//! The controller with a real API server, its Job controller and its scheduler; the tests act as watcher and kubelet.

mod by_hand;
pub(crate) mod delivery;
mod remedies;
pub(crate) mod stage;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, condition};
use hyper2kvm::cluster::controller::objects::Image;
use hyper2kvm::conversion::status::End;
use hyper2kvm::conversion::{Failure, Reason, TerminationMessage};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::DeleteParams;
use serde_json::json;

use stage::Stage;

fn saying(queue: &HyperConversion, kind: &str) -> Option<(String, String)> {
    let condition = condition(&queue.status.as_ref()?.conditions, kind)?;
    Some((condition.status.clone(), condition.reason.clone()))
}

fn converted(conversion: &ConversionJob) -> Option<(String, String)> {
    let condition = condition(&conversion.status.as_ref()?.conditions, "Converted")?;
    Some((condition.status.clone(), condition.reason.clone()))
}

fn phase(conversion: &ConversionJob) -> Option<JobPhase> {
    conversion.status.as_ref()?.phase
}

fn percent(conversion: &ConversionJob) -> Option<u8> {
    conversion.status.as_ref()?.progress.as_ref().map(|progress| progress.percent)
}

fn reasons(conversion: &ConversionJob) -> Vec<Option<Reason>> {
    let attempts = conversion.status.iter().flat_map(|status| &status.state.attempts);
    attempts.filter(|attempt| attempt.end_time.is_some()).map(|attempt| attempt.reason).collect()
}

fn job_uid(conversion: &ConversionJob) -> Option<String> {
    conversion.status.as_ref()?.state.attempts.last()?.job_uid.clone()
}

#[tokio::test]
async fn a_queue_gets_its_watcher_and_what_that_may_do() {
    let Some(stage) = Stage::open("queue").await else { return };
    stage.queue("vmware-exit", &json!({})).await;
    let watcher = "vmware-exit-watcher";
    stage.until::<StatefulSet>(watcher, |set| set.spec.as_ref().is_some_and(|spec| spec.replicas == Some(1))).await;
    stage
        .until::<HyperConversion>("vmware-exit", |queue| {
            saying(queue, "Ready") == Some(("False".into(), "WatcherUnavailable".into()))
                && saying(queue, "WatcherAvailable").is_some_and(|(status, _)| status == "False")
        })
        .await;
    for there in [
        stage.exists::<ServiceAccount>(watcher).await,
        stage.exists::<Role>(watcher).await,
        stage.exists::<RoleBinding>(watcher).await,
        stage.exists::<NetworkPolicy>(watcher).await,
        stage.exists::<NetworkPolicy>("vmware-exit-worker").await,
    ] {
        assert!(there);
    }
    let before = stage.get::<StatefulSet>(watcher).await.metadata.uid;
    stage.api::<StatefulSet>().delete(watcher, &DeleteParams::default()).await.unwrap();
    stage.until::<StatefulSet>(watcher, |set| set.metadata.uid != before).await;
}

fn replicas(set: &StatefulSet) -> Option<i32> {
    set.spec.as_ref().and_then(|spec| spec.replicas)
}

#[tokio::test]
async fn a_stopped_queue_gives_its_pod_up_once_nothing_is_left_to_do_and_has_it_back_when_it_goes_on() {
    let Some(mut stage) = Stage::open("rest").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({})).await;
    stage.watch("q", root.path()).await;
    std::fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    let running = stage.first_conversion().await;
    stage.until::<ConversionJob>(&running, |c| job_uid(c).is_some()).await;
    stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": "Stopped"}})).await;
    let stopped = ("False".to_owned(), "Stopped".to_owned());
    let rests = |queue: &HyperConversion| {
        ["Ready", "WatcherAvailable"].iter().all(|kind| saying(queue, kind).as_ref() == Some(&stopped))
    };
    stage.until::<HyperConversion>("q", rests).await;
    let ended = stage.get::<ConversionJob>(&running).await;
    assert_eq!(reasons(&ended), [Some(Reason::Disrupted)], "it had ended before the pod went");
    assert_eq!(replicas(&stage.get::<StatefulSet>("q-watcher").await), Some(0));
    // A controller that comes anew leaves it so, and takes up what changes.
    stage.replace_controller(Image { name: "example.com/hyper2kvm:2".into(), pull_policy: "Never".into() }).await;
    let image = |set: &StatefulSet| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
        template.and_then(|pod| pod.containers[0].image.clone())
    };
    let anew =
        stage.until::<StatefulSet>("q-watcher", |set| image(set).as_deref() == Some("example.com/hyper2kvm:2")).await;
    assert_eq!(replicas(&anew), Some(0));
    assert!(rests(&stage.get("q").await));
    stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": "Running"}})).await;
    stage.until::<StatefulSet>("q-watcher", |set| replicas(set) == Some(1)).await;
    stage.until::<ConversionJob>(&running, |c| c.status.as_ref().is_some_and(|s| s.state.attempts.len() == 2)).await;
    stage.until::<HyperConversion>("q", |queue| saying(queue, "Stopped").is_none() && !rests(queue)).await;
}

#[tokio::test]
async fn a_second_queue_on_the_same_directory_gets_a_condition_and_no_watcher() {
    let Some(stage) = Stage::open("taken").await else { return };
    stage.queue("a", &json!({})).await;
    stage.until::<StatefulSet>("a-watcher", |_| true).await;
    // Ages count in whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    stage.queue("b", &json!({"output": {"claimName": "other", "subPath": ""}})).await;
    stage
        .until::<HyperConversion>("b", |queue| {
            saying(queue, "Ready") == Some(("False".into(), "DirectoryTaken".into()))
        })
        .await;
    assert!(!stage.exists::<StatefulSet>("b-watcher").await);
}

#[tokio::test]
async fn a_staged_conversion_gets_one_job_and_its_pod_s_success_is_recorded_before_the_job_goes() {
    let Some(stage) = Stage::open("attempt").await else { return };
    stage.queue("q", &json!({})).await;
    stage.conversion("web01-3fa9c1d2", "q").await;
    stage.until::<ConversionJob>("web01-3fa9c1d2", |c| phase(c) == Some(JobPhase::Pending)).await;
    assert!(!stage.exists::<Job>("web01-3fa9c1d2-1").await, "not staged yet");
    stage.staged("web01-3fa9c1d2", 1).await;
    let started = stage.until::<ConversionJob>("web01-3fa9c1d2", |c| job_uid(c).is_some()).await;
    let job = stage.get::<Job>("web01-3fa9c1d2-1").await;
    assert_eq!(job_uid(&started), job.metadata.uid);
    assert_eq!(phase(&started), Some(JobPhase::Converting));
    // No node takes it: the scheduler's message is shown.
    let waiting = Some(("Unknown".to_owned(), "Unschedulable".to_owned()));
    stage.until::<ConversionJob>("web01-3fa9c1d2", |c| converted(c) == waiting).await;
    let pod = stage.end_pod("web01-3fa9c1d2-1", 0, "").await;
    let done = stage.until::<ConversionJob>("web01-3fa9c1d2", |c| phase(c) == Some(JobPhase::Publishing)).await;
    assert_eq!(done.status.unwrap().state.converted, Some(pod));
    stage.gone::<Job>("web01-3fa9c1d2-1").await;
}

#[tokio::test]
async fn a_transient_failure_is_retried_when_the_next_attempt_is_staged_and_a_permanent_one_ends_it() {
    let Some(stage) = Stage::open("retry").await else { return };
    stage.queue("q", &json!({"retryPolicy": {"retryDelaySeconds": 7}})).await;
    stage.conversion("a-00000001", "q").await;
    stage.staged("a-00000001", 1).await;
    stage.until::<ConversionJob>("a-00000001", |c| job_uid(c).is_some()).await;
    let message = |reason| TerminationMessage { contract_version: 1, failure: Failure::new(reason, "told") }.to_json();
    stage.end_pod("a-00000001-1", 12, &message(Reason::SourceIO)).await;
    let parked = stage.until::<ConversionJob>("a-00000001", |c| phase(c) == Some(JobPhase::Retrying)).await;
    let held = parked.status.unwrap().state;
    let ended = held.attempts[0].end_time.unwrap();
    assert_eq!(held.next_retry_time.unwrap().duration_since(ended).as_secs(), 7);
    assert!(!stage.exists::<Job>("a-00000001-2").await, "staged by the watcher alone");
    stage.staged("a-00000001", 2).await;
    stage
        .until::<ConversionJob>("a-00000001", |c| c.status.as_ref().is_some_and(|s| s.state.attempts.len() == 2))
        .await;
    stage.end_pod("a-00000001-2", 10, &message(Reason::Corrupt)).await;
    let over = stage.until::<ConversionJob>("a-00000001", |c| phase(c) == Some(JobPhase::Failed)).await;
    assert_eq!(reasons(&over), [Some(Reason::SourceIO), Some(Reason::Corrupt)]);
    assert_eq!(converted(&over), Some(("False".into(), "Corrupt".into())));
    let held = over.status.unwrap().state;
    assert_eq!((held.end, held.failure.unwrap().message.as_str()), (Some(End::Failed), "told"));
    assert!(stage.exists::<Job>("a-00000001-2").await, "kept an hour, for its log");
}

#[tokio::test]
async fn slots_are_given_oldest_first_and_stopping_ends_what_runs_uncounted() {
    let Some(stage) = Stage::open("slots").await else { return };
    stage.queue("q", &json!({"maxConcurrentJobs": 2})).await;
    let names = ["a-00000001", "b-00000002", "c-00000003", "d-00000004"];
    for name in names {
        stage.conversion(name, "q").await;
        stage.staged(name, 1).await;
    }
    for name in &names[..2] {
        stage.until::<ConversionJob>(name, |c| job_uid(c).is_some()).await;
    }
    for name in &names[2..] {
        stage.until::<ConversionJob>(name, |c| phase(c) == Some(JobPhase::Queued)).await;
        assert!(!stage.exists::<Job>(&format!("{name}-1")).await);
    }
    stage.end_pod("a-00000001-1", 0, "").await;
    stage.until::<ConversionJob>(names[2], |c| job_uid(c).is_some()).await;
    assert!(!stage.exists::<Job>("d-00000004-1").await);
    stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": "Stopped"}})).await;
    for name in &names[1..3] {
        let stopped = stage.until::<ConversionJob>(name, |c| !reasons(c).is_empty()).await;
        assert_eq!(reasons(&stopped), [Some(Reason::Disrupted)]);
        assert_eq!(stopped.status.unwrap().attempt_count, Some(0));
        stage.gone::<Job>(&format!("{name}-1")).await;
    }
    stage.merge::<HyperConversion>("q", &json!({"spec": {"runState": "Running"}})).await;
    stage.until::<ConversionJob>(names[3], |c| job_uid(c).is_some()).await;
    assert!(!stage.exists::<Job>("b-00000002-1").await, "its number is used up");
}

#[tokio::test]
async fn a_job_that_somebody_deleted_is_lost_and_never_made_again() {
    let Some(stage) = Stage::open("lost").await else { return };
    stage.queue("q", &json!({})).await;
    stage.conversion("a-00000001", "q").await;
    stage.staged("a-00000001", 1).await;
    stage.until::<ConversionJob>("a-00000001", |c| job_uid(c).is_some()).await;
    stage.api::<Job>().delete("a-00000001-1", &DeleteParams::background()).await.unwrap();
    let lost = stage.until::<ConversionJob>("a-00000001", |c| !reasons(c).is_empty()).await;
    assert_eq!(reasons(&lost), [Some(Reason::JobLost)]);
    assert!(!stage.exists::<Job>("a-00000001-1").await);
}

#[tokio::test]
async fn a_corrected_specification_replaces_a_job_that_never_ran() {
    let Some(stage) = Stage::open("superseded").await else { return };
    stage.queue("q", &json!({})).await;
    stage.conversion("a-00000001", "q").await;
    stage.staged("a-00000001", 1).await;
    stage.until::<ConversionJob>("a-00000001", |c| job_uid(c).is_some()).await;
    stage.merge::<HyperConversion>("q", &json!({"spec": {"worker": {"nodeSelector": {"else": "where"}}}})).await;
    let superseded = stage.until::<ConversionJob>("a-00000001", |c| !reasons(c).is_empty()).await;
    assert_eq!(reasons(&superseded), [Some(Reason::Superseded)]);
    stage.gone::<Job>("a-00000001-1").await;
    stage.staged("a-00000001", 2).await;
    stage
        .until::<ConversionJob>("a-00000001", |c| c.status.as_ref().is_some_and(|s| s.state.attempts.len() == 2))
        .await;
}

#[tokio::test]
async fn a_conversion_of_no_queue_says_so_until_there_is_one() {
    let Some(stage) = Stage::open("orphan").await else { return };
    stage.conversion("a-00000001", "nowhere").await;
    let admitted = |c: &ConversionJob| {
        let admitted = condition(&c.status.as_ref()?.conditions, "Admitted")?;
        Some((admitted.status.clone(), admitted.reason.clone(), admitted.message.clone()))
    };
    let says = |c: &ConversionJob, wanted: &str| admitted(c).is_some_and(|(_, reason, _)| reason == wanted);
    let refused = stage.until::<ConversionJob>("a-00000001", |c| says(c, "QueueNotFound")).await;
    let (status, _, message) = admitted(&refused).unwrap();
    assert!(
        status == "False" && message.starts_with("spec.queueRef.name: there is no HyperConversion nowhere"),
        "{message}"
    );
    stage.queue("nowhere", &json!({})).await;
    stage.until::<ConversionJob>("a-00000001", |c| says(c, "Pending")).await;
}

#[tokio::test]
async fn a_dropped_file_is_claimed_converted_published_and_archived() {
    let Some(stage) = Stage::open("drop").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({})).await;
    stage.watch("q", root.path()).await;
    stage
        .until::<HyperConversion>("q", |queue| {
            saying(queue, "StorageReady") == Some(("True".into(), "Probed".into()))
                && saying(queue, "NotificationsReady").is_some_and(|(status, _)| status == "True")
        })
        .await;
    std::fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    let name = stage.first_conversion().await;
    assert!(name.starts_with("web01-"), "{name}");
    let started = stage.until::<ConversionJob>(&name, |c| job_uid(c).is_some()).await;
    assert_eq!((started.spec.source.path.as_str(), started.spec.source.size_bytes), ("web01.img", Some(4096)));
    let job = format!("{name}-1");
    let pod = stage.run_pod(&job).await;
    let progress = json!({
        "contractVersion": 1, "stage": "copy", "bytesDone": 1024, "bytesTotal": 4096,
        "updatedTime": "2026-01-17T09:00:00Z",
    });
    std::fs::write(root.path().join(format!("output/.work/{name}/1/progress.json")), progress.to_string()).unwrap();
    stage.until::<ConversionJob>(&name, |c| percent(c) == Some(25)).await;
    let folder = root.path().join(format!("output/.work/{name}/1/{pod}"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("web01.qcow2"), [8; 512]).unwrap();
    let metadata = json!({
        "contractVersion": 1, "id": name, "toolVersion": "0", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": "web01.img", "sizeBytes": 4096, "format": "raw"},
        "disks": [{"file": "web01.qcow2", "format": "qcow2", "virtualSizeBytes": 4096, "allocatedBytes": 512, "sourceMember": "web01.img"}],
    });
    std::fs::write(folder.join("metadata.json"), metadata.to_string()).unwrap();
    stage.end_pod(&job, 0, "").await;
    let over = stage.until::<ConversionJob>(&name, |c| phase(c) == Some(JobPhase::Succeeded)).await;
    let status = over.status.unwrap();
    let succeeded = condition(&status.conditions, "Succeeded").unwrap();
    assert_eq!((succeeded.status.as_str(), succeeded.reason.as_str()), ("True", "Succeeded"));
    assert_eq!(status.progress.map(|progress| progress.percent), Some(100));
    let output = &status.outputs[0];
    let claimed = started.metadata.creation_timestamp.unwrap().0.to_zoned(jiff::tz::TimeZone::UTC).date();
    assert_eq!(output.path, format!("{claimed}/web01/web01.qcow2"));
    assert_eq!(std::fs::read(root.path().join("output").join(&output.path)).unwrap(), [8; 512]);
    let archived = root.path().join("queue").join(status.source_location.unwrap());
    assert_eq!(std::fs::read(archived).unwrap(), [7; 4096]);
    stage
        .until::<HyperConversion>("q", |queue| {
            let totals = queue.status.as_ref().and_then(|status| status.totals);
            totals.is_some_and(|totals| totals.succeeded == 1)
        })
        .await;
}

#[tokio::test]
async fn a_conversion_that_is_deleted_under_way_leaves_its_source_in_errors() {
    let Some(stage) = Stage::open("deleted").await else { return };
    let root = tempfile::tempdir().unwrap();
    stage.queue("q", &json!({})).await;
    stage.watch("q", root.path()).await;
    stage.until::<HyperConversion>("q", |queue| saying(queue, "StorageReady").is_some()).await;
    std::fs::write(root.path().join("queue/web01.img"), [7; 4096]).unwrap();
    let name = stage.first_conversion().await;
    stage.until::<ConversionJob>(&name, |c| job_uid(c).is_some()).await;
    stage.api::<ConversionJob>().delete(&name, &DeleteParams::default()).await.unwrap();
    stage.gone::<Job>(&format!("{name}-1")).await;
    stage
        .until::<HyperConversion>("q", |queue| {
            let totals = queue.status.as_ref().and_then(|status| status.totals);
            totals.is_some_and(|totals| totals.cancelled == 1)
        })
        .await;
    assert_eq!(stage.file(&root.path().join("queue/.errors/web01.img")).await, [7; 4096]);
}
