// SPDX-License-Identifier: Apache-2.0
//! The API: `HyperConversion` (a queue) and `ConversionJob` (one artifact), group `hyper2kvm.io`, version `v1alpha1`.
//!
//! What a schema or a CEL rule can express is expressed here, so that the API server refuses bad input with a message
//! of ours. What only the volumes can show becomes a condition.

mod conditions;
#[allow(unreachable_pub, reason = "the derive of a resource repeats its struct where nobody reaches it")]
mod conversion_job;
mod crd;
mod guest;
#[allow(unreachable_pub, reason = "the derive of a resource repeats its struct where nobody reaches it")]
mod hyper_conversion;
mod notifications;
pub(crate) mod owners;
mod placement;
mod reference;
mod rules;
mod settings;
mod target;
mod virtual_machine;

pub use conditions::{ConditionState, ConditionType, condition};
pub(crate) use conditions::{set_by, set_condition};
pub use conversion_job::{
    ConversionJob, ConversionJobSpec, ConversionJobStatus, JobPhase, Output, ProgressReport, QueueRef, Source,
};
pub use crd::{MANIFESTS, crds, to_yaml};
pub use guest::{
    Accelerator, BootCheckMode, BootCheckOverrides, BootCheckSettings, GuestMode, GuestOverrides, GuestSettings,
    NetworkNames, VirtioWin,
};
pub use hyper_conversion::{
    HyperConversion, HyperConversionSpec, HyperConversionStatus, QueueTotals, RetentionSettings, RetrySettings,
    VolumePath,
};
pub use notifications::{Email, NotificationSettings, SecretKeyRef, SecretRef, Webhook, WebhookType};
pub use placement::{ConfigMapRef, PodSecurity, Proxy, SeLinuxLabel, WatcherSettings, WorkerSettings};
pub(crate) use placement::{
    boot_resources, completed_resources, fix_resources, sidecar_resources, watcher_resources, worker_resources,
};
pub use reference::reference;
pub use settings::{ConversionOverrides, ConversionSettings, Deduplication, InvalidSetting};
pub use target::{
    AccessMode, OnFailure, TargetKind, TargetOverrides, TargetSettings, TargetVolume, VolumeMode, VolumeState,
};
pub use virtual_machine::{
    Chosen, MacAddresses, MachineCreation, MachineDevices, MachineLimits, MachineOverrides, MachineSettings,
    MachineState, MachineStatus, MultusNetwork, NetworkRule,
};

/// API group of both kinds.
pub const GROUP: &str = "hyper2kvm.io";
/// The one version that is served.
pub const VERSION: &str = "v1alpha1";

/// Longest name of a `HyperConversion`: `<name>-watcher-0` and a revision hash stay within a label's 63 characters.
pub const MAX_QUEUE_NAME: usize = 40;

#[cfg(test)]
mod tests;
