// SPDX-License-Identifier: Apache-2.0
//! One command over the control socket, and its answer for a person or for `jq`.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;

use serde_json::Value;

use hyper2kvm::control::client::{self, RequestError};
use hyper2kvm::control::{Command, FALLBACK_DIR, FALLBACK_SOCKET_NAME, SOCKET};
use hyper2kvm::conversion::{printable, printable_json, printable_lines};

/// Output directory where none is named: that of the packages and of a watcher's pod.
pub(crate) const OUTPUT_DIR: &str = "/var/lib/hyper2kvm/output";

/// The socket to use. Where none is named and the usual place has none, looks in the place for volumes that refuse
/// sockets.
fn find(socket: Option<PathBuf>, output_dir: Option<PathBuf>, is_socket: impl Fn(&Path) -> bool) -> PathBuf {
    match (socket, output_dir) {
        (Some(socket), _) => socket,
        (None, Some(output_dir)) => output_dir.join(SOCKET),
        (None, None) => {
            let usual = Path::new(OUTPUT_DIR).join(SOCKET);
            let other = Path::new(FALLBACK_DIR).join(FALLBACK_SOCKET_NAME);
            if !is_socket(&usual) && is_socket(&other) { other } else { usual }
        }
    }
}

/// Whether a socket lies there.
fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_socket())
}

/// Sends the command and prints the answer; returns the exit code.
pub(crate) fn run(socket: Option<PathBuf>, output_dir: Option<PathBuf>, command: Command, json: bool) -> ExitCode {
    let (sender, answer) = mpsc::channel();
    // On a volume that does not answer even the look for the socket never returns.
    std::thread::spawn(move || sender.send(client::request(&find(socket, output_dir, is_socket), command)));
    let reply = match answer.recv_timeout(2 * client::TIMEOUT).unwrap_or(Err(RequestError::Timeout)) {
        Ok(reply) => reply,
        Err(error) => {
            tell(&unanswered(&error));
            return ExitCode::FAILURE;
        }
    };
    let ok = reply["status"] == "ok";
    let is_printed = if json {
        print(&printable_json(&format!("{reply:#}\n")))
    } else if ok {
        print(&printable_lines(&answered(command, &reply)))
    } else {
        let message = reply["message"].as_str().unwrap_or("Unknown error");
        tell(&format!("❌ Error: {}\n", printable(message)));
        true
    };
    if ok && is_printed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints an answer; whether that went well. The reader may be gone already (`| head -1`): that is no error.
pub(crate) fn print(text: &str) -> bool {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tell(&format!("Error: cannot print the answer: {error}\n"));
            false
        }
        Ok(()) | Err(_) => true,
    }
}

fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn unanswered(error: &RequestError) -> String {
    let mut text = format!("Error: {error}");
    if let Some(source) = error.source() {
        let _ = write!(text, ": {source}");
    }
    text.push('\n');
    if matches!(error, RequestError::NotFound { .. } | RequestError::Connect { .. }) {
        text.push_str("Is the daemon running?\n");
    }
    text
}

fn answered(command: Command, reply: &Value) -> String {
    let mut text = format!("✅ {}\n", reply["message"].as_str().unwrap_or("Success"));
    match command {
        Command::Status => text.push_str(&status(reply)),
        Command::Stats => text.push_str(&stats(&reply["stats"])),
        _ => {}
    }
    text
}

fn status(reply: &Value) -> String {
    let paused = reply["paused"] == true;
    let mut text = format!("  Status: {}\n", if paused { "⏸️  PAUSED" } else { "▶️  RUNNING" });
    if reply["draining"] == true {
        text.push_str("  Mode: 🚰 DRAINING\n");
    }
    if let Some(why) = reply["waiting_for"].as_str() {
        let _ = writeln!(text, "  Waits: {}", printable(why));
    }
    text
}

fn stats(stats: &Value) -> String {
    let real = |value: &Value| value.as_f64().unwrap_or(0.0);
    let whole = |value: &Value| value.as_u64().unwrap_or(0);
    let mut lines = vec![
        String::new(),
        "📊 Daemon Statistics:".to_owned(),
        format!("  Uptime: {:.1} hours", real(&stats["uptime_hours"])),
        format!("  Processed: {}", whole(&stats["total_processed"])),
        format!("  Failed: {}", whole(&stats["total_failed"])),
        // Scripts grep for the phrase in lower case.
        format!("  Total retried: {}", whole(&stats["total_retried"])),
        format!("  Success Rate: {:.1}%", real(&stats["success_rate_percent"])),
        format!("  Avg Processing Time: {:.1}s", real(&stats["average_processing_time_seconds"])),
        format!("  Queue Depth: {}", whole(&stats["current_queue_depth"])),
    ];
    // What people look for first when something seems to stand still; nothing where there is none.
    for (label, key) in [
        ("Running", "active_jobs"),
        ("Waiting for a retry", "retrying"),
        ("Not complete yet", "settling"),
        ("Ignored", "ignored"),
        ("Duplicates", "total_duplicates"),
    ] {
        lines.extend(Some(whole(&stats[key])).filter(|count| *count > 0).map(|count| format!("  {label}: {count}")));
    }
    let types = stats["by_file_type"].as_object().filter(|types| !types.is_empty());
    if let Some(types) = types {
        lines.push(String::new());
        lines.push("  By File Type:".to_owned());
        lines.extend(types.iter().map(|(name, counters)| {
            format!(
                "    {name}: {} ok, {} failed, {:.1}% success",
                whole(&counters["processed"]),
                whole(&counters["failed"]),
                real(&counters["success_rate_percent"])
            )
        }));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_socket_is_where_it_was_named_or_in_one_of_two_places() {
        let usual = "/var/lib/hyper2kvm/output/.daemon/control.sock";
        let other = "/run/hyper2kvm/control.sock";
        for (socket, output_dir, there, found) in [
            (Some("/s"), Some("/o"), [other].as_slice(), "/s"),
            (None, Some("/o"), &[other], "/o/.daemon/control.sock"),
            (None, None, &[usual, other], usual),
            (None, None, &[other], other),
            (None, None, &[], usual),
        ] {
            let is_socket = |path: &Path| there.iter().any(|known| Path::new(known) == path);
            assert_eq!(find(socket.map(PathBuf::from), output_dir.map(PathBuf::from), is_socket), Path::new(found));
        }
    }

    #[test]
    fn stats_read_as_they_always_did() {
        let reply = json!({"status": "ok", "stats": {
            "uptime_hours": 12.5, "total_processed": 45, "total_failed": 2, "total_retried": 1,
            "success_rate_percent": 95.74, "average_processing_time_seconds": 125.3, "current_queue_depth": 3,
            "by_file_type": {"vmdk": {"processed": 30, "failed": 1, "success_rate_percent": 96.77}},
        }});
        assert_eq!(
            answered(Command::Stats, &reply),
            "✅ Success

📊 Daemon Statistics:
  Uptime: 12.5 hours
  Processed: 45
  Failed: 2
  Total retried: 1
  Success Rate: 95.7%
  Avg Processing Time: 125.3s
  Queue Depth: 3

  By File Type:
    vmdk: 30 ok, 1 failed, 96.8% success
"
        );
    }

    #[test]
    fn stats_show_what_runs_and_what_waits() {
        let reply = json!({"status": "ok", "stats": {"active_jobs": 2, "retrying": 1, "ignored": 3, "settling": 0}});
        let text = answered(Command::Stats, &reply);
        assert!(text.contains("  Queue Depth: 0\n  Running: 2\n  Waiting for a retry: 1\n  Ignored: 3\n"), "{text}");
    }

    #[test]
    fn status_says_paused_or_running_and_whether_it_drains() {
        for (reply, text) in [
            (json!({"paused": true, "draining": false}), "✅ Success\n  Status: ⏸️  PAUSED\n"),
            (json!({"paused": false, "draining": true}), "✅ Success\n  Status: ▶️  RUNNING\n  Mode: 🚰 DRAINING\n"),
            (
                json!({"paused": false, "draining": false, "waiting_for": "the volume of /q is not there\u{1b}"}),
                "✅ Success\n  Status: ▶️  RUNNING\n  Waits: the volume of /q is not there\\u{1b}\n",
            ),
        ] {
            assert_eq!(answered(Command::Status, &reply), text);
        }
    }

    #[test]
    fn other_commands_show_their_message() {
        let reply = json!({"status": "ok", "message": "Daemon paused"});
        assert_eq!(answered(Command::Pause, &reply), "✅ Daemon paused\n");
    }
}
