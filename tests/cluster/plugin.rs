// SPDX-License-Identifier: Apache-2.0
//! `kubectl hyper2kvm` with a real API server: the commands that need no pod.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::harness::{self, Cluster, Namespace, Need};

/// The plugin in a namespace, started as kubectl starts it.
fn plugin(cluster: &Cluster, namespace: &Namespace, arguments: &[&str]) -> Output {
    command(cluster, namespace, arguments).output().expect("a built binary")
}

fn command(cluster: &Cluster, namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl"));
    command.arg0("/usr/local/bin/kubectl-hyper2kvm").env("KUBECONFIG", &cluster.kubeconfig);
    command.args(["--namespace", &namespace.name]).args(arguments);
    command
}

/// An HTTP proxy for one connection: its address, and the target that was requested.
fn proxy() -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxying = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let asked = text(&head).strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
        let mut server = TcpStream::connect(&asked).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Both)
        });
        // Either side may end it, in any way.
        let _ = io::copy(&mut server, &mut client);
        asked
    });
    (address, proxying)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn queue(namespace: &Namespace, name: &str) {
    let object = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": name},
        "spec": {
            "queue": {"claimName": "images", "subPath": "queue"}, "output": {"claimName": "images", "subPath": "output"},
        },
    });
    namespace.apply(&object.to_string());
}

fn conversion(namespace: &Namespace, name: &str, queue: &str, status: &Value) {
    let object = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
        "spec": {"queueRef": {"name": queue}, "source": {"path": "web01.ova"}, "conversion": {"outFormat": "raw"}},
    });
    namespace.apply(&object.to_string());
    let patch = json!({ "status": status }).to_string();
    harness::run(namespace.kubectl().args([
        "patch",
        "hcj",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ]));
}

fn run_state(namespace: &Namespace, queue: &str) -> String {
    harness::run(namespace.kubectl().args(["get", "hconv", queue, "-o", "jsonpath={.spec.runState}"]))
}

#[test]
fn the_four_words_change_what_is_asked_of_a_queue() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("plugin-state");
    queue(&namespace, "q");
    for (word, state) in [("pause", "Paused"), ("drain", "Draining"), ("stop", "Stopped"), ("resume", "Running")] {
        let said = done(&plugin(cluster, &namespace, &[word, "q"]));
        assert!(said.starts_with("q "), "{said}");
        assert_eq!(run_state(&namespace, "q"), state);
    }
    let object: Value =
        serde_json::from_str(&done(&plugin(cluster, &namespace, &["pause", "q", "-o", "json"]))).unwrap();
    assert_eq!(object["spec"]["runState"], "Paused");
    let shown = done(&plugin(cluster, &namespace, &["status"]));
    assert!(shown.contains("Paused") && shown.contains("kubectl hyper2kvm resume q"), "{shown}");
    let figures: Value =
        serde_json::from_str(&done(&plugin(cluster, &namespace, &["stats", "q", "-o", "json"]))).unwrap();
    assert!(figures.is_object());
}

#[test]
fn the_way_to_the_api_server_leads_through_the_proxy_that_is_set() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("plugin-proxy");
    let (address, asked) = proxy();
    let mut command = command(cluster, &namespace, &["status"]);
    let said = done(&command.env("HTTPS_PROXY", format!("http://{address}")).output().unwrap());
    assert!(said.starts_with("No HyperConversion in namespace "), "{said}");
    let asked = asked.join().unwrap();
    let kubeconfig = std::fs::read_to_string(&cluster.kubeconfig).unwrap();
    assert!(kubeconfig.contains(&format!("https://{asked}")), "{asked}");
}

#[test]
fn what_is_not_there_is_told_with_the_next_step() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("plugin-missing");
    let said = refused(&plugin(cluster, &namespace, &["pause", "nowhere"]));
    assert!(
        said.starts_with(&format!("Error: no HyperConversion nowhere in namespace {}; ", namespace.name)),
        "{said}"
    );
    let said = refused(&plugin(cluster, &namespace, &["retry", "nothing"]));
    assert!(said.starts_with("Error: no ConversionJob nothing in namespace "), "{said}");
    let said = refused(&plugin(cluster, &namespace, &["--context", "elsewhere", "status"]));
    assert!(said.contains("kubectl config get-contexts"), "{said}");
    assert!(done(&plugin(cluster, &namespace, &["status"])).starts_with("No HyperConversion in namespace "));
    queue(&namespace, "q");
    let file = env!("CARGO_BIN_EXE_hyper2kvmctl");
    let said = refused(&plugin(cluster, &namespace, &["put", file, "q"]));
    assert!(said.starts_with("Error: cannot run anything in pod q-watcher-0: "), "{said}");
}

#[test]
fn a_retry_is_a_new_conversion_of_the_source_where_it_lies_now() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("plugin-retry");
    queue(&namespace, "q");
    conversion(&namespace, "web01-3fa9c1d2", "q", &json!({"phase": "Failed", "sourceLocation": ".errors/web01.ova"}));
    conversion(&namespace, "web02-3fa9c1d2", "q", &json!({"phase": "Converting"}));

    let old = || harness::run(namespace.kubectl().args(["get", "hcj", "web01-3fa9c1d2", "-o", "json"]));
    let before = old();
    let made: Value =
        serde_json::from_str(&done(&plugin(cluster, &namespace, &["retry", "web01-3fa9c1d2", "-o", "json"]))).unwrap();
    assert_eq!(old(), before);
    assert_eq!(
        made["spec"],
        json!({"queueRef": {"name": "q"}, "source": {"path": ".errors/web01.ova"}, "conversion": {"outFormat": "raw"}})
    );
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web01-") && name != "web01-3fa9c1d2", "{name}");

    let said = refused(&plugin(cluster, &namespace, &["retry", "web02-3fa9c1d2"]));
    assert!(said.contains("is not finished"), "{said}");
    let said = refused(&plugin(cluster, &namespace, &["get", "web02-3fa9c1d2", "/nonexistent"]));
    assert!(said.contains("has no disks (yet)"), "{said}");

    let under_way = done(&plugin(cluster, &namespace, &["top", "q"]));
    assert!(under_way.contains(name) && under_way.contains("Converting"), "{under_way}");
    assert!(!under_way.contains("web01-3fa9c1d2"), "it is finished: {under_way}");
}
