// SPDX-License-Identifier: Apache-2.0
//! The snapshot that everybody else reads, and the detection of a queue that stands still.

use crate::conversion::Progress;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Step, next_step};
use crate::executor::Executor;
use crate::ledger::{ClaimState, Ledger, retries};
use crate::notification::Event;
use crate::stats::{JobStats, MAX_WAITING, Waiting};

use super::{Conversion, Engine, Result};

impl<E: Executor> Engine<E> {
    /// Publishes the snapshot, if anything changed.
    pub(super) fn show(&mut self) {
        let count = |wanted: fn(&Conversion) -> bool| self.conversions.values().filter(|c| wanted(c)).count() as u64;
        // Members that could not be moved into their claim yet are counted as the files that they still are.
        let is_file = |c: &Conversion| c.row.state == ClaimState::Claimed && self.intake.may_hold(&c.row.claim.primary);
        let is_held = |c: &Conversion| is_waiting(c) || is_stuck(c);
        let waiting = self.conversions.values().filter(|c| is_held(c) && !is_file(c)).count() as u64;
        let retrying = count(|c| matches!(c.row.state, ClaimState::Parked { .. }));
        let current_jobs = self.conversions.values().filter_map(running).collect();
        self.view.run_state = self.run_state;
        self.view.queue_depth = waiting + self.waiting_files() as u64;
        self.view.settling = self.intake.incomplete() as u64;
        self.view.ignored = self.intake.ignored() as u64;
        self.view.retrying = retrying;
        self.view.waiting =
            self.conversions.values().filter_map(|c| why_waiting(c, self.run_state)).take(MAX_WAITING).collect();
        self.view.current_jobs = current_jobs;
        self.view.is_at_rest = self.run_state == RunState::Stopped && self.conversions.values().all(rests);
        self.view.last_activity = self.last_activity;
        self.view.shortage = self.space.shortage();
        self.view.queue_shortage = self.space.queue_shortage();
        self.view.waiting_for = self.absence.why().map(str::to_owned);
        self.view.held_by = self.barred_by();
        self.view.unreadable = self.intake.unreadable().map(str::to_owned);
        let view = &self.view;
        self.snapshot.send_if_modified(|shown| {
            let is_new = shown != view;
            if is_new {
                shown.clone_from(view);
            }
            is_new
        });
    }

    /// Reads totals and history anew, after something was counted.
    pub(super) async fn refresh_totals(&mut self) -> Result<()> {
        let read = |ledger: &mut Ledger| Ok((ledger.totals()?, ledger.history()?, ledger.notification_totals()?));
        let (totals, history, notifications) = self.ledger.call(read).await?;
        self.view.totals = totals;
        self.view.recent_completed = history;
        self.view.notifications = notifications;
        Ok(())
    }

    /// Announces once an episode that files wait and nothing happens.
    pub(super) fn watch_for_stall(&mut self) {
        let Some(event) = self.stall.look(&self.view, self.settings.stall_threshold, self.wall()) else { return };
        if let Event::Stalled { queue_depth, idle, .. } = &event {
            tracing::warn!("Daemon idle for {} minutes with {queue_depth} items in queue", idle.as_secs() / 60);
        }
        self.notify(&event);
    }
}

fn is_waiting(conversion: &Conversion) -> bool {
    !conversion.may_run
        && matches!(conversion.row.state, ClaimState::Claimed | ClaimState::Submitted)
        && matches!(next_step(&conversion.row.status), Step::Stage(_) | Step::Start(_))
}

/// Whether there is nothing to do for it as long as the queue is stopped.
fn rests(conversion: &Conversion) -> bool {
    let row = &conversion.row;
    // A retry that is due is not parked any more.
    let is_due = !conversion.may_run
        && row.state == ClaimState::Submitted
        && matches!(next_step(&row.status), Step::Park { .. });
    is_due || is_waiting(conversion) || matches!(row.state, ClaimState::Parked { .. })
}

/// Whether it can't go on, and is counted nowhere else.
fn is_stuck(conversion: &Conversion) -> bool {
    let is_parked = matches!(conversion.row.state, ClaimState::Parked { .. });
    conversion.is_stuck && !is_parked && running(conversion).is_none()
}

fn why_waiting(conversion: &Conversion, run_state: RunState) -> Option<Waiting> {
    let row = &conversion.row;
    let why = match &row.state {
        _ if is_stuck(conversion) => format!("it can't go on: {}", conversion.last_error),
        ClaimState::Parked { .. } => {
            let failure = row.status.failure.as_ref().map(|failure| failure.message.as_str());
            let next = row.status.next_retry_time.map(|time| format!("attempt again at {time:.0}"));
            format!("{}: {}", next.unwrap_or_else(|| "attempt again".to_owned()), failure.unwrap_or("it failed"))
        }
        _ if is_waiting(conversion) && run_state == RunState::Paused => "the queue is paused".to_owned(),
        _ if is_waiting(conversion) => "a free slot".to_owned(),
        _ => return None,
    };
    Some(Waiting { filename: row.claim.primary.clone(), why })
}

fn running(conversion: &Conversion) -> Option<JobStats> {
    let row = &conversion.row;
    let open = row.status.open_attempt().filter(|_| conversion.may_run)?;
    let start = open.start_time.unwrap_or(row.claim.claimed_at);
    let mut job = JobStats::started(&row.claim.primary, row.claim.size_bytes(), retries(&row.status), start);
    job.progress_percent = conversion.progress.as_ref().map(Progress::percent);
    Some(job)
}
