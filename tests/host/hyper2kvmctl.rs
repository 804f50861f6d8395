// SPDX-License-Identifier: Apache-2.0
//! The control client as a process, against the real socket.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command as Process;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use hyper2kvm::control::{Command, Handler, Listener, Reply, SOCKET};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::stats::Snapshot;

/// Answers like a paused daemon that refuses to drain.
struct Paused(Snapshot);

impl Handler for Paused {
    async fn handle(&self, command: Command) -> Reply {
        match command {
            Command::Status => Reply::status(&self.0),
            Command::Stats => Reply::stats(&self.0, self.0.daemon_start_time + SignedDuration::from_hours(2)),
            Command::Drain => Reply::Failed("cannot drain now".to_owned()),
            other => Reply::accepted(other),
        }
    }
}

/// Runs `test` with an output directory below which a daemon's socket is served.
fn with_daemon(test: impl FnOnce(&Path)) {
    let output = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(output.path().join(".daemon")).expect("a new directory");
    let mut snapshot = Snapshot::new(Timestamp::UNIX_EPOCH);
    snapshot.run_state = RunState::Paused;
    snapshot.queue_depth = 3;
    snapshot.totals.count_success(
        "a.vmdk",
        std::time::Duration::from_millis(125_300),
        1 << 20,
        jiff::Timestamp::UNIX_EPOCH,
    );

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let shutdown = CancellationToken::new();
    let served = {
        let _entered = runtime.enter();
        let listener = Listener::bind(&output.path().join(SOCKET)).expect("a free path");
        runtime.spawn(listener.serve(Paused(snapshot), shutdown.clone()))
    };
    test(output.path());
    shutdown.cancel();
    runtime.block_on(served).expect("the listener ends well");
}

fn run(arguments: &[&str]) -> Output {
    Process::cargo_bin("hyper2kvmctl").expect("a built binary").args(arguments).output().expect("a process")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn flags_stand_before_or_after_the_command_and_the_socket_wins() {
    with_daemon(|output| {
        let directory = output.to_str().expect("UTF-8");
        let socket = format!("{directory}/{SOCKET}");
        for arguments in [
            ["--output-dir", directory, "status"].as_slice(),
            &["status", "--output-dir", directory],
            &["--socket", &socket, "status"],
            &["--output-dir", "/nonexistent", "status", "--socket", &socket],
        ] {
            let ran = run(arguments);
            assert_eq!(text(&ran.stdout), "✅ Success\n  Status: ⏸️  PAUSED\n", "{arguments:?}");
            assert_eq!((text(&ran.stderr), ran.status.code()), ("", Some(0)));
        }
    });
}

#[test]
fn stats_are_shown_and_given_as_json() {
    with_daemon(|output| {
        let directory = output.to_str().expect("UTF-8");
        let shown = run(&["stats", "--output-dir", directory]);
        assert_eq!(
            text(&shown.stdout),
            "✅ Success

📊 Daemon Statistics:
  Uptime: 2.0 hours
  Processed: 1
  Failed: 0
  Total retried: 0
  Success Rate: 100.0%
  Avg Processing Time: 125.3s
  Queue Depth: 3

  By File Type:
    vmdk: 1 ok, 0 failed, 100.0% success
"
        );
        let given = run(&["stats", "--json", "--output-dir", directory]);
        let reply: Value = serde_json::from_slice(&given.stdout).expect("JSON");
        assert_eq!(reply["stats"]["current_queue_depth"], 3);
        assert!(text(&given.stdout).lines().count() > 10, "it is indented");
    });
}

#[test]
fn an_error_is_told_and_exits_1_with_json_too() {
    with_daemon(|output| {
        let directory = output.to_str().expect("UTF-8");
        let told = run(&["drain", "--output-dir", directory]);
        assert_eq!((text(&told.stdout), text(&told.stderr)), ("", "❌ Error: cannot drain now\n"));
        assert_eq!(told.status.code(), Some(1));

        let given = run(&["--json", "drain", "--output-dir", directory]);
        let reply: Value = serde_json::from_slice(&given.stdout).expect("JSON");
        assert_eq!(reply, serde_json::json!({"status": "error", "message": "cannot drain now"}));
        assert_eq!(given.status.code(), Some(1));
    });
}

#[test]
fn a_daemon_that_is_not_there_is_named_by_its_socket() {
    let ran = run(&["status", "--output-dir", "/nonexistent"]);
    assert_eq!(
        text(&ran.stderr),
        "Error: Daemon control socket not found: /nonexistent/.daemon/control.sock\nIs the daemon running?\n"
    );
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [[].as_slice(), &["restart"], &["status", "--nonsense"], &["--socket"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn completions_are_printed_for_a_shell() {
    let ran = run(&["completions", "bash"]);
    assert!(text(&ran.stdout).contains("_hyper2kvmctl"), "{}", text(&ran.stdout));
    assert!(text(&run(&["--help"]).stdout).contains("  completions "), "listed among the commands");
}

/// The names of the commands that a program's help lists.
fn commands(program: &str) -> Vec<String> {
    let help = Process::new(program).arg("--help").output().unwrap();
    let help = text(&help.stdout).to_owned();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_help_of_every_command_has_an_example() {
    let programs = [
        env!("CARGO_BIN_EXE_hyper2kvm"),
        env!("CARGO_BIN_EXE_hyper2kvmctl"),
        #[cfg(feature = "cluster")]
        env!("CARGO_BIN_EXE_hyper2kvm-operator"),
    ];
    for program in programs {
        let commands = commands(program);
        assert!(commands.len() > 3, "{program}: {commands:?}");
        for command in commands {
            let help = Process::new(program).args([&command, "--help"]).output().unwrap();
            assert!(text(&help.stdout).contains("\nExample"), "{program} {command}: {}", text(&help.stdout));
        }
    }
}
