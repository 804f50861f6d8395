// SPDX-License-Identifier: Apache-2.0
//! The operator of a whole cluster: its role holds in every namespace, and equals the roles of single namespaces.
//!
//! It must not work here, because the namespaces of other tests have controllers of their own. So it stands by while
//! another holds its lease, and the API server is asked verb by verb what its role allows.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{grant, list, rules};
use crate::audit;
use crate::harness::{self, Cluster, Need, in_tree, run};
use crate::replica::{Replica, kubeconfig_of};

/// Every verb that Kubernetes knows for objects.
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What the chart makes for a whole cluster, removed with the test: a part of it lies in no namespace.
struct Granted {
    cluster: &'static Cluster,
    file: tempfile::NamedTempFile,
}

impl Granted {
    fn apply(cluster: &'static Cluster, release: &str) -> Self {
        let text = run(Command::new(harness::helm())
            .args(["template", release, "--show-only=templates/rbac.yaml", "--set=rbac.aggregate=false"])
            .args(["--namespace", release])
            .arg(in_tree("charts/hyper2kvm-operator")));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let granted = Self { cluster, file };
        run(cluster.kubectl().args(["apply", "-f"]).arg(granted.file.path()));
        granted
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        drop(self.cluster.kubectl().args(["delete", "--ignore-not-found", "-f"]).arg(self.file.path()).output());
    }
}

/// `verb resource` as the audit log has it, where the API server allows it to the user in this namespace; without
/// one, in all namespaces at once.
async fn allowed(client: &Client, user: &str, namespace: &str, verb: &str, kind: &str) -> Option<String> {
    let (resource, group) = kind.split_once('.').unwrap_or((kind, ""));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |text: &str| Some(text.to_owned());
    let attributes = ResourceAttributes {
        verb: some(verb),
        group: some(group),
        resource: some(resource),
        subresource: some(subresource),
        namespace: some(namespace),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: some(user),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed.then(|| format!("{verb} {kind}"))
}

#[tokio::test]
async fn a_controller_of_the_whole_cluster_may_in_every_namespace_what_it_uses_and_nothing_else() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(files) = &cluster.state else { return harness::left_out("another's cluster keeps its audit log") };
    let (namespace, elsewhere) = (cluster.namespace("wide"), cluster.namespace("elsewhere"));
    let granted = Granted::apply(cluster, &namespace.name);
    let account = format!("{}-hyper2kvm-operator", namespace.name);
    let user = format!("system:serviceaccount:{}:{account}", namespace.name);

    let client = cluster.client().await;
    // What the roles of single namespaces name, and use: `the_controller_s_roles_in_each_of_its_namespaces…`.
    grant(cluster, &[&namespace.name], false);
    let named = audit::granted(&rules(&namespace.name, "r-hyper2kvm-operator", cluster));
    let served = run(cluster.kubectl().args(["api-resources", "--no-headers", "-o", "name"]));
    let kinds: BTreeSet<String> = served
        .lines()
        .map(str::to_owned)
        .chain(named.iter().map(|may| may.split_once(' ').unwrap().1.to_owned()))
        .chain(["pods/exec", "pods/eviction", "serviceaccounts/token"].map(str::to_owned))
        .collect();
    for namespace in [elsewhere.name.as_str(), ""] {
        let asked =
            kinds.iter().flat_map(|kind| VERBS.map(|verb| Box::pin(allowed(&client, &user, namespace, verb, kind))));
        let may: BTreeSet<String> =
            stream::iter(asked).buffer_unordered(32).filter_map(std::future::ready).collect().await;
        assert_eq!(may, named, "in namespace {namespace:?}");
    }
    // Roles are granted with rights that their author has, never beyond.
    for verb in ["bind", "escalate", "impersonate"] {
        for kind in
            ["roles.rbac.authorization.k8s.io", "clusterroles.rbac.authorization.k8s.io", "users", "serviceaccounts"]
        {
            assert_eq!(allowed(&client, &user, "", verb, kind).await, None);
        }
    }

    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "hyper2kvm-operator"},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600, "leaseTransitions": 0,
                 "acquireTime": micros(), "renewTime": micros()},
    });
    namespace.apply(&lease.to_string());
    let place = tempfile::tempdir().unwrap();
    let credentials = kubeconfig_of(cluster, &namespace.name, &account, &place.path().join("kubeconfig"));
    let replica = Replica::everywhere(&credentials, &namespace.name, "wide", place.path());
    replica.process.until("standing by", || replica.is_ready());
    assert!(!replica.leads());
    let asked = audit::requests(files, |name| name == user);
    let denied: Vec<_> = asked.iter().filter(|request| !request.allowed || request.code == 403).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    // It listed both kinds in all namespaces, and so found that they are served.
    let everywhere = audit::used(asked.iter().filter(|request| request.namespace.is_empty()));
    assert_eq!(everywhere, list(&["list conversionjobs.hyper2kvm.io", "list hyperconversions.hyper2kvm.io"]));
    drop(granted);
}

fn micros() -> Value {
    json!(format!("{:.6}", jiff::Timestamp::now()))
}
