// SPDX-License-Identifier: Apache-2.0
//! What is announced, and in which words.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::conversion::failure::without_name;

use super::config::NotificationConfig;

/// Something to announce. The ledger keeps it in this serialised form until it is delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A conversion was published in the directory `output_path`.
    Success { filename: String, duration: Duration, output_path: String, at: Timestamp },
    /// A file was skipped, because it was converted before; `duplicate_of` says as what.
    Duplicate { filename: String, duplicate_of: String, at: Timestamp },
    /// A conversion finally failed.
    Failure { filename: String, error: String, retry_count: u32, at: Timestamp },
    /// Somebody wrote to a source after it was converted: it is converted again, and the earlier output stays.
    Changed { filename: String, output_path: String, at: Timestamp },
    /// Files wait, and nothing has happened for a long time.
    Stalled { queue_depth: u64, idle: Duration, last_activity: Option<Timestamp>, at: Timestamp },
    /// The queue holds until the output volume has space.
    OutputFull { needed_bytes: u64, free_bytes: u64, output_path: String, at: Timestamp },
    /// The queue holds until its own volume has space.
    QueueFull { needed_bytes: u64, free_bytes: u64, queue_path: String, at: Timestamp },
    /// The queue holds until the volume of this directory can be written again.
    ReadOnly { path: String, at: Timestamp },
}

/// How serious it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Success,
    Warning,
    Error,
}

impl Level {
    /// The name used in a generic payload.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// An event in words, ready for every channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub title: &'static str,
    pub text: String,
    pub level: Level,
    /// Keys and values in the order in which they are shown.
    pub details: Vec<(&'static str, Value)>,
    pub at: Timestamp,
}

impl Event {
    /// Whether the configuration wants it announced.
    #[must_use]
    pub fn is_wanted(&self, config: &NotificationConfig) -> bool {
        match self {
            Self::Success { .. } => config.on_success,
            Self::Duplicate { .. } => config.on_duplicate,
            Self::Failure { .. }
            | Self::Changed { .. }
            | Self::OutputFull { .. }
            | Self::QueueFull { .. }
            | Self::ReadOnly { .. } => config.on_failure,
            Self::Stalled { .. } => config.on_stalled,
        }
    }

    /// The event in words.
    #[must_use]
    pub fn message(&self) -> Message {
        match self {
            Self::Success { filename, duration, output_path, at } => Message {
                title: "✅ Conversion Successful",
                text: format!("Successfully converted {filename} in {:.1}s", duration.as_secs_f64()),
                level: Level::Success,
                details: vec![
                    ("event", json!("conversion_success")),
                    ("filename", json!(filename)),
                    ("duration_seconds", json!((duration.as_secs_f64() * 100.0).round() / 100.0)),
                    ("output_path", json!(output_path)),
                    ("timestamp", rfc3339(*at)),
                ],
                at: *at,
            },
            Self::Duplicate { filename, duplicate_of, at } => Message {
                title: "⏭️ Duplicate Skipped",
                text: format!("Skipped {filename}: it was converted before, as {duplicate_of}"),
                level: Level::Warning,
                details: vec![
                    ("event", json!("duplicate_skipped")),
                    ("filename", json!(filename)),
                    ("duplicate_of", json!(duplicate_of)),
                    ("timestamp", rfc3339(*at)),
                ],
                at: *at,
            },
            Self::Failure { filename, error, retry_count, at } => Message {
                title: "❌ Conversion Failed",
                text: format!("Failed to convert {filename}: {}", without_name(error, filename)),
                level: Level::Error,
                details: vec![
                    ("event", json!("conversion_failure")),
                    ("filename", json!(filename)),
                    ("error", json!(error)),
                    ("retry_count", json!(retry_count)),
                    ("timestamp", rfc3339(*at)),
                ],
                at: *at,
            },
            Self::Changed { filename, output_path, at } => Message {
                title: "⚠️ Source Changed",
                text: format!("{filename} changed after it was converted, and is converted again beside {output_path}"),
                level: Level::Warning,
                details: vec![
                    ("event", json!("source_changed")),
                    ("filename", json!(filename)),
                    ("output_path", json!(output_path)),
                    ("timestamp", rfc3339(*at)),
                ],
                at: *at,
            },
            Self::Stalled { queue_depth, idle, last_activity, at } => {
                let minutes = idle.as_secs() / 60;
                Message {
                    title: "⚠️ Daemon Stalled",
                    text: format!("Daemon idle for {minutes} minutes with {queue_depth} items in queue"),
                    level: Level::Warning,
                    details: vec![
                        ("event", json!("daemon_stalled")),
                        ("queue_depth", json!(queue_depth)),
                        ("idle_minutes", json!(minutes)),
                        ("last_activity", last_activity.map_or(Value::Null, rfc3339)),
                        ("timestamp", rfc3339(*at)),
                    ],
                    at: *at,
                }
            }
            Self::QueueFull { needed_bytes, free_bytes, queue_path, at } => {
                let named = ["⚠️ Queue Volume Full", "queue_full", "queue_path"];
                short_of_room(named, queue_path, [*needed_bytes, *free_bytes], *at)
            }
            Self::ReadOnly { path, at } => Message {
                title: "⚠️ Volume Read-Only",
                text: format!("The volume of {path} can only be read now: the queue holds"),
                level: Level::Error,
                details: vec![("event", json!("volume_read_only")), ("path", json!(path)), ("timestamp", rfc3339(*at))],
                at: *at,
            },
            Self::OutputFull { needed_bytes, free_bytes, output_path, at } => {
                let named = ["⚠️ Output Volume Full", "output_full", "output_path"];
                short_of_room(named, output_path, [*needed_bytes, *free_bytes], *at)
            }
        }
    }
}

/// The message about a volume without the room that is needed.
fn short_of_room(
    [title, event, key]: [&'static str; 3],
    path: &str,
    [needed_bytes, free_bytes]: [u64; 2],
    at: Timestamp,
) -> Message {
    Message {
        title,
        text: format!("{path} has {free_bytes} bytes free, {needed_bytes} are needed: the queue holds"),
        level: Level::Warning,
        details: vec![
            ("event", json!(event)),
            ("needed_bytes", json!(needed_bytes)),
            ("free_bytes", json!(free_bytes)),
            (key, json!(path)),
            ("timestamp", rfc3339(at)),
        ],
        at,
    }
}

fn rfc3339(time: Timestamp) -> Value {
    format!("{time:.0}").into()
}
