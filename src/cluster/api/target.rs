// SPDX-License-Identifier: Apache-2.0
//! Where the disks of a conversion go: files below the output, or claims of their own.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the disks become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// One claim for each disk, made by the controller, with the disk raw on it.
    #[default]
    PersistentVolumeClaim,
    /// Files below the output, as without a target.
    Files,
}

/// How a claim's volume is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMode {
    /// The disk is the file disk.img in the volume's file system.
    #[default]
    Filesystem,
    /// The volume is the disk.
    Block,
    /// What CDI's storage profile of the class says, where CDI is installed.
    FromStorageProfile,
}

impl VolumeMode {
    /// The word in a claim; none where somebody else fills it in.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Filesystem => Some("Filesystem"),
            Self::Block => Some("Block"),
            Self::FromStorageProfile => None,
        }
    }

    /// The mode that a claim has by its own word.
    #[must_use]
    pub fn of_claim(word: Option<&str>) -> Self {
        if word == Some("Block") { Self::Block } else { Self::Filesystem }
    }
}

/// Who may mount a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    ReadWriteOnce,
    ReadWriteMany,
    ReadWriteOncePod,
}

/// What becomes of claims that are not complete when a conversion has failed for good or was cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// They are deleted.
    #[default]
    Delete,
    /// They stay as long as the ConversionJob does, for a look at them.
    Retain,
}

/// Where the disks go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetSettings {
    /// PersistentVolumeClaim: one claim for each disk, in the queue's namespace. Files: below the output.
    pub kind: TargetKind,
    /// StorageClass of the claims; left out, the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// Filesystem: the disk is the file disk.img on the volume. Block: the volume is the disk, for which nodes must let
    /// containers without root open devices (a setting of containerd and CRI-O). FromStorageProfile: CDI fills in the
    /// volume mode and the access modes from its StorageProfile of the class; for that its feature WebhookPvcRendering
    /// must be on.
    pub volume_mode: VolumeMode,
    /// Access modes of the claims, unless they are FromStorageProfile. KubeVirt moves a machine to another node while it
    /// runs only with ReadWriteMany.
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub access_modes: Vec<AccessMode>,
    /// Share of a claim that its file system may keep for itself, in quotes: 0 up to 0.9. For Filesystem alone. KubeVirt
    /// expects 0.055 unless CDI says otherwise.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-validations" = [{
            "rule": r"self.matches('^0([.][0-9]{1,6})?$') && double(self) < 0.9",
            "message": "filesystemOverhead is a number from 0 up to 0.9 in quotes, such as \"0.055\""
        }])
    )]
    pub filesystem_overhead: String,
    /// What becomes of claims that are not complete when a conversion has failed for good or was cancelled: Delete, or
    /// Retain, as long as its ConversionJob is there. A complete claim is never deleted.
    pub on_failure: OnFailure,
    /// How many seconds the scheduler may find no node that reaches the claims, before those that are not complete are
    /// deleted and made anew: a volume of a node that is gone holds nothing that anybody needs.
    #[schemars(range(min = 10, max = 86400))]
    pub lost_after_seconds: u32,
    /// Labels of the claims, beside the operator's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the claims.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

impl Default for TargetSettings {
    fn default() -> Self {
        Self {
            kind: TargetKind::default(),
            storage_class_name: None,
            volume_mode: VolumeMode::default(),
            access_modes: vec![AccessMode::ReadWriteOnce],
            filesystem_overhead: "0.055".to_owned(),
            on_failure: OnFailure::default(),
            lost_after_seconds: 600,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// Where one conversion's disks go otherwise than its queue's; what is left out is the queue's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetOverrides {
    /// Files, to do without claims; PersistentVolumeClaim, to have them where the queue has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<TargetKind>,
    /// StorageClass of the claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub storage_class_name: Option<String>,
    /// Filesystem, Block or FromStorageProfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<VolumeMode>,
    /// Access modes of the claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub access_modes: Option<Vec<AccessMode>>,
    /// Share of a claim that its file system may keep for itself, in quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-validations" = [{
            "rule": r"self.matches('^0([.][0-9]{1,6})?$') && double(self) < 0.9",
            "message": "filesystemOverhead is a number from 0 up to 0.9 in quotes, such as \"0.055\""
        }])
    )]
    pub filesystem_overhead: Option<String>,
    /// Delete or Retain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
}

impl TargetOverrides {
    /// The queue's target with this laid over it; `None` where the disks become files.
    #[must_use]
    pub fn over(&self, queue: Option<&TargetSettings>) -> Option<TargetSettings> {
        let base = match (queue, self.kind) {
            (Some(queue), _) => queue.clone(),
            (None, Some(TargetKind::PersistentVolumeClaim)) => TargetSettings::default(),
            (None, _) => return None,
        };
        let target = TargetSettings {
            kind: self.kind.unwrap_or(base.kind),
            storage_class_name: self.storage_class_name.clone().or(base.storage_class_name),
            volume_mode: self.volume_mode.unwrap_or(base.volume_mode),
            access_modes: self.access_modes.clone().unwrap_or(base.access_modes),
            filesystem_overhead: self.filesystem_overhead.clone().unwrap_or(base.filesystem_overhead),
            on_failure: self.on_failure.unwrap_or(base.on_failure),
            lost_after_seconds: base.lost_after_seconds,
            labels: base.labels,
            annotations: base.annotations,
        };
        (target.kind == TargetKind::PersistentVolumeClaim).then_some(target)
    }
}

/// How far a claim of a conversion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeState {
    /// Its name is chosen; it may not be there yet.
    #[default]
    Planned,
    /// It is there, and holds nothing that anybody may use.
    Created,
    /// The worker has written the disk, read it back and ended.
    Written,
    /// It holds the disk and belongs to nobody of ours any more.
    Complete,
    /// It was deleted, because the conversion ended before it was complete.
    Deleted,
}

/// A claim of a conversion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetVolume {
    /// The PersistentVolumeClaim.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Its UID, once it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// Bytes that it asks for.
    pub request_bytes: u64,
    /// How far it is. A claim before Complete is worth nothing.
    pub state: VolumeState,
    /// Its volume mode, once it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<VolumeMode>,
    /// Times that it was made anew, because it was too small.
    #[serde(skip_serializing_if = "is_zero")]
    pub remade: u32,
    /// The attempt after which it was last made anew, because it was too small or lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub remade_after: u32,
    /// UID of the machine that it was given to, to be deleted with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub machine_uid: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_zero(n: &u32) -> bool {
    *n == 0
}
