// SPDX-License-Identifier: Apache-2.0
//! `ConversionJob`: the conversion of one artifact.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions;
use super::settings::ConversionOverrides;
use super::target::{OnFailure, TargetOverrides, TargetSettings, TargetVolume, VolumeState};
use super::virtual_machine::{MachineOverrides, MachineStatus};
use crate::conversion::guest::outcome::GuestOutcome;
use crate::conversion::machine::Machine;
use crate::conversion::plan::Plan;
use crate::conversion::{ConversionStatus, OutputFormat, Stage, Witness};

/// The conversion of one artifact, made by the watcher or by hand.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hyper2kvm.io",
    version = "v1alpha1",
    kind = "ConversionJob",
    namespaced,
    status = "ConversionJobStatus",
    derive = "PartialEq",
    shortname = "hcj",
    category = "hyper2kvm",
    doc = "The conversion of one artifact of a queue, made by the queue's watcher or by hand. Its spec is immutable: to convert again, make another one.",
    selectable = ".spec.queueRef.name",
    printcolumn(
        name = "Queue",
        type_ = "string",
        json_path = ".spec.queueRef.name",
        description = "The HyperConversion that it belongs to."
    ),
    printcolumn(
        name = "Source",
        type_ = "string",
        json_path = ".spec.source.path",
        description = "The artifact, below its queue."
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "How far it is."),
    printcolumn(
        name = "Progress",
        type_ = "integer",
        json_path = ".status.progress.percent",
        description = "Percent of the running attempt."
    ),
    printcolumn(
        name = "Attempts",
        type_ = "integer",
        json_path = ".status.attemptCount",
        description = "Attempts that count."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.failure.reason",
        description = "Why the last attempt failed.",
        priority = 1
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.attempts[-1:].nodeName",
        description = "Where the last attempt ran.",
        priority = 1
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        description = "From the first attempt to the end.",
        priority = 1
    ),
    printcolumn(
        name = "Output",
        type_ = "string",
        json_path = ".status.outputs[0].path",
        description = "The first disk, below the output.",
        priority = 1
    ),
    printcolumn(
        name = "Machine",
        type_ = "string",
        json_path = ".status.virtualMachine.name",
        description = "The VirtualMachine that its disks are for.",
        priority = 1
    ),
    printcolumn(
        name = "Guest",
        type_ = "string",
        json_path = ".status.guest.outcome",
        description = "What became of the guest, where it was to be made ready for virtio.",
        priority = 1
    ),
    validation = Rule::new("size(self.metadata.name) <= 52").message("a ConversionJob's name has at most 52 characters: names of Jobs and pods are made from it"),
    validation = Rule::new("!self.metadata.name.contains('.')").message("a ConversionJob's name has no dots: names of Jobs and pods are made from it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("a ConversionJob's spec is immutable: make another ConversionJob")
)]
pub struct ConversionJobSpec {
    /// The HyperConversion below whose queue the artifact lies.
    pub queue_ref: QueueRef,
    /// The artifact.
    pub source: Source,
    /// What this conversion does otherwise than its queue.
    #[serde(default)]
    pub conversion: ConversionOverrides,
    /// Where its disks go otherwise than the queue's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetOverrides>,
    /// Which VirtualMachine it makes otherwise than the queue's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<MachineOverrides>,
    /// What this conversion repeats, such as `web01.ova of 2026-01-17T09:45:00Z in /var/lib/hyper2kvm/output/2026-01-17/web01`.
    /// Not empty: it ends at once, without a Job. For the queue's watcher alone: one made by hand with it is cancelled.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub duplicate_of: String,
}

/// A HyperConversion in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueRef {
    /// Its name.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// The artifact of a conversion: a file below the queue and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The file, or the folder of one machine, relative to the queue's directory. By hand also below .errors/ or
    /// .processed/, to convert again.
    #[schemars(
        length(min = 1, max = 1024),
        extend("x-kubernetes-validations" = [
            {
                "rule": r"self.matches('^[^/\\x00-\\x1f\\x7f]{1,255}(/[^/\\x00-\\x1f\\x7f]{1,255})*$')",
                "message": "path is relative to the queue: no slash at either end, none doubled, no control characters"
            },
            {
                "rule": "!self.split('/').exists(part, part == '..' || part == '.')",
                "message": "path is relative to the queue: no part of it is . or .."
            },
            {
                "rule": "!self.startsWith('.processing/') && self != '.processing'",
                "message": "path lies in .processing: what is there is being converted already"
            }
        ])
    )]
    pub path: String,
    /// Base names of the files that belong to it, beside it: an OVF's disks, a descriptor's extents. By hand they may
    /// be left out: the watcher reads them from the descriptor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1000),
        inner(length(min = 1, max = 255), regex(pattern = r"^[^/\x00-\x1f\x7f]+$")),
        extend("x-kubernetes-validations" = [{
            "rule": "self.all(name, name != '.' && name != '..')",
            "message": "a companion is the name of a file beside the source"
        }])
    )]
    pub companions: Vec<String>,
    /// Bytes of all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What told the watcher that they had arrived whole: Writer (it closed the file, or renamed it to its name), Format
    /// (the mark at its end is there) or Quiet (it stood still for quietPeriodSeconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_by: Option<Witness>,
}

/// How far a conversion is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConversionJobStatus {
    /// Generation of the spec that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands, for the eye: conditions say the same to programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    /// Admitted, Converted, Published, Progressing, Succeeded; with a target Planned, TargetReady and MachineCreated; with
    /// conversion.guest `GuestFixed` and `BootChecked`; Reconciling until the end, then Complete or Failed.
    /// Succeeded is Unknown until the end; a duplicate is True/Duplicate, a cancelled one False/Cancelled. Stalled is
    /// said of one that failed for good alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions::schema")]
    pub conditions: Vec<Condition>,
    /// The conversion's state, the same struct as in a ledger's row.
    #[serde(flatten)]
    pub state: ConversionStatus,
    /// Attempts that count against maxRetries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_count: Option<u32>,
    /// How far the running attempt is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressReport>,
    /// The published disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub outputs: Vec<Output>,
    /// The machine that the disks belong to, and what was guessed or lost of it; of several machines the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// The machines after the first, where an OVF describes several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 15))]
    pub other_machines: Vec<Machine>,
    /// What a look at the source's headers showed, before anything was copied; only with a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The target as it was when the claims were named: a later change of the queue does not reach them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSettings>,
    /// The claims, one for each disk, in the order of the disks in plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub volumes: Vec<TargetVolume>,
    /// The VirtualMachine; of several the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<MachineStatus>,
    /// The VirtualMachines after the first, where an OVF describes several, in the order of the machines in plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 15))]
    pub other_virtual_machines: Vec<MachineStatus>,
    /// What became of the guest, where it was to be made ready for virtio or tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestOutcome>,
    /// What this conversion repeated: the file, when it was converted, and the directory of its disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub duplicate_of: Option<String>,
    /// Directory of the output that replaces this one's, relative to the output's directory: the source was a member, or
    /// only the beginning, of what was converted there. This one's disks stay where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub superseded_by: Option<String>,
    /// Where the source lies now, relative to the queue's directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub source_location: Option<String>,
    /// Its trace, hex, where the queue sends traces (spec.watcher.traces).
    #[serde(rename = "traceID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub trace_id: Option<String>,
    /// From the first attempt's start to the end, such as 2m5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub duration: Option<String>,
}

/// Where a conversion stands, for the eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum JobPhase {
    Pending,
    Queued,
    /// A worker looks at the source's headers, to make the claims that fit.
    Planning,
    Converting,
    /// The disks are written; the claims are completed and the machine is made.
    Delivering,
    Publishing,
    Retrying,
    Succeeded,
    Failed,
    Duplicate,
    Cancelled,
}

/// How far the running attempt is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressReport {
    /// Whole percent; 100 only when all is done.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u8,
    /// The worker's step.
    pub stage: Stage,
    /// Bytes of guest data worked through.
    pub bytes_done: u64,
    /// Bytes of guest data in all.
    pub bytes_total: u64,
    /// When the worker said so.
    pub updated_time: Timestamp,
}

/// One published disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The file, relative to the output's directory.
    #[schemars(length(max = 4096))]
    pub path: String,
    /// Its format.
    pub format: OutputFormat,
    /// Size that the guest sees.
    pub virtual_size_bytes: u64,
    /// Bytes that the file occupies.
    pub allocated_bytes: u64,
    /// Hex SHA-256 of the file, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub sha256: Option<String>,
}

impl ConversionJobStatus {
    /// The VirtualMachines, in the order of the machines in plan.
    pub fn virtual_machines(&self) -> impl Iterator<Item = &MachineStatus> {
        self.virtual_machine.iter().chain(&self.other_virtual_machines)
    }

    /// The VirtualMachine with this number.
    pub fn virtual_machine_mut(&mut self, n: usize) -> Option<&mut MachineStatus> {
        self.virtual_machine.iter_mut().chain(&mut self.other_virtual_machines).nth(n)
    }

    /// Whether a worker has written all disks into their claims.
    #[must_use]
    pub fn is_written(&self) -> bool {
        let is_written = |volume: &TargetVolume| matches!(volume.state, VolumeState::Written | VolumeState::Complete);
        !self.volumes.is_empty() && self.volumes.iter().all(is_written)
    }

    /// Whether all disks are on their claims, which belong to nobody of ours any more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.volumes.is_empty() && self.volumes.iter().all(|volume| volume.state == VolumeState::Complete)
    }

    /// Whether the conversion ended and left claims that are to go.
    #[must_use]
    pub fn has_leftovers(&self) -> bool {
        let is_left = |volume: &TargetVolume| !matches!(volume.state, VolumeState::Complete | VolumeState::Deleted);
        let deletes = self.target.as_ref().is_some_and(|target| target.on_failure == OnFailure::Delete);
        self.state.is_terminal() && deletes && self.volumes.iter().any(is_left)
    }

    /// Whether it delivers: the disks are written, and what is done with them has not ended.
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        self.state.open_attempt().is_some() && self.is_written()
    }
}
