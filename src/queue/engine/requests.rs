// SPDX-License-Identifier: Apache-2.0
//! Conversions that somebody asked for by a path: found, waited for, and claimed under the id of the request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::conversion::admission::RunState;
use crate::conversion::contract::CLAIM_FILE;
use crate::conversion::{CONTRACT_VERSION, Claim, ConversionId, Failure, Reason, chain};
use crate::executor::{Executor, Request};
use crate::files::paths::is_plain_name;
use crate::queue::companions::{self, File};
use crate::queue::error_file;
use crate::queue::folder::{self, Decision};
use crate::queue::scan::{self, Entry, Kind, Name, Refusal, Role};

use super::{Conversion, Engine, Error, PAUSE, Result};

/// How long the files of a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long recently written files must stay unchanged.
const STILL: Duration = Duration::from_secs(3);

/// Files that have not been touched for this long need not settle.
const LONG_STILL: SignedDuration = SignedDuration::from_secs(10);

/// How often files that still change are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The requests that wait for their files.
#[derive(Debug, Default)]
pub(super) struct Requests {
    sought: HashMap<ConversionId, Sought>,
    next_look: Duration,
}

/// What was seen of the files of one request.
#[derive(Debug, Default)]
struct Sought {
    since: Duration,
    members: Vec<Entry>,
    unchanged_since: Duration,
}

/// What lies at the path of a request.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// All files are there; the primary comes first.
    Whole(Vec<Entry>),
    /// A folder, whose members these are; the primary comes first.
    Folder(Folder, Vec<Entry>),
    /// These files are missing.
    Missing(Vec<String>),
    /// Nothing there can be claimed.
    Unfit(Failure),
}

/// A requested folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    entry: Entry,
    /// Members that are disks by themselves, where there are several and no OVF.
    disks: Vec<String>,
}

/// What is done with a request now.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Take(Vec<Entry>, Option<Folder>),
    Decline(Failure),
}

impl<E: Executor> Engine<E> {
    /// When a request is to be looked at again.
    pub(super) fn next_request(&self) -> Option<Duration> {
        (!self.requests.sought.is_empty()).then_some(self.requests.next_look)
    }

    /// Claims the requested files that are there, and declines requests whose files will not come.
    pub(super) async fn claim_requested(&mut self) {
        let now = self.now();
        let requests = self.executor.requests();
        self.requests.sought.retain(|id, _| requests.iter().any(|request| request.id == *id));
        if !matches!(self.run_state, RunState::Running | RunState::Paused) {
            return;
        }
        let is_new = requests.iter().any(|request| !self.requests.sought.contains_key(&request.id));
        if requests.is_empty() || !(is_new || now >= self.requests.next_look) {
            return;
        }
        self.requests.next_look = now + LOOK;
        for request in requests {
            if self.conversions.contains_key(&request.id) {
                continue;
            }
            if let Err(error) = self.take_request(&request).await {
                tracing::error!(conversion = %request.id, error = %chain(&error), "cannot claim {}", request.path);
                self.requests.next_look = now + PAUSE;
            }
        }
    }

    async fn take_request(&mut self, request: &Request) -> Result<()> {
        if let Some(failure) = &request.unfit {
            return self.decline_request(request, failure.clone()).await;
        }
        let (now, wall) = (self.now(), self.wall());
        let queue = self.settings.paths.queue();
        let found = find(queue, request).map_err(|source| Error::Look { path: queue.join(&request.path), source })?;
        let fresh = || Sought { since: now, ..Sought::default() };
        let sought = self.requests.sought.entry(request.id.clone()).or_insert_with(fresh);
        match sought.judge(found, request, now, wall) {
            Verdict::Decline(failure) => self.decline_request(request, failure).await,
            Verdict::Take(members, folder) if self.room() > 0 => self.claim_request(request, members, folder).await,
            Verdict::Take(..) | Verdict::Wait => Ok(()),
        }
    }

    async fn decline_request(&mut self, request: &Request, failure: Failure) -> Result<()> {
        tracing::warn!(conversion = %request.id, reason = %failure.reason, "{}", failure.message);
        Ok(self.executor.decline(&request.id, failure).await?)
    }

    async fn claim_request(&mut self, request: &Request, members: Vec<Entry>, folder: Option<Folder>) -> Result<()> {
        let now = self.wall();
        let (origin, name) = split(&request.path);
        let primary = members.first().map_or(name, |first| &first.name).to_owned();
        let claim = Claim {
            contract_version: CONTRACT_VERSION,
            id: request.id.clone(),
            queue_uid: self.settings.home.queue_uid().to_owned(),
            origin: origin.to_owned(),
            folder: folder.as_ref().map(|folder| folder.entry.member()),
            disks: folder.as_ref().map(|folder| folder.disks.clone()).unwrap_or_default(),
            primary: primary.clone(),
            members: members.iter().map(Entry::member).collect(),
            claimed_at: now,
            seen_at: None,
            complete_by: None,
            beginning: None,
            fingerprint: None,
            emit: request.emit.clone(),
            date: now.to_zoned(self.settings.zone.clone()).date().to_string(),
        };
        tracing::info!(conversion = %request.id, "📥 New file queued: {}", request.path);
        let row = self.record_claim(claim, None, None).await?;
        self.conversions.insert(request.id.clone(), Conversion::new(row));
        if origin.is_empty() {
            self.intake.requested(&primary, name, &members);
        }
        if let Err(error) = self.advance_one(&request.id).await {
            self.note_error(&request.id, &error);
        } else if self.conversions.contains_key(&request.id) && origin.split('/').next() == Some(".errors") {
            // This is the report of an earlier conversion.
            let paths = &self.settings.paths;
            error_file::remove(&paths.queue().join(&request.path), &paths.errors())?;
        }
        Ok(())
    }
}

impl Sought {
    fn judge(&mut self, found: Found, request: &Request, now: Duration, wall: Timestamp) -> Verdict {
        let is_late = now.saturating_sub(self.since) >= PATIENCE;
        let (members, folder) = match found {
            Found::Unfit(failure) => return Verdict::Decline(failure),
            Found::Missing(_) if !is_late => return Verdict::Wait,
            Found::Missing(names) => {
                let (_, primary) = split(&request.path);
                let is_primary = names.iter().any(|name| name == primary);
                let reason = if is_primary { Reason::SourceMissing } else { Reason::MissingMember };
                let missing = names.join(", ");
                let message = format!("{}: {missing} is not there, and did not come in a minute", request.path);
                return Verdict::Decline(Failure::new(reason, message));
            }
            Found::Whole(members) => (members, None),
            Found::Folder(folder, members) => (members, Some(folder)),
        };
        if members != self.members {
            self.members.clone_from(&members);
            self.unchanged_since = now;
        }
        let untouched = |entry: &Entry| {
            let touched = Timestamp::from_nanosecond(entry.mtime_ns.max(entry.ctime_ns)).unwrap_or(Timestamp::MAX);
            wall.duration_since(touched) >= LONG_STILL
        };
        if members.iter().all(untouched) || now.saturating_sub(self.unchanged_since) >= STILL {
            return Verdict::Take(members, folder);
        }
        Verdict::Wait
    }
}

/// Splits a path into the directory below the queue and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Looks for the files of a request.
fn find(queue: &Path, request: &Request) -> io::Result<Found> {
    let unfit = |reason, text: &str| Ok(Found::Unfit(Failure::new(reason, format!("{} {text}", request.path))));
    let (origin, primary) = split(&request.path);
    let plain = request.path.split('/').chain(request.companions.iter().map(String::as_str)).all(is_plain_name);
    if !plain || request.path.starts_with(".processing/") || primary == CLAIM_FILE {
        return unfit(Reason::UnsafeReference, "is no path that a conversion may name");
    }
    let directory = queue.join(origin);
    match fs::canonicalize(&directory) {
        Ok(real) if real == fs::canonicalize(queue)?.join(origin) => {}
        Ok(_) => return unfit(Reason::UnsafeReference, "leads through a symbolic link, which is never followed"),
        Err(error) if is_missing(&error) => return Ok(Found::Missing(vec![primary.to_owned()])),
        Err(error) => return Err(error),
    }
    match scan::look(&directory, primary)? {
        Some(entry) if entry.kind == Kind::Directory => return find_folder(&directory, entry, request),
        _ => {}
    }
    let mut missing = Vec::new();
    let mut members: Vec<Entry> = Vec::new();
    let given: Vec<(String, bool)> = request.companions.iter().map(|name| (name.clone(), true)).collect();
    let mut unread = vec![(primary.to_owned(), true)];
    unread.extend(given.into_iter().rev());
    let mut seen = BTreeSet::new();
    while let Some((name, is_required)) = unread.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let entry = match scan::look(&directory, &name)? {
            Some(entry) if entry.kind == Kind::Regular && entry.size > 0 => entry,
            Some(_) if is_required => {
                return unfit(Reason::UnsupportedFormat, "is not made of regular files with content");
            }
            None if is_required => {
                missing.push(name);
                continue;
            }
            Some(_) | None => continue,
        };
        // A request that names companions names all of them.
        if request.companions.is_empty() && companions::may_be_descriptor(&entry) {
            let named = companions::read_references(&directory, &name).unwrap_or_default();
            unread.extend(named.required.into_iter().map(|name| (name, true)));
            unread.extend(named.optional.into_iter().map(|name| (name, false)));
        }
        members.push(entry);
    }
    if !missing.is_empty() {
        missing.sort();
        return Ok(Found::Missing(missing));
    }
    members.sort_by(|a, b| (*a.name != *primary, &a.name).cmp(&(*b.name != *primary, &b.name)));
    Ok(Found::Whole(members))
}

/// Looks into a requested folder of `directory`.
fn find_folder(directory: &Path, entry: Entry, request: &Request) -> io::Result<Found> {
    let unfit = |refusal: Refusal, name: &str| {
        let message = format!("{name} {}", refusal.text());
        Ok(Found::Unfit(Failure::new(Reason::UnsupportedFormat, message)))
    };
    let content = folder::list(directory, &entry.name)?;
    if let Some(fault) = content.fault {
        return unfit(fault.refusal, &fault.name);
    }
    let files = content.files.iter().filter(|file| file.size > 0 && scan::role(file) != Role::Ignored);
    let mut found: BTreeMap<Name, (&Entry, File)> = BTreeMap::new();
    for file in files {
        let is_descriptor = companions::may_be_descriptor(file);
        let references = is_descriptor.then(|| companions::read_references(directory, &file.name).unwrap_or_default());
        let (first_sight, last_change) = (Duration::ZERO, Duration::ZERO);
        let references = Arc::new(references.unwrap_or_default());
        let not_of = Vec::new();
        let known = File { is_stable: true, size: file.size, first_sight, last_change, references, not_of };
        found.insert(scan::base(&file.name).into(), (file, known));
    }
    let files = found.iter().map(|(name, (_, file))| (name.clone(), file.clone())).collect();
    let mut verdicts = Vec::new();
    companions::group(&files, |_, _, _| None, Duration::ZERO, Duration::ZERO, |verdict| verdicts.push(verdict));
    match folder::decide(verdicts, &files) {
        Decision::Take { failure: Some(failure), .. } => Ok(Found::Unfit(failure)),
        Decision::Take { members, disks, .. } => {
            let path = |name: &Name| found.get(name).map(|(entry, _)| (*entry).clone());
            let disks = disks.iter().filter_map(path).map(|entry| entry.name.as_ref().to_owned()).collect();
            Ok(Found::Folder(Folder { entry, disks }, members.iter().filter_map(path).collect()))
        }
        Decision::Refuse(refusal) => unfit(refusal, &request.path),
        Decision::Wait { .. } | Decision::Settle => unfit(Refusal::NoDisk, &request.path),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests;
