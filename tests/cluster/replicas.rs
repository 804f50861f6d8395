// SPDX-License-Identifier: Apache-2.0
//! The controller as a process: which replica leads, what ends it, and what it reports while it can't work.

use jiff::Timestamp;
use serde_json::json;

use crate::harness::{Cluster, Need, run};
use crate::replica::{Replica, kubeconfig};

#[test]
fn one_replica_leads_and_ends_when_its_lease_is_taken_and_the_next_one_goes_on() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let (namespace, place) = (cluster.namespace("lease"), tempfile::tempdir().unwrap());
    let start = |name| Replica::start(&cluster.kubeconfig, &[&namespace.name], name, place.path());
    let holder = || {
        let path = "jsonpath={.spec.holderIdentity}";
        run(namespace.kubectl().args(["get", "lease", "hyper2kvm-operator", "-o", path]))
    };
    let mut first = start("first");
    first.process.until("leading", || first.leads() && first.is_ready());
    let mut second = start("second");
    // It stands by, and is ready.
    second.process.until("standing by", || second.is_ready());
    assert!(!second.leads() && holder() == "first");

    let taken =
        json!({"spec": {"holderIdentity": "second", "renewTime": format!("{:.6}", Timestamp::now())}}).to_string();
    run(namespace.kubectl().args(["patch", "lease", "hyper2kvm-operator", "--type=merge", "-p", &taken]));
    assert_eq!(first.process.ended(), Some(1));
    assert!(first.process.said().contains("the lease was lost"), "{}", first.process.said());
    second.process.until("leading", || second.leads() && second.is_ready());

    // A replica that is terminated releases the lease at once.
    second.process.terminate();
    assert_eq!(second.process.ended(), Some(0));
    assert_eq!(holder(), "");
}

#[test]
fn without_an_api_server_it_lives_and_says_what_it_waits_for() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let place = tempfile::tempdir().unwrap();
    // Nothing listens there.
    let away = kubeconfig(cluster, None, Some("https://127.0.0.1:9"), &place.path().join("kubeconfig"));
    let replica = Replica::start(&away, &["default"], "alone", place.path());
    replica.process.until("waiting for the API server", || {
        replica.waits_for().is_some_and(|why| why.contains("the API server can't be asked for hyperconversions"))
    });
    assert_eq!(replica.get("/healthz"), Some((200, "ok\n".to_owned())));
}

#[test]
fn without_its_definitions_it_lives_and_says_which_one_is_missing() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let place = tempfile::tempdir().unwrap();
    let server =
        run(cluster.kubectl().args(["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]));
    // Below this path the server answers as for kinds that are not defined.
    let bare = kubeconfig(cluster, None, Some(&format!("{server}/nothing")), &place.path().join("kubeconfig"));
    let replica = Replica::start(&bare, &["default"], "bare", place.path());
    let missing = "the CustomResourceDefinition hyperconversions.hyper2kvm.io is missing: apply the files in crds/, or \
                   install the chart";
    replica.process.until("missing its definitions", || replica.waits_for().is_some_and(|why| why == missing));
    assert_eq!(replica.get("/healthz"), Some((200, "ok\n".to_owned())));
    assert_eq!(replica.process.said().matches(missing).count(), 1, "{}", replica.process.said());
}

#[test]
fn the_page_shows_the_queues_and_conversions_of_the_api_server_to_whoever_asks_the_leader() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let (namespace, place) = (cluster.namespace("page"), tempfile::tempdir().unwrap());
    let volume = |directory| json!({"claimName": "images", "subPath": directory});
    namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "q"},
            "spec": {"queue": volume("queue"), "output": volume("output"), "runState": "Paused"}})
        .to_string(),
    );
    namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": "web01-3fa9c1d2"},
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "web01.ova"}}})
        .to_string(),
    );
    let first = Replica::start(&cluster.kubeconfig, &[&namespace.name], "first", place.path());
    let page = |replica: &Replica| replica.get("/").map(|(_, html)| html).unwrap_or_default();
    let queue = format!("{}/q", namespace.name);
    first.process.until("showing both", || {
        let html = page(&first);
        html.contains(&format!("<td>{queue}</td><td>Paused</td>"))
            && html.contains(&format!("<td>web01.ova</td><td>{queue}"))
    });
    let failure = json!({"reason": "Corrupt", "class": "Permanent", "phase": "conversion", "message": "a <bad> grain",
                         "suggestion": "Copy it again"});
    let change = json!({"status": {"phase": "Failed", "end": "Failed", "completionTime": "2026-01-17T09:00:00Z",
                                   "failure": failure}});
    let words = ["patch", "hcj", "web01-3fa9c1d2", "--subresource=status", "--type=merge", "-p"];
    run(namespace.kubectl().args(words).arg(change.to_string()));
    first.process.until("showing why it failed", || {
        let html = page(&first);
        html.contains("a &lt;bad&gt; grain") && html.contains("Copy it again")
    });
    // Another one has listed nothing.
    let second = Replica::start(&cluster.kubeconfig, &[&namespace.name], "second", place.path());
    second.process.until("standing by", || page(&second).contains("This replica stands by"));
}
