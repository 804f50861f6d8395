// SPDX-License-Identifier: Apache-2.0
//! The operator of a whole cluster, as the chart installs it without `watchNamespaces`. The namespaces of other tests
//! have operators of their own, so it waits until those are gone.

use std::sync::Arc;

use futures::future::join_all;
use hyper2kvm::cluster::api::{ConversionJob, JobPhase, condition};
use serde_json::json;

use crate::audit;
use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, Record, Release};
use crate::harness::{Cluster, Need, run};

/// Converts a disk, and requests something impossible.
async fn works(queue: &Queue, seed: u64) {
    queue.ready();
    queue.bring("disk.img", &guest(1, seed));
    queue.operator.namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": "orphan"},
            "spec": {"queueRef": {"name": "nowhere"}, "source": {"path": "disk.img"}}})
        .to_string(),
    );
    let over = queue.ended("disk.img", JobPhase::Succeeded).await.status.unwrap();
    holds(&queue.output(&over.outputs[0].path), &guest(1, seed));
    queue.counted([1, 0, 0, 0, 0]).await;
    let is_refused = |orphan: &ConversionJob| {
        let conditions = orphan.status.iter().flat_map(|status| &status.conditions).cloned().collect::<Vec<_>>();
        condition(&conditions, "Admitted").is_some_and(|c| c.status == "False" && c.reason == "QueueNotFound")
    };
    queue.until::<ConversionJob>("orphan", "refused", is_refused).await;
    let told = || {
        let of = "--field-selector=regarding.name=orphan";
        run(queue.kubectl().args(["get", "events.events.k8s.io", of, "-o", "jsonpath={.items[*].reason}"]))
    };
    queue.eventually("told by an event", || told() == "QueueNotFound").await;
}

#[tokio::test]
async fn an_operator_of_the_whole_cluster_converts_in_each_namespace_there_is_and_in_one_that_comes_later() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(image) = cluster.image() else { return };
    cluster.alone();
    Record::open(cluster).expect("it is ours").uninstall();
    let before = cluster.namespace("wide-before");
    let release = Release::install(cluster, &image, Arc::new(cluster.namespace("wide")), &[]);
    let namespaces = [before, cluster.namespace("wide-after")];
    let names = namespaces.each_ref().map(|namespace| namespace.name.clone());
    let operators = namespaces.map(|namespace| Arc::new(Operator::within(&release, namespace)));
    let mut queues = Vec::new();
    for operator in &operators {
        let queue = Queue::prepare(operator, "q", (65532, 0)).await;
        queue.declare(&json!({}), &json!({}));
        queues.push(queue);
    }
    join_all(queues.iter().zip(1..).map(|(queue, seed)| works(queue, seed))).await;

    // No role of a namespace allowed it that, and nothing was denied.
    let bound = "jsonpath={.items[*].subjects[*].name}";
    for queue in &queues {
        assert_eq!(run(queue.kubectl().args(["get", "rolebindings", "-o", bound])), "q-watcher");
    }
    let home = &operators[0].release().name;
    let user = format!("system:serviceaccount:{home}:{home}-hyper2kvm-operator");
    let asked = audit::requests(cluster.state.as_ref().expect("it is ours"), |name| name == user);
    let watched = asked.iter().filter(|request| request.verb == "watch" && request.namespace.is_empty());
    assert!(audit::used(watched).contains("watch conversionjobs.hyper2kvm.io"));
    // Nothing may be created any more in namespaces of other tests that are being deleted.
    let is_refused = |r: &&audit::Request| !r.allowed || r.code == 403 && names.contains(&r.namespace);
    assert_eq!(asked.iter().filter(is_refused).map(|refused| format!("{refused:?}")).collect::<Vec<_>>(), [""; 0]);
}
