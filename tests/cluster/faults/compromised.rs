// SPDX-License-Identifier: Apache-2.0
//! Workers that their images have taken over. Whatever one leaves, the watcher does not wait for it, reads nothing
//! that is not the worker's, publishes none of it, and reveals nothing from elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hyper2kvm::cluster::api::JobPhase;
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use crate::conversion::stage::{Operator, Queue, files, reasons};
use crate::harness::{Cluster, Need, binaries, in_tree, run};

const CANARY: &str = "canary-71e0c4";

/// The canary's path for the watcher.
const CANARY_FILE: &str = "/var/lib/hyper2kvm/queue/.canary";

/// Files that the watcher reads, each with a text that occurs nowhere else. `%` stands for the conversion's name.
const ITS_OWN: [(&str, &str, &str); 3] = [
    ("claim", "/var/lib/hyper2kvm/queue/.processing/%/claim.json", "claimedAt"),
    ("ledger", "/var/lib/hyper2kvm/output/.daemon/deduplication.db", "SQLite format 3"),
    ("environment", "/proc/self/environ", "KUBERNETES_SERVICE_PORT="),
];
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// An image of the real operator with a worker that obeys the disk image.
fn image(cluster: &Cluster) -> Option<String> {
    let place = tempfile::tempdir_in(binaries()).unwrap();
    for program in ["hyper2kvmctl", "hyper2kvm-operator"] {
        fs::hard_link(binaries().join(program), place.path().join(program)).unwrap();
    }
    let source = in_tree("tests/cluster/compromised.c");
    run(Command::new("cc").args(["-Os", "-Wall", "-o"]).arg(place.path().join("hyper2kvm")).arg(source));
    cluster.image_of(place.path())
}

/// metadata.json that names this disk, as a line of orders.
fn metadata(file: &str) -> String {
    let metadata = json!({
        "contractVersion": 1, "id": "%", "toolVersion": "0", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": "x.img", "sizeBytes": 4096, "format": "raw"},
        "disks": [{"file": file, "format": "qcow2", "virtualSizeBytes": 4096, "allocatedBytes": 512, "sourceMember": "x.img"}],
    });
    format!("write @/metadata.json {metadata}")
}

/// The token of a pod on our node, as the kubelet keeps it.
pub(super) fn token(cluster: &Cluster, pod: &Pod) -> String {
    let pods = cluster.state.as_ref().unwrap().join("kubelet/pods");
    let volumes = pods.join(pod.uid().unwrap()).join("volumes/kubernetes.io~projected");
    let volume = fs::read_dir(&volumes).unwrap().next().unwrap().unwrap();
    fs::read_to_string(volume.path().join("token")).unwrap()
}

/// Whether any file below a directory contains this text. Follows no links, and never blocks.
fn tells(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().map(Result::unwrap).any(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => tells(&entry.path(), text),
        kind if kind.is_file() => String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).contains(text),
        _ => false,
    })
}

#[tokio::test]
async fn what_a_compromised_worker_leaves_is_neither_waited_for_nor_read_nor_published() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(image) = image(cluster) else { return };
    let operator = Arc::new(Operator::install(cluster, &image, cluster.namespace("compromised"), None));
    let queue = Queue::prepare(&operator, "compromised", (65532, 0)).await;
    fs::write(queue.queue(".canary"), CANARY.repeat(64)).unwrap();
    queue.declare(&json!({"maxConcurrentJobs": 8, "retryPolicy": {"enabled": false}}), &json!({}));
    queue.ready();
    let honest = metadata("x.qcow2");
    let refused: [(&str, &[&str]); 7] = [
        ("swollen", &["sparse progress.json 1073741824", "sparse @/metadata.json 1073741824", "wait 3"]),
        ("waiting", &["fifo progress.json", "fifo @/metadata.json", "wait 3"]),
        (
            "linked",
            &[&format!("link progress.json {CANARY_FILE}"), &format!("link @/metadata.json {CANARY_FILE}"), "wait 3"],
        ),
        ("linked-disk", &[&honest, &format!("link @/x.qcow2 {CANARY_FILE}")]),
        ("waiting-disk", &[&honest, "fifo @/x.qcow2"]),
        ("outside", &[&metadata("../../../../queue/.canary")]),
        ("failed", &[&format!("link failure.json {CANARY_FILE}"), "exit 10"]),
    ];
    for (name, orders) in &refused {
        queue.bring(&format!("{name}.img"), (orders.join("\n") + "\n").as_bytes());
    }
    let mut refused: Vec<String> = refused.iter().map(|(name, _)| format!("{name}.img")).collect();
    // Links in place of what the watcher reads of an attempt, and in place of its disk.
    for (name, target) in ITS_OWN.map(|(name, target, _)| (name, target)).into_iter().chain([("token", TOKEN)]) {
        let files = ["progress.json", "failure.json", "@/metadata.json"].map(|file| format!("link {file} {target}"));
        let disk = format!("{honest}\nlink @/x.qcow2 {target}");
        for (kind, orders) in [("read", format!("{}\nwait 2", files.join("\n"))), ("disk", disk)] {
            let name = format!("{name}-{kind}.img");
            queue.bring(&name, orders.as_bytes());
            refused.push(name);
        }
    }
    let planted =
        [&honest, "write @/x.qcow2 mine", "fifo @/fifo", "mkdir @/more", &format!("link @/more/link {CANARY_FILE}")];
    queue.bring("surrounded.img", planted.map(str::to_owned).join("\n").as_bytes());

    let over = queue.ended("surrounded.img", JobPhase::Succeeded).await.status.unwrap();
    let published = queue.output(&over.outputs[0].path);
    assert_eq!(fs::read(&published).unwrap(), b"mine");
    let names = fs::read_dir(published.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["metadata.json", "x.qcow2"]);
    for name in &refused {
        let over = queue.ended(name, JobPhase::Failed).await;
        assert_eq!(reasons(&over).len(), 1, "{name}");
        assert_eq!(over.status.unwrap().state.failure.unwrap().reason, Reason::Internal, "{name}");
        assert_eq!(queue.error_file(name)["reason"], json!(Reason::Internal));
    }
    queue.counted([1, 15, 0, 0, 0]).await;
    assert_eq!(files(&queue.output("")).iter().filter(|path| !path.starts_with('.')).count(), 2);
    queue.eventually("tidied up", || fs::read_dir(queue.output(".work")).unwrap().next().is_none()).await;

    // The watcher survived, and logged nothing of it.
    let pod = queue.api::<Pod>().get(&queue.pod()).await.unwrap();
    assert_eq!(pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].restart_count, 0);
    let token = token(cluster, &pod);
    let said = [&["get", "events,hcj,hconv,jobs,pods", "-o", "yaml"][..], &["logs", &queue.pod(), "--all-containers"]]
        .map(|words| run(queue.kubectl().args(words)));
    let days = files(&queue.output("")).into_iter().filter(|path| !path.starts_with('.'));
    let days: BTreeSet<_> = days.map(|path| queue.output(path.split('/').next().unwrap())).collect();
    for secret in ITS_OWN.map(|(.., text)| text).into_iter().chain([CANARY, &token]) {
        assert!(!said.iter().any(|said| said.contains(secret)), "{secret} is told");
        assert!(!days.iter().any(|day| tells(day, secret)) && !tells(&queue.queue(".errors"), secret), "{secret}");
    }
    // Each text is where its link points, and the search would find it.
    assert!(tells(&queue.output(".daemon"), ITS_OWN[1].2) && token.split('.').count() == 3);
}
