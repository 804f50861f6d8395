// SPDX-License-Identifier: Apache-2.0
//! An executor whose attempts end as a seed says. On one host they die with the engine, and their status is in the
//! ledger. In a cluster they go on without it, and their status is elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::conversion::admission::{RunState, admit};
use crate::conversion::contract::{COPIED_FILE, KEPT_DIR, METADATA_FILE};
use crate::conversion::lifecycle::{Observation, RetryPolicy, Step, advance, next_step};
use crate::conversion::options::OutputFormat;
use crate::conversion::report::{DiskReport, SourceReport};
use crate::conversion::status::End;
use crate::conversion::{
    Attempt, CONTRACT_VERSION, Claim, ConversionId, ConversionStatus, Failure, Member, Metadata, Reason,
};
use crate::executor::Request;
use crate::files::Paths;
use crate::files::volume;
use crate::files::volume::simulated::{Random, Volume};

use super::Simulated;
use super::site::{Wrong, mark};

mod worker;

pub(super) use worker::Worker;

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
    /// Marks of descriptors and files that their manifests disprove.
    pub wrong: Wrong,
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
            wrong: Wrong::default(),
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

    /// The member of a claim that a manifest disproves.
    fn disproved(&self, claim: &Claim) -> Option<Member> {
        let mark_of = |name: &str| mark(&fs::read(self.paths.claim_dir(&claim.id).join(name)).ok()?);
        let primary = mark_of(&claim.primary)?;
        let wrong = self.wrong.borrow();
        let is_wrong =
            |member: &&Member| mark_of(&member.name).is_some_and(|mark| wrong.contains(&(primary.clone(), mark)));
        claim.members.iter().find(is_wrong).cloned()
    }

    /// Ends an attempt: makes what it leaves, and returns how it ended.
    fn finish(&mut self, id: &ConversionId) -> Option<Observation> {
        let known = self.known.get(id)?;
        let work = known.work.clone()?;
        let attempt = work.attempt;
        let dir = self.paths.work_dir(id, attempt).join(FOLDER);
        let (volume, paths, now) = (Rc::clone(&self.volume), &self.paths, self.time.now());
        let disproved = (work.fate == Fate::Done).then(|| self.disproved(&known.claim)).flatten();
        if let Some(member) = disproved {
            volume.note(format!("attempt {attempt} of {id} ends: {} is not what its manifest says", member.name));
            // One that came with its descriptor is damaged; one that was converted alone is another machine's.
            let failure = match member.alone {
                Some(_) => {
                    Failure { member: Some(member.name), ..Failure::new(Reason::WrongMember, "says its manifest") }
                }
                None => Failure::new(Reason::ManifestMismatch, "so its manifest says"),
            };
            return Some(Observation::Failed { attempt, failure });
        }
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
            target: None,
            format: OutputFormat::Raw,
            virtual_size_bytes,
            allocated_bytes: 0,
            sha256: None,
            source_member: claim.primary.clone(),
        }],
        hardware: None,
        machines: Vec::new(),
        guest: None,
        stages: Vec::new(),
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
