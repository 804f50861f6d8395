// SPDX-License-Identifier: Apache-2.0
//! Images of OpenStack: their properties, and the script that uploads them.
//!
//! Properties: docs.openstack.org, Glance administration guide, "Useful image properties".

use serde_json::{Map, Value, json};

use super::guest::{Guest, GuestDisk};
use super::shell::{begin, command, word};
use crate::conversion::machine::{DiskBus, Firmware};

const GIB: u64 = 1 << 30;

/// glance.json: an image for each disk.
pub(super) fn properties(guest: &Guest<'_>) -> String {
    let images: Vec<Value> = guest
        .disks
        .iter()
        .enumerate()
        .map(|(n, disk)| {
            json!({
                "name": image_name(guest, n),
                "file": disk.report.file,
                "disk_format": disk.report.format.as_str(),
                "container_format": "bare",
                "min_disk": min_disk(disk),
                "min_ram": min_ram(guest, n),
                "properties": properties_of(guest, n).into_iter().collect::<Map<_, _>>(),
            })
        })
        .collect();
    let file = json!({
        "about": guest.head(&["To use it: the script beside it passes these properties.".to_owned()], &lost(guest)),
        "images": images,
    });
    let mut text = serde_json::to_string_pretty(&file).expect("texts and numbers serialise");
    text.push('\n');
    text
}

/// openstack.sh: uploads each image.
pub(super) fn script(guest: &Guest<'_>, file: &str) -> String {
    let usage = [
        format!("To use it, with the client of OpenStack and its credentials: sh {file}"),
        "Start a server from the first image; make volumes of the others, and attach them.".to_owned(),
    ];
    let mut text = begin(&guest.head(&usage, &lost(guest)));
    for (n, disk) in guest.disks.iter().enumerate() {
        let mut words: Vec<String> = ["openstack", "image", "create"].map(str::to_owned).into();
        let mut add = |option: &str, value: String| words.extend([format!("--{option}"), value]);
        add("disk-format", disk.report.format.as_str().to_owned());
        add("container-format", "bare".to_owned());
        add("min-disk", min_disk(disk).to_string());
        add("min-ram", min_ram(guest, n).to_string());
        for (key, value) in properties_of(guest, n) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            add("property", word(&format!("{key}={value}")));
        }
        add("file", format!("\"$here\"/{}", word(&disk.report.file)));
        words.push(word(&image_name(guest, n)));
        text.push_str(&command(&words));
    }
    text
}

/// An image's name; never one that looks like an option.
fn image_name(guest: &Guest<'_>, n: usize) -> String {
    let name = guest.name.trim_start_matches('-').trim_start();
    let name = if name.is_empty() { "vm" } else { name };
    if n == 0 { name.to_owned() } else { format!("{name} disk {n}") }
}

/// GiB that a server's disk needs.
const fn min_disk(disk: &GuestDisk<'_>) -> u64 {
    disk.report.virtual_size_bytes.div_ceil(GIB)
}

/// MiB that a server needs; further disks are no servers.
const fn min_ram(guest: &Guest<'_>, n: usize) -> u64 {
    if n == 0 { guest.memory_mib } else { 0 }
}

fn properties_of(guest: &Guest<'_>, n: usize) -> Vec<(String, Value)> {
    if n > 0 {
        return Vec::new();
    }
    let mut properties = Vec::new();
    let mut add = |key: &str, value: Value| properties.push((key.to_owned(), value));
    add("hw_machine_type", json!("q35"));
    add("hw_firmware_type", json!(if guest.firmware == Firmware::Efi { "uefi" } else { "bios" }));
    if guest.firmware == Firmware::Efi {
        add("os_secure_boot", json!(if guest.secure_boot { "required" } else { "disabled" }));
    }
    match guest.disks.first().map_or(DiskBus::Sata, |disk| disk.machine.bus) {
        DiskBus::Sata => add("hw_disk_bus", json!("sata")),
        DiskBus::Virtio => add("hw_disk_bus", json!("virtio")),
        DiskBus::VirtioScsi => {
            add("hw_disk_bus", json!("scsi"));
            add("hw_scsi_model", json!("virtio-scsi"));
        }
    }
    if let Some(card) = guest.cards.first() {
        add("hw_vif_model", json!(card.device.as_str()));
    }
    add("hw_cpu_sockets", json!(guest.sockets.to_string()));
    add("hw_cpu_cores", json!(guest.cores.to_string()));
    if guest.tpm {
        add("hw_tpm_version", json!("2.0"));
        add("hw_tpm_model", json!("tpm-crb"));
    }
    add("hw_pointer_model", json!("usbtablet"));
    add("hw_video_model", json!("vga"));
    if guest.system.is_some() {
        add("os_type", json!(if guest.is_windows { "windows" } else { "linux" }));
    }
    properties
}

/// What images can't say.
fn lost(guest: &Guest<'_>) -> Vec<String> {
    let mut lost = vec!["the flavor decides processors and memory, and the network gives the cards".to_owned()];
    if guest.cards.iter().any(|card| card.mac.is_some()) {
        lost.push("the cards' addresses are kept by ports alone: openstack port create --mac-address".to_owned());
    }
    if guest.cards.iter().any(|card| Some(card.device) != guest.cards.first().map(|card| card.device)) {
        lost.push("all network cards get the first one's model".to_owned());
    }
    lost
}
