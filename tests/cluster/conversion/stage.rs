// SPDX-License-Identifier: Apache-2.0
//! Shared by the scenarios on the real node: the operator as Helm installs it, and queues on volumes of the node.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase};
use hyper2kvm::conversion::Reason;
use hyper2kvm::conversion::admission::RunState;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Cluster, Namespace, Need, in_tree, run};

/// Deadline for anything, on a machine that is busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The image's user and its group.
const IMAGE_USER: u32 = 65532;

/// What Helm installed; uninstalled when the last test has dropped it.
#[derive(Debug)]
pub(crate) struct Release {
    cluster: &'static Cluster,
    namespace: Arc<Namespace>,
}

impl Release {
    /// Installs the chart in `namespace`; it watches every namespace, unless `values` name some.
    pub(crate) fn install(
        cluster: &'static Cluster,
        image: &str,
        namespace: Arc<Namespace>,
        values: &[String],
    ) -> Arc<Self> {
        let (repository, tag) = image.rsplit_once(':').expect("the image has a tag");
        let release = Arc::new(Self { cluster, namespace });
        let name = &release.namespace.name;
        run(cluster
            .helm()
            .args(["install", name, "--namespace", name])
            .arg(in_tree("charts/hyper2kvm-operator"))
            .arg(format!("--set=image.repository={repository},image.tag={tag},image.pullPolicy=Never"))
            .args(values)
            // The suite's cluster has the definitions already.
            .args([
                "--set=crds.install=false,rbac.aggregate=false,log=debug\\,kube=info\\,hyper=info\\,tower=info\\,rustls=info",
                "--wait",
            ]));
        release
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if self.namespace.is_shared || is_kept() {
            return;
        }
        let name = &self.namespace.name;
        drop(self.cluster.helm().args(["uninstall", name, "--namespace", name]).output());
    }
}

/// The operator, and a namespace that it watches.
#[derive(Debug)]
pub(crate) struct Operator {
    pub cluster: &'static Cluster,
    release: Arc<Release>,
    /// The namespace of the queues.
    pub namespace: Arc<Namespace>,
}

impl Operator {
    /// The operator that the tests of a run share, although each is a process of its own: the first of them installs
    /// it, and it is removed with the cluster. On a foreign cluster each test has its own. `None` (and a line `LEFT
    /// OUT`) where no pods can run.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        let cluster = Cluster::shared(Need::Node)?;
        let image = cluster.image()?;
        let Some(mut record) = Record::open(cluster) else { return Self::own("conversion") };
        if let Some(name) = record.namespace() {
            let namespace = Arc::new(cluster.shared_namespace(&name));
            let release = Arc::new(Release { cluster, namespace: Arc::clone(&namespace) });
            return Some(Arc::new(Self { cluster, release, namespace }));
        }
        record.uninstall();
        let mut namespace = cluster.namespace("conversion");
        namespace.is_shared = true;
        let operator = Self::install(cluster, &image, namespace, None);
        record.write(&operator.namespace.name);
        Some(Arc::new(operator))
    }

    /// An operator for this test, which manipulates it; otherwise like [`Operator::shared`].
    pub(crate) fn own(test: &str) -> Option<Arc<Self>> {
        Self::own_with(test, &[])
    }

    /// The same with further arguments of `helm install`.
    pub(crate) fn own_with(test: &str, values: &[&str]) -> Option<Arc<Self>> {
        let cluster = Cluster::shared(Need::Node)?;
        let image = cluster.image()?;
        Some(Arc::new(Self::install_with(cluster, &image, cluster.namespace(test), None, values)))
    }

    /// One with all its rights, beside `KubeVirt`'s definition of a machine.
    pub(crate) fn delivering(test: &str) -> Option<Arc<Self>> {
        Cluster::shared(Need::OwnNode)?;
        Cluster::with_kubevirt()?;
        Self::own_with(test, &["--set=target.enabled=true,kubevirt.enabled=true"])
    }

    /// Installs the chart in `release`, to watch `namespace` or else the release's own.
    pub(crate) fn install(
        cluster: &'static Cluster,
        image: &str,
        namespace: Namespace,
        release: Option<Namespace>,
    ) -> Self {
        Self::install_with(cluster, image, namespace, release, &[])
    }

    fn install_with(
        cluster: &'static Cluster,
        image: &str,
        namespace: Namespace,
        release: Option<Namespace>,
        values: &[&str],
    ) -> Self {
        let namespace = Arc::new(namespace);
        let release = release.map_or_else(|| Arc::clone(&namespace), Arc::new);
        let mut arguments = vec![format!("--set=watchNamespaces={{{}}}", namespace.name)];
        arguments.extend(values.iter().map(|&value| value.to_owned()));
        Self { cluster, release: Release::install(cluster, image, release, &arguments), namespace }
    }

    /// The installed operator, with another namespace that it watches.
    pub(crate) fn within(release: &Arc<Release>, namespace: Namespace) -> Self {
        Self { cluster: release.cluster, release: Arc::clone(release), namespace: Arc::new(namespace) }
    }

    /// Where the chart is installed.
    pub(crate) fn release(&self) -> &Namespace {
        &self.release.namespace
    }

    pub(crate) fn kubectl(&self) -> Command {
        self.namespace.kubectl()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if self.namespace.is_shared || is_kept() {
            return;
        }
        drop(self.kubectl().args(["delete", "hconv", "--all", "--wait=false"]).output());
    }
}

/// The file that says in which namespace the shared operator of a run is; locked while it is open.
pub(crate) struct Record {
    cluster: &'static Cluster,
    file: File,
}

impl Record {
    /// `None` for a foreign cluster.
    pub(crate) fn open(cluster: &'static Cluster) -> Option<Self> {
        let path = cluster.state.as_ref()?.join("operator");
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap();
        file.lock().unwrap();
        Some(Self { cluster, file })
    }

    /// Identifies one run of the suite.
    fn run() -> String {
        std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string())
    }

    fn read(&mut self) -> Option<(String, String)> {
        let mut text = String::new();
        self.file.rewind().unwrap();
        self.file.read_to_string(&mut text).unwrap();
        text.split_once(' ').map(|(run, namespace)| (run.to_owned(), namespace.to_owned()))
    }

    /// Where this run's operator is, if it is installed.
    fn namespace(&mut self) -> Option<String> {
        self.read().filter(|(run, _)| *run == Self::run()).map(|(_, namespace)| namespace)
    }

    fn write(&mut self, namespace: &str) {
        self.file.set_len(0).unwrap();
        self.file.rewind().unwrap();
        write!(self.file, "{} {namespace}", Self::run()).unwrap();
    }

    /// Uninstalls the operator of this run or of an earlier one.
    pub(crate) fn uninstall(&mut self) {
        let Some((_, name)) = self.read() else { return };
        self.file.set_len(0).unwrap();
        let namespace = Arc::new(Namespace { cluster: self.cluster, name, is_shared: false });
        let release = Arc::new(Release { cluster: self.cluster, namespace: Arc::clone(&namespace) });
        drop(Operator { cluster: self.cluster, release, namespace });
    }
}

/// Whether the objects of a test stay, for a person to look at.
fn is_kept() -> bool {
    std::thread::panicking() && std::env::var_os("HYPER2KVM_KEEP_FAILED").is_some()
}

/// A queue on a volume of the node, as its user sees it.
pub(crate) struct Queue {
    pub operator: Arc<Operator>,
    pub name: String,
    /// The volume, which holds `queue/` and `output/`.
    pub volume: PathBuf,
    client: Client,
}

impl Drop for Queue {
    fn drop(&mut self) {
        // In a namespace of its own, it is deleted with that.
        if self.operator.namespace.is_shared && !is_kept() {
            drop(self.kubectl().args(["delete", "hconv", &self.name, "--wait=false"]).output());
        }
    }
}

impl Queue {
    /// A queue of the shared operator, watched. `spec` is laid over the smallest one.
    pub(crate) async fn open(name: &str, spec: Value, annotations: Value) -> Option<Self> {
        Some(Self::open_with(&Operator::shared()?, name, &spec, &annotations).await)
    }

    /// The same with any operator.
    pub(crate) async fn open_with(operator: &Arc<Operator>, name: &str, spec: &Value, annotations: &Value) -> Self {
        let queue = Self::prepare(operator, name, (IMAGE_USER, 0)).await;
        queue.declare(spec, annotations);
        queue.ready();
        queue
    }

    /// Volume and claim, with directories of this user and group.
    pub(crate) async fn prepare(operator: &Arc<Operator>, name: &str, owner: (u32, u32)) -> Self {
        Self::prepare_with(operator, name, owner, "ReadWriteMany").await
    }

    /// The same with a claim of this access mode.
    pub(crate) async fn prepare_with(
        operator: &Arc<Operator>,
        name: &str,
        (user, group): (u32, u32),
        mode: &str,
    ) -> Self {
        let volume = operator.namespace.volume(name, mode);
        for directory in ["queue", "output"] {
            let directory = volume.join(directory);
            fs::create_dir_all(&directory).unwrap();
            own(&directory, (user, group));
        }
        let client = operator.cluster.client().await;
        Self { operator: Arc::clone(operator), name: name.to_owned(), volume, client }
    }

    /// Another queue on the same directories, by a claim of its own.
    pub(crate) async fn beside(&self, name: &str) -> Self {
        self.operator.namespace.claim(name, "ReadWriteMany", &self.volume);
        let client = self.operator.cluster.client().await;
        let operator = Arc::clone(&self.operator);
        Self { operator, name: name.to_owned(), volume: self.volume.clone(), client }
    }

    /// Makes the `HyperConversion`.
    pub(crate) fn declare(&self, spec: &Value, annotations: &Value) {
        let path = |directory| json!({"claimName": self.name, "subPath": directory});
        // What lies there before its watcher has no writer that it could see.
        let mut whole = json!({"queue": path("queue"), "output": path("output"), "quietPeriodSeconds": 0});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.operator.namespace.apply(
            &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
                "metadata": {"name": self.name, "annotations": annotations}, "spec": whole})
            .to_string(),
        );
    }

    /// Waits until the queue is watched.
    pub(crate) fn ready(&self) {
        let object = format!("hconv/{}", self.name);
        run(self.kubectl().args(["wait", "--for=condition=Ready", "--timeout=90s", &object]));
    }

    /// Name of the watcher's pod.
    pub(crate) fn pod(&self) -> String {
        format!("{}-watcher-0", self.name)
    }

    /// Waits until a condition has this status and reason.
    pub(crate) async fn says(&self, kind: &str, status: &str, reason: &str) -> String {
        self.says_within(DEADLINE, kind, status, reason).await
    }

    /// The same within this time.
    pub(crate) async fn says_within(&self, time: Duration, kind: &str, status: &str, reason: &str) -> String {
        let found = |queue: &HyperConversion| {
            let conditions = queue.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
            conditions.into_iter().find(|c| c.type_ == kind && c.status == status && c.reason == reason)
        };
        let what = format!("{kind}={status}/{reason}");
        let queue = self.until_within(time, &self.name, &what, |queue| found(queue).is_some()).await;
        found(&queue).unwrap().message
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.operator.namespace.name)
    }

    pub(crate) fn kubectl(&self) -> Command {
        self.operator.kubectl()
    }

    /// A path below the watched directory.
    pub(crate) fn queue(&self, path: &str) -> PathBuf {
        self.volume.join("queue").join(path)
    }

    /// A path below the output directory.
    pub(crate) fn output(&self, path: &str) -> PathBuf {
        self.volume.join("output").join(path)
    }

    /// Brings a file into the queue whole, as a finished upload is.
    pub(crate) fn bring(&self, name: &str, content: &[u8]) {
        let upload = self.volume.join(format!("{name}.upload"));
        fs::write(&upload, content).unwrap();
        fs::rename(upload, self.queue(name)).unwrap();
    }

    /// Waits until `wanted` is true of an object.
    pub(crate) async fn until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.until_within(DEADLINE, name, what, wanted).await
    }

    /// The same within this time.
    async fn until_within<K>(&self, time: Duration, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let mut last = None;
        let seen = timeout(time, async {
            loop {
                let object = self.api::<K>().get_opt(name).await.unwrap();
                if let Some(mut object) = object {
                    object.managed_fields_mut().clear();
                    if wanted(&object) {
                        return object;
                    }
                    last = Some(object);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let Ok(object) = seen.await else { panic!("{name}: not {what}: {last:#?}\n{}", self.account()) };
        object
    }

    /// Waits until `wanted` is true of the volume.
    pub(crate) async fn eventually(&self, what: &str, wanted: impl Fn() -> bool) {
        let seen = timeout(DEADLINE, async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(seen.await.is_ok(), "not {what}: {:#?}\n{}", files(&self.volume), self.account());
    }

    /// What a person would look at after a failure.
    fn account(&self) -> String {
        let mut text = String::new();
        let watcher = self.pod();
        let deployment = format!("deployment/{}-hyper2kvm-operator", self.operator.release().name);
        for words in [
            &["get", "hconv,hcj,jobs,pods", "-o", "wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "--all-containers", "--tail=60", &watcher],
            &["logs", "--tail=60", &deployment],
        ] {
            let output = self.kubectl().args(words).output().unwrap();
            text.push_str(&String::from_utf8_lossy(&output.stdout));
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        text
    }

    pub(crate) async fn conversions(&self) -> Vec<ConversionJob> {
        let of_queue = ListParams::default().fields(&format!("spec.queueRef.name={}", self.name));
        let mut all = self.api::<ConversionJob>().list(&of_queue).await.unwrap().items;
        for conversion in &mut all {
            conversion.managed_fields_mut().clear();
        }
        all
    }

    /// The newest conversion of a file, once `wanted` is true of it.
    pub(crate) async fn conversion(
        &self,
        source: &str,
        what: &str,
        wanted: impl Fn(&ConversionJob) -> bool,
    ) -> ConversionJob {
        let made = timeout(DEADLINE, async {
            loop {
                let mut of_source = self.conversions().await;
                of_source.retain(|conversion| conversion.spec.source.path == source && wanted(conversion));
                of_source.sort_by_key(ResourceExt::creation_timestamp);
                if let Some(newest) = of_source.pop() {
                    return newest;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let Ok(conversion) = made.await else {
            panic!("{source}: not {what}: {:#?}\n{}", self.conversions().await, self.account());
        };
        conversion
    }

    /// The newest conversion of a file, once it has ended in this phase.
    pub(crate) async fn ended(&self, source: &str, phase: JobPhase) -> ConversionJob {
        self.conversion(source, &format!("{phase:?}"), |conversion| {
            let status = conversion.status.clone().unwrap_or_default();
            let is_reported = status.conditions.iter().any(|c| c.type_ == "Succeeded" && c.status != "Unknown");
            status.phase == Some(phase) && is_reported
        })
        .await
    }

    /// Waits until the queue's counters are these: succeeded, failed, duplicates, retried, cancelled.
    pub(crate) async fn counted(&self, totals: [u64; 5]) {
        let what = format!("counting {totals:?}");
        self.until::<HyperConversion>(&self.name, &what, |queue| {
            let counted = queue.status.as_ref().and_then(|status| status.totals);
            counted.is_some_and(|c| [c.succeeded, c.failed, c.duplicates, c.retried, c.cancelled] == totals)
        })
        .await;
    }

    /// Changes the object as `kubectl patch` and `kubectl annotate` do.
    pub(crate) fn patch(&self, change: &Value) {
        let change = change.to_string();
        run(self.kubectl().args(["patch", "hconv", &self.name, "--type=merge", "--patch", &change]));
    }

    /// Waits until the queue's specification has this run state.
    pub(crate) async fn asked(&self, run_state: RunState) {
        let what = format!("{run_state:?}");
        self.until::<HyperConversion>(&self.name, &what, |queue| queue.spec.run_state == run_state).await;
    }

    /// Waits until the API server answers.
    pub(crate) async fn reachable(&self) {
        let asked = timeout(DEADLINE, async {
            while self.api::<Pod>().list(&ListParams::default().limit(1)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(asked.await.is_ok(), "the API server does not answer");
    }

    /// What `hyper2kvmctl` prints in the queue's pod.
    pub(crate) fn ctl(&self, word: &str) -> String {
        run(self.kubectl().args(["exec", &self.pod(), "-c", "sidecar", "--", "hyper2kvmctl", word]))
    }

    /// The same where the command may fail.
    pub(crate) fn try_ctl(&self, words: &[&str]) -> Vec<u8> {
        let mut exec = self.kubectl();
        exec.args(["exec", &self.pod(), "-c", "sidecar", "--", "hyper2kvmctl"]).args(words);
        exec.output().unwrap().stdout
    }

    /// Kills a container of the queue's pod, and waits until it runs again.
    pub(crate) async fn kill(&self, container: &str) {
        let restarts = |pod: &Pod| {
            let status = pod.status.clone().unwrap_or_default();
            let mut all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
            all.find(|status| status.name == container && status.ready).map(|status| status.restart_count)
        };
        let before = self.until(&self.pod(), "running", |pod| restarts(pod).is_some()).await;
        self.operator.namespace.kill_container(&self.pod(), container);
        self.until(&self.pod(), "restarted", |pod| restarts(pod) > restarts(&before)).await;
    }

    /// Names of a conversion's batch Jobs.
    pub(crate) async fn jobs_of(&self, conversion: &ConversionJob) -> Vec<String> {
        let label = format!("hyper2kvm.io/conversion={}", conversion.name_any());
        let jobs = self.api::<Job>().list(&ListParams::default().labels(&label)).await.unwrap();
        jobs.items.iter().map(ResourceExt::name_any).collect()
    }

    /// The error report of a source in `.errors/`.
    pub(crate) fn error_file(&self, name: &str) -> Value {
        let path = self.queue(".errors").join(format!("{name}.error.json"));
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).unwrap()
    }
}

/// Makes this user and group the owners of a directory, without access for others.
pub(crate) fn own(directory: &Path, (user, group): (u32, u32)) {
    chown(directory, Some(user), Some(group)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o770)).unwrap();
}

/// Whether an attempt's pod was seen running.
pub(crate) fn runs(conversion: &ConversionJob) -> bool {
    pod_of(conversion).is_some()
}

/// The pod of the attempt that runs.
pub(crate) fn pod_of(conversion: &ConversionJob) -> Option<String> {
    conversion.status.as_ref()?.state.open_attempt()?.pod_name.clone()
}

/// How each attempt ended.
pub(crate) fn reasons(conversion: &ConversionJob) -> Vec<Option<Reason>> {
    conversion.status.iter().flat_map(|status| &status.state.attempts).map(|attempt| attempt.reason).collect()
}

/// Regular files below a directory with their paths from there, in order.
pub(crate) fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        for entry in fs::read_dir(place).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.is_file() {
                found.push(path.strip_prefix(directory).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
