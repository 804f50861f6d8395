// SPDX-License-Identifier: Apache-2.0
//! Attempts as child processes. They end with this process: an attempt that is open at its start was disrupted.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use crate::conversion::admission::{RunState, admit};
use crate::conversion::lifecycle::{Observation, RetryPolicy, Step, advance, next_step};
use crate::conversion::{
    Attempt, ConversionId, ConversionOptions, ConversionStatus, Failure, Metadata, Progress, Reason,
};
use crate::files::paths::Paths;
use crate::ledger::{self, Change, ConversionRow};

use super::{Error, Executor, Submission, Update};

mod child;
mod outcome;

use child::{ChildEvent, ChildSpec};
use outcome::KillCause;

/// Name of the folder that a child writes in its work directory.
pub const FOLDER: &str = "worker";

/// What every attempt of a daemon has in common.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The program that is run as `hyper2kvm worker`.
    pub program: PathBuf,
    pub paths: Paths,
    pub options: ConversionOptions,
    pub policy: RetryPolicy,
    /// Attempts side by side.
    pub limit: usize,
    pub require_landlock: bool,
    /// Directory of the appliance that changes guests.
    pub appliance: PathBuf,
    pub stall_after: Duration,
}

/// Runs attempts as child processes. Must live on a thread that outlives all others: children end with the thread
/// that started them.
#[derive(Debug)]
pub struct ProcessExecutor {
    config: ProcessConfig,
    options: String,
    ledger: ledger::Writer,
    run_state: RunState,
    /// In the order of their submission.
    spec: Vec<ConversionId>,
    known: HashMap<ConversionId, Known>,
    sender: mpsc::UnboundedSender<ChildEvent>,
    receiver: mpsc::UnboundedReceiver<ChildEvent>,
    /// Events received and not handled yet: a dropped future must not lose them.
    inbox: VecDeque<ChildEvent>,
    /// Conversions whose state is to be published. It is read when it is handed out, so that it is never old.
    outbox: VecDeque<ConversionId>,
    limits: watch::Receiver<Limits>,
    limiter: watch::Sender<Limits>,
}

/// What may change of an executor while it works.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attempts side by side; those that run beyond it are not ended.
    pub limit: usize,
    pub policy: RetryPolicy,
}

#[derive(Debug)]
struct Known {
    status: ConversionStatus,
    progress: Option<Progress>,
    /// The running child, through which it can be ended.
    child: Option<mpsc::Sender<KillCause>>,
    /// The failure to end with once the child is gone.
    cancel: Option<Failure>,
}

impl ProcessExecutor {
    /// A running executor without conversions.
    pub fn new(config: ProcessConfig, ledger: ledger::Writer) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let options = serde_json::to_string(&config.options).map_err(std::io::Error::other)?;
        let (limiter, limits) = watch::channel(Limits { limit: config.limit, policy: config.policy });
        Ok(Self {
            config,
            limits,
            limiter,
            options,
            ledger,
            run_state: RunState::Running,
            spec: Vec::new(),
            known: HashMap::new(),
            sender,
            receiver,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
        })
    }

    /// Through which it is told, from any thread, what has changed.
    #[must_use]
    pub fn limiter(&self) -> watch::Sender<Limits> {
        self.limiter.clone()
    }

    /// Applies an observation: ledger first, then memory, then the engine.
    async fn observe(
        &mut self,
        doing: &'static str,
        id: &ConversionId,
        observation: Observation,
    ) -> Result<Step, Error> {
        let Some(known) = self.known.get(id) else {
            return Err(Error::new(doing, id, "it is not known"));
        };
        let (status, step) =
            advance(known.status.clone(), observation.clone(), &self.limits.borrow().policy, Timestamp::now());
        if status != known.status {
            let change = Change::Observed { observation, status: status.clone() };
            let key = id.clone();
            let written = self.ledger.call(move |ledger| ledger.update(&key, &change).map(|_| ())).await;
            written.map_err(|source| Error::new(doing, id, source))?;
        }
        if let Some(known) = self.known.get_mut(id) {
            known.status = status;
        }
        Ok(step)
    }

    fn show(&mut self, id: &ConversionId) {
        if !self.outbox.contains(id) {
            self.outbox.push_back(id.clone());
        }
    }

    /// Starts what may start. Safe to drop and repeat: an attempt is recorded before it is started, and a recorded
    /// attempt without a child is started, too.
    async fn fill(&mut self) -> Result<(), Error> {
        let running = self.known.values().filter(|known| known.child.is_some()).count();
        let ready: Vec<ConversionId> = self.spec.iter().filter(|id| self.is_ready(id)).cloned().collect();
        let limit = self.limits.borrow().limit;
        for id in admit(&ready, running, limit, self.run_state) {
            self.start(id).await?;
        }
        Ok(())
    }

    fn is_ready(&self, id: &ConversionId) -> bool {
        self.known.get(id).is_some_and(|known| {
            known.child.is_none()
                && known.cancel.is_none()
                && matches!(next_step(&known.status), Step::Start(_) | Step::Watch(_))
        })
    }

    async fn start(&mut self, id: &ConversionId) -> Result<(), Error> {
        const DOING: &str = "start";
        let step = self.known.get(id).map(|known| next_step(&known.status));
        let Some(Step::Start(attempt) | Step::Watch(attempt)) = step else { return Ok(()) };
        let starting = Observation::Starting { attempt, job_name: None };
        self.observe(DOING, id, starting).await?;
        let spec = self.spec_for(id, attempt);
        match child::spawn(&spec) {
            Ok(started) => {
                let (kill_causes, receiver) = mpsc::channel(1);
                if let Some(known) = self.known.get_mut(id) {
                    known.child = Some(kill_causes);
                    known.progress = None;
                }
                tracing::info!(conversion = %id, attempt = attempt.0, pid = started.0.id(), "attempt started");
                tokio::spawn(child::watch(spec, started, receiver, self.sender.clone()));
            }
            Err(error) => {
                let message = format!("cannot start {}: {error}", spec.program.display());
                let failure = Failure::in_phase(Reason::Internal, crate::conversion::Phase::Initialization, message);
                self.observe(DOING, id, Observation::Failed { attempt, failure }).await?;
            }
        }
        self.show(id);
        Ok(())
    }

    fn spec_for(&self, id: &ConversionId, attempt: Attempt) -> ChildSpec {
        ChildSpec {
            program: self.config.program.clone(),
            id: id.clone(),
            attempt,
            claim: self.config.paths.claim_dir(id),
            work: self.config.paths.work_dir(id, attempt),
            folder: FOLDER,
            options: self.options.clone(),
            require_landlock: self.config.require_landlock,
            appliance: self.config.appliance.clone(),
            stall_after: self.config.stall_after,
        }
    }

    /// Starts what may start, waits for the next event and handles it. Safe to drop and repeat. Begins with what an
    /// earlier, dropped call left over, because a slot must not stay free until something else happens.
    async fn work(&mut self) -> Result<(), Error> {
        self.fill().await?;
        if !self.outbox.is_empty() {
            return Ok(());
        }
        if self.inbox.is_empty() {
            tokio::select! {
                event = self.receiver.recv() => {
                    self.inbox.push_back(event.expect("the executor holds a sender itself"));
                }
                // More may start now.
                _ = self.limits.changed() => return self.fill().await,
            }
        }
        self.absorb().await?;
        self.fill().await
    }

    /// Handles the oldest event. Safe to drop and repeat.
    async fn absorb(&mut self) -> Result<(), Error> {
        let Some(event) = self.inbox.front().cloned() else { return Ok(()) };
        match event {
            ChildEvent::Progress { id, attempt, progress } => {
                if let Some(known) = self.known.get_mut(&id)
                    && known.status.open_attempt().is_some_and(|open| open.number == attempt)
                {
                    known.progress = Some(progress);
                    self.show(&id);
                }
            }
            ChildEvent::Ended { id, attempt, outcome } => {
                let cancel = self.known.get(&id).and_then(|known| known.cancel.clone());
                let observation = match (cancel, outcome) {
                    (Some(failure), _) => Observation::Cancelled(failure),
                    (None, Ok(())) => Observation::Done { attempt, folder: FOLDER.to_owned() },
                    (None, Err(failure)) => Observation::Failed { attempt, failure },
                };
                if self.known.contains_key(&id) {
                    self.observe("note the end of", &id, observation).await?;
                }
                if let Some(known) = self.known.get_mut(&id) {
                    known.child = None;
                    known.cancel = None;
                    known.progress = None;
                }
                self.show(&id);
            }
        }
        self.inbox.pop_front();
        Ok(())
    }
}

impl Executor for ProcessExecutor {
    async fn submit(&mut self, submission: Submission) -> Result<(), Error> {
        const DOING: &str = "register";
        let id = submission.claim.id.clone();
        if !self.known.contains_key(&id) {
            self.spec.push(id.clone());
            let step = next_step(&submission.status);
            let known = Known { status: submission.status, progress: None, child: None, cancel: None };
            self.known.insert(id.clone(), known);
            if let Step::Stage(attempt) | Step::Start(attempt) | Step::Park { next: attempt, .. } = step
                && self.config.paths.work_dir(&id, attempt).join(FOLDER).exists()
            {
                // A child made that change, and the daemon died before the ledger had it.
                self.observe(DOING, &id, Observation::Staged(attempt)).await?;
                self.observe(DOING, &id, Observation::Starting { attempt, job_name: None }).await?;
            }
            // Children end with the daemon, so a child that was running at its end is gone.
            let open = self.known.get(&id).and_then(|known| known.status.open_attempt()).map(|open| open.number);
            if let Some(attempt) = open {
                let failure = Failure::new(Reason::Disrupted, "the daemon ended while the attempt ran");
                self.observe(DOING, &id, Observation::Failed { attempt, failure }).await?;
            }
        }
        self.show(&id);
        self.fill().await
    }

    async fn staged(&mut self, id: &ConversionId, attempt: Attempt) -> Result<(), Error> {
        self.observe("stage", id, Observation::Staged(attempt)).await?;
        self.show(id);
        self.fill().await
    }

    async fn set_run_state(&mut self, run_state: RunState) -> Result<(), Error> {
        self.run_state = run_state;
        if run_state == RunState::Stopped {
            for child in self.known.values().filter_map(|known| known.child.as_ref()) {
                // The channel is full: the child is being ended already.
                let _ = child.try_send(KillCause::Stop);
            }
        }
        self.fill().await
    }

    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let Some(known) = self.known.get_mut(id) else { return Ok(()) };
        if let Some(child) = &known.child {
            let _ = child.try_send(KillCause::Cancel(failure.clone()));
            known.cancel = Some(failure);
            return Ok(());
        }
        self.observe("cancel", id, Observation::Cancelled(failure)).await?;
        self.show(id);
        Ok(())
    }

    async fn refuse(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        self.observe("refuse the result of", id, Observation::Unpublishable { failure }).await?;
        self.show(id);
        Ok(())
    }

    async fn report(&mut self, row: &ConversionRow, _metadata: Option<&Metadata>) -> Result<(), Error> {
        // On one host, clients see only the ledger's row.
        if let Some(known) = self.known.get_mut(&row.id) {
            known.status = row.status.clone();
        }
        Ok(())
    }

    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error> {
        self.known.remove(id);
        self.spec.retain(|known| known != id);
        Ok(())
    }

    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.take_next() {
                return update;
            }
            let worked = self.work().await;
            if let Err(error) = worked {
                tracing::error!(error = %crate::conversion::chain(&error), "cannot note what became of an attempt");
                // The ledger does not answer: an immediate retry would only fill the log.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn take_next(&mut self) -> Option<Update> {
        while let Some(id) = self.outbox.pop_front() {
            if let Some(known) = self.known.get(&id) {
                return Some(Update {
                    id,
                    status: Some(known.status.clone()),
                    is_recorded: true,
                    uid: None,
                    progress: known.progress.clone(),
                    may_run: known.child.is_some(),
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
