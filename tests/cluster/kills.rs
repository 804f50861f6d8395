// SPDX-License-Identifier: Apache-2.0
//! Controller, watcher and sidecar killed at random moments on the real node, by SIGKILL and with their pods: nothing
//! is lost, nothing left half done, nothing done twice. `HYPER2KVM_CLUSTER_KILLS` sets the number of kills of each,
//! `HYPER2KVM_SEED` repeats a run.

mod claims;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files};
use crate::harness::{Cluster, Need};
use crate::support::random::{Random, number};

const FILES: u64 = 30;

/// Kills of each of the three.
const KILLS: u64 = 30;

/// One kill in this many deletes the whole pod.
const POD_EVERY: u64 = 5;

/// Longest pause between two kills.
const PAUSE: u64 = 900;

type Uids = Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>;

/// UIDs of the Jobs that were ever seen under each name.
fn every_job(api: Api<Job>, queue: &str) -> Uids {
    let seen = Uids::default();
    let noted = Arc::clone(&seen);
    let of_queue = watcher::Config::default().labels(&format!("hyper2kvm.io/queue={queue}"));
    tokio::spawn(async move {
        let mut events = Box::pin(watcher::watcher(api, of_queue));
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(job) | Event::InitApply(job) | Event::Delete(job)) = event {
                noted.lock().unwrap().entry(job.name_any()).or_default().extend(job.uid());
            }
        }
    });
    seen
}

/// What is killed: a container of the pods with this label.
struct Victim {
    container: &'static str,
    label: String,
    left: u64,
}

impl Victim {
    fn all(queue: &Queue, kills: u64) -> Vec<Self> {
        let watcher = format!("hyper2kvm.io/queue={},app.kubernetes.io/component=watcher", queue.name);
        let release = format!("app.kubernetes.io/instance={}", queue.operator.release().name);
        [("controller", release), ("watcher", watcher.clone()), ("sidecar", watcher)]
            .map(|(container, label)| Self { container, label, left: kills })
            .into()
    }

    /// Kills it, if one runs now.
    fn kill(&self, queue: &Queue, takes_pod: bool) -> bool {
        let listed = queue.kubectl().args(["get", "pods", "-l", &self.label, "-o", "json"]).output().unwrap();
        let pods: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        let is_over = |pod: &Value| ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""));
        let is_there = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && !is_over(pod);
        let Some(pod) = pods["items"].as_array().and_then(|pods| pods.iter().find(is_there)) else { return false };
        let name = pod["metadata"]["name"].as_str().unwrap();
        if takes_pod {
            return queue.kubectl().args(["delete", "pod", name, "--wait=false"]).output().unwrap().status.success();
        }
        queue.operator.namespace.try_kill_container(pod, self.container)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_at_any_moment_nothing_is_lost_and_nothing_is_done_twice() {
    if Cluster::shared(Need::OwnNode).is_none() {
        return;
    }
    let kills = number("HYPER2KVM_CLUSTER_KILLS").unwrap_or(KILLS);
    let spec = json!({"maxConcurrentJobs": 3, "retryPolicy": {"maxRetries": 3, "retryDelaySeconds": 1}});
    let Some(operator) = Operator::own("kills") else { return };
    let queue = Queue::open_with(&operator, "kills", &spec, &json!({})).await;
    let mut random = Random::seeded("kills in the cluster");
    let jobs = every_job(queue.api(), &queue.name);
    let mut victims = Victim::all(&queue, kills);
    let mut brought = 0;
    let begun = std::time::Instant::now();
    while victims.iter().any(|victim| victim.left > 0) {
        // Files come all the time, so that every kill interrupts work.
        let done: u64 = victims.iter().map(|victim| kills - victim.left).sum();
        while brought < FILES && brought * 3 * kills <= done * FILES {
            bring(&queue, brought);
            brought += 1;
        }
        let chosen = usize::try_from(random.below(3)).unwrap();
        let victim = &mut victims[chosen];
        if victim.left == 0 {
            continue;
        }
        if victim.kill(&queue, random.below(POD_EVERY) == 0) {
            victim.left -= 1;
        }
        tokio::time::sleep(Duration::from_millis(random.below(PAUSE))).await;
    }
    eprintln!("{kills} kills of each in {:?}", begun.elapsed());
    (brought..FILES).for_each(|n| bring(&queue, n));

    let broken = (0..FILES).filter(|n| is_broken(*n)).count() as u64;
    queue.counted([FILES - broken, broken, 0, 0, 0]).await;
    let mut ended = Vec::new();
    for n in 0..FILES {
        let phase = if is_broken(n) { JobPhase::Failed } else { JobPhase::Succeeded };
        ended.push(queue.ended(&name_of(n), phase).await);
    }
    let jobs = jobs.lock().unwrap().clone();
    check_objects(&queue, &ended, &jobs).await;
    check_files(&queue);
}

fn is_broken(n: u64) -> bool {
    n % 10 == 7
}

fn name_of(n: u64) -> String {
    if is_broken(n) { format!("disk{n}.vhdx") } else { format!("disk{n}.img") }
}

fn content_of(n: u64) -> Vec<u8> {
    if is_broken(n) { vec![7; 64 << 10] } else { guest(1 + usize::try_from(n % 4).unwrap(), 1000 + n) }
}

fn bring(queue: &Queue, n: u64) {
    queue.bring(&name_of(n), &content_of(n));
}

/// One object for each file, one Job for each attempt, one record for each attempt.
async fn check_objects(queue: &Queue, ended: &[ConversionJob], jobs: &BTreeMap<String, BTreeSet<String>>) {
    assert_eq!(queue.conversions().await.len(), ended.len());
    let mut wanted = BTreeMap::new();
    for (n, conversion) in (0..).zip(ended) {
        let state = &conversion.status.as_ref().unwrap().state;
        let reasons: Vec<Option<Reason>> = state.attempts.iter().map(|attempt| attempt.reason).collect();
        assert_eq!(reasons, [is_broken(n).then_some(Reason::Corrupt)], "{}", conversion.spec.source.path);
        let attempt = &state.attempts[0];
        assert!(attempt.pod_name.is_some() && attempt.node_name.is_some(), "{attempt:?}");
        wanted.insert(attempt.job_name.clone().unwrap(), BTreeSet::from_iter(attempt.job_uid.clone()));
    }
    assert_eq!(*jobs, wanted);
}

/// Each source in one place, each disk whole, no waste.
fn check_files(queue: &Queue) {
    let mut sources = BTreeMap::new();
    for path in files(&queue.queue("")) {
        let name = path.rsplit('/').next().unwrap().to_owned();
        // Left by a watcher that died while it tried the volume.
        if !name.starts_with('.') && !name.ends_with(".error.json") && !path.contains(".probe-") {
            assert_eq!(sources.insert(name, path), None, "it lies in two places");
        }
    }
    let mut published: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in files(&queue.output("")).into_iter().filter(|path| !path.starts_with('.') && !path.contains(".probe-"))
    {
        assert!(!path.contains("/."), "{path}");
        if let Some(directory) = path.strip_suffix("/metadata.json") {
            let metadata: Value = serde_json::from_slice(&fs::read(queue.output(&path)).unwrap()).unwrap();
            let source = metadata["source"]["name"].as_str().unwrap().to_owned();
            assert_eq!(published.insert(source, queue.output(directory)), None, "published twice");
        }
    }
    for n in 0..FILES {
        let name = name_of(n);
        let place = sources.remove(&name).unwrap_or_else(|| panic!("{name} is nowhere"));
        assert!(fs::read(queue.queue(&place)).unwrap() == content_of(n), "{place}");
        if is_broken(n) {
            assert_eq!(place, format!(".errors/{name}"));
            assert_eq!(queue.error_file(&name)["reason"], "Corrupt");
            continue;
        }
        assert!(place.starts_with(".processed/"), "{place}");
        let directory = published.remove(&name).unwrap_or_else(|| panic!("{name} is not published"));
        let disk = format!("disk{n}.qcow2");
        assert_eq!(files(&directory), [disk.clone(), "metadata.json".to_owned()]);
        holds(&directory.join(disk), &content_of(n));
    }
    assert!(sources.is_empty() && published.is_empty(), "{sources:?} {published:?}");
    let waste: Vec<_> = files(&queue.output(".work")).into_iter().chain(files(&queue.queue(".processing"))).collect();
    assert!(waste.iter().all(|path| path.starts_with('.')), "{waste:?}");
}
