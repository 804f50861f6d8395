// SPDX-License-Identifier: Apache-2.0
//! What `get` says of disks that are on claims: no pod of ours may mount them any more, so it tells how a pod of the user's
//! copies them.

use std::fmt::Write as _;

use hyper2kvm::cluster::api::{ConversionJobStatus, PodSecurity, VolumeMode};
use serde_json::json;

use super::Refusal;

/// User and group of the process that runs a guest in `KubeVirt`: a disk on a claim can be read by it.
const KUBEVIRT_USER: i64 = 107;

/// Why a conversion's disks are not downloaded, with the commands that copy them. The pod that they make is admitted where the
/// queue's workers are (the restricted profile), and has the group that the workers' `security` gave to disk images.
pub(super) fn refusal(
    namespace: &str,
    conversion: &str,
    status: &ConversionJobStatus,
    security: &PodSecurity,
) -> Refusal {
    let names: Vec<_> = status.volumes.iter().map(|volume| volume.claim_name.as_str()).collect();
    let mut text = format!("the disks of {conversion} are on claims, not in files: {}", names.join(", "));
    let disks = status.plan.iter().flat_map(|plan| &plan.disks);
    let sizes: Vec<_> = disks.map(|disk| disk.virtual_size_bytes).collect();
    if names.is_empty() || sizes.len() != names.len() {
        return format!("{text}; mount them in a pod of yours to copy them").into();
    }
    let target = status.target.as_ref().map(|target| target.volume_mode).unwrap_or_default();
    let (mut devices, mut mounts, mut volumes, mut copies) = (Vec::new(), Vec::new(), Vec::new(), String::new());
    for (n, (volume, size)) in status.volumes.iter().zip(sizes).enumerate() {
        let claim = &volume.claim_name;
        let name = if n == 0 { "disk".to_owned() } else { format!("disk-{n}") };
        let path = if volume.volume_mode.unwrap_or(target) == VolumeMode::Block {
            let path = format!("/dev/{name}");
            devices.push(json!({"name": name, "devicePath": path}));
            path
        } else {
            mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
            format!("/{name}/disk.img")
        };
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}));
        let _ = writeln!(copies, "kubectl -n {namespace} exec copy-disk -- head -c {size} {path} > {claim}.img");
    }
    let container = json!({
        "name": "copy-disk", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "86400"],
        "volumeDevices": devices, "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    let pod = json!({"spec": {
        "containers": [container], "volumes": volumes, "automountServiceAccountToken": false,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": security.run_as_user.unwrap_or(KUBEVIRT_USER),
            "runAsGroup": security.fs_group.unwrap_or(KUBEVIRT_USER), "seccompProfile": {"type": "RuntimeDefault"},
        },
    }});
    let _ = write!(
        text,
        ". While the machine is off a pod of yours copies them, such as:\n\
         kubectl -n {namespace} run copy-disk --image=busybox --restart=Never --overrides='{pod}'\n\
         kubectl -n {namespace} wait --for=condition=Ready pod/copy-disk\n\
         {copies}\
         kubectl -n {namespace} delete pod copy-disk",
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_on_a_claim_is_copied_by_a_command_that_names_its_place_and_size() {
        for (mode, list, places) in [
            (
                "Block",
                r#""volumeDevices":[{"devicePath":"/dev/disk","name":"disk"},{"devicePath":"/dev/disk-1","name":"disk-1"}]"#,
                ["/dev/disk", "/dev/disk-1"],
            ),
            (
                "Filesystem",
                r#""volumeMounts":[{"mountPath":"/disk","name":"disk"},{"mountPath":"/disk-1","name":"disk-1"}]"#,
                ["/disk/disk.img", "/disk-1/disk.img"],
            ),
        ] {
            let disk = |size: u64| json!({"file": "d", "member": "d.vmdk", "virtualSizeBytes": size});
            let status: ConversionJobStatus = serde_json::from_value(json!({
                "plan": {"disks": [disk(1000), disk(2000)], "machines": [{"disks": []}]},
                "target": {"volumeMode": mode}, "volumes": [{"claimName": "web-disk-0"}, {"claimName": "web-disk-1"}],
            }))
            .unwrap();
            let security = PodSecurity { fs_group: Some(2000), ..PodSecurity::default() };
            let text = refusal("n", "web-00000001", &status, &security).to_string();
            assert!(
                text.starts_with("the disks of web-00000001 are on claims, not in files: web-disk-0, web-disk-1. "),
                "{text}"
            );
            assert!(text.contains(list), "{text}");
            assert!(text.contains(r#""runAsGroup":2000,"runAsNonRoot":true,"runAsUser":107"#), "{text}");
            for (n, place) in places.into_iter().enumerate() {
                let copy = format!("copy-disk -- head -c {} {place} > web-disk-{n}.img\n", 1000 * (n + 1));
                assert!(text.contains(&copy), "{text}");
            }
        }
    }
}
