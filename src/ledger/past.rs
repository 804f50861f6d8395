// SPDX-License-Identifier: Apache-2.0
//! The history of a queue: every conversion that has ended, newest first, page by page. Read beside whoever works with the
//! ledger, and without a change to it.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Row, params};
use serde::{Deserialize, Serialize};

use crate::conversion::status::End;
use crate::conversion::{ConversionStatus, Reason};

use super::{BUSY_TIMEOUT, Error, Result, classify, query, resolve_directory};

/// Most conversions of a page.
pub const MAX_PAGE: u32 = 1000;

/// What is kept of an end besides where its files lie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    /// Why it failed, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    attempts: u32,
    /// When its first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Timestamp>,
}

/// The column of an end's details.
pub(super) fn details(status: &ConversionStatus) -> String {
    let listed = u32::try_from(status.attempts.len()).unwrap_or(u32::MAX);
    let details = Details {
        reason: status.failure.as_ref().map(|failure| failure.reason),
        attempts: listed.saturating_add(status.earlier_attempts.total),
        start_time: status.start_time,
    };
    serde_json::to_string(&details).expect("numbers and texts have a JSON form")
}

/// A conversion that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastConversion {
    /// Rises with each conversion that ends.
    pub number: i64,
    pub id: String,
    /// The name of its primary.
    pub source: String,
    pub end: End,
    /// Why it failed; nothing of those that an earlier version recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// All of them; 0 where an earlier version recorded the end.
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    pub end_time: Timestamp,
    /// Directory of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// Some of a history, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub conversions: Vec<PastConversion>,
    /// The number before which the next page begins; `None` after the last.
    pub next: Option<i64>,
}

impl Page {
    /// Up to `count` conversions of the ledger at `path` that ended before the one with the number `before`.
    ///
    /// # Errors
    /// Where the ledger is not there, not readable, or holds something else.
    pub fn read(path: &Path, before: Option<i64>, count: u32) -> Result<Self> {
        let opening = |source| classify(path, source);
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(resolve_directory(path), flags).map_err(opening)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(opening)?;
        let sql = "SELECT number, id, name, outcome, ended_at, output_path, details FROM ended WHERE number < ?1
                   ORDER BY number DESC LIMIT ?2";
        let reading = || query("read the history");
        let mut statement = connection.prepare(sql).map_err(reading())?;
        let limit = params![before.unwrap_or(i64::MAX), count.clamp(1, MAX_PAGE)];
        let rows: Vec<Texts> = statement.query_map(limit, Texts::read).and_then(Iterator::collect).map_err(reading())?;
        let is_full = rows.len() >= count.clamp(1, MAX_PAGE) as usize;
        let next = rows.last().map(|last| last.number).filter(|_| is_full);
        Ok(Self { conversions: rows.into_iter().map(Texts::parse).collect::<Result<_>>()?, next })
    }
}

/// A row as the database keeps it.
struct Texts {
    number: i64,
    id: String,
    name: String,
    outcome: String,
    ended_at: String,
    output: Option<String>,
    details: Option<String>,
}

impl Texts {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            id: row.get(1)?,
            name: row.get(2)?,
            outcome: row.get(3)?,
            ended_at: row.get(4)?,
            output: row.get(5)?,
            details: row.get(6)?,
        })
    }

    fn parse(self) -> Result<PastConversion> {
        let failed = |source| Error::Row { what: "end", id: self.id.clone(), source };
        let end = serde_json::from_str(&self.outcome).map_err(failed)?;
        // A time is a text in JSON, too.
        let end_time = serde_json::from_value(self.ended_at.clone().into()).map_err(failed)?;
        let details: Details =
            self.details.as_deref().map_or_else(|| Ok(Details::default()), serde_json::from_str).map_err(failed)?;
        Ok(PastConversion {
            number: self.number,
            id: self.id,
            source: self.name,
            end,
            reason: details.reason,
            attempts: details.attempts,
            start_time: details.start_time,
            end_time,
            output: self.output,
        })
    }
}
