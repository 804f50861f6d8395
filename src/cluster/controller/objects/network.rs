// SPDX-License-Identifier: Apache-2.0
//! Network policies: workers talk to nobody, and nobody talks to watchers.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;

use super::owned_by_queue;
use crate::cluster::api::HyperConversion;
use crate::cluster::names;

/// A worker reads and writes files: it needs no network, in either direction.
#[must_use]
pub(crate) fn worker_policy(queue: &HyperConversion) -> NetworkPolicy {
    policy(queue, names::worker_policy(&queue.name_any()), names::COMPONENT_WORKER, &["Ingress", "Egress"])
}

/// A watcher calls the API server and its notifications' receivers; nobody calls it.
#[must_use]
pub(crate) fn watcher_policy(queue: &HyperConversion) -> NetworkPolicy {
    policy(queue, names::watcher(&queue.name_any()), names::COMPONENT_WATCHER, &["Ingress"])
}

/// A policy that allows nothing in the directions it names.
fn policy(queue: &HyperConversion, name: String, component: &str, types: &[&str]) -> NetworkPolicy {
    NetworkPolicy {
        metadata: owned_by_queue(queue, name, component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(names::selector(&queue.name_any(), component)),
                match_expressions: None,
            }),
            policy_types: Some(types.iter().map(|&kind| kind.to_owned()).collect()),
            ..NetworkPolicySpec::default()
        }),
    }
}
