// SPDX-License-Identifier: Apache-2.0
//! What a status says of a delivery that follows from what is recorded in it.

use jiff::Timestamp;

use crate::cluster::api::{
    ConditionState, ConditionType, ConversionJobStatus, JobPhase, TargetVolume, VolumeState, condition, set_condition,
};
use crate::conversion::AttemptKind;

/// Sets the phase and the conditions of a conversion with a target; nothing of one without.
pub(crate) fn say(status: &mut ConversionJobStatus, generation: Option<i64>, now: Timestamp) {
    let plans =
        status.state.open_attempt().is_some_and(|open| open.kind == Some(AttemptKind::Plan) && open.job_uid.is_some());
    if status.is_delivering() {
        status.phase = Some(JobPhase::Delivering);
    }
    let planned = match &status.plan {
        Some(plan) => {
            let disks = plan.disks.len();
            let bytes: u64 = plan.disks.iter().map(|disk| disk.virtual_size_bytes).fold(0, u64::saturating_add);
            Some(ConditionState::new("True", "Planned", format!("{disks} disks of {} MiB", bytes.div_ceil(1 << 20))))
        }
        None => plans.then(|| ConditionState::new("Unknown", "Planning", "a worker looks at the source's headers")),
    };
    let target = target(status);
    for (kind, said) in [(ConditionType::Planned, planned), (ConditionType::TargetReady, target)] {
        if let Some(said) = said {
            set_condition(&mut status.conditions, kind, said, generation, now);
        }
    }
}

/// What is said of the claims; `None` where what is said already stays.
fn target(status: &ConversionJobStatus) -> Option<ConditionState> {
    if status.volumes.is_empty() {
        return None;
    }
    let names = status.volumes.iter().map(|volume| volume.claim_name.as_str()).collect::<Vec<_>>().join(", ");
    let all = |state| status.volumes.iter().all(|volume: &TargetVolume| volume.state == state);
    if all(VolumeState::Complete) {
        return Some(ConditionState::new("True", "Complete", format!("the disks are on {names}")));
    }
    if status.volumes.iter().any(|volume| volume.state == VolumeState::Deleted) {
        return Some(ConditionState::new("False", "Deleted", format!("incomplete claims were deleted: {names}")));
    }
    // Why they are not there is said until they are.
    let is_held = condition(&status.conditions, ConditionType::TargetReady).is_some_and(|c| c.status == "False");
    if is_held && status.volumes.iter().any(|volume| volume.state == VolumeState::Planned) {
        return None;
    }
    let (reason, what) = match () {
        () if status.is_written() => ("Written", "the disks are written"),
        () if all(VolumeState::Created) => ("Created", "the claims are there, without their disks"),
        () => ("Planned", "the claims have names"),
    };
    Some(ConditionState::new("Unknown", reason, format!("{what}: {names}")))
}
