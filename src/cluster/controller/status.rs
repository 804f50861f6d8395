// SPDX-License-Identifier: Apache-2.0
//! The whole of what the controller writes to a conversion's status, and which of it is new.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::error::Error;
use crate::cluster::api::owners::Writer;
use crate::cluster::api::{
    ConditionState, ConditionType, ConversionJob, ConversionJobStatus, JobPhase, condition, set_by, set_condition,
};
use crate::conversion::admission::RunState;
use crate::conversion::guest::boot::BootResult;
use crate::conversion::guest::fix::{Outcome, Unfixed};
use crate::conversion::guest::outcome::GuestOutcome;
use crate::conversion::lifecycle::{ONLY_FOLDER, Step, next_step};
use crate::conversion::status::End;
use crate::conversion::{Attempt, ConversionStatus, Failure, Reason, Stage};

/// The reason of `Admitted` while older conversions have all slots.
pub(super) const WAITING_FOR_SLOT: &str = "WaitingForSlot";

/// The phase, for people to read.
#[must_use]
pub(super) fn phase(state: &ConversionStatus) -> JobPhase {
    match next_step(state) {
        Step::Finish(End::Succeeded) => JobPhase::Succeeded,
        Step::Finish(End::Failed) => JobPhase::Failed,
        Step::Finish(End::Duplicate) => JobPhase::Duplicate,
        Step::Finish(End::Cancelled) | Step::GiveBack(_) => JobPhase::Cancelled,
        Step::Stage(_) if state.attempts.is_empty() => JobPhase::Pending,
        Step::Stage(_) | Step::Start(_) => JobPhase::Queued,
        Step::Park { .. } => JobPhase::Retrying,
        Step::Watch(_) if !has_job(state) => JobPhase::Queued,
        Step::Watch(_) if state.open_attempt().is_some_and(|open| open.kind.is_some()) => JobPhase::Planning,
        Step::Watch(_) => JobPhase::Converting,
        Step::Publish { .. } => JobPhase::Publishing,
    }
}

/// Whether the open attempt's Job was made. The attempt is recorded before it, and the Job may be refused.
fn has_job(state: &ConversionStatus) -> bool {
    state.open_attempt().is_some_and(|open| open.job_uid.is_some())
}

/// What refuses the Job of the open attempt of a conversion, and that of any other of its queue; `None` where the Job is
/// there, or nothing refuses it.
#[must_use]
pub(super) fn refused(conversion: &ConversionJob) -> Option<&Condition> {
    let status = conversion.status.as_ref()?;
    let lacks_job =
        status.state.open_attempt().is_some_and(|open| open.job_uid.is_none()) && status.state.end.is_none();
    let said = lacks_job.then(|| condition(&status.conditions, ConditionType::Admitted)).flatten()?;
    (said.status == "False" && Error::OF_JOBS.contains(&said.reason.as_str())).then_some(said)
}

/// The status with `state` and what follows from it. `waiting` is why the open attempt's pod doesn't start, or the next
/// attempt has to wait.
#[must_use]
pub(super) fn revised(
    conversion: &ConversionJob,
    state: ConversionStatus,
    admitted: Option<ConditionState>,
    waiting: Option<&ConditionState>,
    now: Timestamp,
) -> ConversionJobStatus {
    let mut status = conversion.status.clone().unwrap_or_default();
    let generation = conversion.meta().generation;
    status.observed_generation = generation;
    status.phase = Some(phase(&state));
    status.attempt_count = Some(state.counted_attempts());
    let admitted = admitted.or_else(|| recovered(condition(&status.conditions, ConditionType::Admitted)?, &state));
    let converted = converted(&state, waiting);
    let ended = ended(&state);
    let fixed = fixed(status.guest.as_ref(), &state);
    let checked = checked(status.guest.as_ref(), &state);
    status.state = state;
    for (kind, said) in [
        (ConditionType::Admitted, admitted),
        (ConditionType::Converted, Some(converted)),
        (ConditionType::GuestFixed, fixed),
        (ConditionType::BootChecked, checked),
    ] {
        if let Some(said) = said {
            set_condition(&mut status.conditions, kind, said, generation, now);
        }
    }
    for (kind, said) in ended {
        match said {
            Some(said) => set_condition(&mut status.conditions, kind, said, generation, now),
            None => status.conditions.retain(|condition| condition.type_ != kind.as_str()),
        }
    }
    status
}

/// What is said of the guest; `None` where nothing was to be done to it, or nobody knows yet.
fn fixed(guest: Option<&GuestOutcome>, state: &ConversionStatus) -> Option<ConditionState> {
    let of_fix = state.failure.as_ref().filter(|failure| failure.stage == Some(Stage::Fix));
    if let Some(failure) = of_fix {
        return Some(because("False", failure));
    }
    let guest = guest?;
    Some(match guest.outcome? {
        Outcome::Fixed => {
            let message = format!("files of the guest that were changed: {}", guest.changes);
            ConditionState::new("True", "Fixed", message)
        }
        Outcome::NothingToDo => ConditionState::new("True", "NothingToDo", "the guest starts from virtio as it is"),
        Outcome::NotAGuest => ConditionState::new("True", "NotAGuest", "no system is on the disks"),
        Outcome::Unfixed => {
            let (reason, message) = why_unfixed(guest);
            ConditionState::new("False", reason, message)
        }
    })
}

fn why_unfixed(guest: &GuestOutcome) -> (String, String) {
    let why = guest.message.as_deref().unwrap_or("metadata.json says why");
    (
        guest.reason.unwrap_or(Unfixed::GuestFixFailed).to_string(),
        format!("{why}; the disks are as they were converted"),
    )
}

/// What is said of the guest's boot; `None` where that was not to be tried, or nobody knows yet.
fn checked(guest: Option<&GuestOutcome>, state: &ConversionStatus) -> Option<ConditionState> {
    let of_boot = state.failure.as_ref().filter(|failure| failure.stage == Some(Stage::Boot));
    if let Some(failure) = of_boot {
        let status = if failure.reason == Reason::GuestNotBooting { "False" } else { "Unknown" };
        return Some(because(status, failure));
    }
    let check = guest?.boot_check.as_ref()?;
    let why = || check.message.clone().unwrap_or_else(|| "metadata.json says why".to_owned());
    Some(match check.result {
        BootResult::Booted => ConditionState::new("True", "Booted", "the guest booted when it was tried"),
        BootResult::NotBooting => ConditionState::new("False", Reason::GuestNotBooting.to_string(), why()),
        BootResult::Unchecked => ConditionState::new("Unknown", "Unchecked", why()),
    })
}

/// Why it is not known that the guest of a conversion whose disks are whole boots, although that was asked.
#[must_use]
pub(super) fn not_booted(conversion: &ConversionJob) -> Option<(String, String)> {
    let status = conversion.status.as_ref()?;
    let said = checked(status.guest.as_ref(), &ConversionStatus::default())?;
    (said.status != "True").then_some((said.reason, said.message))
}

/// Why the guest of a conversion whose disks are whole stays unfixed.
#[must_use]
pub(super) fn unfixed(conversion: &ConversionJob) -> Option<(String, String)> {
    let guest = conversion.status.as_ref()?.guest.as_ref()?;
    (guest.outcome == Some(Outcome::Unfixed)).then(|| why_unfixed(guest))
}

/// The conditions by which tools that know nothing of conversions tell how one stands; each is said only while it is
/// true.
fn ended(state: &ConversionStatus) -> [(ConditionType, Option<ConditionState>); 4] {
    let failure = state.failure.as_ref();
    let unsuccessful = || {
        let (reason, message) = match failure {
            Some(failure) => (failure.reason.to_string(), failure.advice()),
            None => ("Cancelled".to_owned(), "cancelled".to_owned()),
        };
        ConditionState::new("True", reason, message)
    };
    let complete = match state.end {
        Some(End::Succeeded) => Some(ConditionState::new("True", "Succeeded", "converted and published")),
        Some(End::Duplicate) => Some(ConditionState::new("True", "Duplicate", "converted before")),
        _ => None,
    };
    let failed = matches!(state.end, Some(End::Failed | End::Cancelled)).then(unsuccessful);
    let stalled = matches!(state.end, Some(End::Failed)).then(unsuccessful);
    let reconciling = state
        .end
        .is_none()
        .then(|| ConditionState::new("True", format!("{:?}", phase(state)), "the conversion has not ended yet"));
    [
        (ConditionType::Reconciling, reconciling),
        (ConditionType::Stalled, stalled),
        (ConditionType::Complete, complete),
        (ConditionType::Failed, failed),
    ]
}

/// The directory of a conversion that was published lately and is not called complete yet.
#[must_use]
pub(super) fn newly_published(conversion: &ConversionJob, now: Timestamp) -> Option<String> {
    let status = conversion.status.as_ref()?;
    // Those of an earlier release get their condition now, and were published long ago.
    let age = now.duration_since(status.state.completion_time?);
    let is_new = status.state.end == Some(End::Succeeded)
        && age < jiff::SignedDuration::from_mins(10)
        && condition(&status.conditions, ConditionType::Complete).is_none();
    let published = condition(&status.conditions, ConditionType::Published).filter(|c| c.status == "True");
    published.filter(|_| is_new).map(|published| published.message.clone())
}

/// Why a conversion does not start its next attempt, where the queue's run state forbids it.
#[must_use]
pub(super) fn held(state: &ConversionStatus, run_state: RunState) -> Option<ConditionState> {
    let step = next_step(state);
    let (reason, why) = match run_state {
        _ if !matches!(step, Step::Stage(_) | Step::Start(_)) => return None,
        RunState::Running => return None,
        RunState::Paused => ("Paused", "the queue is paused"),
        RunState::Stopped => ("Stopped", "the queue is stopped"),
        // Conversions that were queued when draining began go on.
        RunState::Draining if step != Step::Stage(Attempt(1)) => return None,
        RunState::Draining => ("Draining", "the queue drains what it had when that began"),
    };
    Some(ConditionState::new(
        "False",
        reason,
        format!("{why}; it goes on once spec.runState of its HyperConversion is Running"),
    ))
}

/// The condition that replaces a past error. Waiting for a slot is no error.
fn recovered(before: &Condition, state: &ConversionStatus) -> Option<ConditionState> {
    if before.status != "False" || before.reason == WAITING_FOR_SLOT {
        return None;
    }
    Some(match state.attempts.as_slice() {
        [] => ConditionState::new("Unknown", "Pending", "no attempt has asked for a slot"),
        _ => ConditionState::new("True", "Admitted", "holds a slot"),
    })
}

/// Who converted, as far as that is known: the folder has the name of the pod.
pub(super) fn converted_by(folder: &str) -> String {
    if folder == ONLY_FOLDER {
        "a pod that nobody saw converted it".to_owned()
    } else {
        format!("pod {folder} converted it")
    }
}

/// Converted, in the words of a failure.
pub(super) fn because(status: &'static str, failure: &Failure) -> ConditionState {
    ConditionState::new(status, failure.reason.to_string(), failure.advice())
}

/// The condition of the conversion work itself.
fn converted(state: &ConversionStatus, waiting: Option<&ConditionState>) -> ConditionState {
    let step = next_step(state);
    if let (Step::Watch(_) | Step::Stage(_) | Step::Start(_), Some(waiting)) = (&step, waiting) {
        return waiting.clone();
    }
    match (step, &state.failure) {
        (Step::Publish { folder, .. }, _) => ConditionState::new("True", "Converted", converted_by(&folder)),
        (Step::Finish(End::Succeeded), _) => ConditionState::new("True", "Converted", "converted and published"),
        (Step::Finish(End::Duplicate), _) => ConditionState::new("False", "Duplicate", "converted before"),
        (Step::Finish(_) | Step::GiveBack(_), Some(failure)) => because("False", failure),
        (Step::Finish(_) | Step::GiveBack(_), None) => ConditionState::new("False", "Cancelled", "cancelled"),
        (Step::Watch(n), _) if !has_job(state) => {
            ConditionState::new("Unknown", "Pending", format!("attempt {n} waits for its Job"))
        }
        (Step::Watch(n), _) => ConditionState::new("Unknown", "Converting", format!("attempt {n} is under way")),
        (Step::Park { next, until }, Some(failure)) => {
            let ConditionState { status, reason, message } = because("Unknown", failure);
            ConditionState { status, reason, message: format!("{message}; attempt {next} follows at {until}") }
        }
        (Step::Stage(_) | Step::Start(_), Some(failure)) => because("Unknown", failure),
        _ => ConditionState::new("Unknown", "Pending", "no attempt has started"),
    }
}

/// The patch that applies everything that the controller reports, or `None` if it is reported already.
///
/// It carries the resource version on which the decision was made: after another write in between, it is refused.
#[must_use]
pub(super) fn patch(conversion: &ConversionJob, wanted: &ConversionJobStatus) -> Option<Value> {
    if conversion.status.as_ref() == Some(wanted) {
        return None;
    }
    let state = &wanted.state;
    let conditions = set_by(&wanted.conditions, ConditionType::OF_CONVERSION, Writer::Controller);
    let mut status = json!({
        "observedGeneration": wanted.observed_generation,
        "phase": wanted.phase,
        "conditions": conditions,
        "attempts": state.attempts,
        "earlierAttempts": Some(state.earlier_attempts).filter(|earlier| earlier.total > 0),
        "attemptCount": wanted.attempt_count,
        "nextRetryTime": state.next_retry_time,
        "failure": state.failure,
        "converted": state.converted,
        "end": state.end,
        "startTime": state.start_time,
        "target": wanted.target,
        "volumes": Some(&wanted.volumes).filter(|volumes| !volumes.is_empty()),
        "virtualMachine": wanted.virtual_machine,
        "guest": wanted.guest,
        "otherVirtualMachines": Some(&wanted.other_virtual_machines).filter(|others| !others.is_empty()),
        "completionTime": state.completion_time,
    });
    let fields = status.as_object_mut().expect("written as an object above");
    fields.retain(|_, value| !value.is_null());
    Some(json!({
        "apiVersion": ConversionJob::api_version(&()),
        "kind": ConversionJob::kind(&()),
        "metadata": {
            "name": conversion.name_any(),
            "namespace": conversion.namespace(),
            "uid": conversion.uid(),
            "resourceVersion": conversion.resource_version(),
        },
        "status": status,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::api::owners::tests::{OF_CONVERSION, assert_whole};
    use crate::cluster::controller::delivery;

    #[test]
    fn an_error_that_is_over_is_said_no_more_and_a_wait_for_a_slot_goes_on() {
        let at: Timestamp = "2026-01-17T09:00:00Z".parse().expect("a time");
        let conversion = |state: Value, status: &str, reason: &str| -> ConversionJob {
            let mut whole = json!({"conditions": [{"type": "Admitted", "status": status, "reason": reason, "message": "m",
                                                   "lastTransitionTime": "2026-01-17T09:00:00Z"}]});
            whole.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
            let spec = json!({"queueRef": {"name": "q"}, "source": {"path": "a.raw"}});
            serde_json::from_value(json!({"metadata": {"name": "a-00000001"}, "spec": spec, "status": whole})).unwrap()
        };
        let open = json!({"staged": 1, "attempts": [{"number": 1, "jobName": "a-00000001-1", "startTime": "2026-01-17T09:00:00Z"}]});
        for (state, status, reason, after) in [
            (&json!({}), "False", "QueueNotFound", ("Unknown", "Pending")),
            (&open, "False", "TimedOut", ("True", "Admitted")),
            (&open, "True", "Admitted", ("True", "Admitted")),
            (&json!({"staged": 1}), "False", "WaitingForSlot", ("False", "WaitingForSlot")),
        ] {
            let conversion = conversion(state.clone(), status, reason);
            let state = conversion.status.clone().unwrap().state;
            let revised = revised(&conversion, state, None, None, at);
            let said = condition(&revised.conditions, ConditionType::Admitted).unwrap();
            assert_eq!((said.status.as_str(), said.reason.as_str()), after, "{reason}");
        }
    }

    #[test]
    fn tools_that_know_nothing_of_conversions_read_how_one_stands() {
        let failure = json!(Failure::new(Reason::Corrupt, "m"));
        for (state, conditions) in [
            (json!({}), vec![("Reconciling", "Pending")]),
            (
                json!({"failure": failure, "staged": 1, "attempts": [{"number": 1, "reason": "SourceIO", "endTime": "2026-01-17T09:00:00Z"}],
                    "nextRetryTime": "2026-01-17T09:05:00Z"}),
                vec![("Reconciling", "Retrying")],
            ),
            (json!({"end": "Succeeded"}), vec![("Complete", "Succeeded")]),
            (json!({"end": "Duplicate"}), vec![("Complete", "Duplicate")]),
            (json!({"end": "Cancelled"}), vec![("Failed", "Cancelled")]),
            (json!({"end": "Failed", "failure": failure}), vec![("Stalled", "Corrupt"), ("Failed", "Corrupt")]),
        ] {
            let before = ["Reconciling", "Stalled", "Complete", "Failed"].map(|kind| {
                json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-17T09:00:00Z"})
            });
            let conversion: ConversionJob = serde_json::from_value(json!({
                "metadata": {"name": "a-00000001"}, "status": {"conditions": before},
                "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
            }))
            .unwrap();
            let state: ConversionStatus = serde_json::from_value(state).unwrap();
            let revised = revised(&conversion, state.clone(), None, None, Timestamp::UNIX_EPOCH);
            let own = ["Admitted", "Converted"];
            let said = revised.conditions.iter().filter(|c| !own.contains(&c.type_.as_str()));
            let said: Vec<_> = said.map(|c| (c.type_.as_str(), c.reason.as_str())).collect();
            assert_eq!(said, conditions, "{state:?}");
        }
    }

    #[test]
    fn a_guest_is_said_to_be_fixed_or_why_not_and_nothing_where_nothing_was_asked() {
        let said = |guest: Value, state: Value| {
            let guest: Option<GuestOutcome> = serde_json::from_value(guest).unwrap();
            let state: ConversionStatus = serde_json::from_value(state).unwrap();
            fixed(guest.as_ref(), &state).map(|said| (said.status, said.reason))
        };
        let unfixed = json!({"outcome": "unfixed", "reason": "GuestEncrypted", "message": "m"});
        let failed = |reason, stage| json!({"failure": Failure::new(reason, "m").at_stage(stage)});
        for (guest, state, expected) in [
            (json!(null), json!({}), None),
            (json!({"outcome": "fixed", "changes": 3}), json!({}), Some(("True", "Fixed"))),
            (json!({"outcome": "nothingToDo"}), json!({}), Some(("True", "NothingToDo"))),
            (json!({"outcome": "notAGuest"}), json!({}), Some(("True", "NotAGuest"))),
            (unfixed, json!({}), Some(("False", "GuestEncrypted"))),
            (json!(null), failed(Reason::GuestNoSpace, Stage::Fix), Some(("False", "GuestNoSpace"))),
            (json!(null), failed(Reason::Corrupt, Stage::Copy), None),
        ] {
            let expected = expected.map(|(status, reason)| (status, reason.to_owned()));
            assert_eq!(said(guest.clone(), state.clone()), expected, "{guest} {state}");
        }
    }

    #[test]
    fn a_guest_is_said_to_boot_or_not_and_nothing_where_that_was_not_tried() {
        let seen = |result: &str| json!({"bootCheck": {"result": result, "message": "m"}});
        let failed = |reason, stage| json!({"failure": Failure::new(reason, "m").at_stage(stage)});
        for (guest, state, expected) in [
            (json!(null), json!({}), None),
            (json!({"outcome": "fixed"}), json!({}), None),
            (seen("booted"), json!({}), Some(("True", "Booted"))),
            (seen("notBooting"), json!({}), Some(("False", "GuestNotBooting"))),
            (seen("unchecked"), json!({}), Some(("Unknown", "Unchecked"))),
            (json!(null), failed(Reason::GuestNotBooting, Stage::Boot), Some(("False", "GuestNotBooting"))),
            (json!(null), failed(Reason::GuestFixFailed, Stage::Boot), Some(("Unknown", "GuestFixFailed"))),
            (json!(null), failed(Reason::GuestNoSpace, Stage::Fix), None),
        ] {
            let of: Option<GuestOutcome> = serde_json::from_value(guest.clone()).unwrap();
            let of_state: ConversionStatus = serde_json::from_value(state.clone()).unwrap();
            let said = checked(of.as_ref(), &of_state).map(|said| (said.status, said.reason));
            assert_eq!(said, expected.map(|(status, reason)| (status, reason.to_owned())), "{guest} {state}");
            assert_eq!(
                fixed(of.as_ref(), &of_state).is_some(),
                guest["outcome"] == "fixed" || state["failure"]["stage"] == "fix"
            );
        }
    }

    #[test]
    fn a_conversion_says_for_which_pod_it_waits_until_the_next_attempt_is_under_way() {
        let failure = json!(Failure::new(Reason::Disrupted, "m"));
        let ended = json!({"number": 1, "reason": "Disrupted", "endTime": "2026-01-17T09:00:00Z"});
        let waits = ConditionState::new("Unknown", "WaitingForPod", "pod p");
        for (state, reason) in [
            (json!({"failure": failure, "staged": 1, "attempts": [ended]}), "WaitingForPod"),
            (json!({"end": "Succeeded", "attempts": [ended]}), "Converted"),
        ] {
            let state: ConversionStatus = serde_json::from_value(state).unwrap();
            assert_eq!(converted(&state, Some(&waits)).reason, reason);
            assert_ne!(converted(&state, None).reason, "WaitingForPod");
        }
    }

    #[test]
    fn a_conversion_whose_job_is_refused_is_queued_and_holds_up_its_queue_until_the_job_is_there() {
        let at = "2026-01-17T09:00:00Z";
        let conversion = |attempt: Value, reason: &str| -> ConversionJob {
            let said = json!([{"type": "Admitted", "status": "False", "reason": reason, "message": "exceeded quota", "lastTransitionTime": at}]);
            serde_json::from_value(json!({
                "metadata": {"name": "a-00000001"}, "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
                "status": {"staged": 1, "attempts": [attempt], "conditions": said},
            }))
            .unwrap()
        };
        let recorded = json!({"number": 1, "startTime": at, "jobName": "a-00000001-1"});
        let made = json!({"number": 1, "startTime": at, "jobName": "a-00000001-1", "jobUID": "u"});
        let planning = json!({"number": 1, "startTime": at, "kind": "Plan"});
        for (attempt, reason, phase, converted, is_refused) in [
            (&recorded, "Forbidden", JobPhase::Queued, "Pending", true),
            (&recorded, "InvalidSpec", JobPhase::Queued, "Pending", true),
            (&planning, "ApiRefused", JobPhase::Queued, "Pending", true),
            (&recorded, "NameTaken", JobPhase::Queued, "Pending", false),
            (&made, "Forbidden", JobPhase::Converting, "Converting", false),
        ] {
            let conversion = conversion(attempt.clone(), reason);
            let state = conversion.status.clone().unwrap().state;
            assert_eq!(refused(&conversion).is_some(), is_refused, "{attempt} {reason}");
            let said = ConditionState::new("False", reason, "exceeded quota");
            let mut revised = revised(&conversion, state, Some(said), None, at.parse().unwrap());
            delivery::say(&mut revised, None, at.parse().unwrap());
            let of = |kind| condition(&revised.conditions, kind).unwrap().reason.as_str();
            assert_eq!((revised.phase, of(ConditionType::Converted)), (Some(phase), converted), "{attempt}");
            assert_eq!(of(ConditionType::Reconciling), format!("{phase:?}"));
        }
    }

    #[test]
    fn a_patch_of_the_controller_applies_its_own_fields_and_all_of_them() {
        let at = "2026-01-17T09:00:00Z";
        let whole = json!({
            "staged": 1, "attempts": [{"number": 1, "startTime": at}], "earlierAttempts": {"total": 1}, "nextRetryTime": at, "converted": "p", "end": "Failed",
            "startTime": at, "completionTime": at, "failure": Failure::new(Reason::Corrupt, "m"), "sourceLocation": "a.raw",
            "target": {}, "volumes": [{"claimName": "c"}], "virtualMachine": {"name": "m"},
            "otherVirtualMachines": [{"name": "n"}], "guest": {"outcome": "fixed", "bootCheck": {"result": "booted"}},
            "outputs": [{"path": "a", "format": "raw", "virtualSizeBytes": 1, "allocatedBytes": 1}], "duration": "1s",
            "conditions": [{"type": "Succeeded", "status": "Unknown", "reason": "R", "message": "", "lastTransitionTime": at}],
        });
        let conversion: ConversionJob = serde_json::from_value(json!({
            "metadata": {"name": "a-00000001", "generation": 1}, "status": whole,
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
        }))
        .unwrap();
        let state = conversion.status.clone().unwrap().state;
        let admitted = ConditionState::new("True", "Admitted", "holds a slot");
        let mut revised = revised(&conversion, state, Some(admitted), None, at.parse().unwrap());
        // They exclude one another.
        for kind in [
            ConditionType::Planned,
            ConditionType::TargetReady,
            ConditionType::MachineCreated,
            ConditionType::Reconciling,
            ConditionType::Complete,
        ] {
            let said = ConditionState::new("True", "R", "m");
            set_condition(&mut revised.conditions, kind, said, None, at.parse().unwrap());
        }
        let status = &patch(&conversion, &revised).unwrap()["status"];
        assert_whole(status, &OF_CONVERSION, ConditionType::OF_CONVERSION, Writer::Controller);
    }
}
