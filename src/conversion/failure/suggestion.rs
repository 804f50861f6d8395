// SPDX-License-Identifier: Apache-2.0
//! What mostly helps against each reason.

use crate::conversion::remedy::Remedy;

use super::{Phase, Reason};

/// What a person can do where a pod of a queue is refused, or its containers can't be made. `fields` of the queue say how
/// much those ask for.
#[must_use]
pub(crate) fn refused_pod(fields: &[&str]) -> String {
    format!(
        "Check the queue's securityContext and {}, and the namespace's quotas, limits and pod security level",
        fields.join(" and ")
    )
}

impl Reason {
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
            Self::WorkerConfig => return refused_pod(&["spec.worker.resources"]),
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
