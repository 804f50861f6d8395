// SPDX-License-Identifier: Apache-2.0
//! What `get` says of disks that are on claims: no pod of ours may mount them any more, so it tells how a pod of the user's
//! copies them.

use std::fmt::Write as _;

use hyper2kvm::cluster::api::{ConversionJobStatus, VolumeMode};
use serde_json::json;

use super::Refusal;

/// Why a conversion's disks are not downloaded, with the commands that copy the first of them.
pub(super) fn refusal(namespace: &str, conversion: &str, status: &ConversionJobStatus) -> Refusal {
    let names: Vec<_> = status.volumes.iter().map(|volume| volume.claim_name.as_str()).collect();
    let mut text = format!("the disks of {conversion} are on claims, not in files: {}", names.join(", "));
    let (Some(volume), Some(disk)) = (status.volumes.first(), status.plan.as_ref().and_then(|plan| plan.disks.first()))
    else {
        return format!("{text}; mount them in a pod of yours to copy them").into();
    };
    let target = status.target.as_ref().map(|target| target.volume_mode).unwrap_or_default();
    let is_block = volume.volume_mode.unwrap_or(target) == VolumeMode::Block;
    let (place, path) = if is_block {
        (json!({"volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}]}), "/dev/disk")
    } else {
        (json!({"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}), "/disk/disk.img")
    };
    let mut container = json!({"name": "copy-disk", "image": "busybox", "command": ["sleep", "86400"]});
    if let (Some(container), Some(place)) = (container.as_object_mut(), place.as_object()) {
        container.extend(place.clone());
    }
    let claim = &volume.claim_name;
    let pod = json!({"spec": {
        "containers": [container], "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}],
    }});
    let _ = write!(
        text,
        ". While the machine is off a pod of yours copies them, such as:\n\
         kubectl -n {namespace} run copy-disk --image=busybox --restart=Never --overrides='{pod}'\n\
         kubectl -n {namespace} wait --for=condition=Ready pod/copy-disk\n\
         kubectl -n {namespace} exec copy-disk -- head -c {} {path} > {claim}.img\n\
         kubectl -n {namespace} delete pod copy-disk",
        disk.virtual_size_bytes
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_on_a_claim_is_copied_by_commands_that_name_its_place_and_size() {
        for (mode, place, path) in [
            ("Block", r#""volumeDevices":[{"devicePath":"/dev/disk","name":"disk"}]"#, "/dev/disk"),
            ("Filesystem", r#""volumeMounts":[{"mountPath":"/disk","name":"disk"}]"#, "/disk/disk.img"),
        ] {
            let status: ConversionJobStatus = serde_json::from_value(json!({
                "plan": {"disks": [{"file": "d", "member": "d.vmdk", "virtualSizeBytes": 1000}], "machines": [{"disks": []}]},
                "target": {"volumeMode": mode}, "volumes": [{"claimName": "web-disk-0"}, {"claimName": "web-disk-1"}],
            }))
            .unwrap();
            let text = refusal("n", "web-00000001", &status).to_string();
            assert!(
                text.starts_with("the disks of web-00000001 are on claims, not in files: web-disk-0, web-disk-1. "),
                "{text}"
            );
            assert!(text.contains(place), "{text}");
            assert!(text.contains(&format!("head -c 1000 {path} > web-disk-0.img")), "{text}");
        }
    }
}
