// SPDX-License-Identifier: Apache-2.0
//! A real API server and, where this machine can run it, a real node: shared by all tests of a run, one namespace
//! each.
//!
//! `up.sh` beside this file boots it. A `KUBECONFIG` that is set names another cluster instead, such as kind's, with
//! `HYPER2KVM_IMAGE` and `HYPER2KVM_VOLUMES` for tests with pods. Where something is missing, the test that needs it
//! says so on standard error and passes without having run.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Label of objects that a test made outside its namespace.
pub(crate) const TEST_LABEL: &str = "hyper2kvm.io/test";

/// The node that `second.sh` makes, and its directory below the cluster's.
pub(crate) const SECOND_NODE: &str = "node2";

/// What a test needs from its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// An API server with its controllers.
    ControlPlane,
    /// The same of our own: tests that remove what another may have installed, or own the definitions.
    OwnControlPlane,
    /// Pods that run, on volumes whose files are also this machine's.
    Node,
    /// The same on a node of our own: tests kill its containers, stop its parts and build its images.
    OwnNode,
}

/// The cluster of this run.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Credentials of an administrator.
    pub kubeconfig: PathBuf,
    /// Directory with the cluster's files; `None` for a foreign cluster.
    pub state: Option<PathBuf>,
    /// Why no pods run here, if none do.
    without_node: Option<String>,
    /// Where the volumes of tests lie: here and on every node.
    volumes: PathBuf,
    /// A lock: the cluster stays up while it is held.
    user: Option<File>,
}

impl Cluster {
    /// The cluster, booted by the first caller; `None` (and a line `LEFT OUT`) where this machine can't run what is
    /// needed.
    pub(crate) fn shared(need: Need) -> Option<&'static Self> {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let cluster = match SHARED.get_or_init(Self::find_or_boot) {
            Ok(cluster) => cluster,
            Err(reason) => {
                left_out(reason);
                return None;
            }
        };
        let missing = match need {
            Need::OwnControlPlane if cluster.state.is_none() => Some("another's cluster is not ours to change"),
            Need::ControlPlane | Need::OwnControlPlane => None,
            Need::OwnNode if cluster.state.is_none() => Some("another's node is not ours to disturb"),
            Need::Node | Need::OwnNode => cluster.without_node.as_deref(),
        };
        missing.inspect(|reason| left_out(reason)).is_none().then_some(cluster)
    }

    fn find_or_boot() -> Result<Self, String> {
        let cluster = match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            Some(kubeconfig) => Self::foreign(kubeconfig.into())?,
            None => Self::boot()?,
        };
        // The definitions of this checkout, whatever an earlier run left; applied once a run.
        let defined = cluster.state.as_ref().map(|state| state.join("definitions"));
        let wanted = definitions();
        if defined.as_ref().is_some_and(|path| fs::read(path).is_ok_and(|text| text == wanted)) {
            return Ok(cluster);
        }
        run(cluster.kubectl().args(["apply", "--server-side", "--force-conflicts", "-k"]).arg(in_tree("crds")));
        for kind in ["hyperconversions.hyper2kvm.io", "conversionjobs.hyper2kvm.io"] {
            // `kubectl wait` fails on a definition so young that it has no condition yet; listing objects does not.
            let served = || cluster.kubectl().args(["get", kind, "--all-namespaces"]).output();
            while !served().is_ok_and(|output| output.status.success()) {
                std::thread::yield_now();
            }
        }
        if let Some(path) = defined {
            // Renamed in one step: another test may read it.
            let new = path.with_extension(std::process::id().to_string());
            fs::write(&new, wanted).and_then(|()| fs::rename(new, path)).map_err(|error| error.to_string())?;
        }
        Ok(cluster)
    }

    /// A cluster that was not started by this suite.
    fn foreign(kubeconfig: PathBuf) -> Result<Self, String> {
        let volumes = std::env::var_os("HYPER2KVM_VOLUMES").map(PathBuf::from);
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        let without_node = if volumes.is_none() {
            Some("HYPER2KVM_VOLUMES names no directory that is the same here and on this cluster's nodes".to_owned())
        } else {
            (!is_root).then(|| "volumes get their owners, which takes root".to_owned())
        };
        let volumes = volumes.unwrap_or_default();
        let cluster = Self { kubeconfig, state: None, without_node, volumes, user: None };
        // Two controllers of one object would undo each other's writes.
        let operators = run(cluster
            .kubectl()
            .args(["get", "deployments", "--all-namespaces", "-o", "json"])
            .args(["--selector=app.kubernetes.io/name=hyper2kvm-operator"]));
        let operators: serde_json::Value = serde_json::from_str(&operators).expect("kubectl prints JSON");
        let is_wide = |operator: &&serde_json::Value| !operator.to_string().contains("HYPER2KVM_WATCH_NAMESPACES");
        match operators["items"].as_array().and_then(|all| all.iter().find(is_wide)) {
            None => Ok(cluster),
            Some(wide) => Err(format!(
                "the cluster suite: the operator in namespace {} watches the tests' namespaces too; set its watchNamespaces, \
                 or uninstall it",
                wide["metadata"]["namespace"]
            )),
        }
    }

    fn boot() -> Result<Self, String> {
        if !Path::new("/usr/bin/openssl").exists() {
            return Err("the cluster suite: openssl is missing".into());
        }
        loop {
            let up = Command::new(in_tree("tests/cluster/up.sh"))
                .env("HYPER2KVM_CLUSTER_KEEPER", "1")
                .stdin(Stdio::null())
                .output()
                .map_err(|error| format!("the cluster suite: cannot run tests/cluster/up.sh: {error}"))?;
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            if !up.status.success() {
                assert!(said.contains("not installed"), "tests/cluster/up.sh failed: {said}");
                return Err(format!("the cluster suite: {}", said.trim()));
            }
            let kubeconfig = PathBuf::from(String::from_utf8_lossy(&up.stdout).trim());
            let state = kubeconfig.parent().expect("a file lies in a directory").to_owned();
            let without_node =
                said.lines().find_map(|line| line.split_once("left out: ")).map(|(_, why)| why.to_owned());
            // Another process may have taken it down between the boot and the lock.
            if let Some(user) = use_of(&state) {
                let volumes = state.join("volumes");
                return Ok(Self { kubeconfig, state: Some(state), without_node, volumes, user: Some(user) });
            }
        }
    }

    /// Waits until no other test uses this cluster, and keeps others out until this one ends.
    pub(crate) fn alone(&self) {
        self.user.as_ref().expect("a cluster of our own").lock().expect("its file can be locked");
    }

    /// A client of the API server.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config().await).expect("the configuration makes a client")
    }

    /// The configuration of a client.
    pub(crate) async fn config(&self) -> kube::Config {
        // A second installation in the same process fails, which does no harm.
        drop(rustls::crypto::ring::default_provider().install_default());
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("up.sh wrote it");
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("the kubeconfig is complete")
    }

    /// kubectl, pointed at this cluster.
    pub(crate) fn kubectl(&self) -> Command {
        let built = self.state.as_ref().and_then(|state| fs::read_to_string(state.join("bin")).ok());
        let program = built.map_or_else(|| PathBuf::from("kubectl"), |bin| Path::new(bin.trim()).join("kubectl"));
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// Helm, pointed at this cluster; built on first use.
    pub(crate) fn helm(&self) -> Command {
        let mut command = Command::new(helm());
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// The image of the binaries that cargo built for this run, built and brought into the node on first use; `None`
    /// (and a line `LEFT OUT`) where buildah is missing. For a foreign cluster, `HYPER2KVM_IMAGE` names it.
    pub(crate) fn image(&self) -> Option<String> {
        if self.state.is_none() {
            let image = std::env::var("HYPER2KVM_IMAGE").ok();
            if image.is_none() {
                left_out("HYPER2KVM_IMAGE does not say which image this cluster has");
            }
            return image;
        }
        self.image_of(binaries())
    }

    /// The same of other binaries, in a node of our own.
    pub(crate) fn image_of(&self, binaries: &Path) -> Option<String> {
        self.built(binaries, "operator")
    }

    /// The image of workers that fix guests, as [`Cluster::image`].
    pub(crate) fn fixer(&self) -> Option<String> {
        if self.state.is_none() {
            left_out("a cluster that somebody else runs takes no image");
            return None;
        }
        self.built(binaries(), "fixer")
    }

    fn built(&self, binaries: &Path, kind: &str) -> Option<String> {
        assert!(self.state.is_some(), "a cluster that somebody else runs takes no image");
        let mut build = Command::new(in_tree("tests/cluster/image.sh"));
        let output = build.arg(binaries).arg(kind).stdin(Stdio::null()).output().expect("image.sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        if let Some((_, reason)) = said.split_once("left out: ") {
            left_out(reason.trim());
            return None;
        }
        assert!(output.status.success(), "tests/cluster/image.sh failed: {said}");
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The cluster with `KubeVirt`'s definition of a machine; `None` where that can't be had.
    pub(crate) fn with_kubevirt() -> Option<&'static Self> {
        let cluster = Self::shared(Need::OwnControlPlane)?;
        let output = Command::new(in_tree("tests/cluster/build.sh")).arg("kubevirt").output().expect("a shell runs");
        if !output.status.success() {
            left_out("KubeVirt's definitions: Go is missing");
            return None;
        }
        let judge = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("kubevirt");
        let definition = run(Command::new(judge).arg("crd"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), definition).unwrap();
        run(cluster.kubectl().args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(file.path()));
        let served =
            || cluster.kubectl().args(["get", "virtualmachines.kubevirt.io", "-A"]).stderr(Stdio::null()).status();
        while !served().is_ok_and(|status| status.success()) {
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(cluster)
    }

    /// This machine's address for pods: the one by which it reaches their nodes.
    pub(crate) fn host(&self) -> IpAddr {
        let path = "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}";
        let node = run(self.kubectl().args(["get", "nodes", "-o", path]));
        let node: IpAddr = node.parse().expect("a node has one address of its own");
        // Nothing is sent: connecting only chooses the local address.
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket.connect((node, 443)).expect("the way to the cluster is known");
        socket.local_addr().expect("it is connected").ip()
    }

    /// Stops (at once, as a power cut would) or starts again `apiserver` or `kubelet`.
    pub(crate) fn part(&self, what: &str, part: &str) {
        assert!(self.state.is_some(), "a cluster that somebody else runs is not stopped");
        run(Command::new(in_tree("tests/cluster/part.sh")).args([what, part]).stdin(Stdio::null()));
    }

    /// A namespace that another process of this run made, and that stays.
    pub(crate) fn shared_namespace(&'static self, name: &str) -> Namespace {
        Namespace { cluster: self, name: name.to_owned(), is_shared: true }
    }

    /// A namespace for one test, named after it, which admits only pods of the restricted profile.
    pub(crate) fn namespace(&'static self, test: &str) -> Namespace {
        let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
        let name = format!("{test}-{:x}", unique & 0xffff_ffff);
        let labels = serde_json::json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = Namespace { cluster: self, name: name.clone(), is_shared: false };
        namespace.apply(
            &serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
                .to_string(),
        );
        // The controller manager makes it a moment later; until then, a pod without an account of its own is refused.
        run(namespace.kubectl().args(["wait", "--for=create", "serviceaccount/default", "--timeout=60s"]));
        namespace
    }
}

/// A namespace, deleted when its test is over.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub cluster: &'static Cluster,
    pub name: String,
    /// Whether it stays for other tests of the run.
    pub is_shared: bool,
}

impl Namespace {
    /// kubectl in this namespace.
    pub(crate) fn kubectl(&self) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", &self.name]);
        command
    }

    /// Changes a stored `HyperConversion`, as if an older schema had accepted it: `new` replaces `old`. False where a
    /// foreign cluster stores it.
    pub(crate) fn store(&self, queue: &str, old: &str, new: &str) -> bool {
        let is_ours = self.cluster.state.is_some();
        if is_ours {
            let key = format!("/registry/hyper2kvm.io/hyperconversions/{}/{queue}", self.name);
            run(Command::new(in_tree("tests/cluster/store.sh")).args([&key, old, new]).stdin(Stdio::null()));
        }
        is_ours
    }

    /// A hostPath directory on the node, and a claim of that name bound to it.
    pub(crate) fn volume(&self, claim: &str, mode: &str) -> PathBuf {
        let path = self.cluster.volumes.join(&self.name).join(claim);
        fs::create_dir_all(&path).expect("the volumes' directory is ours");
        self.claim(claim, mode, &path);
        path
    }

    /// A claim of that name, bound to a directory of the node.
    pub(crate) fn claim(&self, claim: &str, mode: &str, path: &Path) {
        let volume = format!("{}-{claim}", self.name);
        let manifest = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "PersistentVolume",
             "metadata": {"name": volume, "labels": {TEST_LABEL: self.name}},
             "spec": {"capacity": {"storage": "100Gi"}, "accessModes": [mode], "storageClassName": "",
                      "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": path},
                      "claimRef": {"namespace": self.name, "name": claim}}},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
             "spec": {"accessModes": [mode], "storageClassName": "", "volumeName": volume,
                      "resources": {"requests": {"storage": "100Gi"}}}},
        ]});
        self.apply(&manifest.to_string());
    }

    /// Ends a container's processes by SIGKILL, as the kernel would; the kubelet finds it dead.
    pub(crate) fn kill_container(&self, pod: &str, container: &str) {
        let status = run(self.kubectl().args(["get", "pod", pod, "-o", "json"]));
        let status: serde_json::Value = serde_json::from_str(&status).expect("kubectl prints JSON");
        assert!(self.try_kill_container(&status, container), "{pod} has no container {container} that runs");
    }

    /// The same for a pod as kubectl shows it; `false` where the container doesn't run.
    pub(crate) fn try_kill_container(&self, pod: &serde_json::Value, container: &str) -> bool {
        self.signal_container(pod, container, "SIGKILL")
    }

    /// Sends a signal to all processes of a container, with or without a kubelet; `false` where it doesn't run.
    pub(crate) fn signal_container(&self, pod: &serde_json::Value, container: &str, signal: &str) -> bool {
        let Some(id) = container_id(pod, container) else { return false };
        self.tasks(pod).args(["kill", "--signal", signal, "--all", id]).output().expect("ctr runs").status.success()
    }

    /// The first process of a container that runs.
    pub(crate) fn process_of(&self, pod: &serde_json::Value, container: &str) -> u32 {
        let id = container_id(pod, container).expect("it runs");
        let tasks = run(self.tasks(pod).arg("list"));
        let task = tasks.lines().find_map(|line| line.strip_prefix(id)).expect("containerd knows it");
        task.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("ctr prints its process")
    }

    /// `ctr tasks` on the node of a pod.
    fn tasks(&self, pod: &serde_json::Value) -> Command {
        let state = self.cluster.state.as_ref().expect("a node of our own");
        let node = if pod["spec"]["nodeName"] == SECOND_NODE { state.join(SECOND_NODE) } else { state.clone() };
        let mut command = Command::new("ctr");
        command.arg("--address").arg(node.join("run/containerd.sock")).args(["--namespace", "k8s.io", "tasks"]);
        command
    }

    /// Applies a manifest in this namespace.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        let mut child = self
            .kubectl()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(manifest.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.is_shared || std::thread::panicking() && std::env::var_os("HYPER2KVM_KEEP_FAILED").is_some() {
            return;
        }
        drop(self.cluster.kubectl().args(["delete", "namespace", &self.name, "--wait=false"]).output());
        // Volumes and their classes belong to no namespace.
        let of_test = format!("--selector={TEST_LABEL}={}", self.name);
        drop(self.cluster.kubectl().args(["delete", "pv,storageclass", "--wait=false", &of_test]).output());
    }
}

/// Where cargo put the binaries of this run.
pub(crate) fn binaries() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hyper2kvm-operator")).parent().expect("a file lies in a directory")
}

/// The Helm binary, built on first use.
pub(crate) fn helm() -> PathBuf {
    let bin = run(Command::new(in_tree("tests/cluster/build.sh")).arg("helm"));
    Path::new(bin.trim()).join("helm")
}

/// The definitions of our kinds, as `crds/` has them.
fn definitions() -> Vec<u8> {
    let mut files: Vec<_> = fs::read_dir(in_tree("crds")).expect("it is there").map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().flat_map(|file| fs::read(file).expect("a file of ours")).collect()
}

/// A path below the checkout's root.
pub(crate) fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes which test did not run and why, past the test runner's capture.
pub(crate) fn left_out(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    // In one call, because others write at the same time.
    drop(std::io::stderr().write_all(format!("LEFT OUT: {test}: {reason}\n").as_bytes()));
}

/// The ID that containerd gives to a running container, from a pod as kubectl shows it.
fn container_id<'a>(pod: &'a serde_json::Value, container: &str) -> Option<&'a str> {
    let statuses = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    let running = statuses
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status["name"] == container && status["state"]["running"].is_object());
    running?["containerID"].as_str()?.strip_prefix("containerd://")
}

/// The lock that keeps the cluster up; `None` if the cluster was taken down before.
fn use_of(state: &Path) -> Option<File> {
    let path = state.join("users");
    let file = File::options().append(true).create(true).open(&path).ok()?;
    file.lock_shared().ok()?;
    let held = file.metadata().ok()?.ino();
    let still_there = fs::metadata(&path).is_ok_and(|now| now.ino() == held);
    (still_there && state.join("pids/etcd").exists()).then_some(file)
}
