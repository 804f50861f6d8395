// SPDX-License-Identifier: Apache-2.0
//! Attempts as batch Jobs: each conversion is a `ConversionJob`, whose status is the truth that both sides read.

use jiff::Timestamp;

use crate::cluster::api::{ConditionState, ConditionType};
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Observation, RetryPolicy, advance};
use crate::conversion::status::End;
use crate::conversion::{Attempt, ConversionId, Failure, Metadata, TraceId};
use crate::executor::{Error, Executor, Request, Submission, Update};
use crate::ledger::ConversionRow;

mod history;
mod objects;
mod planning;
mod progress;
mod requests;
mod running;
mod state;

pub(crate) use state::{ClusterExecutor, WatchEnded};

use objects::{
    EndFields, WatcherStatus, completed, duration, in_progress, machine, original, other_machines, outputs, published,
};
use progress::PolledProgress;
use running::poll_result;
use state::{Known, WatchEvent, Written, failed};

/// What [`ClusterExecutor::next`] was woken by.
enum Wake {
    Changed(Option<WatchEvent>),
    Tick,
    Polled(Vec<PolledProgress>),
    Written(Box<Written>),
}

impl Executor for ClusterExecutor {
    async fn submit(&mut self, submission: Submission) -> Result<(), Error> {
        const DOING: &str = "submit";
        let id = submission.claim.id.clone();
        self.asked.remove(&id);
        let trace = self.queue.spec.watcher.traces.as_ref().map(|_| TraceId::of(&submission.claim));
        let known = Known { uid: submission.uid.clone(), newest: None, is_gone: false, trace };
        self.known.entry(id.clone()).or_insert(known);
        if self.refresh(&id).is_none() {
            // An object that existed before and is gone was deleted, or belonged to a queue that was.
            let was_there = submission.uid.is_some() || submission.claim.queue_uid != self.queue_uid();
            let found = if was_there { self.find(&id).await } else { self.create(&submission).await };
            let object = found.map_err(|error| failed(DOING, &id, error))?;
            if let Some(object) = object {
                self.keep(&id, object);
            } else if let Some(known) = self.known.get_mut(&id) {
                known.is_gone = true;
            }
        }
        let state = self.update(&id).and_then(|update| update.status);
        if submission.duplicate_of.is_some()
            && let Some(state) = state.filter(|state| !state.is_terminal())
        {
            let (state, _) = advance(state, Observation::Duplicate, &RetryPolicy::default(), Timestamp::now());
            let status = WatcherStatus { staged: state.staged, end: Some(&state), ..WatcherStatus::default() };
            self.apply_status(DOING, &id, status).await?;
        }
        self.publish(&id);
        Ok(())
    }

    async fn staged(&mut self, id: &ConversionId, attempt: Attempt) -> Result<(), Error> {
        let status = WatcherStatus {
            staged: attempt.0,
            conditions: vec![in_progress(format!("attempt {attempt} may start"))],
            ..WatcherStatus::default()
        };
        self.apply_status("stage", id, status).await
    }

    /// The controller reads the run state from the specification itself.
    async fn set_run_state(&mut self, _: RunState) -> Result<(), Error> {
        Ok(())
    }

    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let Some(state) = self.update(id).and_then(|update| update.status).filter(|state| !state.is_terminal()) else {
            self.publish(id);
            return Ok(());
        };
        let ended = ConditionState::new("False", failure.reason.to_string(), failure.advice());
        let (state, _) = advance(state, Observation::Cancelled(failure), &RetryPolicy::default(), Timestamp::now());
        let status = WatcherStatus {
            staged: state.staged,
            conditions: vec![(ConditionType::Succeeded, ended)],
            end: Some(&state),
            ..WatcherStatus::default()
        };
        self.apply_status("cancel", id, status).await
    }

    async fn refuse(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let staged = self.update(id).and_then(|update| update.status).map_or(0, |state| state.staged);
        let refused = ConditionState::new("False", failure.reason.to_string(), failure.message);
        let conditions = vec![(ConditionType::Published, refused), in_progress("nothing could be published")];
        self.apply_status("refuse", id, WatcherStatus { staged, conditions, ..WatcherStatus::default() }).await
    }

    async fn report(&mut self, row: &ConversionRow, metadata: Option<&Metadata>) -> Result<(), Error> {
        let state = &row.status;
        let mut conditions = Vec::new();
        let ended = match (state.end, &state.failure) {
            (Some(End::Succeeded), _) => ConditionState::new("True", "Succeeded", "converted and published"),
            (Some(End::Duplicate), _) => {
                ConditionState::new("True", "Duplicate", row.duplicate_of.clone().unwrap_or_default())
            }
            (_, Some(failure)) => ConditionState::new("False", failure.reason.to_string(), failure.advice()),
            (_, None) => ConditionState::new("False", "Cancelled", ""),
        };
        if state.end == Some(End::Succeeded) {
            let directory = published(row, self.paths.output()).unwrap_or_default();
            conditions.push((ConditionType::Published, ConditionState::new("True", "Published", directory)));
        }
        conditions.push((ConditionType::Succeeded, ended));
        let outputs = match &row.duplicate_of {
            Some(of) if state.end == Some(End::Duplicate) => self.outputs_of(of),
            _ => outputs(published(row, self.paths.output()), metadata),
        };
        let fields = EndFields {
            outputs,
            machine: machine(metadata),
            other_machines: other_machines(metadata),
            progress: completed(metadata),
            source_location: row.source_location.clone(),
            duplicate_of: row.duplicate_of.as_deref().map(original),
            duration: duration(state),
        };
        let status = WatcherStatus { staged: state.staged, conditions, end: Some(state), fields, trace: None };
        self.apply_status("report", &row.id, status).await
    }

    async fn supersede(&mut self, id: &ConversionId, by: &str) -> Result<(), Error> {
        self.merge_superseded(id, by).await
    }

    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error> {
        self.drop_known(id);
        Ok(())
    }

    fn requests(&self) -> Vec<Request> {
        self.all_requests()
    }

    async fn decline(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        self.decline_request(id, failure).await
    }

    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.take_next() {
                return update;
            }
            match self.wake().await {
                Wake::Changed(Some(event)) => self.receive(&event),
                // The watches live as long as this executor; without them nothing more happens.
                Wake::Changed(None) => std::future::pending().await,
                Wake::Tick => {
                    self.prune();
                    self.copy_plans().await;
                    // The poll before may still wait for its file system.
                    if self.poll.is_none() {
                        self.poll_progress();
                    }
                }
                Wake::Polled(polled) => self.receive_poll(polled),
                Wake::Written(written) => self.written(*written),
            }
            self.report_stalled().await;
        }
    }

    fn take_next(&mut self) -> Option<Update> {
        // Drains all pending changes first: of several of one conversion, only the newest is published.
        while let Ok(event) = self.changes.try_recv() {
            self.receive(&event);
        }
        while let Some(id) = self.outbox.pop_front() {
            if let Some(update) = self.update(&id).or_else(|| self.request_update(&id)) {
                return Some(update);
            }
        }
        None
    }
}

impl ClusterExecutor {
    /// Waits for something to happen. Dropping the future loses nothing.
    async fn wake(&mut self) -> Wake {
        tokio::select! {
            event = self.changes.recv() => Wake::Changed(event),
            _ = self.tick.tick() => Wake::Tick,
            polled = poll_result(&mut self.poll) => Wake::Polled(polled),
            Some(Ok(written)) = self.writes.join_next() => Wake::Written(Box::new(written)),
        }
    }

    fn receive(&mut self, event: &WatchEvent) {
        let (WatchEvent::Changed(name) | WatchEvent::Gone(name, _)) = event;
        let Ok(id) = name.parse::<ConversionId>() else { return };
        if let WatchEvent::Gone(_, Some(uid)) = event {
            self.done.remove(uid);
        }
        let Some(known) = self.known.get_mut(&id) else { return self.receive_request(&id) };
        if let WatchEvent::Gone(_, uid) = event
            && known.uid == *uid
        {
            known.is_gone = true;
        }
        self.publish(&id);
    }
}
