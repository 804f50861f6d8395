// SPDX-License-Identifier: Apache-2.0
//! How a conversion advances: the only place that decides retry, backoff, success and failure.
//!
//! ```text
//!            Staged             Starting               Done                Published
//!  Stage(n) ──────────▶ Start(n) ────────▶ Watch(n) ─────────▶ Publish(n) ─────────▶ Finish(Succeeded)
//!     ▲                    │              ▲   │ │
//!     │                    │      Running └───┘ │
//!     │ not counted        │ Failed             │ Failed
//!     ├◀───────────────────┴────────────────────┤
//!     │ due                transient            │ permanent, or retries used up
//!     └──── Park(n, until) ◀────────────────────┴──────────▶ Finish(Failed)
//! ```
//!
//! The status is the whole state: after any crash [`next_step`] derives the step from it again, so every step must be
//! safe to repeat.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::failure::{Class, Failure, Reason};
use super::id::Attempt;
use super::status::{AttemptKind, AttemptRecord, ConversionStatus, End};

/// Most times that a conversion's attempts may be disrupted or suspended; then it fails.
pub(crate) const MAX_DISRUPTIONS: u32 = 10;

/// Most times in a row that the output may be full although it said that it had room; then it is a quota, which free
/// space does not show, and the conversion fails.
const MAX_FULL: u32 = 10;

/// Most times in a row that a target is made anew because it was too small; then the conversion fails.
const MAX_ENLARGED: u32 = 2;

/// Delay beyond which a backoff does not grow: a schedule longer than a year is a mistake in configuration.
const MAX_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);

/// When and how often a failed conversion is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    pub enabled: bool,
    /// Attempts after the first.
    pub max_retries: u32,
    /// Delay before the first retry.
    pub retry_delay: Duration,
    /// Factor between one delay and the next.
    pub backoff_multiplier: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { enabled: true, max_retries: 3, retry_delay: Duration::from_secs(300), backoff_multiplier: 2.0 }
    }
}

impl RetryPolicy {
    /// Delay before retry `n` (from 1): `retry_delay · multiplier^(n-1)`.
    #[must_use]
    pub fn delay(&self, n: u32) -> Duration {
        let exponent = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.retry_delay.as_secs_f64() * self.backoff_multiplier.powi(exponent);
        Duration::try_from_secs_f64(seconds).unwrap_or(MAX_DELAY).min(MAX_DELAY)
    }
}

/// In place of a folder's name: the one complete folder of the attempt, where nobody saw who wrote it. No folder has this
/// name.
pub(crate) const ONLY_FOLDER: &str = "*";

/// Something that became known about a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The work directory of this attempt exists and the artifact lies in its claim.
    Staged(Attempt),
    /// This attempt is about to start; it is recorded before it starts.
    Starting { attempt: Attempt, job_name: Option<String> },
    /// The process or pod that runs this attempt became known.
    Running { attempt: Attempt, job_uid: Option<String>, pod_name: Option<String>, node_name: Option<String> },
    /// This attempt, which is about to start or runs, only plans.
    Planning(Attempt),
    /// This attempt has left its plan, and the plan is known.
    Planned(Attempt),
    /// This attempt succeeded; `folder` is what it wrote below its work directory, or [`ONLY_FOLDER`].
    Done { attempt: Attempt, folder: String },
    /// This attempt ended without success.
    Failed { attempt: Attempt, failure: Failure },
    /// The output of a finished attempt can't be published (metadata.json missing or bad).
    Unpublishable { failure: Failure },
    /// The output stands under its final name.
    Published,
    /// The conversion is cancelled now.
    Cancelled(Failure),
    /// The artifact is a duplicate.
    Duplicate,
    /// The artifact can't be converted, which was found before any attempt.
    Rejected(Failure),
}

/// What is to be done next, and who does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Queue: put the artifact into its claim, make the work directory, report `Staged`.
    Stage(Attempt),
    /// Executor: start it as soon as admission allows.
    Start(Attempt),
    /// Executor: wait for its end.
    Watch(Attempt),
    /// Queue: park the artifact in `.errors/` until then, and stage this attempt when it is due.
    Park { next: Attempt, until: Timestamp },
    /// Queue: publish what this attempt wrote in `folder`.
    Publish { attempt: Attempt, folder: String },
    /// Queue: put the members back under their names, uncounted.
    GiveBack(Reason),
    /// Queue: dispose of the source accordingly; nothing more happens.
    Finish(End),
}

/// Updates a status by an observation and returns the next step.
///
/// Observations of an attempt that isn't the open one, and any after the end, change nothing: they are repetitions.
#[must_use]
pub(crate) fn advance(
    mut status: ConversionStatus,
    observation: Observation,
    policy: &RetryPolicy,
    now: Timestamp,
) -> (ConversionStatus, Step) {
    if !status.is_terminal() {
        note(&mut status, observation, policy, now);
    }
    let step = next_step(&status);
    (status, step)
}

/// The step that a status calls for.
#[must_use]
pub(crate) fn next_step(status: &ConversionStatus) -> Step {
    if let Some(end) = status.end {
        return match (&status.failure, end) {
            (Some(failure), End::Cancelled) if failure.class == Class::GivenBack => Step::GiveBack(failure.reason),
            _ => Step::Finish(end),
        };
    }
    let last = status.attempts.last();
    if let (Some(folder), Some(last)) = (&status.converted, last) {
        return Step::Publish { attempt: last.number, folder: folder.clone() };
    }
    if let Some(open) = status.open_attempt() {
        return Step::Watch(open.number);
    }
    let next = status.next_attempt();
    if status.staged >= next.0 {
        return Step::Start(next);
    }
    match status.next_retry_time {
        Some(until) => Step::Park { next, until },
        None => Step::Stage(next),
    }
}

fn note(status: &mut ConversionStatus, observation: Observation, policy: &RetryPolicy, now: Timestamp) {
    match observation {
        Observation::Staged(attempt) => {
            if attempt == status.next_attempt() && status.staged < attempt.0 {
                status.staged = attempt.0;
                status.next_retry_time = None;
            }
        }
        Observation::Starting { attempt, job_name } => {
            if attempt == status.next_attempt() && status.staged >= attempt.0 && status.open_attempt().is_none() {
                status.start_time.get_or_insert(now);
                // Another writer recorded the staging, and that writer doesn't own the schedule.
                status.next_retry_time = None;
                status.list_attempt(AttemptRecord {
                    number: attempt,
                    kind: None,
                    job_name,
                    job_uid: None,
                    pod_name: None,
                    node_name: None,
                    start_time: Some(now),
                    end_time: None,
                    reason: None,
                });
            }
        }
        Observation::Running { attempt, job_uid, pod_name, node_name } => {
            if let Some(open) = open_mut(status, attempt) {
                open.job_uid = job_uid.or(open.job_uid.take());
                open.pod_name = pod_name.or(open.pod_name.take());
                open.node_name = node_name.or(open.node_name.take());
            }
        }
        Observation::Planning(attempt) => {
            if let Some(open) = open_mut(status, attempt) {
                open.kind = Some(AttemptKind::Plan);
            }
        }
        Observation::Planned(attempt) => {
            if let Some(open) = open_mut(status, attempt).filter(|open| open.kind == Some(AttemptKind::Plan)) {
                open.end_time = Some(now);
                status.failure = None;
            }
        }
        Observation::Done { attempt, folder } => {
            if let Some(open) = open_mut(status, attempt) {
                open.end_time = Some(now);
                status.failure = None;
                status.converted = Some(folder);
            }
        }
        Observation::Failed { attempt, failure } => {
            if let Some(open) = open_mut(status, attempt) {
                open.end_time = Some(now);
                open.reason = Some(failure.reason);
                settle_failure(status, failure, policy, now);
            }
        }
        Observation::Unpublishable { failure } => {
            if status.converted.take().is_some()
                && let Some(last) = status.attempts.last_mut()
            {
                last.reason = Some(failure.reason);
                settle_failure(status, failure, policy, now);
            }
        }
        Observation::Published => {
            if status.converted.take().is_some() {
                finish(status, End::Succeeded, now);
            }
        }
        Observation::Cancelled(failure) => {
            if let Some(open) = status.attempts.last_mut().filter(|a| a.is_open()) {
                open.end_time = Some(now);
                open.reason = Some(failure.reason);
            }
            status.converted = None;
            status.failure = Some(failure);
            finish(status, End::Cancelled, now);
        }
        Observation::Duplicate => finish(status, End::Duplicate, now),
        Observation::Rejected(failure) => {
            status.failure = Some(failure);
            finish(status, End::Failed, now);
        }
    }
}

fn open_mut(status: &mut ConversionStatus, attempt: Attempt) -> Option<&mut AttemptRecord> {
    status.attempts.last_mut().filter(|a| a.is_open() && a.number == attempt)
}

fn finish(status: &mut ConversionStatus, end: End, now: Timestamp) {
    status.end = Some(end);
    status.next_retry_time = None;
    status.completion_time = Some(now);
}

/// Decides what a failed attempt means for the conversion.
fn settle_failure(status: &mut ConversionStatus, failure: Failure, policy: &RetryPolicy, now: Timestamp) {
    let reason = failure.reason;
    let failure = match reason.class() {
        Class::NoAttempt if status.disruptions() > MAX_DISRUPTIONS => Failure::new(
            Reason::DisruptedTooOften,
            format!("disrupted {} times; last: {}", status.disruptions(), failure.message),
        ),
        _ if reason == Reason::OutputFull && status.in_a_row(reason) >= MAX_FULL => Failure::new(
            Reason::OutputQuota,
            format!(
                "the output volume was full {MAX_FULL} times in a row, and said each time that it had the room; last: {}",
                failure.message
            ),
        ),
        _ if reason == Reason::GuestFixFailed && status.in_a_row(reason) > 1 => {
            Failure { class: Class::Permanent, ..failure }
        }
        _ if reason == Reason::TargetTooSmall && status.in_a_row(reason) > MAX_ENLARGED => {
            Failure { class: Class::Permanent, ..failure }
        }
        _ if reason == Reason::OutOfMemory && status.out_of_memory() > 1 => {
            Failure { class: Class::Permanent, ..failure }
        }
        _ => failure,
    };
    let class = failure.class;
    let uncounted = !failure.reason.is_counted();
    status.failure = Some(failure);
    match class {
        Class::GivenBack | Class::Cancelled => finish(status, End::Cancelled, now),
        // The engine stages the next attempt only when there is the room. If that was not enough, it is so again.
        Class::Configuration if uncounted && status.in_a_row(reason) > 1 => {
            status.next_retry_time = Some(after(now, policy.delay(status.in_a_row(reason) - 1)));
        }
        Class::NoAttempt | Class::Configuration | Class::Transient if uncounted => {}
        Class::Transient if policy.enabled && status.counted_attempts() <= policy.max_retries => {
            status.next_retry_time = Some(after(now, policy.delay(status.counted_attempts())));
        }
        _ => finish(status, End::Failed, now),
    }
}

fn after(now: Timestamp, delay: Duration) -> Timestamp {
    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
    now.saturating_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a small number")
    }

    /// Stages, starts and fails the next attempt.
    fn fail_once(status: ConversionStatus, reason: Reason, now: i64) -> (ConversionStatus, Step) {
        let policy = RetryPolicy::default();
        let n = status.next_attempt();
        let (status, step) = advance(status, Observation::Staged(n), &policy, at(now));
        assert_eq!(step, Step::Start(n));
        let starting = Observation::Starting { attempt: n, job_name: None };
        let (status, step) = advance(status, starting, &policy, at(now));
        assert_eq!(step, Step::Watch(n));
        let failed = Observation::Failed { attempt: n, failure: Failure::new(reason, "test") };
        advance(status, failed, &policy, at(now))
    }

    #[test]
    fn a_new_conversion_waits_for_its_first_work_directory() {
        assert_eq!(next_step(&ConversionStatus::default()), Step::Stage(Attempt(1)));
    }

    #[test]
    fn transient_failures_are_retried_after_5_10_and_20_minutes() {
        let mut status = ConversionStatus::default();
        let mut now = 0;
        for (n, delay) in [(2, 300), (3, 600), (4, 1200)] {
            let (after, step) = fail_once(status, Reason::SourceIO, now);
            now += delay;
            assert_eq!(step, Step::Park { next: Attempt(n), until: at(now) });
            status = after;
        }
        let (status, step) = fail_once(status, Reason::SourceIO, now);
        assert_eq!(step, Step::Finish(End::Failed));
        assert_eq!(status.counted_attempts(), 4);
        assert_eq!(status.next_retry_time, None);
    }

    #[test]
    fn permanent_and_configuration_failures_are_not_retried() {
        for &reason in Reason::ALL {
            let retried = reason.class() == Class::Transient && reason.is_counted();
            let ends = matches!(reason.class(), Class::Permanent | Class::Configuration) && reason.is_counted();
            let (_, step) = fail_once(ConversionStatus::default(), reason, 0);
            assert_eq!(matches!(step, Step::Park { .. }), retried, "{reason}");
            assert_eq!(step == Step::Finish(End::Failed), ends, "{reason}");
        }
    }

    #[test]
    fn a_plan_is_followed_by_an_attempt_that_converts_and_is_counted_only_where_it_failed() {
        let policy = RetryPolicy::default();
        let steps = |end| {
            let started = [
                Observation::Staged(Attempt(1)),
                Observation::Starting { attempt: Attempt(1), job_name: None },
                Observation::Planning(Attempt(1)),
            ];
            let last = [end];
            let all = started.into_iter().chain(last);
            all.fold(ConversionStatus::default(), |status, seen| advance(status, seen, &policy, at(0)).0)
        };
        let planned = steps(Observation::Planned(Attempt(1)));
        assert_eq!((next_step(&planned), planned.counted_attempts()), (Step::Stage(Attempt(2)), 0));
        assert_eq!(planned.failure, None);
        let failure = Failure::new(Reason::SourceIO, "test");
        let failed = steps(Observation::Failed { attempt: Attempt(1), failure });
        assert_eq!(next_step(&failed), Step::Park { next: Attempt(2), until: at(300) });
        assert_eq!(failed.counted_attempts(), 1);
        // An attempt that converts can't end as a plan.
        let converting = steps(Observation::Staged(Attempt(2)));
        let (done, _) =
            advance(converting, Observation::Done { attempt: Attempt(1), folder: "f".into() }, &policy, at(0));
        let (after, _) = advance(done.clone(), Observation::Planned(Attempt(1)), &policy, at(1));
        assert_eq!(after, done);
    }

    #[test]
    fn an_end_that_does_not_count_uses_up_its_number_only() {
        for reason in [
            Reason::OutputFull,
            Reason::TargetTooSmall,
            Reason::TargetPending,
            Reason::MachineRefused,
            Reason::Disrupted,
            Reason::Suspended,
            Reason::Superseded,
        ] {
            let (status, step) = fail_once(ConversionStatus::default(), reason, 0);
            assert_eq!(step, Step::Stage(Attempt(2)), "{reason}");
            assert_eq!(status.counted_attempts(), 0, "{reason}");
        }
    }

    #[test]
    fn the_eleventh_disruption_is_final() {
        let mut status = ConversionStatus::default();
        for n in 1..=10 {
            let reason = if n % 2 == 0 { Reason::Disrupted } else { Reason::Suspended };
            let (after, step) = fail_once(status, reason, 0);
            assert_eq!(step, Step::Stage(Attempt(n + 1)));
            status = after;
        }
        let (status, step) = fail_once(status, Reason::Disrupted, 0);
        assert_eq!(step, Step::Finish(End::Failed));
        assert_eq!(status.failure.map(|f| f.reason), Some(Reason::DisruptedTooOften));
    }

    #[test]
    fn an_output_that_is_full_although_it_has_room_is_tried_ever_less_often_and_fails_as_a_quota() {
        let (mut status, step) = fail_once(ConversionStatus::default(), Reason::OutputFull, 0);
        assert_eq!(step, Step::Stage(Attempt(2)), "once there is the room");
        let mut now = 0;
        for (n, delay) in [(3, 300), (4, 600), (5, 1200), (6, 2400), (7, 4800), (8, 9600), (9, 19_200), (10, 38_400)] {
            let (after, step) = fail_once(status, Reason::OutputFull, now);
            now += delay;
            assert_eq!(step, Step::Park { next: Attempt(n), until: at(now) });
            assert_eq!(after.counted_attempts(), 0);
            status = after;
        }
        let (other, _) = fail_once(status.clone(), Reason::Disrupted, now);
        assert_eq!(fail_once(other, Reason::OutputFull, now).1, Step::Stage(Attempt(12)), "a new row begins");
        let (status, step) = fail_once(status, Reason::OutputFull, now);
        assert_eq!(step, Step::Finish(End::Failed));
        assert_eq!(status.failure.map(|failure| failure.reason), Some(Reason::OutputQuota));
    }

    #[test]
    fn of_many_attempts_the_first_and_the_last_twenty_are_listed_and_all_are_counted() {
        let mut status = ConversionStatus::default();
        // Each starts anew what is counted in a row; none of them counts.
        for n in 0..100 {
            let reason = if n % 2 == 0 { Reason::OutputFull } else { Reason::Superseded };
            status = fail_once(status, reason, n).0;
        }
        let numbers: Vec<_> = status.attempts.iter().map(|attempt| attempt.number.0).collect();
        assert_eq!(numbers, [vec![1], (81..=100).collect()].concat());
        assert_eq!((status.earlier_attempts.total, status.next_attempt()), (79, Attempt(101)));
        for n in 0..11 {
            status = fail_once(status, Reason::Disrupted, n).0;
        }
        assert_eq!(status.failure.map(|failure| failure.reason), Some(Reason::DisruptedTooOften));
    }

    #[test]
    fn running_out_of_memory_twice_is_permanent() {
        let (status, step) = fail_once(ConversionStatus::default(), Reason::OutOfMemory, 0);
        assert!(matches!(step, Step::Park { .. }));
        let (_, step) = fail_once(status, Reason::OutOfMemory, 300);
        assert_eq!(step, Step::Finish(End::Failed));
    }

    #[test]
    fn a_source_that_changed_is_given_back() {
        let (status, step) = fail_once(ConversionStatus::default(), Reason::SourceChanged, 0);
        assert_eq!(step, Step::GiveBack(Reason::SourceChanged));
        assert_eq!((status.counted_attempts(), status.end), (0, Some(End::Cancelled)));
    }

    #[test]
    fn what_was_converted_is_published_once() {
        let policy = RetryPolicy::default();
        let n = Attempt(1);
        let (status, _) = advance(ConversionStatus::default(), Observation::Staged(n), &policy, at(0));
        let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(0));
        let done = Observation::Done { attempt: n, folder: "pod".into() };
        let (status, step) = advance(status, done, &policy, at(9));
        assert_eq!(step, Step::Publish { attempt: n, folder: "pod".into() });
        let (status, step) = advance(status, Observation::Published, &policy, at(10));
        assert_eq!(step, Step::Finish(End::Succeeded));
        let echo = Observation::Failed { attempt: n, failure: Failure::new(Reason::JobLost, "late") };
        let (after, step) = advance(status.clone(), echo, &policy, at(11));
        assert_eq!((after, step), (status, Step::Finish(End::Succeeded)));
    }

    #[test]
    fn a_finished_attempt_that_left_nothing_to_publish_is_a_failed_one() {
        let policy = RetryPolicy::default();
        let n = Attempt(1);
        let (status, _) = advance(ConversionStatus::default(), Observation::Staged(n), &policy, at(0));
        let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(0));
        let (status, _) = advance(status, Observation::Done { attempt: n, folder: "p".into() }, &policy, at(1));
        let bad = Observation::Unpublishable { failure: Failure::new(Reason::Internal, "no metadata.json") };
        let (_, step) = advance(status, bad, &policy, at(2));
        assert_eq!(step, Step::Park { next: Attempt(2), until: at(302) });
    }

    #[test]
    fn a_disabled_policy_never_retries() {
        let policy = RetryPolicy { enabled: false, ..RetryPolicy::default() };
        let n = Attempt(1);
        let (status, _) = advance(ConversionStatus::default(), Observation::Staged(n), &policy, at(0));
        let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(0));
        let failed = Observation::Failed { attempt: n, failure: Failure::new(Reason::SourceIO, "EIO") };
        assert_eq!(advance(status, failed, &policy, at(0)).1, Step::Finish(End::Failed));
    }

    #[test]
    fn an_absurd_schedule_neither_overflows_nor_panics() {
        let policy = RetryPolicy { backoff_multiplier: 1e300, ..RetryPolicy::default() };
        assert_eq!(policy.delay(3), MAX_DELAY);
        assert_eq!(policy.delay(1), Duration::from_secs(300));
    }
}
