// SPDX-License-Identifier: Apache-2.0
//! Chart, kustomize base and samples: rendered, checked, applied to the real API server, and run on a node.

mod schemas;
mod values;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Cluster, Namespace, Need, in_tree, left_out, run};

const CHART: &str = "charts/hyper2kvm-operator";
const EVERY_FLAG: [&str; 6] = [
    "--set=serviceMonitor.enabled=true",
    "--set=prometheusRule.enabled=true",
    "--set=grafanaDashboard.enabled=true",
    "--set=podDisruptionBudget.enabled=true",
    "--set=networkPolicy.enabled=true",
    "--set=crds.keep=false",
];

/// Scopes that the chart can be installed for.
const SCOPES: [&[&str]; 3] = [&[], &["--set=watchNamespaces={migration}"], &["--set=watchNamespaces={a,b}"]];

fn helm() -> Option<PathBuf> {
    tool("helm")
}

/// A Go program, built on first use.
fn tool(name: &str) -> Option<PathBuf> {
    let output = Command::new(in_tree("tests/cluster/build.sh")).arg(name).output().expect("build.sh runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        assert!(said.contains("not installed"), "tests/cluster/build.sh failed: {said}");
        left_out(said.trim());
        return None;
    }
    Some(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(name))
}

#[test]
fn the_chart_is_in_order_with_and_without_its_flags() {
    let Some(helm) = helm() else { return };
    let chart = in_tree(CHART);
    for scope in SCOPES {
        for flags in [&[][..], &EVERY_FLAG[..]] {
            run(Command::new(&helm).args(["lint", "--strict", "--quiet"]).args(scope).args(flags).arg(&chart));
            let text = run(Command::new(&helm).args(["template", "r"]).arg(&chart).args(scope).args(flags));
            assert_eq!(text.contains("kind: ClusterRoleBinding"), scope.is_empty());
            for kind in ["ServiceMonitor", "PrometheusRule", "PodDisruptionBudget", "NetworkPolicy"] {
                assert_eq!(text.contains(&format!("\nkind: {kind}\n")), !flags.is_empty(), "{kind}");
            }
            assert_eq!(text.contains("helm.sh/resource-policy: keep"), flags.is_empty());
        }
    }
}

#[test]
fn what_the_chart_renders_is_known_to_the_oldest_and_the_newest_kubernetes() {
    let (Some(helm), Some(kubeconform)) = (helm(), tool("kubeconform")) else { return };
    let rendered = tempfile::tempdir().expect("a temporary directory");
    let mut files = vec![in_tree("deploy/base/operator.yaml"), in_tree("deploy/samples")];
    for (number, scope) in SCOPES.into_iter().enumerate() {
        for (flagged, flags) in [&[][..], &EVERY_FLAG[..]].into_iter().enumerate() {
            let text = run(Command::new(&helm).args(["template", "r"]).arg(in_tree(CHART)).args(scope).args(flags));
            let file = rendered.path().join(format!("{number}-{flagged}.yaml"));
            fs::write(&file, text).expect("a directory of ours");
            files.push(file);
        }
    }
    let wrong = rendered.path().join("wrong.yaml");
    let text = fs::read_to_string(&files[0]).expect("it is in the tree");
    fs::write(&wrong, text.replace("enableServiceLinks:", "enableServiceLink:")).expect("a directory of ours");
    for release in ["oldest", "newest"] {
        let swagger = run(Command::new(in_tree("tests/cluster/swagger.sh")).arg(release));
        let made = tempfile::tempdir().expect("a temporary directory");
        schemas::write(Path::new(swagger.trim()), made.path());
        let location = format!("{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json", made.path().display());
        let check = |files: &[PathBuf]| {
            let mut check = Command::new(&kubeconform);
            // The Prometheus operator's kinds are not Kubernetes' own, and of definitions their schema is made.
            check.args(["-strict", "-summary", "-skip=ServiceMonitor,PrometheusRule", "-schema-location", &location]);
            let output = check.args(files).output().expect("kubeconform starts");
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (taken, said) = check(&files);
        assert!(taken, "{release}: {said}");
        assert!(said.contains("Invalid: 0, Errors: 0, Skipped: 6"), "{release}: {said}");
        let (taken, said) = check(std::slice::from_ref(&wrong));
        assert!(!taken && said.contains("enableServiceLink"), "{release}: {said}");
    }
}

/// What a chart of many sites is asked for: names, registries, digests, accounts and contexts of the site's own.
#[test]
fn names_images_and_contexts_are_what_a_site_says() {
    let Some(helm) = helm() else { return };
    let render = |values: &[&str]| {
        let mut command = Command::new(&helm);
        command.args(["template", "r"]).arg(in_tree(CHART)).args(values.iter().flat_map(|value| ["--set", value]));
        let output = command.output().expect("helm starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said) }
    };
    let digest = format!("image.digest=sha256:{}", "a".repeat(64));
    let text = render(&[
        "fullnameOverride=h2k",
        "namespaceOverride=elsewhere",
        "commonLabels.team=storage",
        "global.imageRegistry=mirror.example.com",
        "image.registry=ignored.example.com",
        &digest,
        "global.imagePullSecrets[0].name=of-all",
        "imagePullSecrets[0].name=of-this",
        "replicas=2",
        "podDisruptionBudget.enabled=true",
        "extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://proxy:3128",
        "extraVolumes[0].name=ca,extraVolumes[0].configMap.name=ca",
        "extraVolumeMounts[0].name=ca,extraVolumeMounts[0].mountPath=/etc/ca",
        "securityContext.runAsUser=1234",
        "readinessProbe.periodSeconds=9",
        "networkPolicy.enabled=true",
        "networkPolicy.egress[0].ports[0].port=6443",
    ])
    .unwrap();
    let image = format!("mirror.example.com/hyper2kvm-operator@sha256:{}", "a".repeat(64));
    // The container's, what it gives its workers, and the chart's own test.
    assert_eq!(text.matches(&image).count(), 3, "{text}");
    for said in [
        "name: h2k\n",
        "namespace: elsewhere",
        "team: storage",
        "- name: of-all",
        "- name: of-this",
        "podAntiAffinity",
        "maxUnavailable: 1",
        "value: http://proxy:3128",
        "mountPath: /etc/ca",
        "runAsUser: 1234",
        "readOnlyRootFilesystem: true",
        "periodSeconds: 9",
        "policyTypes: [Ingress, Egress]",
        // The policy holds that account to what it made, wherever it is.
        "'system:serviceaccount:elsewhere:h2k'",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("namespace: default") && !text.contains("name: r-hyper2kvm"), "{text}");
    assert!(!text.contains("HYPER2KVM_QUEUE_DEFAULTS"), "{text}");
    let text = render(&["queueDefaults.log=debug", "queueDefaults.worker.queueName=local"]).unwrap();
    let given = r#"value: "{\"log\":\"debug\",\"worker\":{\"queueName\":\"local\"}}""#;
    assert!(text.contains(given), "{text}");
    assert!(!text.contains("HYPER2KVM_PAGE"), "{text}");
    assert!(render(&["dashboard.enabled=true"]).unwrap().contains("name: HYPER2KVM_PAGE"));
    let bare = render(&["rbac.create=false", "serviceAccount.create=false", "serviceAccount.name=theirs"]).unwrap();
    assert!(!bare.contains("kind: ServiceAccount\nmetadata") && !bare.contains("kind: ClusterRole"), "{bare}");
    assert!(bare.contains("serviceAccountName: theirs"), "{bare}");
    for (values, message) in [
        (vec!["serviceAccount.create=false"], "serviceAccount.name: name the account"),
        (
            vec!["podDisruptionBudget.enabled=true", "podDisruptionBudget.minAvailable=1"],
            "no node with one could be drained",
        ),
        (
            vec!["podDisruptionBudget.enabled=true", "podDisruptionBudget.maxUnavailable=0"],
            "no node with one could be drained",
        ),
        // Half of one is one.
        (
            vec!["podDisruptionBudget.enabled=true", "podDisruptionBudget.minAvailable=50%"],
            "no node with one could be drained",
        ),
        (vec!["image.digest=sha256:12"], "at '/image/digest'"),
    ] {
        let said = render(&values).unwrap_err();
        assert!(said.contains(message), "{values:?}: {said}");
    }
}

#[test]
fn a_value_that_the_chart_does_not_know_is_refused() {
    let Some(helm) = helm() else { return };
    for (value, message) in [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("replicas=two", "at '/replicas': got string, want integer"),
        (
            "image.pullPolicy=Sometimes",
            "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        ("watchNamespaces={Up}", "at '/watchNamespaces/0'"),
        ("queueDefaults.workers.queueName=a", "additional properties 'workers' not allowed"),
        ("queueDefaults.retention.processedDays=0", "at '/queueDefaults/retention/processedDays'"),
        ("resources.limit.memory=1Gi", "additional properties 'limit' not allowed"),
        ("tolerations[0].keys=a", "additional properties 'keys' not allowed"),
    ] {
        let output = Command::new(&helm).args(["template", "r", "--set", value]).arg(in_tree(CHART)).output();
        let said = String::from_utf8_lossy(&output.expect("helm starts").stderr).into_owned();
        assert!(said.contains(message), "{value}: {said}");
    }
}

#[test]
fn prometheus_takes_the_rules() {
    if Command::new("promtool").arg("--version").output().is_err() {
        return left_out("promtool is missing (Debian: prometheus)");
    }
    run(Command::new("promtool").args(["check", "rules"]).arg(in_tree(CHART).join("files/rules.yaml")));
    // Those that must fire do, also where nothing but failures is known.
    run(Command::new("promtool").args(["test", "rules"]).arg(in_tree("tests/cluster/packaging/rules.yaml")));
}

#[test]
fn each_alert_names_its_section_and_each_panel_a_metric_that_is_documented() {
    let read = |path: &str| fs::read_to_string(in_tree(path)).expect("it is in the tree");
    let (page, rules) = (read("docs/operations-cluster.md"), read("charts/hyper2kvm-operator/files/rules.yaml"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let links = rules.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: docs/operations-cluster.md#"));
    assert_eq!(links.collect::<Vec<_>>(), alerts.iter().map(|alert| alert.to_lowercase()).collect::<Vec<_>>());
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### Hyper2kvm")).collect();
    assert_eq!(sections, alerts.iter().filter_map(|alert| alert.strip_prefix("Hyper2kvm")).collect::<Vec<_>>());

    let dashboard = read("charts/hyper2kvm-operator/files/dashboard.json");
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics = words.filter(|word| word.starts_with("hyper2kvm_"));
        metrics.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
    };
    let documented = words(&page);
    for used in words(&dashboard).union(&words(&rules)) {
        assert!(documented.contains(used), "{used}");
    }
    for shown in ["hyper2kvm_queue_queued", "hyper2kvm_queue_active", "hyper2kvm_queue_failures_total"] {
        assert!(words(&dashboard).contains(shown), "{shown}");
    }

    let Some(helm) = helm() else { return };
    let site = "prometheusRule.runbookUrl=https://wiki.example.com/h2k.html";
    let text = run(Command::new(helm)
        .args(["template", "r", "--set=prometheusRule.enabled=true", "--set", site])
        .arg(in_tree(CHART)));
    let links = text.matches("runbook_url: https://wiki.example.com/h2k.html#hyper2kvm").count();
    assert_eq!(links, alerts.len());
}

#[test]
fn what_is_generated_is_what_the_generator_writes() {
    let Some(helm) = helm() else { return };
    let fresh = tempfile::tempdir().expect("a temporary directory");
    run(Command::new(in_tree("deploy/generate.sh"))
        .arg(env!("CARGO_BIN_EXE_hyper2kvm-operator"))
        .arg(helm)
        .arg(fresh.path()));
    let mut files = vec!["deploy/base/operator.yaml".to_owned(), "docs/chart-values.md".to_owned()];
    for file in hyper2kvm::cluster::api::MANIFESTS {
        files.extend([format!("crds/{file}"), format!("{CHART}/files/crds/{file}")]);
    }
    for file in files {
        let in_place = fs::read_to_string(in_tree(&file)).unwrap_or_default();
        let written = fs::read_to_string(fresh.path().join(&file)).expect("the generator wrote it");
        assert!(in_place == written, "{file} is stale: run `make generate`");
    }
}

#[test]
fn what_the_dockerfile_copies_before_the_source_is_enough_for_cargo() {
    let there = tempfile::tempdir().unwrap();
    for name in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(in_tree(name), there.path().join(name)).unwrap();
    }
    for bin in ["hyper2kvm", "hyper2kvmctl", "hyper2kvm-operator"] {
        let directory = there.path().join("src/bin").join(bin);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("main.rs"), "fn main() {}\n").unwrap();
    }
    fs::write(there.path().join("src/lib.rs"), "").unwrap();
    // Checks all targets before it finds that there is no target of this name.
    let asked = ["build", "--locked", "--offline", "--bin", "nothing"];
    let said = Command::new(env!("CARGO")).args(asked).current_dir(there.path()).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("no bin target named `nothing`"), "{said}");
}

#[test]
fn an_overlay_s_image_is_that_of_watchers_and_workers_too() {
    let Some(cluster) = Cluster::shared(Need::OwnControlPlane) else { return };
    let overlay = in_tree("deploy/overlay");
    let text = run(cluster.kubectl().arg("kustomize").arg(&overlay));
    assert_eq!(text.matches("registry.example.com/hyper2kvm-operator:0.1.0").count(), 2, "{text}");
    assert_eq!(text.matches("value: IfNotPresent").count(), 1, "{text}");
    run(cluster.kubectl().args(["apply", "-f"]).arg(in_tree("deploy/base/namespace.yaml")));
    run(cluster
        .kubectl()
        .args(["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-k"])
        .arg(&overlay));
    run(cluster.kubectl().args(["delete", "namespace", "hyper2kvm", "--wait=false"]));
}

#[test]
fn what_the_flags_add_is_taken_but_for_the_kinds_that_prometheus_brings() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(helm) = helm() else { return };
    let namespace = cluster.namespace("flags");
    let flags = EVERY_FLAG.iter().filter(|flag| !flag.contains("serviceMonitor") && !flag.contains("prometheusRule"));
    let text = run(Command::new(helm)
        .args(["template", "r", "--set=crds.install=false", "--namespace", &namespace.name])
        .args(flags)
        .arg(in_tree(CHART)));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("ours to write");
    let taken = run(cluster.kubectl().args(["apply", "--dry-run=server", "-o", "name", "-f"]).arg(file.path()));
    for kind in ["poddisruptionbudget.policy", "networkpolicy.networking.k8s.io", "configmap", "deployment.apps"] {
        assert_eq!(taken.lines().filter(|line| line.starts_with(&format!("{kind}/"))).count(), 1, "{kind}: {taken}");
    }
}

#[test]
fn every_sample_is_taken() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let namespace = cluster.namespace("samples");
    let mut samples = 0;
    for sample in fs::read_dir(in_tree("deploy/samples")).expect("the samples are in the tree") {
        run(namespace.kubectl().args(["apply", "-f"]).arg(sample.expect("a readable directory").path()));
        samples += 1;
    }
    assert_eq!(samples, 7);
    run(cluster.kubectl().args(["apply", "--dry-run=server", "-f"]).arg(in_tree("kind/queue.yaml")));
}

#[test]
fn a_watcher_s_token_changes_run_state_and_nothing_else() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(helm) = helm() else { return };
    let namespace = cluster.namespace("policy");
    let policy = Policy::apply(cluster, &namespace, &helm);
    namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "q"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}}})
        .to_string(),
    );
    run(namespace.kubectl().args(["create", "serviceaccount", "q-watcher"]));
    run(namespace.kubectl().args([
        "create",
        "role",
        "q",
        "--verb=get,patch",
        "--resource=hyperconversions.hyper2kvm.io",
    ]));
    run(namespace
        .kubectl()
        .args(["create", "rolebinding", "q", "--role=q"])
        .arg(format!("--serviceaccount={}:q-watcher", namespace.name)));
    let token = run(namespace.kubectl().args(["create", "token", "q-watcher"]));
    let patch = |change: &str| {
        let server = run(namespace.kubectl().args([
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ]));
        // The administrator's certificate would win over the token.
        let output = Command::new("env")
            .args(["-u", "KUBECONFIG"])
            .arg(namespace.kubectl().get_program())
            .args([
                "--kubeconfig=/dev/null",
                "--insecure-skip-tls-verify",
                "--server",
                &server,
                "--token",
                token.trim(),
            ])
            .args(["-n", &namespace.name, "patch", "hconv", "q", "--type=merge", "-p", change])
            .output()
            .expect("kubectl starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = |change: &str, message: &str| {
        let (done, said) = patch(change);
        assert!(said.contains(message), "{change}: {done} {said}");
    };
    let spec = "a watcher changes nothing of a HyperConversion's spec but runState";
    // The policy takes effect a moment after it was stored; a change that got through before is none the next time.
    let deadline = Instant::now() + Duration::from_secs(30);
    for jobs in [8, 9].into_iter().cycle() {
        let (done, said) = patch(&format!(r#"{{"spec": {{"maxConcurrentJobs": {jobs}}}}}"#));
        if said.contains(spec) {
            break;
        }
        assert!(Instant::now() < deadline, "{jobs}: {done} {said}");
    }
    refused(r#"{"spec": {"conversion": {"checksum": true}}}"#, spec);
    refused(r#"{"spec": {"imagePullSecrets": [{"name": "x"}]}}"#, spec);
    refused(r#"{"metadata": {"labels": {"a": "b"}}}"#, "a watcher changes nothing of a HyperConversion's metadata");
    refused(r#"{"metadata": {"finalizers": ["a.b/c"]}}"#, "a watcher changes nothing of a HyperConversion's metadata");
    assert_eq!(patch(r#"{"spec": {"runState": "Paused"}}"#), (true, String::new()));
    // It binds no other user, however that is called.
    let (other, role) = (format!("--as=system:serviceaccount:{}:git-watcher", namespace.name), "--role=q");
    let account = format!("--serviceaccount={}:git-watcher", namespace.name);
    run(namespace.kubectl().args(["create", "rolebinding", "git", role, &account]));
    let change = r#"{"spec": {"maxConcurrentJobs": 7}}"#;
    run(namespace.kubectl().args(["patch", "hconv", "q", "--type=merge", "-p", change, &other]));
    run(namespace.kubectl().args([
        "patch",
        "hconv",
        "q",
        "--type=merge",
        "-p",
        r#"{"spec": {"maxConcurrentJobs": 9}}"#,
    ]));
    drop(policy);
}

#[test]
fn a_watcher_changes_its_own_queue_s_conversions_and_the_controller_what_it_made() {
    let Some(cluster) = Cluster::shared(Need::ControlPlane) else { return };
    let Some(helm) = helm() else { return };
    let namespace = cluster.namespace("held");
    let policy = Policy::apply(cluster, &namespace, &helm);
    let account = |name: &str| format!("system:serviceaccount:{}:{name}", namespace.name);
    let grant = |name: &str, verbs: &str, resources: &str| {
        run(namespace.kubectl().args(["create", "role", name, verbs, resources]));
        let (role, account) = (format!("--role={name}"), format!("--serviceaccount={}:{name}", namespace.name));
        run(namespace.kubectl().args(["create", "rolebinding", name, &role, &account]));
    };
    let conversions = "--resource=conversionjobs.hyper2kvm.io";
    grant("a-watcher", "--verb=get,create,delete", conversions);
    grant("git-watcher", "--verb=get,create,delete,update,patch", conversions);
    let controller = format!("{}-hyper2kvm-operator", namespace.name);
    grant(&controller, "--verb=get,patch,delete,create", "--resource=networkpolicies.networking.k8s.io");
    let conversion = |name: &str, queue: &str| {
        json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob", "metadata": {"name": name},
               "spec": {"queueRef": {"name": queue}, "source": {"path": "a.raw"}}})
    };
    for (name, queue) in [("own-00000001", "a"), ("other-00000002", "b"), ("git-00000003", "b")] {
        namespace.apply(&conversion(name, queue).to_string());
    }
    let policy_of = |name: &str, labels: serde_json::Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "labels": labels},
               "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}})
    };
    namespace.apply(&policy_of("theirs", json!({"team": "a"})).to_string());
    namespace.apply(&policy_of("ours", json!({"app.kubernetes.io/managed-by": "hyper2kvm-operator"})).to_string());
    let delete = |kind: &str, name: &str, user: &str| {
        let user = format!("--as={}", account(user));
        let output =
            namespace.kubectl().args(["delete", "--wait=false", kind, name, &user]).output().expect("it starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let denied = |kind: &str, user: &str, message: &str, again: &dyn Fn()| {
        // The policy takes effect a moment after it was stored.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let name = if kind == "hcj" { "other-00000002" } else { "theirs" };
            let (done, said) = delete(kind, name, user);
            if said.contains(message) {
                return;
            }
            assert!(Instant::now() < deadline, "{user}: {done} {said}");
            again();
        }
    };
    let own = "a watcher makes, changes and deletes the ConversionJobs of its own queue alone";
    denied("hcj", "a-watcher", own, &|| drop(namespace.apply(&conversion("other-00000002", "b").to_string())));
    assert_eq!(delete("hcj", "own-00000001", "a-watcher"), (true, String::new()));
    // Who is called so and may do more is no watcher.
    assert_eq!(delete("hcj", "git-00000003", "git-watcher"), (true, String::new()));
    let made = "the controller changes and deletes nothing but what it made";
    let theirs = || drop(namespace.apply(&policy_of("theirs", json!({"team": "a"})).to_string()));
    denied("networkpolicy", &controller, made, &theirs);
    assert_eq!(delete("networkpolicy", "ours", &controller), (true, String::new()));
    drop(policy);
}

/// The policy belongs to the cluster, not to the namespace: it is removed with the test.
struct Policy {
    cluster: &'static Cluster,
    text: String,
}

impl Policy {
    /// Applies the chart's policies for a release that is called like its namespace.
    fn apply(cluster: &'static Cluster, namespace: &Namespace, helm: &Path) -> Self {
        let release = namespace.name.as_str();
        let only = "--show-only=templates/admission-policy.yaml";
        let arguments = ["template", release, "--namespace", release, only];
        let text = run(Command::new(helm).args(arguments).arg(in_tree(CHART)));
        // Before it is applied, so that half of it is removed, too.
        let policy = Self { cluster, text };
        namespace.apply(&policy.text);
        policy
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), &self.text).expect("ours to write");
        drop(self.cluster.kubectl().args(["delete", "--ignore-not-found", "-f"]).arg(file.path()).output());
    }
}

#[test]
fn a_release_is_installed_upgraded_rolled_back_and_uninstalled_and_leaves_the_queues() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(helm) = helm() else { return };
    let Some(image) = cluster.image() else { return };
    let namespace = cluster.namespace("release");
    let (repository, tag) = image.rsplit_once(':').expect("the image has a tag");
    let helm = |words: &[&str]| {
        let mut command = Command::new(&helm);
        command.env("KUBECONFIG", &cluster.kubeconfig).args(["--namespace", &namespace.name]).args(words);
        run(&mut command)
    };
    let settings = [
        format!("--set=image.repository={repository},image.tag={tag},image.pullPolicy=Never"),
        format!("--set=watchNamespaces={{{}}}", namespace.name),
        "--set=admissionPolicy.enabled=false,rbac.aggregate=false".to_owned(),
        // The suite's cluster has the definitions already.
        "--take-ownership".to_owned(),
        "--force-conflicts".to_owned(),
        "--server-side=true".to_owned(),
        "--wait".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let columns = || {
        let path = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
        run(cluster.kubectl().args(["get", "crd", "conversionjobs.hyper2kvm.io", "-o", path]))
    };

    // An older release: its definition lacks a column.
    let older = tempfile::tempdir().expect("a temporary directory");
    run(Command::new("cp").arg("-r").arg(in_tree(CHART)).arg(older.path().join("chart")));
    let definition = older.path().join("chart/files/crds").join(hyper2kvm::cluster::api::MANIFESTS[1]);
    let text = fs::read_to_string(&definition).expect("it was copied");
    let text = text.replace("name: Duration\n", "name: Took\n");
    fs::write(&definition, text).expect("ours to write");

    let older = older.path().join("chart");
    let chart = in_tree(CHART);
    helm(&[&["install", "r", older.to_str().expect("plain")], &settings[..]].concat());
    assert!(columns().contains("Took"), "{}", columns());
    namespace.apply(
        &json!({"apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "kept"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}}})
        .to_string(),
    );
    helm(&[&["upgrade", "r", chart.to_str().expect("plain")], &settings[..]].concat());
    assert!(columns().contains("Duration"), "{}", columns());
    helm(&["test", "r"]);
    helm(&["rollback", "r", "1", "--wait", "--force-conflicts"]);
    assert!(columns().contains("Took"), "{}", columns());
    helm(&[&["upgrade", "r", chart.to_str().expect("plain")], &settings[..]].concat());
    helm(&["uninstall", "r", "--wait"]);
    assert!(columns().contains("Duration"), "{}", columns());
    run(namespace.kubectl().args(["get", "hconv", "kept"]));
}
