// SPDX-License-Identifier: Apache-2.0
//! The whole way on a real node: the chart's operator, a queue on a volume, worker pods of the real image.

mod asked;
mod boots;
mod changes;
mod claims;
mod copies;
pub(crate) mod disks;
mod fixing;
#[path = "../host/appliance/guests.rs"]
#[allow(dead_code, reason = "the host's tests use all of it")]
mod guests;
mod refusals;
pub(crate) mod stage;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::Reason;
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};

use crate::harness::run;
use crate::support::{ova, vmdk};
use disks::{guest, holds};
use stage::{Operator, Queue, files, reasons};

/// Longest delay of an attempt after it is due, on a machine that runs six of these tests at once.
const RETRIED_WITHIN: SignedDuration = SignedDuration::from_secs(4);

/// A user and the group of root, as `OpenShift` gives to pods.
const ANY_USER: u32 = 1_000_680_000;

#[tokio::test]
async fn an_appliance_that_the_plugin_puts_becomes_its_disks_whoever_the_pods_are() {
    let Some(operator) = Operator::shared() else { return };
    // Write permission for the group is enough.
    let queue = Queue::prepare(&operator, "appliances", (0, 0)).await;
    queue.declare(&json!({"securityContext": {"runAsUser": ANY_USER, "runAsGroup": 0}}), &json!({}));
    queue.ready();
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
    let here = tempfile::tempdir().unwrap();
    let image = here.path().join("web01.ova");
    fs::write(&image, &appliance).unwrap();
    plugin(&queue, &["put", image.to_str().unwrap(), &queue.name]);

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
    assert_eq!(files(&published), ["metadata.json", "web01-disk0.qcow2", "web01-disk1.qcow2"]);
    assert!(files(&published).iter().all(|name| fs::metadata(published.join(name)).unwrap().uid() == ANY_USER));

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

    // No warning was logged.
    let words =
        ["get", "events", "-o", r"jsonpath={range .items[*]}{.involvedObject.name} {.type} {.reason}{'\n'}{end}"];
    let events = run(queue.kubectl().args(words));
    let events: Vec<_> = events.lines().filter(|line| line.starts_with(&name)).collect();
    assert!(events.contains(&format!("{name}-1 Normal SuccessfulCreate").as_str()), "{events:?}");
    assert!(
        events.iter().all(|event| event.contains(" Normal ") || event.ends_with(" MissingClusterDNS")),
        "{events:?}"
    );

    // The same once more is not converted again.
    queue.bring("web01.ova", &appliance);
    let again = queue.ended("web01.ova", JobPhase::Duplicate).await;
    assert_ne!(again.name_any(), name);
    assert!(again.spec.duplicate_of.starts_with("web01.ova of "), "{}", again.spec.duplicate_of);
    run(queue.kubectl().args(["wait", "--for=condition=Succeeded", &format!("hcj/{}", again.name_any())]));
    assert_eq!(queue.jobs_of(&again).await, Vec::<String>::new());
    assert_eq!(fs::read(queue.queue(&again.status.unwrap().source_location.unwrap())).unwrap(), appliance);
    queue.counted([1, 0, 1, 0, 0]).await;
}

/// The plugin, started as kubectl starts it, with kubectl's own flags and environment.
fn plugin(queue: &Queue, words: &[&str]) -> String {
    run(&mut plugin_command(queue, words))
}

fn plugin_command(queue: &Queue, words: &[&str]) -> Command {
    use std::os::unix::process::CommandExt as _;

    let kubectl = queue.kubectl();
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl"));
    plugin.arg0("kubectl-hyper2kvm").args(kubectl.get_args()).args(words);
    plugin.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    plugin
}

#[tokio::test]
async fn what_the_plugin_gets_is_the_disk() {
    let Some(queue) = Queue::open("by-plugin", json!({}), json!({})).await else { return };
    let disk = guest(12, 3);
    let here = tempfile::tempdir().unwrap();
    queue.bring("db01.vmdk", &vmdk::built(&vmdk::Sparse::stream_optimized(disk.len() as u64), &disk));

    let name = queue.ended("db01.vmdk", JobPhase::Succeeded).await.name_any();
    // An interrupted download is resumed.
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
    let shown = queue.ctl("stats");
    assert!(shown.contains("  Processed: 1\n"), "{shown}");
    // The ledger remembers it whatever becomes of the object.
    queue.bring("broken.vmdk", b"KDMV");
    queue.ended("broken.vmdk", JobPhase::Failed).await;
    run(queue.kubectl().args(["delete", "hcj", &name]));
    queue.counted([1, 1, 0, 0, 0]).await;
    let table = plugin(&queue, &["history", "by-plugin"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..5], ["NUMBER", "CONVERSION", "SOURCE", "END", "REASON"], "{table}");
    assert_eq!(lines[1][2..6], ["broken.vmdk", "Failed", "Truncated", "1"], "{table}");
    assert_eq!(lines[2][1..6], [&name, "db01.vmdk", "Succeeded", "-", "1"], "{table}");
    assert!(lines[2][8].ends_with("/db01"), "{table}");
    let page = plugin(&queue, &["history", "by-plugin", "--limit=1", "-o", "json"]);
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["conversions"].as_array().map(Vec::len), Some(1), "{page}");
    let rest = plugin(&queue, &["history", "by-plugin", "--before", &page["next"].to_string()]);
    assert!(rest.contains("db01.vmdk") && !rest.contains("broken.vmdk"), "{rest}");
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_when_its_time_has_come() {
    let retries = json!({"retryPolicy": {"maxRetries": 2, "retryDelaySeconds": 4, "backoffMultiplier": "1.5"}});
    let Some(queue) = Queue::open("retries", retries, json!({"test.hyper2kvm.io/fail": "SourceIO:2"})).await else {
        return;
    };
    let disk = guest(1, 4);
    queue.bring("disk.img", &disk);
    let parked = queue.queue(".errors/disk.img");
    let mut due = Vec::new();
    for (failed, delay) in [(1, 4), (2, 6)] {
        let waiting = queue.conversion("disk.img", "parked", |c| is_parked(c, failed, &parked)).await;
        let state = waiting.status.unwrap().state;
        assert_eq!(state.failure.as_ref().unwrap().reason, Reason::SourceIO);
        let ended = state.attempts.last().unwrap().end_time.unwrap();
        let next = state.next_retry_time.unwrap();
        assert_eq!(next.duration_since(ended), SignedDuration::from_secs(delay));
        due.push(next);
    }
    let over = queue.ended("disk.img", JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), [Some(Reason::SourceIO), Some(Reason::SourceIO), None]);
    let over = over.status.unwrap();
    assert_eq!((over.attempt_count, over.state.staged, over.state.failure), (Some(3), 3, None));
    for (attempt, due) in over.state.attempts[1..].iter().zip(due) {
        let late = attempt.start_time.unwrap().duration_since(due);
        println!("attempt {} began {late:#} after it was due", attempt.number);
        assert!(late >= SignedDuration::ZERO && late < RETRIED_WITHIN, "{late:?}");
    }
    assert_eq!(files(&queue.queue(".errors")), Vec::<String>::new());
    holds(&queue.output(&over.outputs[0].path), &disk);
    queue.counted([1, 0, 0, 2, 0]).await;
}

/// Whether it waits after so many failures, with its source here and a report of when the next attempt is due.
fn is_parked(conversion: &ConversionJob, failures: u32, source: &Path) -> bool {
    let Some(status) = &conversion.status else { return false };
    let report = fs::read(source.with_added_extension("error.json")).unwrap_or_default();
    let report: Value = serde_json::from_slice(&report).unwrap_or_default();
    let due = status.state.next_retry_time.map(|due| due.strftime("%FT%TZ").to_string());
    status.phase == Some(JobPhase::Retrying)
        && status.attempt_count == Some(failures)
        && source.exists()
        && due.is_some_and(|due| report["retry_info"]["next_retry_at"] == due)
}

#[tokio::test]
async fn a_folder_that_the_plugin_puts_is_one_machine() {
    let Some(queue) = Queue::open("folders", json!({}), json!({})).await else { return };
    let disk = guest(9, 31);
    let here = tempfile::tempdir().unwrap();
    let folder = here.path().join("web02");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("vm.ovf"), ova::ovf(&[("disk1.vmdk", disk.len() as u64)])).unwrap();
    let member = vmdk::built(&vmdk::Sparse::stream_optimized(disk.len() as u64), &disk);
    fs::write(folder.join("disk1.vmdk"), member).unwrap();
    plugin(&queue, &["put", folder.to_str().unwrap(), &queue.name]);

    let over = queue.ended("web02", JobPhase::Succeeded).await.status.unwrap();
    assert_eq!((over.attempt_count, over.outputs.len()), (Some(1), 1));
    holds(&queue.output(&over.outputs[0].path), &disk);
    queue.counted([1, 0, 0, 0, 0]).await;
    let archived = files(&queue.queue(".processed"));
    let is_there = |name: &str| archived.iter().any(|path| path.ends_with(&format!("/web02/{name}")));
    assert!(is_there("vm.ovf") && is_there("disk1.vmdk"), "{archived:?}");
    assert!(!queue.queue("web02").exists());
}

/// The use of a queue's slots over time.
#[derive(Default)]
struct Slots {
    /// All Jobs, and whether each is unfinished.
    open: HashMap<String, bool>,
    /// Most Jobs that were unfinished at one time.
    most: usize,
    /// When each slot that is free now became free.
    free: VecDeque<Instant>,
    /// How long each slot was free before it was used again.
    gaps: Vec<Duration>,
}

impl Slots {
    fn note(&mut self, job: String, is_open: bool) {
        match self.open.insert(job, is_open) {
            None if is_open => self.gaps.extend(self.free.pop_front().map(|since| since.elapsed())),
            Some(true) if !is_open => self.free.push_back(Instant::now()),
            _ => {}
        }
        self.most = self.most.max(self.open.values().filter(|&&open| open).count());
    }
}

/// Watches a queue's Jobs.
fn slots(api: Api<Job>, queue: &str) -> Arc<Mutex<Slots>> {
    let slots = Arc::<Mutex<Slots>>::default();
    let seen = Arc::clone(&slots);
    let of_queue = watcher::Config::default().labels(&format!("hyper2kvm.io/queue={queue}"));
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(api, of_queue));
        while let Some(event) = events.next().await {
            let mut slots = seen.lock().unwrap();
            match event.unwrap() {
                Event::Apply(job) | Event::InitApply(job) => {
                    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
                    let is_over = |kind: &str| matches!(kind, "Complete" | "Failed");
                    let over =
                        conditions.is_some_and(|all| all.iter().any(|c| is_over(&c.type_) && c.status == "True"));
                    slots.note(job.name_any(), !over);
                }
                Event::Delete(job) => slots.note(job.name_any(), false),
                Event::Init | Event::InitDone => {}
            }
        }
    });
    slots
}

#[tokio::test]
async fn twelve_disks_are_converted_three_at_a_time_and_a_free_slot_is_taken_at_once() {
    let Some(queue) = Queue::open("many", json!({"maxConcurrentJobs": 3}), json!({})).await else { return };
    let slots = slots(queue.api(), "many");
    for number in 0..12 {
        queue.bring(&format!("disk{number}.img"), &guest(1, 100 + number));
    }
    queue.counted([12, 0, 0, 0, 0]).await;
    for number in 0..12 {
        let over = queue.ended(&format!("disk{number}.img"), JobPhase::Succeeded).await.status.unwrap();
        assert_eq!(over.state.attempts.len(), 1);
        holds(&queue.output(&over.outputs[0].path), &guest(1, 100 + number));
    }
    let mut slots = slots.lock().unwrap();
    assert_eq!((slots.most, slots.gaps.len()), (3, 9));
    println!("slots were free for {:?}", slots.gaps);
    slots.gaps.sort();
    // One that waits for the processor may be late; all of them are not.
    assert!(slots.gaps[4] < Duration::from_secs(2), "{:?}", slots.gaps);
    assert!(slots.gaps[8] < Duration::from_secs(5), "{:?}", slots.gaps);
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
