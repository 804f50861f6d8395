// SPDX-License-Identifier: Apache-2.0
//! Whose an object is that has the name of one of a queue's: proved by UID, never by name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::cluster::api::HyperConversion;

/// Whose the object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// There is no object of that name.
    Free,
    /// The queue owns the object of this UID.
    Ours(String),
    /// An earlier queue of the same name owns it: the garbage collector removes it.
    Earlier,
    /// Somebody else's.
    Foreign,
}

/// Decides whose the object with this metadata is.
#[must_use]
pub(super) fn ownership(found: Option<&ObjectMeta>, queue: &HyperConversion) -> Ownership {
    let Some(found) = found else { return Ownership::Free };
    let owners = found.owner_references.as_deref().unwrap_or_default();
    let is_queue = |kind: &str, api: &str| kind == HyperConversion::kind(&()) && api.starts_with("hyper2kvm.io/");
    let of_queues: Vec<_> = owners.iter().filter(|owner| is_queue(&owner.kind, &owner.api_version)).collect();
    if of_queues.iter().any(|owner| Some(&owner.uid) == queue.metadata.uid.as_ref()) {
        return Ownership::Ours(found.uid.clone().unwrap_or_default());
    }
    if of_queues.iter().any(|owner| Some(&owner.name) == queue.metadata.name.as_ref()) {
        return Ownership::Earlier;
    }
    Ownership::Foreign
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue() -> HyperConversion {
        serde_json::from_value(json!({
            "metadata": {"name": "batch", "namespace": "n", "uid": "this"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}},
        }))
        .unwrap()
    }

    fn owned_by(owners: &Value) -> ObjectMeta {
        serde_json::from_value(json!({
            "name": "batch-watcher", "uid": "object", "ownerReferences": owners,
            // A label proves nothing: anybody may set it.
            "labels": {"app.kubernetes.io/managed-by": "hyper2kvm-operator", "hyper2kvm.io/queue": "batch"},
        }))
        .unwrap()
    }

    #[test]
    fn an_object_is_a_queue_s_by_the_queue_s_uid_alone() {
        let owner = |kind: &str, group: &str, name: &str, uid: &str| json!([{"apiVersion": format!("{group}/v1alpha1"), "kind": kind, "name": name, "uid": uid}]);
        let ours = Ownership::Ours("object".to_owned());
        for (owners, expected) in [
            (json!([]), Ownership::Foreign),
            (owner("HyperConversion", "hyper2kvm.io", "batch", "this"), ours),
            (owner("HyperConversion", "hyper2kvm.io", "batch", "before"), Ownership::Earlier),
            (owner("HyperConversion", "hyper2kvm.io", "other", "that"), Ownership::Foreign),
            (owner("HyperConversion", "example.com", "batch", "this"), Ownership::Foreign),
            (owner("Deployment", "apps", "batch", "this"), Ownership::Foreign),
        ] {
            assert_eq!(ownership(Some(&owned_by(&owners)), &queue()), expected, "{owners}");
        }
        assert_eq!(ownership(None, &queue()), Ownership::Free);
    }
}
