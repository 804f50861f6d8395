// SPDX-License-Identifier: Apache-2.0
//! Unfinished conversions: claimed, changed, forgotten; at once or with the next transaction.

use rusqlite::{Connection, TransactionBehavior};

use crate::conversion::status::{ConversionStatus, End};
use crate::conversion::{Claim, ConversionId};

use super::alone;
use super::deferred::Pending;
use super::ended;
use super::left;
use super::outbox;
use super::processed::{self, Outcome};
use super::rows::{self, Change, ClaimState, ConversionRow};
use super::{Error, Ledger, Result, query, totals};

/// What is known of a conversion at its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewConversion {
    pub claim: Claim,
    pub filepath: String,
    pub md5: Option<String>,
    pub duplicate_of: Option<String>,
}

impl Ledger {
    /// Records a claim that has its claim.json. If that file holds all there is to record, a restart would read the
    /// same from it, and the row may wait. Safe to repeat.
    pub fn claim(&mut self, new: NewConversion) -> Result<ConversionRow> {
        if let Some(known) = self.conversion(&new.claim.id)? {
            return Ok(known);
        }
        let is_told_by_claim = new.md5.is_none() && new.duplicate_of.is_none();
        let row = ConversionRow {
            id: new.claim.id.clone(),
            claim: new.claim,
            filepath: new.filepath,
            md5: new.md5,
            duplicate_of: new.duplicate_of,
            uid: None,
            state: ClaimState::Claimed,
            status: ConversionStatus::default(),
            output_path: None,
            source_location: None,
        };
        self.deferred.put(row.clone());
        if !is_told_by_claim && let Err(error) = self.flush() {
            self.deferred.take_back(&row.id);
            return Err(error);
        }
        Ok(row)
    }

    /// Records a conversion of an earlier ledger, as far as the files tell. It is on the disk when this returns.
    pub fn restore(
        &mut self,
        new: NewConversion,
        state: ClaimState,
        status: ConversionStatus,
    ) -> Result<ConversionRow> {
        let row = ConversionRow { state, status, ..self.claim(new)? };
        self.deferred.put(row.clone());
        self.flush()?;
        Ok(row)
    }

    /// Every conversion that is not forgotten, oldest claim first.
    pub fn conversions(&mut self) -> Result<Vec<ConversionRow>> {
        self.flush()?;
        let mut rows = rows::all(&self.connection)?;
        rows.sort_by_key(|row| row.claim.claimed_at);
        Ok(rows)
    }

    /// One conversion.
    pub fn conversion(&self, id: &ConversionId) -> Result<Option<ConversionRow>> {
        match self.deferred.find(id) {
            Some(Pending::Changed(row)) => Ok(Some(row.as_ref().clone())),
            Some(Pending::Gone) => Ok(None),
            None => rows::find(&self.connection, id),
        }
    }

    /// Changes a row and counts what follows from its new status. The change is on the disk when this returns, together
    /// with everything deferred; but a change that a restart would find out again waits for the next transaction or
    /// [`Ledger::flush`]. Writes nothing where nothing changes.
    pub fn update(&mut self, id: &ConversionId, change: &Change) -> Result<ConversionRow> {
        let before = self.conversion(id)?.ok_or_else(|| Error::Unknown(id.to_string()))?;
        let after = change.apply(&before);
        let is_counted =
            before.status.end != after.status.end || totals::retries(&before.status) != totals::retries(&after.status);
        if is_counted || !change.may_wait(&before) {
            self.write_now(&before, &after, change)?;
        } else if after != before {
            self.deferred.put(after.clone());
        }
        Ok(after)
    }

    fn write_now(&mut self, before: &ConversionRow, after: &ConversionRow, change: &Change) -> Result<()> {
        let writing = || query("write a conversion");
        if after == before && change.left().is_empty() {
            return self.flush();
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        self.deferred.write(&transaction)?;
        rows::write(&transaction, after)?;
        totals::count(&transaction, &after.claim, &before.status, &after.status)?;
        if before.status.end.is_none() {
            record_outcome(&transaction, after)?;
        }
        alone::record(&transaction, after)?;
        ended::record(&transaction, after)?;
        for source in change.left() {
            left::remember(&transaction, source)?;
        }
        if before.state != after.state {
            outbox::add(&transaction, change.notifications())?;
        }
        transaction.commit().map_err(writing())?;
        self.deferred.clear();
        Ok(())
    }

    /// Removes a conversion of which nothing is left to do. Deferred: a restart that still finds it has nothing to do
    /// for it either.
    pub fn forget(&mut self, id: &ConversionId) {
        self.deferred.forget(id);
    }

    /// Brings what was deferred to the disk.
    pub fn flush(&mut self) -> Result<()> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let writing = || query("write what was deferred");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        self.deferred.write(&transaction)?;
        transaction.commit().map_err(writing())?;
        self.deferred.clear();
        Ok(())
    }

    /// Whether something waits for [`Ledger::flush`].
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }
}

fn record_outcome(connection: &Connection, row: &ConversionRow) -> Result<()> {
    let succeeded = match row.status.end {
        Some(End::Succeeded) => true,
        Some(End::Failed) => false,
        Some(End::Duplicate | End::Cancelled) | None => return Ok(()),
    };
    processed::record(
        connection,
        &Outcome {
            filename: &row.claim.primary,
            filepath: &row.filepath,
            size_bytes: row.claim.size_bytes(),
            md5: row.md5.as_deref(),
            fingerprint: row.claim.fingerprint.as_deref(),
            processed_at: row.status.completion_time.unwrap_or(row.claim.claimed_at),
            output_path: row.output_path.as_deref(),
            succeeded,
        },
    )
}
