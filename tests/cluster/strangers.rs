// SPDX-License-Identifier: Apache-2.0
//! Objects of others: those that bear the names of a queue's own, quotas, and namespaces that do not answer.

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, condition};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::Role;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::access;
use crate::controller::stage::Stage;
use crate::harness::{Cluster, Need, run};
use crate::replica::{Replica, kubeconfig_of};

/// Reason and message of a queue's condition.
fn said(queue: &HyperConversion, kind: &str) -> Option<(String, String)> {
    let condition = condition(&queue.status.as_ref()?.conditions, kind)?;
    Some((condition.reason.clone(), condition.message.clone()))
}

#[tokio::test]
async fn a_stranger_s_objects_of_a_queue_s_names_stay_as_they_are_and_the_queue_says_which() {
    let Some(stage) = Stage::open("strangers").await else { return };
    run(stage.namespace.kubectl().args(["create", "role", "batch-watcher", "--verb=get", "--resource=secrets"]));
    stage.namespace.apply(
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "batch-worker"},
                "spec": {"podSelector": {"matchLabels": {"app": "batch"}}, "policyTypes": ["Ingress"]}})
        .to_string(),
    );
    let theirs = (stage.get::<Role>("batch-watcher").await, stage.get::<NetworkPolicy>("batch-worker").await);
    stage.queue("batch", &json!({})).await;
    let taken = |queue: &HyperConversion| said(queue, "Ready").is_some_and(|(reason, _)| reason == "NameTaken");
    let queue = stage.until::<HyperConversion>("batch", taken).await;
    let (_, message) = said(&queue, "Ready").unwrap();
    assert!(message.contains("Role batch-watcher") || message.contains("NetworkPolicy batch-worker"), "{message}");
    let now = (stage.get::<Role>("batch-watcher").await, stage.get::<NetworkPolicy>("batch-worker").await);
    assert_eq!(now, theirs, "nothing of them was changed");
    assert!(!stage.exists::<ServiceAccount>("batch-watcher").await, "nothing was made beside them");
    assert!(!stage.exists::<StatefulSet>("batch-watcher").await);

    // The queue begins by itself when the names are free, and what it owns goes with it.
    stage.api::<Role>().delete("batch-watcher", &DeleteParams::default()).await.unwrap();
    stage.api::<NetworkPolicy>().delete("batch-worker", &DeleteParams::default()).await.unwrap();
    stage.until::<StatefulSet>("batch-watcher", |_| true).await;
    let role = stage.get::<Role>("batch-watcher").await;
    assert_eq!(role.owner_references()[0].uid, queue.uid().unwrap());
    // Made anew by a stranger, it is not applied to either.
    stage.api::<Role>().delete("batch-watcher", &DeleteParams::default()).await.unwrap();
    stage.until::<Role>("batch-watcher", |again| again.uid() != role.uid()).await;
}

#[tokio::test]
async fn a_quota_of_cpu_and_memory_admits_a_queue_and_its_workers_as_they_are() {
    let Some(stage) = Stage::open("quota").await else { return };
    let hard = "--hard=requests.cpu=4,requests.memory=4Gi,limits.cpu=8,limits.memory=8Gi";
    run(stage.namespace.kubectl().args(["create", "quota", "compute", hard]));
    stage.queue("q", &json!({})).await;
    stage.until::<Pod>("q-watcher-0", |_| true).await;
    for name in ["a-00000001", "b-00000002", "c-00000003"] {
        stage.conversion(name, "q").await;
        stage.staged(name, 1).await;
        stage.pod_of(&format!("{name}-1")).await;
    }
}

#[tokio::test]
async fn where_no_job_may_be_made_a_conversion_is_queued_and_its_queue_says_that_nothing_starts() {
    let Some(stage) = Stage::open("no-jobs").await else { return };
    stage.queue("q", &json!({})).await;
    run(stage.namespace.kubectl().args(["create", "quota", "none", "--hard=count/jobs.batch=0"]));
    run(stage.namespace.kubectl().args([
        "wait",
        "--for=jsonpath={.status.hard}",
        "--timeout=60s",
        "resourcequota/none",
    ]));
    stage.conversion("a-00000001", "q").await;
    stage.staged("a-00000001", 1).await;
    let of = |c: &ConversionJob, kind: &str| {
        let said = condition(&c.status.as_ref()?.conditions, kind)?;
        Some((said.status.clone(), said.reason.clone(), said.message.clone()))
    };
    let refused = |c: &ConversionJob| {
        of(c, "Admitted").is_some_and(|(status, reason, _)| status == "False" && reason == "Forbidden")
    };
    let conversion = stage.until::<ConversionJob>("a-00000001", refused).await;
    let (_, _, message) = of(&conversion, "Admitted").unwrap();
    assert!(message.contains("exceeded quota: none"), "{message}");
    assert_eq!(conversion.status.as_ref().unwrap().phase, Some(JobPhase::Queued));
    let (status, reason, _) = of(&conversion, "Converted").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "Pending"));
    let (_, reason, _) = of(&conversion, "Reconciling").unwrap();
    assert_eq!(reason, "Queued");
    let holds = |queue: &HyperConversion| {
        said(queue, "Admitting")
            .is_some_and(|(reason, message)| reason == "Forbidden" && message.contains("a-00000001"))
    };
    stage.until::<HyperConversion>("q", holds).await;

    // Once it may be made, it is, and nothing more is said.
    run(stage.namespace.kubectl().args(["delete", "quota", "none"]));
    let begun = |c: &ConversionJob| c.status.as_ref().unwrap().phase == Some(JobPhase::Converting);
    let conversion = stage.until::<ConversionJob>("a-00000001", begun).await;
    assert_eq!(of(&conversion, "Admitted").unwrap().1, "Admitted");
    assert_eq!(conversion.status.as_ref().unwrap().state.attempts.len(), 1, "the attempt was recorded once");
    stage.until::<HyperConversion>("q", |queue| said(queue, "Admitting").is_none()).await;
}

#[tokio::test]
async fn a_namespace_without_its_role_keeps_no_other_from_being_served_and_is_served_once_it_has_it() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let (Some(a), Some(b)) =
        (Stage::empty("served", Need::ControlPlane).await, Stage::empty("unserved", Need::ControlPlane).await)
    else {
        return;
    };
    let namespaces = [a.namespace.name.as_str(), b.namespace.name.as_str()];
    access::grant(cluster, &namespaces, false);
    run(b.namespace.kubectl().args(["delete", "role", "r-hyper2kvm-operator"]));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("kubeconfig");
    let credentials = kubeconfig_of(cluster, namespaces[0], "r-hyper2kvm-operator", &file);
    let replica = Replica::start(&credentials, &namespaces, "served", place.path());
    for stage in [&a, &b] {
        stage.queue("q", &json!({})).await;
    }
    a.until::<StatefulSet>("q-watcher", |_| true).await;
    replica.process.until("ready", || replica.is_ready());
    let served = |namespace: &str, value: u8| {
        let line = format!("hyper2kvm_namespace_served{{namespace=\"{namespace}\"}} {value}");
        replica.get("/metrics").is_some_and(|(_, text)| text.lines().any(|l| l == line))
    };
    assert!(served(namespaces[0], 1) && served(namespaces[1], 0));
    assert!(!b.exists::<StatefulSet>("q-watcher").await);
    access::grant(cluster, &namespaces, false);
    b.until::<StatefulSet>("q-watcher", |_| true).await;
    assert!(served(namespaces[1], 1));
}

#[tokio::test]
async fn an_attempt_whose_pod_is_gone_is_done_by_the_folder_of_that_pod() {
    let Some(stage) = Stage::open("witness").await else { return };
    stage.queue("q", &json!({})).await;
    stage.conversion("a-00000001", "q").await;
    stage.staged("a-00000001", 1).await;
    let open = |c: &ConversionJob| c.status.as_ref()?.state.open_attempt()?.pod_name.clone();
    let pod = stage.run_pod("a-00000001-1").await;
    stage.until::<ConversionJob>("a-00000001", |c| open(c).as_deref() == Some(pod.as_str())).await;
    // As the eviction API would: the pod was to go, and finished within its grace period.
    let disrupted = json!({"status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "lastTransitionTime": "2026-01-17T09:00:01Z",
    }]}});
    let params = kube::api::PatchParams::default();
    stage.api::<Pod>().patch_status(&pod, &params, &kube::api::Patch::Strategic(disrupted)).await.unwrap();
    stage.end_pod("a-00000001-1", 0, "").await;
    let done = |c: &ConversionJob| c.status.as_ref().and_then(|s| s.state.converted.clone());
    let done = stage.until::<ConversionJob>("a-00000001", |c| done(c).is_some()).await;
    assert_eq!(done.status.unwrap().state.converted, Some(pod));
}
