// SPDX-License-Identifier: Apache-2.0
//! Where the sources of single files ended: an OVF that comes later may name one of them, which is then taken back.

use std::path::PathBuf;

use jiff::{Timestamp, ToSpan as _};
use rusqlite::{Connection, Row, params};

use crate::conversion::status::End;
use crate::conversion::{ConversionId, Stamp};
use crate::files::placement::PlannedMove;

use super::processed::text_of;
use super::rows::{ClaimState, ConversionRow};
use super::{Ledger, PROCESSED_DAYS, Result, from_sql, query, to_sql};

/// The source of an ended conversion of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AloneSource {
    pub id: ConversionId,
    /// The name that it was dropped by.
    pub name: String,
    /// Where it was left.
    pub path: PathBuf,
    /// Directory of its output, where it has one.
    pub output_path: Option<String>,
    pub inode: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Whether it was skipped as a duplicate.
    pub is_duplicate: bool,
    /// Whether it ended no longer ago than asked.
    pub is_recent: bool,
}

impl AloneSource {
    /// Its state when it was left.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp { size_bytes: self.size_bytes, mtime_ns: self.mtime_ns, inode: self.inode }
    }
}

impl Ledger {
    /// Sources of this base name whose conversions ended since `since` and that no later artifact has taken back, the
    /// latest first. Those that ended since `recent` are marked as recent.
    pub fn alone(&self, name: &str, since: Timestamp, recent: Timestamp) -> Result<Vec<AloneSource>> {
        let reading = || query("look for sources converted alone");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT id, path, output_path, size, mtime_ns, is_duplicate, ended_at >= ?3, name, inode FROM alone
                 WHERE name = ?1 AND ended_at >= ?2 AND superseded_by IS NULL ORDER BY ended_at DESC, rowid DESC",
            )
            .map_err(reading())?;
        let found = statement.query_map(params![name, text_of(since), text_of(recent)], read);
        let found: Vec<Option<AloneSource>> = found.and_then(Iterator::collect).map_err(reading())?;
        Ok(found.into_iter().flatten().collect())
    }

    pub(super) fn prune_alone(&self, now: Timestamp) -> Result<usize> {
        let Ok(limit) = now.checked_sub((PROCESSED_DAYS * 24).hours()) else { return Ok(0) };
        self.connection
            .execute("DELETE FROM alone WHERE ended_at < ?1", [text_of(limit)])
            .map_err(query("remove aged rows"))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Option<AloneSource>> {
    let (id, path, mtime): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(4)?);
    // We wrote these ids: a malformed one belongs to no conversion.
    let Ok(id) = id.parse::<ConversionId>() else { return Ok(None) };
    Ok(Some(AloneSource {
        id,
        path: path.into(),
        output_path: row.get(2)?,
        size_bytes: from_sql(row.get(3)?),
        mtime_ns: mtime.parse().unwrap_or_default(),
        is_duplicate: row.get(5)?,
        is_recent: row.get(6)?,
        name: row.get(7)?,
        inode: row.get::<_, i64>(8)?.cast_unsigned(),
    }))
}

/// Records where the source of a single file goes at the end of its conversion, and what became of those that a later
/// artifact took back. The caller holds the transaction that records the end.
pub(super) fn record(connection: &Connection, row: &ConversionRow) -> Result<()> {
    let (ClaimState::Terminal { placement }, Some(end)) = (&row.state, row.status.end) else { return Ok(()) };
    if let [only] = placement.moves.as_slice()
        && !only.is_folder
    {
        insert(connection, row, only, end == End::Duplicate)?;
    }
    let is_made = matches!(end, End::Succeeded | End::Duplicate);
    let made = if is_made { row.output_path.as_ref().or(row.duplicate_of.as_ref()) } else { None };
    if let (Some(beginning), Some(made)) = (&row.claim.beginning, made) {
        connection
            .execute("UPDATE alone SET superseded_by = ?2 WHERE id = ?1", params![beginning.id.as_str(), made])
            .map_err(query("record a source whose whole was converted"))?;
    }
    for planned in &placement.moves {
        let Some(alone) = &planned.member.alone else { continue };
        connection
            .execute(
                "UPDATE alone SET path = ?2, superseded_by = ?3 WHERE id = ?1",
                params![alone.id.as_str(), planned.to.to_string_lossy(), made],
            )
            .map_err(query("record a source that was taken back"))?;
    }
    Ok(())
}

fn insert(connection: &Connection, row: &ConversionRow, only: &PlannedMove, is_duplicate: bool) -> Result<()> {
    let ended_at = row.status.completion_time.unwrap_or(row.claim.claimed_at);
    connection
        .execute(
            "INSERT INTO alone(id, name, path, inode, size, mtime_ns, is_duplicate, ended_at, output_path)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT(id) DO UPDATE SET path = ?3",
            params![
                row.id.as_str(),
                only.member.name,
                only.to.to_string_lossy(),
                only.member.inode.cast_signed(),
                to_sql(only.member.size_bytes),
                only.member.mtime_ns.to_string(),
                is_duplicate,
                text_of(ended_at),
                row.output_path,
            ],
        )
        .map(|_| ())
        .map_err(query("record where a source ended"))
}
