// SPDX-License-Identifier: Apache-2.0
//! The libvirt domain that runs the converted disks.
//!
//! Format: libvirt.org, "Domain XML format". A test validates it by libvirt's own schema.

use super::guest::{Guest, GuestDisk};
use super::xml::Xml;
use crate::conversion::machine::{Card, DiskBus, Firmware};
use crate::conversion::options::DomainOptions;

/// The domain of a guest whose disks lie in the directory `published` (an absolute path), for the file `file`.
///
/// What `options` leave open is the guest's, else a default: q35, and the network `default`.
pub(super) fn domain_xml(guest: &Guest<'_>, options: &DomainOptions, published: &str, file: &str) -> String {
    let mut xml = Xml::default();
    xml.comment(&guest.head(&[format!("To use it: virsh define {file}")], &[]));
    xml.open("domain", &[("type", "kvm")]);
    xml.leaf("name", &[], &domain_name(&guest.name));
    if let Some(uuid) = guest.uuid {
        xml.leaf("uuid", &[], uuid);
    }
    if let Some(annotation) = guest.annotation {
        xml.leaf("description", &[], annotation);
    }
    xml.leaf("memory", &[("unit", "MiB")], &guest.memory_mib.to_string());
    xml.leaf("vcpu", &[], &(guest.sockets * guest.cores).to_string());
    add_firmware(&mut xml, guest, options.machine.as_deref().unwrap_or("q35"));
    add_features(&mut xml, guest);
    xml.open("devices", &[]);
    let bus = options.disk_bus.as_deref();
    if bus == Some("scsi") || bus.is_none() && guest.disks.iter().any(|d| d.machine.bus == DiskBus::VirtioScsi) {
        xml.empty("controller", &[("type", "scsi"), ("model", "virtio-scsi")]);
    }
    let directory = published.trim_end_matches('/');
    let mut used = [0; 3];
    for disk in &guest.disks {
        add_disk(&mut xml, disk, directory, bus.unwrap_or_else(|| bus_word(disk.machine.bus)), &mut used);
    }
    for card in guest.cards {
        add_card(&mut xml, card, options);
    }
    xml.empty("console", &[("type", "pty")]);
    if guest.tpm {
        xml.open("tpm", &[("model", "tpm-crb")]);
        xml.empty("backend", &[("type", "emulator"), ("version", "2.0")]);
        xml.close();
    }
    if needs_wide_interrupts(guest) {
        xml.open("iommu", &[("model", "intel")]);
        xml.empty("driver", &[("intremap", "on"), ("eim", "on")]);
        xml.close();
    }
    xml.empty("input", &[("type", "tablet"), ("bus", "usb")]);
    xml.empty("graphics", &[("type", "vnc")]);
    xml.open("video", &[]);
    xml.empty("model", &[("type", "vga")]);
    xml.finish()
}

fn add_firmware(xml: &mut Xml, guest: &Guest<'_>, machine: &str) {
    let is_efi = guest.firmware == Firmware::Efi;
    xml.open("os", if is_efi { &[("firmware", "efi")] } else { &[] });
    xml.leaf("type", &[("arch", "x86_64"), ("machine", machine)], "hvm");
    if is_efi {
        // Without a word libvirt takes the firmware that asks for signed loaders, where one is installed.
        let enabled = if guest.secure_boot { "yes" } else { "no" };
        xml.open("firmware", &[]);
        xml.empty("feature", &[("enabled", enabled), ("name", "enrolled-keys")]);
        xml.empty("feature", &[("enabled", enabled), ("name", "secure-boot")]);
        xml.close();
    }
    xml.close();
}

fn add_features(xml: &mut Xml, guest: &Guest<'_>) {
    xml.open("features", &[]);
    xml.empty("acpi", &[]);
    xml.empty("apic", &[]);
    if guest.is_windows {
        xml.open("hyperv", &[("mode", "custom")]);
        xml.empty("relaxed", &[("state", "on")]);
        xml.empty("vapic", &[("state", "on")]);
        xml.empty("spinlocks", &[("state", "on"), ("retries", "8191")]);
        xml.close();
    }
    if needs_wide_interrupts(guest) {
        xml.empty("ioapic", &[("driver", "qemu")]);
    }
    if guest.secure_boot {
        xml.empty("smm", &[("state", "on")]);
    }
    xml.close();
    xml.open("cpu", &[("mode", "host-passthrough")]);
    let (sockets, cores) = (guest.sockets.to_string(), guest.cores.to_string());
    xml.empty("topology", &[("sockets", &sockets), ("cores", &cores), ("threads", "1")]);
    xml.close();
    if guest.is_windows {
        xml.open("clock", &[("offset", "localtime")]);
        xml.empty("timer", &[("name", "rtc"), ("tickpolicy", "catchup")]);
        xml.empty("timer", &[("name", "pit"), ("tickpolicy", "delay")]);
        xml.empty("timer", &[("name", "hpet"), ("present", "no")]);
        xml.empty("timer", &[("name", "hypervclock"), ("present", "yes")]);
        xml.close();
    } else {
        xml.empty("clock", &[("offset", "utc")]);
    }
}

/// Whether an interrupt's usual 8 bits do not address every processor: libvirt then asks for an IOMMU that has more.
const fn needs_wide_interrupts(guest: &Guest<'_>) -> bool {
    guest.sockets * guest.cores > 255
}

fn add_disk(xml: &mut Xml, disk: &GuestDisk<'_>, directory: &str, bus: &str, used: &mut [usize; 3]) {
    let prefixes = ["vd", "hd", "sd"];
    let prefix = match bus {
        "virtio" => 0,
        "ide" => 1,
        _ => 2,
    };
    let target = target(prefixes[prefix], used[prefix]);
    used[prefix] += 1;
    xml.open("disk", &[("type", "file"), ("device", "disk")]);
    xml.empty("driver", &[("name", "qemu"), ("type", disk.report.format.as_str())]);
    xml.empty("source", &[("file", &format!("{directory}/{}", disk.report.file))]);
    xml.empty("target", &[("dev", &target), ("bus", bus)]);
    if let Some(order) = disk.boot_order {
        xml.empty("boot", &[("order", &order.to_string())]);
    }
    xml.close();
}

pub(super) const fn bus_word(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Sata => "sata",
        DiskBus::Virtio => "virtio",
        DiskBus::VirtioScsi => "scsi",
    }
}

fn add_card(xml: &mut Xml, card: &Card, options: &DomainOptions) {
    xml.open("interface", &[("type", "network")]);
    if let Some(mac) = &card.mac {
        xml.empty("mac", &[("address", mac)]);
    }
    xml.empty("source", &[("network", options.network.as_deref().unwrap_or("default"))]);
    xml.empty("model", &[("type", options.net_model.as_deref().unwrap_or(card.device.as_str()))]);
    if !card.connected {
        xml.empty("link", &[("state", "down")]);
    }
    xml.close();
}

/// The guest's name of disk `index` of its kind: `vda`, `sdb`, `hdc`; `z` is followed by `aa`.
fn target(prefix: &str, index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        letters.push(char::from(b'a' + u8::try_from((rest - 1) % 26).expect("below 26")));
        rest = (rest - 1) / 26;
    }
    prefix.chars().chain(letters.into_iter().rev()).collect()
}

/// A name that libvirt accepts: it uses it in file names.
fn domain_name(name: &str) -> String {
    let name: String =
        name.trim().chars().map(|c| if c == '/' || c.is_control() { '-' } else { c }).take(128).collect();
    if name.is_empty() || name == "." || name == ".." { "vm".to_owned() } else { name }
}
