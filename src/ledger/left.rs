// SPDX-License-Identifier: Apache-2.0
//! Sources that stay in the queue directory after their conversion (`archive_processed: false`).

use rusqlite::{Connection, params};

use crate::conversion::Stamp;

use super::{Ledger, Result, from_sql, query, to_sql};

/// A source that was converted and left where it was. If anything but its path changes, it is a new file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeftSource {
    /// Base name in the queue directory.
    pub path: String,
    pub inode: u64,
    pub size_bytes: u64,
    pub mtime_ns: i128,
}

impl LeftSource {
    /// Its state when it was left.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp { size_bytes: self.size_bytes, mtime_ns: self.mtime_ns, inode: self.inode }
    }
}

impl Ledger {
    /// Every source left in place. These rows do not age: the files may lie there for years.
    pub fn left_in_place(&self) -> Result<Vec<LeftSource>> {
        let reading = || query("read the sources left in place");
        let mut statement = self
            .connection
            .prepare("SELECT path, inode, size, mtime_ns FROM left_in_place ORDER BY path")
            .map_err(reading())?;
        statement
            .query_map([], |row| {
                let mtime: String = row.get(3)?;
                Ok(LeftSource {
                    path: row.get(0)?,
                    inode: row.get::<_, i64>(1)?.cast_unsigned(),
                    size_bytes: from_sql(row.get(2)?),
                    mtime_ns: mtime.parse().unwrap_or_default(),
                })
            })
            .and_then(Iterator::collect)
            .map_err(reading())
    }
}

pub(super) fn remember(connection: &Connection, left: &LeftSource) -> Result<()> {
    connection
        .execute(
            "INSERT INTO left_in_place(path, inode, size, mtime_ns) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT(path) DO UPDATE SET inode = ?2, size = ?3, mtime_ns = ?4",
            params![left.path, left.inode.cast_signed(), to_sql(left.size_bytes), left.mtime_ns.to_string()],
        )
        .map(|_| ())
        .map_err(query("remember a source left in place"))
}
