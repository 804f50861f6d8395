// SPDX-License-Identifier: Apache-2.0
//! Answers, and their form on the wire.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::command::Command;
use crate::conversion::admission::RunState;
use crate::stats::{Snapshot, StatsReport};

/// Longest part of an unknown word that is repeated in the answer, in characters.
const MAX_ECHO: usize = 64;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Status(StatusReport),
    Stats(Box<StatsReport>),
    /// Done, and what was done.
    Done(String),
    /// Understood, but it could not be done.
    Failed(String),
    /// Not understood; the answer lists the commands.
    Refused(String),
}

/// The answer to `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusReport {
    pub paused: bool,
    pub draining: bool,
    pub stopping: bool,
    pub queue_depth: u64,
    pub active_jobs: u64,
    pub version: String,
    /// Why something can't go on, while a volume is away, full or read-only, or a file is in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

impl Reply {
    /// The answer to `status`.
    #[must_use]
    pub fn status(snapshot: &Snapshot) -> Self {
        Self::Status(StatusReport {
            paused: snapshot.run_state == RunState::Paused,
            draining: snapshot.run_state == RunState::Draining,
            stopping: snapshot.run_state == RunState::Stopped,
            queue_depth: snapshot.queue_depth,
            active_jobs: snapshot.active_jobs(),
            version: snapshot.version.clone(),
            waiting_for: snapshot
                .waiting_for
                .clone()
                .or_else(|| snapshot.queue_shortage.map(|_| "room on the queue's volume, which is full".to_owned()))
                .or_else(|| snapshot.held_by.clone())
                .or_else(|| snapshot.shortage.map(|_| "room on the output volume, which is full".to_owned())),
        })
    }

    /// The answer to `stats`.
    #[must_use]
    pub fn stats(snapshot: &Snapshot, now: Timestamp) -> Self {
        Self::Stats(Box::new(snapshot.report(now)))
    }

    /// The answer to a command that changes the run state, now or soon; a bare success to the others.
    #[must_use]
    pub fn accepted(command: Command) -> Self {
        let message = match command {
            Command::Pause => "Daemon paused",
            Command::Resume => "Daemon resumed",
            Command::Drain => "Draining queue",
            Command::Stop => "Stopping daemon",
            Command::Status | Command::Stats => "Success",
        };
        Self::Done(message.to_owned())
    }

    /// The answer to an unknown word.
    pub(super) fn unknown(word: &str) -> Self {
        let mut shown: String = word.chars().take(MAX_ECHO).collect();
        if shown.len() < word.len() {
            shown.push('…');
        }
        Self::Refused(format!("Unknown command: {shown}"))
    }

    /// The answer as it goes over the wire: one compact JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (status, mut body) = match self {
            Self::Status(report) => ("ok", to_value(report)),
            Self::Stats(report) => ("ok", json!({ "stats": to_value(report) })),
            Self::Done(message) => ("ok", json!({ "message": message })),
            Self::Failed(message) => ("error", json!({ "message": message })),
            Self::Refused(message) => (
                "error",
                json!({ "message": message, "available_commands": Command::ALL.iter().map(|command| command.as_str()).collect::<Vec<_>>() }),
            ),
        };
        body["status"] = status.into();
        body
    }
}

fn to_value(report: &impl Serialize) -> Value {
    serde_json::to_value(report).expect("keys are strings and all floats finite")
}
