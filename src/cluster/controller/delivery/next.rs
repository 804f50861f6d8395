// SPDX-License-Identifier: Apache-2.0
//! What a conversion's claims and its machine need next: one pure decision over what is recorded and what is there.
//!
//! ```text
//!  volume:   Planned ──▶ Created ──▶ Written ──▶ Complete        machine: Planned ──▶ Accepted ──▶ Created
//!               ▲           │ too small, lost       (nobody's)                dry run       made, and its users'
//!               └───────────┘
//! ```
//!
//! A conversion has as many machines as its plan, each with claims of its own.
//!
//! Names are recorded before anything has them; a claim is ours by its UID, or by its owner's while its UID is not
//! recorded. So every step may be repeated after a crash, and nothing of somebody else's is touched.

use crate::cluster::api::{MachineState, MachineStatus, TargetVolume, VolumeState};

/// What is there under the recorded name of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Absent,
    /// Ours, by its UID or its owner's.
    Ours {
        uid: String,
        complete: bool,
    },
    /// Ours, and being deleted.
    Going,
    /// Somebody else's.
    Foreign,
}

/// What is there under the recorded name of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    Absent,
    /// Made for this conversion.
    Ours {
        uid: String,
    },
    Foreign,
    /// Nobody can tell: `KubeVirt` is not served, or the controller may not look.
    Unknown,
}

/// What the last attempt found wrong with claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The attempt.
    pub attempt: u32,
    /// The claims, by their numbers; none where it may be any of them.
    pub claims: Vec<u32>,
    /// Whether they are too small, and not lost.
    pub too_small: bool,
}

impl Fault {
    /// Whether this claim is to be made anew for it, and was not yet.
    fn is_of(&self, n: usize, volume: &TargetVolume) -> bool {
        let is_meant = self.claims.is_empty() || self.claims.iter().any(|claim| usize::try_from(*claim) == Ok(n));
        is_meant && volume.remade_after < self.attempt
    }
}

/// Where the conversion is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// An attempt that converts is to start.
    Before { fault: Option<Fault>, has_slot: bool },
    /// The worker has written all disks.
    After,
    /// It ended otherwise than by a success, and its incomplete claims are to go.
    Ended,
}

/// Everything that the decision is based on.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub stage: &'a Stage,
    pub volumes: &'a [TargetVolume],
    /// What is there for each of them.
    pub claims: &'a [Claim],
    /// How many machines are wanted.
    pub wanted: usize,
    /// Those that have names, and what is there under each.
    pub machines: &'a [(&'a MachineStatus, &'a Machine)],
    /// UID of the machine that each claim is to be given to.
    pub owners: &'a [Option<&'a str>],
    /// Whether pods of the conversion are there, running or ended.
    pub has_pods: bool,
}

/// The next step. Each is one write at most, to the API or to the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Record names for the claims, and for the machines.
    Name,
    /// Record another name for this claim: the one it has is somebody else's.
    RenameClaim(usize),
    /// Record another name for this machine.
    RenameMachine(usize),
    /// Ask the API server whether it would take this machine; then record that it would.
    TryMachine(usize),
    /// Ask for a slot.
    AskSlot,
    /// Create this claim.
    CreateClaim(usize),
    /// Record these claims as they are there: their UIDs.
    Adopt(Vec<(usize, String)>),
    /// Record that this claim is not there: it is made again.
    Forget(usize),
    /// Record this claim, which is gone, as one to be made anew: larger, where it was too small.
    Remake(usize),
    /// Delete this claim, which is ours and not complete.
    DeleteClaim(usize),
    /// Record that these claims are not there and stay so.
    RecordDeleted(Vec<usize>),
    /// Wait until what is being deleted is gone.
    AwaitClaim(usize),
    /// Start the attempt that converts.
    Convert,
    /// Remove the worker's Job, and wait until its pod is gone.
    RemoveWorkers,
    /// Take our hands off this claim, which holds its disk.
    Complete(usize),
    /// Record that these claims are complete.
    RecordComplete(Vec<usize>),
    /// A claim that a disk was written to is gone.
    Lost(usize),
    /// Create this machine.
    CreateMachine(usize),
    /// Record this machine as it is there.
    RecordMachine(usize, String),
    /// Give these claims to their machines, to be deleted with them; then record that.
    HandOver(Vec<usize>),
    /// Wait for `KubeVirt`.
    AwaitKubevirt,
    /// Nothing is left to do here.
    Done,
}

/// Decides what to do next.
#[must_use]
pub(super) fn next(view: &View<'_>) -> Next {
    match view.stage {
        Stage::Before { fault, has_slot } => before(view, fault.as_ref(), *has_slot),
        Stage::After => after(view),
        Stage::Ended => ended(view),
    }
}

fn before(view: &View<'_>, fault: Option<&Fault>, has_slot: bool) -> Next {
    if view.volumes.is_empty() || view.machines.len() < view.wanted {
        return Next::Name;
    }
    let volumes = || view.volumes.iter().zip(view.claims).enumerate();
    for (n, (volume, claim)) in volumes() {
        let is_faulty = fault.is_some_and(|fault| fault.is_of(n, volume));
        match claim {
            Claim::Foreign => return Next::RenameClaim(n),
            Claim::Going => return Next::AwaitClaim(n),
            // Only of a conversion that was delivered, and which is not converted again.
            Claim::Ours { complete: true, .. } => return Next::Lost(n),
            Claim::Ours { .. } if is_faulty => {
                return if view.has_pods { Next::RemoveWorkers } else { Next::DeleteClaim(n) };
            }
            Claim::Absent if is_faulty => return Next::Remake(n),
            Claim::Absent if volume.state != VolumeState::Planned => return Next::Forget(n),
            Claim::Ours { .. } | Claim::Absent => {}
        }
    }
    let planned = |(_, (machine, _)): &(usize, &(&MachineStatus, _))| machine.state == MachineState::Planned;
    if let Some((n, (_, found))) = view.wanted_machines().find(planned) {
        return match found {
            Machine::Unknown => Next::AwaitKubevirt,
            Machine::Foreign => Next::RenameMachine(n),
            Machine::Absent | Machine::Ours { .. } => Next::TryMachine(n),
        };
    }
    if !has_slot {
        return Next::AskSlot;
    }
    let absent = view.claims.iter().position(|claim| *claim == Claim::Absent);
    if let Some(n) = absent {
        return Next::CreateClaim(n);
    }
    let unrecorded = volumes().filter(|(_, (volume, _))| volume.state != VolumeState::Created);
    let seen: Vec<_> = unrecorded
        .filter_map(|(n, (_, claim))| match claim {
            Claim::Ours { uid, .. } => Some((n, uid.clone())),
            _ => None,
        })
        .collect();
    if seen.is_empty() { Next::Convert } else { Next::Adopt(seen) }
}

fn after(view: &View<'_>) -> Next {
    let open = || view.open(|state| state != VolumeState::Complete);
    if open().next().is_some() && view.has_pods {
        return Next::RemoveWorkers;
    }
    if let Some((n, _)) = open().find(|(_, claim)| !matches!(claim, Claim::Ours { .. })) {
        return Next::Lost(n);
    }
    if let Some((n, _)) = open().find(|(_, claim)| matches!(claim, Claim::Ours { complete: false, .. })) {
        return Next::Complete(n);
    }
    if open().next().is_some() {
        return Next::RecordComplete(open().map(|(n, _)| n).collect());
    }
    if view.machines.len() < view.wanted {
        return Next::Name;
    }
    let open = |(_, (machine, _)): &(usize, &(&MachineStatus, _))| machine.state != MachineState::Created;
    if let Some((n, (_, found))) = view.wanted_machines().find(open) {
        return match found {
            Machine::Unknown => Next::AwaitKubevirt,
            Machine::Foreign => Next::RenameMachine(n),
            Machine::Ours { uid } => Next::RecordMachine(n, uid.clone()),
            Machine::Absent => Next::CreateMachine(n),
        };
    }
    let is_open =
        |volume: &TargetVolume, owner: Option<&str>| owner.is_some() && volume.machine_uid.as_deref() != owner;
    let ours = view.volumes.iter().zip(view.owners).enumerate().filter(|(_, (volume, owner))| is_open(volume, **owner));
    let ours: Vec<_> = ours.map(|(n, _)| n).collect();
    if ours.is_empty() { Next::Done } else { Next::HandOver(ours) }
}

fn ended(view: &View<'_>) -> Next {
    let open = || view.open(|state| !matches!(state, VolumeState::Complete | VolumeState::Deleted));
    if let Some((n, _)) = open().find(|(_, claim)| matches!(claim, Claim::Ours { complete: false, .. })) {
        return Next::DeleteClaim(n);
    }
    // Of a conversion that died between the two.
    let is_complete = |claim: &Claim| matches!(claim, Claim::Ours { complete: true, .. });
    let complete: Vec<_> = open().filter(|(_, claim)| is_complete(claim)).map(|(n, _)| n).collect();
    if !complete.is_empty() {
        return Next::RecordComplete(complete);
    }
    // Kubernetes keeps one that is being deleted until its last pod has ended.
    let gone: Vec<_> = open().map(|(n, _)| n).collect();
    if gone.is_empty() { Next::Done } else { Next::RecordDeleted(gone) }
}

impl<'a> View<'a> {
    /// The machines that are wanted, by their numbers.
    fn wanted_machines(&self) -> impl Iterator<Item = (usize, &'a (&'a MachineStatus, &'a Machine))> {
        self.machines.iter().take(self.wanted).enumerate()
    }

    /// The claims of the volumes of which `wanted` holds, by their numbers.
    fn open(&self, wanted: impl Fn(VolumeState) -> bool) -> impl Iterator<Item = (usize, &'a Claim)> {
        let all = self.volumes.iter().zip(self.claims).enumerate();
        all.filter(move |(_, (volume, _))| wanted(volume.state)).map(|(n, (_, claim))| (n, claim))
    }
}

#[cfg(test)]
mod tests;
