// SPDX-License-Identifier: Apache-2.0
//! The files that a worker writes: metadata.json, failure.json and progress.json.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Stage};
use super::guest::outcome::GuestOutcome;
use super::guest::report::GuestReport;
use super::machine::Machine;
use super::options::OutputFormat;
use super::target::DiskTarget;

/// Content of metadata.json, the last file written into a work directory: it makes the directory complete. A
/// directory without it is waste.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub contract_version: u32,
    /// The conversion's id; empty, and left out, for a conversion by hand.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub tool_version: String,
    pub start_time: Timestamp,
    pub end_time: Timestamp,
    /// Whole milliseconds between the two.
    pub duration_ms: u64,
    pub source: SourceReport,
    pub disks: Vec<DiskReport>,
    /// Hardware that the OVF describes, as the first contract version knows it; absent without an OVF or where that
    /// describes several machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// The machines that the disks belong to, with what they get on KVM: one, unless an OVF describes several. Empty in
    /// reports of the first contract version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<Machine>,
    /// The guest, as far as its disks tell; absent where there are several machines, and in reports of the first
    /// contract version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestReport>,
    /// The worker's stages in their order, those of the attempt that succeeded; a stage may come again. Empty in reports
    /// of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
    /// Further files that belong to the result, by base name (none today besides the disks).
    #[serde(default)]
    pub side_files: Vec<String>,
    /// What was odd but handled, for a person.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Directory of the output that replaces this one: its source was a member of what was converted there. Written
    /// when that is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
    /// When it was found that somebody had written to the source after it was taken: it is converted again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_changed_at: Option<Timestamp>,
}

/// A stage of the worker that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageReport {
    pub stage: Stage,
    /// When it began; it ended when the next one began, the last at the report's end.
    pub start_time: Timestamp,
}

/// The source as the worker saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    pub name: String,
    /// Sum of the members' sizes.
    pub size_bytes: u64,
    /// Format and kind, as `inspect` names it (`ova`, `vmdk streamOptimized`, `vhdx dynamic`).
    pub format: String,
    /// Hex digest of the source, where the conversion computed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// One converted disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// Base name of the output file; of a disk in a target only its name.
    pub file: String,
    /// The target that it lies in; absent where it is a file beside this report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<DiskTarget>,
    pub format: OutputFormat,
    pub virtual_size_bytes: u64,
    /// Bytes that the output file occupies; on a device those that were written.
    pub allocated_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Base name of the member that this disk came from.
    pub source_member: String,
}

/// A virtual machine's hardware, from its OVF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// `bios` or `efi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    #[serde(default)]
    pub disk_controllers: Vec<DiskController>,
    #[serde(default)]
    pub nics: Vec<Nic>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_os: Option<String>,
}

/// A disk controller of the OVF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskController {
    /// `ide`, `scsi`, `sata`, `nvme`.
    pub kind: String,
    /// Model as the OVF names it (`lsilogic`, `VirtualSCSI`, `AHCI`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Output files of the disks behind it.
    #[serde(default)]
    pub disks: Vec<String>,
}

/// A network card of the OVF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// Content of failure.json: the message's fields, and details for a person on call. At most
/// [`FailureReport::MAX_BYTES`] when written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureReport {
    pub contract_version: u32,
    pub failure: Failure,
    /// The error and its causes, outermost first.
    #[serde(default)]
    pub error_chain: Vec<String>,
    /// The worker's last log lines.
    #[serde(default)]
    pub log_tail: Vec<String>,
}

impl FailureReport {
    /// Largest file that is read.
    pub const MAX_BYTES: usize = 64 << 10;
}

/// The small JSON message that a failed worker leaves where Kubernetes reads it. The same failure stands in
/// failure.json, with more details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationMessage {
    pub contract_version: u32,
    /// Its fields stand beside `contractVersion`: reason, class, phase, stage, message, suggestion, neededBytes.
    #[serde(flatten)]
    pub failure: Failure,
}

impl TerminationMessage {
    /// Largest message that the kubelet keeps of one container (`MaxContainerTerminationMessageLength`).
    pub const MAX_BYTES: usize = 4096;

    /// The message as it is written, its text cut so that the whole fits [`Self::MAX_BYTES`].
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut message = self.clone();
        loop {
            let json = serde_json::to_string(&message).expect("a struct of strings and numbers serialises");
            if json.len() <= Self::MAX_BYTES || message.failure.message.is_empty() {
                return json;
            }
            let text = &mut message.failure.message;
            let keep = text.len().saturating_sub(json.len() - Self::MAX_BYTES);
            text.truncate(text.floor_char_boundary(keep));
        }
    }
}

/// Content of progress.json, written at most every second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    pub contract_version: u32,
    pub stage: Stage,
    /// Bytes of guest data worked through.
    pub bytes_done: u64,
    /// Bytes of guest data in all.
    pub bytes_total: u64,
    pub updated_time: Timestamp,
}

impl Progress {
    /// Whole percent, 100 only when all is done.
    #[must_use]
    pub fn percent(&self) -> u8 {
        match self.bytes_total {
            0 => 0,
            total => {
                let percent = u128::from(self.bytes_done.min(total)) * 100 / u128::from(total);
                u8::try_from(percent).unwrap_or(100)
            }
        }
    }
}

/// The short message of an attempt that succeeded, where a guest was to be fixed or tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessMessage {
    pub contract_version: u32,
    pub guest: GuestOutcome,
}

impl SuccessMessage {
    /// The message as it is written, cut so that the whole fits [`TerminationMessage::MAX_BYTES`].
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut message = self.clone();
        loop {
            let json = serde_json::to_string(&message).expect("a struct of strings and numbers serialises");
            if json.len() <= TerminationMessage::MAX_BYTES || !message.guest.shorten() {
                return json;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversion::{CONTRACT_VERSION, Reason};

    #[test]
    fn a_success_tells_as_many_doubts_as_the_kubelet_keeps_and_that_there_are_more() {
        let message = |doubts: usize| {
            let doubts = (0..doubts).map(|n| format!("{n} {}", "d".repeat(300))).collect();
            let guest = GuestOutcome { message: Some("m".repeat(400)), doubts, ..GuestOutcome::default() };
            let json = SuccessMessage { contract_version: CONTRACT_VERSION, guest }.to_json();
            assert!(json.len() <= TerminationMessage::MAX_BYTES, "{}", json.len());
            serde_json::from_str::<SuccessMessage>(&json).unwrap().guest.doubts
        };
        assert_eq!(message(3).len(), 3);
        let most = message(32);
        assert!((8..32).contains(&most.len()), "{}", most.len());
        assert_eq!(most.last().unwrap(), "more is in doubt, which metadata.json lists");
        assert!(most[most.len() - 2].starts_with(&(most.len() - 2).to_string()));
    }

    #[test]
    fn a_termination_message_fits_what_the_kubelet_keeps_however_long_its_text() {
        for text in ["short".to_owned(), "ü".repeat(5000), "\u{1}\"".repeat(4000)] {
            let message = TerminationMessage {
                contract_version: CONTRACT_VERSION,
                failure: Failure::new(Reason::Corrupt, &text),
            };
            let json = message.to_json();
            assert!(json.len() <= TerminationMessage::MAX_BYTES);
            let read: TerminationMessage = serde_json::from_str(&json).unwrap();
            assert!(text.starts_with(&read.failure.message));
            assert_eq!(read.failure.reason, Reason::Corrupt);
        }
    }
}
