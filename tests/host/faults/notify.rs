// SPDX-License-Identifier: Apache-2.0
//! Broken notification servers delay nothing.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::{Site, disk};
use crate::support::server::{Manner, Server};

const FILES: u8 = 6;

/// Six conversions, each announced to this server; then the daemon is terminated.
fn convert_beside(notifications: &str) -> String {
    let site = Site::new(&format!("notifications: {{enabled: true, on_success: true, {notifications}}}"));
    let mut daemon = site.start();
    let names: Vec<String> = (0..FILES).map(|n| format!("vm{n}.raw")).collect();
    for (name, n) in names.iter().zip(0..) {
        site.drop_file(name, &disk(n));
    }
    daemon.until("the first is converted", || daemon.stats()["total_processed"].as_u64() > Some(0));
    let begun = Instant::now();
    daemon.until("all are archived", || site.archived() == names);
    // A single request times out after 10 s.
    assert!(begun.elapsed() < Duration::from_secs(9), "held up for {:?}", begun.elapsed());
    daemon.until("all are counted", || daemon.stats()["total_processed"] == FILES);
    let (begun, limit) = (Instant::now(), Duration::from_secs(10));
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(limit).success());
    assert!(begun.elapsed() < limit);
    daemon.log()
}

#[test]
fn servers_that_hang_hold_nothing_up() {
    let (webhook, mail) = (Server::start(Manner::Hangs), Server::start(Manner::Hangs));
    convert_beside(&format!(
        "webhook_url: \"{}\", email_enabled: true, email_smtp_host: 127.0.0.1, email_smtp_port: {}, \
         email_from: a@example.com, email_to: b@example.com",
        webhook.url(),
        mail.port
    ));
    webhook.connected.recv_timeout(Duration::from_secs(1)).expect("the webhook is called");
    mail.connected.recv_timeout(Duration::from_secs(1)).expect("the mail server is called");
}

#[test]
fn a_server_that_answers_500_holds_nothing_up() {
    let server = Server::start(Manner::Fails);
    convert_beside(&format!("webhook_url: \"{}\"", server.url()));
    assert_eq!(server.next()["event"], "conversion_success");
}

#[test]
fn a_server_that_refuses_holds_nothing_up() {
    // A port that was ours, and is free again.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    convert_beside(&format!("webhook_url: \"http://127.0.0.1:{port}/hook\""));
}

#[test]
fn a_server_that_answers_hears_of_every_conversion_once() {
    let server = Server::start(Manner::Answers);
    let log = convert_beside(&format!("webhook_url: \"{}\"", server.url()));
    let mut told: Vec<_> = server.posted.try_iter().map(|post| post["filename"].clone()).collect();
    told.sort_by_key(ToString::to_string);
    assert_eq!(told, (0..FILES).map(|n| format!("vm{n}.raw")).collect::<Vec<_>>(), "{log}");
}

#[test]
fn a_skipped_duplicate_is_announced_where_asked_for() {
    let server = Server::start(Manner::Answers);
    let site =
        Site::new(&format!("notifications: {{enabled: true, on_duplicate: true, webhook_url: \"{}\"}}", server.url()));
    let daemon = site.start();
    for times in 1..=2 {
        site.drop_file("vm.raw", &disk(1));
        daemon.until("it is archived", || site.archived().len() == times);
    }
    let told = server.next();
    assert_eq!((&told["event"], &told["filename"]), (&"duplicate_skipped".into(), &"vm.raw".into()), "{told}");
    assert!(told["duplicate_of"].as_str().unwrap().starts_with("vm.raw of "), "{told}");
    assert_eq!(daemon.stats()["total_duplicates"], 1);
}
