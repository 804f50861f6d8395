// SPDX-License-Identifier: Apache-2.0
//! What has ended, as `hyper2kvmctl history` lists it from the ledger.

use assert_cmd::Command;
use serde_json::Value;

use crate::support::daemon::{Site, disk};

#[test]
fn the_history_lists_what_has_ended_while_the_daemon_works_and_after_it() {
    let site = Site::new("");
    let daemon = site.start();
    let history = |words: &[&str]| {
        let output = site.output();
        let mut command = Command::cargo_bin("hyper2kvmctl").unwrap();
        command.args(["--output-dir", output.to_str().unwrap(), "history"]).args(words).output().unwrap()
    };
    let said = history(&[]);
    assert_eq!(String::from_utf8(said.stdout).unwrap(), "No conversion has ended.\n");
    for number in 0..3 {
        site.drop_file(&format!("disk{number}.raw"), &disk(number));
        daemon.until("it is converted", || daemon.stats()["total_processed"] == u64::from(number) + 1);
    }
    let table = String::from_utf8(history(&["--limit=2"]).stdout).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!([lines[1][2], lines[2][2]], ["disk2.raw", "disk1.raw"], "{table}");
    assert_eq!(lines[1][3..6], ["Succeeded", "-", "1"], "{table}");
    let dir = site.output();
    let dir = dir.display();
    let older = format!("Older ones: hyper2kvmctl --output-dir {dir} history --limit 2 --before {}", lines[2][0]);
    assert_eq!(lines[3].join(" "), older);
    let none = String::from_utf8(history(&["--before=1"]).stdout).unwrap();
    assert_eq!(none, "None ended before number 1.\n");
    let refused = history(&["--socket", "/nowhere"]);
    assert_eq!(refused.status.code(), Some(2));
    drop(daemon);
    let page: Value = serde_json::from_slice(&history(&["--json", "--before", lines[2][0]]).stdout).unwrap();
    assert_eq!((&page["conversions"][0]["source"], &page["next"]), (&"disk0.raw".into(), &Value::Null), "{page}");
    let nowhere = Command::cargo_bin("hyper2kvmctl").unwrap().args(["--output-dir", "/nowhere", "history"]).output();
    let nowhere = nowhere.unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(said.ends_with("; is /nowhere the output directory?\n"), "{said}");
}
