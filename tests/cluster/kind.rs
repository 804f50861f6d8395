// SPDX-License-Identifier: Apache-2.0
//! `kind/drop.sh` against a real API server: a `docker` in front of it works on a directory instead of a node, and the
//! test says how each conversion ends. `kind/up.sh` itself needs an engine, and no test here runs it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{self, Cluster, Namespace, Need};

/// `docker cp` and `docker exec`, with the node's files below `$NODE`. As docker's own, `cp` copies a link as one.
const DOCKER: &str = r#"#!/usr/bin/env bash
set -euo pipefail
case $1 in
  cp) cp -P "$2" "$NODE/${3#*:}" ;;
  exec)
    shift 2
    for argument; do
      shift
      case $argument in /var/hyper2kvm/*) argument=$NODE$argument ;; esac
      set -- "$@" "$argument"
    done
    exec "$@" ;;
esac
"#;

/// A node that is a directory, and the programs that `kind/drop.sh` finds.
struct Desk {
    namespace: Namespace,
    directory: tempfile::TempDir,
}

impl Desk {
    fn new(cluster: &'static Cluster, test: &str) -> Self {
        let namespace = cluster.namespace(test);
        let directory = tempfile::tempdir().unwrap();
        let desk = Self { namespace, directory };
        fs::create_dir_all(desk.queue()).unwrap();
        let programs = desk.path("programs");
        fs::create_dir(&programs).unwrap();
        // The image's user is nobody who must be here.
        for (program, script) in [("docker", DOCKER), ("chown", "#!/bin/sh\n")] {
            let path = programs.join(program);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let kubeconfig = desk.path("kubeconfig");
        fs::copy(&cluster.kubeconfig, &kubeconfig).unwrap();
        let part = |what: &str| {
            let path = format!("jsonpath={{.contexts[0].context.{what}}}");
            harness::run(cluster.kubectl().args(["config", "view", "--raw", "--output", &path]))
        };
        let (server, user) = (part("cluster"), part("user"));
        let mut context = cluster.kubectl();
        context.args(["config", "set-context", "kind-hyper2kvm", "--cluster", &server, "--user", &user]);
        harness::run(context.args(["--namespace", &desk.namespace.name]).env("KUBECONFIG", &kubeconfig));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn queue(&self) -> PathBuf {
        self.path("var/hyper2kvm/queue")
    }

    /// The script with an image, started.
    fn drop_image(&self, image: &Path, wait: u32) -> std::process::Child {
        let kubectl = PathBuf::from(self.namespace.cluster.kubectl().get_program());
        let beside = kubectl.parent().filter(|parent| parent.is_absolute()).unwrap_or(Path::new("/usr/local/bin"));
        let path = format!("{}:{}:/usr/bin:/bin", self.path("programs").display(), beside.display());
        Command::new(harness::in_tree("kind/drop.sh"))
            .arg(image)
            .env("PATH", path)
            .env("NODE", self.directory.path())
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("WAIT", wait.to_string())
            .env_remove("KIND_EXPERIMENTAL_PROVIDER")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A conversion of a source, with this status.
    fn conversion(&self, name: &str, source: &str, status: &Value) {
        let object = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
            "spec": {"queueRef": {"name": "demo"}, "source": {"path": source}, "conversion": {"outFormat": "qcow2"}},
        });
        self.namespace.apply(&object.to_string());
        let patch = json!({ "status": status }).to_string();
        let mut patching = self.namespace.kubectl();
        patching.args(["patch", "conversionjob", name, "--subresource=status", "--type=merge", "--patch", &patch]);
        harness::run(&mut patching);
    }

    /// Waits until a file has arrived in the queue, whole.
    fn arrived(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.queue().join(name).exists() {
            assert!(Instant::now() < deadline, "{name} was not brought");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, [7; 4096]).unwrap();
        path
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn failed(message: &str) -> Value {
    json!({"end": "Failed", "phase": "Failed", "failure": {
        "reason": "FormatMismatch", "class": "Permanent", "phase": "file_type_detection", "message": message, "suggestion": ""}})
}

#[test]
fn a_repeat_reports_its_own_conversion_and_a_failure_ends_it_with_the_reason() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let desk = Desk::new(cluster, "kind-repeat");
    desk.conversion("empty-1", "empty.raw", &json!({"end": "Succeeded", "phase": "Succeeded"}));
    let dropping = desk.drop_image(&desk.image("empty.raw"), 60);
    desk.arrived("empty.raw");
    desk.conversion("empty-2", "empty.raw", &failed("empty.raw: is no raw disk\nand a second line"));
    let output = dropping.wait_with_output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("empty-2: Failed: empty.raw: is no raw disk"), "{said}");
    assert!(said.contains("describe conversionjob empty-2"), "{said}");
}

#[test]
fn names_with_quotes_and_spaces_and_links_arrive_as_files() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let desk = Desk::new(cluster, "kind-names");
    let name = "bob's \"disk\" 1.vmdk";
    let link = desk.path(name);
    symlink(desk.image("target.vmdk"), &link).unwrap();
    let dropping = desk.drop_image(&link, 60);
    desk.arrived(name);
    desk.conversion("bob", name, &json!({"end": "Succeeded", "phase": "Succeeded"}));
    let output = dropping.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let brought = desk.queue().join(name);
    assert!(fs::symlink_metadata(&brought).unwrap().is_file());
    assert_eq!(fs::read(&brought).unwrap(), [7; 4096]);
}

#[test]
fn what_is_not_there_is_told_before_anything_is_brought() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let desk = Desk::new(cluster, "kind-missing");
    let output = desk.drop_image(&desk.path("nothing.vmdk"), 1).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("nothing.vmdk is not a file"), "{}", said(&output));
    let output = desk.drop_image(&desk.image("slow.raw"), 1).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no ConversionJob appeared for slow.raw"), "{}", said(&output));
    assert!(!desk.queue().join(".slow.raw.part").exists());
}
