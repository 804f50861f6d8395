// SPDX-License-Identifier: Apache-2.0
//! `HyperConversion`: one queue, its volumes and how it converts.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::LocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::{self, ConditionType};
use super::notifications::NotificationSettings;
use super::placement::{PodSecurity, WatcherSettings, WorkerSettings};
use super::rules::{NO_DOTS, RELATIVE_PATH};
use super::settings::{ConversionSettings, Deduplication, InvalidSetting};
use super::target::TargetSettings;
use super::virtual_machine::MachineSettings;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::retention::Retention;

/// A queue: disk images brought onto one volume are converted onto another.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hyper2kvm.io",
    version = "v1alpha1",
    kind = "HyperConversion",
    namespaced,
    status = "HyperConversionStatus",
    derive = "PartialEq",
    shortname = "hconv",
    category = "hyper2kvm",
    doc = "A queue of disk images: what is brought onto one volume is converted onto another. At most 40 characters of name.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the queue is watched and its volumes are in order."
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.runState", description = "What was asked for."),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queued",
        description = "Artifacts that wait for a slot."
    ),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.active", description = "Conversions that run."),
    printcolumn(
        name = "Succeeded",
        type_ = "integer",
        json_path = ".status.totals.succeeded",
        description = "Conversions that succeeded, ever."
    ),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.totals.failed",
        description = "Conversions that failed for good, ever."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40").message("a HyperConversion's name has at most 40 characters: names of pods are made from it"),
    validation = Rule::new("!self.metadata.name.contains('.')").message("a HyperConversion's name has no dots: names of pods are made from it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "self.queue.claimName != self.output.claimName || !((self.queue.subPath + '/').startsWith(self.output.subPath + '/') || self.output.subPath == '')"
    )
    .message("queue lies in output: give them sibling directories, such as subPath queue and subPath output"),
    validation = Rule::new(
        "self.queue.claimName != self.output.claimName || !((self.output.subPath + '/').startsWith(self.queue.subPath + '/') || self.queue.subPath == '')"
    )
    .message("output lies in queue: give them sibling directories, such as subPath queue and subPath output"),
    validation = Rule::new("self.queue == oldSelf.queue")
        .message("queue is immutable: artifacts under way lie there; make another HyperConversion")
        .field_path(".queue"),
    validation = Rule::new("self.output == oldSelf.output")
        .message("output is immutable: the ledger lies there; make another HyperConversion")
        .field_path(".output"),
    validation = Rule::new("!has(self.target) || self.target.kind == 'Files' || self.conversion.compress == 'none'")
        .message("a target takes raw disks, which have no compression: set conversion.compress to none")
        .field_path(".conversion.compress")
)]
pub struct HyperConversionSpec {
    /// Directory that is watched. The watcher sees it as /var/lib/hyper2kvm/queue.
    pub queue: VolumePath,
    /// Directory that takes the disks. The watcher sees it as /var/lib/hyper2kvm/output.
    pub output: VolumePath,
    /// Conversions at one time, suspended ones included.
    #[serde(default = "defaults::max_concurrent_jobs")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_jobs: u32,
    /// Seconds of growth after which a file that is still not stable is warned about.
    #[serde(default = "defaults::file_stable_timeout_seconds")]
    #[schemars(range(min = 1, max = 86_400))]
    pub file_stable_timeout_seconds: u32,
    /// Seconds that a file which looks like an extent waits for its descriptor.
    #[serde(default = "defaults::companion_timeout_seconds")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub companion_timeout_seconds: u32,
    /// Seconds that a file must stand still whose writer nobody can see (it writes from another node, or was there
    /// before the watcher) and whose format does not tell whether it is whole. 0: such a file is taken like any other.
    #[serde(default = "defaults::quiet_period_seconds")]
    #[schemars(range(min = 0, max = 86_400))]
    pub quiet_period_seconds: u32,
    /// Whether converted sources go to .processed/DATE/; else they stay in place, and are not converted again.
    #[serde(default = "defaults::archive_processed")]
    pub archive_processed: bool,
    /// When and how often a failed attempt is tried again.
    #[serde(default)]
    pub retry_policy: RetrySettings,
    /// How long what ended conversions left is kept; left out, for ever.
    #[serde(default)]
    pub retention: RetentionSettings,
    /// Whether a file that was converted before is skipped.
    #[serde(default)]
    pub deduplication: Deduplication,
    /// What a conversion makes, and within which limits.
    #[serde(default)]
    pub conversion: ConversionSettings,
    /// Where the disks go; left out, they are files below output. With a target each disk lies raw on a claim of its
    /// own, whatever conversion.outFormat says. The controller needs the rights of the chart's target.enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSettings>,
    /// Which VirtualMachine is made of the claims; left out, none is. Needs a target, KubeVirt, and the rights of the
    /// chart's kubevirt.enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<MachineSettings>,
    /// Who is told, and about what.
    #[serde(default)]
    pub notifications: NotificationSettings,
    /// As whom watcher and workers run.
    #[serde(default)]
    pub security_context: PodSecurity,
    /// The pods that convert.
    #[serde(default)]
    pub worker: WorkerSettings,
    /// The pod that watches the queue.
    #[serde(default)]
    pub watcher: WatcherSettings,
    /// Secrets for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// What watcher and workers log, in the syntax of tracing, such as info,hyper2kvm=debug; empty, their own default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024), regex(pattern = r"^[ -~]*$"))]
    pub log: String,
    /// What is asked for: Running; Paused, nothing new starts; Draining, what is queued is finished and nothing more
    /// taken; Stopped, running conversions are ended and the watcher's pod goes. Leave it out of Git and Helm: kubectl
    /// and the control socket write it.
    #[serde(default)]
    pub run_state: RunState,
    /// Succeeded and duplicate ConversionJobs that are kept.
    #[serde(default = "defaults::history_limit")]
    #[schemars(range(min = 0, max = 100_000))]
    pub successful_history_limit: u32,
    /// Failed and cancelled ConversionJobs that are kept.
    #[serde(default = "defaults::history_limit")]
    #[schemars(range(min = 0, max = 100_000))]
    pub failed_history_limit: u32,
}

mod defaults {
    pub(super) const fn max_concurrent_jobs() -> u32 {
        3
    }

    pub(super) const fn file_stable_timeout_seconds() -> u32 {
        30
    }

    pub(super) const fn companion_timeout_seconds() -> u32 {
        3600
    }

    pub(super) const fn quiet_period_seconds() -> u32 {
        60
    }

    pub(super) const fn archive_processed() -> bool {
        true
    }

    pub(super) const fn history_limit() -> u32 {
        1000
    }
}

/// A directory of a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumePath {
    /// The PersistentVolumeClaim, in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Directory below the volume's root, such as exports/vmware; empty, the root itself.
    #[serde(default)]
    #[schemars(
        length(max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": RELATIVE_PATH,
                "message": "subPath is relative to the volume's root: no slash at either end, none doubled, no control characters"
            },
            {
                "rule": NO_DOTS,
                "message": "subPath is relative to the volume's root: no part of it is . or .."
            }
        ])
    )]
    pub sub_path: String,
}

/// When and how often a failed attempt is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetrySettings {
    /// Whether anything is tried again.
    pub enabled: bool,
    /// Attempts after the first.
    #[schemars(range(min = 0, max = 100))]
    pub max_retries: u32,
    /// Seconds before the first retry.
    #[schemars(range(min = 0, max = 2_592_000))]
    pub retry_delay_seconds: u32,
    /// Factor between one delay and the next, a decimal number of 1 to 10 in quotes.
    #[schemars(
        length(min = 1, max = 6),
        extend("x-kubernetes-validations" = [{
            "rule": r"self.matches('^[0-9]{1,2}([.][0-9]{1,3})?$') && double(self) >= 1.0 && double(self) <= 10.0",
            "message": "backoffMultiplier is a number from 1 to 10 in quotes, such as \"2.0\""
        }])
    )]
    pub backoff_multiplier: String,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { enabled: true, max_retries: 3, retry_delay_seconds: 300, backoff_multiplier: "2.0".to_owned() }
    }
}

impl RetrySettings {
    /// The policy that the lifecycle follows.
    pub fn policy(&self) -> Result<RetryPolicy, InvalidSetting> {
        let multiplier = self.backoff_multiplier.parse::<f64>().ok().filter(|m| (1.0..=10.0).contains(m));
        Ok(RetryPolicy {
            enabled: self.enabled,
            max_retries: self.max_retries,
            retry_delay: Duration::from_secs(self.retry_delay_seconds.into()),
            backoff_multiplier: multiplier.ok_or_else(|| InvalidSetting {
                field: "retryPolicy.backoffMultiplier",
                message: format!("{:?} is no number from 1 to 10", self.backoff_multiplier),
            })?,
        })
    }
}

/// How long what ended conversions left is kept, in days since their ends. Of a source and its output, one is removed only
/// while the other is there, unless both have a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetentionSettings {
    /// Sources in .processed/; left out, for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36_500))]
    pub processed_days: Option<u32>,
    /// Sources in .errors/, with their reports; left out, for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36_500))]
    pub errors_days: Option<u32>,
    /// Published directories; left out, for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36_500))]
    pub outputs_days: Option<u32>,
}

impl RetentionSettings {
    /// The limits that the watcher follows.
    #[must_use]
    pub fn limits(&self) -> Retention {
        Retention {
            processed_days: self.processed_days,
            errors_days: self.errors_days,
            outputs_days: self.outputs_days,
        }
    }
}

impl HyperConversion {
    /// The reason of `Ready` while the queue is stopped and has no pod.
    pub(crate) const AT_REST: &str = "Stopped";

    /// Whether the controller has taken its pod away because it is stopped.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let conditions = self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        self.spec.run_state == RunState::Stopped
            && conditions::condition(conditions, ConditionType::Ready).is_some_and(|said| said.reason == Self::AT_REST)
    }
}

/// What the queue is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HyperConversionStatus {
    /// Generation of the spec that is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, WatcherAvailable, StorageReady, NotificationsReady, Drained, Stopped; Reconciled while the controller
    /// can't look, and Admitting while the API server refuses the Jobs of attempts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions::schema")]
    pub conditions: Vec<Condition>,
    /// Stable artifacts that wait for a slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// Files that still grow, or wait for their companions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settling: Option<u64>,
    /// Conversions that wait for their next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrying: Option<u64>,
    /// Conversions that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// Ends of conversions ever, objects that are pruned included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<QueueTotals>,
    /// When something last started, progressed or finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Timestamp>,
}

/// Ends of conversions ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueTotals {
    /// Artifacts converted and published.
    pub succeeded: u64,
    /// Artifacts that failed for good.
    pub failed: u64,
    /// Artifacts skipped as duplicates.
    pub duplicates: u64,
    /// Retries made.
    pub retried: u64,
    /// Conversions that were cancelled.
    pub cancelled: u64,
}
