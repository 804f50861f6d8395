// SPDX-License-Identifier: Apache-2.0
//! The operator's identities use exactly the rights that they have: its processes run under their own tokens, and the
//! API server's audit log decides.

mod draining;
mod socket;
mod wide;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper2kvm::cluster::api::{ConversionJob, HyperConversion, JobPhase, condition};
use hyper2kvm::conversion::Reason;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::audit;
use crate::controller::stage::Stage;
use crate::harness::{self, Cluster, Need, in_tree, run};
use crate::replica::{Process, Replica, kubeconfig_of};

/// The rules of a role, as the server stores them.
fn rules(namespace: &str, role: &str, cluster: &Cluster) -> Vec<Value> {
    let text = run(cluster.kubectl().args(["-n", namespace, "get", "role", role, "-o", "json"]));
    let role: Value = serde_json::from_str(&text).unwrap();
    role["rules"].as_array().unwrap().clone()
}

/// The chart's roles for these namespaces and its service account in the first, without anything that runs. With
/// `aggregate`, also the roles that add to Kubernetes's own.
pub(crate) fn grant(cluster: &Cluster, namespaces: &[&str], aggregate: bool) {
    let helm = run(Command::new(in_tree("tests/cluster/build.sh")).arg("helm"));
    let text = run(Command::new(Path::new(helm.trim()).join("helm"))
        .args(["template", "r", "--show-only=templates/rbac.yaml"])
        .arg(format!("--set=rbac.aggregate={aggregate}"))
        .args(["--namespace", namespaces[0]])
        .arg(format!("--set=watchNamespaces={{{}}}", namespaces.join(",")))
        .arg(in_tree("charts/hyper2kvm-operator")));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    run(cluster.kubectl().args(["apply", "-f"]).arg(file.path()));
}

fn reasons(conversion: &ConversionJob) -> Vec<Reason> {
    let attempts = conversion.status.iter().flat_map(|status| &status.state.attempts);
    attempts.filter_map(|attempt| attempt.reason).collect()
}

fn is_phase(conversion: &ConversionJob, phase: JobPhase) -> bool {
    conversion.status.as_ref().and_then(|status| status.phase) == Some(phase)
}

fn job_uid(conversion: &ConversionJob) -> Option<String> {
    conversion.status.as_ref()?.state.attempts.last()?.job_uid.clone()
}

fn list(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[tokio::test]
async fn the_controller_s_roles_in_each_of_its_namespaces_are_what_it_uses_and_nothing_is_denied_it() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(files) = &cluster.state else { return harness::left_out("another's cluster keeps its audit log") };
    let (Some(a), Some(b), Some(other)) = (
        Stage::empty("granted-a", Need::ControlPlane).await,
        Stage::empty("granted-b", Need::ControlPlane).await,
        Stage::empty("foreign", Need::ControlPlane).await,
    ) else {
        return;
    };
    let namespaces = [a.namespace.name.as_str(), b.namespace.name.as_str()];
    grant(cluster, &namespaces, false);
    let place = tempfile::tempdir().unwrap();
    let account = "r-hyper2kvm-operator";
    let credentials = kubeconfig_of(cluster, namespaces[0], account, &place.path().join("kubeconfig"));
    let replica = Replica::start(&credentials, &namespaces, "granted", place.path());
    for stage in [&a, &b, &other] {
        stage.queue("q", &json!({})).await;
    }
    a.until::<StatefulSet>("q-watcher", |_| true).await;
    b.until::<StatefulSet>("q-watcher", |_| true).await;

    // A conversion that succeeds, one whose Job is removed, one that fails, and one whose Job did not exist yet when
    // its attempt was recorded.
    for name in ["done-00000001", "lost-00000002", "fails-00000003"] {
        a.conversion(name, "q").await;
        a.staged(name, 1).await;
        a.until::<ConversionJob>(name, |c| job_uid(c).is_some()).await;
    }
    a.end_pod("done-00000001-1", 0, "").await;
    a.until::<ConversionJob>("done-00000001", |c| is_phase(c, JobPhase::Publishing)).await;
    a.gone::<Job>("done-00000001-1").await;
    a.api::<Job>().delete("lost-00000002-1", &DeleteParams::background()).await.unwrap();
    a.until::<ConversionJob>("lost-00000002", |c| reasons(c) == [Reason::JobLost]).await;
    a.end_pod("fails-00000003-1", 10, "").await;
    a.until::<ConversionJob>("fails-00000003", |c| is_phase(c, JobPhase::Failed)).await;
    a.conversion("again-00000004", "q").await;
    a.until::<ConversionJob>("again-00000004", |c| c.status.is_some()).await;
    let recorded = json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": "again-00000004"},
        "status": {"staged": 1, "attempts": [{"number": 1, "jobName": "again-00000004-1", "startTime": "2026-01-17T09:00:00Z"}]},
    });
    let params = PatchParams::apply("hyper2kvm-watcher").force();
    a.api::<ConversionJob>().patch_status("again-00000004", &params, &Patch::Apply(recorded)).await.unwrap();
    a.until::<ConversionJob>("again-00000004", |c| job_uid(c).is_some()).await;

    // No pod can be made for this one: only an event shows that.
    run(b.namespace.kubectl().args(["create", "quota", "none", "--hard=pods=0"]));
    b.conversion("quota-00000001", "q").await;
    b.staged("quota-00000001", 1).await;
    let told = |c: &ConversionJob| {
        let converted = c.status.as_ref().and_then(|status| condition(&status.conditions, "Converted"));
        converted.is_some_and(|c| {
            c.reason == "WorkerConfig"
                && c.message.contains("exceeded quota")
                && c.message.contains("spec.worker.resources")
        })
    };
    b.until::<ConversionJob>("quota-00000001", told).await;
    // One event for the problem, and one update of it for each time that it reappeared.
    b.conversion("orphan-00000002", "nowhere").await;
    let refused = |c: &ConversionJob| {
        let admitted = c.status.as_ref().and_then(|status| condition(&status.conditions, "Admitted"));
        admitted.is_some_and(|admitted| admitted.reason == "QueueNotFound")
    };
    b.until::<ConversionJob>("orphan-00000002", refused).await;
    let events = || {
        let of = "--field-selector=regarding.name=orphan-00000002";
        run(b.namespace.kubectl().args(["get", "events.events.k8s.io", of, "-o", "jsonpath={.items[*].reason}"]))
    };
    replica.process.until("told by an event", || !events().is_empty());
    assert_eq!(events(), "QueueNotFound");

    // It leaves objects that it doesn't watch alone.
    assert!(!other.exists::<StatefulSet>("q-watcher").await);
    assert!(other.get::<HyperConversion>("q").await.status.is_none());

    let user = format!("system:serviceaccount:{}:{account}", namespaces[0]);
    let asked = audit::requests(files, |name| name == user);
    let denied: Vec<_> = asked.iter().filter(|request| !request.allowed || request.code == 403).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    // Those of a whole cluster are the same: see `wide`.
    // Gone with its first deletion, which the controller knows.
    let deletions = asked.iter().filter(|request| request.verb == "delete" && request.name == "done-00000001-1");
    assert_eq!(deletions.map(|request| request.code).collect::<Vec<_>>(), [200]);
    let mut granted = audit::granted(&rules(namespaces[0], account, cluster));
    assert_eq!(granted, audit::granted(&rules(namespaces[1], account, cluster)));
    granted.append(&mut audit::granted(&rules(namespaces[0], &format!("{account}-lease"), cluster)));
    let unused: BTreeSet<_> = granted.difference(&audit::used(&asked)).cloned().collect();
    assert_eq!(
        unused,
        list(&[
            // For the watcher's Role: nobody can grant rights that they don't have.
            "create conversionjobs.hyper2kvm.io",
            "delete conversionjobs.hyper2kvm.io",
            "patch hyperconversions.hyper2kvm.io",
            // A patch that makes its object is authorised as both, and logged as a patch.
            "create networkpolicies.networking.k8s.io",
            "create rolebindings.rbac.authorization.k8s.io",
            "create roles.rbac.authorization.k8s.io",
            "create serviceaccounts",
            "create statefulsets.apps",
            // A repeated event is patched; none was repeated.
            "patch events.events.k8s.io",
            // Demanded only by OwnerReferencesPermissionEnforcement.
            "update conversionjobs/finalizers.hyper2kvm.io",
            "update hyperconversions/finalizers.hyper2kvm.io",
        ])
    );
}

#[test]
fn whoever_views_or_edits_a_namespace_views_or_edits_its_queues() {
    let Some(cluster) = Cluster::shared(Need::OwnControlPlane) else { return };
    let namespace = cluster.namespace("aggregated");
    let may = |user: &str, verb: &str| {
        let user = format!("--as={user}");
        ["hyperconversions", "conversionjobs"].map(|kind| {
            let answer = namespace.kubectl().args(["auth", "can-i", verb, kind, &user]).output().unwrap();
            String::from_utf8_lossy(&answer.stdout).trim() == "yes"
        })
    };
    for (user, role) in [("viewer", "view"), ("editor", "edit")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        run(namespace.kubectl().args(["create", "rolebinding", &user[7..], &role, &user]));
    }
    // No other operator of the suite adds to view and edit. An uninstalled release's additions disappear a moment
    // later.
    let since = std::time::Instant::now();
    while (may("viewer", "get"), may("editor", "create")) != ([false; 2], [false; 2]) {
        assert!(since.elapsed().as_secs() < 30, "view and edit allow it without the chart");
    }
    grant(cluster, &[&namespace.name], true);
    let since = std::time::Instant::now();
    while may("viewer", "watch") != [true; 2] || may("editor", "delete") != [true; 2] {
        assert!(since.elapsed().as_secs() < 30, "nothing was added to view and edit");
    }
    assert_eq!(
        (may("viewer", "list"), may("editor", "create"), may("editor", "patch")),
        ([true; 2], [true; 2], [true; 2])
    );
    assert_eq!(
        (may("viewer", "create"), may("viewer", "patch"), may("viewer", "delete")),
        ([false; 2], [false; 2], [false; 2])
    );
    for role in ["view", "edit"] {
        run(cluster.kubectl().args(["delete", "clusterrole", &format!("r-hyper2kvm-operator-{role}")]));
    }
}

/// The directories of a queue `q`, whose watcher and sidecar run beside the cluster.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for directory in ["queue", "output", "run"] {
            fs::create_dir(place.path().join(directory)).unwrap();
        }
        Self(place)
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("output/.daemon/control.sock")
    }

    /// Both processes, as soon as the socket is there.
    fn start(&self, credentials: &Path, namespace: &str, uid: &str) -> [Process; 2] {
        let processes = ["watcher", "sidecar"].map(|word| self.start_one(word, credentials, namespace, uid));
        processes[1].until("listening", || UnixStream::connect(self.socket()).is_ok());
        processes
    }

    fn start_one(&self, word: &str, credentials: &Path, namespace: &str, uid: &str) -> Process {
        let place = self.0.path();
        let mut words = vec![word.to_owned(), "--queue=q".to_owned(), "--pod=q-watcher-0".to_owned()];
        words.extend([format!("--namespace={namespace}"), format!("--queue-uid={uid}")]);
        words.extend(["queue", "output", "run"].map(|dir| format!("--{dir}-dir={}", place.join(dir).display())));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Process::start(credentials, &words, &place.join(format!("{word}.log")))
    }
}

/// A claim of a queue that is gone, with its file.
fn left_claim(directory: &Path, file: &str) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join(file), [7; 4096]).unwrap();
    let found = fs::metadata(directory.join(file)).unwrap();
    let claim = json!({
        "contractVersion": 1, "id": directory.file_name().unwrap().to_str(), "queueUid": "gone", "primary": file,
        "members": [{"name": file, "sizeBytes": 4096, "mtimeNs": found.mtime() * 1_000_000_000 + found.mtime_nsec(), "inode": found.ino()}],
        "claimedAt": "2026-01-17T09:00:00Z", "date": "2026-01-17",
    });
    fs::write(directory.join("claim.json"), claim.to_string()).unwrap();
}

#[tokio::test]
async fn a_watcher_s_role_is_what_it_and_its_sidecar_use_and_nothing_is_denied_them() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(files) = &cluster.state else { return harness::left_out("another's cluster keeps its audit log") };
    let Some(stage) = Stage::open("watcher").await else { return };
    stage.queue("q", &json!({"successfulHistoryLimit": 0})).await;
    stage.until::<StatefulSet>("q-watcher", |_| true).await;
    let site = Site::new();
    let [queue, output] = ["queue", "output"].map(|name| site.0.path().join(name));
    // It looks for the object of an earlier queue's claim, and gives the file back.
    left_claim(&queue.join(".processing/web01-00000001"), "web01.img");
    // Which worked with this output.
    fs::create_dir(output.join(".work")).unwrap();
    let namespace = stage.namespace.name.as_str();
    let credentials = kubeconfig_of(cluster, namespace, "q-watcher", &site.0.path().join("kubeconfig"));
    let uid = stage.get::<HyperConversion>("q").await.uid().unwrap();
    let [watcher, sidecar] = site.start(&credentials, namespace, &uid);
    let socket = site.socket();
    let ctl = |word: &str| {
        let ctl =
            Command::new(env!("CARGO_BIN_EXE_hyper2kvmctl")).arg("--socket").arg(&socket).arg(word).output().unwrap();
        assert!(ctl.status.success(), "{ctl:?} {} {}", sidecar.said(), watcher.said());
    };
    ctl("pause");
    ctl("resume");

    let name = stage.first_conversion().await;
    stage.until::<ConversionJob>(&name, |c| job_uid(c).is_some()).await;
    let job = format!("{name}-1");
    let pod = stage.run_pod(&job).await;
    let folder = output.join(format!(".work/{name}/1/{pod}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("web01.qcow2"), [8; 512]).unwrap();
    let metadata = json!({
        "contractVersion": 1, "id": name, "toolVersion": "0", "startTime": "2026-01-17T09:00:00Z",
        "endTime": "2026-01-17T09:00:01Z", "durationMs": 1000,
        "source": {"name": "web01.img", "sizeBytes": 4096, "format": "raw"},
        "disks": [{"file": "web01.qcow2", "format": "qcow2", "virtualSizeBytes": 4096, "allocatedBytes": 512, "sourceMember": "web01.img"}],
    });
    fs::write(folder.join("metadata.json"), metadata.to_string()).unwrap();
    stage.end_pod(&job, 0, "").await;
    // It is removed from the history.
    while !stage.api::<ConversionJob>().list(&ListParams::default()).await.unwrap().items.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    let user = format!("system:serviceaccount:{namespace}:q-watcher");
    let asked = audit::requests(files, |name| name == user);
    let denied: Vec<_> = asked.iter().filter(|request| !request.allowed || request.code == 403).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    let granted = audit::granted(&rules(namespace, "q-watcher", cluster));
    let done = audit::used(&asked);
    let unused: Vec<_> = granted.difference(&done).collect();
    assert!(unused.is_empty(), "{unused:?}");
}
