// SPDX-License-Identifier: Apache-2.0
//! What watcher and worker pods have in common: the restricted profile, volumes, environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, PersistentVolumeClaimVolumeSource,
    PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cluster::api::{HyperConversion, PodSecurity, VolumePath};

/// Name of the volume that holds the queue.
pub(super) const QUEUE_VOLUME: &str = "queue";
/// Name of the volume that holds the output, where it is another claim than the queue's.
const OUTPUT_VOLUME: &str = "output";

/// The pod's half of the restricted profile, with the users and groups of the specification.
pub(super) fn pod_security(wanted: &PodSecurity) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: wanted.run_as_user,
        run_as_group: wanted.run_as_group,
        fs_group: wanted.fs_group,
        // The ownership of a volume of a million files is not changed at every start.
        fs_group_change_policy: wanted.fs_group.map(|_| "OnRootMismatch".to_owned()),
        supplemental_groups: (!wanted.supplemental_groups.is_empty()).then(|| wanted.supplemental_groups.clone()),
        se_linux_options: wanted
            .se_linux_options
            .as_ref()
            .filter(|label| !label.level.is_empty())
            .map(|label| SELinuxOptions { level: Some(label.level.clone()), ..SELinuxOptions::default() }),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// The container's half of the restricted profile.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// `own` over what is wanted over the defaults.
pub(super) fn merged(
    defaults: &[(&str, &str)],
    wanted: &BTreeMap<String, String>,
    own: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut all: BTreeMap<_, _> = defaults.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    all.extend(wanted.clone());
    all.extend(own);
    all
}

/// The text, unless it is empty.
pub(super) fn non_empty_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// One volume for each claim: a claim that holds both directories is mounted from one volume.
pub(super) fn claim_volumes(queue: &HyperConversion) -> Vec<Volume> {
    let mut volumes = vec![claim_volume(QUEUE_VOLUME, &queue.spec.queue.claim_name)];
    if !shares_claim(queue) {
        volumes.push(claim_volume(OUTPUT_VOLUME, &queue.spec.output.claim_name));
    }
    volumes
}

fn claim_volume(name: &str, claim_name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name.to_owned(),
            read_only: None,
        }),
        ..Volume::default()
    }
}

/// Name of the volume that is this claim: one of `volumes`, or a new one, which is called `name`.
pub(super) fn volume_of_claim(volumes: &mut Vec<Volume>, name: &str, claim_name: &str) -> String {
    let is_claim = |volume: &&Volume| {
        volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim_name)
    };
    if let Some(volume) = volumes.iter().find(is_claim) {
        return volume.name.clone();
    }
    volumes.push(claim_volume(name, claim_name));
    name.to_owned()
}

/// Name of the volume that holds the output.
pub(super) fn output_volume(queue: &HyperConversion) -> &'static str {
    if shares_claim(queue) { QUEUE_VOLUME } else { OUTPUT_VOLUME }
}

fn shares_claim(queue: &HyperConversion) -> bool {
    queue.spec.queue.claim_name == queue.spec.output.claim_name
}

/// A directory of a volume: `below` under the specification's own path.
pub(super) fn sub_path(path: &VolumePath, below: &str) -> Option<String> {
    let parts: Vec<_> = [path.sub_path.as_str(), below].into_iter().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Mounts a volume.
pub(super) fn mount(volume: &str, path: &str, sub_path: Option<String>, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        sub_path,
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// An empty directory of at most `size`; in memory if `medium` says so.
pub(super) fn empty_dir(name: &str, size: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: Some(Quantity(size.to_owned())),
        }),
        ..Volume::default()
    }
}

/// A variable with a value.
pub(super) fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// What the process logs, where the specification says it.
pub(super) fn log(queue: &HyperConversion) -> Option<EnvVar> {
    (!queue.spec.log.is_empty()).then(|| env("RUST_LOG", &queue.spec.log))
}

/// A variable with a field of the pod itself.
pub(super) fn env_field(name: &str, field: &str) -> EnvVar {
    let field = ObjectFieldSelector { field_path: field.to_owned(), api_version: Some("v1".to_owned()) };
    let value_from = Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() });
    EnvVar { name: name.to_owned(), value: None, value_from }
}
