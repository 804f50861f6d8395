// SPDX-License-Identifier: Apache-2.0
//! A row of an unfinished conversion: its claim, how far its files have moved, its status, and the changes that may be
//! made to it.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::conversion::lifecycle::Observation;
use crate::conversion::status::ConversionStatus;
use crate::conversion::{Claim, ConversionId, Reason};
use crate::files::{Placement, Recorded};

use super::left::LeftSource;
use super::outbox::NewNotification;
use super::{Error, Result, query};

/// How far the files of a claim have moved, as drawn in [`crate::ledger`].
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
    /// It has ended; the members go where those of ended conversions go.
    Terminal { placement: Placement },
    /// The members lie where they stay.
    Disposed,
    /// The end is known wherever the conversion is shown: all that is left to do is to forget the row.
    Reported,
}

impl ClaimState {
    /// The same state with another placement, if it has one.
    #[must_use]
    pub fn moved_to(&self, placement: Placement) -> Self {
        match self {
            Self::Parked { .. } => Self::Parked { placement },
            Self::Returning { reason, .. } => Self::Returning { reason: *reason, placement },
            Self::Terminal { .. } => Self::Terminal { placement },
            Self::Claimed | Self::Submitted | Self::Publishing { .. } | Self::Disposed | Self::Reported => self.clone(),
        }
    }
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

impl ConversionRow {
    /// Where the members go, by this state.
    #[must_use]
    pub fn placement(&self) -> Option<Recorded<Placement>> {
        match &self.state {
            ClaimState::Parked { placement }
            | ClaimState::Returning { placement, .. }
            | ClaimState::Terminal { placement } => Some(Recorded::found(placement.clone())),
            ClaimState::Claimed
            | ClaimState::Submitted
            | ClaimState::Publishing { .. }
            | ClaimState::Disposed
            | ClaimState::Reported => None,
        }
    }

    /// The directory that this state delivers to, relative to the output directory.
    #[must_use]
    pub fn target(&self) -> Option<Recorded<&str>> {
        match &self.state {
            ClaimState::Publishing { target } => Some(Recorded::found(target)),
            _ => None,
        }
    }
}

/// A change of a row, made in one transaction with everything that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The members lie in the claim for the first time; the executor is about to get this status.
    Submitted(ConversionStatus),
    /// The host's executor observed something, which made this status.
    Observed { observation: Observation, status: ConversionStatus },
    /// The cluster's executor shows this status, and the UID of the object that has it.
    Shown { status: ConversionStatus, uid: Option<String> },
    /// Where the members are, or will be.
    State(ClaimState),
    /// It has ended, and the members go where those of ended conversions go.
    Ended {
        placement: Placement,
        /// The status of the end, where the row has another.
        status: Option<ConversionStatus>,
        output_path: Option<String>,
        /// Sources that stay in the queue directory from now on, converted.
        left: Vec<LeftSource>,
        /// What is announced about the end.
        notifications: Vec<NewNotification>,
    },
}

impl Change {
    /// Whether the change may wait for the next transaction (decision 0004): only where a restart that finds the row as
    /// it was `before` comes to the same result, doing nothing twice. What is counted never waits, whatever this
    /// returns.
    pub(super) fn may_wait(&self, before: &ConversionRow) -> bool {
        match self {
            // A restart finds the members in the claim.
            Self::Submitted(_) => true,
            Self::Observed { observation, .. } => match observation {
                // A restart stages anew, recognises a start by the folder that the child made, and repeats what was
                // done and not published.
                Observation::Staged(_) | Observation::Starting { .. } | Observation::Done { .. } => true,
                // Plans are of a cluster alone.
                Observation::Planning(_)
                | Observation::Planned(_)
                | Observation::Running { .. }
                | Observation::Failed { .. }
                | Observation::Unpublishable { .. }
                | Observation::Published
                | Observation::Cancelled(_)
                | Observation::Duplicate
                | Observation::Rejected(_) => false,
            },
            // The executor shows the status again; but a restart knows only by its UID that there was an object.
            Self::Shown { uid, .. } => uid.is_none() || *uid == before.uid,
            // Files are moved as recorded, so the record comes first.
            Self::State(_) | Self::Ended { .. } => false,
        }
    }

    /// The row after this change.
    pub(super) fn apply(&self, before: &ConversionRow) -> ConversionRow {
        let mut row = before.clone();
        match self.clone() {
            Self::Submitted(status) => (row.state, row.status) = (ClaimState::Submitted, status),
            Self::Observed { status, .. } => row.status = status,
            Self::Shown { status, uid } => {
                row.status = status;
                row.uid = uid.or(row.uid);
            }
            Self::State(state) => row.state = state,
            Self::Ended { placement, status, output_path, left: _, notifications: _ } => {
                row.state = ClaimState::Terminal { placement };
                row.status = status.unwrap_or(row.status);
                row.output_path = output_path.or(row.output_path);
            }
        }
        row
    }

    /// Sources that stay in the queue directory by this change.
    pub(super) fn left(&self) -> &[LeftSource] {
        match self {
            Self::Ended { left, .. } => left,
            Self::Submitted(_) | Self::Observed { .. } | Self::Shown { .. } | Self::State(_) => &[],
        }
    }

    /// What is announced by this change.
    pub(crate) fn notifications(&self) -> &[NewNotification] {
        match self {
            Self::Ended { notifications, .. } => notifications,
            Self::Submitted(_) | Self::Observed { .. } | Self::Shown { .. } | Self::State(_) => &[],
        }
    }
}

const COLUMNS: &str = "id, claim, filepath, md5_hash, duplicate_of, uid, state, status, output_path, source_location";

/// Every row.
pub(super) fn all(connection: &Connection) -> Result<Vec<ConversionRow>> {
    let reading = || query("read the conversions");
    let sql = format!("SELECT {COLUMNS} FROM conversions");
    let mut statement = connection.prepare(&sql).map_err(reading())?;
    let texts: Vec<Texts> = statement.query_map([], Texts::read).and_then(Iterator::collect).map_err(reading())?;
    texts.into_iter().map(Texts::parse).collect()
}

/// The row of one conversion.
pub(super) fn find(connection: &Connection, id: &ConversionId) -> Result<Option<ConversionRow>> {
    let sql = format!("SELECT {COLUMNS} FROM conversions WHERE id = ?1");
    connection
        .query_row(&sql, [id.as_str()], Texts::read)
        .optional()
        .map_err(query("read a conversion"))?
        .map(Texts::parse)
        .transpose()
}

/// Writes a row as a whole: a row of this id may still stand there, of a request that was just forgotten.
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
