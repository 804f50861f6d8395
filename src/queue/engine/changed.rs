// SPDX-License-Identifier: Apache-2.0
//! Sources that somebody writes to after their conversion has ended: they had not arrived whole, although we thought
//! so, or somebody repaired them.
//!
//! ```text
//!  .errors/vm.raw, .processed/DATE/vm.raw ── changed, then quiet ──▶ output marked ──▶ vm.raw in the queue directory
//! ```
//!
//! All members of the artifact are moved back under their names, and settle like any others. The moves are recorded
//! first ([`EndedPlan`]), so that none stays behind when we die between two of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::conversion::contract::METADATA_FILE;
use crate::conversion::{Member, Metadata, Stamp, chain};
use crate::executor::Executor;
use crate::files::moves;
use crate::files::placement::{Placement, PlannedMove};
use crate::files::store;
use crate::ledger::{EndedConversion, EndedFile, EndedPlan, Ledger};
use crate::notification::Event;
use crate::queue::folder;
use crate::queue::publish;
use crate::queue::scan::{self, Entry, Kind, Role};

use super::ended::is_held;
use super::intake::Artifact;
use super::{Engine, Error, Result};

/// How long a source is looked at after its conversion ended.
const WATCHED: SignedDuration = SignedDuration::from_hours(1);

/// How far back the first look after a start reaches.
const WATCHED_AT_START: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Time between two looks at all of them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// When the sources of ended conversions are looked at.
#[derive(Debug, Default)]
pub(super) struct Ended {
    next_look: Duration,
    has_looked: bool,
}

/// An artifact of which a member changed after its conversion had ended.
struct Changed {
    /// The way back to the queue directory, of the members that are still there.
    placement: Placement,
    /// The first member that changed, as it was and as it is.
    before: Member,
    now: Entry,
}

impl<E: Executor> Engine<E> {
    /// Moves sources back into the queue that changed after their conversion ended.
    pub(super) async fn look_at_ended(&mut self, now: Duration) {
        if now < self.ended.next_look {
            return;
        }
        self.ended.next_look = now + LOOK_AGAIN;
        let back = if std::mem::replace(&mut self.ended.has_looked, true) { WATCHED } else { WATCHED_AT_START };
        let since = self.wall() - back;
        let read = move |ledger: &mut Ledger| Ok((ledger.ended_plans()?, ledger.ended_since(since)?));
        let (plans, rows) = match self.ledger.call(read).await {
            Ok(read) => read,
            Err(error) => return tracing::warn!(error = %chain(&error), "cannot look for sources that changed"),
        };
        self.carry_ended(plans).await;
        let held = self.held_sources();
        for ended in rows {
            let others = self.left_beside_changed(&ended);
            self.intake.take_up(&others, now);
            if let Some(changed) = self.changed(&ended, &held)
                && let Err(error) = self.take_up_again(&ended, changed).await
            {
                tracing::warn!(conversion = %ended.id, error = %chain(&error), "cannot take up a changed source");
            }
        }
    }

    /// The members of an ended conversion as they are now, if the content of one has changed and been quiet for the
    /// quiet period. `held` are the places of files that belong to conversions that go on.
    fn changed(&self, ended: &EndedConversion, held: &BTreeSet<PathBuf>) -> Option<Changed> {
        let (queue, errors) = (self.settings.paths.queue(), self.settings.paths.errors());
        // Sources that were left in place are claimed again where they lie.
        if ended.files.iter().any(|file| file.path.parent() == Some(queue) || is_held(held, &file.path)) {
            return None;
        }
        let (mut moves, mut first) = (Vec::new(), None);
        for file in &ended.files {
            let (directory, name) = (file.path.parent()?, file.path.file_name()?.to_str()?);
            let Some(found) = scan::look(directory, name).ok().flatten().filter(|found| found.kind == Kind::Regular)
            else {
                continue;
            };
            let before = &file.member;
            let is_changed = (found.size, found.mtime_ns) != (before.size_bytes, before.mtime_ns);
            // Another file of its name in the archive is not it. In `.errors/` it is the repaired one.
            if is_changed && found.inode != before.inode && !file.path.starts_with(&errors) {
                continue;
            }
            if is_changed && !self.is_quiet(&found) {
                return None;
            }
            let member = Member { name: before.name.clone(), ..found.member() };
            moves.push(PlannedMove { from: file.path.clone(), to: queue.join(&before.name), member, is_folder: false });
            if is_changed {
                first.get_or_insert((before.clone(), found));
            }
        }
        let (before, now) = first.or_else(|| self.added(ended))?;
        let has_primary = moves.first().is_some_and(|planned| planned.member.name == ended.name);
        let moves = match scan::folder_of(&ended.name) {
            Some(folder) => vec![whole_folder(ended.files.first()?, folder, queue)?],
            None => moves,
        };
        has_primary.then(|| Changed { placement: Placement { dir: queue.to_owned(), moves }, before, now })
    }

    /// An image that somebody put into the folder after its conversion had ended, or into one in `.errors/` any file, and that
    /// has been quiet for the quiet period; twice, as it is.
    fn added(&self, ended: &EndedConversion) -> Option<(Member, Entry)> {
        let (file, ended_at) = (ended.files.first()?, ended.ended_at?);
        scan::folder_of(&ended.name)?;
        let root = file.path.ancestors().nth(file.member.name.matches('/').count())?;
        let name = root.file_name()?.to_str()?;
        let below = |path: &str| path.split_once('/').map(|(_, below)| below.to_owned());
        let known: BTreeSet<_> = ended.files.iter().filter_map(|file| below(&file.member.name)).collect();
        let is_failed = root.parent() == Some(&self.settings.paths.errors());
        let is_wanted = |entry: &Entry| match scan::role(entry) {
            Role::Candidate => entry.size > 0,
            Role::Companion => is_failed,
            _ => false,
        };
        // By their status' time, which no copy sets back. A time to come is a clock's that was set back.
        let came = |entry: &Entry| {
            let came = Timestamp::from_nanosecond(entry.ctime_ns).unwrap_or(Timestamp::MAX);
            came > ended_at && came <= self.wall()
        };
        let content = folder::list(root.parent()?, name).ok().filter(|content| content.upload.is_none())?;
        let mut added = content.files.into_iter().filter(|entry| is_wanted(entry) && came(entry));
        let entry = added.find(|entry| below(&entry.name).is_some_and(|below| !known.contains(&below)))?;
        self.is_quiet(&entry).then(|| (entry.member(), entry))
    }

    /// The unchanged members of an artifact that was left in place, if another one changed: that one is claimed again
    /// where it lies, and not without them.
    fn left_beside_changed<'a>(&self, ended: &'a EndedConversion) -> Vec<&'a str> {
        let queue = self.settings.paths.queue();
        if ended.files.len() < 2 || ended.files.iter().any(|file| file.path.parent() != Some(queue)) {
            return Vec::new();
        }
        let state = |file: &EndedFile| {
            let found = fs::symlink_metadata(&file.path).ok().filter(fs::Metadata::is_file)?;
            Some(Stamp::of(&found) == file.member.stamp())
        };
        let unchanged = ended.files.iter().filter(|file| state(file) == Some(true));
        let unchanged: Vec<_> = unchanged.map(|file| file.member.name.as_str()).collect();
        let is_changed = |file: &EndedFile| state(file) == Some(false);
        if ended.files.iter().any(is_changed) { unchanged } else { Vec::new() }
    }

    fn is_quiet(&self, entry: &Entry) -> bool {
        let touched = Timestamp::from_nanosecond(entry.mtime_ns).unwrap_or(Timestamp::MAX);
        let quiet = SignedDuration::try_from(self.settings.quiet_period).unwrap_or(SignedDuration::MAX);
        let since = self.wall().duration_since(touched);
        // A time to come says nothing: a clock was set back, or the file's was set forward. In the queue directory it
        // settles like any other.
        since.is_negative() || since >= quiet
    }

    async fn take_up_again(&mut self, ended: &EndedConversion, changed: Changed) -> Result<()> {
        for planned in &changed.placement.moves {
            let path = || planned.to.clone();
            if moves::is_taken(&planned.to).map_err(|source| Error::Look { path: path(), source })? {
                // Somebody dropped it again: that file counts.
                return Ok(());
            }
        }
        mark_changed(ended, &changed.before, &changed.now, self.wall())?;
        self.plan_ended(ended, EndedPlan::TakeUp { placement: changed.placement }).await?;
        self.carry_ended_plans().await;
        Ok(())
    }

    /// Marks what was made of files that stayed in the queue directory, were written to, and are claimed again; not what
    /// was made of the content that they still have, which is in the directory `output`. `false` where the other members
    /// of their artifact have to settle with them first.
    pub(super) async fn mark_written_in_place(&mut self, artifact: &Artifact, output: Option<&str>) -> Result<bool> {
        let queue = self.settings.paths.queue().to_owned();
        for entry in &artifact.members {
            if !self.intake.was_written_to(entry) {
                continue;
            }
            let place = queue.join(entry.name.as_ref());
            let Some(ended) = self.ledger.call(move |ledger| ledger.ended_at(&place)).await? else { continue };
            let is_here = |name: &str| artifact.members.iter().any(|member| *member.name == *name);
            let others: Vec<&str> =
                ended.files.iter().map(|file| file.member.name.as_str()).filter(|name| !is_here(name)).collect();
            let now = self.now();
            if self.intake.take_up(&others, now) {
                self.intake.disturbed(artifact, now);
                return Ok(false);
            }
            if output.is_some() && ended.output_path.as_deref() == output {
                continue;
            }
            let before = ended.files.iter().find(|file| file.member.name == *entry.name);
            let before = before.map_or_else(|| entry.member(), |file| file.member.clone());
            mark_changed(&ended, &before, entry, self.wall())?;
            self.record_taken_up(&ended, &queue.join(&ended.name)).await?;
        }
        Ok(true)
    }

    /// Records that the primary of the ended conversion is the file at `place` now, and tells people.
    pub(super) async fn record_taken_up(&mut self, ended: &EndedConversion, place: &Path) -> Result<()> {
        let (id, to) = (ended.id.clone(), place.to_owned());
        self.ledger.call(move |ledger| ledger.ended_taken_up(&id, &to)).await?;
        if let Some(output_path) = ended.own_output().map(str::to_owned) {
            self.notify(&Event::Changed { filename: ended.name.clone(), output_path, at: self.wall() });
        }
        Ok(())
    }
}

/// The way back of a folder with all that it holds now; `file` is one of its members.
fn whole_folder(file: &EndedFile, folder: &str, queue: &Path) -> Option<PlannedMove> {
    let from = file.path.ancestors().nth(file.member.name.matches('/').count())?;
    let found = scan::look(from.parent()?, from.file_name()?.to_str()?).ok().flatten()?;
    let member = Member { name: folder.to_owned(), ..found.member() };
    let to = queue.join(folder);
    (found.kind == Kind::Directory).then(|| PlannedMove { from: from.to_owned(), to, member, is_folder: true })
}

/// Marks what was made of the artifact, and logs that it is taken again because of one member, as it was and as it is.
fn mark_changed(ended: &EndedConversion, before: &Member, entry: &Entry, now: Timestamp) -> Result<()> {
    let outcome = match ended.own_output() {
        Some(output) => {
            mark(Path::new(output), ended, now)?;
            format!("{output} was made of what it was before")
        }
        None => "its conversion had failed".to_owned(),
    };
    let with = if before.name == ended.name { String::new() } else { format!(" with {}", ended.name) };
    if before.stamp() == entry.stamp() {
        tracing::warn!(conversion = %ended.id, "{} came after {} was taken, which is taken again: {outcome}", entry.name, ended.name);
        return Ok(());
    }
    tracing::warn!(
        conversion = %ended.id,
        "{} changed after it was taken ({} bytes then, {} now), and is taken again{with}: {outcome}",
        before.name,
        before.size_bytes,
        entry.size
    );
    Ok(())
}

/// Records once, in the metadata.json of the output, that its source changed afterwards.
fn mark(output: &Path, ended: &EndedConversion, now: Timestamp) -> Result<()> {
    let Some(metadata) = publish::read_published(output, &ended.id) else { return Ok(()) };
    if metadata.source_changed_at.is_some() {
        return Ok(());
    }
    let marked = Metadata { source_changed_at: Some(now), ..metadata };
    Ok(store::write_json(&output.join(METADATA_FILE), &marked)?)
}
