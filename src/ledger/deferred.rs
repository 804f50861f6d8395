// SPDX-License-Identifier: Apache-2.0
//! Changes of rows that wait for the next transaction.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::conversion::ConversionId;

use super::rows::{self, ConversionRow};
use super::{Result, query};

/// What is to become of a row.
#[derive(Debug)]
pub(super) enum Pending {
    Changed(Box<ConversionRow>),
    Gone,
}

/// Rows as they are to be. They stay until a transaction that wrote them is committed.
#[derive(Debug, Default)]
pub(super) struct Deferred(BTreeMap<ConversionId, Pending>);

impl Deferred {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is to become of a row, if anything is.
    pub(super) fn find(&self, id: &ConversionId) -> Option<&Pending> {
        self.0.get(id)
    }

    pub(super) fn put(&mut self, row: ConversionRow) {
        self.0.insert(row.id.clone(), Pending::Changed(Box::new(row)));
    }

    pub(super) fn forget(&mut self, id: &ConversionId) {
        self.0.insert(id.clone(), Pending::Gone);
    }

    /// As if it had never been put.
    pub(super) fn take_back(&mut self, id: &ConversionId) {
        self.0.remove(id);
    }

    /// Writes everything. The caller commits, and then clears.
    pub(super) fn write(&self, connection: &Connection) -> Result<()> {
        for (id, pending) in &self.0 {
            match pending {
                Pending::Changed(row) => rows::write(connection, row)?,
                Pending::Gone => {
                    connection
                        .execute("DELETE FROM conversions WHERE id = ?1", [id.as_str()])
                        .map_err(query("forget a conversion"))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
