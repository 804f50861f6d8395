// SPDX-License-Identifier: Apache-2.0
//! What a watcher may do: its service account, role and the binding between them.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::ResourceExt;

use super::owned_by_queue;
use crate::cluster::api::{GROUP, HyperConversion};
use crate::cluster::names;

/// The watcher's identity; its token is mounted where the pod asks for it, nowhere else.
#[must_use]
pub(crate) fn service_account(queue: &HyperConversion) -> ServiceAccount {
    ServiceAccount {
        metadata: owned_by_queue(queue, names::watcher(&queue.name_any()), names::COMPONENT_WATCHER),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The watcher's rights: on its namespace's conversions and its own queue, and to read pods.
#[must_use]
pub(crate) fn role(queue: &HyperConversion) -> Role {
    let own = vec![queue.name_any()];
    Role {
        metadata: owned_by_queue(queue, names::watcher(&queue.name_any()), names::COMPONENT_WATCHER),
        rules: Some(vec![
            rule(GROUP, "conversionjobs", None, &["get", "list", "watch", "create", "delete"]),
            rule(GROUP, "conversionjobs/status", None, &["patch"]),
            // The sidecar patches it, only spec.runState: a ValidatingAdmissionPolicy refuses everything else.
            rule(GROUP, "hyperconversions", Some(own.clone()), &["list", "watch", "patch"]),
            rule(GROUP, "hyperconversions/status", Some(own), &["patch"]),
            rule("", "pods", None, &["list", "watch"]),
        ]),
    }
}

/// Gives the role to the service account.
#[must_use]
pub(crate) fn role_binding(queue: &HyperConversion) -> RoleBinding {
    let name = names::watcher(&queue.name_any());
    RoleBinding {
        metadata: owned_by_queue(queue, name.clone(), names::COMPONENT_WATCHER),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name,
            namespace: queue.namespace(),
            api_group: None,
        }]),
    }
}

fn rule(group: &str, resource: &str, names: Option<Vec<String>>, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: names,
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
        non_resource_urls: None,
    }
}
