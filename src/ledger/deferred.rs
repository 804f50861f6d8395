//! Changes of rows that wait for the next transaction.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::conversion::ConversionId;

use super::conversions::{self, ConversionRow};
use super::{Result, query};

/// Rows as they are to be; `None` where the row is to go. They stay until a transaction that wrote them is committed.
#[derive(Debug, Default)]
pub(super) struct Deferred(BTreeMap<ConversionId, Option<ConversionRow>>);

impl Deferred {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is known of a row here; the inner `None` says that it is to go.
    pub fn find(&self, id: &ConversionId) -> Option<Option<&ConversionRow>> {
        self.0.get(id).map(Option::as_ref)
    }

    pub fn put(&mut self, row: ConversionRow) {
        self.0.insert(row.id.clone(), Some(row));
    }

    pub fn forget(&mut self, id: &ConversionId) {
        self.0.insert(id.clone(), None);
    }

    /// Writes everything. The caller commits, and then clears.
    pub fn write(&self, connection: &Connection) -> Result<()> {
        for (id, row) in &self.0 {
            match row {
                Some(row) => conversions::write(connection, row)?,
                None => {
                    connection
                        .execute("DELETE FROM conversions WHERE id = ?1", [id.as_str()])
                        .map_err(query("forget a conversion"))?;
                }
            }
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}
