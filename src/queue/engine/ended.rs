// SPDX-License-Identifier: Apache-2.0
//! Carries out what is recorded about what ended conversions left: taking sources up again, and removing by age.
//!
//! ```text
//!  planned and recorded ──▶ renamed into the trash ──▶ looked at again ──▶ gone ──▶ counted, and the plan closed
//!                                                           └─ another's: put back
//! ```
//!
//! Each step is safe to repeat, and what was put into the trash is counted once, in the transaction that closes the plan.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::conversion::chain;
use crate::conversion::retention::Removal;
use crate::executor::Executor;
use crate::files::placement::{Placement, PlacementError, is_member};
use crate::files::recorded::Recorded;
use crate::files::{moves, volume, waste};
use crate::ledger::{ClaimState, EndedConversion, EndedPlan};
use crate::queue::failpoint::{self, Step};
use crate::queue::{error_file, publish};

use super::{Engine, Error, Result};

impl<E: Executor> Engine<E> {
    /// Records what is done with what an ended conversion left.
    pub(super) async fn plan_ended(&mut self, ended: &EndedConversion, plan: EndedPlan) -> Result<()> {
        let id = ended.id.clone();
        self.ledger.call(move |ledger| ledger.plan_ended(&id, Some(&plan))).await?;
        failpoint::reach(&self.settings.paths, Step::EndedPlanNoted);
        Ok(())
    }

    /// Carries out everything that is recorded.
    pub(super) async fn carry_ended_plans(&mut self) {
        match self.ledger.call(|ledger| ledger.ended_plans()).await {
            Ok(plans) => self.carry_ended(plans).await,
            Err(error) => tracing::warn!(error = %chain(&error), "cannot read what is to be done with old files"),
        }
    }

    /// Carries these plans out. Whatever fails is logged once, and tried again at the next look.
    pub(super) async fn carry_ended(&mut self, plans: Vec<(EndedConversion, Recorded<EndedPlan>)>) {
        let mut failed = BTreeSet::new();
        for (ended, plan) in plans {
            if let Err(error) = self.carry_ended_plan(&ended, &plan).await {
                if !self.retaining.failed.contains(&ended.id) {
                    tracing::warn!(conversion = %ended.id, error = %chain(&error), "cannot move or remove what it left yet");
                }
                failed.insert(ended.id);
            }
        }
        self.retaining.failed = failed;
    }

    async fn carry_ended_plan(&mut self, ended: &EndedConversion, plan: &Recorded<EndedPlan>) -> Result<()> {
        // A file that is not seen because its volume is away is not gone.
        self.confirm()?;
        match &**plan {
            EndedPlan::TakeUp { placement } => self.take_up(ended, &plan.map(|_| placement.clone())).await,
            EndedPlan::RemoveSources { what, placement, bytes } => {
                self.remove_sources(ended, *what, &plan.map(|_| placement.clone()), *bytes).await
            }
            EndedPlan::RemoveOutput { from, to, bytes } => self.remove_output(ended, from, to, *bytes).await,
        }
    }

    async fn take_up(&mut self, ended: &EndedConversion, placement: &Recorded<Placement>) -> Result<()> {
        match placement.carry_out(self.settings.method) {
            // Somebody took a member away, or dropped one of its name again: those files count.
            Ok(()) | Err(PlacementError::Gone(_) | PlacementError::Taken(_)) => {}
            Err(error) => return Err(error.into()),
        }
        failpoint::reach(&self.settings.paths, Step::EndedMoved);
        self.tidy_sources(placement)?;
        self.record_taken_up(ended, placement.primary()).await
    }

    async fn remove_sources(
        &mut self,
        ended: &EndedConversion,
        what: Removal,
        placement: &Recorded<Placement>,
        bytes: u64,
    ) -> Result<()> {
        match placement.carry_out(self.settings.method) {
            Ok(()) | Err(PlacementError::Gone(_)) => {}
            Err(error) => return Err(error.into()),
        }
        failpoint::reach(&self.settings.paths, Step::EndedMoved);
        for planned in &placement.moves {
            let is_there = moves::is_taken(&planned.to);
            if is_there.map_err(look(&planned.to))? && !is_member(&planned.to, &planned.member) {
                tracing::warn!(conversion = %ended.id, "{} was swapped; it stays", planned.from.display());
                moves::move_file(&planned.to, &planned.from, self.settings.method)?;
            }
        }
        self.empty_trash(&placement.dir)?;
        self.tidy_sources(placement)?;
        let removed: Vec<_> = placement.moves.iter().map(|planned| planned.from.display().to_string()).collect();
        self.count_removed(ended, what, bytes, &removed.join(", ")).await
    }

    async fn remove_output(&mut self, ended: &EndedConversion, from: &Path, to: &Path, bytes: u64) -> Result<()> {
        if !moves::is_taken(to).map_err(look(to))? && publish::read_published(from, &ended.id).is_some() {
            moves::create_dir(to.parent().unwrap_or(to))?;
            moves::move_dir(from, to, self.settings.method)?;
            if publish::read_published(to, &ended.id).is_none() {
                tracing::warn!(conversion = %ended.id, "{} was swapped; it stays", from.display());
                moves::move_dir(to, from, self.settings.method)?;
                let id = ended.id.clone();
                return Ok(self.ledger.call(move |ledger| ledger.plan_ended(&id, None)).await?);
            }
        }
        failpoint::reach(&self.settings.paths, Step::EndedMoved);
        self.empty_trash(to)?;
        if let Some(day) = from.parent().filter(|day| day.parent() == Some(self.settings.paths.output())) {
            remove_if_empty(day)?;
        }
        self.count_removed(ended, Removal::Output, bytes, &from.display().to_string()).await
    }

    fn empty_trash(&self, dir: &Path) -> Result<()> {
        waste::remove(dir).map_err(look(dir))?;
        let parent = dir.parent().unwrap_or(dir);
        if parent.exists() {
            moves::sync_dir(parent)?;
        }
        failpoint::reach(&self.settings.paths, Step::EndedGone);
        Ok(())
    }

    async fn count_removed(&mut self, ended: &EndedConversion, what: Removal, bytes: u64, paths: &str) -> Result<()> {
        let id = ended.id.clone();
        self.ledger.call(move |ledger| ledger.removed(&id, what, bytes)).await?;
        tracing::info!(conversion = %ended.id, bytes, "retention removed {paths}");
        self.refresh_totals().await
    }

    /// Removes the report beside the primary, and the directories that the members have left empty.
    fn tidy_sources(&self, placement: &Placement) -> Result<()> {
        let (errors, archive) = (self.settings.paths.errors(), self.settings.paths.archive());
        if let Some(primary) = placement.moves.first().filter(|planned| planned.from.starts_with(&errors)) {
            // That of a folder lies beside the folder.
            let depth = primary.member.name.matches('/').count();
            error_file::remove(primary.from.ancestors().nth(depth).unwrap_or(&primary.from), &errors)?;
        }
        let left: BTreeSet<&Path> = placement.moves.iter().filter_map(|planned| planned.from.parent()).collect();
        for dir in left {
            let below = |root: &PathBuf| dir != root && dir.starts_with(root);
            let within = dir.ancestors().take_while(|dir| *dir != errors && *dir != archive);
            if below(&errors) || below(&archive) {
                for dir in within {
                    remove_if_empty(dir)?;
                }
            }
        }
        Ok(())
    }

    /// Where files lie, or will lie, that belong to conversions that go on.
    pub(super) fn held_sources(&self) -> BTreeSet<PathBuf> {
        let queue = self.settings.paths.queue();
        let mut held = BTreeSet::new();
        for conversion in self.conversions.values() {
            let row = &conversion.row;
            let placement = row.placement();
            let files = placement.iter().flat_map(|placement| placement.files(&row.claim));
            held.extend(files.map(|(path, _)| path));
            if row.state == ClaimState::Claimed {
                let taken_back = row.claim.members.iter().filter_map(|member| member.alone.as_ref());
                held.extend(taken_back.map(|alone| queue.join(&alone.location)));
            }
        }
        held
    }
}

/// Whether a file, or a folder that it lies in, is among those.
pub(super) fn is_held(held: &BTreeSet<PathBuf>, path: &Path) -> bool {
    path.ancestors().any(|place| held.contains(place))
}

fn look(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Look { path: path.to_owned(), source }
}

/// Removes a directory of ours that holds nothing any more.
fn remove_if_empty(dir: &Path) -> Result<()> {
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        // Somebody may have put something there a moment ago.
        if volume::remove_dir(dir).is_ok() {
            moves::sync_dir(dir.parent().unwrap_or(dir))?;
        }
    }
    Ok(())
}
