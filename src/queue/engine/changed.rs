// SPDX-License-Identifier: Apache-2.0
//! Sources that somebody writes to after their conversion has ended: they had not arrived whole, although we thought
//! so.
//!
//! ```text
//!  .errors/vm.raw, .processed/DATE/vm.raw ── changed, then quiet ──▶ output marked ──▶ vm.raw in the queue directory
//! ```
//!
//! The file is moved back under its name, and settles like any other. Dying between two steps is safe: the mark is made
//! once, and a file that has left its place belongs to the queue again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::conversion::contract::METADATA_FILE;
use crate::conversion::{Metadata, chain};
use crate::executor::Executor;
use crate::files::moves;
use crate::files::store;
use crate::ledger::AloneSource;
use crate::notification::Event;
use crate::queue::scan::{self, Entry, Kind};
use crate::queue::{error_file, publish};

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

impl<E: Executor> Engine<E> {
    /// Moves sources back into the queue that changed after their conversion ended.
    pub(super) async fn look_at_ended(&mut self, now: Duration) {
        if now < self.ended.next_look {
            return;
        }
        self.ended.next_look = now + LOOK_AGAIN;
        let back = if std::mem::replace(&mut self.ended.has_looked, true) { WATCHED } else { WATCHED_AT_START };
        let since = self.wall() - back;
        let sources = match self.ledger.call(move |ledger| ledger.alone_since(since)).await {
            Ok(sources) => sources,
            Err(error) => return tracing::warn!(error = %chain(&error), "cannot look for sources that changed"),
        };
        // The last conversion that left a file at a place has it: the row of an earlier one may be there because we died
        // before its end was recorded, or somebody removed its file.
        let sources: BTreeMap<_, _> = sources.into_iter().map(|source| (source.path.clone(), source)).collect();
        for source in sources.into_values() {
            if let Some(entry) = self.changed(&source)
                && let Err(error) = self.take_up_again(&source, &entry).await
            {
                tracing::warn!(path = %source.path.display(), error = %chain(&error), "cannot take up a changed source");
            }
        }
    }

    /// The source as it is now, if its content has changed and has been quiet for the quiet period.
    fn changed(&self, source: &AloneSource) -> Option<Entry> {
        let (directory, name) = (source.path.parent()?, source.path.file_name()?.to_str()?);
        if directory == self.settings.paths.queue() {
            // This source was left in place: it is claimed again where it lies.
            return None;
        }
        let found = scan::look(directory, name).ok().flatten()?;
        // Another file of its name is not it, but perhaps the source of another conversion.
        let is_it = found.kind == Kind::Regular && found.inode == source.inode;
        let is_changed = (found.size, found.mtime_ns) != (source.size_bytes, source.mtime_ns);
        (is_it && is_changed && self.is_quiet(&found)).then_some(found)
    }

    fn is_quiet(&self, entry: &Entry) -> bool {
        let touched = Timestamp::from_nanosecond(entry.mtime_ns).unwrap_or(Timestamp::MAX);
        let quiet = SignedDuration::try_from(self.settings.quiet_period).unwrap_or(SignedDuration::MAX);
        self.wall().duration_since(touched) >= quiet
    }

    async fn take_up_again(&mut self, source: &AloneSource, entry: &Entry) -> Result<()> {
        let (paths, now) = (self.settings.paths.clone(), self.wall());
        let back = paths.queue().join(&source.name);
        if moves::is_taken(&back).map_err(|source| Error::Look { path: back.clone(), source })? {
            // Somebody dropped it again: that file counts.
            return Ok(());
        }
        mark_changed(source, entry, now)?;
        moves::move_file(&source.path, &back, self.settings.method)?;
        if source.path.starts_with(paths.errors()) {
            error_file::remove(&source.path, &paths.errors())?;
        }
        self.record_changed(source, &back, now).await
    }

    /// Marks what was made of a file that stayed in the queue directory, was written to, and is claimed again.
    pub(super) async fn mark_written_in_place(&mut self, artifact: &Artifact) -> Result<()> {
        let [entry] = artifact.members.as_slice() else { return Ok(()) };
        if !self.intake.was_written_to(entry) {
            return Ok(());
        }
        let (now, place) = (self.wall(), self.settings.paths.queue().join(entry.name.as_ref()));
        let sources = self.ledger.call(move |ledger| ledger.alone_since(now - WATCHED_AT_START)).await?;
        for source in sources.into_iter().filter(|source| source.path == place) {
            mark_changed(&source, entry, now)?;
            self.record_changed(&source, &place, now).await?;
        }
        Ok(())
    }

    /// Records that the source is the file at `place` now, and tells people.
    async fn record_changed(&mut self, source: &AloneSource, place: &Path, now: Timestamp) -> Result<()> {
        let (id, place) = (source.id.clone(), place.to_string_lossy().into_owned());
        self.ledger.call(move |ledger| ledger.alone_changed(&id, &place)).await?;
        if let Some(output_path) = source.output_path.clone() {
            self.notify(&Event::Changed { filename: source.name.clone(), output_path, at: now });
        }
        Ok(())
    }
}

/// Marks what was made of the source, and logs that it is taken again.
fn mark_changed(source: &AloneSource, entry: &Entry, now: Timestamp) -> Result<()> {
    let outcome = match &source.output_path {
        Some(output) => {
            mark(Path::new(output), source, now)?;
            format!("{output} was made of what it was before")
        }
        None => "its conversion had failed".to_owned(),
    };
    tracing::warn!(
        conversion = %source.id,
        "{} changed after it was taken ({} bytes then, {} now), and is taken again: {outcome}",
        source.name,
        source.size_bytes,
        entry.size
    );
    Ok(())
}

/// Records once, in the metadata.json of the output, that its source changed afterwards.
fn mark(output: &Path, source: &AloneSource, now: Timestamp) -> Result<()> {
    let Some(metadata) = publish::read_published(output, &source.id) else { return Ok(()) };
    if metadata.source_changed_at.is_some() {
        return Ok(());
    }
    let marked = Metadata { source_changed_at: Some(now), ..metadata };
    Ok(store::write_json(&output.join(METADATA_FILE), &marked)?)
}
