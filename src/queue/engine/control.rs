// SPDX-License-Identifier: Apache-2.0
//! Commands: pause, resume, drain, stop.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::executor::Executor;
use crate::stats::Snapshot;

use super::{Engine, Home, RunStateCommand};

/// How long a command waits for the engine to take it, before it is answered all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// The engine from outside: its snapshot, and commands. Cheap to clone, and held by any thread.
#[derive(Clone, Debug)]
pub struct Remote {
    commands: mpsc::UnboundedSender<RunStateCommand>,
    snapshot: watch::Receiver<Snapshot>,
}

impl Remote {
    pub(super) fn new(commands: mpsc::UnboundedSender<RunStateCommand>, snapshot: watch::Receiver<Snapshot>) -> Self {
        Self { commands, snapshot }
    }

    /// How things stood when the engine last looked.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// A receiver that is told of every new snapshot.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    /// Tells the engine, and waits until it has taken the command, or for a while. `false` when it has ended.
    pub async fn set_run_state(&self, run_state: RunState) -> bool {
        self.send(run_state, None).await
    }

    /// The same of a queue in the cluster, whose wishes have a revision ([`Home::Cluster`]).
    pub async fn ask(&self, run_state: RunState, revision: i64) -> bool {
        self.send(run_state, Some(revision)).await
    }

    async fn send(&self, run_state: RunState, revision: Option<i64>) -> bool {
        let (taken, answer) = oneshot::channel();
        if self.commands.send((run_state, revision, taken)).is_err() {
            return false;
        }
        // An engine that is busy takes it later: the command is not lost.
        let _ = tokio::time::timeout(PATIENCE, answer).await;
        true
    }
}

impl<E: Executor> Engine<E> {
    pub(super) async fn obey(&mut self, (run_state, revision, taken): RunStateCommand) {
        let mut is_asked_anew = false;
        if let (Home::Cluster { revision, .. }, Some(asked)) = (&mut self.settings.home, revision) {
            is_asked_anew = std::mem::replace(revision, asked) != asked;
        }
        if run_state != self.run_state {
            self.set_run_state(run_state).await;
        } else if is_asked_anew {
            self.remember_drain();
        }
        // Whoever asked may have gone.
        let _ = taken.send(());
    }

    async fn set_run_state(&mut self, run_state: RunState) {
        tracing::info!(from = ?self.run_state, to = ?run_state, "run state changed");
        self.run_state = run_state;
        self.last_activity = Some(self.wall());
        self.drain = if run_state == RunState::Draining { self.begun_drain() } else { None };
        self.remember_drain();
        self.show();
        if self.settings.home == Home::Host && matches!(run_state, RunState::Running | RunState::Paused) {
            let paused = run_state == RunState::Paused;
            if let Err(error) = self.ledger.call(move |ledger| ledger.set_paused(paused)).await {
                tracing::error!(error = %chain(&error), "cannot remember the pause; a restart will not know of it");
            }
        }
        self.tell_executor().await;
    }

    /// Whether files that were queued when draining began are still to be claimed.
    pub(super) fn has_to_drain(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.left(self.intake.ready()) > 0)
    }

    /// How many stable files wait to be claimed: while draining, those alone that were queued when it began.
    pub(super) fn waiting_files(&self) -> usize {
        let ready = self.intake.ready();
        match &self.drain {
            Some(drain) => drain.left(ready),
            // It is not known yet whether anything is to be drained: nothing is said to be empty.
            None if self.run_state == RunState::Draining => ready.len().max(1),
            None => ready.len(),
        }
    }
}
