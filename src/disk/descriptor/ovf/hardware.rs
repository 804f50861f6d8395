// SPDX-License-Identifier: Apache-2.0
//! The machines that an OVF describes.
//!
//! Format: DSP0243, virtual hardware section, whose items carry the properties of CIM's
//! `CIM_ResourceAllocationSettingData`; resource types from DSP8042. Exporters add elements of their own: VMware,
//! `VirtualBox`, oVirt, `XenCenter`, virt-v2v.

mod items;
mod order;
mod settings;
#[cfg(test)]
mod tests;
mod virtualbox;

use std::collections::{BTreeSet, HashMap, HashSet};

use roxmltree::Node;

use self::items::Items;
use super::parts::{OvfDisk, OvfFile};
use super::xml::{attribute, children, is};
use crate::conversion::machine::{Card, Description, MAX_MACHINES, Machine};
use crate::conversion::report::{DiskController, Hardware, Nic};

/// What an envelope says of its machines. Both name disks by [`OvfDisk::id`].
pub(super) struct Described {
    /// The only machine, as the first contract version knows it; `None` where there is none or are several.
    pub hardware: Option<Hardware>,
    /// Every machine.
    pub machines: Vec<Machine>,
}

/// Reads every virtual system, with the items of the deployment option `configuration`.
pub(super) fn read(
    envelope: Node,
    configuration: Option<&str>,
    disks: &[OvfDisk],
    files: &[OvfFile],
    warnings: &mut Vec<String>,
) -> Described {
    let systems: Vec<Node> = envelope.descendants().filter(|node| is(*node, "VirtualSystem")).collect();
    if systems.len() > 1 {
        warnings.push(format!("the OVF describes {} machines: each gets files of its own", systems.len()));
    }
    if systems.len() > MAX_MACHINES {
        warnings.push(format!("only the first {MAX_MACHINES} machines of the OVF are described"));
    }
    let envelope = Envelope { root: envelope, configuration, disks, files };
    let mut hardware = None;
    let mut machines = Vec::new();
    for system in systems.iter().take(MAX_MACHINES) {
        let items = children(*system, "VirtualHardwareSection").next().map(|section| Items::read(section, &envelope));
        let items = items.unwrap_or_default();
        machines.push(machine(*system, &items, &envelope).bounded());
        if systems.len() == 1 {
            hardware = Some(first_contract(*system, &items));
        }
    }
    attach_the_rest(&mut machines, disks, warnings);
    doubt_shared_disks(&mut machines);
    Described { hardware, machines }
}

/// What items refer to.
struct Envelope<'a, 'i> {
    root: Node<'a, 'i>,
    configuration: Option<&'a str>,
    disks: &'a [OvfDisk],
    files: &'a [OvfFile],
}

fn machine(system: Node, items: &Items, envelope: &Envelope) -> Machine {
    let mut machine = Machine {
        described_by: Description::Ovf,
        name: name(system),
        guest_os: guest_os(system),
        annotation: annotation(system),
        memory_mib: items.memory_mib,
        tpm: items.tpm,
        ..Machine::default()
    };
    items.add_processors(&mut machine);
    settings::add(system, &mut machine);
    order::add_disks(system, items, envelope, &mut machine);
    machine.cards = cards(system, items);
    items.add_doubts(&mut machine);
    virtualbox::add(system, &mut machine);
    drop_double_addresses(&mut machine);
    machine
}

/// The machine as the first contract version describes it: controllers in the order of their items.
fn first_contract(system: Node, items: &Items) -> Hardware {
    let mut machine = Machine::default();
    settings::add(system, &mut machine);
    let mut hardware = Hardware {
        name: name(system),
        vcpus: items.vcpus,
        memory_mib: items.memory_mib,
        firmware: machine.firmware.map(|firmware| firmware.as_str().to_owned()),
        guest_os: guest_os(system),
        nics: items.cards.iter().map(items::CardItem::nic).collect(),
        ..Hardware::default()
    };
    let model = |nic: &Nic| Card { mac: nic.mac.clone(), ..Card::default() };
    let mut cards: Vec<Card> = hardware.nics.iter().map(model).collect();
    virtualbox::add_addresses(system, &mut cards);
    for (nic, card) in hardware.nics.iter_mut().zip(cards) {
        nic.mac = card.mac;
    }
    let mut attached: Vec<_> = items.disks.iter().collect();
    attached.sort_by_key(|disk| (disk.unit, &disk.disk));
    // Of several controllers with one id, the first has its disks: else each had all of them.
    let mut known = BTreeSet::new();
    for controller in &items.controllers {
        let is_first = known.insert(&controller.id);
        let behind = attached.iter().filter(|disk| is_first && disk.parent == controller.id);
        hardware.disk_controllers.push(DiskController {
            kind: controller.kind.first_contract().to_owned(),
            model: controller.model.clone(),
            disks: behind.map(|disk| disk.disk.clone()).collect(),
        });
    }
    hardware
}

fn cards(system: Node, items: &Items) -> Vec<Card> {
    let mut cards: Vec<Card> = items.cards.iter().map(items::CardItem::card).collect();
    virtualbox::add_addresses(system, &mut cards);
    cards
}

/// Two cards with one address never work on one network: the second gets another one.
fn drop_double_addresses(machine: &mut Machine) {
    let mut known: Vec<String> = Vec::new();
    let mut doubles = false;
    for card in &mut machine.cards {
        let Some(mac) = card.mac.clone() else { continue };
        if known.contains(&mac) {
            card.mac = None;
            doubles = true;
        } else {
            known.push(mac);
        }
    }
    if doubles {
        machine.doubt("two network cards have one address: the later one gets another");
    }
}

/// Gives disks that no item attaches to the only machine; of several nobody knows which.
fn attach_the_rest(machines: &mut [Machine], disks: &[OvfDisk], warnings: &mut Vec<String>) {
    let is_attached = |id: &str| machines.iter().any(|m| m.disks.iter().any(|disk| disk.file == id));
    let rest: Vec<String> = disks.iter().filter(|d| !is_attached(&d.id)).map(|d| d.id.clone()).collect();
    if rest.is_empty() || machines.is_empty() {
        return;
    }
    match machines {
        [only] => order::append(only, rest),
        _ => warnings.push(format!("{} disks of the OVF belong to none of its machines", rest.len())),
    }
}

/// Two machines that run on one disk destroy what is on it.
fn doubt_shared_disks(machines: &mut [Machine]) {
    let mut users: HashMap<&str, usize> = HashMap::new();
    for machine in &*machines {
        let files: HashSet<&str> = machine.disks.iter().map(|disk| disk.file.as_str()).collect();
        for file in files {
            *users.entry(file).or_default() += 1;
        }
    }
    let is_shared = |machine: &Machine| machine.disks.iter().any(|disk| users[disk.file.as_str()] > 1);
    let shared: Vec<bool> = machines.iter().map(is_shared).collect();
    for (machine, _) in machines.iter_mut().zip(shared).filter(|(_, shared)| *shared) {
        machine.doubt("another machine of the OVF has one of its disks too: start one of them only, or give it a copy");
    }
}

fn name(system: Node) -> Option<String> {
    child_text(system, "Name").or_else(|| attribute(system, "id").map(shortened))
}

fn guest_os(system: Node) -> Option<String> {
    let section = children(system, "OperatingSystemSection").next()?;
    let vmware = attribute(section, "osType").map(shortened);
    let said = vmware.or_else(|| child_text(section, "Description"));
    said.or_else(|| child_text(section, "OSType")).or_else(|| attribute(section, "id").map(shortened))
}

/// VMware's annotation section; oVirt's and `VirtualBox`'s description.
fn annotation(system: Node) -> Option<String> {
    let section = children(system, "AnnotationSection").next().and_then(|s| long_text(s, "Annotation"));
    let virtualbox = || children(system, "Machine").find_map(|machine| long_text(machine, "Description"));
    section.or_else(|| long_text(system, "Description")).or_else(virtualbox)
}

fn long_text(node: Node, name: &str) -> Option<String> {
    text_of(node, name).map(|text| text.chars().take(crate::conversion::machine::MAX_ANNOTATION).collect())
}

/// Text of a child, whatever the case of its name: oVirt writes `InstanceId`.
fn child_text(node: Node, name: &str) -> Option<String> {
    text_of(node, name).map(shortened)
}

fn text_of<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let found = node.children().find(|n| n.tag_name().name().eq_ignore_ascii_case(name))?;
    found.text().map(str::trim).filter(|text| !text.is_empty())
}

/// Cuts a name or a model for a report at 256 characters: no real one is longer.
fn shortened(text: &str) -> String {
    text.chars().take(256).collect()
}

/// The words for true that exporters write.
fn is_true(text: &str) -> bool {
    ["true", "1", "yes"].iter().any(|word| text.trim().eq_ignore_ascii_case(word))
}
