// SPDX-License-Identifier: Apache-2.0
//! The claims of a conversion's disks, and a worker's pod that sees them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PodSpec, PreferredSchedulingTerm, Volume,
    VolumeDevice, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::pod;
use crate::cluster::api::{AccessMode, ConversionJob, TargetSettings, TargetVolume, VolumeMode};
use crate::cluster::names;
use crate::conversion::contract::variable;
use crate::conversion::target::{self, DiskTarget};

/// Group of the process that runs a guest in `KubeVirt` (`util.NonRootUID` of its `pkg/util`).
const KUBEVIRT_GROUP: i64 = 107;

/// Asks CDI's webhook to fill in what a claim leaves open, from the StorageProfile of its class (`LabelApplyStorageProfile`
/// of its `pkg/controller/common`).
const APPLY_STORAGE_PROFILE: &str = "cdi.kubevirt.io/applyStorageProfile";

/// What an attempt does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// It makes files in its work directory.
    Files,
    /// It looks at the source's headers.
    Plan,
    /// It writes each disk into its claim.
    Claims,
}

/// The claim for a disk, which belongs to the conversion until it is complete.
pub(crate) fn claim(
    conversion: &ConversionJob,
    target: &TargetSettings,
    volume: &TargetVolume,
    disk: &str,
) -> PersistentVolumeClaim {
    let mut labels = names::labels(&conversion.spec.queue_ref.name, names::COMPONENT_DISK);
    labels.insert(names::LABEL_CONVERSION.to_owned(), conversion.name_any());
    labels.insert(names::LABEL_COMPLETE.to_owned(), "false".to_owned());
    let by_profile = target.volume_mode == VolumeMode::FromStorageProfile;
    if by_profile {
        labels.insert(APPLY_STORAGE_PROFILE.to_owned(), "true".to_owned());
    }
    let modes = target.access_modes.iter().map(|mode| access_mode(*mode).to_owned());
    let annotations = [
        (names::ANNOTATION_CONVERSION_UID, conversion.uid().unwrap_or_default()),
        (names::ANNOTATION_DISK, disk.to_owned()),
    ];
    let own: BTreeMap<_, _> = annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let storage = Quantity(volume.request_bytes.to_string());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(volume.claim_name.clone()),
            namespace: conversion.namespace(),
            labels: Some(pod::merged(&[], &target.labels, labels)),
            annotations: Some(pod::merged(&[], &target.annotations, own)),
            owner_references: conversion.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: (!by_profile).then(|| modes.collect()),
            storage_class_name: target.storage_class_name.clone(),
            volume_mode: target.volume_mode.as_str().map(str::to_owned),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), storage)])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

const fn access_mode(mode: AccessMode) -> &'static str {
    match mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteMany => "ReadWriteMany",
        AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
    }
}

/// Makes of the pod that would make files one that does `task`.
pub(super) fn set(pod: &mut PodSpec, conversion: &ConversionJob, task: Task) {
    match task {
        Task::Files => {}
        Task::Plan => add_variable(pod, variable::STEP, "plan"),
        Task::Claims => add_claims(pod, conversion),
    }
}

fn add_claims(spec: &mut PodSpec, conversion: &ConversionJob) {
    let Some(status) = &conversion.status else { return };
    let Some(settings) = &status.target else { return };
    let is_block = |volume: &TargetVolume| volume.volume_mode.unwrap_or(settings.volume_mode) == VolumeMode::Block;
    let mut targets = Vec::new();
    for (n, volume) in status.volumes.iter().enumerate() {
        let name = format!("target-{n}");
        let target = if is_block(volume) { DiskTarget::device(n) } else { DiskTarget::file_system(n) };
        let path = target.path().to_string_lossy().into_owned();
        for container in &mut spec.containers {
            if is_block(volume) {
                let device = VolumeDevice { name: name.clone(), device_path: path.clone() };
                container.volume_devices.get_or_insert_default().push(device);
            } else {
                container.volume_mounts.get_or_insert_default().push(pod::mount(&name, &path, None, false));
            }
        }
        spec.volumes.get_or_insert_default().push(Volume {
            name,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: volume.claim_name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
        targets.push(target);
    }
    add_variable(spec, variable::STEP, "convert");
    add_variable(spec, variable::TARGETS, &target::to_json(&targets));
    if !status.volumes.iter().all(is_block) {
        // A new file system is root's: without a group of its own the pod could not write there, and with another than
        // this one the guest's process could not read.
        let security = spec.security_context.get_or_insert_default();
        if security.fs_group.is_none() {
            security.fs_group = Some(KUBEVIRT_GROUP);
            security.fs_group_change_policy = Some("OnRootMismatch".to_owned());
        }
    }
    prefer_nodes_of_machines(spec);
}

/// Volumes of a node are best made where machines can run.
fn prefer_nodes_of_machines(spec: &mut PodSpec) {
    let schedulable = NodeSelectorRequirement {
        key: "kubevirt.io/schedulable".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec!["true".to_owned()]),
    };
    let term = PreferredSchedulingTerm {
        weight: 10,
        preference: NodeSelectorTerm { match_expressions: Some(vec![schedulable]), match_fields: None },
    };
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let nodes = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    nodes.preferred_during_scheduling_ignored_during_execution.get_or_insert_default().push(term);
}

fn add_variable(spec: &mut PodSpec, name: &str, value: &str) {
    for container in &mut spec.containers {
        container.env.get_or_insert_default().push(pod::env(name, value));
    }
}
