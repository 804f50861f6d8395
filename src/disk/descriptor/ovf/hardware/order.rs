// SPDX-License-Identifier: Apache-2.0
//! The order of a machine's disks: the boot order where the envelope has one, then controllers by their addresses and
//! disks by theirs, as numbers. Exporters list neither in order.

use roxmltree::Node;

use super::super::xml::attribute;
use super::items::{DiskItem, Items};
use super::{Envelope, is_true};
use crate::conversion::machine::{Controller, Machine, MachineDisk};

/// Adds the disks that items attach, each once.
pub(super) fn add_disks(system: Node, items: &Items, envelope: &Envelope, machine: &mut Machine) {
    let boot = boot_order(system, items, envelope, machine);
    let mut disks: Vec<((u32, u32, usize, u32), MachineDisk)> = Vec::new();
    for item in &items.disks {
        if disks.iter().any(|(_, disk)| disk.file == item.disk) {
            continue;
        }
        let index = items.controllers.iter().position(|c| c.id == item.parent);
        let controller = index.map(|index| &items.controllers[index]);
        let place = boot.iter().position(|instance| *instance == item.disk);
        let place = place.and_then(|place| u32::try_from(place + 1).ok());
        let address = controller.map(|c| c.address);
        let disk = MachineDisk {
            file: item.disk.clone(),
            controller: interface(&item.disk, envelope).or(controller.map(|c| c.kind.0)),
            model: controller.and_then(|c| c.model.clone()),
            controller_address: address,
            address: Some(item.unit),
            boot_order: place,
            ..MachineDisk::default()
        };
        let last = u32::MAX;
        let key = (place.unwrap_or(last), address.unwrap_or(last), index.unwrap_or(usize::MAX), item.unit);
        disks.push((key, disk));
    }
    // A stable sort: what has one address stays in the order of the items.
    disks.sort_by_key(|(key, _)| *key);
    machine.disks = disks.into_iter().map(|(_, disk)| disk).collect();
}

/// Adds disks that no item attaches.
pub(super) fn append(machine: &mut Machine, ids: Vec<String>) {
    machine.doubt("disks of the OVF are attached to no controller: they are the last ones");
    machine.disks.extend(ids.into_iter().map(|file| MachineDisk { file, ..MachineDisk::default() }));
}

/// The disks that the machine is started from, the first one first: VMware's `BootOrderSection`, one for each device;
/// oVirt's `BootOrder` of items, or `boot` of disks.
fn boot_order(system: Node, items: &Items, envelope: &Envelope, machine: &mut Machine) -> Vec<String> {
    let sections: Vec<Node> = system.descendants().filter(|n| n.tag_name().name() == "BootOrderSection").collect();
    let by_instance = |node: &Node| {
        let instance = attribute(*node, "instanceId")?;
        items.disks.iter().find(|item| item.instance == instance).map(|item| item.disk.clone())
    };
    if let Some(kind) = sections.first().and_then(|first| attribute(*first, "type")).filter(|kind| *kind != "disk") {
        let kind = crate::conversion::machine::one_line(kind, 32);
        machine.doubt(format!("it was started from {kind} first: here the first disk is"));
    }
    let listed: Vec<String> = sections.iter().filter_map(by_instance).collect();
    if !listed.is_empty() {
        return listed;
    }
    let mut ordered: Vec<&DiskItem> = items.disks.iter().filter(|item| item.boot_order.is_some()).collect();
    ordered.sort_by_key(|item| item.boot_order);
    if !ordered.is_empty() {
        return ordered.iter().map(|item| item.disk.clone()).collect();
    }
    let is_boot = |item: &&DiskItem| disk_attribute(&item.disk, "boot", envelope).is_some_and(is_true);
    items.disks.iter().filter(is_boot).map(|item| item.disk.clone()).collect()
}

/// oVirt's interface of a disk, which stands at the disk and not at a controller.
fn interface(disk: &str, envelope: &Envelope) -> Option<Controller> {
    let said = disk_attribute(disk, "disk-interface", envelope)?.to_ascii_lowercase();
    Some(match said.as_str() {
        "virtio" => Controller::Virtio,
        "virtio_scsi" | "virtio-scsi" => Controller::VirtioScsi,
        "ide" => Controller::Ide,
        "sata" => Controller::Sata,
        _ => return None,
    })
}

fn disk_attribute<'a>(disk: &str, name: &str, envelope: &Envelope<'a, '_>) -> Option<&'a str> {
    let elements = envelope.root.descendants().filter(|n| n.tag_name().name() == "Disk");
    let element = elements.into_iter().find(|n| attribute(*n, "diskId") == Some(disk))?;
    attribute(element, name)
}
