// SPDX-License-Identifier: Apache-2.0
//! The control socket's answers, byte for byte, and the form of stats.json: the same for a daemon and for a queue in
//! the cluster. Nothing waits and nothing was ever done.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// The commands that end an idle daemon, their answers, and the names of the states that follow.
pub(crate) const LAST_WORDS: [(&str, &str, &str); 2] =
    [("drain", "Draining queue", "draining"), ("stop", "Stopping daemon", "stopping")];

/// stats.json, with a 0 for each figure and time.
const STATISTICS: &str = r#"{
  "daemon_start_time": "0-0-0T0:0:0Z",
  "uptime_seconds": 0,
  "uptime_hours": 0,
  "total_processed": 0,
  "total_failed": 0,
  "total_retried": 0,
  "total_cancelled": 0,
  "total_duplicates": 0,
  "success_rate_percent": 0,
  "average_processing_time_seconds": 0,
  "current_queue_depth": 0,
  "active_jobs": 0,
  "settling": 0,
  "retrying": 0,
  "notifications_pending": 0,
  "notifications_given_up": 0,
  "current_jobs": [],
  "by_file_type": {},
  "recent_completed": [],
  "last_activity": "0-0-0T0:0:0Z",
  "paused": false,
  "draining": false,
  "stopping": false,
  "version": "0",
  "total_superseded": 0,
  "total_given_back": 0,
  "ignored": 0,
  "total_removed_processed": 0,
  "total_removed_errors": 0,
  "total_removed_outputs": 0,
  "total_removed_bytes": 0,
  "last_updated": "0-0-0T0:0:0Z"
}
"#;

/// One request on a connection of its own.
pub(crate) fn ask(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Sends every command but [`LAST_WORDS`] and checks the answers, with many idle clients connected.
pub(crate) fn answers(socket: &Path) {
    let idle: Vec<_> = (0..8).map(|_| UnixStream::connect(socket).unwrap()).collect();
    let long = format!("{{\"command\":\"status\",\"extra\":\"{}\"}}", "x".repeat(6 << 10));
    let usage = r#"Invalid request: send {"command": "status"} or the bare word status"#;
    for (request, answer) in [
        (r#"{"command":"status"}"#, status("")),
        (" {\"command\": \"status\", \"x\": 1}\n", status("")),
        ("status", status("")),
        ("status\n", status("")),
        (&long, status("")),
        (r#"{"command":"pause"}"#, done("Daemon paused")),
        ("pause", done("Daemon paused")),
        ("status", status("paused")),
        (r#"{"command":"resume"}"#, done("Daemon resumed")),
        ("resume", done("Daemon resumed")),
        ("status", status("")),
        (r#""status""#, refused(usage)),
        (r#""stop""#, refused(usage)),
        (r#"["status"]"#, refused(usage)),
        ("{}", refused(usage)),
        ("5\n", refused(usage)),
        ("null\n", refused(usage)),
        ("Status\n", refused("Unknown command: Status")),
        (r#"{"command":"frobnicate"}"#, refused("Unknown command: frobnicate")),
    ] {
        assert_eq!(ask(socket, request.as_bytes()), answer, "{request}");
    }
    assert_eq!(ask(socket, b"\xff\xfe\n"), refused("Invalid request: not UTF-8"));
    let mut stats: Value = serde_json::from_str(STATISTICS).unwrap();
    stats.as_object_mut().unwrap().remove("last_updated");
    let stats = json!({"status": "ok", "stats": stats}).to_string();
    assert_eq!(without_figures(&ask(socket, b"stats")), stats);
    drop(idle);
}

/// Whether stats.json has the expected content while the queue is in this state.
pub(crate) fn is_written(file: &Path, state: &str) -> bool {
    let statistics = STATISTICS.replace(&format!(r#""{state}": false"#), &format!(r#""{state}": true"#));
    std::fs::read_to_string(file).is_ok_and(|text| without_figures(&text) == statistics)
}

/// The answer to `status` in this state.
pub(crate) fn status(state: &str) -> String {
    let [draining, paused, stopping] = ["draining", "paused", "stopping"].map(|word| word == state);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r#"{{"active_jobs":0,"draining":{draining},"paused":{paused},"queue_depth":0,"status":"ok","stopping":{stopping},"version":"{version}"}}"#
    )
}

/// The answer to a command.
pub(crate) fn done(message: &str) -> String {
    format!(r#"{{"message":"{message}","status":"ok"}}"#)
}

fn refused(message: &str) -> String {
    let message = json!(message);
    format!(
        r#"{{"available_commands":["status","stats","pause","resume","drain","stop"],"message":{message},"status":"error"}}"#
    )
}

fn without_figures(text: &str) -> String {
    let mut left = String::new();
    for character in text.chars() {
        match character {
            '0'..='9' | '.' if left.ends_with('0') => {}
            '0'..='9' => left.push('0'),
            _ => left.push(character),
        }
    }
    left
}
