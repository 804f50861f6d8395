//! The whole way on a real node: the chart's operator, a queue on a volume, worker pods of the real image.
#![cfg(feature = "cluster")]

#[path = "cluster_conversion/disks.rs"]
mod disks;
#[path = "cluster/harness.rs"]
mod harness;
#[path = "images/ova.rs"]
mod ova;
#[path = "cluster_conversion/stage.rs"]
mod stage;
#[path = "images/vmdk.rs"]
mod vmdk;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use disks::{guest, holds};
use futures::StreamExt as _;
use harness::run;
use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::{Class, Reason};
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use stage::{Queue, files};

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

    // The same once more is not converted again.
    queue.bring("web01.ova", &appliance);
    let again = queue.ended("web01.ova", JobPhase::Duplicate).await;
    assert_ne!(again.name_any(), name);
    assert!(again.spec.duplicate_of.starts_with("web01.ova of "), "{}", again.spec.duplicate_of);
    run(queue.kubectl().args(["wait", "--for=condition=Succeeded", &format!("hcj/{}", again.name_any())]));
    assert_eq!(queue.jobs_of(&again).await, Vec::<String>::new());
    assert_eq!(fs::read(queue.queue(&again.status.unwrap().source_location.unwrap())).unwrap(), appliance);
    queue.counted([1, 0, 1, 0, 0]).await;

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

/// A QCOW2 disk that continues in another file.
fn backed_by(path: &str) -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    disk[..4].copy_from_slice(b"QFI\xfb");
    disk[4..8].copy_from_slice(&2u32.to_be_bytes());
    disk[8..16].copy_from_slice(&512u64.to_be_bytes());
    disk[16..20].copy_from_slice(&u32::try_from(path.len()).unwrap().to_be_bytes());
    disk[20..24].copy_from_slice(&16u32.to_be_bytes());
    disk[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    disk[36..40].copy_from_slice(&1u32.to_be_bytes());
    disk[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
    disk[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
    disk[56..60].copy_from_slice(&1u32.to_be_bytes());
    disk[512..512 + path.len()].copy_from_slice(path.as_bytes());
    disk
}

#[tokio::test]
async fn what_can_not_be_converted_fails_at_once_and_says_what_to_do() {
    const CANARY: &str = "canary-5d1c9a";
    let Some(queue) = Queue::open("refusals", json!({}), json!({})).await else { return };
    let disk = guest(1, 3);
    let mut corrupt = vmdk::built(&vmdk::Sparse::monolithic_sparse(disk.len() as u64), &disk);
    // The grain directory lies behind the end.
    corrupt[56..64].copy_from_slice(&0x00ff_ffff_u64.to_le_bytes());
    fs::write(queue.queue(".canary"), CANARY.repeat(1024)).unwrap();
    let extent = vmdk::descriptor("monolithicFlat", 4096)
        .replace("SPARSE \"generated-stream.vmdk\"", "FLAT \"../../.canary\" 0");
    queue.bring("corrupt.vmdk", &corrupt);
    queue.bring("outside.vmdk", extent.as_bytes());
    queue.bring("backed.qcow2", &backed_by("/var/lib/hyper2kvm/queue/.canary"));

    for (name, reason) in [
        ("corrupt.vmdk", Reason::Truncated),
        ("outside.vmdk", Reason::UnsafeReference),
        ("backed.qcow2", Reason::UnsafeReference),
    ] {
        let over = queue.ended(name, JobPhase::Failed).await;
        let status = over.status.clone().unwrap();
        let failure = status.state.failure.unwrap();
        assert_eq!((failure.reason, failure.class), (reason, Class::Permanent), "{name}: {}", failure.message);
        assert!(!failure.suggestion.is_empty() && failure.message.contains(name), "{failure:?}");
        assert!(status.state.attempts.len() <= 1 && status.state.next_retry_time.is_none(), "{name}");
        assert_eq!(status.source_location.as_deref(), Some(format!(".errors/{name}").as_str()));
        let error = queue.error_file(name);
        assert_eq!((&error["reason"], &error["suggestion"]), (&json!(reason), &json!(failure.suggestion)), "{error}");
        let told = run(queue.kubectl().args(["get", "hcj", &over.name_any(), "-o", "wide"]));
        assert!(told.contains(&reason.to_string()), "{told}");
    }
    assert_eq!(queue.conversions().await.len(), 3);
    queue.counted([0, 3, 0, 0, 0]).await;

    // What lies outside is told to nobody.
    let mut told: Vec<String> = files(&queue.volume.join("output"))
        .iter()
        .map(|path| String::from_utf8_lossy(&fs::read(queue.output(path)).unwrap()).into_owned())
        .collect();
    for words in
        [&["get", "events,hcj,hconv,jobs,pods", "-o", "yaml"][..], &["logs", "refusals-watcher-0", "--all-containers"]]
    {
        told.push(run(queue.kubectl().args(words)));
    }
    let workers = ListParams::default().labels("hyper2kvm.io/queue=refusals,app.kubernetes.io/component=worker");
    for pod in queue.api::<Pod>().list(&workers).await.unwrap() {
        told.push(run(queue.kubectl().args(["logs", &pod.name_any()])));
    }
    assert!(told.len() > 3 && !told.iter().any(|text| text.contains(CANARY)));
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_when_its_time_has_come() {
    let retries = json!({"retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 5}});
    let Some(queue) = Queue::open("retries", retries, json!({"test.hyper2kvm.io/fail": "SourceIO:1"})).await else {
        return;
    };
    let disk = guest(1, 4);
    queue.bring("disk.img", &disk);
    let parked = queue.queue(".errors/disk.img");
    let waiting = queue
        .conversion("disk.img", "parked", |c| {
            c.status.as_ref().is_some_and(|status| status.phase == Some(JobPhase::Retrying)) && parked.exists()
        })
        .await;
    let state = waiting.status.unwrap().state;
    assert_eq!(state.failure.as_ref().unwrap().reason, Reason::SourceIO);
    let due = state.next_retry_time.unwrap();
    let ended = state.attempts[0].end_time.unwrap();
    assert_eq!(due.duration_since(ended), SignedDuration::from_secs(5));
    let over = queue.ended("disk.img", JobPhase::Succeeded).await.status.unwrap();
    assert_eq!((over.attempt_count, over.state.staged, over.state.failure), (Some(2), 2, None));
    let reasons: Vec<_> = over.state.attempts.iter().map(|attempt| attempt.reason).collect();
    assert_eq!(reasons, [Some(Reason::SourceIO), None]);
    let late = over.state.attempts[1].start_time.unwrap().duration_since(due);
    assert!(late >= SignedDuration::ZERO && late < SignedDuration::from_secs(60), "{late:?}");
    assert_eq!(files(&queue.queue(".errors")), Vec::<String>::new());
    holds(&queue.output(&over.outputs[0].path), &disk);
    queue.counted([1, 0, 0, 1, 0]).await;
}

/// Watches Jobs; the most of them that were unfinished at one time.
fn most_at_once(api: Api<Job>, queue: &str) -> Arc<AtomicUsize> {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let of_queue = watcher::Config::default().labels(&format!("hyper2kvm.io/queue={queue}"));
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(api, of_queue));
        let mut open = HashMap::new();
        while let Some(event) = events.next().await {
            match event.unwrap() {
                Event::Apply(job) | Event::InitApply(job) => {
                    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
                    let is_over = |kind: &str| matches!(kind, "Complete" | "Failed");
                    let over =
                        conditions.is_some_and(|all| all.iter().any(|c| is_over(&c.type_) && c.status == "True"));
                    open.insert(job.name_any(), !over);
                }
                Event::Delete(job) => drop(open.remove(&job.name_any())),
                Event::Init | Event::InitDone => {}
            }
            seen.fetch_max(open.values().filter(|&&open| open).count(), Ordering::Relaxed);
        }
    });
    most
}

#[tokio::test]
async fn twelve_disks_are_converted_three_at_a_time() {
    let Some(queue) = Queue::open("many", json!({"maxConcurrentJobs": 3}), json!({})).await else { return };
    let most = most_at_once(queue.api(), "many");
    for number in 0..12 {
        queue.bring(&format!("disk{number}.img"), &guest(1, 100 + number));
    }
    queue.counted([12, 0, 0, 0, 0]).await;
    for number in 0..12 {
        let over = queue.ended(&format!("disk{number}.img"), JobPhase::Succeeded).await.status.unwrap();
        assert_eq!(over.state.attempts.len(), 1);
        holds(&queue.output(&over.outputs[0].path), &guest(1, 100 + number));
    }
    assert_eq!(most.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_paused_queue_takes_files_and_starts_nothing() {
    let Some(queue) = Queue::open("pausing", json!({}), json!({})).await else { return };
    queue.patch(&json!({"spec": {"runState": "Paused"}}));
    queue.bring("first.img", &guest(1, 5));
    let staged = |c: &ConversionJob| {
        c.status.as_ref().is_some_and(|status| status.state.staged == 1 && status.phase == Some(JobPhase::Queued))
    };
    let waiting = queue.conversion("first.img", "staged", staged).await;
    assert!(queue.ctl("status").contains("PAUSED"), "{}", queue.ctl("status"));
    assert_eq!(queue.jobs_of(&waiting).await, Vec::<String>::new());
    let said = queue.ctl("resume");
    assert!(said.starts_with('✅'), "{said}");
    queue.asked(RunState::Running).await;
    queue.ended("first.img", JobPhase::Succeeded).await;

    queue.ctl("pause");
    queue.asked(RunState::Paused).await;
    let columns = run(queue.kubectl().args(["get", "hconv", "pausing", "--no-headers"]));
    assert_eq!(columns.split_whitespace().nth(2), Some("Paused"), "{columns}");
    queue.bring("second.img", &guest(1, 6));
    let waiting = queue.conversion("second.img", "staged", staged).await;
    assert_eq!(queue.jobs_of(&waiting).await, Vec::<String>::new());
    queue.patch(&json!({"spec": {"runState": "Running"}}));
    queue.ended("second.img", JobPhase::Succeeded).await;
    let stats = queue.ctl("stats");
    assert!(stats.contains('2'), "{stats}");
}

#[tokio::test]
async fn a_worker_that_is_deleted_is_tried_again_and_a_conversion_that_is_deleted_is_cancelled() {
    let retries = json!({"retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 1}});
    let hang = |value: Value| json!({"metadata": {"annotations": {"test.hyper2kvm.io/hang": value}}});
    let Some(queue) = Queue::open("deleted", retries, hang(json!("1"))["metadata"]["annotations"].clone()).await else {
        return;
    };
    let runs = |c: &ConversionJob| {
        let state = c.status.as_ref().map(|status| status.state.clone()).unwrap_or_default();
        state.open_attempt().is_some_and(|open| open.pod_name.is_some())
    };
    let pod_of = |c: &ConversionJob| c.status.as_ref().unwrap().state.attempts[0].pod_name.clone().unwrap();

    queue.bring("killed.img", &guest(1, 7));
    let running = queue.conversion("killed.img", "running", runs).await;
    queue.patch(&hang(Value::Null));
    run(queue.kubectl().args(["delete", "pod", &pod_of(&running)]));
    let over = queue.ended("killed.img", JobPhase::Succeeded).await.status.unwrap();
    let reasons: Vec<_> = over.state.attempts.iter().map(|attempt| attempt.reason).collect();
    assert_eq!(reasons, [Some(Reason::Killed), None]);
    holds(&queue.output(&over.outputs[0].path), &guest(1, 7));
    queue.counted([1, 0, 0, 1, 0]).await;

    queue.patch(&hang(json!("1")));
    let disk = guest(1, 8);
    queue.bring("cancelled.img", &disk);
    let running = queue.conversion("cancelled.img", "running", runs).await;
    run(queue.kubectl().args(["delete", "hcj", &running.name_any()]));
    queue.counted([1, 0, 0, 1, 1]).await;
    run(queue.kubectl().args(["wait", "--for=delete", "--timeout=60s", &format!("pod/{}", pod_of(&running))]));
    // Its work directory goes last.
    let outputs = || files(&queue.volume.join("output")).into_iter().filter(|path| path.contains("cancelled"));
    queue.eventually("tidied up", || outputs().next().is_none()).await;
    assert_eq!(fs::read(queue.queue(".errors/cancelled.img")).unwrap(), disk);
    assert_eq!(queue.error_file("cancelled.img")["reason"], json!("Cancelled"));
}
