// SPDX-License-Identifier: Apache-2.0
//! What an earlier run left: half-made claims, rows without claims, claims without rows, waste.

use std::collections::BTreeSet;
use std::fs;

use crate::conversion::{Claim, ConversionId, chain};
use crate::executor::Executor;
use crate::files::moves;
use crate::ledger::{ClaimState, ConversionRow, Ledger, NewConversion};
use crate::queue::claim::{self, ClaimError};
use crate::queue::work;

use self::parked::{Reports, Waiting};
use super::space::waits_for_room;
use super::{Conversion, Engine, Error, Result};

mod parked;

impl<E: Executor> Engine<E> {
    /// Brings claims and rows together and registers every conversion. The rounds then do what is left to do for each.
    pub(super) async fn recover(&mut self) -> Result<()> {
        let claims = claim::list(&self.settings.paths, self.settings.home.queue_uid())?;
        for (path, why) in &claims.strays {
            tracing::warn!(path = %path.display(), why, "is no claim and is left alone");
        }
        for foreign in &claims.foreign {
            tracing::info!(conversion = %foreign.id, queue = %foreign.queue_uid, "was claimed by a queue that is gone");
        }
        // The caller has the lock: nobody else looks after these claims.
        let claims: Vec<Claim> = claims.own.into_iter().chain(claims.foreign).collect();
        self.sync_names(&claims)?;
        let rows = self.ledger.call(Ledger::conversions).await?;
        let mut known: BTreeSet<ConversionId> = rows.iter().map(|row| row.id.clone()).collect();
        let present: BTreeSet<ConversionId> = claims.iter().map(|claim| claim.id.clone()).collect();
        for row in rows {
            self.adopt(row, &present).await?;
        }
        let mut reports = None;
        for claim in claims {
            if !known.contains(&claim.id) && self.is_outdated(&claim)? {
                continue;
            }
            if known.insert(claim.id.clone()) {
                let filepath = claim::origin(&self.settings.paths, &claim).join(&claim.primary);
                let filepath = filepath.to_string_lossy().into_owned();
                tracing::info!(conversion = %claim.id, "a claim that the ledger does not know is taken up");
                let waiting = reports
                    .get_or_insert_with(|| Reports::read(&self.settings.paths))
                    .waiting(&self.settings.paths, &claim);
                let new = NewConversion { claim, filepath, md5: None, duplicate_of: None };
                let row = match waiting {
                    Some(Waiting { placement, status }) => {
                        let state = ClaimState::Parked { placement };
                        self.ledger.call(move |ledger| ledger.restore(new, state, status)).await?
                    }
                    None => self.ledger.call(move |ledger| ledger.claim(new)).await?,
                };
                self.adopt(row, &present).await?;
            }
        }
        self.remove_waste(&known)
    }

    /// Brings names to the disk that an earlier run made and may not have synced before it died: the next steps rely on
    /// them.
    fn sync_names(&self, claims: &[Claim]) -> Result<()> {
        let paths = &self.settings.paths;
        let archives: BTreeSet<_> = claims.iter().map(|claim| paths.processed(&claim.date)).collect();
        let standing =
            [paths.processing(), paths.errors(), paths.queue().join(".processed"), paths.output().to_owned()];
        for dir in standing.into_iter().chain(archives.into_iter().filter(|dir| dir.exists())) {
            moves::sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Removes a claim of files that were converted under another id and stay in the queue: its record could not be
    /// removed when the claim failed.
    fn is_outdated(&self, claim: &Claim) -> Result<bool> {
        if !self.intake.are_left(&claim.members) {
            return Ok(false);
        }
        match claim::remove(&self.settings.paths, &claim.id) {
            Ok(()) => Ok(true),
            // The files were asked for again, and lie in the claim.
            Err(ClaimError::NotEmpty { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn adopt(&mut self, row: ConversionRow, present: &BTreeSet<ConversionId>) -> Result<()> {
        let id = row.id.clone();
        let is_claimed = row.state == ClaimState::Claimed;
        if is_claimed && !present.contains(&id) {
            self.confirm()?;
            // Its members never left, or went back: they are found in the directory.
            let key = id.clone();
            self.ledger
                .call(move |ledger| {
                    ledger.forget(&key);
                    Ok(())
                })
                .await?;
            return Ok(());
        }
        let mut conversion = Conversion::left(row);
        if waits_for_room(&conversion.row) {
            conversion.has_room = false;
            self.space.look_now();
        }
        self.conversions.insert(id.clone(), conversion);
        let registered = if is_claimed { self.complete_claim(&id).await } else { self.submit(&id).await };
        if let Err(error) = registered {
            self.note_error(&id, &error);
        }
        Ok(())
    }

    /// Removes work directories that belong to no known conversion.
    fn remove_waste(&self, known: &BTreeSet<ConversionId>) -> Result<()> {
        let work = self.settings.paths.work();
        let look = |source| Error::Look { path: work.clone(), source };
        for entry in fs::read_dir(&work).map_err(look)? {
            let entry = entry.map_err(look)?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<ConversionId>().ok()) else {
                continue;
            };
            if !known.contains(&id)
                && let Err(error) = work::remove(&self.settings.paths, &id)
            {
                tracing::warn!(conversion = %id, error = %chain(&error), "cannot remove what is left of it");
            }
        }
        Ok(())
    }
}
