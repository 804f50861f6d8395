// SPDX-License-Identifier: Apache-2.0
//! Hyper-V's settings of a machine, as Windows Server 2008 to 2012 R2 write them: `Virtual Machines/GUID.xml` of an export.
//!
//! The format is nowhere specified; elements are those that these versions write. Devices stand below names made of
//! their GUIDs and are known by what they hold. Nothing that it names is opened.

use roxmltree::{Document, Node, ParsingOptions};

use super::MAX_BYTES;
use crate::conversion::file_name::{extension, stem};
use crate::conversion::machine::{Card, Controller, Description, Firmware, Machine, MachineDisk, mac_address};
use crate::disk::text;

/// Most XML nodes; a machine of 60 disks has some 2,000.
const MAX_NODES: u32 = 1 << 16;

/// A drive that the settings name.
struct Drive {
    /// The last part of its path.
    name: String,
    controller: Controller,
    controller_address: u32,
    address: u32,
}

/// The machine whose disk `member` is converted, if these settings name that disk. `here` gives the name of a disk that
/// comes with it, by a name in any case; disks that are not here are left out with a doubt.
pub(crate) fn read(bytes: &[u8], member: &str, here: &dyn Fn(&str) -> Option<String>) -> Option<Machine> {
    let text = text::decode_xml(&bytes[..bytes.len().min(MAX_BYTES)]).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    super::ovf::is_cheap(text).then_some(())?;
    let parsing = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, entity_resolver: None };
    let document = Document::parse_with_options(text, parsing).ok()?;
    let root = document.root_element();
    if root.tag_name().name() != "configuration" {
        return None;
    }
    let drives = drives(root);
    let is_it = |drive: &Drive| drive.name.eq_ignore_ascii_case(member) || is_checkpoint(&drive.name, member);
    if !drives.iter().any(is_it) {
        return None;
    }
    let properties = child(root, "properties");
    let settings = child(root, "settings");
    let generation_2 = properties.and_then(|p| value(p, "subtype")) == Some("1");
    let mut machine = Machine {
        described_by: Description::HyperV,
        name: properties.and_then(|p| value(p, "name")).map(str::to_owned),
        annotation: first(root, "notes").map(str::to_owned),
        uuid: first(root, "bios_guid").map(str::to_owned),
        firmware: Some(if generation_2 { Firmware::Efi } else { Firmware::Bios }),
        secure_boot: first(root, "secure_boot_enabled").filter(|_| generation_2).map(is_true),
        cards: root.descendants().filter_map(card).collect(),
        ..Machine::default()
    };
    if let Some(settings) = settings {
        let count = child(settings, "processors").and_then(|p| value(p, "count")).and_then(|n| n.parse().ok());
        // Hyper-V shows its processors as cores of one socket.
        (machine.sockets, machine.cores_per_socket) = (count.map(|_| 1), count);
        add_memory(settings, &mut machine);
    }
    add_disks(drives, member, here, &mut machine);
    Some(machine.bounded())
}

/// Memory in MiB; of a machine whose memory changes, what it starts with.
fn add_memory(settings: Node, machine: &mut Machine) {
    let Some(bank) = child(settings, "memory").and_then(|memory| child(memory, "bank")) else { return };
    machine.memory_mib = value(bank, "size").and_then(|size| size.parse().ok());
    if value(bank, "dynamic_memory_enabled").is_some_and(is_true) {
        let limit = value(bank, "limit").unwrap_or("an unknown number of");
        machine.doubt(format!("its memory was dynamic, up to {limit} MiB: it gets what it started with"));
    }
}

/// The drives with files, in the order of their controllers.
fn drives(root: Node) -> Vec<Drive> {
    let mut drives = Vec::new();
    let mut scsi = 0;
    let controllers = root.descendants().flat_map(|device| {
        // Only devices on Hyper-V's bus have a channel.
        let on_bus = child(device, "ChannelInstanceGuid").is_some() || attribute(device, "ChannelInstanceGuid");
        device.children().filter_map(move |node| numbered(node, "controller").map(|_| (node, on_bus)))
    });
    for (controller, on_bus) in controllers {
        let (kind, address) = if on_bus {
            scsi += 1;
            (Controller::Scsi, scsi - 1)
        } else {
            (Controller::Ide, numbered(controller, "controller").unwrap_or_default())
        };
        for drive in controller.children() {
            let Some(unit) = numbered(drive, "drive") else { continue };
            let kind_of_drive = value(drive, "type").unwrap_or("VHD");
            let Some(path) = value(drive, "pathname").filter(|_| kind_of_drive.eq_ignore_ascii_case("VHD")) else {
                continue;
            };
            let name = path.rsplit(['/', '\\']).next().unwrap_or(path).to_owned();
            drives.push(Drive { name, controller: kind, controller_address: address, address: unit });
        }
    }
    drives.sort_by_key(|drive| (drive.controller != Controller::Ide, drive.controller_address, drive.address));
    drives
}

fn add_disks(drives: Vec<Drive>, member: &str, here: &dyn Fn(&str) -> Option<String>, machine: &mut Machine) {
    let mut others = 0;
    for drive in drives {
        let file = if drive.name.eq_ignore_ascii_case(member) {
            Some(member.to_owned())
        } else if is_checkpoint(&drive.name, member) {
            machine.doubt(format!(
                "it wrote to {} last, a checkpoint of {member}: what is in that is not in this disk; merge it first",
                drive.name
            ));
            Some(member.to_owned())
        } else {
            here(&drive.name)
        };
        match file {
            Some(file) if machine.disks.iter().all(|disk| disk.file != file) => machine.disks.push(MachineDisk {
                file,
                controller: Some(drive.controller),
                controller_address: Some(drive.controller_address),
                address: Some(drive.address),
                ..MachineDisk::default()
            }),
            Some(_) => {}
            None => others += 1,
        }
    }
    if others > 0 {
        machine.doubt(format!(
            "its settings name further disks ({others}): each is converted by itself, attach them to this machine"
        ));
    }
}

/// Whether a drive of this name holds the changes of the disk `member`: `web01_GUID.avhdx` of `web01.vhdx`.
fn is_checkpoint(name: &str, member: &str) -> bool {
    let changes = extension(name).to_ascii_lowercase();
    let (name, disk) = (stem(name).to_lowercase(), stem(member).to_lowercase());
    matches!(changes.as_str(), "avhd" | "avhdx") && name.strip_prefix(&disk).is_some_and(|rest| rest.starts_with('_'))
}

/// The network card that `node` describes, if it is one.
fn card(node: Node) -> Option<Card> {
    let mac = value(node, "MacAddress")?;
    let connection = child(node, "Connection").unwrap_or(node);
    let network = value(connection, "AltSwitchName").or_else(|| value(node, "SwitchName"));
    Some(Card {
        mac: mac_address(mac),
        network: network.map(str::to_owned),
        model: value(node, "FriendlyName").map(str::to_owned),
        connected: value(node, "IsConnected").is_none_or(is_true),
        ..Card::default()
    })
}

/// The number behind `word` in an element's name: `controller0`.
fn numbered(node: Node, word: &str) -> Option<u32> {
    node.is_element().then(|| node.tag_name().name().strip_prefix(word)?.parse().ok()).flatten()
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.tag_name().name() == name)
}

fn attribute(node: Node, name: &str) -> bool {
    node.attributes().any(|attribute| attribute.name() == name)
}

/// The text of a child; `None` where it is empty.
fn value<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim).filter(|text| !text.is_empty())
}

/// The text of the first element of this name.
fn first<'a>(root: Node<'a, '_>, name: &str) -> Option<&'a str> {
    root.descendants()
        .find(|node| node.tag_name().name() == name)?
        .text()
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn is_true(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("true") || text.trim() == "1"
}

/// Whether a file of this name holds Hyper-V's settings of a machine: they are called after its GUID.
#[must_use]
pub(crate) fn is_settings(name: &str) -> bool {
    let guid = stem(name);
    let groups: Vec<usize> = guid.split('-').map(str::len).collect();
    matches!(extension(name).to_ascii_lowercase().as_str(), "xml" | "vmcx")
        && groups == [8, 4, 4, 4, 12]
        && guid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// The machine of a disk whose settings are in a `.vmcx` of this name, which only Hyper-V reads.
pub(crate) fn unread(settings: &str, member: &str) -> Machine {
    let mut machine = Machine {
        disks: vec![MachineDisk { file: member.to_owned(), ..MachineDisk::default() }],
        cards: vec![Card::default()],
        ..Machine::default()
    };
    machine.doubt(format!(
        "its settings are in {settings}, which only Hyper-V reads: look there for its processors and memory \
         (Get-VM NAME | Format-List Generation, ProcessorCount, MemoryStartup)"
    ));
    machine
}

#[cfg(test)]
mod tests;
