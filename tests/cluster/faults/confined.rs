// SPDX-License-Identifier: Apache-2.0
//! What a worker's pod sees, and how it is ended, on claims that only one node may mount; what a watcher's token may
//! do.

use std::fs;
use std::path::Path;

use hyper2kvm::cluster::api::{HyperConversion, JobPhase};
use hyper2kvm::conversion::Reason;
use hyper2kvm::conversion::admission::RunState;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::config::AuthInfo;
use serde_json::{Value, json};

use super::HANG;
use super::compromised::token;
use crate::conversion::disks::guest;
use crate::conversion::stage::{Operator, Queue, pod_of, reasons, runs};
use crate::harness::{Cluster, Need, run};

/// The mounts of a process below its root: mount point, the path within the volume, and whether it is writable.
fn mounts(process: u32) -> Vec<(String, String, bool)> {
    // proc_pid_mountinfo(5): ID, parent, device, root, mount point, options.
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|f| (f[4].to_owned(), f[3].to_owned(), f[5].split(',').any(|option| option == "rw"))).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_worker_sees_its_files_and_no_others_beside_its_watcher_until_its_deadline() {
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let Some(operator) = Operator::shared() else { return };
    let queue = Queue::prepare_with(&operator, "confined", (65532, 0), "ReadWriteOnce").await;
    operator.namespace.claim("confined-output", "ReadWriteOnce", &queue.volume);
    let spec = json!({
        "output": {"claimName": "confined-output", "subPath": "output"},
        "conversion": {"activeDeadlineSeconds": 20},
        "maxConcurrentJobs": 1,
    });
    queue.declare(&spec, &json!({HANG: "1"}));
    queue.ready();
    queue.bring("disk.img", &guest(1, 91));
    let running = queue.conversion("disk.img", "running", runs).await;
    queue.bring("other.img", &guest(1, 92));

    let name = pod_of(&running).unwrap();
    let pod: Value = serde_json::from_str(&run(queue.kubectl().args(["get", "pod", &name, "-o", "json"]))).unwrap();
    let terms = &pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(terms[0]["topologyKey"], "kubernetes.io/hostname", "{terms}");
    let process = operator.namespace.process_of(&pod, "worker");
    let root = Path::new("/proc").join(process.to_string()).join("root");
    assert_eq!(names(&root.join("claim")), ["claim.json", "disk.img"]);
    assert!(!root.join("var/run/secrets").exists(), "it has no token");
    let mounts = mounts(process);
    let volume = queue.volume.file_name().unwrap().to_str().unwrap();
    let of_volume: Vec<_> = mounts.iter().filter(|(_, shown, _)| shown.contains(volume)).collect();
    let conversion = running.metadata.name.as_deref().unwrap();
    assert_eq!(of_volume.len(), 2, "{mounts:?}");
    for (path, end, is_writable) in [
        ("/claim", format!("/queue/.processing/{conversion}"), false),
        ("/work", format!("/output/.work/{conversion}/1"), true),
    ] {
        let mount = of_volume.iter().find(|(at, ..)| at == path).unwrap_or_else(|| panic!("{mounts:?}"));
        assert!(mount.1.ends_with(&end) && mount.2 == is_writable, "{mount:?}");
    }
    assert!(mounts.iter().any(|(at, _, is_writable)| at == "/" && !is_writable), "{mounts:?}");

    let over = queue.ended("disk.img", JobPhase::Failed).await;
    assert_eq!(reasons(&over), [Some(Reason::DeadlineExceeded)]);
    assert_eq!(queue.error_file("disk.img")["reason"], json!("DeadlineExceeded"));
    assert_eq!(fs::read(queue.queue(".errors/disk.img")).unwrap(), guest(1, 91));
}

#[tokio::test]
async fn a_watcher_s_own_token_changes_its_queue_s_run_state_and_nothing_else() {
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let Some(queue) = Queue::open("token", json!({}), json!({})).await else { return };
    let cluster = queue.operator.cluster;
    let pod = queue.api::<Pod>().get(&queue.pod()).await.unwrap();
    let mut config = cluster.config().await;
    config.auth_info = AuthInfo::default();
    config.auth_info.token = Some(token(cluster, &pod).into());
    let client = Client::try_from(config).unwrap();
    let api: Api<HyperConversion> = Api::namespaced(client, &queue.operator.namespace.name);
    let change = async |name: &str, change: Value| {
        let done = api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    for (wish, what) in [
        (json!({"spec": {"maxConcurrentJobs": 9}}), "spec but runState"),
        (json!({"spec": {"conversion": {"checksum": true}}}), "spec but runState"),
        (json!({"metadata": {"labels": {"a": "b"}}}), "metadata"),
    ] {
        let refused = change(&queue.name, wish.clone()).await.unwrap_err();
        assert!(refused.contains(&format!("a watcher changes nothing of a HyperConversion's {what}")), "{refused}");
    }
    let paused = json!({"spec": {"runState": "Paused"}});
    change(&queue.name, paused.clone()).await.unwrap();
    queue.until::<HyperConversion>(&queue.name, "paused", |q| q.spec.run_state == RunState::Paused).await;
    let refused = change("another", paused).await.unwrap_err();
    assert!(refused.contains("is forbidden"), "{refused}");
}
