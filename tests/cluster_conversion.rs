//! The whole way on a real node: the chart's operator, a queue on a volume, worker pods of the real image.
#![cfg(feature = "cluster")]

#[path = "cluster/harness.rs"]
mod harness;
#[path = "images/ova.rs"]
mod ova;
#[path = "cluster_conversion/stage.rs"]
mod stage;
#[path = "images/vmdk.rs"]
mod vmdk;

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::run;
use hyper2kvm::cluster::api::JobPhase;
use kube::ResourceExt;
use serde_json::{Value, json};
use stage::{Queue, files};

/// A guest's disk of some MiB: data by its seed, and holes.
fn guest(mib: usize, seed: u64) -> Vec<u8> {
    let grain = usize::try_from(vmdk::GRAIN).unwrap();
    let mut disk = vec![0; mib << 20];
    let mut state = seed | 1;
    for (number, grain) in disk.chunks_mut(grain).enumerate() {
        if number % 3 == 1 {
            continue;
        }
        for word in grain.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
    disk
}

/// Whether a guest would find these bytes on the disk, by QEMU's word.
fn holds(disk: &Path, truth: &[u8]) {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return harness::left_out("comparing the disks: qemu-img is missing (Debian: qemu-utils)");
    }
    let raw = tempfile::NamedTempFile::new().unwrap();
    fs::write(raw.path(), truth).unwrap();
    let said = run(Command::new("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw"]).arg(disk).arg(raw.path()));
    assert!(said.contains("Images are identical."), "{}: {said}", disk.display());
}

#[tokio::test]
async fn an_appliance_that_is_brought_onto_the_volume_becomes_its_disks() {
    let Some(queue) = Queue::open("appliances", json!({}), json!({})).await else { return };
    let disks = [guest(24, 1), guest(9, 2)];
    let members: Vec<_> =
        disks.iter().map(|disk| vmdk::built(&vmdk::Sparse::stream_optimized(disk.len() as u64), disk)).collect();
    let appliance = ova::ova(
        "web01",
        &[
            ("web01-disk1.vmdk", &members[0], disks[0].len() as u64),
            ("web01-disk2.vmdk", &members[1], disks[1].len() as u64),
        ],
    );
    queue.bring("web01.ova", &appliance);

    let made = queue.conversion("web01.ova", "made", |_| true).await;
    let name = made.name_any();
    run(queue.kubectl().args(["wait", "--for=condition=Succeeded", "--timeout=90s", &format!("hcj/{name}")]));
    let over = queue.ended("web01.ova", JobPhase::Succeeded).await.status.unwrap();
    assert_eq!((over.attempt_count, over.state.attempts.len()), (Some(1), 1));
    assert_eq!(over.state.attempts[0].node_name.as_deref(), Some("node1"));

    // One published directory holds all of it.
    assert_eq!(over.outputs.len(), 2);
    let directory = Path::new(&over.outputs[0].path).parent().unwrap().to_owned();
    assert!(directory.is_relative() && directory.ends_with("web01"), "{}", directory.display());
    let published = queue.output(directory.to_str().unwrap());
    for (output, truth) in over.outputs.iter().zip(&disks) {
        assert_eq!(output.virtual_size_bytes, truth.len() as u64);
        holds(&queue.output(&output.path), truth);
    }
    let metadata: Value = serde_json::from_slice(&fs::read(published.join("metadata.json")).unwrap()).unwrap();
    assert_eq!((&metadata["id"], metadata["disks"].as_array().unwrap().len()), (&json!(name), 2));
    assert_eq!(files(&published).len(), 3, "{:?}", files(&published));

    // The source is archived, and nothing else is left of it.
    let archived = over.source_location.unwrap();
    assert_eq!(fs::read(queue.queue(&archived)).unwrap(), appliance);
    let left: Vec<_> = files(&queue.volume).into_iter().filter(|path| path.contains("web01")).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    queue.counted([1, 0, 0, 0, 0]).await;

    let columns = run(queue.kubectl().args(["get", "hcj", &name]));
    let columns: Vec<_> = columns.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(columns[0], ["NAME", "QUEUE", "SOURCE", "PHASE", "PROGRESS", "ATTEMPTS", "AGE"]);
    assert_eq!(columns[1][..4], [&name, "appliances", "web01.ova", "Succeeded"]);
    let columns = run(queue.kubectl().args(["get", "hconv", "appliances"]));
    let columns: Vec<_> = columns.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(columns[0], ["NAME", "READY", "STATE", "QUEUED", "ACTIVE", "SUCCEEDED", "FAILED", "AGE"]);
    assert_eq!(columns[1][..7], ["appliances", "True", "Running", "0", "0", "1", "0"]);
    for words in [&["get", "hconv"][..], &["get", "hcj"], &["get", "hcj", "-o", "wide"], &["get", "jobs,pods"]] {
        println!("$ kubectl {}\n{}", words.join(" "), run(queue.kubectl().args(words)));
    }
}

/// The plugin, started as kubectl starts it, with kubectl's own flags and environment.
fn plugin(queue: &Queue, words: &[&str]) -> String {
    use std::os::unix::process::CommandExt as _;

    let kubectl = queue.kubectl();
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl"));
    plugin.arg0("kubectl-hyper2kvm").args(kubectl.get_args()).args(words);
    plugin.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(&mut plugin)
}

#[tokio::test]
async fn what_the_plugin_puts_is_converted_and_what_it_gets_is_the_disk() {
    let Some(queue) = Queue::open("by-plugin", json!({}), json!({})).await else { return };
    let disk = guest(12, 3);
    let here = tempfile::tempdir().unwrap();
    let image = here.path().join("db01.vmdk");
    fs::write(&image, vmdk::built(&vmdk::Sparse::stream_optimized(disk.len() as u64), &disk)).unwrap();
    plugin(&queue, &["put", image.to_str().unwrap(), &queue.name]);

    let name = queue.ended("db01.vmdk", JobPhase::Succeeded).await.name_any();
    // An interrupted download goes on.
    let directory = here.path().join("disks");
    let whole = plugin(&queue, &["get", &name, directory.to_str().unwrap()]);
    assert!(whole.contains("db01.qcow2  sha256 "), "{whole}");
    holds(&directory.join("db01.qcow2"), &disk);
    let bytes = fs::read(directory.join("db01.qcow2")).unwrap();
    let again = here.path().join("again");
    fs::create_dir(&again).unwrap();
    fs::write(again.join("db01.qcow2.part"), &bytes[..bytes.len() / 2]).unwrap();
    plugin(&queue, &["get", &name, again.to_str().unwrap()]);
    assert!(fs::read(again.join("db01.qcow2")).unwrap() == bytes);

    let pod = format!("{}-watcher-0", queue.name);
    let words = ["exec", &pod, "-c", "sidecar", "--", "hyper2kvmctl", "stats"];
    let shown = run(queue.kubectl().args(words));
    assert!(shown.contains("  Processed: 1\n"), "{shown}");
}
