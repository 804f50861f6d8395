// SPDX-License-Identifier: Apache-2.0
//! What must be remembered: seen files, claims, totals, history. One database, one writer.
//!
//! The database is the one that users of hyper2kvm query (`processed_files`), with further tables of ours beside it. It
//! lies on the output volume, which may be a network file system: so it has a rollback journal, never WAL, and every
//! transaction is on the disk before it returns. The journal's file stays where it is, because making and removing it
//! each time would change a directory that then has to be synced; its first bytes say whether it counts. A change that
//! a restart would find out again anyway ([`Change`]) waits for the next transaction, because bringing one to the disk
//! takes longer than all the rest of a small conversion.
//!
//! ```text
//!                         ┌──────────────── due ───────────────┐
//!                         ▼                                    │
//! claimed ──────▶ submitted ──── transient failure ─────▶ parked
//!                   │  │  └──── converted ──▶ publishing ──▶ terminal ──▶ disposed ──▶ reported
//!                   │  └─────── failed, duplicate, cancelled ──▲
//!                   └── source changed, recalled ──▶ returning
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::conversion::chain;

use deferred::Deferred;

mod alone;
mod clock;
mod conversions;
mod deferred;
mod ended;
mod left;
mod outbox;
mod past;
mod processed;
mod rows;
mod schema;
mod totals;
mod writer;

pub use alone::AloneSource;
pub use clock::Clock;
pub use conversions::NewConversion;
pub use ended::{EndedConversion, EndedFile, EndedPlan};
pub use left::LeftSource;
pub use outbox::{Fate, NewNotification, Notification, OUTBOX_ROWS};
pub use past::{MAX_PAGE, Page, PastConversion};
pub use processed::{Content, ProcessedFile};
pub use rows::{Change, ClaimState, ConversionRow};
pub use totals::retries;
pub use writer::Writer;

/// Name of the database below `{output}/.daemon/`: users run SQL on it.
pub const LEDGER_FILE: &str = "deduplication.db";

/// How long a statement waits for a reader that holds the database: users run SQL on it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Size to which the journal is cut back after a transaction that needed more; usual ones need a tenth.
const JOURNAL_BYTES: u32 = 1 << 20;

/// Age in days at which a row of `processed_files` is removed.
pub const PROCESSED_DAYS: i64 = 90;

/// Why the ledger can't answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the database {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "the database {path} is damaged ({detail}); stop everything that uses it, move it aside (the next start makes a \
         new one, which remembers no earlier conversion) or restore it from a backup"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the database {path} has schema version {found}, this program knows {known}; run the newer version again")]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error(
        "the table processed_files of {path} has no column {column}: it is no deduplication database; move it aside"
    )]
    Foreign { path: PathBuf, column: &'static str },
    #[error("cannot {doing} in the ledger")]
    Query {
        doing: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot read the ledger's {what} of {id}: restore the database from a backup, or move it aside")]
    Row {
        what: &'static str,
        id: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("conversion {0} is not in the ledger")]
    Unknown(String),
    #[error("the ledger's thread has ended")]
    Closed,
}

impl Error {
    /// Whether the error stays until somebody mends its cause. A reader that holds the database will go, and a full
    /// volume is announced elsewhere.
    fn is_lasting(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        match self {
            Self::Query { source, .. } => {
                !matches!(source.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
            }
            Self::Unknown(_) | Self::Closed => false,
            Self::Open { .. }
            | Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::Foreign { .. }
            | Self::Row { .. } => true,
        }
    }
}

type Result<T> = std::result::Result<T, Error>;

/// The open database. Whoever holds it also holds the queue's and the output's locks.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    deferred: Deferred,
}

impl Ledger {
    /// Opens or makes the database at `path`; its directory must exist. A database of the original program is
    /// adopted.
    pub fn open(path: &Path) -> Result<Self> {
        let opening = |source| classify(path, source);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // NOFOLLOW refuses a link anywhere on the way, so the links of the directory are resolved first: only the
        // file's own name is checked.
        let resolved = resolve_directory(path);
        let mut connection = Connection::open_with_flags(&resolved, flags).map_err(opening)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(opening)?;
        let mode: String =
            connection.query_row("PRAGMA journal_mode = PERSIST", [], |row| row.get(0)).map_err(opening)?;
        if mode != "persist" {
            return Err(Error::Damaged { path: path.to_owned(), detail: format!("its journal stays in mode {mode}") });
        }
        // The journal is synced before the database, and its end before a commit returns. NORMAL would sync the
        // journal's pages together with their number: a power cut could then leave pages that look whole and aren't.
        connection.pragma_update(None, "synchronous", "FULL").map_err(opening)?;
        connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES).map_err(opening)?;
        let health: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(opening)?;
        if health != "ok" {
            return Err(Error::Damaged { path: path.to_owned(), detail: health });
        }
        schema::adopt(&mut connection, path)?;
        Ok(Self { connection, deferred: Deferred::default() })
    }

    /// Writes something, to find out whether writing works.
    pub fn try_write(&self) -> Result<()> {
        self.set_setting("tried", "1")
    }

    /// The same error; if it says that the database is damaged, with the path and what to do.
    fn explained(&self, error: Error) -> Error {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match &error {
            Error::Query { source, .. }
                if matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)) =>
            {
                Error::Damaged { path: self.connection.path().unwrap_or_default().into(), detail: chain(&error) }
            }
            _ => error,
        }
    }

    /// Whether the queue was paused when it was last asked (one host).
    pub fn is_paused(&self) -> Result<bool> {
        Ok(self.setting("paused")?.as_deref() == Some("1"))
    }

    /// Remembers over restarts whether the queue is paused.
    pub fn set_paused(&self, paused: bool) -> Result<()> {
        self.set_setting("paused", if paused { "1" } else { "0" })
    }

    /// Removes old rows: of files that were processed more than [`PROCESSED_DAYS`] ago, by a time that two clocks agree
    /// on.
    pub fn prune(&self, now: &Clock) -> Result<usize> {
        let trusted = self.trusted_time(now)?;
        Ok(self.prune_processed(trusted)? + self.prune_alone(trusted)?)
    }

    fn setting(&self, key: &str) -> Result<Option<String>> {
        use rusqlite::OptionalExtension as _;
        self.connection
            .query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(query("read a setting"))
    }

    fn set_setting(&self, key: &str, value: &str) -> Result<()> {
        self.connection
            .execute(
                "INSERT INTO settings(key, value) VALUES (?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2",
                [key, value],
            )
            .map(|_| ())
            .map_err(query("write a setting"))
    }
}

fn resolve_directory(path: &Path) -> PathBuf {
    match (path.parent().and_then(|p| p.canonicalize().ok()), path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

/// Distinguishes a damaged file from one that can't be opened.
fn classify(path: &Path, source: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => Error::Damaged { path: path.to_owned(), detail: source.to_string() },
        _ => Error::Open { path: path.to_owned(), source },
    }
}

fn query(doing: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::Query { doing, source }
}

/// The database's integers are signed; sizes beyond 8 EiB don't occur, and must not panic if they do.
fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
