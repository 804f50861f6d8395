// SPDX-License-Identifier: Apache-2.0
//! Totals and history: counted in the transaction that ends a conversion, so exactly once whatever dies.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};

use crate::conversion::status::{ConversionStatus, End};
use crate::conversion::{Claim, Class, Reason};
use crate::stats::{JobStats, JobStatus, RECENT, Totals};

use super::{Error, Ledger, Result, query, to_sql};

/// Retries that a status has scheduled: every counted failure but the one that ended it.
#[must_use]
pub fn retries(status: &ConversionStatus) -> u32 {
    let counted = |reason: Option<Reason>| reason.is_some_and(Reason::is_counted);
    let failures = status.attempts.iter().filter(|attempt| counted(attempt.reason)).count();
    let ended_it =
        status.end == Some(End::Failed) && status.attempts.last().is_some_and(|attempt| counted(attempt.reason));
    let failures = u32::try_from(failures).unwrap_or(u32::MAX).saturating_add(status.earlier_attempts.counted);
    failures.saturating_sub(u32::from(ended_it))
}

impl Ledger {
    /// Everything counted since the ledger was made.
    pub fn totals(&self) -> Result<Totals> {
        read(&self.connection)
    }

    /// The last conversions that succeeded or failed for good, oldest first.
    pub fn history(&self) -> Result<Vec<JobStats>> {
        let reading = || query("read the history");
        let mut statement = self.connection.prepare("SELECT entry FROM history ORDER BY number").map_err(reading())?;
        let entries: Vec<String> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(reading())?;
        entries
            .iter()
            .map(|entry| {
                serde_json::from_str(entry).map_err(|source| Error::Row {
                    what: "history",
                    id: "an entry".to_owned(),
                    source,
                })
            })
            .collect()
    }
}

/// Counts what `after` has and `before` has not. The caller holds the transaction that replaces `before` by `after`.
pub(super) fn count(
    connection: &Connection,
    claim: &Claim,
    before: &ConversionStatus,
    after: &ConversionStatus,
) -> Result<()> {
    let earlier = read(connection)?;
    let mut totals = earlier.clone();
    for _ in retries(before)..retries(after) {
        totals.count_retry();
    }
    if let (None, Some(end)) = (before.end, after.end) {
        match end {
            End::Duplicate => totals.count_duplicate(),
            End::Cancelled if is_given_back(after) => totals.count_given_back(),
            End::Cancelled => totals.count_cancelled(),
            End::Succeeded => {
                let (duration, end) = (duration(claim, after), end_of(claim, after));
                totals.count_success(&claim.primary, duration, claim.size_bytes(), end);
                totals.count_superseded(claim.superseded().count() as u64);
                remember(connection, &finished(claim, after, JobStatus::Success))?;
            }
            End::Failed => {
                totals.count_failure(&claim.primary, end_of(claim, after));
                remember(connection, &finished(claim, after, JobStatus::Failed))?;
            }
        }
    }
    if totals == earlier { Ok(()) } else { write(connection, &totals) }
}

fn is_given_back(status: &ConversionStatus) -> bool {
    status.failure.as_ref().is_some_and(|failure| failure.class == Class::GivenBack)
}

/// A conversion that ended, as the history shows it: timed from the start of its last attempt.
fn finished(claim: &Claim, status: &ConversionStatus, how: JobStatus) -> JobStats {
    let end = end_of(claim, status);
    let start = status.attempts.last().and_then(|attempt| attempt.start_time).unwrap_or(end);
    let failure = status.failure.as_ref();
    let job = JobStats::started(&claim.primary, claim.size_bytes(), retries(status), start);
    let job = job.ended(how, failure.map(|failure| failure.message.clone()), end);
    JobStats { suggestion: failure.map(|failure| failure.suggestion.clone()).filter(|text| !text.is_empty()), ..job }
}

fn end_of(claim: &Claim, status: &ConversionStatus) -> Timestamp {
    status.completion_time.unwrap_or(claim.claimed_at)
}

fn duration(claim: &Claim, status: &ConversionStatus) -> Duration {
    let end = end_of(claim, status);
    let start = status.attempts.last().and_then(|attempt| attempt.start_time).unwrap_or(end);
    Duration::try_from(end.duration_since(start)).unwrap_or_default()
}

pub(super) fn read(connection: &Connection) -> Result<Totals> {
    let text: Option<String> = connection
        .query_row("SELECT value FROM settings WHERE key = 'totals'", [], |row| row.get(0))
        .optional()
        .map_err(query("read the totals"))?;
    text.map_or_else(
        || Ok(Totals::default()),
        |text| {
            serde_json::from_str(&text).map_err(|source| Error::Row {
                what: "totals",
                id: "the whole".to_owned(),
                source,
            })
        },
    )
}

pub(super) fn write(connection: &Connection, totals: &Totals) -> Result<()> {
    let text = serde_json::to_string(totals).expect("a struct of numbers, and texts as keys, has a JSON form");
    connection
        .execute(
            "INSERT INTO settings(key, value) VALUES ('totals', ?1) ON CONFLICT(key) DO UPDATE SET value = ?1",
            [text],
        )
        .map(|_| ())
        .map_err(query("write the totals"))
}

fn remember(connection: &Connection, entry: &JobStats) -> Result<()> {
    let writing = || query("write the history");
    let text = serde_json::to_string(entry).expect("a struct of texts and numbers has a JSON form");
    connection.execute("INSERT INTO history(entry) VALUES (?1)", [text]).map_err(writing())?;
    connection
        .execute("DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - ?1", [to_sql(RECENT as u64)])
        .map(|_| ())
        .map_err(writing())
}
