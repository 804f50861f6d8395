// SPDX-License-Identifier: Apache-2.0
//! What became of a guest that was to be made ready for virtio.
//!
//! Texts and lists are bounded as those of an inspection are ([`super::Guest`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};

use super::{Answer, Doubt, FixKind, OperatingSystem};
use crate::conversion::Reason;

/// The outcome, and everything that was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GuestFix {
    pub outcome: Outcome,
    /// Present exactly where the outcome is `unfixed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Unfixed>,
    /// The reason in a sentence, with the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OperatingSystem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// The kernels that have an initramfs, newest first.
    pub kernels: Vec<FixedKernel>,
    /// In the order in which they were made. Empty unless the outcome is `fixed`.
    pub changes: Vec<Change>,
    /// What was not changed although it may matter, and why.
    pub left: Vec<Doubt>,
}

/// How it ended. fixed: the disks were changed, checked and unmounted. nothingToDo: the guest starts from virtio as it is.
/// unfixed: the disks are as they were converted. notAGuest: no system is on them. Absent where it was not to be made ready for
/// virtio.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum Outcome {
    /// The disks were changed, checked and unmounted.
    Fixed,
    /// The guest boots from virtio as it is.
    NothingToDo,
    /// The disks are to be published as they were converted.
    #[default]
    Unfixed,
    /// No system is on the disks.
    NotAGuest,
}

/// Why a guest stays unfixed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, EnumString, IntoStaticStr,
)]
pub enum Unfixed {
    /// A system, file system, boot loader or initramfs that is not treated.
    GuestUnsupported,
    /// Several systems, and nothing says which one.
    GuestAmbiguous,
    /// The system is encrypted.
    GuestEncrypted,
    /// The system sleeps on its disk.
    GuestHibernated,
    /// Its file systems have no room for what must be added.
    GuestNoSpace,
    /// The guest has no drivers for virtio, and none were given.
    GuestDriversMissing,
    /// The appliance or a tool failed, or was not done in time.
    GuestFixFailed,
    /// The fixed guest did not boot when it was tried.
    GuestNotBooting,
}

impl Unfixed {
    /// The same as this reason of a failure, if that is about a guest.
    #[must_use]
    pub fn of(reason: Reason) -> Option<Self> {
        reason.to_string().parse().ok()
    }
}

impl From<Unfixed> for Reason {
    fn from(unfixed: Unfixed) -> Self {
        match unfixed {
            Unfixed::GuestUnsupported => Self::GuestUnsupported,
            Unfixed::GuestAmbiguous => Self::GuestAmbiguous,
            Unfixed::GuestEncrypted => Self::GuestEncrypted,
            Unfixed::GuestHibernated => Self::GuestHibernated,
            Unfixed::GuestNoSpace => Self::GuestNoSpace,
            Unfixed::GuestDriversMissing => Self::GuestDriversMissing,
            Unfixed::GuestFixFailed => Self::GuestFixFailed,
            Unfixed::GuestNotBooting => Self::GuestNotBooting,
        }
    }
}

/// The file system that holds the system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Root {
    /// As an inspection names it: `disk 0 partition 1`, `vg/lv`.
    pub volume: String,
    /// `ext4`, `xfs`, `btrfs`, …
    pub content: String,
}

/// A kernel and its initramfs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FixedKernel {
    pub version: String,
    /// Path in the guest.
    pub initramfs: String,
    /// Whether it found a virtio disk before, and does now.
    pub virtio_before: Answer,
    pub virtio_after: Answer,
}

/// A file that was written or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    pub fix: FixKind,
    /// Path in the guest.
    pub file: String,
    /// Where the file as it was is kept; absent where there was none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
}
