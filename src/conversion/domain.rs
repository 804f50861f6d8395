// SPDX-License-Identifier: Apache-2.0
//! The libvirt domain that runs the converted disks: domain.xml, written at publication.
//!
//! Format: libvirt.org, "Domain XML format". A test validates it by libvirt's own schema.

use std::fmt::Write as _;

use super::file_name::stem;
use super::options::DomainOptions;
use super::report::{Hardware, Metadata, Nic};

/// Memory of a machine whose source says none, in MiB.
const DEFAULT_MEMORY_MIB: u64 = 2048;

/// Processors of a machine whose source says none.
const DEFAULT_VCPUS: u32 = 2;

/// Most processors that libvirt's schema allows.
const MAX_VCPUS: u32 = 65_535;

/// The domain of a conversion's disks, which lie in the directory `published` (an absolute path).
///
/// What `options` leave open comes from the source's hardware, else from defaults: q35, virtio, the network
/// `default`, and one network card where the source describes no machine. Nothing in the source is trusted: text is
/// escaped, and a card's address that libvirt would refuse is left out, so that libvirt makes one.
#[must_use]
pub fn domain_xml(metadata: &Metadata, options: &DomainOptions, published: &str) -> String {
    let hardware = metadata.hardware.as_ref();
    let name = options.name.as_deref().or_else(|| hardware.and_then(|h| h.name.as_deref()));
    let name = domain_name(name.unwrap_or_else(|| stem(&metadata.source.name)));
    let memory = options.memory_mib.or_else(|| hardware.and_then(|h| h.memory_mib)).unwrap_or(DEFAULT_MEMORY_MIB);
    let vcpus = options.vcpus.or_else(|| hardware.and_then(|h| h.vcpus)).unwrap_or(DEFAULT_VCPUS);
    let efi = options.uefi.unwrap_or_else(|| hardware.is_some_and(|h| h.firmware.as_deref() == Some("efi")));
    let firmware = if efi { " firmware='efi'" } else { "" };
    let machine = escaped(options.machine.as_deref().unwrap_or("q35"));

    let mut xml = format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <memory unit='MiB'>{}</memory>\n  <vcpu>{}</vcpu>\n  \
         <os{firmware}>\n    <type arch='x86_64' machine='{machine}'>hvm</type>\n    <boot dev='hd'/>\n  </os>\n  \
         <features>\n    <acpi/>\n    <apic/>\n  </features>\n  <cpu mode='host-passthrough'/>\n  \
         <clock offset='utc'/>\n  <devices>\n",
        escaped(&name),
        memory.max(1),
        vcpus.clamp(1, MAX_VCPUS),
    );
    let bus = options.disk_bus.as_deref().unwrap_or("virtio");
    if bus == "scsi" {
        xml.push_str("    <controller type='scsi' model='virtio-scsi'/>\n");
    }
    let directory = published.trim_end_matches('/');
    for (index, disk) in metadata.disks.iter().enumerate() {
        let path = escaped(&format!("{directory}/{}", disk.file));
        let target = target(bus, index);
        add(
            &mut xml,
            format_args!("    <disk type='file' device='disk'>\n      <driver name='qemu' type='{}'/>\n", disk.format),
        );
        add(
            &mut xml,
            format_args!(
                "      <source file='{path}'/>\n      <target dev='{target}' bus='{}'/>\n    </disk>\n",
                escaped(bus)
            ),
        );
    }
    for nic in cards(hardware) {
        add_card(&mut xml, &nic, options);
    }
    xml.push_str(
        "    <console type='pty'/>\n    <graphics type='vnc'/>\n    <video>\n      <model type='virtio'/>\n    \
         </video>\n  </devices>\n</domain>\n",
    );
    xml
}

fn cards(hardware: Option<&Hardware>) -> Vec<Nic> {
    hardware.map_or_else(|| vec![Nic::default()], |h| h.nics.clone())
}

fn add_card(xml: &mut String, nic: &Nic, options: &DomainOptions) {
    let network = escaped(options.network.as_deref().unwrap_or("default"));
    let model = escaped(options.net_model.as_deref().unwrap_or("virtio"));
    xml.push_str("    <interface type='network'>\n");
    if let Some(mac) = nic.mac.as_deref().and_then(mac_address) {
        add(xml, format_args!("      <mac address='{mac}'/>\n"));
    }
    add(xml, format_args!("      <source network='{network}'/>\n      <model type='{model}'/>\n    </interface>\n"));
}

fn add(xml: &mut String, text: std::fmt::Arguments<'_>) {
    xml.write_fmt(text).expect("a String takes every write");
}

/// The address as libvirt writes it; `None` where it is invalid or a group's address.
fn mac_address(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    let value = u64::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 12)?;
    let bytes = &value.to_be_bytes()[2..];
    if bytes[0] & 1 == 1 || value == 0 {
        return None;
    }
    Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
}

/// The guest's name of disk `index` on a bus: `vda`, `sdb`, `hdc`; `z` is followed by `aa`.
fn target(bus: &str, index: usize) -> String {
    let prefix = match bus {
        "virtio" => "vd",
        "ide" => "hd",
        _ => "sd",
    };
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

/// Text for an element or an attribute; characters that XML can't hold are left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => add(&mut escaped, format_args!("&#{};", u32::from(c))),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
