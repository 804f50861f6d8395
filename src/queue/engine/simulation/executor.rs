// SPDX-License-Identifier: Apache-2.0
//! An executor whose attempts end as a seed says. On one host they die with the engine, and their status is in the
//! ledger. In a cluster they go on without it, and their status is elsewhere.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::conversion::admission::{RunState, admit};
use crate::conversion::contract::{COPIED_FILE, KEPT_DIR, METADATA_FILE};
use crate::conversion::lifecycle::{Observation, RetryPolicy, Step, advance, next_step};
use crate::conversion::options::OutputFormat;
use crate::conversion::report::{DiskReport, SourceReport};
use crate::conversion::status::End;
use crate::conversion::{Attempt, CONTRACT_VERSION, Claim, ConversionId, ConversionStatus, Failure, Metadata, Reason};
use crate::executor::{Error, Executor, Request, Submission, Update};
use crate::files::Paths;
use crate::files::volume;
use crate::files::volume::simulated::{Random, Volume};
use crate::ledger::{self, Change, ConversionRow};

use super::Simulated;

/// Name of the folder that attempts write.
const FOLDER: &str = "worker";

/// How an attempt will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    Fails(Reason),
    /// Reports success, but left nothing that can be published.
    Lies,
}

/// A worker at work.
#[derive(Clone, Debug)]
struct Work {
    attempt: Attempt,
    fate: Fate,
    ends: Instant,
}

#[derive(Clone, Debug)]
struct Known {
    claim: Claim,
    status: ConversionStatus,
    uid: Option<String>,
    work: Option<Work>,
    /// The failure that it ends with once its worker is gone.
    cancel: Option<Failure>,
    is_gone: bool,
}

/// What exists beside the engine, and outlives it.
#[derive(Debug)]
pub(super) struct World {
    pub is_cluster: bool,
    pub paths: Paths,
    pub policy: RetryPolicy,
    pub limit: usize,
    pub time: Simulated,
    pub random: Random,
    pub volume: Rc<Volume>,
    pub run_state: RunState,
    /// Whether attempts fail, hang and are heard of late. Not at the end, when all must come to rest.
    pub is_rough: bool,
    /// Whether a volume is away: then no worker begins or ends.
    pub is_away: bool,
    known: BTreeMap<ConversionId, Known>,
    /// Requests that are not claimed yet.
    asked: BTreeMap<ConversionId, Request>,
    /// The ends that were reported.
    pub ended: BTreeMap<ConversionId, (End, Option<Failure>)>,
    uids: u64,
}

impl World {
    pub(super) fn new(
        is_cluster: bool,
        paths: Paths,
        policy: RetryPolicy,
        limit: usize,
        time: Simulated,
        random: Random,
        volume: Rc<Volume>,
    ) -> Self {
        let (known, asked, ended) = Default::default();
        let run_state = RunState::Running;
        Self {
            is_cluster,
            paths,
            policy,
            limit,
            time,
            random,
            volume,
            run_state,
            is_rough: true,
            is_away: false,
            known,
            asked,
            ended,
            uids: 0,
        }
    }

    /// The engine's process is gone, and on one host all its workers too.
    pub(super) fn engine_died(&mut self) {
        if self.is_cluster {
            return;
        }
        for (id, known) in std::mem::take(&mut self.known) {
            if known.work.is_some() {
                self.volume.set_busy(&self.paths.claim_dir(&id), false);
                self.volume.set_busy(&self.paths.work_of(&id), false);
            }
        }
    }

    /// The machine is gone, and all its workers too.
    pub(super) fn machine_died(&mut self) {
        self.engine_died();
        let ids: Vec<ConversionId> = self.known.keys().cloned().collect();
        for id in ids {
            let work = self.known.get_mut(&id).and_then(|known| known.work.take());
            if let Some(work) = work {
                self.set_busy(&id, false);
                let failure = Failure::new(Reason::Disrupted, "the node went down");
                self.note(&id, Observation::Failed { attempt: work.attempt, failure });
            }
        }
    }

    /// Chooses one of the conversions that have not ended.
    pub(super) fn some(&mut self) -> Option<ConversionId> {
        let ids: Vec<ConversionId> =
            self.known.iter().filter(|(_, known)| !known.status.is_terminal()).map(|(id, _)| id.clone()).collect();
        (!ids.is_empty()).then(|| ids[usize::try_from(self.random.below(ids.len() as u64)).expect("an index")].clone())
    }

    /// Somebody deletes the object of a conversion.
    pub(super) fn delete(&mut self, id: &ConversionId) {
        if let Some(known) = self.known.get_mut(id) {
            known.is_gone = true;
            // Its pod is deleted too, which takes a moment.
            if let Some(work) = &mut known.work {
                work.ends = work.ends.min(Instant::now() + Duration::from_secs(2));
                work.fate = Fate::Fails(Reason::Disrupted);
            }
        }
    }

    /// Somebody asks for a file by its path.
    pub(super) fn ask(&mut self, path: &str) {
        let id = ConversionId::for_file(path, self.time.random());
        let request =
            Request { id: id.clone(), path: path.to_owned(), companions: Vec::new(), emit: None, unfit: None };
        self.asked.insert(id, request);
    }

    pub(super) fn has_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.known.values().all(|known| known.work.is_none())
    }

    fn set_busy(&self, id: &ConversionId, is_busy: bool) {
        self.volume.set_busy(&self.paths.claim_dir(id), is_busy);
        self.volume.set_busy(&self.paths.work_of(id), is_busy);
    }

    fn fate(&mut self) -> (Fate, Duration) {
        let seconds = Duration::from_millis(self.random.below(4000));
        if !self.is_rough {
            return (Fate::Done, seconds);
        }
        match self.random.below(20) {
            0 => (Fate::Fails(Reason::Corrupt), seconds),
            1 => (Fate::Fails(Reason::SourceIO), seconds),
            2 => (Fate::Fails(Reason::OutputIO), seconds),
            3 => (Fate::Fails(Reason::Internal), seconds),
            4 => (Fate::Fails(Reason::Disrupted), seconds),
            5 => (Fate::Fails(Reason::SourceChanged), seconds),
            6 => (Fate::Fails(Reason::OutputFull), seconds),
            7 => (Fate::Fails(Reason::Stalled), Duration::from_secs(600)),
            8 => (Fate::Lies, seconds),
            _ => (Fate::Done, seconds),
        }
    }

    fn note(&mut self, id: &ConversionId, observation: Observation) {
        let now = self.time.now();
        if let Some(known) = self.known.get_mut(id) {
            known.status = advance(known.status.clone(), observation, &self.policy, now).0;
        }
    }

    /// Starts what may start in a cluster, as the controller does.
    fn control(&mut self) {
        let running = self.known.values().filter(|known| known.work.is_some()).count();
        let may_start = |known: &Known| {
            !known.is_gone && known.work.is_none() && matches!(next_step(&known.status), Step::Start(_))
        };
        let ready: Vec<ConversionId> =
            self.known.iter().filter(|(_, known)| may_start(known)).map(|(id, _)| id.clone()).collect();
        for id in admit(&ready, running, self.limit, self.run_state).to_vec() {
            let Some(Step::Start(attempt)) = self.known.get(&id).map(|known| next_step(&known.status)) else {
                continue;
            };
            self.note(&id, Observation::Starting { attempt, job_name: None });
            self.begin(&id, attempt);
        }
    }

    fn begin(&mut self, id: &ConversionId, attempt: Attempt) {
        let (fate, takes) = self.fate();
        self.volume.note(format!("attempt {attempt} of {id} begins: {fate:?} in {takes:?}"));
        let work = self.paths.work_dir(id, attempt);
        let folder = work.join(FOLDER);
        let volume = Rc::clone(&self.volume);
        let claim = self.known.get(id).map(|known| known.claim.clone());
        let is_fast = self.random.once_in(2);
        // A pod makes missing directories; a half-made disk, or a whole copy, lies there from the start.
        volume.other(|| {
            let _ = volume::create_dir_all(&work, 0o755);
            if let Some(claim) = &claim
                && is_copied(claim, &work.join(KEPT_DIR))
            {
                let _ = volume::rename(&work.join(KEPT_DIR), &folder);
            }
            let _ = volume::create_dir_all(&folder, 0o755);
            let _ = put(&folder.join("half.tmp"), b"half made", false);
            if let Some(claim) = claim.filter(|_| is_fast) {
                copy(&self.paths, &claim, &folder);
            }
        });
        self.set_busy(id, true);
        if let Some(known) = self.known.get_mut(id) {
            known.work = Some(Work { attempt, fate, ends: Instant::now() + takes });
        }
    }

    /// The next attempt that ends, if one is running.
    fn next_end(&self) -> Option<(Instant, ConversionId)> {
        if self.is_away {
            return None;
        }
        let ends = self.known.iter().filter_map(|(id, known)| Some((known.work.as_ref()?.ends, id.clone())));
        ends.min()
    }

    /// Ends an attempt: makes what it leaves, and returns how it ended.
    fn finish(&mut self, id: &ConversionId) -> Option<Observation> {
        let known = self.known.get(id)?;
        let work = known.work.clone()?;
        let attempt = work.attempt;
        let dir = self.paths.work_dir(id, attempt).join(FOLDER);
        let (volume, paths, now) = (Rc::clone(&self.volume), &self.paths, self.time.now());
        let fate = match work.fate {
            Fate::Done if volume.other(|| convert(paths, &known.claim, &dir, now)).is_none() => {
                Fate::Fails(Reason::SourceMissing)
            }
            fate => fate,
        };
        if fate == Fate::Lies && self.random.once_in(2) {
            volume.other(|| {
                let _ = put(&dir.join(METADATA_FILE), b"{", true);
                let _ = std::os::unix::fs::symlink("/etc/passwd", dir.join("vm.raw"));
            });
        }
        volume.note(format!("attempt {attempt} of {id} ends: {fate:?}"));
        Some(match fate {
            Fate::Done | Fate::Lies => Observation::Done { attempt, folder: FOLDER.to_owned() },
            Fate::Fails(reason) => Observation::Failed { attempt, failure: Failure::new(reason, "so the seed says") },
        })
    }
}

/// The disk that a conversion of these members makes.
pub(super) fn converted(members: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut disk = b"converted\n".to_vec();
    members.into_iter().for_each(|member| disk.extend(member));
    disk
}

fn put(path: &Path, bytes: &[u8], is_synced: bool) -> std::io::Result<()> {
    let file = volume::create_file(path, 0o644)?;
    volume::write(&file, path, bytes)?;
    if is_synced {
        volume::sync_file(&file, path)?;
    }
    Ok(())
}

/// Whether a folder holds a whole copy of what was claimed.
fn is_copied(claim: &Claim, dir: &Path) -> bool {
    fs::read(dir.join(COPIED_FILE)).is_ok_and(|marker| marker == marker_of(claim))
}

fn marker_of(claim: &Claim) -> Vec<u8> {
    serde_json::to_vec(claim).expect("a struct of texts and numbers has a JSON form")
}

/// Does the first step of a worker and returns the disk's length; `None` where a member is missing.
fn copy(paths: &Paths, claim: &Claim, dir: &Path) -> Option<u64> {
    let file = dir.join(disk_name(claim));
    if !is_copied(claim, dir) {
        let mut members = Vec::new();
        for member in &claim.members {
            members.push(fs::read(paths.claim_dir(&claim.id).join(&member.name)).ok()?);
        }
        let done = put(&file, &converted(members), true)
            .and_then(|()| volume::sync_dir(dir))
            .and_then(|()| put(&dir.join(COPIED_FILE), &marker_of(claim), true))
            .and_then(|()| volume::sync_dir(dir));
        done.ok()?;
    }
    Some(fs::metadata(file).ok()?.len())
}

fn disk_name(claim: &Claim) -> String {
    format!("{}.raw", claim.stem())
}

/// Does what a worker does; `None` where a member is missing.
fn convert(paths: &Paths, claim: &Claim, dir: &Path, now: jiff::Timestamp) -> Option<()> {
    let virtual_size_bytes = copy(paths, claim, dir)?;
    let metadata = Metadata {
        contract_version: CONTRACT_VERSION,
        id: claim.id.to_string(),
        tool_version: "0".to_owned(),
        start_time: now,
        end_time: now,
        duration_ms: 0,
        source: SourceReport {
            name: claim.primary.clone(),
            size_bytes: claim.size_bytes(),
            format: "raw".to_owned(),
            sha256: None,
        },
        disks: vec![DiskReport {
            file: disk_name(claim),
            format: OutputFormat::Raw,
            virtual_size_bytes,
            allocated_bytes: 0,
            sha256: None,
            source_member: claim.primary.clone(),
        }],
        hardware: None,
        machines: Vec::new(),
        side_files: Vec::new(),
        warnings: Vec::new(),
        superseded_by: None,
        source_changed_at: None,
    };
    let text = serde_json::to_vec(&metadata).expect("a struct of texts and numbers has a JSON form");
    // What an earlier attempt sealed, or only claimed to have sealed, is replaced.
    let _ = volume::remove_file(&dir.join(METADATA_FILE));
    put(&dir.join(METADATA_FILE), &text, true).and_then(|()| volume::sync_dir(dir)).ok()
}

/// The executor of one engine.
#[derive(Debug)]
pub(super) struct Worker {
    world: Rc<RefCell<World>>,
    ledger: ledger::Writer,
    outbox: VecDeque<ConversionId>,
    /// Updates that the engine will receive later.
    late: Vec<(Instant, ConversionId)>,
}

impl Worker {
    pub(super) fn new(world: Rc<RefCell<World>>, ledger: ledger::Writer) -> Self {
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
