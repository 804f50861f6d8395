// SPDX-License-Identifier: Apache-2.0
//! Thousands of objects: controller, watcher and sidecar as processes beside the API server, pods played.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, TryStreamExt as _};
use hyper2kvm::cluster::api::{ConversionJob, HyperConversion};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::harness::{Cluster, Namespace, Need};
use crate::replica::{Process, Replica};
use crate::{line, processor_time, resident};

/// Requests under way at a time.
const AT_ONCE: usize = 32;
/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(300);

/// A namespace with one queue, and a place on this machine that is its volume.
struct Stage {
    cluster: &'static Cluster,
    namespace: Namespace,
    place: tempfile::TempDir,
    client: Client,
}

impl Stage {
    async fn open(name: &str, spec: &Value) -> Result<Self> {
        let cluster = Cluster::shared(Need::ControlPlane).context("no API server on this machine")?;
        let namespace = cluster.namespace(name);
        let place = tempfile::tempdir()?;
        namespace.claim("images", "ReadWriteMany", place.path());
        for directory in ["queue", "output", "run"] {
            fs::create_dir(place.path().join(directory))?;
        }
        let mut whole = json!({
            "queue": {"claimName": "images", "subPath": "queue"}, "output": {"claimName": "images", "subPath": "output"},
            // No node takes them: they are played.
            "worker": {"nodeSelector": {"no": "where"}}, "watcher": {"nodeSelector": {"no": "where"}},
        });
        whole.as_object_mut().context("an object")?.extend(spec.as_object().context("an object")?.clone());
        namespace.apply(
            &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "q"}, "spec": whole})
                .to_string(),
        );
        Ok(Self { cluster, namespace, place, client: cluster.client().await })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace.name)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.place.path().join(below)
    }

    fn controller(&self) -> Replica {
        Replica::start(&self.cluster.kubeconfig, &[&self.namespace.name], "bench", self.place.path())
    }

    async fn process(&self, word: &str) -> Result<Process> {
        let uid = self.api::<HyperConversion>().get("q").await?.uid().context("a UID")?;
        let paths = ["queue", "output", "run"].map(|name| self.path(name).display().to_string());
        let words = [
            word,
            "--namespace",
            &self.namespace.name,
            "--queue=q",
            "--pod=q-watcher-0",
            "--queue-uid",
            &uid,
            "--queue-dir",
            &paths[0],
            "--output-dir",
            &paths[1],
            "--run-dir",
            &paths[2],
        ];
        Ok(Process::start(&self.cluster.kubeconfig, &words, &self.path(&format!("{word}.log"))))
    }

    async fn until_queue(&self, what: &str, wanted: impl Fn(&HyperConversion) -> bool) -> Result<()> {
        let since = Instant::now();
        loop {
            let queue = self.api::<HyperConversion>().get("q").await?;
            if wanted(&queue) {
                return Ok(());
            }
            ensure!(since.elapsed() < DEADLINE, "not {what}: {:#?}", queue.status);
            // Seldom, since each look is work for the API server that is measured.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn drop_images(&self, count: usize) -> Result<()> {
        for number in 0..count {
            let mut disk = vec![0; 4096];
            disk[..8].copy_from_slice(&number.to_le_bytes());
            fs::write(self.path("queue").join(format!("disk{number}.raw")), disk)?;
        }
        Ok(())
    }
}

/// The controller's memory beside `finished` conversions that are over and a hundred that run.
pub(crate) async fn memory(finished: usize) -> Result<()> {
    const ACTIVE: usize = 100;
    let stage = Stage::open("memory", &json!({"maxConcurrentJobs": ACTIVE})).await?;
    let api = stage.api::<ConversionJob>();
    let all = (0..finished).map(|number| (format!("web{number}-00000000"), over(number)));
    let active = (0..ACTIVE).map(|number| (format!("now{number}-00000000"), json!({"staged": 1})));
    stream::iter(all.chain(active).map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(AT_ONCE, |(name, status)| {
            let api = api.clone();
            async move {
                let object = json!({
                    "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
                    "spec": {"queueRef": {"name": "q"}, "source": {"path": format!("{name}.ova"), "sizeBytes": 4_294_967_296_u64}},
                });
                api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
                let params = PatchParams::apply("hyper2kvm-watcher");
                let status = json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "status": status});
                api.patch_status(&name, &params, &Patch::Apply(status)).await?;
                Ok(())
            }
        })
        .await?;
    let controller = stage.controller();
    let since = Instant::now();
    while !controller.is_ready() || stage.api::<Job>().list(&ListParams::default()).await?.items.len() < ACTIVE {
        ensure!(since.elapsed() < DEADLINE, "{}", controller.process.said());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!(
        "{:64} {:>9.2} s",
        format!("start → {ACTIVE} Jobs beside {finished} finished"),
        since.elapsed().as_secs_f64()
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (now, most) = resident(controller.process.child.id())?;
    line(&format!("controller's memory, {finished} finished and {ACTIVE} active"), now, 80.0, "MiB");
    println!("{:64} {most:>9.2} MiB", "    at its most");
    Ok(())
}

/// The status of a conversion that is over, as both writers leave it.
fn over(number: usize) -> Value {
    let (start, end) = ("2026-01-17T09:00:00Z", "2026-01-17T09:02:05Z");
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "observedGeneration": 1, "lastTransitionTime": end});
    json!({
        "observedGeneration": 1, "staged": 1, "phase": "Succeeded", "attemptCount": 1, "end": "Succeeded",
        "converted": format!("web{number}-00000000-1-abcde"), "startTime": start, "completionTime": end, "duration": "2m5s",
        "attempts": [{"number": 1, "jobName": format!("web{number}-00000000-1"), "jobUID": "0d3b4e4e-3f6a-4d0e-9d4b-0a5d7c7d5a51",
                      "podName": format!("web{number}-00000000-1-abcde"), "nodeName": "node1", "startTime": start, "endTime": end}],
        "conditions": [
            condition("Admitted", "Admitted", "holds a slot"),
            condition("Converted", "Converted", "converted and published"),
            condition("Published", "Published", "published"),
            condition("Succeeded", "Succeeded", "converted and published"),
        ],
        "progress": {"percent": 100, "stage": "report", "bytesDone": 4_294_967_296_u64, "bytesTotal": 4_294_967_296_u64, "updatedTime": end},
        "outputs": [{"path": format!("2026-01-17/web{number}/web{number}-disk0.qcow2"), "format": "qcow2",
                     "virtualSizeBytes": 8_589_934_592_u64, "allocatedBytes": 951_058_432}],
        "sourceLocation": format!(".processed/2026-01-17/web{number}.ova"),
    })
}

/// How long it takes until `artifacts` files are converted, with pods that need no time.
pub(crate) async fn many(artifacts: usize) -> Result<()> {
    let stage = Stage::open("many", &json!({"maxConcurrentJobs": 100})).await?;
    let controller = stage.controller();
    let watcher = stage.process("watcher").await?;
    let player = tokio::spawn(play(stage.api(), stage.path("output")));
    let since = Instant::now();
    while !controller.is_ready() {
        ensure!(since.elapsed() < DEADLINE, "{}", controller.process.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let uploads = Instant::now();
    stage.drop_images(artifacts)?;
    let count = artifacts as u64;
    stage
        .until_queue("all converted", |queue| {
            let totals = queue.status.as_ref().and_then(|status| status.totals);
            totals.is_some_and(|totals| totals.succeeded == count)
        })
        .await
        .with_context(|| watcher.said())?;
    line(
        &format!("{artifacts} artifacts, 100 at a time, until all are over"),
        uploads.elapsed().as_secs_f64(),
        120.0,
        "s",
    );
    let (_, metrics) = controller.get("/metrics").context("no metrics")?;
    let errors: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("hyper2kvm_reconcile_errors_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    line("    reconcile errors", errors.abs(), 0.0, "");
    line("    controller's memory after it", resident(controller.process.child.id())?.0, 80.0, "MiB");
    player.abort();
    Ok(())
}

/// Every worker's pod ends as soon as it is there, and leaves what a worker leaves.
async fn play(api: Api<Pod>, output: PathBuf) -> Result<()> {
    let workers = watcher::Config::default().labels("app.kubernetes.io/component=worker");
    let events = watcher::watcher(api.clone(), workers);
    events
        .try_for_each_concurrent(AT_ONCE, |event| {
            let (api, output) = (api.clone(), output.clone());
            async move {
                if let Event::Apply(pod) | Event::InitApply(pod) = event {
                    // A pod that is gone, or that comes a second time, was played.
                    drop(end(&api, &pod, &output).await);
                }
                Ok(())
            }
        })
        .await?;
    Ok(())
}

async fn end(api: &Api<Pod>, pod: &Pod, output: &Path) -> Result<()> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    ensure!(phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none());
    let label = |name: &str| pod.labels().get(&format!("hyper2kvm.io/{name}")).cloned().context("a worker's label");
    let (conversion, attempt, name) = (label("conversion")?, label("attempt")?, pod.name_any());
    let folder = output.join(format!(".work/{conversion}/{attempt}/{name}"));
    fs::create_dir(&folder)?;
    fs::write(folder.join("disk.qcow2"), [8; 512])?;
    let source = format!("{}.raw", conversion.rsplit_once('-').context("an id")?.0);
    let metadata = json!({
        "contractVersion": 1, "id": conversion, "toolVersion": "0", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": source, "sizeBytes": 4096, "format": "raw"},
        "disks": [{"file": "disk.qcow2", "format": "qcow2", "virtualSizeBytes": 4096, "allocatedBytes": 512, "sourceMember": source}],
    });
    fs::write(folder.join("metadata.json"), metadata.to_string())?;
    let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "startedAt": "2026-01-17T09:00:01Z", "finishedAt": "2026-01-17T09:00:02Z"}},
    }]}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// What a queue's pod costs while `waiting` files wait.
pub(crate) async fn idle(waiting: usize) -> Result<()> {
    let stage = Stage::open("idle", &json!({"runState": "Paused"})).await?;
    let watcher = stage.process("watcher").await?;
    let sidecar = stage.process("sidecar").await?;
    stage.drop_images(waiting)?;
    let count = waiting as u64;
    stage
        .until_queue("all waiting", |queue| queue.status.as_ref().is_some_and(|status| status.queued >= Some(count)))
        .await
        .with_context(|| watcher.said())?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let processes = [("watcher", watcher.child.id()), ("sidecar", sidecar.child.id())];
    let before = processes.map(|(_, pid)| processor_time(pid));
    let since = Instant::now();
    tokio::time::sleep(Duration::from_secs(30)).await;
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let share = (processor_time(pid)? - before?) / since.elapsed().as_secs_f64() * 100.0;
        line(&format!("{name}'s processor time, {waiting} files waiting"), share, 2.0, "%");
        line(&format!("{name}'s memory, {waiting} files waiting"), resident(pid)?.0, 25.0, "MiB");
    }
    Ok(())
}
