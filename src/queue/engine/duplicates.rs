// SPDX-License-Identifier: Apache-2.0
//! Whether an artifact was converted before, by name and size or by MD5.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};
use tokio::sync::mpsc;

use crate::conversion::hex;
use crate::executor::Executor;
use crate::files::{fingerprint, store};
use crate::ledger::{Content, ProcessedFile};

use super::intake::{Artifact, State};
use super::world::World;
use super::{Engine, Result};

/// Bytes that are read at once when hashing.
const CHUNK: usize = 1 << 20;

/// What deduplication decides.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Not seen before.
    New(Content),
    /// Seen before; `of` describes the earlier conversion to a person, `output` is the directory of its output.
    Duplicate { content: Content, of: String, output: Option<String> },
    /// Not known yet: it is being hashed, or an equal artifact is being converted.
    Later,
}

/// Digests of artifacts in the queue, computed beside everything else.
#[derive(Debug)]
pub(super) struct Digests {
    known: HashMap<State, Hashed>,
    under_way: HashSet<State>,
    sender: mpsc::UnboundedSender<Done>,
    receiver: mpsc::UnboundedReceiver<Done>,
}

pub(super) type Done = (State, Hashed);

/// The result of hashing an artifact.
#[derive(Debug)]
pub(super) enum Hashed {
    Digest(String),
    /// It can't be read: its conversion will report why.
    Unreadable,
}

impl Default for Digests {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { known: HashMap::new(), under_way: HashSet::new(), sender, receiver }
    }
}

impl Digests {
    /// The next digest that is ready.
    pub(super) async fn next(&mut self) -> Done {
        self.receiver.recv().await.expect("this struct holds a sender itself")
    }

    pub(super) fn put(&mut self, (state, digest): Done) {
        self.under_way.remove(&state);
        self.known.insert(state, digest);
    }

    /// The digest; `None` while it is being computed. At most `limit` artifacts are hashed at once.
    fn of(&mut self, world: &World, directory: &Path, artifact: &Artifact, limit: usize) -> Option<Hashed> {
        let state = artifact.state();
        if let Some(digest) = self.known.remove(&state) {
            // It is asked for again only after a failed claim, and then the files have changed.
            return Some(digest);
        }
        if self.under_way.len() < limit && self.under_way.insert(state.clone()) {
            let (sender, files) = (self.sender.clone(), files(directory, artifact));
            world.beside(move || {
                let digest = digest(&files)
                    .inspect_err(|error| tracing::warn!(%error, ?files, "cannot hash for deduplication"))
                    .map_or(Hashed::Unreadable, Hashed::Digest);
                // The engine has ended: nobody waits for the digest.
                let _ = sender.send((state, digest));
            });
        }
        None
    }
}

impl<E: Executor> Engine<E> {
    pub(super) async fn check_duplicate(&mut self, artifact: &Artifact) -> Result<Verdict> {
        if !self.settings.deduplicate || artifact.failure.is_some() {
            return Ok(Verdict::New(Content::default()));
        }
        let (name, size) = (artifact.primary.as_ref().to_owned(), artifact.size_bytes());
        if self.is_under_way(|row| row.claim.primary == name && row.claim.size_bytes() == size) {
            return Ok(Verdict::Later);
        }
        let md5 = if self.settings.deduplicate_by_md5 {
            match self.digests.of(&self.settings.world, self.settings.paths.queue(), artifact, self.settings.limit) {
                Some(Hashed::Digest(digest)) => Some(digest),
                Some(Hashed::Unreadable) => None,
                None => return Ok(Verdict::Later),
            }
        } else {
            None
        };
        if md5.is_some() && self.is_under_way(|row| row.md5 == md5) {
            // It is hashed again when the equal one has ended: that is rare, and cheaper than keeping digests of files
            // that may be gone.
            return Ok(Verdict::Later);
        }
        let fingerprint = fingerprint::of(files(self.settings.paths.queue(), artifact).iter().map(|path| open(path)))
            .inspect_err(|error| tracing::warn!(%error, file = %artifact.primary, "cannot sample for deduplication"))
            .ok();
        let content = Content { md5, fingerprint };
        let asked = content.clone();
        let found = self.find_published(name, size, asked).await?;
        // Of a file that was written to where it stayed only a digest can say that it is what it was: the fingerprint's
        // samples may lie beside what was written.
        let was_written = artifact.members.iter().any(|entry| self.intake.was_written_to(entry));
        let Some(found) = found.filter(|found| found.has_same_md5 || !was_written) else {
            return Ok(Verdict::New(content));
        };
        tracing::info!("⏭️ Skipping duplicate: {} (originally processed: {})", artifact.primary, found.processed_at);
        Ok(Verdict::Duplicate { content, of: describe(&found), output: found.output_path })
    }

    /// The earlier success that matches and whose output is there. Whoever removes an output wants no file skipped for it.
    async fn find_published(&self, name: String, size: u64, content: Content) -> Result<Option<ProcessedFile>> {
        loop {
            let (name, content) = (name.clone(), content.clone());
            let found = self.ledger.call(move |ledger| ledger.find_success(&name, size, &content)).await?;
            let Some(gone) = found.as_ref().filter(|found| self.is_output_gone(found)).cloned() else {
                return Ok(found);
            };
            self.confirm()?;
            tracing::info!(
                "{} of {} was converted into {}, which is gone: its like is converted again",
                gone.filename,
                gone.processed_at,
                gone.output_path.as_deref().unwrap_or_default()
            );
            self.ledger.call(move |ledger| ledger.forget_processed(&gone)).await?;
        }
    }

    /// Whether the output was a directory of ours and is there no more. Of another place nobody knows whether it is away.
    fn is_output_gone(&self, found: &ProcessedFile) -> bool {
        let path = found.output_path.as_deref().map(Path::new);
        path.filter(|path| path.starts_with(self.settings.paths.output()))
            .is_some_and(|path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
    }

    /// Whether a conversion that may still succeed `is_like` the artifact. One that waits for its retry does not count:
    /// a newer file of its name takes its place.
    fn is_under_way(&self, is_like: impl Fn(&crate::ledger::ConversionRow) -> bool) -> bool {
        self.conversions.values().any(|c| {
            let is_parked = matches!(c.row.state, crate::ledger::ClaimState::Parked { .. });
            !is_parked && !c.row.status.is_terminal() && is_like(&c.row)
        })
    }
}

fn describe(found: &ProcessedFile) -> String {
    match &found.output_path {
        Some(path) => format!("{} of {} in {path}", found.filename, found.processed_at),
        None => format!("{} of {}", found.filename, found.processed_at),
    }
}

/// The paths of all members, wherever they lie, in the order of their names.
fn files(queue: &Path, artifact: &Artifact) -> Vec<PathBuf> {
    let waiting = artifact.members.iter().map(|member| (member.name.as_ref(), queue.join(member.name.as_ref())));
    let taken_back = artifact.taken_back.iter();
    let taken_back = taken_back.map(|taken| (taken.entry.name.as_ref(), queue.join(&taken.alone.location)));
    let mut files: Vec<(&str, PathBuf)> = waiting.chain(taken_back).collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

fn open(path: &Path) -> io::Result<File> {
    let directory = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let opened = store::open_dir(directory).map_err(io::Error::other)?;
    store::open_untrusted(&opened, directory, &name).map_err(io::Error::other)
}

/// MD5 over the files in this order, as lower-case hex: a fingerprint that users know, nothing for security.
fn digest(files: &[PathBuf]) -> io::Result<String> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; CHUNK];
    for path in files {
        let mut file = open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
    }
    Ok(hex(hash.finalize()))
}
