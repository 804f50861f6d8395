// SPDX-License-Identifier: Apache-2.0
//! Removes by age what ended conversions left: looks at each of them, lets [`retention::decide`] decide, records what is
//! removed, and has it carried out (`ended.rs`).
//!
//! Only what the ledger says a conversion left is looked at, and only what is still that: sources by inode, size and time,
//! outputs by the id in their metadata.json. Everything else that lies there belongs to people.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::conversion::admission::RunState;
use crate::conversion::contract::METADATA_FILE;
use crate::conversion::emit;
use crate::conversion::retention::{self, Bar, Decision, Kept, Output, Published, Removal, Sources};
use crate::conversion::status::End;
use crate::conversion::{ConversionId, Metadata, Stamp, chain};
use crate::executor::Executor;
use crate::files::names;
use crate::files::placement::{Placement, PlannedMove};
use crate::ledger::{EndedConversion, EndedFile, EndedPlan, PROCESSED_DAYS};
use crate::queue::error_file;
use crate::queue::open_files::OpenFiles;
use crate::queue::publish;

use super::ended::is_held;
use super::{Engine, Result};

/// Longest time between two rounds over all ended conversions.
const ROUND: Duration = Duration::from_secs(3600);

/// Conversions that are looked at in one round of the engine: a volume that is slow must not keep the engine for long.
const PAGE: u32 = 50;

/// Until the next try, where the ledger could not be read.
const AFTER_ERROR: Duration = Duration::from_secs(60);

/// Until the next page.
const NEXT_PAGE: Duration = Duration::from_millis(200);

/// How far a round has come.
#[derive(Debug, Default)]
pub(super) struct Retaining {
    next_look: Duration,
    /// Number of the conversion that was looked at last.
    at: i64,
    /// Conversions of which was told why something old enough stays.
    told: HashSet<ConversionId>,
    /// Conversions whose recorded plans could not be carried out at the last look.
    pub failed: BTreeSet<ConversionId>,
}

impl<E: Executor> Engine<E> {
    /// Looks at the next conversions, if it is time.
    pub(super) async fn retain(&mut self, now: Duration) {
        if now < self.retaining.next_look || self.run_state == RunState::Stopped {
            return;
        }
        let pause = match self.retain_page().await {
            Ok(true) => NEXT_PAGE,
            Ok(false) => {
                let shortest =
                    self.settings.retention.shortest_days().map(|days| self.settings.retention_day * days / 8);
                shortest.map_or(ROUND, |shortest| ROUND.min(shortest.max(NEXT_PAGE)))
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look at what ended conversions left");
                AFTER_ERROR
            }
        };
        self.retaining.next_look = now + pause;
    }

    /// Looks at one page. Returns whether more follow.
    async fn retain_page(&mut self) -> Result<bool> {
        let (clock, after) = (self.settings.world.clock(), self.retaining.at);
        let forgotten = self.settings.retention_day * u32::try_from(PROCESSED_DAYS).expect("days of three months");
        let shortest = self.settings.retention.shortest_days().map(|days| self.settings.retention_day * days);
        let youngest = shortest.map_or(forgotten, |shortest| shortest.min(forgotten)).as_secs();
        let look = move |ledger: &mut crate::ledger::Ledger| {
            let now = ledger.advance_age(&clock)?;
            let rows = match now.checked_sub(youngest) {
                Some(since) => ledger.aged_since(since, after, PAGE)?,
                None => Vec::new(),
            };
            Ok((now, rows))
        };
        let (now, rows) = self.ledger.call(look).await?;
        let Some(last) = rows.last() else {
            self.retaining.at = 0;
            return Ok(false);
        };
        self.retaining.at = last.number;
        let is_last = rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        let (held, mut open) = (self.held_sources(), None);
        for ended in rows {
            let age = Duration::from_secs(now.saturating_sub(ended.aged_from.unwrap_or(now)));
            let sources = own_sources(&ended, &held);
            let kept = Kept { age, sources: self.place_of(&ended, &sources), output: self.output(&ended, &mut open) };
            let errors = self.settings.retention.errors_days.map(|days| self.settings.retention_day * days);
            if kept.sources == Sources::Gone && errors.is_some_and(|limit| age >= limit) {
                self.remove_report(&ended)?;
            }
            match retention::decide(&self.settings.retention, self.settings.retention_day, &kept) {
                Decision::Keep if age >= forgotten && is_nothing_left(&kept) => {
                    self.confirm()?;
                    let id = ended.id.clone();
                    self.ledger.call(move |ledger| ledger.forget_ended(&id)).await?;
                }
                Decision::Keep => {}
                Decision::Hold(why) => {
                    if self.retaining.told.insert(ended.id.clone()) {
                        tracing::info!(conversion = %ended.id, "old enough for retention, and kept: {why}");
                    }
                }
                Decision::Remove(what) => {
                    let plan = self.removal(&ended, what, sources);
                    self.plan_ended(&ended, plan).await?;
                    // What else of it is old enough is found in the next round.
                    self.carry_ended_plans().await;
                }
            }
        }
        if is_last {
            self.retaining.at = 0;
        }
        Ok(!is_last)
    }

    /// Removes the error.json of a source that somebody took from `.errors/`.
    fn remove_report(&self, ended: &EndedConversion) -> Result<()> {
        let errors = self.settings.paths.errors();
        let Some(primary) = ended.files.first().filter(|file| file.path.starts_with(&errors)) else { return Ok(()) };
        let depth = primary.member.name.matches('/').count();
        let place = primary.path.ancestors().nth(depth).unwrap_or(&primary.path);
        let is_gone = fs::symlink_metadata(place).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if is_gone && error_file::is_of(place, &ended.id) {
            self.confirm()?;
            error_file::remove(place, &errors)?;
        }
        Ok(())
    }

    fn place_of(&self, ended: &EndedConversion, sources: &[EndedFile]) -> Sources {
        let (errors, archive) = (self.settings.paths.errors(), self.settings.paths.archive());
        let is_whole = sources.len() == ended.files.len();
        let all_below = |root: &Path| sources.iter().all(|file| file.path.starts_with(root));
        if sources.is_empty() {
            Sources::Gone
        } else if all_below(&errors) {
            Sources::Errors
        } else if all_below(&archive) {
            Sources::Processed { is_whole }
        } else if is_whole {
            Sources::InPlace
        } else {
            Sources::Gone
        }
    }

    fn output(&self, ended: &EndedConversion, open: &mut Option<OpenFiles>) -> Output {
        let Some(path) = ended.output_path.as_deref().map(Path::new) else { return Output::Gone };
        if ended.end == End::Duplicate {
            return if publish::is_published(path) { Output::Shared } else { Output::Gone };
        }
        let Some(metadata) = publish::read_published(path, &ended.id) else { return Output::Gone };
        let is_superseder_there =
            metadata.superseded_by.as_ref().map(|superseder| publish::is_published(Path::new(superseder)));
        let mut is_open = |device, inode| {
            let has_processes = self.settings.world.has_processes();
            has_processes && open.get_or_insert_with(OpenFiles::look).has(device, inode)
        };
        Output::Published(Published { is_superseder_there, bar: bar(path, &metadata, &mut is_open) })
    }

    fn removal(&self, ended: &EndedConversion, what: Removal, sources: Vec<EndedFile>) -> EndedPlan {
        let paths = &self.settings.paths;
        if what == Removal::Output {
            let from = PathBuf::from(ended.output_path.clone().unwrap_or_default());
            let metadata = publish::read_published(&from, &ended.id);
            let bytes = metadata.iter().flat_map(|metadata| &metadata.disks).map(|disk| disk.allocated_bytes).sum();
            return EndedPlan::RemoveOutput { from, to: paths.trashed_output(&ended.id), bytes };
        }
        let dir = paths.trashed_sources(&ended.id);
        let bytes = sources.iter().map(|file| file.member.size_bytes).sum();
        let into_trash = |EndedFile { path, member }| {
            let to = dir.join(&member.name);
            PlannedMove { from: path, to, member, is_folder: false }
        };
        let moves = sources.into_iter().map(into_trash).collect();
        EndedPlan::RemoveSources { what, placement: Placement { dir, moves }, bytes }
    }
}

/// The sources of a conversion that lie where it left them, unchanged.
fn own_sources(ended: &EndedConversion, held: &BTreeSet<PathBuf>) -> Vec<EndedFile> {
    let is_own = |file: &&EndedFile| {
        let found = fs::symlink_metadata(&file.path);
        !is_held(held, &file.path)
            && found.is_ok_and(|found| found.is_file() && Stamp::of(&found) == file.member.stamp())
    };
    ended.files.iter().filter(is_own).cloned().collect()
}

/// Whether nothing is left that belongs to the conversion alone.
fn is_nothing_left(kept: &Kept) -> bool {
    kept.sources == Sources::Gone && matches!(kept.output, Output::Gone | Output::Shared)
}

/// Why a published directory can't be removed, if anything bars it.
fn bar(path: &Path, metadata: &Metadata, is_open: &mut impl FnMut(u64, u64) -> bool) -> Option<Bar> {
    let temporary = names::temporary(METADATA_FILE);
    let emitted = emit::published_names(metadata);
    let named: BTreeSet<&str> = metadata
        .disks
        .iter()
        .map(|disk| &disk.file)
        .chain(&metadata.side_files)
        .map(String::as_str)
        .chain(emitted.iter().map(String::as_str))
        // The last is left by a death in the middle of a mark.
        .chain([METADATA_FILE, temporary.as_str()])
        .collect();
    let entries = fs::read_dir(path).into_iter().flatten();
    if !entries.flatten().all(|entry| entry.file_name().to_str().is_some_and(|name| named.contains(name))) {
        return Some(Bar::Strangers);
    }
    // metadata.json is written after the disks, on the same volume.
    let sealed = fs::symlink_metadata(path.join(METADATA_FILE)).ok()?;
    let mut is_used = |file: &String| {
        fs::symlink_metadata(path.join(file)).is_ok_and(|found| {
            (found.mtime(), found.mtime_nsec()) > (sealed.mtime(), sealed.mtime_nsec())
                || is_open(found.dev(), found.ino())
        })
    };
    metadata.disks.iter().any(|disk| is_used(&disk.file)).then_some(Bar::InUse)
}
