// SPDX-License-Identifier: Apache-2.0
//! Changes of rows that wait for the next transaction, and notifications that are closed.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::conversion::ConversionId;

use super::outbox::{self, Fate};
use super::rows::{self, ConversionRow};
use super::{Result, query};

/// What the next transaction does with a row.
#[derive(Debug)]
pub(super) enum Pending {
    Changed(Box<ConversionRow>),
    Gone,
}

/// Changes that wait. They stay until a transaction that wrote them is committed.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    rows: BTreeMap<ConversionId, Pending>,
    /// Closed notifications by number. After a crash, a restart delivers those once more.
    closed: BTreeMap<i64, Fate>,
}

impl Deferred {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.closed.is_empty()
    }

    /// The pending change of a row, if there is one.
    pub(super) fn find(&self, id: &ConversionId) -> Option<&Pending> {
        self.rows.get(id)
    }

    pub(super) fn put(&mut self, row: ConversionRow) {
        self.rows.insert(row.id.clone(), Pending::Changed(Box::new(row)));
    }

    pub(super) fn forget(&mut self, id: &ConversionId) {
        self.rows.insert(id.clone(), Pending::Gone);
    }

    /// Closes a notification: it is to be removed and counted.
    pub(super) fn close(&mut self, number: i64, fate: Fate) {
        self.closed.insert(number, fate);
    }

    pub(super) fn closed(&self) -> &BTreeMap<i64, Fate> {
        &self.closed
    }

    /// Drops the pending change of a row.
    pub(super) fn take_back(&mut self, id: &ConversionId) {
        self.rows.remove(id);
    }

    /// Writes everything. The caller commits, and then clears.
    pub(super) fn write(&self, connection: &Connection) -> Result<()> {
        for (id, pending) in &self.rows {
            match pending {
                Pending::Changed(row) => rows::write(connection, row)?,
                Pending::Gone => {
                    connection
                        .execute("DELETE FROM conversions WHERE id = ?1", [id.as_str()])
                        .map_err(query("forget a conversion"))?;
                }
            }
        }
        outbox::remove(connection, &self.closed)
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.closed.clear();
    }
}
