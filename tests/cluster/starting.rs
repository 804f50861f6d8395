// SPDX-License-Identifier: Apache-2.0
//! What keeps an attempt from starting, and what starts it. The test acts as Kueue; images, nodes and volumes are
//! real.

mod watchers;

use std::time::{Duration, Instant};

use hyper2kvm::cluster::api::{ConversionJob, JobPhase, condition};
use hyper2kvm::cluster::controller::objects::Image;
use hyper2kvm::conversion::Reason;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::json;

use crate::controller::stage::Stage;
use crate::harness::{self, Cluster, Need, run};

/// Reason and message of the condition Converted.
fn converted(conversion: &ConversionJob) -> Option<(String, String)> {
    let condition = condition(&conversion.status.as_ref()?.conditions, "Converted")?;
    Some((condition.reason.clone(), condition.message.clone()))
}

fn reasons(conversion: &ConversionJob) -> Vec<Option<Reason>> {
    let attempts = conversion.status.iter().flat_map(|status| &status.state.attempts);
    attempts.map(|attempt| attempt.reason).collect()
}

fn has_job(conversion: &ConversionJob, attempts: usize) -> bool {
    let attempts_of = conversion.status.iter().flat_map(|status| &status.state.attempts);
    attempts_of.filter(|attempt| attempt.job_uid.is_some()).count() == attempts
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// Kueue's API group is served, without a controller behind it.
struct KueueServed(&'static Cluster);

impl KueueServed {
    fn start(cluster: &'static Cluster) -> Self {
        let names = json!({"plural": "localqueues", "singular": "localqueue", "kind": "LocalQueue"});
        let schema = json!({"openAPIV3Schema": {"type": "object"}});
        let version = json!({"name": "v1beta1", "served": true, "storage": true, "schema": schema});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "localqueues.kueue.x-k8s.io",
                         "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements"}},
            "spec": {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]},
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), definition.to_string()).unwrap();
        run(cluster.kubectl().args(["apply", "-f"]).arg(file.path()));
        while !cluster.kubectl().args(["get", "localqueues.kueue.x-k8s.io", "-A"]).output().unwrap().status.success() {
            std::thread::yield_now();
        }
        Self(cluster)
    }
}

impl Drop for KueueServed {
    fn drop(&mut self) {
        drop(self.0.kubectl().args(["delete", "crd", "localqueues.kueue.x-k8s.io", "--wait=false"]).output());
    }
}

#[tokio::test]
async fn without_kueue_a_job_waits_for_it_and_says_so() {
    let Some(stage) = Stage::open("no-kueue").await else { return };
    let worker = json!({"queueName": "migration", "nodeSelector": {"no": "where"},
                        "jobLabels": {"kueue.x-k8s.io/priority-class": "low"}});
    stage.queue("q", &json!({"worker": worker})).await;
    stage.conversion("web01-00000001", "q").await;
    stage.staged("web01-00000001", 1).await;
    // Another test may serve Kueue's group meanwhile.
    let waits = ["QueueMissing", "Suspended"];
    let missing = |c: &ConversionJob| converted(c).is_some_and(|(reason, _)| waits.contains(&reason.as_str()));
    stage.until::<ConversionJob>("web01-00000001", missing).await;
    let job = stage.get::<Job>("web01-00000001-1").await;
    assert!(is_suspended(&job));
    assert_eq!(job.labels().get("kueue.x-k8s.io/priority-class").map(String::as_str), Some("low"));
}

#[tokio::test]
async fn kueue_starts_jobs_and_stops_them_and_nobody_else_writes_to_them() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let _kueue = KueueServed::start(cluster);
    let Some(stage) = Stage::open("kueue").await else { return };
    let worker = json!({"queueName": "migration", "nodeSelector": {"no": "where"}});
    stage.queue("q", &json!({"worker": worker, "maxConcurrentJobs": 2})).await;
    for name in ["web01-00000001", "never-00000002", "third-00000003"] {
        stage.conversion(name, "q").await;
        stage.staged(name, 1).await;
        if name != "third-00000003" {
            stage.until::<ConversionJob>(name, |c| has_job(c, 1)).await;
        }
    }

    // Made suspended, with the label by which Kueue finds it. A suspended Job is reported as such, and holds its
    // slot.
    let job = stage.get::<Job>("web01-00000001-1").await;
    assert!(is_suspended(&job));
    assert_eq!(job.labels().get("kueue.x-k8s.io/queue-name").map(String::as_str), Some("migration"));
    let waits = |c: &ConversionJob| converted(c).is_some_and(|(reason, _)| reason == "Suspended");
    stage.until::<ConversionJob>("web01-00000001", waits).await;
    stage.until::<ConversionJob>("never-00000002", waits).await;
    let queued = |c: &ConversionJob| c.status.as_ref().and_then(|status| status.phase) == Some(JobPhase::Queued);
    stage.until::<ConversionJob>("third-00000003", queued).await;

    // Kueue chooses nodes and starts it. The template then differs from ours, which is allowed.
    let start = json!({"spec": {"suspend": false, "template": {"spec": {"nodeSelector": {"flavor": "spot"}}}}});
    stage.merge::<Job>("web01-00000001-1", &start).await;
    let pod = stage.run_pod("web01-00000001-1").await;
    let runs = |c: &ConversionJob| {
        let open = c.status.as_ref().and_then(|status| status.state.open_attempt().cloned());
        open.is_some_and(|open| open.pod_name.as_deref() == Some(pod.as_str()))
    };
    stage.until::<ConversionJob>("web01-00000001", runs).await;

    // A preemption: the attempt ends uncounted, and the next one waits for Kueue again.
    stage.merge::<Job>("web01-00000001-1", &json!({"spec": {"suspend": true}})).await;
    let ended = stage.until::<ConversionJob>("web01-00000001", |c| reasons(c) == [Some(Reason::Suspended)]).await;
    assert_eq!(ended.status.unwrap().attempt_count, Some(0));
    stage.gone::<Job>("web01-00000001-1").await;
    stage.staged("web01-00000001", 2).await;
    // Its slot goes to a conversion that has waited longer.
    stage.until::<ConversionJob>("third-00000003", |c| has_job(c, 1)).await;
    stage.merge::<Job>("third-00000003-1", &json!({"spec": {"suspend": false}})).await;
    stage.end_pod("third-00000003-1", 0, "").await;
    stage.until::<ConversionJob>("web01-00000001", |c| has_job(c, 2)).await;
    assert!(is_suspended(&stage.get::<Job>("web01-00000001-2").await));
    stage.merge::<Job>("web01-00000001-2", &start).await;
    stage.end_pod("web01-00000001-2", 0, "").await;
    let publishing =
        |c: &ConversionJob| c.status.as_ref().and_then(|status| status.phase) == Some(JobPhase::Publishing);
    stage.until::<ConversionJob>("web01-00000001", publishing).await;

    // A Job that is never started waits unchanged.
    let never = stage.get::<Job>("never-00000002-1").await;
    assert!(is_suspended(&never));
    let managers = never.managed_fields();
    let of_controller: Vec<_> =
        managers.iter().filter(|entry| entry.manager.as_deref() == Some("hyper2kvm-controller")).collect();
    assert_eq!((of_controller.len(), never.metadata.generation), (1, Some(1)));
    assert_eq!(of_controller[0].time, never.metadata.creation_timestamp);
    let waiting = stage.get::<ConversionJob>("never-00000002").await;
    assert_eq!((reasons(&waiting), waiting.status.as_ref().unwrap().attempt_count), (vec![None], Some(0)));
}

/// The report of a conversion whose worker doesn't start, and its delay after the pod or an event showed that.
async fn told(stage: &Stage, conversion: &str, reason: &str, cause: impl Fn(&Pod) -> bool + Send + Sync) -> String {
    let pod = stage.pod_of(&format!("{conversion}-1")).await;
    stage.until::<Pod>(&pod, |pod| cause(pod)).await;
    let since = Instant::now();
    let said = stage.until::<ConversionJob>(conversion, |c| converted(c).is_some_and(|(why, _)| why == reason)).await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    converted(&said).unwrap().1
}

/// Whether a container of the pod waits for an image that can't be pulled.
fn pulls(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let mut all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
    let why = all.find_map(|container| container.state?.waiting?.reason);
    why.is_some_and(|why| matches!(why.as_str(), "ErrImagePull" | "ImagePullBackOff"))
}

fn image(name: &str) -> Image {
    Image { name: name.to_owned(), pull_policy: "IfNotPresent".into() }
}

#[tokio::test]
async fn a_worker_whose_image_is_not_to_be_had_says_so_and_a_corrected_image_reaches_it() {
    // Nothing listens there.
    let wrong = image("127.0.0.1:9/hyper2kvm:1");
    let Some(mut stage) = Stage::open_where("image", Need::Node, wrong).await else { return };
    stage.namespace.volume("images", "ReadWriteMany");
    stage.queue("q", &json!({"worker": {}})).await;
    stage.conversion("web01-00000001", "q").await;
    stage.staged("web01-00000001", 1).await;
    let said = told(&stage, "web01-00000001", "WorkerImage", pulls).await;
    assert!(said.contains("ImagePull") && said.contains("127.0.0.1:9/hyper2kvm:1"), "{said}");
    assert!(said.contains("Check the image name and pull secrets"), "{said}");

    stage.replace_controller(image("127.0.0.1:9/hyper2kvm:2")).await;
    let over = stage.until::<ConversionJob>("web01-00000001", |c| reasons(c) == [Some(Reason::Superseded)]).await;
    assert_eq!(over.status.unwrap().attempt_count, Some(0));
    stage.gone::<Job>("web01-00000001-1").await;
    stage.staged("web01-00000001", 2).await;
    stage.until::<ConversionJob>("web01-00000001", |c| has_job(c, 2)).await;
    let job = stage.get::<Job>("web01-00000001-2").await;
    let containers = job.spec.unwrap().template.spec.unwrap().containers;
    assert_eq!(containers[0].image.as_deref(), Some("127.0.0.1:9/hyper2kvm:2"));
}

#[tokio::test]
async fn a_worker_that_no_node_takes_says_so_in_the_scheduler_s_words() {
    let Some(stage) = Stage::open("nowhere").await else { return };
    stage.queue("q", &json!({})).await;
    stage.conversion("web01-00000001", "q").await;
    stage.staged("web01-00000001", 1).await;
    let unschedulable = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "PodScheduled" && c.status == "False"))
    };
    let said = told(&stage, "web01-00000001", "Unschedulable", unschedulable).await;
    assert!(said.starts_with("Unschedulable: "), "{said}");
}

#[tokio::test]
async fn a_worker_whose_volume_can_not_be_mounted_says_so_in_the_kubelet_s_words() {
    let Some(stage) = Stage::open_where("mount", Need::Node, image("127.0.0.1:9/hyper2kvm:1")).await else { return };
    let namespace = &stage.namespace;
    let volume = format!("{}-images", namespace.name);
    namespace.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "PersistentVolume",
             "metadata": {"name": volume, "labels": {harness::TEST_LABEL: namespace.name}},
             "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                      "persistentVolumeReclaimPolicy": "Retain",
                      "hostPath": {"path": "/nowhere/images", "type": "Directory"},
                      "claimRef": {"namespace": namespace.name, "name": "images"}}},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "images"},
             "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": volume,
                      "resources": {"requests": {"storage": "1Gi"}}}},
        ]})
        .to_string(),
    );
    stage.queue("q", &json!({"worker": {}, "watcher": {}})).await;
    stage.conversion("web01-00000001", "q").await;
    stage.staged("web01-00000001", 1).await;
    // The kubelet's first message may be that it can't read the claim: the API server grants that a moment later.
    let words = "hostPath type check failed: /nowhere/images is not a directory";
    let worker = stage.pod_of("web01-00000001-1").await;
    let since = stage.first_event(&worker, "FailedMount", words).await;
    let says =
        |c: &ConversionJob| converted(c).is_some_and(|(why, said)| why == "Unschedulable" && said.contains(words));
    stage.until::<ConversionJob>("web01-00000001", says).await;
    let took = Timestamp::now().duration_since(since);
    assert!(took < SignedDuration::from_secs(10), "{took:?}");
    watchers::unavailable(&stage, "q", "Unschedulable", words).await;
}
