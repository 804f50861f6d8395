// SPDX-License-Identifier: Apache-2.0
//! Commands: pause, resume, drain, stop.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::conversion::lifecycle::RetryPolicy;
use crate::conversion::retention::Retention;
use crate::executor::Executor;
use crate::stats::Snapshot;

use super::outbox::Outbox;
use super::pulse::Pulse;
use super::{Engine, Home, Result};

/// How long a command waits until the engine receives it: less than a client of the control socket waits for its
/// answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// How often the engine's thread shows that it runs; a fraction of [`super::pulse::STANDSTILL`].
const TICK: Duration = Duration::from_secs(5);

/// The settings that may change while an engine works; as in [`super::Settings`].
#[derive(Debug)]
pub struct Tuning {
    pub limit: usize,
    pub policy: RetryPolicy,
    pub retention: Retention,
    pub archive_processed: bool,
    pub deduplicate: bool,
    pub deduplicate_by_md5: bool,
    pub file_stable_timeout: Duration,
    pub companion_timeout: Duration,
    pub quiet_period: Duration,
    pub stall_threshold: Duration,
    /// The new outbox, if the channels changed.
    pub outbox: Option<Outbox>,
}

/// A command to the engine.
#[derive(Debug)]
pub(super) enum Order {
    /// What is asked, its revision in the cluster, and where the receipt goes.
    RunState(RunState, Option<i64>, oneshot::Sender<Receipt>),
    Tune(Box<Tuning>),
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Obeyed, and recorded for a restart as far as it needs to be.
    Recorded,
    /// Obeyed, but not recorded for a restart, for this reason. Recording is tried again.
    Unrecorded(String),
    /// The engine is busy, or hangs. It obeys in its next round.
    Waiting,
    /// The engine has ended.
    Ended,
}

/// The engine from outside: its snapshot, and commands. Cheap to clone, and held by any thread.
#[derive(Clone, Debug)]
pub struct Remote {
    commands: mpsc::UnboundedSender<Order>,
    snapshot: watch::Receiver<Snapshot>,
    pulses: Pulses,
}

/// A pause, or its end, that the ledger does not have yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnrecordedPause {
    paused: bool,
    /// Whether that was logged.
    is_told: bool,
}

/// What shows whether an engine runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulses {
    /// The pulse of its rounds.
    pub round: Pulse,
    /// The pulse of its thread, which other tasks of the engine may block, too.
    thread: Pulse,
}

impl Remote {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Order>,
        snapshot: watch::Receiver<Snapshot>,
        pulses: Pulses,
    ) -> Self {
        Self { commands, snapshot, pulses }
    }

    /// The snapshot of the engine's last round.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// A receiver of every new snapshot.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    /// Sends the command, and waits for a limited time until the engine has received it.
    pub async fn set_run_state(&self, run_state: RunState) -> Receipt {
        self.send(run_state, None).await
    }

    /// The same for a queue in the cluster, where what is asked has a revision ([`Home::Cluster`]).
    pub async fn ask(&self, run_state: RunState, revision: i64) -> Receipt {
        self.send(run_state, Some(revision)).await
    }

    async fn send(&self, run_state: RunState, revision: Option<i64>) -> Receipt {
        let (taken, answer) = oneshot::channel();
        if self.commands.send(Order::RunState(run_state, revision, taken)).is_err() {
            return Receipt::Ended;
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(receipt)) => receipt,
            // The engine ended with the command before this one.
            Ok(Err(_)) => Receipt::Ended,
            Err(_) => Receipt::Waiting,
        }
    }

    /// Gives the engine other settings, which hold from its next round on.
    pub fn tune(&self, tuning: Tuning) {
        // An engine that has ended needs no settings.
        let _ = self.commands.send(Order::Tune(Box::new(tuning)));
    }

    /// How long the engine has stood still, if it does.
    #[must_use]
    pub fn standstill(&self) -> Option<Duration> {
        self.pulses.round.standstill().max(self.pulses.thread.standstill())
    }

    /// Shows that the engine's thread runs. To be spawned on the single-threaded runtime of the engine.
    pub async fn tick(self) {
        loop {
            self.pulses.thread.begin();
            tokio::time::sleep(TICK).await;
        }
    }
}

impl<E: Executor> Engine<E> {
    pub(super) async fn obey(&mut self, order: Order) {
        match order {
            Order::RunState(run_state, revision, taken) => self.ask(run_state, revision, taken).await,
            Order::Tune(tuning) => self.tune(*tuning),
        }
    }

    fn tune(&mut self, tuning: Tuning) {
        let settings = &mut self.settings;
        settings.limit = tuning.limit;
        settings.policy = tuning.policy;
        settings.retention = tuning.retention;
        settings.archive_processed = tuning.archive_processed;
        settings.deduplicate = tuning.deduplicate;
        settings.deduplicate_by_md5 = tuning.deduplicate_by_md5;
        settings.file_stable_timeout = tuning.file_stable_timeout;
        settings.companion_timeout = tuning.companion_timeout;
        settings.quiet_period = tuning.quiet_period;
        settings.stall_threshold = tuning.stall_threshold;
        self.intake.set_pace(self.settings.pace());
        if let Some(outbox) = tuning.outbox {
            self.outbox = outbox;
        }
    }

    async fn ask(&mut self, run_state: RunState, revision: Option<i64>, taken: oneshot::Sender<Receipt>) {
        let mut is_asked_anew = false;
        if let (Home::Cluster { revision, .. }, Some(asked)) = (&mut self.settings.home, revision) {
            is_asked_anew = std::mem::replace(revision, asked) != asked;
        }
        if run_state != self.run_state {
            self.set_run_state(run_state).await;
        } else if is_asked_anew {
            self.remember_drain();
        }
        let is_recorded = self.record_pause().await;
        // The sender of the command may be gone.
        let _ = taken.send(is_recorded.map_or_else(|error| Receipt::Unrecorded(chain(&error)), |()| Receipt::Recorded));
    }

    async fn set_run_state(&mut self, run_state: RunState) {
        tracing::info!(from = ?self.run_state, to = ?run_state, "run state changed");
        self.run_state = run_state;
        self.last_activity = Some(self.wall());
        self.drain = if run_state == RunState::Draining { self.begun_drain() } else { None };
        self.remember_drain();
        self.show();
        if self.settings.home == Home::Host && matches!(run_state, RunState::Running | RunState::Paused) {
            self.unrecorded_pause = Some(UnrecordedPause { paused: run_state == RunState::Paused, is_told: false });
        }
        self.tell_executor().await;
    }

    /// Records the last pause or its end for a restart, if that is still to be done.
    pub(super) async fn record_pause(&mut self) -> Result<()> {
        let Some(UnrecordedPause { paused, is_told }) = self.unrecorded_pause else { return Ok(()) };
        match self.ledger.call(move |ledger| ledger.set_paused(paused)).await {
            Ok(()) => self.unrecorded_pause = None,
            Err(error) => {
                if !is_told {
                    let what = if paused { "the pause" } else { "the end of the pause" };
                    tracing::error!(error = %chain(&error), "cannot record {what} yet; it is tried again, and a restart before does not know of it");
                    self.unrecorded_pause = Some(UnrecordedPause { paused, is_told: true });
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Whether files that were queued when draining began are still to be claimed.
    pub(super) fn has_to_drain(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.left(self.intake.ready()) > 0)
    }

    /// How many stable files wait to be claimed; while draining, only those that were queued when it began.
    pub(super) fn waiting_files(&self) -> usize {
        let ready = self.intake.ready();
        match &self.drain {
            Some(drain) => drain.left(ready),
            // It is not known yet whether anything is to be drained, so the queue is not reported empty.
            None if self.run_state == RunState::Draining => ready.len().max(1),
            None => ready.len(),
        }
    }
}
