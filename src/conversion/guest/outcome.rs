// SPDX-License-Identifier: Apache-2.0
//! What became of a guest, in few words: what a worker tells of it when it ends, and a status keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fix::{Outcome, Unfixed};
use super::report::FixReport;
use crate::conversion::machine::{CardModel, DiskBus, Machine};

/// Most doubts that are kept.
const MAX_DOUBTS: usize = 16;

/// The outcome of a fix, and the devices that follow from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestOutcome {
    /// fixed: the disks were changed, checked and unmounted. nothingToDo: the guest starts from virtio as it is. unfixed: the
    /// disks are as they were converted. notAGuest: no system is on them.
    pub outcome: Outcome,
    /// Why it is unfixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Unfixed>,
    /// The same in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Files of the guest that were written or removed; metadata.json lists them.
    pub changes: u32,
    /// Bus of its disks on KVM.
    pub bus: DiskBus,
    /// Model of its network cards on KVM.
    pub nic: CardModel,
    /// What was guessed or lost of its machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
}

impl GuestOutcome {
    /// What a report says of the guest of `machine`.
    #[must_use]
    pub fn of(report: &FixReport, machine: Option<&Machine>) -> Self {
        Self {
            outcome: report.outcome,
            reason: report.reason.map(|reason| reason.to_string().parse().unwrap_or(Unfixed::GuestFixFailed)),
            message: report.message.clone(),
            changes: u32::try_from(report.changes.len()).unwrap_or(u32::MAX),
            bus: report.bus,
            nic: report.nic,
            doubts: machine.map(|machine| machine.doubts.clone()).unwrap_or_default(),
        }
    }

    /// Whether the guest has the drivers of its devices for certain.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.outcome, Outcome::Fixed | Outcome::NothingToDo)
    }

    /// The same from an untrusted process, with texts made fit to be shown by `clean`.
    #[must_use]
    pub fn believed(mut self, clean: impl Fn(&str) -> String) -> Self {
        self.reason = self.reason.filter(|_| self.outcome == Outcome::Unfixed);
        self.message = self.message.as_deref().map(&clean);
        self.doubts.truncate(MAX_DOUBTS);
        for doubt in &mut self.doubts {
            *doubt = clean(doubt);
        }
        self
    }

    /// Drops the last doubt, or the message: `false` where neither is left.
    pub(in crate::conversion) fn shorten(&mut self) -> bool {
        const REST: &str = "more is in doubt, which metadata.json lists";
        let is_told = self.doubts.last().is_some_and(|doubt| doubt == REST);
        if self.doubts.len() > usize::from(is_told) {
            self.doubts.truncate(self.doubts.len() - 1 - usize::from(is_told));
            self.doubts.push(REST.to_owned());
            return true;
        }
        self.message.take().is_some()
    }
}
