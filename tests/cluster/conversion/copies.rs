// SPDX-License-Identifier: Apache-2.0
//! The commands by which the plugin says that disks are copied out of their claims, run as they are printed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::plugin_command;
use super::stage::Queue;
use crate::harness::{Cluster, in_tree, left_out, run};

/// The image that the commands name, as a registry has it.
const IMAGE: &str = "docker.io/library/busybox:latest";
const BUSYBOX: &str = "/bin/busybox";

/// Brings busybox into the node; `false` where this machine has none that runs by itself.
fn load(cluster: &Cluster) -> bool {
    if !Path::new(BUSYBOX).exists() {
        left_out("copies of disks: busybox is not installed");
        return false;
    }
    let place = tempfile::tempdir().unwrap();
    let bin = place.path().join("tree/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
    for name in ["sleep", "head"] {
        symlink("busybox", bin.join(name)).unwrap();
    }
    let archive = place.path().join("busybox.tar");
    run(Command::new(in_tree("tests/cluster/archive.sh")).arg(&archive).arg(IMAGE).arg(place.path().join("tree")));
    let state = cluster.state.as_ref().expect("a node of our own");
    run(Command::new(in_tree("tests/cluster/load.sh")).arg(&archive).env("HYPER2KVM_CLUSTER", state));
    true
}

/// Does what `get` says of a conversion; its disks, in the order of their claims' names. `None` where it can't be tried.
pub(super) fn copied(queue: &Queue, conversion: &str, claims: &[&str]) -> Option<Vec<Vec<u8>>> {
    if !load(queue.operator.cluster) {
        return None;
    }
    let here = tempfile::tempdir().unwrap();
    let asked = plugin_command(queue, &["get", conversion, "disks"]).current_dir(here.path()).output().unwrap();
    let said = String::from_utf8(asked.stderr).unwrap();
    assert_eq!((asked.status.code(), fs::read_dir(here.path()).unwrap().count()), (Some(1), 0), "{said}");
    let (_, commands) = said.split_once(":\n").expect("commands come after a word about them");

    let kubectl = queue.kubectl();
    let beside = Path::new(kubectl.get_program()).parent().expect("it lies in a directory");
    let path = format!("{}:{}", beside.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euxc", commands]).current_dir(here.path());
    shell.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path);
    run(&mut shell);
    Some(claims.iter().map(|claim| fs::read(here.path().join(format!("{claim}.img"))).unwrap()).collect())
}
