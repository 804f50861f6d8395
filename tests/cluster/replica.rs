// SPDX-License-Identifier: Apache-2.0
//! The operator's own processes, beside the cluster, with credentials of any identity.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cluster, run};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// A process, ended with its test.
#[derive(Debug)]
pub(crate) struct Process {
    pub child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts `hyper2kvm-operator` with these arguments; its log goes to `log`.
    pub(crate) fn start(kubeconfig: &Path, words: &[&str], log: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_hyper2kvm-operator"))
            .args(words)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log).expect("a directory of ours"))
            .spawn()
            .expect("the operator starts");
        Self { child, log: log.to_owned() }
    }

    /// Its log so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `wanted` is true.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn() -> bool) {
        let since = Instant::now();
        while !wanted() {
            assert!(since.elapsed() < DEADLINE, "not {what}: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end; returns the exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.code();
            }
            assert!(since.elapsed() < DEADLINE, "it goes on: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, as the kubelet does.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child of ours");
    }
}

/// A controller.
#[derive(Debug)]
pub(crate) struct Replica {
    pub process: Process,
    address: SocketAddr,
}

impl Replica {
    /// Starts one under this name, for these namespaces; its lease lies in the first.
    pub(crate) fn start(kubeconfig: &Path, namespaces: &[&str], name: &str, place: &Path) -> Self {
        Self::watching(kubeconfig, &["--watch-namespaces", &namespaces.join(",")], namespaces[0], name, place)
    }

    /// Starts one for every namespace there is.
    pub(crate) fn everywhere(kubeconfig: &Path, lease_namespace: &str, name: &str, place: &Path) -> Self {
        Self::watching(kubeconfig, &[], lease_namespace, name, place)
    }

    fn watching(kubeconfig: &Path, watched: &[&str], lease_namespace: &str, name: &str, place: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let listen = address.to_string();
        let words =
            ["controller", "--image=127.0.0.1:9/hyper2kvm:1", "--listen", &listen, "--page", "--identity", name];
        let words = [&words[..], &["--namespace", lease_namespace], watched].concat();
        Self { process: Process::start(kubeconfig, &words, &place.join(format!("{name}.log"))), address }
    }

    /// Status and text of an answer; `None` while it doesn't listen.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    pub(crate) fn leads(&self) -> bool {
        self.get("/metrics").is_some_and(|(_, text)| text.lines().any(|line| line == "hyper2kvm_leader 1"))
    }

    /// Why it isn't ready, in its own words.
    pub(crate) fn waits_for(&self) -> Option<String> {
        self.get("/readyz").filter(|(status, _)| *status == 503).map(|(_, why)| why.trim().to_owned())
    }
}

/// A kubeconfig file for `user` (as kubeconfigs describe one), of this cluster or of another server.
pub(crate) fn kubeconfig(cluster: &Cluster, user: Option<Value>, server: Option<&str>, file: &Path) -> PathBuf {
    let text = run(cluster.kubectl().args(["config", "view", "--minify", "--raw", "-o", "json"]));
    let mut config: Value = serde_json::from_str(&text).expect("kubectl prints JSON");
    if let Some(user) = user {
        config["users"][0]["user"] = user;
    }
    if let Some(server) = server {
        config["clusters"][0]["cluster"]["server"] = json!(server);
    }
    fs::write(file, config.to_string()).expect("a directory of ours");
    file.to_owned()
}

/// A kubeconfig file for a service account.
pub(crate) fn kubeconfig_of(cluster: &Cluster, namespace: &str, account: &str, file: &Path) -> PathBuf {
    let token = run(cluster.kubectl().args(["-n", namespace, "create", "token", account]));
    kubeconfig(cluster, Some(json!({"token": token.trim()})), None, file)
}
