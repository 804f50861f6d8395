// SPDX-License-Identifier: Apache-2.0
//! Taking every conversion as far as it can go: decide, do, and decide again.

use std::time::Duration;

use crate::conversion::lifecycle::{Observation, Step, advance, next_step};
use crate::conversion::{Attempt, Class, ConversionId, ConversionStatus, Failure, Reason, chain};
use crate::executor::{Executor, Update};
use crate::ledger::{Change, ClaimState, ConversionRow, retries};
use crate::queue::{failpoint, work};

use super::decide::{Action, Circumstances, decide};
use super::{Engine, Error, PAUSE, Result};

/// Greatest number of effects in a row for one conversion in one round. More would mean that one of them changes
/// nothing.
const MAX_STEPS: usize = 16;

/// What it means for a conversion that its object was deleted. If the queue was deleted with it, nobody meant the file:
/// it is given back, to the queue that watches the directory now. One that waits for its retry stays where people look
/// for failures.
fn deleted(row: &ConversionRow, queue_uid: &str) -> Failure {
    if row.claim.queue_uid == queue_uid {
        return Failure::new(Reason::Cancelled, "the conversion was deleted");
    }
    let failure = Failure::new(Reason::Cancelled, "the queue that had claimed it was deleted");
    match row.state {
        ClaimState::Parked { .. } => failure,
        _ => Failure { class: Class::GivenBack, ..failure },
    }
}

impl<E: Executor> Engine<E> {
    /// Receives the executor's pending updates in one round: with a round over all conversions for each of them, the
    /// engine would fall behind while a hundred run.
    pub(super) async fn take_updates(&mut self, first: Update) {
        self.take_update(first).await;
        // Bounded: an executor that repeats itself must not keep rounds from being made.
        for _ in 0..self.conversions.len() {
            let Some(update) = self.executor.take_next() else { return };
            self.take_update(update).await;
        }
    }

    async fn take_update(&mut self, update: Update) {
        let id = update.id.clone();
        if !self.conversions.contains_key(&id) {
            tracing::debug!(conversion = %id, "an update of a conversion that is not known");
            return;
        }
        if let Err(error) = self.note_update(update).await {
            self.note_error(&id, &error);
            // The ledger is behind: submitting again makes the executor repeat its status.
            if let Err(error) = self.submit(&id).await {
                self.note_error(&id, &error);
            }
        }
    }

    async fn note_update(&mut self, update: Update) -> Result<()> {
        let now = self.wall();
        let Some(conversion) = self.conversions.get_mut(&update.id) else { return Ok(()) };
        let ended_run = conversion.may_run && !update.may_run;
        if conversion.progress != update.progress || ended_run || update.may_run {
            self.last_activity = Some(now);
        }
        conversion.may_run = update.may_run;
        conversion.progress = update.progress;
        let before = conversion.row.status.clone();
        // What the engine itself has concluded outranks what the executor last knew.
        if before.is_terminal() {
            return Ok(());
        }
        let status = match update.status {
            Some(status) => status,
            // What is about to be published is published, whether it stands there already or not.
            None if matches!(conversion.row.state, ClaimState::Publishing { .. }) => return Ok(()),
            None => {
                let gone = deleted(&conversion.row, self.settings.home.queue_uid());
                advance(before.clone(), Observation::Cancelled(gone), &self.settings.policy, now).0
            }
        };
        if status == before {
            return Ok(());
        }
        self.last_activity = Some(now);
        if update.is_recorded {
            conversion.row.status = status.clone();
        } else {
            self.change(&update.id, Change::Shown { status: status.clone(), uid: update.uid }).await?;
        }
        if status.end != before.end || retries(&status) != retries(&before) {
            self.refresh_totals().await?;
        }
        self.after_attempt(&update.id, &before, &status)
    }

    /// Logs how an attempt has ended, and tidies up after it.
    fn after_attempt(&mut self, id: &ConversionId, before: &ConversionStatus, after: &ConversionStatus) -> Result<()> {
        let Some(conversion) = self.conversions.get_mut(id) else { return Ok(()) };
        let name = conversion.row.claim.primary.clone();
        let has_ended = before.open_attempt().is_some() && after.open_attempt().is_none();
        if retries(after) > retries(before)
            && let (Some(due), Some(last)) = (after.next_retry_time, after.attempts.last())
        {
            let delay = due.duration_since(last.end_time.unwrap_or(due)).as_secs();
            let error = after.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
            tracing::warn!(conversion = %id, error, "Attempt failed: {name}");
            let (n, max) = (retries(after), self.settings.policy.max_retries);
            tracing::info!("Retry {n}/{max} for {name} in {delay}s");
        }
        if has_ended && matches!(next_step(after), Step::Stage(_)) {
            if let Some(failure) = after.failure.as_ref().filter(|failure| failure.reason == Reason::OutputFull) {
                conversion.has_room = false;
                tracing::warn!(conversion = %id, needed_bytes = failure.needed_bytes, "no room for {name}; it waits");
                self.space.hold();
            }
            // The attempt is not counted, so no report of it is kept.
            work::clear(&self.settings.paths, id)?;
        }
        Ok(())
    }

    /// Takes every conversion as far as it can go.
    pub(super) async fn advance_all(&mut self) {
        let ids: Vec<ConversionId> = self.conversions.keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.advance_one(&id).await {
                self.note_error(&id, &error);
            }
        }
    }

    /// Takes one conversion as far as it can go.
    pub(super) async fn advance_one(&mut self, id: &ConversionId) -> Result<()> {
        let now = self.now();
        if self.conversions.get(id).is_none_or(|conversion| conversion.hold_until > now) {
            return Ok(());
        }
        self.go_on(id).await?;
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.is_stuck = false;
        }
        Ok(())
    }

    async fn go_on(&mut self, id: &ConversionId) -> Result<()> {
        for _ in 0..MAX_STEPS {
            let now = self.now();
            let Some(conversion) = self.conversions.get(id) else { return Ok(()) };
            if conversion.hold_until > now {
                return Ok(());
            }
            let circumstances = Circumstances {
                now: self.wall(),
                run_state: self.run_state,
                is_submitted: conversion.is_submitted,
                may_run: conversion.may_run,
                is_in_place: conversion.is_in_place,
                has_room: conversion.has_room,
            };
            let action = decide(&conversion.row, circumstances);
            if !matches!(action, Action::Wait | Action::WaitUntil(_) | Action::WaitForRoom) {
                self.confirm()?;
            }
            match action {
                Action::Wait | Action::WaitUntil(_) | Action::WaitForRoom => return Ok(()),
                Action::CompleteClaim => self.complete_claim(id).await?,
                Action::Submit => self.submit(id).await?,
                Action::Stage(attempt) => return self.stage(id, attempt).await,
                Action::PlanPark { .. } => self.plan_park(id).await?,
                Action::CarryPark => self.carry_park(id).await?,
                Action::Unpark => self.unpark(id).await?,
                Action::Publish => {
                    if !self.publish(id).await? {
                        return Ok(());
                    }
                }
                Action::PlanReturn(reason) => self.plan_return(id, reason).await?,
                Action::CarryReturn => self.carry_return(id).await?,
                Action::PlanEnd(end) => self.plan_end(id, end).await?,
                Action::CarryEnd => self.carry_end(id).await?,
            }
        }
        tracing::warn!(conversion = %id, "does not come to rest; it is looked at again later");
        let now = self.now();
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.hold_until = now + PAUSE;
        }
        Ok(())
    }

    /// Makes the work directory of an attempt, and lets the executor start it.
    async fn stage(&mut self, id: &ConversionId, attempt: Attempt) -> Result<()> {
        let Some(conversion) = self.conversions.get(id) else { return Ok(()) };
        let status = &conversion.row.status;
        let is_retry = status.attempts.last().is_some_and(|last| last.reason.is_some() && last.is_counted());
        if is_retry {
            let name = &conversion.row.claim.primary;
            tracing::info!("🔄 Retrying {name} (attempt {})", retries(status) + 1);
        }
        let paths = &self.settings.paths;
        work::prepare(paths, id, attempt)?;
        failpoint::reach(paths, failpoint::Step::WorkMade);
        self.executor.staged(id, attempt).await?;
        failpoint::reach(&self.settings.paths, failpoint::Step::Staged);
        // It may run until the executor has shown what became of it.
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.may_run = true;
        }
        Ok(())
    }

    /// When the first parked conversion is due.
    pub(super) fn next_retry(&self) -> Option<Duration> {
        let now = self.wall();
        let parked = self.conversions.values().filter(|c| matches!(c.row.state, ClaimState::Parked { .. }));
        let waiting = parked.filter(|c| !c.row.status.is_retry_due(now));
        let due = waiting.filter_map(|c| c.row.status.next_retry_time).min()?;
        let delay = due.duration_since(now);
        // A parked conversion that is due but may not start is woken by the command that lets it start.
        (!delay.is_negative()).then(|| Duration::try_from(delay).unwrap_or_default() + Duration::from_millis(1))
    }

    /// Writes a change of a row, ledger first.
    pub(super) async fn change(&mut self, id: &ConversionId, change: Change) -> Result<()> {
        let key = id.clone();
        let is_announced = !change.notifications().is_empty();
        let row = self.ledger.call(move |ledger| ledger.update(&key, &change)).await?;
        self.take_row(id, row);
        if is_announced {
            self.outbox.posted();
        }
        Ok(())
    }

    /// Keeps a row as the ledger has it.
    pub(super) fn take_row(&mut self, id: &ConversionId, row: ConversionRow) {
        if let Some(conversion) = self.conversions.get_mut(id) {
            if conversion.row.state != row.state {
                conversion.is_in_place = false;
            }
            conversion.row = row;
        }
    }

    /// Removes a conversion of which nothing is left to do.
    pub(super) async fn forget_row(&mut self, id: &ConversionId) -> Result<()> {
        let key = id.clone();
        self.ledger
            .call(move |ledger| {
                ledger.forget(&key);
                Ok(())
            })
            .await?;
        self.conversions.remove(id);
        Ok(())
    }

    /// Records that an effect failed: it is tried again after a while, and its error is logged once.
    pub(super) fn note_error(&mut self, id: &ConversionId, error: &Error) {
        let text = chain(error);
        let hold_until = self.now() + PAUSE;
        self.look_for_read_only();
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.hold_until = hold_until;
            conversion.is_stuck = true;
            if conversion.last_error != text {
                if error.passes() {
                    tracing::warn!(conversion = %id, error = %text, "cannot go on yet");
                } else {
                    tracing::error!(conversion = %id, error = %text, "cannot go on yet");
                }
                conversion.last_error = text;
            }
        }
    }
}
