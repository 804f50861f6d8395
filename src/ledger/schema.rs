// SPDX-License-Identifier: Apache-2.0
//! Tables, and the adoption of a database that another version or the original program made.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{Error, Result, classify};

/// Version of our own tables, kept in `user_version`; the original program leaves it 0.
const VERSION: i64 = 1;

/// Columns that users query, as the original program makes them.
const PROCESSED_COLUMNS: [&str; 7] =
    ["filename", "filepath", "file_size", "md5_hash", "processed_at", "output_path", "status"];

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS processed_files (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    filename TEXT NOT NULL,
    filepath TEXT NOT NULL,
    file_size INTEGER NOT NULL,
    md5_hash TEXT,
    processed_at TEXT NOT NULL,
    output_path TEXT,
    status TEXT NOT NULL,
    UNIQUE(filename, file_size)
);
CREATE INDEX IF NOT EXISTS idx_filename ON processed_files(filename);
CREATE INDEX IF NOT EXISTS idx_md5_hash ON processed_files(md5_hash);
CREATE TABLE IF NOT EXISTS conversions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    claim TEXT NOT NULL,
    filepath TEXT NOT NULL,
    md5_hash TEXT,
    duplicate_of TEXT,
    uid TEXT,
    state TEXT NOT NULL,
    status TEXT NOT NULL,
    output_path TEXT,
    source_location TEXT
);
CREATE TABLE IF NOT EXISTS history (number INTEGER PRIMARY KEY AUTOINCREMENT, entry TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS left_in_place (
    path TEXT PRIMARY KEY,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    channel TEXT NOT NULL,
    event TEXT NOT NULL,
    decided_at TEXT NOT NULL,
    not_before TEXT
);
CREATE TABLE IF NOT EXISTS alone (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns TEXT NOT NULL,
    is_duplicate INTEGER NOT NULL,
    ended_at TEXT NOT NULL,
    output_path TEXT,
    superseded_by TEXT
);
CREATE INDEX IF NOT EXISTS idx_alone_name ON alone(name);
CREATE INDEX IF NOT EXISTS idx_alone_ended ON alone(ended_at);
CREATE TABLE IF NOT EXISTS ended (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    outcome TEXT NOT NULL,
    ended_at TEXT NOT NULL,
    output_path TEXT,
    aged_from INTEGER,
    plan TEXT
);
CREATE INDEX IF NOT EXISTS idx_ended_at ON ended(ended_at);
CREATE INDEX IF NOT EXISTS idx_ended_new ON ended(id) WHERE aged_from IS NULL;
CREATE INDEX IF NOT EXISTS idx_ended_plan ON ended(number) WHERE plan IS NOT NULL;
CREATE TABLE IF NOT EXISTS ended_files (
    path TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_ended_files ON ended_files(id);
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
";

/// Tables that were added without a new version: an older program opens the database, and leaves them alone.
const ADDED: [&str; 4] = ["outbox", "alone", "ended", "ended_files"];

/// Columns that were added without a new version: rows of an older program leave them empty.
const ADDED_COLUMNS: [(&str, &str); 2] = [("processed_files", "fingerprint"), ("ended", "details")];

/// Makes what is missing, in one transaction.
pub(super) fn adopt(connection: &mut Connection, path: &Path) -> Result<()> {
    let opening = |source| classify(path, source);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(opening)?;
    if found > VERSION {
        return Err(Error::TooNew { path: path.to_owned(), found, known: VERSION });
    }
    check_columns(connection, path)?;
    if found < VERSION || !has_added(connection).map_err(opening)? {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(opening)?;
        transaction.execute_batch(TABLES).map_err(opening)?;
        for (table, column) in ADDED_COLUMNS {
            if !has_column(&transaction, table, column).map_err(opening)? {
                transaction.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} TEXT")).map_err(opening)?;
            }
        }
        transaction.pragma_update(None, "user_version", VERSION).map_err(opening)?;
        transaction.commit().map_err(opening)?;
    }
    Ok(())
}

fn has_added(connection: &Connection) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1")?;
    let found = ADDED.map(|table| statement.query_row([table], |row| row.get::<_, i64>(0)));
    let tables = found.into_iter().try_fold(true, |all, count| count.map(|count| all && count > 0))?;
    let mut columns = ADDED_COLUMNS.into_iter();
    columns.try_fold(tables, |all, (table, column)| Ok(all && has_column(connection, table, column)?))
}

fn has_column(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
    connection.query_row(sql, [table, column], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

/// Checks that a table of that name is the one we know; none yet is fine.
fn check_columns(connection: &Connection, path: &Path) -> Result<()> {
    let opening = |source| classify(path, source);
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info('processed_files')").map_err(opening)?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(opening)?;
    if names.is_empty() {
        return Ok(());
    }
    match PROCESSED_COLUMNS.into_iter().find(|column| !names.iter().any(|name| name == column)) {
        Some(column) => Err(Error::Foreign { path: path.to_owned(), column }),
        None => Ok(()),
    }
}
