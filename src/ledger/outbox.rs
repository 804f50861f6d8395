// SPDX-License-Identifier: Apache-2.0
//! The outbox: notifications that were decided on and are not delivered yet.
//!
//! A row holds the event and the name of the channel, never the message with its address or credentials. It is written
//! in the transaction that records what the event is about, and removed after its delivery. A crash in between delivers
//! it once more.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use super::processed::text_of;
use super::{Error, Ledger, Result, from_sql, query, to_sql};
use crate::stats::NotificationTotals;

/// Rows that are kept for all channels together; if there are more, the oldest are given up. A row has some hundred
/// bytes.
pub const OUTBOX_ROWS: u64 = 1000;

/// A notification as it is recorded, for one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNotification {
    pub channel: &'static str,
    /// The event as JSON.
    pub event: String,
    pub decided_at: Timestamp,
}

/// A recorded notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Rises with each notification that is recorded.
    pub number: i64,
    pub event: String,
    pub decided_at: Timestamp,
    /// The receiver asked not to be tried before this time.
    pub not_before: Option<Timestamp>,
}

/// What became of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Sent,
    GivenUp,
}

/// What the ledger counts of notifications whose rows are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Counted {
    sent: u64,
    given_up: u64,
}

impl Counted {
    fn add(&mut self, fate: Fate, rows: u64) {
        match fate {
            Fate::Sent => self.sent += rows,
            Fate::GivenUp => self.given_up += rows,
        }
    }
}

impl Ledger {
    /// Records notifications that belong to no row of a conversion.
    pub fn post(&mut self, notifications: &[NewNotification]) -> Result<()> {
        let writing = || query("record a notification");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        self.deferred.write(&transaction)?;
        add(&transaction, notifications)?;
        transaction.commit().map_err(writing())?;
        self.deferred.clear();
        Ok(())
    }

    /// The oldest notification of a channel.
    pub fn next_notification(&self, channel: &str) -> Result<Option<Notification>> {
        let mut after = 0;
        loop {
            let found = next(&self.connection, channel, after).map_err(query("read the outbox"))?;
            match found {
                Some(closed) if self.deferred.closed().contains_key(&closed.number) => after = closed.number,
                found => return Ok(found),
            }
        }
    }

    /// Remembers that the receiver asked not to be tried before `not_before`.
    pub fn hold_notification(&self, number: i64, not_before: Timestamp) -> Result<()> {
        self.connection
            .execute("UPDATE outbox SET not_before = ?2 WHERE number = ?1", params![number, not_before.to_string()])
            .map(|_| ())
            .map_err(query("hold a notification"))
    }

    /// Removes and counts a notification, with the next transaction.
    pub fn close_notification(&mut self, number: i64, fate: Fate) {
        self.deferred.close(number, fate);
    }

    /// Gives up what was decided before `before` for channels other than these: nobody can deliver it.
    pub fn give_up_notifications(&mut self, before: Timestamp, channels: &[&str]) -> Result<u64> {
        let writing = || query("give notifications up");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(writing())?;
        let channels = serde_json::to_string(channels).expect("a list of texts has a JSON form");
        let rows = transaction
            .execute(
                "DELETE FROM outbox WHERE decided_at < ?1 AND channel NOT IN (SELECT value FROM json_each(?2))",
                params![text_of(before), channels],
            )
            .map_err(writing())?;
        count(&transaction, &[(Fate::GivenUp, rows as u64)])?;
        transaction.commit().map_err(writing())?;
        Ok(rows as u64)
    }

    /// How many rows announce an event of this kind.
    #[cfg(test)]
    pub(crate) fn count_notifications(&self, kind: &str) -> Result<u64> {
        self.connection
            .query_row("SELECT count(*) FROM outbox WHERE event ->> 'event' = ?1", [kind], |row| row.get(0))
            .map(from_sql)
            .map_err(query("count the outbox"))
    }

    /// How many notifications wait, and what became of the others since the ledger was made.
    pub fn notification_totals(&self) -> Result<NotificationTotals> {
        let rows: i64 = self
            .connection
            .query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))
            .map_err(query("count the outbox"))?;
        let mut counted = read(&self.connection)?;
        let closed = self.deferred.closed();
        for fate in closed.values() {
            counted.add(*fate, 1);
        }
        let pending = from_sql(rows).saturating_sub(closed.len() as u64);
        Ok(NotificationTotals { pending, sent: counted.sent, given_up: counted.given_up })
    }
}

/// The oldest row of a channel after the one of this number.
fn next(connection: &Connection, channel: &str, after: i64) -> rusqlite::Result<Option<Notification>> {
    let sql = "SELECT number, event, decided_at, not_before FROM outbox
               WHERE channel = ?1 AND number > ?2 ORDER BY number LIMIT 1";
    let read = |row: &Row<'_>| {
        let decided_at: String = row.get(2)?;
        let not_before: Option<String> = row.get(3)?;
        Ok(Notification {
            number: row.get(0)?,
            event: row.get(1)?,
            // A time that can't be read counts as old: the notification is tried once.
            decided_at: decided_at.parse().unwrap_or(Timestamp::UNIX_EPOCH),
            not_before: not_before.and_then(|text| text.parse().ok()),
        })
    };
    connection.query_row(sql, params![channel, after], read).optional()
}

/// Adds rows, and gives up the oldest where there are too many. The caller commits.
pub(super) fn add(connection: &Connection, notifications: &[NewNotification]) -> Result<()> {
    if notifications.is_empty() {
        return Ok(());
    }
    let writing = || query("record a notification");
    for new in notifications {
        connection
            .execute(
                "INSERT INTO outbox(channel, event, decided_at) VALUES (?1, ?2, ?3)",
                params![new.channel, new.event, text_of(new.decided_at)],
            )
            .map_err(writing())?;
    }
    let rows = connection
        .execute(
            "DELETE FROM outbox WHERE number <= (SELECT number FROM outbox ORDER BY number DESC LIMIT 1 OFFSET ?1)",
            [to_sql(OUTBOX_ROWS)],
        )
        .map_err(writing())?;
    if rows > 0 {
        tracing::error!(rows, "Failed to send notifications: too many wait already, the oldest are given up");
    }
    count(connection, &[(Fate::GivenUp, rows as u64)])
}

/// Removes the rows of closed notifications, and counts those that were still there. The caller commits.
pub(super) fn remove(connection: &Connection, closed: &BTreeMap<i64, Fate>) -> Result<()> {
    let mut removed = Vec::with_capacity(closed.len());
    for (number, fate) in closed {
        let rows = connection
            .execute("DELETE FROM outbox WHERE number = ?1", [number])
            .map_err(query("remove a notification"))?;
        removed.push((*fate, rows as u64));
    }
    count(connection, &removed)
}

fn count(connection: &Connection, removed: &[(Fate, u64)]) -> Result<()> {
    if removed.iter().all(|(_, rows)| *rows == 0) {
        return Ok(());
    }
    let mut counted = read(connection)?;
    for (fate, rows) in removed {
        counted.add(*fate, *rows);
    }
    let text = serde_json::to_string(&counted).expect("a struct of numbers has a JSON form");
    connection
        .execute(
            "INSERT INTO settings(key, value) VALUES ('notifications', ?1) ON CONFLICT(key) DO UPDATE SET value = ?1",
            [text],
        )
        .map(|_| ())
        .map_err(query("count notifications"))
}

fn read(connection: &Connection) -> Result<Counted> {
    let text: Option<String> = connection
        .query_row("SELECT value FROM settings WHERE key = 'notifications'", [], |row| row.get(0))
        .optional()
        .map_err(query("read the counts of notifications"))?;
    text.map_or_else(
        || Ok(Counted::default()),
        |text| {
            serde_json::from_str(&text).map_err(|source| Error::Row {
                what: "counts of notifications",
                id: "the whole".to_owned(),
                source,
            })
        },
    )
}
