// SPDX-License-Identifier: Apache-2.0
//! The executor of one engine.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::conversion::admission::{RunState, admit};
use crate::conversion::lifecycle::{Observation, Step, advance, next_step};
use crate::conversion::{Attempt, ConversionId, ConversionStatus, Failure, Metadata, Reason};
use crate::executor::{Error, Executor, Request, Submission, Update};
use crate::ledger::{self, Change, ConversionRow};

use super::{FOLDER, Fate, Known, World};

/// The executor of one engine.
#[derive(Debug)]
pub(in crate::queue::engine::simulation) struct Worker {
    world: Rc<RefCell<World>>,
    ledger: ledger::Writer,
    outbox: VecDeque<ConversionId>,
    /// Updates that the engine will receive later.
    late: Vec<(Instant, ConversionId)>,
}

impl Worker {
    pub(in crate::queue::engine::simulation) fn new(world: Rc<RefCell<World>>, ledger: ledger::Writer) -> Self {
        Self { world, ledger, outbox: VecDeque::new(), late: Vec::new() }
    }

    fn show(&mut self, id: &ConversionId) {
        let mut world = self.world.borrow_mut();
        if world.is_rough && world.random.once_in(8) {
            // The update is lost; the engine receives it when everything is listed again.
            let delay = Duration::from_millis(world.random.below(30_000));
            self.late.push((Instant::now() + delay, id.clone()));
            return;
        }
        drop(world);
        if !self.outbox.contains(id) {
            self.outbox.push_back(id.clone());
        }
    }

    /// Records an observation; on one host in the ledger first, and then in memory.
    async fn observe(&self, doing: &'static str, id: &ConversionId, observation: Observation) -> Result<(), Error> {
        let (is_cluster, status, policy, now) = {
            let world = self.world.borrow();
            let Some(known) = world.known.get(id) else { return Err(Error::new(doing, id, "it is not known")) };
            (world.is_cluster, known.status.clone(), world.policy, world.time.now())
        };
        let after = advance(status.clone(), observation.clone(), &policy, now).0;
        if !is_cluster && after != status {
            let change = Change::Observed { observation, status: after.clone() };
            let key = id.clone();
            let written = self.ledger.call(move |ledger| ledger.update(&key, &change).map(|_| ())).await;
            written.map_err(|source| Error::new(doing, id, source))?;
        }
        if let Some(known) = self.world.borrow_mut().known.get_mut(id) {
            known.status = after;
        }
        Ok(())
    }

    /// Starts what may start.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.world.borrow().is_away {
            return Ok(());
        }
        if self.world.borrow().is_cluster {
            self.world.borrow_mut().control();
            return Ok(());
        }
        let chosen: Vec<ConversionId> = {
            let world = self.world.borrow();
            let running = world.known.values().filter(|known| known.work.is_some()).count();
            let is_ready = |known: &Known| {
                known.work.is_none()
                    && known.cancel.is_none()
                    && matches!(next_step(&known.status), Step::Start(_) | Step::Watch(_))
            };
            let ready: Vec<ConversionId> =
                world.known.iter().filter(|(_, known)| is_ready(known)).map(|(id, _)| id.clone()).collect();
            admit(&ready, running, world.limit, world.run_state).to_vec()
        };
        for id in chosen {
            let step = self.world.borrow().known.get(&id).map(|known| next_step(&known.status));
            let Some(Step::Start(attempt) | Step::Watch(attempt)) = step else { continue };
            self.observe("start", &id, Observation::Starting { attempt, job_name: None }).await?;
            self.world.borrow_mut().begin(&id, attempt);
            self.show(&id);
        }
        Ok(())
    }

    /// Records that an attempt is over. Safe to drop and repeat.
    async fn end(&mut self, id: &ConversionId) -> Result<(), Error> {
        let cancel = self.world.borrow().known.get(id).and_then(|known| known.cancel.clone());
        let ended = self.world.borrow_mut().finish(id);
        let observation = match (cancel, ended) {
            (Some(failure), _) => Observation::Cancelled(failure),
            (None, Some(observation)) => observation,
            (None, None) => return Ok(()),
        };
        self.observe("note the end of", id, observation).await?;
        {
            let mut world = self.world.borrow_mut();
            world.set_busy(id, false);
            if let Some(known) = world.known.get_mut(id) {
                known.work = None;
                known.cancel = None;
            }
        }
        self.show(id);
        Ok(())
    }

    async fn work(&mut self) -> Result<(), Error> {
        self.fill().await?;
        if !self.outbox.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let end = self.world.borrow().next_end();
        let late = self.late.iter().min().cloned();
        let at = end.iter().chain(&late).map(|(at, _)| *at).min();
        match at {
            None => std::future::pending().await,
            Some(at) if at > now => sleep_until(at).await,
            Some(_) => {}
        }
        let now = Instant::now();
        for (_, id) in self.late.extract_if(.., |(at, _)| *at <= now) {
            if !self.outbox.contains(&id) {
                self.outbox.push_back(id);
            }
        }
        if let Some((_, id)) = end.filter(|(at, _)| *at <= now) {
            self.end(&id).await?;
        }
        self.fill().await
    }
}

impl Executor for Worker {
    async fn submit(&mut self, submission: Submission) -> Result<(), Error> {
        const DOING: &str = "register";
        let id = submission.claim.id.clone();
        let is_cluster = self.world.borrow().is_cluster;
        self.world.borrow_mut().asked.remove(&id);
        let is_known = self.world.borrow().known.contains_key(&id);
        if !is_known {
            let mut world = self.world.borrow_mut();
            let is_gone = is_cluster && submission.uid.is_some();
            world.uids += 1;
            let uid = is_cluster.then(|| submission.uid.clone().unwrap_or_else(|| format!("uid-{}", world.uids)));
            let status = if is_cluster { ConversionStatus::default() } else { submission.status.clone() };
            let known = Known { claim: submission.claim.clone(), status, uid, work: None, cancel: None, is_gone };
            world.known.insert(id.clone(), known);
        }
        if is_cluster {
            if submission.status.end.is_some() || submission.duplicate_of.is_some() {
                let is_open = self.world.borrow().known.get(&id).is_some_and(|known| !known.status.is_terminal());
                if is_open && submission.duplicate_of.is_some() {
                    self.world.borrow_mut().note(&id, Observation::Duplicate);
                }
            }
        } else if !is_known {
            let step = next_step(&submission.status);
            if let Step::Stage(attempt) | Step::Start(attempt) | Step::Park { next: attempt, .. } = step {
                let made = self.world.borrow().paths.work_dir(&id, attempt).join(FOLDER);
                if made.exists() {
                    self.observe(DOING, &id, Observation::Staged(attempt)).await?;
                    self.observe(DOING, &id, Observation::Starting { attempt, job_name: None }).await?;
                }
            }
            let open = self.world.borrow().known.get(&id).and_then(|k| k.status.open_attempt().map(|o| o.number));
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
        self.world.borrow_mut().run_state = run_state;
        if run_state == RunState::Stopped {
            let mut world = self.world.borrow_mut();
            for work in world.known.values_mut().filter_map(|known| known.work.as_mut()) {
                work.fate = Fate::Fails(Reason::Suspended);
                work.ends = work.ends.min(Instant::now() + Duration::from_secs(1));
            }
        }
        self.fill().await
    }

    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let is_cluster = self.world.borrow().is_cluster;
        {
            let mut world = self.world.borrow_mut();
            let Some(known) = world.known.get_mut(id) else { return Ok(()) };
            if let Some(work) = &mut known.work {
                work.ends = work.ends.min(Instant::now() + Duration::from_secs(1));
                if !is_cluster {
                    known.cancel = Some(failure);
                    return Ok(());
                }
            }
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
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        if let Some(end) = row.status.end {
            world.volume.note(format!("{} is reported: {end:?}", row.id));
            world.ended.insert(row.id.clone(), (end, row.status.failure.clone()));
        }
        if let Some(known) = world.known.get_mut(&row.id) {
            known.status = row.status.clone();
        }
        Ok(())
    }

    async fn forget(&mut self, id: &ConversionId) -> Result<(), Error> {
        let mut world = self.world.borrow_mut();
        if !world.is_cluster {
            world.known.remove(id);
        }
        Ok(())
    }

    fn requests(&self) -> Vec<Request> {
        self.world.borrow().asked.values().cloned().collect()
    }

    async fn decline(&mut self, id: &ConversionId, failure: Failure) -> Result<(), Error> {
        let mut world = self.world.borrow_mut();
        world.volume.note(format!("{id} is declined: {}", failure.reason));
        world.asked.remove(id);
        Ok(())
    }

    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.take_next() {
                return update;
            }
            if self.work().await.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn take_next(&mut self) -> Option<Update> {
        while let Some(id) = self.outbox.pop_front() {
            let world = self.world.borrow();
            if let Some(known) = world.known.get(&id) {
                let status = (!known.is_gone).then(|| known.status.clone());
                return Some(Update {
                    id,
                    status,
                    is_recorded: !world.is_cluster,
                    uid: known.uid.clone(),
                    progress: None,
                    may_run: known.work.is_some(),
                });
            }
        }
        None
    }
}
