// SPDX-License-Identifier: Apache-2.0
//! What became of a guest, in few words: what a worker tells of it when it ends, and a status keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::boot::BootReport;
use super::fix::{Outcome, Unfixed};
use super::report::GuestReport;
use crate::conversion::machine::{CardModel, DiskBus, Machine};

/// Most doubts that are kept.
const MAX_DOUBTS: usize = 16;

/// The outcome of a fix with the devices that follow from it, and what a boot check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestOutcome {
    /// Absent where it was not to be made ready for virtio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it is unfixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Unfixed>,
    /// The same in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Files of the guest that were written or removed; metadata.json lists them.
    pub changes: u32,
    /// Bus of its disks on KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// Model of its network cards on KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic: Option<CardModel>,
    /// What was seen when its boot was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_check: Option<BootReport>,
    /// What was guessed or lost of its machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
}

impl GuestOutcome {
    /// What a report says of the guest of `machine`; `None` where nothing was done to it and its boot was not tried.
    #[must_use]
    pub fn of(report: &GuestReport, machine: Option<&Machine>) -> Option<Self> {
        let GuestReport { fix, boot_check, .. } = report;
        if fix.is_none() && boot_check.is_none() {
            return None;
        }
        let fixed = fix.as_ref().map_or_else(Self::default, |fix| Self {
            outcome: Some(fix.outcome),
            reason: fix.reason.map(|reason| Unfixed::of(reason).unwrap_or(Unfixed::GuestFixFailed)),
            message: fix.message.clone(),
            changes: u32::try_from(fix.changes.len()).unwrap_or(u32::MAX),
            bus: Some(fix.bus),
            nic: Some(fix.nic),
            ..Self::default()
        });
        let doubts = machine.map(|machine| machine.doubts.clone()).unwrap_or_default();
        Some(Self { boot_check: boot_check.clone(), doubts, ..fixed })
    }

    /// Whether the guest has the drivers of its devices for certain.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Fixed | Outcome::NothingToDo))
    }

    /// The same from an untrusted process, with texts made fit to be shown by `clean`.
    #[must_use]
    pub fn believed(mut self, clean: impl Fn(&str) -> String) -> Self {
        self.reason = self.reason.filter(|_| self.outcome == Some(Outcome::Unfixed));
        self.message = self.message.as_deref().map(&clean);
        if let Some(check) = &mut self.boot_check {
            check.message = check.message.as_deref().map(&clean);
            check.accelerator = check.accelerator.as_deref().map(&clean);
        }
        self.doubts.truncate(MAX_DOUBTS);
        for doubt in &mut self.doubts {
            *doubt = clean(doubt);
        }
        self
    }

    /// Drops the last doubt, or a message: `false` where neither is left.
    pub(in crate::conversion) fn shorten(&mut self) -> bool {
        const REST: &str = "more is in doubt, which metadata.json lists";
        let is_told = self.doubts.last().is_some_and(|doubt| doubt == REST);
        if self.doubts.len() > usize::from(is_told) {
            self.doubts.truncate(self.doubts.len() - 1 - usize::from(is_told));
            self.doubts.push(REST.to_owned());
            return true;
        }
        self.message.take().is_some() || self.boot_check.as_mut().is_some_and(|check| check.message.take().is_some())
    }
}
