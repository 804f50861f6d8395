// SPDX-License-Identifier: Apache-2.0
//! Every object that the controller makes, built from specifications alone: the same input gives the same object.

pub(super) mod access;
pub(super) mod network;
mod pod;
pub(super) mod target;
pub(super) mod watcher;
pub(super) mod worker;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::cluster::api::HyperConversion;
use crate::cluster::names;

/// The image that watchers and workers run, which is the controller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub name: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
}

/// The images of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Of watchers and workers.
    pub own: Image,
    /// Of workers that fix guests: the same programs, QEMU and the appliance. Absent where nobody named one.
    pub fixer: Option<Image>,
}

/// Metadata of an object that a queue owns.
fn owned_by_queue(queue: &HyperConversion, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: queue.namespace(),
        labels: Some(names::labels(&queue.name_any(), component)),
        owner_references: queue.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
