// SPDX-License-Identifier: Apache-2.0
//! Notifications that were decided on reach their server: late, after a restart, after a kill, in their order.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::{Daemon, Site, disk};
use crate::support::server::{Manner, Server};

fn site(url: &str) -> Site {
    Site::new(&format!("notifications: {{enabled: true, on_success: true, webhook_url: \"{url}\"}}"))
}

fn convert(site: &Site, daemon: &Daemon<'_>, names: &[&str]) {
    for (name, n) in names.iter().zip(0..) {
        site.drop_file(name, &disk(n));
    }
    daemon.until("all are archived", || site.archived() == names);
}

/// File names in the order in which the server heard of them.
fn told(server: &Server) -> Vec<String> {
    server.posted.try_iter().map(|post| post["filename"].as_str().unwrap().to_owned()).collect()
}

/// Names in the order in which the daemon counted them.
fn completed(daemon: &Daemon<'_>) -> Vec<String> {
    let words = |line: &String| Some(line.split_once("Completed: ")?.1.split_once(" in ")?.0.to_owned());
    daemon.lines("Completed: ").iter().filter_map(words).collect()
}

#[test]
fn a_drain_waits_for_a_slow_server_and_loses_no_notification() {
    let server = Server::start(Manner::AnswersLate);
    let site = site(&server.url());
    let mut daemon = site.start();
    daemon.ask("pause");
    let names = ["vm0.raw", "vm1.raw", "vm2.raw", "vm3.raw"];
    for (name, n) in names.iter().zip(0..) {
        site.drop_file(name, &disk(n));
    }
    daemon.until("four wait", || daemon.status("queue_depth") == 4);
    daemon.ask("drain");
    assert_eq!(daemon.end_within(Duration::from_secs(30)).code(), Some(0));
    assert_eq!(told(&server), completed(&daemon), "{}", daemon.log());
    assert_eq!(completed(&daemon).len(), 4);
}

#[test]
fn a_server_that_asks_for_time_gets_it_and_the_notification() {
    let server = Server::start(Manner::IsBusyFirst);
    let site = site(&server.url());
    let mut daemon = site.start();
    convert(&site, &daemon, &["vm.raw"]);
    let first = server.next();
    let asked = Instant::now();
    daemon.until("it is pending", || daemon.stats()["notifications_pending"] == 1);
    let second = server.next();
    assert!(asked.elapsed() >= Duration::from_millis(2900), "asked again after {:?}", asked.elapsed());
    assert_eq!(first, second);
    daemon.until("nothing is pending", || daemon.stats()["notifications_pending"] == 0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    drop(daemon);
    let _daemon = site.start();
    assert!(server.posted.recv_timeout(Duration::from_secs(2)).is_err(), "told again after a restart");
}

#[test]
fn a_signal_does_not_wait_for_a_server_that_hangs_and_the_next_start_tells() {
    let hanging = Server::start(Manner::Hangs);
    let site = site(&hanging.url());
    let mut daemon = site.start();
    convert(&site, &daemon, &["vm0.raw"]);
    convert_more(&site, &daemon, "vm1.raw");
    hanging.connected.recv_timeout(Duration::from_secs(10)).expect("it is asked");
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(daemon.lines("notifications were left unsent").len(), 1, "{}", daemon.log());
    drop(daemon);

    let server = Server::start(Manner::Answers);
    site.configure(&format!("notifications: {{enabled: true, webhook_url: \"{}\"}}", server.url()));
    let daemon = site.start();
    daemon.until("nothing is pending", || daemon.stats()["notifications_pending"] == 0);
    assert_eq!(told(&server), ["vm0.raw", "vm1.raw"], "what was decided is told, whatever is wanted now");
}

fn convert_more(site: &Site, daemon: &Daemon<'_>, name: &str) {
    site.drop_file(name, &disk(77));
    daemon.until("it is archived", || site.archived().contains(&name.to_owned()));
}

#[test]
fn what_a_killed_daemon_had_decided_to_tell_the_next_one_tells() {
    // A port that was ours a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = site(&format!("http://127.0.0.1:{port}/hook"));
    let mut daemon = site.start();
    convert(&site, &daemon, &["vm.raw"]);
    daemon.until("it is pending", || daemon.stats()["notifications_pending"] == 1);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    drop(daemon);

    let ledger = std::fs::read(site.output().join(".daemon/deduplication.db")).unwrap();
    let holds = |text: &str| ledger.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("\"event\":\"success\"") && !holds("/hook"), "the row holds the event and not its address");

    let server = Server::start(Manner::Answers);
    site.configure(&format!("notifications: {{enabled: true, webhook_url: \"{}\"}}", server.url()));
    let _daemon = site.start();
    assert_eq!(server.next()["filename"], "vm.raw");
}
