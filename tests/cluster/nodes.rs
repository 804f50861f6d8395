// SPDX-License-Identifier: Apache-2.0
//! Two nodes: pods move, and a node is lost with whatever ran on it. Every conversion ends once, and nothing waits without
//! saying for whom. No other test uses the cluster meanwhile.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase, condition};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files, pod_of, reasons, runs};
use crate::harness::{Cluster, Need, SECOND_NODE, in_tree, left_out, run};

const HANG: &str = "test.hyper2kvm.io/hang";
/// How long a lost node's pods may stand in the way once it was said to be off: the garbage collector looks every 20 s.
const MOVED_WITHIN: Duration = Duration::from_secs(120);

/// The second node, removed when its test is over.
struct SecondNode(&'static Cluster);

fn script(word: &str) {
    run(Command::new(in_tree("tests/cluster/second.sh")).arg(word).stdin(Stdio::null()));
}

impl SecondNode {
    fn up(cluster: &'static Cluster) -> Self {
        let node = Self(cluster);
        // The new node gets the images that the first one has at this moment.
        assert!(cluster.image().is_some(), "a cluster with nodes of its own runs our image");
        script("up");
        node
    }

    /// Acts as the controller manager, which waits 50 s before it says that a node does not answer. Pods that were ready
    /// stay so, which is less than it says.
    fn is_silent(&self) {
        let ready = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "silent"});
        let status = json!({"status": {"conditions": [ready]}}).to_string();
        run(self.0.kubectl().args(["patch", "node", SECOND_NODE, "--subresource=status", "--patch", &status]));
    }

    /// Acts as the administrator who knows that it is off (`""`), or on again (`"-"`).
    fn out_of_service(&self, minus: &str) {
        let taint = format!("node.kubernetes.io/out-of-service=nodeshutdown:NoExecute{minus}");
        run(self.0.kubectl().args(["taint", "node", SECOND_NODE, &taint]));
    }

    /// It is off, and everybody knows.
    fn lost(&self) {
        script("lose");
        self.is_silent();
        self.out_of_service("");
    }

    fn back(&self) {
        script("back");
        run(self.0.kubectl().args(["wait", "--for=condition=Ready", "--timeout=60s", "node", SECOND_NODE]));
    }
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        script("down");
    }
}

/// Whether minutes may be waited in which nothing happens: a pod is called lost a minute after it should have gone.
fn is_long() -> bool {
    let is_long = std::env::var_os("HYPER2KVM_LONG").is_some();
    if !is_long {
        left_out("it waits for minutes: make test-long");
    }
    is_long
}

/// Placement of pods that go to the second node as long as there is one.
fn there() -> Value {
    let host = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [SECOND_NODE]});
    let preferred = json!([{"weight": 100, "preference": {"matchExpressions": [host]}}]);
    json!({
        "tolerations": [
            {"key": "hyper2kvm.io/second", "operator": "Exists"},
            // Five minutes, unless a pod says otherwise.
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
        ],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
    })
}

/// Conversions that take some seconds.
fn slow() -> Value {
    json!({"outFormat": "qcow2", "compress": "zstd", "compressLevel": 15})
}

/// Where a pod is.
async fn node_of(queue: &Queue, pod: &str) -> String {
    queue.api::<Pod>().get(pod).await.unwrap().spec.unwrap().node_name.unwrap_or_default()
}

/// Waits until the queue's watcher runs on this node.
async fn watched_from(queue: &Queue, node: &str) {
    let moved = timeout(MOVED_WITHIN, async {
        let is_there = |pod: &Pod| {
            let ready = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let is_ready = ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
            is_ready && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
        };
        while !queue.api::<Pod>().get_opt(&queue.pod()).await.unwrap().as_ref().is_some_and(is_there) {
            sleep(Duration::from_millis(200)).await;
        }
    });
    moved.await.unwrap_or_else(|_| panic!("the watcher does not run on {node}"));
    queue.ready();
}

/// Checks that these sources (name, MiB, seed) were converted, each once; returns how often an attempt was disrupted.
async fn each_once(queue: &Queue, sources: &[(String, usize, u64)]) -> usize {
    let mut disrupted = 0;
    for (name, mib, seed) in sources {
        let over = queue.ended(name, JobPhase::Succeeded).await;
        let mut ends = reasons(&over);
        assert_eq!(ends.pop(), Some(None), "{name}");
        assert!(ends.iter().all(|end| *end == Some(Reason::Disrupted)), "{name}: {ends:?}");
        disrupted += ends.len();
        let status = over.status.unwrap();
        assert_eq!(status.attempt_count, Some(1), "{name}");
        assert_eq!(status.outputs.len(), 1, "{name}");
        holds(&queue.output(&status.outputs[0].path), &guest(*mib, *seed));
    }
    let count = sources.len();
    queue.counted([count as u64, 0, 0, 0, 0]).await;
    assert_eq!(queue.conversions().await.len(), count);
    assert_eq!(files(&queue.queue(".processed")).len(), count);
    queue.eventually("tidied up", || files(&queue.output(".work")).is_empty()).await;
    let disks = files(&queue.output(""))
        .into_iter()
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "qcow2"))
        .count();
    assert_eq!(disks, count, "{:?}", files(&queue.output("")));
    disrupted
}

#[tokio::test]
async fn a_node_lost_in_the_middle_of_ten_conversions_costs_no_file_and_takes_work_again_when_it_is_back() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let Some(operator) = Operator::own("node-lost") else { return };
    let node = SecondNode::up(cluster);
    let spec = json!({"maxConcurrentJobs": 3, "conversion": slow(), "worker": there()});
    let queue = Queue::open_with(&operator, "lost", &spec, &json!({HANG: "1"})).await;
    let sources: Vec<_> = (0..10).map(|n| (format!("disk{n}.img"), 2, 500 + n)).collect();
    for (name, mib, seed) in &sources {
        queue.bring(name, &guest(*mib, *seed));
    }
    let running = running(&queue, 3).await;
    for pod in &running {
        assert_eq!(node_of(&queue, pod).await, SECOND_NODE);
    }
    queue.patch(&json!({"metadata": {"annotations": {HANG: null}}}));
    node.lost();
    assert_eq!(each_once(&queue, &sources).await, 3);

    node.out_of_service("-");
    node.back();
    queue.patch(&json!({"metadata": {"annotations": {HANG: "1"}}}));
    queue.bring("late.img", &guest(1, 520));
    let late = queue.conversion("late.img", "running", runs).await;
    let pod = pod_of(&late).unwrap();
    assert_eq!(node_of(&queue, &pod).await, SECOND_NODE);
}

/// The pods of this many conversions or more, once they run.
async fn running(queue: &Queue, count: usize) -> Vec<String> {
    let seen = timeout(MOVED_WITHIN, async {
        loop {
            let pods: Vec<_> = queue.conversions().await.iter().filter_map(pod_of).collect();
            if pods.len() >= count {
                return pods;
            }
            sleep(Duration::from_millis(100)).await;
        }
    });
    seen.await.expect("workers run")
}

/// The reason and message of the condition Converted.
fn converted(conversion: &ConversionJob) -> Option<(String, String)> {
    let said = condition(&conversion.status.as_ref()?.conditions, "Converted")?;
    Some((said.reason.clone(), said.message.clone()))
}

#[tokio::test]
async fn a_node_without_network_is_waited_for_by_name_and_each_conversion_ends_once() {
    if !is_long() {
        return;
    }
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let Some(operator) = Operator::own("node-cut") else { return };
    let node = SecondNode::up(cluster);
    let spec = json!({"maxConcurrentJobs": 2, "conversion": slow(), "worker": there()});
    let queue = Queue::open_with(&operator, "cut", &spec, &json!({HANG: "1"})).await;
    let sources = [("hangs.img".to_owned(), 1, 601), ("works.img".to_owned(), 48, 602)];
    queue.bring("hangs.img", &guest(1, 601));
    queue.conversion("hangs.img", "running", runs).await;
    queue.patch(&json!({"metadata": {"annotations": {HANG: null}}}));
    queue.bring("works.img", &guest(48, 602));
    queue.conversion("works.img", "running", runs).await;
    script("cut");
    node.is_silent();
    // Nobody says that it is off: two pods must not write to one directory.
    for name in ["hangs.img", "works.img"] {
        let waits = |c: &ConversionJob| converted(c).is_some_and(|(reason, _)| reason == "WaitingForPod");
        let said = timeout(MOVED_WITHIN * 2, async {
            loop {
                let all = queue.conversions().await;
                if let Some(found) = all.into_iter().find(|c| c.spec.source.path == name && waits(c)) {
                    return converted(&found).unwrap().1;
                }
                sleep(Duration::from_millis(500)).await;
            }
        });
        let said = said.await.unwrap_or_else(|_| panic!("{name} waits and does not say for whom"));
        assert!(said.contains("node node2") && said.contains("kubectl delete node node2"), "{said}");
    }
    node.back();
    // What it finished meanwhile does not count: the attempt was over when its pod was to go.
    assert_eq!(each_once(&queue, &sources).await, 2);
}

/// The operator's own pod that leads.
async fn controller(operator: &Operator) -> Option<String> {
    let pods: Api<Pod> = Api::namespaced(operator.cluster.client().await, &operator.release().name);
    let ours = ListParams::default().labels("app.kubernetes.io/name=hyper2kvm-operator");
    let found = pods.list(&ours).await.unwrap().items;
    let mut alive = found.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    alive.next()?.spec?.node_name
}

#[tokio::test]
async fn the_nodes_of_the_watcher_and_of_the_controller_may_be_lost() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let node = SecondNode::up(cluster);
    let placement = there();
    let values: Vec<String> =
        ["tolerations", "affinity"].map(|key| format!("--set-json={key}={}", placement[key])).into();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let Some(operator) = Operator::own_with("node-head", &values) else { return };
    assert_eq!(controller(&operator).await.as_deref(), Some(SECOND_NODE));
    let spec = json!({"maxConcurrentJobs": 2, "conversion": slow(), "watcher": placement});
    let queue = Queue::open_with(&operator, "head", &spec, &json!({})).await;
    assert_eq!(node_of(&queue, &queue.pod()).await, SECOND_NODE);
    let sources: Vec<_> = (0..6).map(|n| (format!("disk{n}.img"), 8, 700 + n)).collect();
    for (name, mib, seed) in &sources[..5] {
        queue.bring(name, &guest(*mib, *seed));
    }
    running(&queue, 1).await;
    node.lost();
    queue.bring(&sources[5].0, &guest(8, 705));
    watched_from(&queue, "node1").await;
    each_once(&queue, &sources).await;
    assert_eq!(controller(&operator).await.as_deref(), Some("node1"));
}

#[tokio::test]
async fn a_watcher_whose_node_is_silent_is_not_ready_and_the_queue_says_which_node_it_waits_for() {
    if !is_long() {
        return;
    }
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let Some(operator) = Operator::own("node-silent") else { return };
    let node = SecondNode::up(cluster);
    let queue = Queue::open_with(&operator, "silent", &json!({"watcher": there()}), &json!({})).await;
    queue.bring("disk.img", &guest(1, 801));
    queue.ended("disk.img", JobPhase::Succeeded).await;
    // Its processes go on, and hold the queue's locks.
    script("cut");
    node.is_silent();
    let said = queue.says_within(MOVED_WITHIN * 2, "WatcherAvailable", "False", "NodeLost").await;
    assert!(said.contains("node node2") && said.contains("kubectl delete node node2"), "{said}");
    queue.bring("late.img", &guest(1, 802));
    node.out_of_service("");
    // Given up too early: the old watcher holds the locks of the new one, which says so.
    let said = queue.says("StorageReady", "False", "Locked").await;
    println!("{said}");
    node.out_of_service("-");
    node.back();
    watched_from(&queue, "node1").await;
    let sources = [("disk.img".to_owned(), 1, 801), ("late.img".to_owned(), 1, 802)];
    each_once(&queue, &sources).await;
}
