// SPDX-License-Identifier: Apache-2.0
//! The control socket against hostile and broken clients.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::support::daemon::{SOON, Site};
use crate::support::protocol;

#[test]
fn whatever_is_asked_is_answered_and_an_idle_client_blocks_nobody() {
    let site = Site::new("");
    let _daemon = site.start();
    let socket = site.output().join(".daemon/control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    protocol::answers(&socket);
}

#[test]
fn the_last_words_are_answered_before_the_end_and_written_down() {
    for (word, answer, state) in protocol::LAST_WORDS {
        let site = Site::new("");
        let mut daemon = site.start();
        let [socket, file] = ["control.sock", "stats.json"].map(|name| site.output().join(".daemon").join(name));
        assert_eq!(protocol::ask(&socket, word.as_bytes()), protocol::done(answer));
        assert!(daemon.end_within(SOON).success(), "{word}");
        assert!(protocol::is_written(&file, state), "{}", std::fs::read_to_string(file).unwrap());
    }
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
