// SPDX-License-Identifier: Apache-2.0
//! `queueDefaults` of the chart, installed by the real Helm: what a queue leaves out, and what it says itself.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

use crate::conversion::stage::{Operator, Queue, Release, runs};
use crate::harness::{Cluster, Need, run};

fn variable(container: &Container, name: &str) -> Option<String> {
    let variables = container.env.as_ref()?;
    variables.iter().find(|variable| variable.name == name)?.value.clone()
}

#[tokio::test]
async fn a_queue_gets_what_the_release_sets_where_it_says_nothing_itself() {
    let Some(cluster) = Cluster::shared(Need::Node) else { return };
    let Some(image) = cluster.image() else { return };
    let (release, watched) = (Arc::new(cluster.namespace("defaults")), cluster.namespace("defaulted"));
    let defaults = json!({
        "worker": {
            "labels": {"team": "storage"}, "nodeSelector": {"kubernetes.io/os": "linux"},
            "resources": {"requests": {"memory": "130Mi"}, "limits": {"memory": "300Mi"}},
        },
        "watcher": {"sidecarResources": {"limits": {"memory": "70Mi"}}},
        "log": "info", "retention": {"processedDays": 30},
    });
    let values =
        [format!("--set=watchNamespaces={{{}}}", watched.name), format!("--set-json=queueDefaults={defaults}")];
    let release = Release::install(cluster, &image, release, &values);
    let operator = Arc::new(Operator::within(&release, watched));
    let hang = json!({"test.hyper2kvm.io/hang": "1"});
    let silent = Queue::open_with(&operator, "silent", &json!({"conversion": {"outFormat": "raw"}}), &hang).await;
    let own =
        json!({"worker": {"labels": {"team": "own"}, "resources": {"limits": {"memory": "200Mi"}}}, "log": "debug"});
    let outspoken = Queue::open_with(&operator, "outspoken", &own, &hang).await;

    let mut seen = Vec::new();
    for queue in [&silent, &outspoken] {
        queue.bring("disk.img", &[7; 4096]);
        let conversion = queue.conversion("disk.img", "running", runs).await;
        let name = queue.jobs_of(&conversion).await.remove(0);
        let job = queue.api::<Job>().get(&name).await.unwrap();
        let template = job.spec.unwrap().template;
        let spec: PodSpec = template.spec.unwrap();
        let worker = &spec.containers[0];
        seen.push(json!({
            "team": template.metadata.unwrap().labels.unwrap()["team"], "nodes": spec.node_selector,
            "resources": worker.resources, "log": variable(worker, "RUST_LOG"),
        }));
    }
    let nodes = json!({"kubernetes.io/os": "linux"});
    assert_eq!(
        seen,
        [
            json!({"team": "storage", "nodes": nodes, "log": "info", "resources": {
                "requests": {"cpu": "250m", "memory": "130Mi"}, "limits": {"cpu": "2", "memory": "300Mi"}}}),
            json!({"team": "own", "nodes": nodes, "log": "debug", "resources": {
                "requests": {"cpu": "250m"}, "limits": {"cpu": "2", "memory": "200Mi"}}}),
        ]
    );
    let set = silent.api::<StatefulSet>().get("silent-watcher").await.unwrap();
    let pod = set.spec.unwrap().template.spec.unwrap();
    let given = variable(&pod.containers[0], "HYPER2KVM_QUEUE_DEFAULTS").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&given).unwrap(), json!({"retention": {"processedDays": 30}}));
    let sidecar = &pod.init_containers.unwrap()[0];
    assert_eq!(json!(sidecar.resources)["limits"], json!({"cpu": "250m", "memory": "70Mi"}));
    // The object stays as its user wrote it.
    let stored =
        run(silent.kubectl().args(["get", "hconv", "silent", "-o", "jsonpath={.spec.worker}{.spec.retention}"]));
    assert!(!stored.contains("storage") && !stored.contains("30"), "{stored}");
}
