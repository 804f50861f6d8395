// SPDX-License-Identifier: Apache-2.0
//! The suite's own node has the properties that the other tests rely on.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use serde_json::{Value, json};

use crate::harness::{Cluster, Namespace, Need, run};

/// A restricted pod on the claim `images`.
fn pod(name: &str, image: &str, command: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "main", "image": image, "imagePullPolicy": "Never", "command": command,
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "images", "mountPath": "/crds", "subPath": "out"},
                             {"name": "images", "mountPath": "/in", "subPath": "in", "readOnly": true}],
        }],
        "volumes": [{"name": "images", "persistentVolumeClaim": {"claimName": "images"}}],
    }})
    .to_string()
}

fn wait(namespace: &Namespace, pod: &str, condition: &str) {
    run(namespace.kubectl().args(["wait", "--timeout=120s", &format!("--for={condition}"), &format!("pod/{pod}")]));
}

#[test]
fn pods_run_the_image_on_claims_and_survive_what_is_done_to_the_node() {
    let Some(cluster) = Cluster::shared(Need::OwnNode) else { return };
    let Some(image) = cluster.image() else { return };
    let namespace = cluster.namespace("node");
    let volume = namespace.volume("images", "ReadWriteMany");
    for folder in ["in", "out"] {
        let folder = volume.join(folder);
        fs::create_dir_all(&folder).expect("the volume is ours");
        chown(&folder, Some(65532), Some(0)).expect("a node runs as root");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).expect("a node runs as root");
    }

    // The image's user may write to the volume, and nowhere else.
    namespace.apply(&pod("writes", &image, &json!(["hyper2kvm-operator", "crds", "--dir", "/crds"])));
    wait(&namespace, "writes", "jsonpath={.status.phase}=Succeeded");
    let written = fs::read_dir(volume.join("out")).expect("the volume is ours").count();
    assert_eq!(written, hyper2kvm::cluster::api::MANIFESTS.len());
    namespace.apply(&pod("refused", &image, &json!(["hyper2kvm-operator", "crds", "--dir", "/in"])));
    wait(&namespace, "refused", "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}=1");
    assert_eq!(fs::read_dir(volume.join("in")).expect("the volume is ours").count(), 0);
    run(namespace.kubectl().args(["delete", "pod", "refused", "--grace-period=0", "--force"]));

    // Pods that need more than the restricted profile are refused.
    let greedy = volume.join("greedy.json");
    fs::write(&greedy, pod("greedy", &image, &json!([])).replace("\"drop\"", "\"add\"")).expect("the volume is ours");
    let output = namespace.kubectl().args(["apply", "-f"]).arg(&greedy).output().expect("kubectl runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("violates PodSecurity \"restricted:latest\""), "{said}");

    // A killed container comes back, and so does a stopped part.
    namespace.apply(
        &pod("waits", "localhost/pause:1", &json!(["/program"]))
            .replace("\"runAsNonRoot\":true", "\"runAsNonRoot\":true,\"runAsUser\":65532"),
    );
    wait(&namespace, "waits", "condition=Ready");
    namespace.kill_container("waits", "main");
    wait(&namespace, "waits", "jsonpath={.status.containerStatuses[0].restartCount}=1");
    for part in ["kubelet", "apiserver"] {
        cluster.part("stop", part);
        cluster.part("start", part);
    }
    while !namespace.kubectl().args(["get", "--raw", "/readyz"]).output().is_ok_and(|output| output.status.success()) {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    wait(&namespace, "waits", "condition=Ready");
}
