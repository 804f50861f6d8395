// SPDX-License-Identifier: Apache-2.0
//! Where the members go: parked between attempts, back to the queue, or to where those of ended conversions stay.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::conversion::contract::FAILURE_FILE;
use crate::conversion::failure::without_name;
use crate::conversion::status::End;
use crate::conversion::{Claim, ConversionId, Failure, FailureReport, Member, Reason};
use crate::executor::Executor;
use crate::files::paths::Paths;
use crate::files::placement::{Placement, PlacementError};
use crate::files::recorded::Recorded;
use crate::files::store;
use crate::ledger::{Change, ClaimState, ConversionRow, LeftSource, NewNotification, retries};
use crate::notification::Event;
use crate::queue::claim;
use crate::queue::dispose::{self, Disposal};
use crate::queue::error_file::{self, RetryInfo, SystemInfo};
use crate::queue::failpoint::{self, Step};
use crate::queue::park::{self, Parked};
use crate::queue::work;
use crate::telemetry::traces::Ended;

use super::{Conversion, Engine, Result};

/// Whether the members arrived, or somebody has removed some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Whole,
    Gone,
}

impl<E: Executor> Engine<E> {
    pub(super) async fn plan_park(&mut self, id: &ConversionId) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let placement = park::plan(&self.settings.paths, &row.claim)?;
        self.change(id, Change::State(ClaimState::Parked { placement })).await?;
        failpoint::reach(&self.settings.paths, Step::ParkNoted);
        Ok(())
    }

    pub(super) async fn carry_park(&mut self, id: &ConversionId) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let Some(placement) = row.placement() else { return Ok(()) };
        let (placement, arrival) = self.carry(&row, placement).await?;
        failpoint::reach(&self.settings.paths, Step::Parked);
        if arrival == Arrival::Whole {
            self.write_error_file(&row, &placement)?;
        }
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.is_in_place = true;
        }
        Ok(())
    }

    /// Moves parked members back into the claim, unless somebody changed or removed them.
    pub(super) async fn unpark(&mut self, id: &ConversionId) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let Some(placement) = row.placement() else { return Ok(()) };
        let parked = park::look(&row.claim, &placement);
        if parked != Parked::Unchanged {
            self.confirm()?;
        }
        match parked {
            Parked::Unchanged => {
                let back = park::plan_back(&self.settings.paths, &row.claim, &placement);
                back.carry_out(self.settings.method)?;
                failpoint::reach(&self.settings.paths, Step::TakenBack);
                error_file::remove(placement.primary(), &self.settings.paths.errors())?;
                self.change(id, Change::State(ClaimState::Submitted)).await
            }
            Parked::Changed(names) => {
                let message = format!("{} changed while it waited for its retry", names.join(", "));
                self.cancel(id, Failure::new(Reason::SourceChanged, message)).await
            }
            Parked::Gone(names) => {
                let message = format!("{} was taken away while it waited for its retry", names.join(", "));
                self.cancel(id, Failure::new(Reason::SourceMissing, message)).await
            }
        }
    }

    /// Cancels a conversion; nothing more is done with it until the executor has shown that.
    async fn cancel(&mut self, id: &ConversionId, failure: Failure) -> Result<()> {
        tracing::info!(conversion = %id, "{}", failure.message);
        self.executor.cancel(id, failure).await?;
        if let Some(conversion) = self.conversions.get_mut(id) {
            conversion.hold_until = self.origin.elapsed() + super::PAUSE;
        }
        Ok(())
    }

    pub(super) async fn plan_return(&mut self, id: &ConversionId, reason: Reason) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let paths = self.settings.paths.clone();
        if let Some(placement) = row.placement() {
            match park::plan_back(&paths, &row.claim, &placement).carry_out(self.settings.method) {
                Ok(()) => {}
                Err(PlacementError::Gone(_)) => self.confirm()?,
                Err(error) => return Err(error.into()),
            }
            error_file::remove(placement.primary(), &paths.errors())?;
        }
        let (placement, _) = claim::plan_return(&paths, &row.claim)?;
        tracing::info!(conversion = %id, %reason, "{} goes back to settling", row.claim.primary);
        self.change(id, Change::State(ClaimState::Returning { reason, placement })).await?;
        failpoint::reach(&self.settings.paths, Step::ReturnNoted);
        Ok(())
    }

    pub(super) async fn carry_return(&mut self, id: &ConversionId) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let Some(placement) = row.placement() else { return Ok(()) };
        // Again after a restart: it is kept in memory only.
        if matches!(row.state, ClaimState::Returning { reason: Reason::WrongMember, .. }) {
            self.disprove(&row);
        }
        let (placement, arrival) = self.carry(&row, placement).await?;
        failpoint::reach(&self.settings.paths, Step::Returned);
        let is_changed = matches!(row.state, ClaimState::Returning { reason: Reason::SourceChanged, .. });
        self.intake.ended(&row.claim.members, is_changed);
        if arrival == Arrival::Whole && placement.dir.starts_with(self.settings.paths.errors()) {
            self.write_error_file(&row, &placement)?;
        }
        self.let_go(id, &placement).await?;
        self.intake.regroup();
        Ok(())
    }

    pub(super) async fn plan_end(&mut self, id: &ConversionId, end: End) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let paths = self.settings.paths.clone();
        let disposal = Disposal::of(end, self.settings.archive_processed);
        let placement = match &row.state {
            // The source lies in `.errors/` already.
            ClaimState::Parked { placement } => placement.clone(),
            // The source could not be moved.
            ClaimState::Submitted if end == End::Failed && claim::is_outside(&paths, &row.claim) => {
                Placement { dir: claim::origin(&paths, &row.claim), moves: Vec::new() }
            }
            _ => dispose::plan(&paths, &row.claim, disposal)?,
        };
        let left =
            if disposal == Disposal::InPlace { left_sources(&paths, &row.claim, &placement) } else { Vec::new() };
        self.intake.leave(&left);
        let notifications = self.announcement(&row, end);
        let change = Change::Ended { placement, status: None, output_path: None, left, notifications };
        self.change(id, change).await?;
        failpoint::reach(&self.settings.paths, Step::EndNoted);
        self.refresh_totals().await?;
        self.show();
        self.last_activity = Some(self.wall());
        self.trace(id, end, self.wall());
        Self::log_end(&row, end);
        Ok(())
    }

    /// Sends the trace of a conversion whose end is recorded.
    pub(super) fn trace(&self, id: &ConversionId, end: End, at: Timestamp) {
        if let Some(Conversion { row, metadata, .. }) = self.conversions.get(id) {
            let (claim, status, metadata) = (&row.claim, &row.status, metadata.as_ref());
            self.settings.traces.send(&Ended { claim, status, end, metadata, at });
        }
    }

    fn announcement(&self, row: &ConversionRow, end: End) -> Vec<NewNotification> {
        let (at, filename) = (self.wall(), row.claim.primary.clone());
        let event = match (end, &row.status.failure, &row.duplicate_of) {
            (End::Failed, Some(failure), _) => {
                Event::Failure { filename, error: failure.message.clone(), retry_count: retries(&row.status), at }
            }
            (End::Duplicate, _, Some(duplicate_of)) => {
                Event::Duplicate { filename, duplicate_of: duplicate_of.clone(), at }
            }
            _ => return Vec::new(),
        };
        self.outbox.announce(&event, at)
    }

    fn log_end(row: &ConversionRow, end: End) {
        let name = &row.claim.primary;
        let failure = row.status.failure.as_ref();
        let why = failure.map_or("", |failure| without_name(&failure.message, name));
        match (end, failure) {
            (End::Failed, Some(failure)) => {
                tracing::error!(conversion = %row.id, reason = %failure.reason, "❌ Failed: {name}: {why}");
            }
            (End::Cancelled, Some(failure)) => {
                tracing::warn!(conversion = %row.id, reason = %failure.reason, "Cancelled: {name}: {why}");
            }
            _ => tracing::debug!(conversion = %row.id, ?end, "ended"),
        }
    }

    pub(super) async fn carry_end(&mut self, id: &ConversionId) -> Result<()> {
        let Some(row) = self.row(id) else { return Ok(()) };
        let Some(placement) = row.placement() else { return self.drop_conversion(id).await };
        if row.status.end == Some(End::Succeeded) {
            // Marked before the source is archived: whoever finds it in the archive finds the mark.
            self.mark_superseded(&row).await?;
        }
        let (placement, arrival) = self.carry(&row, placement).await?;
        self.intake.ended(&row.claim.members, false);
        failpoint::reach(&self.settings.paths, Step::Disposed);
        match (row.status.end, arrival) {
            (Some(End::Failed), Arrival::Whole) if placement.moves.is_empty() => {
                let told_at =
                    Placement { dir: self.settings.paths.errors().join(row.claim.entry_name()), moves: Vec::new() };
                self.write_error_file(&row, &told_at)?;
            }
            (Some(End::Failed | End::Cancelled), Arrival::Whole) => self.write_error_file(&row, &placement)?,
            (Some(End::Succeeded), _) => {
                error_file::remove_stale(&self.settings.paths.errors(), row.claim.entry_name())?;
            }
            // A source that somebody took away needs no report.
            (Some(End::Failed | End::Cancelled), Arrival::Gone) => {
                error_file::remove(placement.primary(), &self.settings.paths.errors())?;
            }
            _ => {}
        }
        self.let_go(id, &placement).await
    }

    /// The members lie where they stay: publishes that, and forgets the conversion.
    async fn let_go(&mut self, id: &ConversionId, placement: &Placement) -> Result<()> {
        let metadata = self.published_metadata(id);
        let queue = self.settings.paths.queue();
        if let Some(conversion) = self.conversions.get_mut(id) {
            let stays =
                || claim::origin(&self.settings.paths, &conversion.row.claim).join(conversion.row.claim.entry_name());
            let primary = if placement.moves.is_empty() { stays() } else { placement.primary().to_owned() };
            let location = primary.strip_prefix(queue).unwrap_or(&primary).to_string_lossy().into_owned();
            conversion.row.source_location = Some(location);
            self.executor.report(&conversion.row, metadata.as_ref()).await?;
        }
        failpoint::reach(&self.settings.paths, Step::Reported);
        self.drop_conversion(id).await
    }

    async fn drop_conversion(&mut self, id: &ConversionId) -> Result<()> {
        work::remove(&self.settings.paths, id)?;
        claim::remove(&self.settings.paths, id)?;
        failpoint::reach(&self.settings.paths, Step::Tidied);
        self.executor.forget(id).await?;
        self.forget_row(id).await?;
        if self.awaited.remove(id) {
            self.intake.regroup();
        }
        Ok(())
    }

    /// Carries a placement out. If a name was taken since it was chosen, chooses again.
    async fn carry(
        &mut self,
        row: &ConversionRow,
        mut placement: Recorded<Placement>,
    ) -> Result<(Recorded<Placement>, Arrival)> {
        loop {
            match placement.carry_out(self.settings.method) {
                Ok(()) => return Ok((placement, Arrival::Whole)),
                Err(error @ PlacementError::Taken(_)) => {
                    let parent = self.parent_of(row, &placement);
                    let again = placement.again(&parent, row.claim.stem())?;
                    self.change(&row.id, Change::State(row.state.moved_to(again))).await?;
                    let Some(recorded) = self.row(&row.id).and_then(|row| row.placement()) else {
                        return Err(error.into());
                    };
                    placement = recorded;
                }
                Err(PlacementError::Gone(names)) => {
                    self.confirm()?;
                    tracing::warn!(conversion = %row.id, ?names, "somebody took members away");
                    return Ok((placement, Arrival::Gone));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The directory in which another name is chosen: never the queue directory itself, whose names are watched.
    fn parent_of(&self, row: &ConversionRow, placement: &Placement) -> std::path::PathBuf {
        let paths = &self.settings.paths;
        let archive = paths.processed(&row.claim.date);
        let is_done = matches!(row.status.end, Some(End::Succeeded | End::Duplicate));
        if placement.dir.starts_with(&archive) || is_done { archive } else { paths.errors() }
    }

    fn write_error_file(&self, row: &ConversionRow, placement: &Placement) -> Result<()> {
        let Some(failure) = &row.status.failure else { return Ok(()) };
        let paths = &self.settings.paths;
        // A predecessor that tidied up had already written it, while what the worker left was still there.
        if !paths.work_of(&row.id).exists() && error_file::is_of(placement.primary(), &row.id) {
            return Ok(());
        }
        let report: Option<FailureReport> = row.status.attempts.last().and_then(|last| {
            let work = paths.work_dir(&row.id, last.number);
            store::read_json(&work, FAILURE_FILE, FailureReport::MAX_BYTES).unwrap_or_default()
        });
        let retry_info = RetryInfo {
            retry_count: row.status.counted_attempts().saturating_sub(1),
            max_retries: if self.settings.policy.enabled { self.settings.policy.max_retries } else { 0 },
            next_retry_at: row.status.next_retry_time,
        };
        let content = error_file::compose(
            &row.claim,
            &row.filepath,
            failure,
            report.as_ref(),
            SystemInfo::read(paths.output()),
            retry_info,
            self.wall(),
        );
        Ok(error_file::write(placement.primary(), &content)?)
    }

    fn row(&self, id: &ConversionId) -> Option<ConversionRow> {
        self.conversions.get(id).map(|conversion| conversion.row.clone())
    }
}

/// Members that stay in (or return to) the queue directory by this placement.
pub(super) fn left_sources(paths: &Paths, claim: &Claim, placement: &Placement) -> Vec<LeftSource> {
    let left = |(path, member): (PathBuf, &Member)| {
        let path = path.strip_prefix(paths.queue()).ok()?.to_string_lossy().into_owned();
        // Nothing below `.processed/` or `.errors/` is watched.
        (!path.starts_with('.')).then_some(LeftSource {
            path,
            inode: member.inode,
            size_bytes: member.size_bytes,
            mtime_ns: member.mtime_ns,
        })
    };
    placement.files(claim).into_iter().filter_map(left).collect()
}
