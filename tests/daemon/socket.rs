//! The control socket against clients that mean harm or know no better.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Site, exchange};

#[test]
fn whatever_is_asked_is_answered_and_an_idle_client_blocks_nobody() {
    let site = Site::new("");
    let daemon = site.start();
    let socket = site.output().join(".daemon/control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let idle: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let long = format!("{{\"command\":\"status\",\"extra\":\"{}\"}}", "x".repeat(6 << 10));
    for (request, status) in [
        (&b"\"status\""[..], "error"),
        (b"\"stop\"", "error"),
        (b"[\"status\"]", "error"),
        (b"5", "error"),
        (b"null", "error"),
        (b"\xff\xfe\n", "error"),
        (long.as_bytes(), "ok"),
        (b"status\n", "ok"),
        (b"{\"command\":\"frobnicate\"}", "error"),
    ] {
        let answer: Value = serde_json::from_slice(&exchange(&site.output(), request).unwrap()).unwrap();
        assert_eq!(answer["status"], status, "{}", String::from_utf8_lossy(request));
        let lists = answer["available_commands"] == json!(["status", "stats", "pause", "resume", "drain", "stop"]);
        assert_eq!(lists, status == "error", "{answer}");
    }
    assert_eq!(daemon.ask("status")["paused"], false);
    drop(idle);
}

#[test]
fn the_client_shows_what_the_daemon_says() {
    let site = Site::new("");
    let daemon = site.start();
    let client = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl"))
            .arg("--output-dir")
            .arg(site.output())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(client(&["pause"]).contains("✅ Daemon paused"));
    assert!(client(&["status"]).contains("⏸️  PAUSED"));
    assert!(client(&["resume"]).contains("✅ Daemon resumed"));
    let stats: Value = serde_json::from_str(&client(&["stats", "--json"])).unwrap();
    assert_eq!(stats["stats"]["current_queue_depth"], 0);
    assert_eq!(daemon.ask("status")["paused"], false);
}
