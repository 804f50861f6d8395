// SPDX-License-Identifier: Apache-2.0
//! Kueue itself decides when attempts start: its own chart and the manager built from its module, on the suite's node. No
//! other test uses the cluster meanwhile, for its webhooks stand before every Job.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper2kvm::cluster::api::{ConversionJob, JobPhase, condition};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::conversion::disks::{guest, holds};
use crate::conversion::stage::{Operator, Queue, files, reasons, runs};
use crate::harness::{Cluster, Need, in_tree, left_out, run};

const HANG: &str = "test.hyper2kvm.io/hang";
const NAMESPACE: &str = "kueue-system";

/// Kueue, uninstalled when its test is over.
struct Kueue(&'static Cluster);

impl Kueue {
    /// Installs it; `None` (and a line `LEFT OUT`) where it can't be built.
    fn install(cluster: &'static Cluster) -> Option<Self> {
        let mut builder = Command::new(in_tree("tests/cluster/build.sh"));
        let built = builder.arg("kueue").stdin(Stdio::null()).output().expect("build.sh runs");
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr).into_owned();
            left_out(&format!("Kueue can't be built: {}", said.lines().last().unwrap_or_default()));
            return None;
        }
        let bin = String::from_utf8(built.stdout).unwrap();
        let bin = Path::new(bin.trim());
        let place = tempfile::tempdir().unwrap();
        let archive = place.path().join("kueue.tar");
        let mut pack = Command::new(in_tree("tests/cluster/archive.sh"));
        run(pack.arg(&archive).arg("localhost/kueue:tests").arg(bin.join("kueue")).arg("manager"));
        run(Command::new(in_tree("tests/cluster/load.sh")).arg(&archive));
        let kueue = Self(cluster);
        let manager = "controllerManager.manager";
        run(cluster
            .helm()
            .args(["upgrade", "--install", "kueue", "--namespace", NAMESPACE, "--create-namespace", "--wait"])
            .arg(bin.join("chart"))
            .arg(format!("--set={manager}.image.repository=localhost/kueue,{manager}.image.tag=tests"))
            .arg(format!("--set={manager}.image.pullPolicy=Never,{manager}.podSecurityContext.runAsUser=65532"))
            .arg(format!("--set={manager}.resources.requests.cpu=50m,{manager}.resources.requests.memory=64Mi"))
            .arg("--set=controllerManager.readinessProbe.initialDelaySeconds=1"));
        Some(kueue)
    }

    /// Applies objects of the operator's namespace or of none.
    fn apply(operator: &Operator, objects: &Value) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        operator.namespace.apply(&list.to_string());
    }

    /// A quota for one worker at a time, and the namespace's way to it. `policy` is laid over the quota.
    fn quota(operator: &Operator, policy: &Value) {
        let resources = json!([{"name": "cpu", "nominalQuota": "300m"}, {"name": "memory", "nominalQuota": "1Gi"}]);
        let mut spec = json!({
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": ["cpu", "memory"],
                                "flavors": [{"name": "any", "resources": resources}]}],
        });
        spec.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let api = "kueue.x-k8s.io/v1beta2";
        Self::apply(
            operator,
            &json!([
                {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
                {"apiVersion": api, "kind": "ClusterQueue", "metadata": {"name": "machines"}, "spec": spec},
                {"apiVersion": api, "kind": "LocalQueue", "metadata": {"name": "migration"},
                 "spec": {"clusterQueue": "machines"}},
            ]),
        );
    }

    /// Whether the quota admits: `None`, `Hold`, `HoldAndDrain`.
    fn stop_policy(&self, policy: &str) {
        let change = json!({"spec": {"stopPolicy": policy}}).to_string();
        run(self.0.kubectl().args(["patch", "clusterqueue", "machines", "--type=merge", "--patch", &change]));
    }
}

impl Drop for Kueue {
    fn drop(&mut self) {
        // While its manager is there, which takes the finalizers off.
        for kind in ["clusterqueues", "resourceflavors", "workloadpriorityclasses"] {
            let kind = format!("{kind}.kueue.x-k8s.io");
            drop(self.0.kubectl().args(["delete", &kind, "--all", "--wait=false"]).output());
        }
        drop(self.0.helm().args(["uninstall", "kueue", "--namespace", NAMESPACE, "--wait"]).output());
        drop(self.0.kubectl().args(["delete", "namespace", NAMESPACE, "--wait=false"]).output());
    }
}

/// Whether the condition Converted has this reason.
fn says(reason: &'static str) -> impl Fn(&ConversionJob) -> bool {
    move |conversion| {
        let conditions = conversion.status.iter().filter_map(|status| condition(&status.conditions, "Converted"));
        conditions.into_iter().any(|said| said.reason == reason)
    }
}

/// How many workers of the queue have not ended.
async fn workers(queue: &Queue) -> usize {
    let pods = queue.api::<Pod>().list(&ListParams::default().labels("hyper2kvm.io/conversion")).await.unwrap();
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    pods.items.iter().filter(|pod| !["Succeeded", "Failed"].contains(&phase(pod).as_str())).count()
}

fn hang(queue: &Queue, how: Value) {
    let mut annotations = json!({});
    annotations[HANG] = how;
    queue.patch(&json!({"metadata": {"annotations": annotations}}));
}

/// Checks that the disk was converted, after attempts that ended so and did not count.
async fn converted(queue: &Queue, name: &str, seed: u64, ends: &[Option<Reason>]) {
    let over = queue.ended(name, JobPhase::Succeeded).await;
    assert_eq!(reasons(&over), ends, "{name}");
    let status = over.status.unwrap();
    assert_eq!(status.attempt_count, Some(1), "{name}");
    holds(&queue.output(&status.outputs[0].path), &guest(1, seed));
}

#[tokio::test]
async fn kueue_s_quota_admits_one_of_two_and_what_it_drains_in_the_middle_is_converted_later_uncounted() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    cluster.alone();
    let Some(kueue) = Kueue::install(cluster) else { return };
    let Some(operator) = Operator::own("kueue-quota") else { return };
    Kueue::quota(&operator, &json!({}));
    let spec = json!({"maxConcurrentJobs": 3, "worker": {"queueName": "migration"}});
    let queue = Queue::open_with(&operator, "quota", &spec, &json!({HANG: "1"})).await;
    queue.bring("first.img", &guest(1, 901));
    queue.conversion("first.img", "running", runs).await;
    hang(&queue, Value::Null);
    queue.bring("second.img", &guest(1, 902));
    queue.conversion("second.img", "waiting for its quota", says("Suspended")).await;
    assert_eq!(workers(&queue).await, 1);

    kueue.stop_policy("HoldAndDrain");
    queue.conversion("first.img", "drained", |c| reasons(c).first() == Some(&Some(Reason::Suspended))).await;
    queue.conversion("first.img", "waiting again", says("Suspended")).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while workers(&queue).await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "a drained worker goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // One that is never admitted can be given up.
    queue.bring("third.img", &guest(1, 903));
    let third = queue.conversion("third.img", "waiting for its quota", says("Suspended")).await;
    run(queue.kubectl().args(["delete", "hcj", &third.name_any(), "--timeout=60s"]));
    queue.eventually("given back", || queue.queue(".errors/third.img").exists()).await;

    kueue.stop_policy("None");
    converted(&queue, "first.img", 901, &[Some(Reason::Suspended), None]).await;
    converted(&queue, "second.img", 902, &[None]).await;
    queue.counted([2, 0, 0, 0, 1]).await;
    queue.eventually("tidied up", || files(&queue.output(".work")).is_empty()).await;
}
