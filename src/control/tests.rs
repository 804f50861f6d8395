// SPDX-License-Identifier: Apache-2.0
//! Tests of both sides of the socket, with real connections.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::stats::Snapshot;

struct Fake;

impl Handler for Fake {
    async fn handle(&self, command: Command) -> Reply {
        let mut snapshot = Snapshot::new(Timestamp::UNIX_EPOCH);
        snapshot.version = "1.2.3".to_owned();
        snapshot.queue_depth = 2;
        match command {
            Command::Status => Reply::status(&snapshot),
            Command::Stats => {
                // Longer than the 4096 bytes that naive clients and servers read.
                for n in 0..500 {
                    snapshot.totals.count_failure(&format!("x.type{n}"), Timestamp::UNIX_EPOCH);
                }
                Reply::stats(&snapshot, Timestamp::UNIX_EPOCH)
            }
            Command::Drain => std::future::pending().await,
            other => Reply::accepted(other),
        }
    }
}

struct Served {
    directory: tempfile::TempDir,
    path: PathBuf,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let shutdown = CancellationToken::new();
    let listener = Listener::bind(&path).unwrap();
    let task = tokio::spawn(listener.serve(Fake, shutdown.clone()));
    Served { directory, path, shutdown, task }
}

/// The answer to `pieces`, sent one after the other without an end of stream.
async fn ask(path: &Path, pieces: &[&[u8]]) -> Value {
    let mut stream = UnixStream::connect(path).await.unwrap();
    for piece in pieces {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

fn refused(message: &str) -> Value {
    json!({
        "status": "error",
        "message": message,
        "available_commands": ["status", "stats", "pause", "resume", "drain", "stop"],
    })
}

#[tokio::test]
async fn every_form_of_a_request_is_answered_at_once() {
    let served = serve();
    let status = json!({
        "status": "ok", "paused": false, "draining": false, "stopping": false,
        "queue_depth": 2, "active_jobs": 0, "version": "1.2.3",
    });
    let forms: [&[&[u8]]; 8] = [
        &[br#"{"command":"status"}"#],
        &[br#"{"comm"#, br#"and": "sta"#, br#"tus"}"#],
        &[br#" {"command":"status","id":{"x":"}\""}} "#],
        &[b"{\"command\":\"status\"}\n"],
        &[b"status"],
        &[b"status\n"],
        &[b"sta", b"tus"],
        &[b"\r\n status \r\n"],
    ];
    for form in forms {
        let shown = form.concat();
        assert_eq!(ask(&served.path, form).await, status, "{}", String::from_utf8_lossy(&shown));
    }
}

#[tokio::test]
async fn commands_are_answered_with_the_texts_people_know() {
    let served = serve();
    for (command, message) in [("pause", "Daemon paused"), ("resume", "Daemon resumed"), ("stop", "Stopping daemon")] {
        let answer = ask(&served.path, &[json!({ "command": command }).to_string().as_bytes()]).await;
        assert_eq!(answer, json!({"status": "ok", "message": message}));
    }
    assert_eq!(Reply::accepted(Command::Drain).to_json(), json!({"status": "ok", "message": "Draining queue"}));
}

#[tokio::test]
async fn whatever_is_no_request_is_answered_with_an_error() {
    let served = serve();
    let usage = r#"Invalid request: send {"command": "status"} or the bare word status"#;
    let too_long = [b"{".as_slice(), &vec![b' '; 12 * request::MAX_REQUEST], b"}"].concat();
    let unknown = format!("Unknown command: {}…", "x".repeat(64));
    let long_word = "x".repeat(6 << 10);
    let deep = "[".repeat(300) + &"]".repeat(300);
    let cases: [(&[u8], &str); 14] = [
        (br#""status""#, usage),
        (b"5", usage),
        (b"null", usage),
        (b"[]", usage),
        (b"{}", usage),
        (br#"{"command":5}"#, usage),
        (deep.as_bytes(), usage),
        (b"\xff\xfe", "Invalid request: not UTF-8"),
        (b"{\"command\":\"\xff\"}", "Invalid request: not UTF-8"),
        (b"{]", "Invalid request: bad JSON: key must be a string at line 1 column 2"),
        (b"STATUS\n", "Unknown command: STATUS"),
        (br#"{"command":"restart"}"#, "Unknown command: restart"),
        (long_word.as_bytes(), &unknown),
        (&too_long, "Invalid request: longer than 65536 bytes"),
    ];
    for (request, message) in cases {
        let shown = String::from_utf8_lossy(&request[..request.len().min(40)]).into_owned();
        assert_eq!(ask(&served.path, &[request]).await, refused(message), "{shown}");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_stream_is_answered_too() {
    let served = serve();
    for (request, message) in [
        (b"".as_slice(), r#"Invalid request: send {"command": "status"} or the bare word status"#),
        (b"{\"comm", "Invalid request: bad JSON: EOF while parsing a string at line 1 column 6"),
    ] {
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), refused(message));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_blocks_nobody_and_is_told_in_the_end() {
    let served = serve();
    let mut idle = UnixStream::connect(&served.path).await.unwrap();
    let mut half = UnixStream::connect(&served.path).await.unwrap();
    half.write_all(b"{").await.unwrap();

    assert_eq!(ask(&served.path, &[b"pause"]).await["status"], "ok");

    for stream in [&mut idle, &mut half] {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&answer).unwrap(),
            json!({"status": "error", "message": "Timed out waiting for a complete request"})
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_not_waited_for() {
    let served = serve();
    assert_eq!(
        ask(&served.path, &[b"drain"]).await,
        json!({"status": "error", "message": "The daemon is too busy to answer drain"})
    );
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_is_told_so() {
    let served = serve();
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(UnixStream::connect(&served.path).await.unwrap());
    }
    assert_eq!(
        ask(&served.path, &[]).await,
        json!({"status": "error", "message": "Too many connections: at most 64 at a time"})
    );
    drop(idle);
}

#[tokio::test]
async fn answers_may_be_longer_than_a_page() {
    let served = serve();
    let path = served.path.clone();
    let answer = tokio::task::spawn_blocking(move || client::request(&path, Command::Stats)).await.unwrap().unwrap();
    assert_eq!(answer["stats"]["total_failed"], 500);
    assert!(answer.to_string().len() > 4096);
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_at_shutdown() {
    let served = serve();
    let mode = std::fs::symlink_metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let idle = UnixStream::connect(&served.path).await.unwrap();
    served.shutdown.cancel();
    served.task.await.unwrap();
    assert_eq!(std::fs::read_dir(served.directory.path()).unwrap().count(), 0);
    drop(idle);
}

#[tokio::test]
async fn an_answer_on_its_way_is_sent_even_at_shutdown() {
    let served = serve();
    let mut stream = UnixStream::connect(&served.path).await.unwrap();
    stream.write_all(b"stop").await.unwrap();
    // Accepted, but not read yet.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    served.shutdown.cancel();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, r#"{"message":"Stopping daemon","status":"ok"}"#);
    served.task.await.unwrap();
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_a_served_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "it is left behind");

    let listener = Listener::bind(&path).unwrap();
    let second = Listener::bind(&path).unwrap_err();
    assert_eq!(second.to_string(), format!("the control socket {} is served by another process", path.display()));
    assert!(path.exists());
    drop(listener);

    std::fs::write(&path, "no socket").unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("{} is in the way of the control socket and is no socket", path.display()));
    assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
}

#[tokio::test]
async fn somebody_elses_socket_at_our_path_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = Listener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
    drop(other);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_path_too_long_for_an_address_is_served_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("control.sock");
    let listener = Listener::bind(&path).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(listener.serve(Fake, shutdown.clone()));
    let asked = path.clone();
    let answer = tokio::task::spawn_blocking(move || client::request(&asked, Command::Pause)).await.unwrap().unwrap();
    assert_eq!(answer["message"], "Daemon paused");
    shutdown.cancel();
    task.await.unwrap();
    assert!(!path.exists());
}

#[test]
fn the_client_names_what_it_does_not_find() {
    let missing = client::request(Path::new("/nonexistent/control.sock"), Command::Status).unwrap_err();
    assert_eq!(missing.to_string(), "Daemon control socket not found: /nonexistent/control.sock");
}

#[test]
fn a_daemon_that_hangs_up_without_an_answer_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let error = client::request(&path, Command::Status).unwrap_err();
    assert!(matches!(error, client::RequestError::Answer(_) | client::RequestError::Talk(_)), "{error:?}");
    server.join().unwrap();
}

#[test]
fn no_command_is_the_beginning_of_another() {
    // Otherwise a word could not be answered before its end.
    for &a in Command::ALL {
        for &b in Command::ALL {
            assert!(a == b || !b.as_str().starts_with(a.as_str()));
        }
    }
}
