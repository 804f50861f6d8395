// SPDX-License-Identifier: Apache-2.0
//! Tests of the sidecar: a real socket and real files; the API server is simulated.

use std::path::{Path, PathBuf};

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tower_test::mock;

use super::*;
use crate::cluster::snapshot::refused_socket;

type ApiServer = mock::Handle<Request<Body>, Response<Body>>;

struct Stage {
    run: TempDir,
    output: TempDir,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    api_server: ApiServer,
}

impl Stage {
    fn open(refuse_socket: bool) -> Self {
        let (run, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(output.path().join(".daemon")).unwrap();
        if refuse_socket {
            // A directory in the socket's place: like a volume that refuses sockets.
            std::fs::create_dir(output.path().join(SOCKET)).unwrap();
        }
        let (service, api_server) = mock::pair::<Request<Body>, Response<Body>>();
        let identity = Identity {
            namespace: "migration".to_owned(),
            queue: "vmware-exit".to_owned(),
            queue_uid: "u-1".to_owned(),
            pod: "vmware-exit-watcher-0".to_owned(),
            queue_dir: PathBuf::new(),
            run_dir: run.path().to_owned(),
            secrets_dir: PathBuf::new(),
            output_dir: output.path().to_owned(),
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(super::run(Client::new(service, "migration"), identity, shutdown.clone()));
        Self { run, output, shutdown, task, api_server }
    }

    /// Acts as the watcher.
    fn tell(&self, locked: bool, change: impl FnOnce(&mut Snapshot)) {
        let mut stats = Snapshot::new(Timestamp::UNIX_EPOCH);
        stats.version = "1.2.3".to_owned();
        stats.queue_depth = 2;
        change(&mut stats);
        WatcherSnapshot { locked, stats }.write(self.run.path()).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.output.path().join(SOCKET)
    }

    fn stats(&self) -> PathBuf {
        self.output.path().join(STATS)
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), holds).await.expect("it comes to hold");
}

async fn ask(socket: &Path, request: &[u8]) -> Value {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

#[tokio::test]
async fn socket_and_statistics_exist_only_while_the_watcher_holds_its_locks() {
    let stage = Stage::open(false);
    stage.tell(false, |_| {});
    // Several polls, of which nothing must come.
    sleep(SNAPSHOT_POLL * 3).await;
    assert!(!stage.socket().exists() && !stage.stats().exists());

    stage.tell(true, |_| {});
    until(|| stage.socket().exists() && stage.stats().exists()).await;
    let report = SocketReport::read(stage.run.path()).unwrap().unwrap();
    assert_eq!(report, SocketReport { path: stage.socket(), refused: None });

    stage.tell(false, |_| {});
    until(|| !stage.socket().exists()).await;
    stage.end().await;
}

#[tokio::test]
async fn every_form_of_a_request_is_answered_as_on_one_host() {
    let stage = Stage::open(false);
    stage.tell(true, |stats| stats.run_state = RunState::Draining);
    until(|| stage.socket().exists()).await;
    let status = json!({
        "status": "ok", "paused": false, "draining": true, "stopping": false,
        "queue_depth": 2, "active_jobs": 0, "version": "1.2.3",
    });
    for request in
        [b"status".as_slice(), b"status\n", br#"{"command":"status"}"#, b" {\"command\":\"status\",\"x\":1}\n"]
    {
        assert_eq!(ask(&stage.socket(), request).await, status);
    }
    for request in [b"5".as_slice(), b"null", b"\xff\xfe", b"restart\n", b"{}", br#""status""#] {
        let answer = ask(&stage.socket(), request).await;
        assert_eq!((&answer["status"], answer["available_commands"].as_array().unwrap().len()), (&json!("error"), 6));
    }
    let answer = ask(&stage.socket(), b"stats").await;
    assert_eq!((&answer["status"], &answer["stats"]["current_queue_depth"]), (&json!("ok"), &json!(2)));
    stage.end().await;
}

#[tokio::test]
async fn the_statistics_follow_each_completion_with_the_keys_of_one_host() {
    let stage = Stage::open(false);
    stage.tell(true, |_| {});
    until(|| stage.stats().exists()).await;
    stage.tell(true, |stats| stats.totals.count_failure("a.vmdk", Timestamp::UNIX_EPOCH));
    let read = || serde_json::from_slice::<Value>(&std::fs::read(stage.stats()).unwrap()).unwrap();
    until(|| read()["total_failed"] == 1).await;
    let mut expected = Snapshot::new(Timestamp::UNIX_EPOCH);
    expected.totals.count_failure("a.vmdk", Timestamp::UNIX_EPOCH);
    let expected = serde_json::to_value(expected.file_report(Timestamp::now())).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&read()), keys(&expected));
    stage.end().await;
}

#[tokio::test]
async fn a_volume_that_takes_no_socket_is_told_and_the_shared_directory_has_it() {
    let stage = Stage::open(true);
    stage.tell(true, |_| {});
    let fallback = stage.run.path().join(FALLBACK_SOCKET_NAME);
    until(|| fallback.exists()).await;
    assert_eq!(ask(&fallback, b"status").await["status"], "ok");
    let refused = refused_socket(stage.run.path()).unwrap();
    assert!(refused.contains("in the way of the control socket"), "{refused}");
    stage.end().await;
}

#[tokio::test]
async fn a_command_is_a_patch_of_the_run_state_and_of_nothing_else() {
    let mut stage = Stage::open(false);
    stage.tell(true, |_| {});
    until(|| stage.socket().exists()).await;
    for (word, run_state, message) in [
        ("pause", "Paused", "Daemon paused"),
        ("resume", "Running", "Daemon resumed"),
        ("drain", "Draining", "Draining queue"),
        ("stop", "Stopped", "Stopping daemon"),
    ] {
        let socket = stage.socket();
        let asked = tokio::spawn(async move { ask(&socket, word.as_bytes()).await });
        let (request, respond) = stage.api_server.next_request().await.unwrap();
        assert_eq!(request.method(), "PATCH");
        let uri = request.uri().to_string();
        assert!(
            uri.starts_with("/apis/hyper2kvm.io/v1alpha1/namespaces/migration/hyperconversions/vmware-exit?"),
            "{uri}"
        );
        assert!(uri.contains("fieldManager=hyper2kvm-sidecar") && uri.contains("force=true"), "{uri}");
        let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
        assert_eq!(
            body,
            json!({
                "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
                "metadata": {"name": "vmware-exit", "uid": "u-1"}, "spec": {"runState": run_state},
            })
        );
        let object = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "vmware-exit"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}, "runState": run_state},
        });
        respond.send_response(Response::new(Body::from(object.to_string().into_bytes())));
        // The watcher obeys, so that the answer need not wait.
        stage.tell(true, |stats| stats.run_state = serde_json::from_value(json!(run_state)).unwrap());
        assert_eq!(asked.await.unwrap(), json!({"status": "ok", "message": message}));
    }
    stage.end().await;
}

#[tokio::test]
async fn a_refusal_of_the_api_server_is_told_in_its_own_words() {
    let mut stage = Stage::open(false);
    stage.tell(true, |_| {});
    until(|| stage.socket().exists()).await;
    let socket = stage.socket();
    let asked = tokio::spawn(async move { ask(&socket, b"pause").await });
    let (_, respond) = stage.api_server.next_request().await.unwrap();
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "uid mismatch", "reason": "Conflict",
        "code": 409,
    });
    let refusal = Response::builder().status(409).body(Body::from(status.to_string().into_bytes())).unwrap();
    respond.send_response(refusal);
    assert_eq!(
        asked.await.unwrap(),
        json!({
            "status": "error",
            "message": "The API server refused to change spec.runState of vmware-exit: uid mismatch",
        })
    );
    stage.end().await;
}
