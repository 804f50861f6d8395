// SPDX-License-Identifier: Apache-2.0
//! What ended conversions left: where their members lie, and which output was published. By it a source that changes
//! later is known, and whatever may be removed by its age.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use crate::conversion::retention::Removal;
use crate::conversion::status::End;
use crate::conversion::{ConversionId, Member};
use crate::files::placement::Placement;
use crate::files::recorded::Recorded;

use super::processed::{forget_output, text_of};
use super::rows::{ClaimState, ConversionRow};
use super::{Error, Ledger, Result, from_sql, past, query, to_sql, totals};

/// An ended conversion, and what of it may still lie on the volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedConversion {
    /// Rises with each conversion that ends.
    pub number: i64,
    pub id: ConversionId,
    /// The name of its primary.
    pub name: String,
    pub end: End,
    /// Directory of its output; for a duplicate, of the output that was made of the same content.
    pub output_path: Option<String>,
    /// When it ended; absent where the row can't be read.
    pub ended_at: Option<Timestamp>,
    /// What the ageing clock said when it was first looked at after its end ([`Ledger::advance_age`]), in seconds.
    pub aged_from: Option<u64>,
    /// Where its members were left, without those places where a later conversion left something.
    pub files: Vec<EndedFile>,
}

impl EndedConversion {
    /// Directory of the output that it published itself.
    #[must_use]
    pub fn own_output(&self) -> Option<&str> {
        self.output_path.as_deref().filter(|_| self.end == End::Succeeded)
    }
}

/// A member where an ended conversion left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedFile {
    pub path: PathBuf,
    pub member: Member,
}

/// What is done with something that an ended conversion left. It is recorded, and a restart carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndedPlan {
    /// The members go back to the queue directory, because one of them changed.
    TakeUp { placement: Placement },
    /// The members go into the trash, and then for good.
    RemoveSources { what: Removal, placement: Placement, bytes: u64 },
    /// The directory `from` goes to `to` in the trash, and then for good.
    RemoveOutput { from: PathBuf, to: PathBuf, bytes: u64 },
}

impl Ledger {
    /// Conversions that ended since `since`, in the order of their ends, of which nothing is planned.
    pub fn ended_since(&self, since: Timestamp) -> Result<Vec<EndedConversion>> {
        let rows = self.ended("ended_at >= ?1 AND plan IS NULL ORDER BY number", [text_of(since)])?;
        Ok(rows.into_iter().map(|(ended, _)| ended).collect())
    }

    /// The conversion that left something at `path` last.
    pub fn ended_at(&self, path: &Path) -> Result<Option<EndedConversion>> {
        let is_at = "id = (SELECT id FROM ended_files WHERE path = ?1)";
        let rows = self.ended(is_at, [path.to_string_lossy().into_owned()])?;
        Ok(rows.into_iter().map(|(ended, _)| ended).next())
    }

    /// Up to `count` conversions after the one with this number that have aged since then, or longer, and of which
    /// nothing is planned.
    pub fn aged_since(&self, aged_from: u64, after: i64, count: u32) -> Result<Vec<EndedConversion>> {
        let is_old = "aged_from <= ?1 AND number > ?2 AND plan IS NULL ORDER BY number LIMIT ?3";
        let rows = self.ended(is_old, params![to_sql(aged_from), after, count])?;
        Ok(rows.into_iter().map(|(ended, _)| ended).collect())
    }

    /// What is still to be carried out.
    pub fn ended_plans(&self) -> Result<Vec<(EndedConversion, Recorded<EndedPlan>)>> {
        let rows = self.ended("plan IS NOT NULL ORDER BY number", [])?;
        Ok(rows.into_iter().filter_map(|(ended, plan)| Some((ended, Recorded::found(plan?)))).collect())
    }

    /// Records what is done with what this conversion left, or that nothing is done after all.
    pub fn plan_ended(&self, id: &ConversionId, plan: Option<&EndedPlan>) -> Result<()> {
        let text = plan.map(|plan| serde_json::to_string(plan).expect("a struct of texts and numbers has a JSON form"));
        self.connection
            .execute("UPDATE ended SET plan = ?2 WHERE id = ?1", params![id.as_str(), text])
            .map(|_| ())
            .map_err(writing())
    }

    /// Records that the sources of this conversion became new files of the queue directory, the primary the one at
    /// `place`: its output was made of what they were before, so that they are no duplicates.
    pub fn ended_taken_up(&mut self, id: &ConversionId, place: &Path) -> Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        forget_output(&transaction, id)?;
        let place = place.to_string_lossy();
        transaction
            .execute("UPDATE alone SET superseded_by = ?2 WHERE id = ?1", params![id.as_str(), place])
            .map_err(writing())?;
        forget_files(&transaction, id)?;
        transaction.commit().map_err(writing())
    }

    /// Records that what was planned is removed, and counts it.
    pub fn removed(&mut self, id: &ConversionId, what: Removal, bytes: u64) -> Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        if what == Removal::Output {
            forget_output(&transaction, id)?;
            transaction
                .execute("UPDATE ended SET output_path = NULL, plan = NULL WHERE id = ?1", [id.as_str()])
                .map_err(writing())?;
        } else {
            forget_files(&transaction, id)?;
        }
        let mut totals = totals::read(&transaction)?;
        totals.count_removed(what, bytes);
        totals::write(&transaction, &totals)?;
        transaction.commit().map_err(writing())
    }

    /// Forgets a conversion of which nothing is left.
    pub fn forget_ended(&mut self, id: &ConversionId) -> Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        forget_files(&transaction, id)?;
        transaction.execute("DELETE FROM ended WHERE id = ?1", [id.as_str()]).map_err(writing())?;
        transaction.commit().map_err(writing())
    }

    fn ended(&self, which: &str, parameters: impl Params) -> Result<Vec<(EndedConversion, Option<EndedPlan>)>> {
        let reading = || query("read what ended conversions left");
        let sql = format!(
            "SELECT number, id, name, outcome, output_path, aged_from, plan, ended_at FROM ended WHERE {which}"
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(reading())?;
        let texts: Vec<Texts> =
            statement.query_map(parameters, Texts::read).and_then(Iterator::collect).map_err(reading())?;
        let mut files = self
            .connection
            .prepare_cached(
                "SELECT path, name, inode, size, mtime_ns FROM ended_files WHERE id = ?1 ORDER BY name <> ?2, name",
            )
            .map_err(reading())?;
        let mut rows = Vec::new();
        for text in texts {
            // We wrote these ids: a malformed one belongs to no conversion.
            let Ok(id) = text.id.parse::<ConversionId>() else { continue };
            let found = files.query_map([id.as_str(), text.name.as_str()], file);
            let files = found.and_then(Iterator::collect).map_err(reading())?;
            rows.push(text.parse(id, files)?);
        }
        Ok(rows)
    }
}

fn writing() -> impl Fn(rusqlite::Error) -> Error {
    query("write what an ended conversion left")
}

/// A row as the database keeps it.
struct Texts {
    number: i64,
    id: String,
    name: String,
    outcome: String,
    output_path: Option<String>,
    aged_from: Option<i64>,
    plan: Option<String>,
    ended_at: String,
}

impl Texts {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            id: row.get(1)?,
            name: row.get(2)?,
            outcome: row.get(3)?,
            output_path: row.get(4)?,
            aged_from: row.get(5)?,
            plan: row.get(6)?,
            ended_at: row.get(7)?,
        })
    }

    fn parse(self, id: ConversionId, files: Vec<EndedFile>) -> Result<(EndedConversion, Option<EndedPlan>)> {
        let failed = |what, source| Error::Row { what, id: self.id.clone(), source };
        let end = serde_json::from_str(&self.outcome).map_err(|source| failed("end", source))?;
        let plan = self.plan.as_deref().map(serde_json::from_str).transpose();
        let plan = plan.map_err(|source| failed("plan", source))?;
        let Self { number, name, output_path, .. } = self;
        let (ended_at, aged_from) = (self.ended_at.parse().ok(), self.aged_from.map(from_sql));
        Ok((EndedConversion { number, id, name, end, output_path, ended_at, aged_from, files }, plan))
    }
}

fn file(row: &Row<'_>) -> rusqlite::Result<EndedFile> {
    let (path, mtime): (String, String) = (row.get(0)?, row.get(4)?);
    let member = Member {
        name: row.get(1)?,
        inode: row.get::<_, i64>(2)?.cast_unsigned(),
        size_bytes: from_sql(row.get(3)?),
        mtime_ns: mtime.parse().unwrap_or_default(),
        alone: None,
    };
    Ok(EndedFile { path: path.into(), member })
}

/// Records where the members of a conversion that has ended go. The caller holds the transaction that records the end.
pub(super) fn record(connection: &Connection, row: &ConversionRow) -> Result<()> {
    let (ClaimState::Terminal { placement }, Some(end)) = (&row.state, row.status.end) else { return Ok(()) };
    let equal = if end == End::Duplicate { equal_output(connection, row)? } else { None };
    let output_path = row.output_path.as_ref().or(equal.as_ref());
    connection
        .execute(
            "INSERT INTO ended(id, name, outcome, ended_at, output_path, details) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT(id) DO NOTHING",
            params![
                row.id.as_str(),
                row.claim.primary,
                serde_json::to_string(&end).expect("a word has a JSON form"),
                text_of(row.status.completion_time.unwrap_or(row.claim.claimed_at)),
                output_path,
                past::details(&row.status),
            ],
        )
        .map_err(writing())?;
    forget_files(connection, &row.id)?;
    for planned in &placement.moves {
        if let Some(alone) = &planned.member.alone {
            // It lies with this artifact now.
            forget_files(connection, &alone.id)?;
        }
    }
    for (path, member) in placement.files(&row.claim) {
        connection
            .execute(
                "INSERT INTO ended_files(path, id, name, inode, size, mtime_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT(path) DO UPDATE SET id = ?2, name = ?3, inode = ?4, size = ?5, mtime_ns = ?6",
                params![
                    path.to_string_lossy(),
                    row.id.as_str(),
                    member.name,
                    member.inode.cast_signed(),
                    to_sql(member.size_bytes),
                    member.mtime_ns.to_string(),
                ],
            )
            .map_err(writing())?;
    }
    Ok(())
}

/// The output that was made of a file of this name and size.
fn equal_output(connection: &Connection, row: &ConversionRow) -> Result<Option<String>> {
    connection
        .query_row(
            "SELECT output_path FROM processed_files WHERE status = 'success' AND filename = ?1 AND file_size = ?2",
            params![row.claim.primary, to_sql(row.claim.size_bytes())],
            |row| row.get(0),
        )
        .optional()
        .map(Option::flatten)
        .map_err(query("look for an equal output"))
}

/// Forgets the files that a conversion left, and what was planned with them. The removal of its output goes on: that may
/// lie in the trash already, where only the plan knows it.
fn forget_files(connection: &Connection, id: &ConversionId) -> Result<()> {
    connection.execute("DELETE FROM ended_files WHERE id = ?1", [id.as_str()]).map_err(writing())?;
    let of_files = "UPDATE ended SET plan = NULL WHERE id = ?1 AND json_type(plan, '$.removeOutput') IS NULL";
    connection.execute(of_files, [id.as_str()]).map(|_| ()).map_err(writing())
}
