// SPDX-License-Identifier: Apache-2.0
//! What is to be done next for one conversion, decided from its row and from the circumstances.

use jiff::Timestamp;

use crate::conversion::Attempt;
use crate::conversion::Reason;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Step, next_step};
use crate::conversion::status::End;
use crate::ledger::{ClaimState, ConversionRow};

/// The circumstances of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    pub now: Timestamp,
    pub run_state: RunState,
    /// Whether the executor knows the conversion.
    pub is_submitted: bool,
    /// Whether a worker may still use its files.
    pub may_run: bool,
    /// Whether the moves that its state names are known to be done.
    pub is_in_place: bool,
    /// Whether the output volume has room for its next attempt.
    pub has_room: bool,
}

/// An effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing to do until something happens.
    Wait,
    /// Nothing to do until this time.
    WaitUntil(Timestamp),
    /// Wait: the next attempt needs room that isn't there.
    WaitForRoom,
    /// Move the members into the claim.
    CompleteClaim,
    /// Register it with the executor, which could not be reached before.
    Submit,
    /// Make the work directory of this attempt and tell the executor.
    Stage(Attempt),
    /// Choose where the members wait for their next attempt, and record it.
    PlanPark { until: Timestamp },
    /// Move the members there.
    CarryPark,
    /// Move the members back into the claim.
    Unpark,
    /// Bring what the attempt left into the output directory.
    Publish,
    /// Choose where the members go back to, and record it.
    PlanReturn(Reason),
    /// Move them back.
    CarryReturn,
    /// Choose where the members of an ended conversion go, and record it.
    PlanEnd(End),
    /// Move them there, and forget the conversion.
    CarryEnd,
}

/// Decides. Repeating the action after a crash is always safe.
pub(super) fn decide(row: &ConversionRow, on: Circumstances) -> Action {
    match &row.state {
        ClaimState::Claimed => Action::CompleteClaim,
        _ if !on.is_submitted => Action::Submit,
        ClaimState::Publishing { .. } if matches!(next_step(&row.status), Step::Publish { .. }) => Action::Publish,
        ClaimState::Returning { .. } => Action::CarryReturn,
        ClaimState::Terminal { .. } | ClaimState::Disposed | ClaimState::Reported => Action::CarryEnd,
        ClaimState::Parked { .. } => parked(row, on),
        // A conversion that was about to be published may still have to be given back.
        ClaimState::Submitted | ClaimState::Publishing { .. } => submitted(row, on),
    }
}

fn parked(row: &ConversionRow, on: Circumstances) -> Action {
    match next_step(&row.status) {
        Step::Finish(end) => Action::PlanEnd(end),
        Step::GiveBack(reason) => Action::PlanReturn(reason),
        _ if !on.is_in_place => Action::CarryPark,
        Step::Park { until, .. } if !row.status.is_retry_due(on.now) => Action::WaitUntil(until),
        _ if on.run_state.starts_attempts() => Action::Unpark,
        _ => Action::Wait,
    }
}

fn submitted(row: &ConversionRow, on: Circumstances) -> Action {
    let step = next_step(&row.status);
    if on.may_run {
        return Action::Wait;
    }
    match step {
        Step::Start(_) | Step::Watch(_) => Action::Wait,
        Step::Stage(attempt) => stage(attempt, on),
        // It is due already: it was parked, or its delay is zero.
        Step::Park { next, .. } if row.status.is_retry_due(on.now) => stage(next, on),
        Step::Park { until, .. } => Action::PlanPark { until },
        Step::Publish { .. } => Action::Publish,
        Step::GiveBack(reason) => Action::PlanReturn(reason),
        Step::Finish(end) => Action::PlanEnd(end),
    }
}

/// While stopped nothing is staged: what a stop left is staged after it.
fn stage(attempt: Attempt, on: Circumstances) -> Action {
    match on.run_state {
        RunState::Stopped => Action::Wait,
        RunState::Running | RunState::Draining | RunState::Paused if on.has_room => Action::Stage(attempt),
        RunState::Running | RunState::Draining | RunState::Paused => Action::WaitForRoom,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::conversion::lifecycle::{Observation, RetryPolicy, advance};
    use crate::conversion::{CONTRACT_VERSION, Claim, ConversionId, ConversionStatus, Failure, Member};
    use crate::files::placement::Placement;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A conversion of a disk of one sector.
    pub(in crate::queue::engine) fn row(state: ClaimState, status: ConversionStatus) -> ConversionRow {
        let id = ConversionId::for_file("vm.raw", 1);
        let claim = Claim {
            contract_version: CONTRACT_VERSION,
            id: id.clone(),
            queue_uid: String::new(),
            origin: String::new(),
            folder: None,
            disks: Vec::new(),
            primary: "vm.raw".to_owned(),
            members: vec![Member { name: "vm.raw".to_owned(), size_bytes: 512, mtime_ns: 0, inode: 1, alone: None }],
            claimed_at: at(0),
            seen_at: None,
            complete_by: None,
            beginning: None,
            fingerprint: None,
            emit: None,
            date: "1970-01-01".to_owned(),
        };
        ConversionRow {
            id,
            claim,
            filepath: "/q/vm.raw".to_owned(),
            md5: None,
            duplicate_of: None,
            uid: None,
            state,
            status,
            output_path: None,
            source_location: None,
        }
    }

    fn circumstances() -> Circumstances {
        Circumstances {
            now: at(100),
            run_state: RunState::Running,
            is_submitted: true,
            may_run: false,
            is_in_place: true,
            has_room: true,
        }
    }

    fn ended(reason: Reason) -> ConversionStatus {
        let policy = RetryPolicy::default();
        let n = Attempt(1);
        let (status, _) = advance(ConversionStatus::default(), Observation::Staged(n), &policy, at(0));
        let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(0));
        advance(status, Observation::Failed { attempt: n, failure: Failure::new(reason, "") }, &policy, at(50)).0
    }

    fn parked_state() -> ClaimState {
        ClaimState::Parked { placement: Placement { dir: "/q/.errors".into(), moves: vec![] } }
    }

    #[test]
    fn nothing_is_done_for_what_the_executor_could_not_be_told_but_telling_it() {
        let untold = Circumstances { is_submitted: false, may_run: true, ..circumstances() };
        for state in [ClaimState::Submitted, parked_state(), ClaimState::Disposed] {
            assert_eq!(decide(&row(state, ConversionStatus::default()), untold), Action::Submit);
        }
        assert_eq!(decide(&row(ClaimState::Claimed, ConversionStatus::default()), untold), Action::CompleteClaim);
    }

    #[test]
    fn no_file_is_moved_while_a_worker_may_be_at_it() {
        for reason in [Reason::Corrupt, Reason::SourceIO, Reason::SourceChanged, Reason::Disrupted] {
            let row = row(ClaimState::Submitted, ended(reason));
            assert_eq!(decide(&row, Circumstances { may_run: true, ..circumstances() }), Action::Wait, "{reason}");
            assert_ne!(decide(&row, circumstances()), Action::Wait, "{reason}");
        }
    }

    #[test]
    fn a_transient_failure_is_parked_until_due_and_then_moved_back() {
        let status = ended(Reason::SourceIO);
        assert_eq!(
            decide(&row(ClaimState::Submitted, status.clone()), circumstances()),
            Action::PlanPark { until: at(350) }
        );
        let parked = row(parked_state(), status.clone());
        let on_the_way = Circumstances { is_in_place: false, ..circumstances() };
        assert_eq!(decide(&parked, on_the_way), Action::CarryPark);
        assert_eq!(decide(&parked, circumstances()), Action::WaitUntil(at(350)));
        let due = Circumstances { now: at(350), ..circumstances() };
        assert_eq!(decide(&parked, due), Action::Unpark);
        assert_eq!(decide(&parked, Circumstances { run_state: RunState::Paused, ..due }), Action::Wait);
        // Somebody set the clock back: the attempt ended at 50, which is to come. Two machines' clocks may differ so far.
        let hours_ago = Circumstances { now: at(-3600), ..circumstances() };
        assert_eq!(decide(&parked, hours_ago), Action::Unpark);
        assert_eq!(decide(&parked, Circumstances { now: at(0), ..circumstances() }), Action::WaitUntil(at(350)));
        assert_eq!(decide(&row(ClaimState::Submitted, status.clone()), hours_ago), Action::Stage(Attempt(2)));
        assert_eq!(decide(&row(ClaimState::Submitted, status), due), Action::Stage(Attempt(2)));
    }

    #[test]
    fn an_attempt_without_room_waits_and_a_stopped_queue_stages_nothing() {
        let row = row(ClaimState::Submitted, ended(Reason::OutputFull));
        assert_eq!(decide(&row, circumstances()), Action::Stage(Attempt(2)));
        let full = Circumstances { has_room: false, ..circumstances() };
        assert_eq!(decide(&row, full), Action::WaitForRoom);
        assert_eq!(decide(&row, Circumstances { run_state: RunState::Stopped, ..full }), Action::Wait);
    }

    #[test]
    fn what_changed_before_it_was_published_is_given_back() {
        let policy = RetryPolicy::default();
        let n = Attempt(1);
        let (status, _) = advance(ConversionStatus::default(), Observation::Staged(n), &policy, at(0));
        let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(0));
        let done = Observation::Done { attempt: n, folder: "pod".to_owned() };
        let (status, _) = advance(status, done, &policy, at(9));
        let state = ClaimState::Publishing { target: "1970-01-01/vm".to_owned() };
        assert_eq!(decide(&row(state.clone(), status.clone()), circumstances()), Action::Publish);
        let changed = Observation::Cancelled(Failure::new(Reason::SourceChanged, "vm.raw changed"));
        let (status, _) = advance(status, changed, &policy, at(10));
        assert_eq!(decide(&row(state, status), circumstances()), Action::PlanReturn(Reason::SourceChanged));
    }

    #[test]
    fn what_is_cancelled_while_parked_ends_where_it_lies() {
        let policy = RetryPolicy::default();
        let cancelled = Observation::Cancelled(Failure::new(Reason::Cancelled, "a newer file came"));
        let (status, _) = advance(ended(Reason::SourceIO), cancelled, &policy, at(60));
        assert_eq!(decide(&row(parked_state(), status), circumstances()), Action::PlanEnd(End::Cancelled));
    }
}
