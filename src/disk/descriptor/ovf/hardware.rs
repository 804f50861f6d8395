// SPDX-License-Identifier: Apache-2.0
//! The machine that an OVF describes.
//!
//! Format: DSP0243, virtual hardware section, whose items carry the properties of CIM's
//! `CIM_ResourceAllocationSettingData`; resource types from DSP8042.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::parts::{OvfDisk, OvfFile};
use super::xml::{attribute, children, is, unit_bytes};
use crate::conversion::report::{DiskController, Hardware, Nic};

const PROCESSOR: u32 = 3;
const MEMORY: u32 = 4;
const IDE_CONTROLLER: u32 = 5;
const SCSI_CONTROLLER: u32 = 6;
const NETWORK_CARD: u32 = 10;
const DISK: u32 = 17;
const OTHER_STORAGE: u32 = 20;

/// Reads the only virtual system; several have no hardware in common.
pub(super) fn read(
    envelope: Node,
    configuration: Option<&str>,
    disks: &[OvfDisk],
    files: &[OvfFile],
    warnings: &mut Vec<String>,
) -> Option<Hardware> {
    let mut systems = envelope.descendants().filter(|n| is(*n, "VirtualSystem"));
    let system = systems.next()?;
    let others = systems.count();
    if others > 0 {
        warnings.push(format!("the OVF describes {} machines: their hardware is left out", others + 1));
        return None;
    }
    let mut hardware = Hardware {
        name: child_text(system, "Name").or_else(|| attribute(system, "id").map(shortened)),
        firmware: firmware(system),
        guest_os: guest_os(system),
        ..Hardware::default()
    };
    if let Some(section) = children(system, "VirtualHardwareSection").next() {
        read_items(section, configuration, disks, files, &mut hardware);
    }
    add_virtualbox_addresses(system, &mut hardware.nics);
    Some(hardware)
}

fn read_items(
    section: Node,
    configuration: Option<&str>,
    disks: &[OvfDisk],
    files: &[OvfFile],
    hardware: &mut Hardware,
) {
    let mut controllers: BTreeMap<String, usize> = BTreeMap::new();
    let mut attached: Vec<(String, u64, String)> = Vec::new();
    let items =
        section.children().filter(|n| ["Item", "StorageItem", "EthernetPortItem"].iter().any(|name| is(*n, name)));
    for item in items.filter(|i| applies(*i, configuration)) {
        let number = |name: &str| child_text(item, name).and_then(|t| t.parse::<u64>().ok());
        let Some(kind) = child_text(item, "ResourceType").and_then(|t| t.parse().ok()) else { continue };
        match kind {
            PROCESSOR => {
                let count = number("VirtualQuantity").and_then(|n| u32::try_from(n).ok());
                hardware.vcpus = count.filter(|n| *n > 0);
            }
            MEMORY => hardware.memory_mib = memory_mib(item, number("VirtualQuantity")),
            IDE_CONTROLLER | SCSI_CONTROLLER | OTHER_STORAGE => {
                let model = child_text(item, "ResourceSubType");
                let Some(kind) = controller_kind(kind, model.as_deref()) else { continue };
                controllers.insert(child_text(item, "InstanceID").unwrap_or_default(), hardware.disk_controllers.len());
                hardware.disk_controllers.push(DiskController { kind: kind.to_owned(), model, disks: Vec::new() });
            }
            NETWORK_CARD => hardware.nics.push(Nic {
                mac: child_text(item, "Address"),
                network: child_text(item, "Connection"),
                model: child_text(item, "ResourceSubType"),
            }),
            DISK => {
                let disk = child_text(item, "HostResource").and_then(|r| disk_id(&r, disks, files));
                let parent = child_text(item, "Parent").unwrap_or_default();
                attached.extend(disk.map(|id| (parent, number("AddressOnParent").unwrap_or(0), id)));
            }
            _ => {}
        }
    }
    attached.sort();
    for (parent, _, disk) in attached {
        if let Some(controller) = controllers.get(&parent) {
            hardware.disk_controllers[*controller].disks.push(disk);
        }
    }
}

/// Whether `item` describes the machine: neither an item of another deployment option nor a bound of a range does.
fn applies(item: Node, configuration: Option<&str>) -> bool {
    let chosen = attribute(item, "configuration")
        .is_none_or(|list| configuration.is_some_and(|wanted| list.split_whitespace().any(|c| c == wanted)));
    chosen && attribute(item, "bound").is_none()
}

fn memory_mib(item: Node, quantity: Option<u64>) -> Option<u64> {
    let unit = match child_text(item, "AllocationUnits") {
        Some(unit) => unit_bytes(&unit)?,
        None => 1 << 20,
    };
    let bytes = quantity?.checked_mul(unit)?;
    Some(bytes.div_ceil(1 << 20)).filter(|mib| *mib > 0)
}

fn controller_kind(resource_type: u32, model: Option<&str>) -> Option<&'static str> {
    let model = model.unwrap_or_default().to_ascii_lowercase();
    match resource_type {
        IDE_CONTROLLER => Some("ide"),
        SCSI_CONTROLLER => Some("scsi"),
        _ if model.contains("ahci") || model.contains("sata") => Some("sata"),
        _ if model.contains("nvme") => Some("nvme"),
        _ if model.contains("scsi") => Some("scsi"),
        _ => None,
    }
}

/// The disk behind a host resource: `ovf:/disk/ID`, `/disk/ID`, or the file of one (`ovf:/file/ID`).
fn disk_id(resource: &str, disks: &[OvfDisk], files: &[OvfFile]) -> Option<String> {
    let path = resource.strip_prefix("ovf:").unwrap_or(resource);
    let disk = match path.strip_prefix("/file/") {
        Some(file) => disks.iter().find(|d| d.file.is_some_and(|f| files[f].id == file)),
        None => path.strip_prefix("/disk/").and_then(|id| disks.iter().find(|d| d.id == id)),
    };
    disk.map(|d| d.id.clone())
}

/// `efi` or `bios`, where the OVF says: VMware's `Config` or `ExtraConfig` of key `firmware`, VirtualBox's `Firmware`.
fn firmware(system: Node) -> Option<String> {
    let said = system.descendants().find_map(|n| match n.tag_name().name() {
        "Config" | "ExtraConfig" if attribute(n, "key").is_some_and(|k| k.eq_ignore_ascii_case("firmware")) => {
            attribute(n, "value")
        }
        "Firmware" => attribute(n, "type"),
        _ => None,
    })?;
    let efi = said.get(..3).is_some_and(|s| s.eq_ignore_ascii_case("efi")) || said.eq_ignore_ascii_case("uefi");
    Some(if efi { "efi" } else { "bios" }.to_owned())
}

/// VirtualBox writes network cards without addresses. The addresses stand in a section of its own, in the same order.
fn add_virtualbox_addresses(system: Node, nics: &mut [Nic]) {
    let adapters = system.descendants().filter(|n| n.tag_name().name() == "Adapter");
    let enabled = adapters.filter(|a| attribute(*a, "enabled").is_some_and(|e| e.eq_ignore_ascii_case("true")));
    let addresses = enabled.filter_map(|a| attribute(a, "MACAddress")).map(shortened);
    for (nic, address) in nics.iter_mut().filter(|nic| nic.mac.is_none()).zip(addresses) {
        nic.mac = Some(address);
    }
}

fn guest_os(system: Node) -> Option<String> {
    let section = children(system, "OperatingSystemSection").next()?;
    let vmware = attribute(section, "osType").map(shortened);
    vmware.or_else(|| child_text(section, "Description")).or_else(|| attribute(section, "id").map(shortened))
}

fn child_text<'a>(node: Node<'a, '_>, name: &'a str) -> Option<String> {
    let found = children(node, name).next()?;
    found.text().map(str::trim).filter(|t| !t.is_empty()).map(shortened)
}

/// Cuts a name or a model for a report at 256 characters: no real one is longer.
fn shortened(text: &str) -> String {
    text.chars().take(256).collect()
}
