//! Workers that their images have taken over: whatever one leaves, the watcher neither waits for it nor reads what is
//! not the worker's nor publishes it, and nothing of what lies elsewhere is told to anybody.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hyper2kvm::cluster::api::JobPhase;
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::harness::{Cluster, Need, binaries, in_tree, left_out, run};
use crate::stage::{Operator, Queue, files, reasons};

const CANARY: &str = "canary-71e0c4";

/// Where the watcher sees it.
const CANARY_FILE: &str = "/var/lib/hyper2kvm/queue/.canary";

/// An image of the real operator, whose worker obeys its images.
fn image(cluster: &Cluster) -> Option<String> {
    let place = tempfile::tempdir_in(binaries()).unwrap();
    for program in ["hyper2kvmctl", "hyper2kvm-operator"] {
        fs::hard_link(binaries().join(program), place.path().join(program)).unwrap();
    }
    let source = in_tree("tests/cluster/compromised.c");
    run(Command::new("cc").args(["-Os", "-Wall", "-o"]).arg(place.path().join("hyper2kvm")).arg(source));
    cluster.image_of(place.path())
}

/// metadata.json that speaks of this disk, in a line of orders.
fn metadata(file: &str) -> String {
    let metadata = json!({
        "contractVersion": 1, "id": "%", "toolVersion": "0", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": "x.img", "sizeBytes": 4096, "format": "raw"},
        "disks": [{"file": file, "format": "qcow2", "virtualSizeBytes": 4096, "allocatedBytes": 512, "sourceMember": "x.img"}],
    });
    format!("write @/metadata.json {metadata}")
}

/// Whether anything below a directory bears this text; links are not followed, and nothing is waited for.
fn tells(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().map(Result::unwrap).any(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => tells(&entry.path(), text),
        kind if kind.is_file() => String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).contains(text),
        _ => false,
    })
}

#[tokio::test]
async fn what_a_compromised_worker_leaves_is_neither_waited_for_nor_read_nor_published() {
    let Some(cluster) = Cluster::shared(Need::Node) else { return };
    if cluster.state.is_none() {
        return left_out("another's cluster takes no image of ours");
    }
    let Some(image) = image(cluster) else { return };
    let operator = Arc::new(Operator::install(cluster, &image, cluster.namespace("compromised"), None));
    let queue = Queue::prepare(&operator, "compromised", (65532, 0)).await;
    fs::write(queue.queue(".canary"), CANARY.repeat(64)).unwrap();
    queue.declare(&json!({"maxConcurrentJobs": 4, "retryPolicy": {"enabled": false}}), &json!({}));
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
    for (name, _) in &refused {
        let name = format!("{name}.img");
        let over = queue.ended(&name, JobPhase::Failed).await;
        assert_eq!(reasons(&over).len(), 1, "{name}");
        assert_eq!(over.status.unwrap().state.failure.unwrap().reason, Reason::Internal, "{name}");
        assert_eq!(queue.error_file(&name)["reason"], json!(Reason::Internal));
    }
    queue.counted([1, 7, 0, 0, 0]).await;
    assert_eq!(files(&queue.output("")).iter().filter(|path| !path.starts_with('.')).count(), 2);
    queue.eventually("tidied up", || fs::read_dir(queue.output(".work")).unwrap().next().is_none()).await;

    // The watcher lived through it, and told nobody.
    let pod = queue.api::<Pod>().get(&queue.pod()).await.unwrap();
    let restarts = pod.status.unwrap().container_statuses.unwrap()[0].restart_count;
    assert_eq!(restarts, 0);
    for words in [&["get", "events,hcj,hconv,jobs,pods", "-o", "yaml"][..], &["logs", &queue.pod(), "--all-containers"]]
    {
        assert!(!run(queue.kubectl().args(words)).contains(CANARY));
    }
    assert!(!tells(&queue.output(""), CANARY) && !tells(&queue.queue(".errors"), CANARY));
}
