// SPDX-License-Identifier: Apache-2.0
//! What a conversion needs next: one pure decision over what the caches show.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::objects::worker::TemplateDigest;
use super::outcome::{self, Outcome};
use crate::cluster::api::{ConditionType, ConversionJob, ConversionJobStatus, condition};
use crate::cluster::names;
use crate::cluster::seen::{Job, Pod};
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Observation, Step, next_step};
use crate::conversion::{Attempt, AttemptKind, AttemptRecord, Class, ConversionStatus, Failure, Reason};

/// How long the Job of a failed attempt is kept, with its pod and its log.
const KEEP_FAILED: SignedDuration = SignedDuration::from_hours(1);

/// Everything that a decision is based on.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub conversion: &'a ConversionJob,
    pub run_state: RunState,
    /// Digests of the template that the specification builds for the open attempt now.
    pub template: &'a TemplateDigest,
    /// The open attempt's Job, as the cache shows it.
    pub job: Option<&'a Job>,
    /// The pods of that Job.
    pub pods: &'a [&'a Pod],
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, except to keep the status up to date.
    Wait,
    /// Start this attempt, if it holds a slot.
    Start(Attempt),
    /// An attempt is recorded and its Job isn't known: create it, or find it.
    Create(Attempt),
    /// The Job of a known UID is not in the cache: look for it, and if it is gone, the attempt is lost.
    Search(Attempt),
    /// Record this observation.
    Record(Observation),
    /// The open attempt's pod doesn't start; the reason, if known.
    Pending(Option<Failure>),
    /// The open attempt left its plan, and the watcher has not copied it yet.
    AwaitPlan,
    /// The open attempt has written its disks into their claims; `pod` did it.
    Deliver { attempt: Attempt, pod: String },
    /// The conversion ended, and left claims that are not complete.
    Discard,
}

/// The state in an object's status.
#[must_use]
pub(super) fn state(conversion: &ConversionJob) -> ConversionStatus {
    conversion.status.as_ref().map(|status| status.state.clone()).unwrap_or_default()
}

/// The state with its open attempt closed, where another writer ended the conversion meanwhile.
#[must_use]
pub(super) fn closed(mut state: ConversionStatus, now: Timestamp) -> ConversionStatus {
    let reason = state.failure.as_ref().map_or(Reason::Cancelled, |failure| failure.reason);
    if state.is_terminal()
        && let Some(open) = state.attempts.last_mut().filter(|attempt| attempt.is_open())
    {
        open.end_time = Some(now);
        open.reason = Some(reason);
    }
    state
}

/// The state with the pod and the node of its open attempt, where that ended before it was seen running.
#[must_use]
pub(super) fn witnessed(mut state: ConversionStatus, pods: &[&Pod]) -> ConversionStatus {
    if let Some(open) = state.attempts.last_mut().filter(|open| open.is_open() && open.pod_name.is_none())
        && let Some((pod_name, node_name)) = outcome::pod_and_node(pods)
    {
        open.pod_name = Some(pod_name);
        open.node_name = node_name;
    }
    state
}

/// Whether the conversion ends without ever having a Job.
#[must_use]
pub(super) fn needs_no_job(conversion: &ConversionJob) -> bool {
    !conversion.spec.duplicate_of.is_empty() || conversion.metadata.deletion_timestamp.is_some()
}

/// Decides what to do.
#[must_use]
pub(super) fn decide(view: &View) -> Decision {
    let state = state(view.conversion);
    if needs_no_job(view.conversion) {
        return Decision::Wait;
    }
    match next_step(&state) {
        Step::Start(attempt) if view.run_state.starts_attempts() => Decision::Start(attempt),
        Step::Watch(_) => match state.open_attempt() {
            Some(open) => watch(view, open),
            None => Decision::Wait,
        },
        Step::Finish(_) | Step::GiveBack(_) if status(view).is_some_and(ConversionJobStatus::has_leftovers) => {
            Decision::Discard
        }
        Step::Publish { .. } => match unpublishable(view.conversion) {
            Some(failure) => Decision::Record(Observation::Unpublishable { failure }),
            None => Decision::Wait,
        },
        _ => Decision::Wait,
    }
}

fn status<'a>(view: &View<'a>) -> Option<&'a ConversionJobStatus> {
    view.conversion.status.as_ref()
}

fn watch(view: &View, open: &AttemptRecord) -> Decision {
    let attempt = open.number;
    let plans = open.kind == Some(AttemptKind::Plan);
    if plans && status(view).is_some_and(|status| status.plan.is_some()) {
        return Decision::Record(Observation::Planned(attempt));
    }
    if let Some(pod) = open.pod_name.clone().filter(|_| status(view).is_some_and(ConversionJobStatus::is_delivering)) {
        return Decision::Deliver { attempt, pod };
    }
    let stopped = || failed(attempt, Reason::Disrupted, "the queue was stopped");
    let Some(job) = view.job else {
        return match (&open.job_uid, view.run_state) {
            (Some(_), _) => Decision::Search(attempt),
            (None, RunState::Stopped) => stopped(),
            (None, _) => Decision::Create(attempt),
        };
    };
    let uid = job.metadata.uid.clone();
    match &open.job_uid {
        None => {
            return Decision::Record(Observation::Running { attempt, job_uid: uid, pod_name: None, node_name: None });
        }
        Some(known) if uid.as_ref() != Some(known) => return Decision::Search(attempt),
        Some(_) => {}
    }
    match outcome::outcome_of(attempt, job, view.pods, open.pod_name.as_deref()) {
        Outcome::Ended(Observation::Done { .. }) if plans => match stall(view.conversion) {
            Some(why) => failed(attempt, Reason::Internal, why),
            None => Decision::AwaitPlan,
        },
        Outcome::Ended(Observation::Done { folder: pod, .. })
            if status(view).is_some_and(|status| !status.volumes.is_empty()) =>
        {
            Decision::Deliver { attempt, pod }
        }
        Outcome::Ended(observation) => Decision::Record(observation),
        _ if view.run_state == RunState::Stopped => stopped(),
        Outcome::Running { .. } if let Some(why) = stall(view.conversion) => failed(attempt, Reason::Stalled, why),
        Outcome::Running { pod_name, node_name } => {
            if open.pod_name.as_ref() == Some(&pod_name) && open.node_name == node_name {
                return Decision::Wait;
            }
            Decision::Record(Observation::Running { attempt, job_uid: None, pod_name: Some(pod_name), node_name })
        }
        Outcome::Waiting(_) if is_superseded(view, job, open) => {
            failed(attempt, Reason::Superseded, "the specification changed before the attempt had started")
        }
        Outcome::Waiting(why) => Decision::Pending(why),
    }
}

fn failed(attempt: Attempt, reason: Reason, message: &str) -> Decision {
    Decision::Record(Observation::Failed { attempt, failure: Failure::new(reason, message) })
}

/// Whether a Job that never ran was built from another template than the present specification's.
fn is_superseded(view: &View, job: &Job, open: &AttemptRecord) -> bool {
    let is_suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    open.pod_name.is_none()
        && !outcome::any_started(view.pods)
        && (view.template.differs(job.annotations(), is_suspended) || view.template.is_admitted_otherwise(job.labels()))
}

/// The watcher's message that the open attempt makes no progress. The watcher removes it before it stages another.
fn stall(conversion: &ConversionJob) -> Option<&str> {
    let status = conversion.status.as_ref()?;
    let said = |kind, stands: &str| condition(&status.conditions, kind).filter(|c| c.status == stands);
    // Watchers of earlier releases say it by Stalled.
    let by_earlier = || said(ConditionType::Stalled, "True").filter(|c| c.reason == "NoProgress");
    let stalled = said(ConditionType::Progressing, "False").or_else(by_earlier)?;
    Some(&stalled.message)
}

/// The watcher's failure to publish what was converted.
fn unpublishable(conversion: &ConversionJob) -> Option<Failure> {
    let status = conversion.status.as_ref()?;
    let published = condition(&status.conditions, ConditionType::Published).filter(|c| c.status == "False")?;
    let failure = Failure::new(Reason::Internal, published.message.clone());
    // The disks are on their claims, which nobody writes to again.
    Some(if status.is_written() { Failure { class: Class::Permanent, ..failure } } else { failure })
}

/// Attempts whose Job may still be there: those that are listed, and some that were until a moment ago.
pub(super) fn attempts_with_jobs(state: &ConversionStatus) -> impl Iterator<Item = Attempt> + '_ {
    const LATELY_LISTED: u32 = 20;
    let oldest = state.attempts.get(1).map_or(0, |oldest| oldest.number.0);
    let before = (oldest.saturating_sub(LATELY_LISTED).max(2)..oldest).map(Attempt);
    before.chain(state.attempts.iter().map(|record| record.number))
}

/// When to remove the Job of an attempt that isn't open: at once, unless the log of its pod may still be wanted.
///
/// A Job that still runs for an attempt whose end is recorded (stop, disruption, cancellation) is removed at once. A
/// Job that `state` doesn't know yet stays, because the Jobs' cache may be ahead of the conversions'. A Job whose pod
/// ended by itself may not show that yet: the Job controller notices it after the pod's status changed.
#[must_use]
pub(super) fn removal(state: &ConversionStatus, job: &Job) -> Option<Timestamp> {
    let attempt: Attempt = Attempt(job.labels().get(names::LABEL_ATTEMPT)?.parse().ok()?);
    if state.open_attempt().is_some_and(|open| open.number == attempt) && !state.is_terminal() {
        return None;
    }
    let Some(record) = state.attempts.iter().find(|record| record.number == attempt) else {
        // An attempt that is listed no more has ended long ago.
        let is_earlier = state.attempts.last().is_some_and(|last| attempt < last.number);
        return is_earlier.then_some(Timestamp::UNIX_EPOCH);
    };
    match record {
        AttemptRecord { reason: Some(reason), end_time: Some(end), .. }
            if outcome::is_finished(job) || ended_by_itself(*reason) =>
        {
            Some(end.saturating_add(KEEP_FAILED).unwrap_or(Timestamp::MAX))
        }
        _ => Some(Timestamp::UNIX_EPOCH),
    }
}

/// Whether an attempt that failed for this reason has no pod left that runs, or that may run yet.
fn ended_by_itself(reason: Reason) -> bool {
    reason.is_counted() && !matches!(reason, Reason::Stalled | Reason::TargetLost)
}

#[cfg(test)]
mod tests;
