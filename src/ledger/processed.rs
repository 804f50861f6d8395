// SPDX-License-Identifier: Apache-2.0
//! Files that were processed: the table that users query, and what deduplication looks at.

use jiff::{Timestamp, ToSpan as _};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::conversion::ConversionId;

use super::{Ledger, PROCESSED_DAYS, Result, query, to_sql};

/// An earlier conversion that a file matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessedFile {
    /// Its row.
    pub number: i64,
    pub filename: String,
    /// Time of its end as the row has it: text, because the original program wrote local time without a zone.
    pub processed_at: String,
    /// Directory of its output.
    pub output_path: Option<String>,
    /// Whether the MD5 of both is known, and the same.
    pub has_same_md5: bool,
}

/// What is known of the content of an artifact, besides its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub md5: Option<String>,
    /// See `files::fingerprint`.
    pub fingerprint: Option<String>,
}

/// A row to write.
pub(super) struct Outcome<'a> {
    pub filename: &'a str,
    pub filepath: &'a str,
    pub size_bytes: u64,
    pub md5: Option<&'a str>,
    pub fingerprint: Option<&'a str>,
    pub processed_at: Timestamp,
    pub output_path: Option<&'a str>,
    pub succeeded: bool,
}

impl Ledger {
    /// The earlier success that matches a file: by name, size and everything that is known of the content of both, or
    /// by MD5. The original program recorded at most the MD5 of a content.
    pub fn find_success(&self, filename: &str, size_bytes: u64, content: &Content) -> Result<Option<ProcessedFile>> {
        self.connection
            .query_row(
                "SELECT filename, processed_at, output_path, coalesce(md5_hash = ?3, 0), id FROM processed_files
                 WHERE status = 'success' AND (
                     md5_hash = ?3
                     OR filename = ?1 AND file_size = ?2
                        AND coalesce(md5_hash = ?3, 1) AND coalesce(fingerprint = ?4, 1)
                 )
                 ORDER BY id LIMIT 1",
                params![filename, to_sql(size_bytes), content.md5, content.fingerprint],
                |row| {
                    Ok(ProcessedFile {
                        filename: row.get(0)?,
                        processed_at: row.get(1)?,
                        output_path: row.get(2)?,
                        has_same_md5: row.get(3)?,
                        number: row.get(4)?,
                    })
                },
            )
            .optional()
            .map_err(query("look for an earlier conversion"))
    }

    /// Forgets an earlier conversion whose output is gone: an equal file is converted again.
    pub fn forget_processed(&self, found: &ProcessedFile) -> Result<()> {
        self.connection
            .execute("DELETE FROM processed_files WHERE id = ?1", [found.number])
            .map(|_| ())
            .map_err(query("forget a processed file"))
    }

    /// Texts compare as times here: those of the original program and our own begin with year, month and day.
    pub(super) fn prune_processed(&self, now: Timestamp) -> Result<usize> {
        let Ok(limit) = now.checked_sub((PROCESSED_DAYS * 24).hours()) else { return Ok(0) };
        self.connection
            .execute("DELETE FROM processed_files WHERE processed_at < ?1", [text_of(limit)])
            .map_err(query("remove aged rows"))
    }
}

/// Microseconds as the original program wrote them, always six digits: texts of one length compare as times do.
pub(super) fn text_of(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Forgets the success whose output is that of this ended conversion: the output is gone, or the source changed since.
/// An equal file is converted again.
pub(super) fn forget_output(connection: &Connection, id: &ConversionId) -> Result<()> {
    connection
        .execute(
            "DELETE FROM processed_files WHERE status = 'success'
             AND output_path = (SELECT output_path FROM ended WHERE id = ?1 AND outcome = '\"Succeeded\"')",
            [id.as_str()],
        )
        .map(|_| ())
        .map_err(query("forget a processed file"))
}

/// Writes an outcome. A failure never hides an earlier success of the same name and size.
pub(super) fn record(connection: &Connection, outcome: &Outcome<'_>) -> Result<()> {
    connection
        .execute(
            "INSERT INTO processed_files(filename, filepath, file_size, md5_hash, processed_at, output_path, status,
                 fingerprint)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT(filename, file_size) DO UPDATE SET
                 filepath = ?2, md5_hash = CASE WHEN fingerprint IS ?8 THEN coalesce(?4, md5_hash) ELSE ?4 END,
                 processed_at = ?5, output_path = ?6, status = ?7, fingerprint = ?8
             WHERE ?7 = 'success' OR status <> 'success'",
            params![
                outcome.filename,
                outcome.filepath,
                to_sql(outcome.size_bytes),
                outcome.md5,
                text_of(outcome.processed_at),
                outcome.output_path,
                if outcome.succeeded { "success" } else { "failed" },
                outcome.fingerprint,
            ],
        )
        .map(|_| ())
        .map_err(query("record a processed file"))
}
