// SPDX-License-Identifier: Apache-2.0
//! How far a conversion is: the same struct in a `ConversionJob`'s status and in a ledger's row.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Reason};
use super::id::Attempt;

/// The first attempt, and twenty more: a status is read and written whole.
pub(crate) const LISTED_ATTEMPTS: usize = 21;

/// How a conversion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum End {
    Succeeded,
    Failed,
    Duplicate,
    /// Deleted, or given back to settling.
    Cancelled,
}

/// What an attempt does, where that is not to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AttemptKind {
    /// It reads the source's headers, and copies nothing.
    Plan,
}

/// One attempt, recorded before it is started and never taken off again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub number: Attempt,
    /// What it does, where that is not to convert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AttemptKind>,
    /// Name of its batch Job (in the cluster).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_name: Option<String>,
    /// UID of its batch Job, once known.
    #[serde(default, rename = "jobUID", skip_serializing_if = "Option::is_none")]
    pub job_uid: Option<String>,
    /// Pod that ran it; also the name of the folder it wrote in its work directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Node that ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Timestamp>,
    /// Why it ended without success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl AttemptRecord {
    /// Whether this attempt still runs (or is about to).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end_time.is_none()
    }

    /// Whether it ended in a way that counts against `max_retries`. A plan counts where it failed.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.end_time.is_some() && self.reason.map_or(self.kind.is_none(), Reason::is_counted)
    }
}

/// Attempts that are listed no more, counted by what is still decided by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EarlierAttempts {
    /// All of them.
    pub total: u32,
    /// Those that count against maxRetries.
    pub counted: u32,
    /// Those that were disrupted or suspended.
    pub disrupted: u32,
    /// Those that ran out of memory.
    pub out_of_memory: u32,
}

impl EarlierAttempts {
    fn is_empty(&self) -> bool {
        self.total == 0
    }

    fn add(&mut self, record: &AttemptRecord) {
        self.total += 1;
        self.counted += u32::from(record.is_counted());
        self.disrupted += u32::from(record.reason.is_some_and(Reason::is_disruption));
        self.out_of_memory += u32::from(record.reason == Some(Reason::OutOfMemory));
    }
}

/// The state of a conversion, as `lifecycle::advance` reads and writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConversionStatus {
    /// The attempt that may start: 0 until the first work directory exists; only ever rises.
    pub staged: u32,
    /// The first attempt and the last twenty, in the order of their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptRecord>,
    /// What is kept of the attempts between them.
    #[serde(skip_serializing_if = "EarlierAttempts::is_empty")]
    pub earlier_attempts: EarlierAttempts,
    /// When the next attempt is due, between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_retry_time: Option<Timestamp>,
    /// The last attempt's failure; gone after a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Pod or process folder of the attempt that succeeded, until published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub converted: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
}

/// How far the clocks of two machines may differ: one runs attempts, and the other decides when the next one is due.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

impl ConversionStatus {
    /// Attempts that count against `max_retries`, ended ones only.
    #[must_use]
    pub fn counted_attempts(&self) -> u32 {
        self.number_of(self.earlier_attempts.counted, AttemptRecord::is_counted)
    }

    /// Attempts that were disrupted or suspended.
    #[must_use]
    pub(crate) fn disruptions(&self) -> u32 {
        let is_disrupted = |a: &AttemptRecord| a.reason.is_some_and(Reason::is_disruption);
        self.number_of(self.earlier_attempts.disrupted, is_disrupted)
    }

    /// Attempts that ran out of memory.
    #[must_use]
    pub(crate) fn out_of_memory(&self) -> u32 {
        self.number_of(self.earlier_attempts.out_of_memory, |a| a.reason == Some(Reason::OutOfMemory))
    }

    /// Attempts at the end of the list that all ended for this reason.
    #[must_use]
    pub(crate) fn in_a_row(&self, reason: Reason) -> u32 {
        let row = self.attempts.iter().rev().take_while(|a| a.reason == Some(reason)).count();
        u32::try_from(row).unwrap_or(u32::MAX)
    }

    fn number_of(&self, earlier: u32, wanted: impl Fn(&AttemptRecord) -> bool) -> u32 {
        let listed = self.attempts.iter().filter(|a| wanted(a)).count();
        earlier.saturating_add(u32::try_from(listed).unwrap_or(u32::MAX))
    }

    /// Lists one more attempt; of a list that has become too long the oldest but the first goes.
    pub(crate) fn list_attempt(&mut self, record: AttemptRecord) {
        self.attempts.push(record);
        while self.attempts.len() > LISTED_ATTEMPTS {
            let gone = self.attempts.remove(1);
            self.earlier_attempts.add(&gone);
        }
    }

    /// The attempt that runs now.
    #[must_use]
    pub fn open_attempt(&self) -> Option<&AttemptRecord> {
        self.attempts.last().filter(|a| a.is_open())
    }

    /// The number that the next attempt will have.
    #[must_use]
    pub fn next_attempt(&self) -> Attempt {
        self.attempts.last().map_or(Attempt::FIRST, |a| a.number.next())
    }

    /// Whether the time of the next attempt has come. Where the last attempt ended in a time that is still to come, somebody has set
    /// the clock back since: nobody knows how long it has waited, and it waits no longer.
    #[must_use]
    pub fn is_retry_due(&self, now: Timestamp) -> bool {
        let is_set_back = self.attempts.last().and_then(|last| last.end_time).is_some_and(|end| end > now + CLOCK_SKEW);
        is_set_back || self.next_retry_time.is_none_or(|until| until <= now)
    }

    /// Whether nothing more happens to it.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.end.is_some()
    }
}
