// SPDX-License-Identifier: Apache-2.0
//! Local volumes of the node, which wait for their first consumer.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Namespace, TEST_LABEL, left_out, run};

const MIB: usize = 1 << 20;

/// A device of this machine, full of what its last tenant left.
pub(crate) struct Device {
    pub path: PathBuf,
    /// Where its file system is mounted, if it has one.
    pub mount: Option<PathBuf>,
    _backing: tempfile::NamedTempFile,
}

impl Device {
    /// `None` where this machine has no loop devices.
    fn new(mib: usize) -> Option<Self> {
        let mut backing = tempfile::NamedTempFile::new().unwrap();
        let old = vec![0xa5; MIB];
        for _ in 0..mib {
            backing.write_all(&old).unwrap();
        }
        let output = Command::new("losetup").args(["--find", "--show"]).arg(backing.path()).output().unwrap();
        if !output.status.success() {
            left_out(&format!("loop devices: {}", String::from_utf8_lossy(&output.stderr).trim()));
            return None;
        }
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Some(Self { path, mount: None, _backing: backing })
    }

    /// With a file system, mounted at `directory`.
    fn mounted(mut self, directory: PathBuf) -> Self {
        run(Command::new("mkfs.ext4").arg("-q").arg(&self.path));
        fs::create_dir_all(&directory).unwrap();
        run(Command::new("mount").arg(&self.path).arg(&directory));
        self.mount = Some(directory);
        self
    }

    /// What a machine would find on it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let disk = self.mount.as_ref().map_or_else(|| self.path.clone(), |mount| mount.join("disk.img"));
        fs::read(&disk).unwrap_or_else(|error| panic!("{}: {error}", disk.display()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What a pod still has of it goes with that pod.
        if let Some(mount) = &self.mount {
            drop(Command::new("umount").arg(mount).output());
        }
        drop(Command::new("losetup").arg("--detach").arg(&self.path).output());
    }
}

/// Volumes of this node under the names that they have in the cluster, and the class of all of them.
pub(crate) struct Volumes {
    pub class: String,
    pub devices: BTreeMap<String, Device>,
}

impl Volumes {
    /// One of each size: what a volume is said to have, and what it has, in MiB.
    pub(crate) fn new(namespace: &Namespace, mode: &str, sizes: &[(usize, usize)]) -> Option<Self> {
        Self::bound(namespace, mode, sizes, "WaitForFirstConsumer", &[])
    }

    /// The same with a binding mode; those of the numbers `gone` belong to a node that is not there.
    pub(crate) fn bound(
        namespace: &Namespace,
        mode: &str,
        sizes: &[(usize, usize)],
        binding: &str,
        gone: &[usize],
    ) -> Option<Self> {
        let class = namespace.name.clone();
        let labels = json!({TEST_LABEL: class});
        let mut objects = vec![json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class, "labels": labels},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": binding,
        })];
        let mut devices = BTreeMap::new();
        for (n, (said, is)) in sizes.iter().enumerate() {
            let name = format!("{class}-local-{n}");
            let mut device = Device::new(*is)?;
            if mode == "Filesystem" {
                let state = namespace.cluster.state.as_ref().expect("a node of our own");
                device = device.mounted(state.join("volumes").join(&class).join(&name));
            }
            let of_node = if gone.contains(&n) {
                json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["gone"]})
            } else {
                json!({"key": "kubernetes.io/hostname", "operator": "Exists"})
            };
            let any_node = json!([{"matchExpressions": [of_node]}]);
            objects.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": labels},
                "spec": {"capacity": {"storage": format!("{said}Mi")}, "accessModes": ["ReadWriteOnce"],
                         "storageClassName": class, "volumeMode": mode, "persistentVolumeReclaimPolicy": "Retain",
                         "local": {"path": device.mount.as_ref().unwrap_or(&device.path)},
                         "nodeAffinity": {"required": {"nodeSelectorTerms": any_node}}},
            }));
            devices.insert(name, device);
        }
        namespace.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string());
        Some(Self { class, devices })
    }
}
