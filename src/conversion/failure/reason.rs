// SPDX-License-Identifier: Apache-2.0
//! Reasons of failures, and what each of them determines: class, exit code and phase.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::VariantArray;

use crate::conversion::contract::exit_code;

/// Why an attempt or a conversion ended without success. What a person reads, what decides a retry and what a
/// metric counts all come from here.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, VariantArray,
)]
pub enum Reason {
    /// No reader takes this extension or content.
    UnsupportedFormat,
    /// Extension and content disagree, or the content is two formats at once.
    FormatMismatch,
    /// A disk of 4096-byte sectors.
    UnsupportedSectorSize,
    /// The raw output would be taken for another format.
    OutputWouldProbe,
    /// The image names a file outside its own group: backing file, data file, parent, extent.
    UnsafeReference,
    /// A disk that the OVF or descriptor names is not there.
    MissingMember,
    /// The structure contradicts itself.
    Corrupt,
    /// The file ends before what it says it holds.
    Truncated,
    /// A digest differs from the manifest's.
    ManifestMismatch,
    /// The image is encrypted.
    Encrypted,
    /// The virtual size is above the limit.
    TooLarge,
    /// The file system refused access.
    PermissionDenied,
    /// The output volume has no room.
    OutputFull,
    /// The output volume refused to be written again and again, and said each time that it had room.
    OutputQuota,
    /// Reading the source failed.
    SourceIO,
    /// Writing the output failed.
    OutputIO,
    /// The worker ran out of memory.
    OutOfMemory,
    /// The attempt made no progress for ten minutes.
    Stalled,
    /// The attempt took longer than its deadline.
    DeadlineExceeded,
    /// The source changed after it was claimed.
    SourceChanged,
    /// An OVF that names this disk arrived later.
    Recalled,
    /// The manifest says that a member, which was known by name and size alone, is another machine's.
    WrongMember,
    /// The source was gone before the start.
    SourceMissing,
    /// The worker's image can't be pulled.
    WorkerImage,
    /// The worker's container can't be configured.
    WorkerConfig,
    /// No node takes the worker's pod.
    Unschedulable,
    /// What is to admit the worker's Job is not there (Kueue).
    QueueMissing,
    /// The attempt was disrupted from outside: drain, preemption, stop, the daemon's death.
    Disrupted,
    /// The attempt was suspended (Kueue).
    Suspended,
    /// The attempt never started and the specification now builds another one.
    Superseded,
    /// Disrupted or suspended more than ten times.
    DisruptedTooOften,
    /// The Job vanished without a recorded end.
    JobLost,
    /// The pod was deleted or the process killed.
    Killed,
    /// A claim that a disk goes into is not bound yet. The controller says so, never a worker.
    TargetPending,
    /// A device or directory that a disk goes into can't be opened.
    TargetDenied,
    /// A disk does not fit into its target; `neededBytes` would do.
    TargetTooSmall,
    /// Something that is not ours lies in a disk's target, or uses it.
    TargetInUse,
    /// A disk's target is gone: its claim was deleted, or its node or device is lost.
    TargetLost,
    /// The cluster refuses the machine. The controller says so, never a worker.
    MachineRefused,
    /// The cluster has no KubeVirt, or the controller may not use it. The controller says so, never a worker.
    MachineNotServed,
    /// The conversion was deleted.
    Cancelled,
    /// The guest has a system, file system or boot loader that is not treated.
    GuestUnsupported,
    /// Several systems, or several machines: nothing says which is meant.
    GuestAmbiguous,
    /// The guest's system is encrypted.
    GuestEncrypted,
    /// The guest sleeps on its disk.
    GuestHibernated,
    /// The guest's file systems have no room for what must be added.
    GuestNoSpace,
    /// The guest has no virtio drivers, and none were given.
    GuestDriversMissing,
    /// The appliance that changes guests failed, was not done in time, or is not there.
    GuestFixFailed,
    /// The fixed guest did not boot when it was tried.
    GuestNotBooting,
    /// Anything else; a panic.
    Internal,
}

/// What a reason means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Class {
    /// The same input fails again: no retry.
    Permanent,
    /// Something around the conversion must be set right by a person: no retry.
    Configuration,
    /// May go away by itself: retried.
    Transient,
    /// The source goes back to settling; nothing is counted.
    GivenBack,
    /// Ended on purpose.
    Cancelled,
    /// Not the conversion's fault: the attempt's number is used up, but it does not count.
    NoAttempt,
}

/// Where in a conversion it failed, in the words that users of error.json know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Initialization,
    FileTypeDetection,
    ArgumentPreparation,
    OutputDirectoryCreation,
    Conversion,
    Completion,
}

/// The worker's step at the time.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, strum::Display,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Stage {
    Inspect,
    Plan,
    Copy,
    Fix,
    Boot,
    Verify,
    Report,
}

impl Reason {
    /// Every reason, in the order of the table.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The class that decides what happens next. `OutOfMemory` is transient here; its second occurrence is
    /// permanent, which `lifecycle` decides.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::UnsupportedFormat
            | Self::FormatMismatch
            | Self::UnsupportedSectorSize
            | Self::OutputWouldProbe
            | Self::UnsafeReference
            | Self::MissingMember
            | Self::Corrupt
            | Self::Truncated
            | Self::ManifestMismatch
            | Self::Encrypted
            | Self::TooLarge
            | Self::DeadlineExceeded
            | Self::TargetInUse
            | Self::DisruptedTooOften
            | Self::GuestUnsupported
            | Self::GuestAmbiguous
            | Self::GuestEncrypted
            | Self::GuestHibernated
            | Self::GuestNoSpace
            | Self::GuestNotBooting => Class::Permanent,
            Self::PermissionDenied
            | Self::OutputFull
            | Self::OutputQuota
            | Self::WorkerImage
            | Self::WorkerConfig
            | Self::Unschedulable
            | Self::QueueMissing
            | Self::TargetPending
            | Self::TargetDenied
            | Self::MachineRefused
            | Self::MachineNotServed
            | Self::GuestDriversMissing => Class::Configuration,
            Self::SourceIO
            | Self::OutputIO
            | Self::OutOfMemory
            | Self::Stalled
            | Self::JobLost
            | Self::Killed
            | Self::TargetTooSmall
            | Self::TargetLost
            | Self::GuestFixFailed
            | Self::Internal => Class::Transient,
            Self::SourceChanged | Self::Recalled | Self::WrongMember => Class::GivenBack,
            Self::SourceMissing | Self::Cancelled => Class::Cancelled,
            Self::Disrupted | Self::Suspended | Self::Superseded => Class::NoAttempt,
        }
    }

    /// Whether an attempt that ends so counts against `max_retries`.
    #[must_use]
    pub const fn is_counted(self) -> bool {
        !matches!(
            self,
            Self::OutputFull
                | Self::TargetPending
                | Self::TargetTooSmall
                | Self::MachineRefused
                | Self::MachineNotServed
        ) && matches!(self.class(), Class::Permanent | Class::Configuration | Class::Transient)
    }

    /// Whether only the controller can know it: no worker is believed that says it.
    #[must_use]
    pub(crate) const fn is_of_cluster(self) -> bool {
        matches!(self, Self::TargetPending | Self::MachineRefused | Self::MachineNotServed)
    }

    /// Whether the attempt was ended from outside.
    #[must_use]
    pub(crate) const fn is_disruption(self) -> bool {
        matches!(self, Self::Disrupted | Self::Suspended)
    }

    /// The worker's exit code for this reason; `conversion::verdict` maps it back.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::SourceChanged | Self::Recalled | Self::WrongMember => exit_code::SOURCE_CHANGED,
            Self::OutOfMemory | Self::Killed => exit_code::KILLED,
            Self::Disrupted | Self::Suspended | Self::Superseded => exit_code::ENDED,
            Self::Internal => exit_code::INTERNAL,
            // Whether it is gone, whoever started the worker sees: a network file system may have missed it once.
            Self::SourceMissing => exit_code::TRANSIENT,
            _ => match self.class() {
                Class::Permanent | Class::Cancelled => exit_code::REFUSED,
                Class::Configuration => exit_code::CONFIGURATION,
                _ => exit_code::TRANSIENT,
            },
        }
    }

    /// The phase that error.json names, unless the phase of the failure is known more exactly.
    #[must_use]
    pub const fn phase(self) -> Phase {
        match self {
            Self::UnsupportedFormat
            | Self::FormatMismatch
            | Self::UnsupportedSectorSize
            | Self::UnsafeReference
            | Self::MissingMember
            | Self::Encrypted => Phase::FileTypeDetection,
            Self::TargetPending | Self::TargetDenied | Self::TargetTooSmall | Self::TargetInUse | Self::TargetLost => {
                Phase::OutputDirectoryCreation
            }
            Self::TooLarge => Phase::ArgumentPreparation,
            Self::SourceChanged | Self::Recalled | Self::MachineRefused | Self::MachineNotServed => Phase::Completion,
            Self::SourceMissing
            | Self::WorkerImage
            | Self::WorkerConfig
            | Self::Unschedulable
            | Self::QueueMissing
            | Self::Disrupted
            | Self::Suspended
            | Self::Superseded
            | Self::DisruptedTooOften
            | Self::JobLost
            | Self::Killed
            | Self::Cancelled => Phase::Initialization,
            _ => Phase::Conversion,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Phase {
    /// The word that error.json carries.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initialization => "initialization",
            Self::FileTypeDetection => "file_type_detection",
            Self::ArgumentPreparation => "argument_preparation",
            Self::OutputDirectoryCreation => "output_directory_creation",
            Self::Conversion => "conversion",
            Self::Completion => "completion",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
