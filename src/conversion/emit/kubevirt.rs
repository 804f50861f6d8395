// SPDX-License-Identifier: Apache-2.0
//! `KubeVirt`'s virtual machine and the claims that it names.
//!
//! API: kubevirt.io/v1. Its admission refuses, among others: two cards on the pod's network, secure boot without SMM,
//! `ide`, names that are no DNS labels, boot orders that are no row from 1. A test holds the files to its own code.

use serde_json::{Value, json};

use super::guest::{Guest, GuestDisk, label};
use super::yaml;
use crate::conversion::machine::{DiskBus, Firmware, MAX_NAME, one_line};

const MIB: u64 = 1 << 20;

/// Share of a claim that `KubeVirt` keeps for the file system, in thousandths (`DefaultFilesystemOverhead` of its
/// `pkg/storage/types`).
const OVERHEAD: u64 = 55;

/// The claims, and behind them the machine.
pub(super) fn virtual_machine(guest: &Guest<'_>, file: &str) -> String {
    // Suffixes of the claims' and the pod's names have to fit as well.
    let name = label(&guest.name, 50);
    let mut usage = vec![
        format!("To use it: kubectl apply -f {file}"),
        "Then fill the claims before the first start: KubeVirt makes an empty disk where a claim has none. With CDI:"
            .to_owned(),
    ];
    usage.extend(guest.disks.iter().enumerate().map(|(n, disk)| {
        format!("  virtctl image-upload pvc {} --no-create --image-path={}", claim(&name, n), disk.report.file)
    }));
    usage.push(format!("Start: virtctl start {name}"));
    let mut text = String::new();
    for line in guest.head(&usage, &lost(guest)) {
        text.extend(["# ", &line, "\n"]);
    }
    for (n, disk) in guest.disks.iter().enumerate() {
        text.push_str("---\n");
        text.push_str(&yaml::document(&claim_object(guest, &name, n, disk)));
    }
    text.push_str("---\n");
    text.push_str(&yaml::document(&machine(guest, &name)));
    text
}

fn claim(name: &str, n: usize) -> String {
    format!("{name}-disk-{n}")
}

fn labels(guest: &Guest<'_>) -> Value {
    let mut labels = json!({"app.kubernetes.io/managed-by": "hyper2kvm"});
    if !guest.id.is_empty() {
        labels["hyper2kvm.io/conversion"] = json!(label(guest.id, 63));
    }
    labels
}

/// A claim that holds the disk as a file: a file system takes its share of what is asked for.
fn claim_object(guest: &Guest<'_>, name: &str, n: usize, disk: &GuestDisk<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim(name, n),
            "labels": labels(guest),
            // CDI waits for an upload into it.
            "annotations": {"cdi.kubevirt.io/storage.upload.target": "", "hyper2kvm.io/disk": disk.report.file},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": format!("{}Mi", claim_mib(disk.report.virtual_size_bytes))}},
        },
    })
}

/// MiB that a claim asks for, so that a disk of `bytes` fits beside the file system's share.
fn claim_mib(bytes: u64) -> u64 {
    let needed = u128::from(bytes.div_ceil(MIB)) * 1000;
    u64::try_from(needed.div_ceil(u128::from(1000 - OVERHEAD))).unwrap_or(u64::MAX).max(1)
}

pub(super) fn machine(guest: &Guest<'_>, name: &str) -> Value {
    let mut annotations = json!({"hyper2kvm.io/source": guest.source, "hyper2kvm.io/source-name": guest.name});
    if let Some(guest_os) = guest.system {
        annotations["hyper2kvm.io/guest-os"] = json!(guest_os);
    }
    if let Some(annotation) = guest.annotation {
        annotations["description"] = json!(annotation);
    }
    let networks: Vec<Value> = pod_card(guest).map(|_| json!({"name": "net-0", "pod": {}})).into_iter().collect();
    let volumes: Vec<Value> = (0..guest.disks.len())
        .map(|n| json!({"name": format!("disk-{n}"), "persistentVolumeClaim": {"claimName": claim(name, n)}}))
        .collect();
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "labels": labels(guest), "annotations": annotations},
        "spec": {
            "runStrategy": "Halted",
            "template": {
                "metadata": {"labels": {"kubevirt.io/domain": name}},
                "spec": {
                    "architecture": "amd64",
                    "domain": domain(guest),
                    "networks": networks,
                    "volumes": volumes,
                    "terminationGracePeriodSeconds": if guest.is_windows { 3600 } else { 180 },
                },
            },
        },
    })
}

fn domain(guest: &Guest<'_>) -> Value {
    let mut firmware = match guest.firmware {
        Firmware::Bios => json!({"bootloader": {"bios": {}}}),
        Firmware::Efi => json!({"bootloader": {"efi": {"secureBoot": guest.secure_boot}}}),
    };
    if let Some(uuid) = guest.uuid {
        firmware["uuid"] = json!(uuid);
    }
    let mut features = json!({"acpi": {}});
    let mut clock = json!({"utc": {}});
    if guest.is_windows {
        features["apic"] = json!({});
        features["hyperv"] = json!({"relaxed": {}, "vapic": {}, "spinlocks": {"spinlocks": 8191}});
        clock["timer"] = json!({
            "hpet": {"present": false}, "hyperv": {}, "pit": {"tickPolicy": "delay"}, "rtc": {"tickPolicy": "catchup"},
        });
    }
    if guest.secure_boot {
        features["smm"] = json!({"enabled": true});
    }
    json!({
        "machine": {"type": "q35"},
        "cpu": {"sockets": guest.sockets, "cores": guest.cores, "threads": 1},
        "memory": {"guest": format!("{}Mi", guest.memory_mib)},
        "firmware": firmware,
        "features": features,
        "clock": clock,
        "devices": devices(guest),
    })
}

fn devices(guest: &Guest<'_>) -> Value {
    let id: String =
        guest.id.rsplit('-').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
    let disks: Vec<Value> = guest
        .disks
        .iter()
        .enumerate()
        .map(|(n, disk)| {
            let bus = match disk.machine.bus {
                DiskBus::Sata => "sata",
                DiskBus::Virtio => "virtio",
                DiskBus::VirtioScsi => "scsi",
            };
            // At most 20 characters, which is all that a SATA disk can tell.
            let serial: String = ["h2k", &id[..id.len().min(8)], &n.to_string()].join("-");
            let mut one = json!({"name": format!("disk-{n}"), "serial": serial, "disk": {"bus": bus}});
            if let Some(order) = disk.boot_order {
                one["bootOrder"] = json!(order);
            }
            one
        })
        .collect();
    let mut devices = json!({
        "disks": disks,
        "inputs": [{"name": "tablet", "type": "tablet", "bus": "usb"}],
    });
    match pod_card(guest) {
        Some(card) => {
            let mut interface = json!({"name": "net-0", "model": card.device.as_str(), "masquerade": {}});
            if let Some(mac) = &card.mac {
                interface["macAddress"] = json!(mac);
            }
            devices["interfaces"] = json!([interface]);
        }
        None => devices["autoattachPodInterface"] = json!(false),
    }
    if !guest.is_windows {
        devices["rng"] = json!({});
    }
    devices
}

/// The card that gets the pod's network, of which a machine has one.
fn pod_card<'a>(guest: &Guest<'a>) -> Option<&'a crate::conversion::machine::Card> {
    guest.cards.iter().find(|card| card.connected)
}

/// What the machine does not get.
fn lost(guest: &Guest<'_>) -> Vec<String> {
    let mut lost = Vec::new();
    let kept = guest.cards.iter().position(|card| card.connected);
    for (n, card) in guest.cards.iter().enumerate().filter(|(n, _)| Some(*n) != kept) {
        let network = one_line(card.network.as_deref().unwrap_or("no network"), MAX_NAME);
        let why = if card.connected { "a machine has one card on the pod's network" } else { "it was not connected" };
        lost.push(format!("network card {} ({network}) is left out: {why}", n + 1));
    }
    if guest.tpm {
        lost.push("its TPM is left out: it keeps nothing without persistent state, tpm: {persistent: true}".to_owned());
    }
    if guest.is_windows {
        lost.push("Windows keeps its clock in local time: set clock.timezone instead of utc".to_owned());
    }
    lost
}
