// SPDX-License-Identifier: Apache-2.0
//! Why a conversion fails: one table of reasons, which determines class, exit code, phase and suggestion.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::VariantArray;

use super::contract::exit_code;
use super::printable::printable;
use super::remedy::Remedy;

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

    /// What a person can do about it; empty where there is nothing to do.
    #[must_use]
    pub fn suggestion(self, phase: Phase) -> String {
        let fixed = match self {
            Self::UnsupportedFormat => {
                "Convert or re-export to one of: .vmdk .ova .ovf .vhd .vhdx .vdi .qcow2 .raw .img .ami .hdd .hds, \
                 also packed as .gz .xz .zst .bz2 .zip"
            }
            Self::FormatMismatch => "Rename the file to what it is, or re-export it",
            Self::UnsupportedSectorSize => "Export the disk with 512-byte sectors",
            Self::OutputWouldProbe => "Use qcow2 output, or inspect the guest's first sectors",
            Self::UnsafeReference => "Consolidate snapshots and export one self-contained disk",
            Self::MissingMember => "Copy every file of the export, then drop the descriptor again",
            Self::Corrupt => "Re-export the VM from source, the disk image may be corrupted",
            Self::Truncated => Remedy::CopyAgain.text(),
            Self::ManifestMismatch => Remedy::RemoveManifest.text(),
            Self::Encrypted => "Decrypt the disk before the export",
            Self::TooLarge => "Raise conversion.maxVirtualSize (max_virtual_size on one host) if this image is trusted",
            Self::PermissionDenied => "Check file permissions and ensure daemon has required access",
            Self::OutputFull => "Free up disk space or configure a different output directory",
            Self::OutputQuota => {
                "Raise the quota that limits the output directory (of its user, group, project, qtree or fileset)"
            }
            Self::QueueMissing => "Install Kueue, or take worker.queueName out of the HyperConversion's spec",
            Self::SourceIO => "Check network connectivity to source system",
            Self::OutputIO => "Check the output volume (dmesg, df), then run it again",
            Self::OutOfMemory => "Reduce max_concurrent_jobs or increase system memory",
            Self::SourceChanged | Self::Recalled => "Wait until the upload is finished",
            Self::WrongMember => "Copy the file that belongs to the descriptor into the queue directory",
            Self::WorkerImage => "Check the image name and pull secrets",
            Self::WorkerConfig => {
                "Check the queue's securityContext, and the namespace's quotas, limits and pod security level"
            }
            Self::Unschedulable => {
                "Check that the queue's claims exist and can be mounted, and that a node has what the pod asks for"
            }
            Self::TargetPending => {
                "Look at the claim's events: its storage class, that class's provisioner, and the namespace's quota"
            }
            Self::TargetDenied => {
                "Set device_ownership_from_security_context = true in the node's containerd or CRI-O for block devices, \
                 or the queue's securityContext.fsGroup for file systems"
            }
            Self::TargetTooSmall => {
                "Its claim is made anew, and larger; if it stays too small, raise target.filesystemOverhead"
            }
            Self::TargetInUse => "End what uses the claim, or remove the disk.img in it if nobody needs that",
            Self::TargetLost => "Its claim is made anew",
            Self::MachineRefused => {
                "Set right what the message names, or set virtualMachine.create to Never and apply virtualmachine.yaml"
            }
            Self::MachineNotServed => {
                "Install KubeVirt and set kubevirt.enabled in the chart, or set virtualMachine.create to Never"
            }
            Self::Stalled | Self::DeadlineExceeded | Self::Internal => {
                return format!("Review logs for {phase} phase errors and retry if transient");
            }
            Self::SourceMissing => "Bring the file into the queue, then ask for it again",
            Self::DisruptedTooOften => "Find out what ends its workers, then retry it",
            Self::GuestUnsupported | Self::GuestAmbiguous => {
                "Convert it without a fix of its guest, and run it on sata and e1000e"
            }
            Self::GuestEncrypted => "Decrypt the guest's system before the export, or convert it without a fix",
            Self::GuestHibernated => "Shut the guest down wholly, then export it again",
            Self::GuestNoSpace => "Free room on the guest's file systems, then export it again",
            Self::GuestDriversMissing => {
                "Install virtio drivers in the guest before the export, or convert it without a fix"
            }
            Self::GuestFixFailed => "Check that QEMU and the appliance are installed (hyper2kvm appliance build)",
            Self::GuestNotBooting => "Convert it without a fix of its guest, and look at its console",
            Self::Disrupted | Self::Suspended | Self::Superseded | Self::JobLost | Self::Killed | Self::Cancelled => "",
        };
        fixed.to_owned()
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

/// A failure as data: the content of error.json, the status and a notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// What that means for a retry.
    pub class: Class,
    /// Where in the conversion.
    pub phase: Phase,
    /// The worker's step at the time, where a worker was at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// What happened, naming the file and the place in it.
    pub message: String,
    /// What a person can do about it.
    #[serde(default)]
    pub suggestion: String,
    /// Free bytes that the output volume must have before another attempt makes sense (`OutputFull`), or bytes that a
    /// target must have (`TargetTooSmall`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_bytes: Option<u64>,
    /// Numbers, from 0, of the disks whose targets it is about (`TargetTooSmall`, `TargetLost`); none where it is about all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub targets: Vec<u32>,
    /// The member that belongs to another machine (`WrongMember`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// The message without the file name with which most of them begin, for a sentence that has named the file already.
#[must_use]
pub(crate) fn without_name<'a>(message: &'a str, filename: &str) -> &'a str {
    message.strip_prefix(filename).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message)
}

impl Failure {
    /// A failure with the table's class, phase and suggestion for its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self::in_phase(reason, reason.phase(), message)
    }

    /// The same, in a phase that is known more exactly than by the table. What the message says of others' names and
    /// texts is made [`printable`].
    pub fn in_phase(reason: Reason, phase: Phase, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            reason,
            class: reason.class(),
            phase,
            stage: None,
            message: match printable(&message) {
                Cow::Borrowed(_) => message,
                Cow::Owned(shown) => shown,
            },
            suggestion: reason.suggestion(phase),
            needed_bytes: None,
            targets: Vec::new(),
            member: None,
        }
    }

    /// What happened and what a person can do about it, as one text.
    #[must_use]
    pub fn advice(&self) -> String {
        match self.suggestion.as_str() {
            "" => self.message.clone(),
            suggestion => format!("{}. {suggestion}", self.message.trim_end_matches('.')),
        }
    }

    /// Suggests what helps in this case, instead of what mostly helps.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<Option<Remedy>>) -> Self {
        if let Some(remedy) = remedy.into() {
            remedy.text().clone_into(&mut self.suggestion);
            if remedy.is_of_installation() {
                self.class = Class::Configuration;
            }
        }
        self
    }

    /// The exit code of a worker, or of a conversion by hand, that fails so.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.class {
            class if class == self.reason.class() => self.reason.exit_code(),
            Class::Permanent => exit_code::REFUSED,
            Class::Configuration => exit_code::CONFIGURATION,
            _ => self.reason.exit_code(),
        }
    }

    /// Names the worker's step.
    #[must_use]
    pub fn at_stage(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_reasons_exit_with_a_code_that_is_retried() {
        for &reason in Reason::ALL {
            let retried = matches!(reason.exit_code(), 1 | 12 | 137);
            assert_eq!(reason.class() == Class::Transient, retried, "{reason}");
        }
    }

    #[test]
    fn whatever_a_person_has_to_set_right_names_the_remedy() {
        for &reason in Reason::ALL {
            let is_theirs = matches!(reason.class(), Class::Permanent | Class::Configuration | Class::GivenBack)
                || reason == Reason::SourceMissing;
            let suggestion = reason.suggestion(reason.phase());
            assert!(!is_theirs || !suggestion.is_empty(), "{reason}");
            let advice = Failure::new(reason, "it said so.").advice();
            let expected =
                if suggestion.is_empty() { "it said so.".to_owned() } else { format!("it said so. {suggestion}") };
            assert_eq!(advice, expected);
        }
    }

    #[test]
    fn the_remedy_of_a_reason_fits_its_cause() {
        use crate::conversion::file_name::{EXTENSIONS, PACKED};
        let suggestion = |reason: Reason| reason.suggestion(reason.phase());
        let unsupported = suggestion(Reason::UnsupportedFormat);
        for extension in EXTENSIONS.iter().chain(&PACKED) {
            assert!(unsupported.contains(&format!(".{extension}")), "{extension}: {unsupported}");
        }
        assert_eq!(suggestion(Reason::Truncated), Remedy::CopyAgain.text());
        assert!(suggestion(Reason::OutputIO).contains("output volume"));
        assert!(suggestion(Reason::ManifestMismatch).contains("remove its manifest"));
        let told = Failure::new(Reason::UnsupportedFormat, "unpack it.").with_remedy(Remedy::InMessage);
        assert_eq!(told.advice(), "unpack it.", "no second remedy");
    }

    #[test]
    fn what_only_a_person_sets_right_is_never_retried_whatever_its_reason() {
        let failure = Failure::new(Reason::GuestFixFailed, "no appliance");
        assert_eq!((failure.class, failure.exit_code()), (Class::Transient, 12));
        let failure = failure.with_remedy(Remedy::BuildAppliance);
        assert_eq!((failure.class, failure.exit_code()), (Class::Configuration, 11));
        let failure = Failure::new(Reason::Internal, "256 files").with_remedy(Remedy::RaiseOpenFiles);
        assert_eq!((failure.class, failure.exit_code()), (Class::Configuration, 11));
    }

    #[test]
    fn an_attempt_that_only_waited_for_its_place_is_not_counted() {
        for reason in [
            Reason::OutputFull,
            Reason::TargetPending,
            Reason::TargetTooSmall,
            Reason::MachineRefused,
            Reason::MachineNotServed,
        ] {
            assert!(!reason.is_counted(), "{reason}");
        }
        for reason in [Reason::PermissionDenied, Reason::TargetDenied, Reason::TargetInUse, Reason::TargetLost] {
            assert!(reason.is_counted(), "{reason}");
        }
    }
}
