//! Rows of unfinished conversions: their claim, how far their files have moved, and their status.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::conversion::status::{ConversionStatus, End};
use crate::conversion::{Claim, ConversionId, Reason};
use crate::files::placement::Placement;

use super::deferred::Pending;
use super::left::{self, LeftSource};
use super::processed::{self, Outcome};
use super::{Error, Ledger, Result, query, totals};

/// How far the files of a claim have moved (architecture: *Ledger of a claim*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// The members are being moved into the claim.
    Claimed,
    /// The executor knows the conversion; the members lie in the claim.
    Submitted,
    /// The members lie, or are about to lie, in `.errors/` until the next attempt is due.
    Parked { placement: Placement },
    /// The work directory is about to become this directory, relative to the output directory.
    Publishing { target: String },
    /// The members go back under their names, uncounted.
    Returning { reason: Reason, placement: Placement },
    /// It has ended; the members go where ended ones go.
    Terminal { placement: Placement },
    /// The members lie where they stay.
    Disposed,
    /// Whoever shows the conversion knows its end: nothing is left to do but to forget it.
    Reported,
}

/// One unfinished (or unreported) conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversionRow {
    pub id: ConversionId,
    pub claim: Claim,
    /// Where the primary was dropped.
    pub filepath: String,
    pub md5: Option<String>,
    /// What it is a duplicate of, in words for a person; set at the claim.
    pub duplicate_of: Option<String>,
    /// UID of its `ConversionJob` (in the cluster).
    pub uid: Option<String>,
    pub state: ClaimState,
    pub status: ConversionStatus,
    /// Directory of its output, once published.
    pub output_path: Option<String>,
    /// Where the primary ended, relative to the queue directory.
    pub source_location: Option<String>,
}

/// What is known of a conversion at its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewConversion {
    pub claim: Claim,
    pub filepath: String,
    pub md5: Option<String>,
    pub duplicate_of: Option<String>,
}

/// What changes in a row, in one transaction with everything that follows from it. Absent: stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub state: Option<ClaimState>,
    pub status: Option<ConversionStatus>,
    pub uid: Option<String>,
    pub output_path: Option<String>,
    pub source_location: Option<String>,
    /// Sources that stay in the queue directory from now on, converted.
    pub left: Vec<LeftSource>,
}

const COLUMNS: &str = "id, claim, filepath, md5_hash, duplicate_of, uid, state, status, output_path, source_location";

impl Ledger {
    /// Notes a claim whose claim.json stands. Where that says all there is to say, a restart comes to the same by
    /// reading it, and the disk may wait. Safe to repeat.
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

    /// Every conversion that is not forgotten, oldest claim first.
    pub fn conversions(&mut self) -> Result<Vec<ConversionRow>> {
        self.flush()?;
        let reading = || query("read the conversions");
        let sql = format!("SELECT {COLUMNS} FROM conversions");
        let mut statement = self.connection.prepare(&sql).map_err(reading())?;
        let texts: Vec<Texts> = statement.query_map([], Texts::read).and_then(Iterator::collect).map_err(reading())?;
        let mut rows = texts.into_iter().map(Texts::parse).collect::<Result<Vec<_>>>()?;
        rows.sort_by_key(|row| row.claim.claimed_at);
        Ok(rows)
    }

    /// One conversion.
    pub fn conversion(&self, id: &ConversionId) -> Result<Option<ConversionRow>> {
        match self.deferred.find(id) {
            Some(Pending::Changed(row)) => Ok(Some(row.as_ref().clone())),
            Some(Pending::Gone) => Ok(None),
            None => find(&self.connection, id),
        }
    }

    /// Changes a row and counts what follows from its new status; it is on the disk when this returns, and everything
    /// deferred with it. Writes nothing where nothing changes.
    pub fn update(&mut self, id: &ConversionId, change: &Change) -> Result<ConversionRow> {
        let writing = || query("write a conversion");
        let before = self.conversion(id)?.ok_or_else(|| Error::Unknown(id.to_string()))?;
        let after = applied(&before, change);
        if after == before && change.left.is_empty() {
            self.flush()?;
            return Ok(after);
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        self.deferred.write(&transaction)?;
        write(&transaction, &after)?;
        totals::count(&transaction, &after.claim, &before.status, &after.status)?;
        if before.status.end.is_none() {
            record_outcome(&transaction, &after)?;
        }
        for source in &change.left {
            left::remember(&transaction, source)?;
        }
        transaction.commit().map_err(writing())?;
        self.deferred.clear();
        Ok(after)
    }

    /// Changes a row, and lets the disk wait for the next transaction or [`Ledger::flush`]: for what a restart that
    /// finds the row as it was before would come to again, doing nothing twice. What is counted is never deferred.
    pub fn defer(&mut self, id: &ConversionId, change: &Change) -> Result<ConversionRow> {
        let before = self.conversion(id)?.ok_or_else(|| Error::Unknown(id.to_string()))?;
        let after = applied(&before, change);
        let is_counted =
            before.status.end != after.status.end || totals::retries(&before.status) != totals::retries(&after.status);
        if is_counted || !change.left.is_empty() {
            return self.update(id, change);
        }
        if after != before {
            self.deferred.put(after.clone());
        }
        Ok(after)
    }

    /// Removes a conversion of which nothing is left to do; deferred, for a restart that still finds it has nothing to
    /// do either.
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

/// Writes a row as a whole: one of its name may be another's, who asked for it and was forgotten a moment ago.
pub(super) fn write(connection: &Connection, row: &ConversionRow) -> Result<()> {
    let sql = format!(
        "INSERT INTO conversions({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT(id) DO UPDATE SET claim = ?2, filepath = ?3, md5_hash = ?4, duplicate_of = ?5,
             uid = ?6, state = ?7, status = ?8, output_path = ?9, source_location = ?10"
    );
    connection
        .prepare_cached(&sql)
        .and_then(|mut statement| {
            statement.execute(params![
                row.id.as_str(),
                to_json(&row.claim),
                row.filepath,
                row.md5,
                row.duplicate_of,
                row.uid,
                to_json(&row.state),
                to_json(&row.status),
                row.output_path,
                row.source_location,
            ])
        })
        .map(|_| ())
        .map_err(query("write a conversion"))
}

fn applied(before: &ConversionRow, change: &Change) -> ConversionRow {
    let change = change.clone();
    ConversionRow {
        uid: change.uid.or_else(|| before.uid.clone()),
        state: change.state.unwrap_or_else(|| before.state.clone()),
        status: change.status.unwrap_or_else(|| before.status.clone()),
        output_path: change.output_path.or_else(|| before.output_path.clone()),
        source_location: change.source_location.or_else(|| before.source_location.clone()),
        ..before.clone()
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
            processed_at: row.status.completion_time.unwrap_or(row.claim.claimed_at),
            output_path: row.output_path.as_deref(),
            succeeded,
        },
    )
}

fn find(connection: &Connection, id: &ConversionId) -> Result<Option<ConversionRow>> {
    let sql = format!("SELECT {COLUMNS} FROM conversions WHERE id = ?1");
    connection
        .query_row(&sql, [id.as_str()], Texts::read)
        .optional()
        .map_err(query("read a conversion"))?
        .map(Texts::parse)
        .transpose()
}

/// A row as the database keeps it.
struct Texts {
    id: String,
    claim: String,
    filepath: String,
    md5: Option<String>,
    duplicate_of: Option<String>,
    uid: Option<String>,
    state: String,
    status: String,
    output_path: Option<String>,
    source_location: Option<String>,
}

impl Texts {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            claim: row.get(1)?,
            filepath: row.get(2)?,
            md5: row.get(3)?,
            duplicate_of: row.get(4)?,
            uid: row.get(5)?,
            state: row.get(6)?,
            status: row.get(7)?,
            output_path: row.get(8)?,
            source_location: row.get(9)?,
        })
    }

    fn parse(self) -> Result<ConversionRow> {
        let claim: Claim = from_json(&self.claim, "claim", &self.id)?;
        Ok(ConversionRow {
            state: from_json(&self.state, "state", &self.id)?,
            status: from_json(&self.status, "status", &self.id)?,
            id: claim.id.clone(),
            claim,
            filepath: self.filepath,
            md5: self.md5,
            duplicate_of: self.duplicate_of,
            uid: self.uid,
            output_path: self.output_path,
            source_location: self.source_location,
        })
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("these structs have no maps with keys that are no texts")
}

fn from_json<T: DeserializeOwned>(text: &str, what: &'static str, id: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| Error::Row { what, id: id.to_owned(), source })
}
