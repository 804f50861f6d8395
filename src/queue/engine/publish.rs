// SPDX-License-Identifier: Apache-2.0
//! From a finished attempt to a published directory, and a row that says so: inspect → plan → seal → record → deliver →
//! confirm → conclude.

use std::path::{Path, PathBuf};

use crate::conversion::emit::{self, Emitted};
use crate::conversion::lifecycle::{Observation, Step, advance, next_step};
use crate::conversion::status::End;
use crate::conversion::{Attempt, ConversionId, Failure, Metadata, Reason};
use crate::executor::Executor;
use crate::files::paths::Paths;
use crate::files::recorded::Recorded;
use crate::ledger::{Change, ClaimState, ConversionRow};
use crate::notification::Event;
use crate::queue::claim;
use crate::queue::dispose::{self, Disposal};
use crate::queue::failpoint;
use crate::queue::publish::{self, Finished, Inspection, PublishError};
use crate::queue::target::{Delivery, Target};

use super::{Engine, Error, Result};

/// How often a target is planned again because each name is taken before the result is delivered.
const MAX_PLANS: usize = 100;

fn recorded_target(paths: &Paths, row: &ConversionRow) -> Option<Recorded<Target>> {
    Some(row.target()?.map(|name| Target::read(paths, name)))
}

impl<E: Executor> Engine<E> {
    /// Publishes what the last attempt left. `false` where the executor must be heard first.
    pub(super) async fn publish(&mut self, id: &ConversionId) -> Result<bool> {
        let Some(conversion) = self.conversions.get(id) else { return Ok(false) };
        let row = conversion.row.clone();
        let Step::Publish { attempt, folder } = next_step(&row.status) else { return Ok(false) };
        let paths = self.settings.paths.clone();
        if let Some(target) = recorded_target(&paths, &row)
            && target.has_arrived(&paths, id, attempt, &folder)?
        {
            target.sync()?;
            let metadata = publish::read_published(target.path(), id);
            self.conclude(id, target.path(), metadata).await?;
            return Ok(true);
        }
        let claim_dir = paths.claim_dir(id);
        let changed =
            claim::changed(&claim_dir, &row.claim).map_err(|source| Error::Look { path: claim_dir, source })?;
        if !changed.is_empty() {
            self.confirm()?;
            let failure = Failure::new(Reason::SourceChanged, format!("{} changed meanwhile", changed.join(", ")));
            self.executor.cancel(id, failure).await?;
            return Ok(false);
        }
        let folder = publish::found_folder(&paths, id, attempt, folder)?;
        let finished = match publish::inspect(&paths, &row.claim, attempt, &folder)? {
            Inspection::Finished(finished) => finished,
            Inspection::Unpublishable(failure) => {
                self.confirm()?;
                self.refuse(id, attempt, failure).await?;
                return Ok(false);
            }
        };
        let target = self.deliver(&row, &finished).await?;
        failpoint::reach(&paths, failpoint::Step::Published);
        self.conclude(id, target.path(), Some(finished.metadata)).await?;
        Ok(true)
    }

    /// Seals a result and brings it to a target, each step after the record of the one before.
    async fn deliver(&mut self, row: &ConversionRow, finished: &Finished) -> Result<Recorded<Target>> {
        let (paths, method) = (self.settings.paths.clone(), self.settings.method);
        let (date, stem) = (&row.claim.date, row.claim.stem());
        for _ in 0..MAX_PLANS {
            let plan = Target::plan(&paths, date, stem)?;
            let emitted = self.emitted(row, &finished.metadata, plan.path());
            finished.seal(&emitted)?;
            let target = self.record_target(&row.id, plan).await?;
            failpoint::reach(&paths, failpoint::Step::PublicationNoted);
            match target.deliver(finished, method)? {
                Delivery::Taken => {}
                Delivery::Moved => {
                    target.confirm(finished, method)?;
                    return Ok(target);
                }
            }
        }
        Err(PublishError::NoName { dir: paths.published(date), stem: stem.to_owned() }.into())
    }

    /// The files of platforms for disks that lie at `target`.
    fn emitted(&self, row: &ConversionRow, metadata: &Metadata, target: &Path) -> Vec<Emitted> {
        if metadata.disks.iter().any(|disk| disk.target.is_some()) {
            // They would name files that are not there; a claim's machine is made of its conversion.
            return Vec::new();
        }
        let options = &self.settings.options;
        let wanted = row.claim.emit.as_ref().unwrap_or(&options.emit);
        emit::files(metadata, wanted, &options.domain, &target.to_string_lossy(), emit::Names::Alone)
    }

    /// Records the target in the row. Whatever becomes of the delivery, the result is looked for there next time.
    async fn record_target(&mut self, id: &ConversionId, plan: Target) -> Result<Recorded<Target>> {
        let (key, target) = (id.clone(), plan.name(&self.settings.paths));
        let change = Change::State(ClaimState::Publishing { target });
        let row = self.ledger.call(move |ledger| ledger.update(&key, &change)).await?;
        let target = recorded_target(&self.settings.paths, &row).expect("the row has the state that was just written");
        self.take_row(id, row);
        Ok(target)
    }

    async fn refuse(&mut self, id: &ConversionId, attempt: Attempt, failure: Failure) -> Result<()> {
        tracing::warn!(conversion = %id, attempt = attempt.0, error = %failure.message, "nothing to publish");
        // A target may be recorded already for this attempt.
        self.change(id, Change::State(ClaimState::Submitted)).await?;
        Ok(self.executor.refuse(id, failure).await?)
    }

    /// Records the success and, in the same transaction, where the source goes.
    async fn conclude(&mut self, id: &ConversionId, target: &Path, metadata: Option<Metadata>) -> Result<()> {
        let now = self.wall();
        let Some(conversion) = self.conversions.get_mut(id) else { return Ok(()) };
        conversion.metadata = metadata;
        let row = &conversion.row;
        let (status, _) = advance(row.status.clone(), Observation::Published, &self.settings.policy, now);
        let disposal = Disposal::of(End::Succeeded, self.settings.archive_processed);
        let placement = dispose::plan(&self.settings.paths, &row.claim, disposal)?;
        let left = super::dispose::left_sources(&self.settings.paths, &row.claim, &placement);
        let name = row.claim.primary.clone();
        let start = status.attempts.last().and_then(|last| last.start_time).unwrap_or(now);
        let output_path = target.to_string_lossy().into_owned();
        self.intake.leave(&left);
        let duration = std::time::Duration::try_from(now.duration_since(start)).unwrap_or_default();
        let event = Event::Success { filename: name.clone(), duration, output_path: output_path.clone(), at: now };
        let notifications = self.outbox.announce(&event, now);
        let change = Change::Ended {
            placement,
            status: Some(status),
            output_path: Some(output_path.clone()),
            left,
            notifications,
        };
        self.change(id, change).await?;
        failpoint::reach(&self.settings.paths, failpoint::Step::EndNoted);
        self.last_activity = Some(now);
        self.refresh_totals().await?;
        self.trace(id, End::Succeeded, now);
        // The success is shown before the source is archived.
        self.show();
        tracing::info!(conversion = %id, "✅ Completed: {name} in {:.1}s, {output_path}", duration.as_secs_f64());
        Ok(())
    }

    /// Metadata of what was published, for those who show it.
    pub(super) fn published_metadata(&self, id: &ConversionId) -> Option<Metadata> {
        let conversion = self.conversions.get(id)?;
        conversion.metadata.clone().or_else(|| {
            let path = PathBuf::from(conversion.row.output_path.as_ref()?);
            publish::read_published(&path, id)
        })
    }
}
