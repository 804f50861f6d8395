// SPDX-License-Identifier: Apache-2.0
//! The way of one artifact on a real node: how soon it starts, and what it costs the API server.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper2kvm::cluster::api::{ConversionJob, JobPhase};
use jiff::Timestamp;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::audit::{self, Request};
use crate::harness::{Cluster, Namespace, Need, in_tree, run};
use crate::line;

/// Artifacts that come when nothing else is to do.
const ALONE: usize = 5;
/// Artifacts that come one after the other, each while those before are under way: on a node that has the time for it,
/// and on one whose processors are busy with starting their pods.
const IN_A_ROW: usize = 40;
const PACES: [(&str, Duration); 2] =
    [("one each 2 s", Duration::from_secs(2)), ("two each second", Duration::from_millis(500))];
/// Longest wait for conversions.
const LONGEST: Duration = Duration::from_secs(600);
/// What is written for conversions.
const OF_CONVERSIONS: [&str; 6] = [
    "conversionjobs.hyper2kvm.io",
    "conversionjobs/status.hyper2kvm.io",
    "jobs.batch",
    "events.events.k8s.io",
    "persistentvolumeclaims",
    "virtualmachines.kubevirt.io",
];
pub(crate) const IMAGE_USER: u32 = 65532;

/// An installed release, and its namespace.
pub(crate) struct Operator(&'static Cluster, pub Namespace);

impl Operator {
    /// `values` beside those of every bench, as Helm takes them.
    pub(crate) fn install(cluster: &'static Cluster, name: &str, values: &str) -> Result<Self> {
        let image = cluster.image().context("no image")?;
        let (repository, tag) = image.rsplit_once(':').context("no tag")?;
        let operator = Self(cluster, cluster.namespace(name));
        let name = &operator.1.name;
        run(cluster
            .helm()
            .args(["install", name, "--namespace", name, "--wait"])
            .arg(in_tree("charts/hyper2kvm-operator"))
            .arg(format!("--set=image.repository={repository},image.tag={tag},image.pullPolicy=Never"))
            .arg(format!("--set=watchNamespaces={{{name}}},crds.install=false,admissionPolicy.enabled=false"))
            .arg(format!("--set={values}")));
        Ok(operator)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let name = &self.1.name;
        drop(self.1.kubectl().args(["delete", "hconv", "--all"]).output());
        drop(self.0.helm().args(["uninstall", name, "--namespace", name]).output());
    }
}

pub(crate) async fn measure() -> Result<()> {
    let cluster = Cluster::shared(Need::Node).context("no node on this machine")?;
    let Operator(_, namespace) = &Operator::install(cluster, "bench", "kubevirt.enabled=false")?;
    let name = &namespace.name;
    let volume = queue(namespace, &json!({"maxConcurrentJobs": 100}))?;
    let api: Api<ConversionJob> = Api::namespaced(cluster.client().await, name);

    let mut waits = Vec::new();
    for number in 0..ALONE {
        let written = bring(&volume, number)?;
        let over = all_over(&api, number + 1).await?;
        waits.push(started(&volume, &over, number)? - written);
    }
    let worst = waits.iter().copied().fold(0.0, f64::max);
    line(&format!("last write → worker runs, idle node, the slowest of {ALONE}"), worst, 5.5, "s");

    let mut brought = ALONE;
    for (_, pace) in PACES {
        for _ in 0..IN_A_ROW {
            bring(&volume, brought)?;
            brought += 1;
            tokio::time::sleep(pace).await;
        }
        all_over(&api, brought).await?;
    }
    tell_api_costs(cluster, name)
}

/// A queue on a volume of the node, watched. `spec` is added to what every queue here has.
pub(crate) fn queue(namespace: &Namespace, spec: &Value) -> Result<PathBuf> {
    let volume = namespace.volume("images", "ReadWriteMany");
    for directory in ["queue", "output"] {
        let directory = volume.join(directory);
        fs::create_dir_all(&directory)?;
        chown(&directory, Some(IMAGE_USER), Some(0))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o770))?;
    }
    let mut whole = json!({
        "queue": {"claimName": "images", "subPath": "queue"}, "output": {"claimName": "images", "subPath": "output"},
    });
    whole.as_object_mut().context("an object")?.extend(spec.as_object().context("an object")?.clone());
    namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "bench"}, "spec": whole})
            .to_string(),
    );
    run(namespace.kubectl().args(["wait", "--for=condition=Ready", "--timeout=90s", "hconv/bench"]));
    Ok(volume)
}

/// Writes an artifact; when that was.
#[expect(clippy::cast_precision_loss, reason = "seconds with their microseconds")]
fn bring(volume: &Path, number: usize) -> Result<f64> {
    let mut disk = vec![0; 1 << 20];
    disk[..8].copy_from_slice(&number.to_le_bytes());
    let path = volume.join(format!("queue/disk{number}.raw"));
    fs::write(&path, disk)?;
    let written = fs::metadata(&path)?;
    Ok(written.mtime() as f64 + written.mtime_nsec() as f64 / 1e9)
}

pub(crate) async fn all_over(api: &Api<ConversionJob>, count: usize) -> Result<Vec<ConversionJob>> {
    let since = std::time::Instant::now();
    loop {
        let all = api.list(&ListParams::default()).await?.items;
        let over = |c: &&ConversionJob| c.status.as_ref().is_some_and(|s| s.phase == Some(JobPhase::Succeeded));
        if all.iter().filter(over).count() == count {
            return Ok(all);
        }
        ensure!(since.elapsed() < LONGEST, "not {count} conversions within {LONGEST:?}: {all:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// When the worker of an artifact began, by what it wrote itself.
fn started(volume: &Path, conversions: &[ConversionJob], number: usize) -> Result<f64> {
    let source = format!("disk{number}.raw");
    let of_source = conversions.iter().find(|c| c.spec.source.path == source).context("no such conversion")?;
    let outputs = of_source.status.as_ref().map(|status| &status.outputs);
    let disk = outputs.and_then(|outputs| outputs.first()).context("no output")?;
    let directory = volume.join("output").join(&disk.path);
    let metadata = fs::read(directory.with_file_name("metadata.json"))?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let time: Timestamp = metadata["startTime"].as_str().context("no startTime")?.parse()?;
    Ok(time.as_duration().as_secs_f64())
}

fn tell_api_costs(cluster: &Cluster, namespace: &str) -> Result<()> {
    let state = cluster.state.as_ref().context("another's audit log")?;
    let writes = writes_of(state, namespace);
    let created = |resource: &'static str| writes.iter().filter(move |r| r.verb == "create" && r.resource == resource);
    let conversions: HashMap<_, _> =
        created("conversionjobs.hyper2kvm.io").map(|r| (r.name.as_str(), r.answered)).collect();
    let mut waits: Vec<(usize, f64)> = created("jobs.batch")
        .filter_map(|job| {
            let id = job.name.strip_suffix("-1")?;
            let number = id.strip_prefix("disk")?.split_once('-')?.0.parse().ok()?;
            Some((number, job.answered.duration_since(*conversions.get(id)?).as_secs_f64() * 1e3))
        })
        .collect();
    ensure!(waits.len() == ALONE + PACES.len() * IN_A_ROW, "{} Jobs in the audit log", waits.len());
    waits.sort_by_key(|(number, _)| *number);
    let in_a_row = waits.split_off(ALONE);
    for ((pace, _), waits) in PACES.iter().zip(in_a_row.chunks(IN_A_ROW)) {
        let mut waits: Vec<f64> = waits.iter().map(|(_, wait)| *wait).collect();
        waits.sort_by(f64::total_cmp);
        let what = format!("ConversionJob created → Job created, {pace}");
        println!("{:64} {:>9.2} ms", format!("{what}, median"), waits[waits.len() / 2]);
        line(&format!("{what}, p99 of {}", waits.len()), waits[waits.len() * 99 / 100], 100.0, "ms");
    }

    tell_writes(&writes, "a conversion", conversions.len(), 10.0);
    Ok(())
}

/// What the identities of a release wrote, and the API server stored.
pub(crate) fn writes_of(state: &Path, namespace: &str) -> Vec<Request> {
    let ours = format!("system:serviceaccount:{namespace}:");
    let mut writes = audit::requests(state, |user| user.starts_with(&ours));
    writes.retain(|r| r.code < 300 && !r.is_dry_run && !["get", "list", "watch"].contains(&r.verb.as_str()));
    writes
}

/// Writes for each of `count` conversions, but those that tell its progress; by what was written.
pub(crate) fn tell_writes(writes: &[Request], what: &str, count: usize, demand: f64) {
    let mut of_conversions: Vec<String> = writes
        .iter()
        .filter(|r| r.field_manager != "hyper2kvm-progress" && r.verb != "delete")
        .filter(|r| OF_CONVERSIONS.contains(&r.resource.as_str()))
        .map(|r| format!("{} {} by {}", r.verb, r.resource, r.field_manager))
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
    let each = of_conversions.len() as f64 / count as f64;
    line(&format!("API writes {what} by our own identities"), each, demand, "");
    of_conversions.sort();
    for group in of_conversions.chunk_by(|a, b| a == b) {
        println!("    {:4} {}", group.len(), group[0]);
    }
}
