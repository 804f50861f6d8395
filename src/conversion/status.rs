// SPDX-License-Identifier: Apache-2.0
//! How far a conversion is: the same struct in a `ConversionJob`'s status and in a ledger's row.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, Reason};
use super::id::Attempt;

/// How a conversion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum End {
    Succeeded,
    Failed,
    Duplicate,
    /// Deleted, or given back to settling.
    Cancelled,
}

/// One attempt, recorded before it is started and never taken off again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub number: Attempt,
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

    /// Whether it ended in a way that counts against `max_retries`.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.end_time.is_some() && self.reason.is_none_or(Reason::is_counted)
    }
}

/// The state of a conversion, as `lifecycle::advance` reads and writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConversionStatus {
    /// The attempt that may start: 0 until the first work directory exists; only ever rises.
    pub staged: u32,
    /// Every attempt so far, in the order of their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptRecord>,
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

impl ConversionStatus {
    /// Attempts that count against `max_retries`, ended ones only.
    #[must_use]
    pub fn counted_attempts(&self) -> u32 {
        let counted = self.attempts.iter().filter(|a| a.is_counted()).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
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

    /// Whether nothing more happens to it.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.end.is_some()
    }
}
