// SPDX-License-Identifier: Apache-2.0
//! The items of a virtual hardware section.

use roxmltree::Node;

use super::super::xml::{attribute, is, unit_bytes};
use super::{Envelope, child_text, is_true};
use crate::conversion::machine::{Card, Controller, Machine, mac_address};
use crate::conversion::report::Nic;

const OTHER: u32 = 1;
const PROCESSOR: u32 = 3;
const MEMORY: u32 = 4;
const IDE_CONTROLLER: u32 = 5;
const SCSI_CONTROLLER: u32 = 6;
const NETWORK_CARD: u32 = 10;
const DISK: u32 = 17;
const OTHER_STORAGE: u32 = 20;
const SERIAL_PORT: u32 = 21;
const PARALLEL_PORT: u32 = 22;
const GRAPHICS: u32 = 24;

/// What the items say that apply to the machine.
#[derive(Debug, Default)]
pub(super) struct Items {
    pub vcpus: Option<u32>,
    cores_per_socket: Option<u32>,
    pub memory_mib: Option<u64>,
    pub controllers: Vec<ControllerItem>,
    pub disks: Vec<DiskItem>,
    pub cards: Vec<CardItem>,
    pub tpm: bool,
    serial_ports: usize,
    parallel_ports: usize,
    video_cards: usize,
    host_devices: usize,
}

#[derive(Debug)]
pub(super) struct ControllerItem {
    pub id: String,
    pub kind: Kind,
    pub model: Option<String>,
    pub address: u32,
}

/// Kind of a controller, and the word of the first contract version, which knew neither virtio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(pub Controller);

impl Kind {
    pub(super) const fn first_contract(self) -> &'static str {
        match self.0 {
            Controller::Ide => "ide",
            Controller::Sata => "sata",
            Controller::Nvme => "nvme",
            Controller::Scsi | Controller::Virtio | Controller::VirtioScsi => "scsi",
        }
    }
}

#[derive(Debug)]
pub(super) struct DiskItem {
    pub instance: String,
    /// [`OvfDisk::id`](super::OvfDisk::id).
    pub disk: String,
    /// Instance of its controller.
    pub parent: String,
    /// Its number behind that controller.
    pub unit: u32,
    /// oVirt's place in the boot order.
    pub boot_order: Option<u32>,
}

#[derive(Debug)]
pub(super) struct CardItem {
    address: Option<String>,
    network: Option<String>,
    model: Option<String>,
    connected: bool,
}

impl CardItem {
    pub(super) fn nic(&self) -> Nic {
        Nic { mac: self.address.clone(), network: self.network.clone(), model: self.model.clone() }
    }

    pub(super) fn card(&self) -> Card {
        Card {
            mac: self.address.as_deref().and_then(mac_address),
            network: self.network.clone(),
            model: self.model.clone(),
            connected: self.connected,
            ..Card::default()
        }
    }
}

impl Items {
    pub(super) fn read(section: Node, envelope: &Envelope) -> Self {
        let configuration = envelope.configuration;
        let is_item = |n: &Node| ["Item", "StorageItem", "EthernetPortItem"].iter().any(|name| is(*n, name));
        let mut items = Self::default();
        for item in section.children().filter(is_item).filter(|item| applies(*item, configuration)) {
            items.add(item, envelope);
        }
        items
    }

    fn add(&mut self, item: Node, envelope: &Envelope) {
        let kind: Option<u32> = child_text(item, "ResourceType").and_then(|text| text.parse().ok());
        let model = child_text(item, "ResourceSubType");
        // oVirt's type of a device that CIM has no number for.
        let is_tpm = |text: &Option<String>| text.as_deref().is_some_and(|t| t.to_ascii_lowercase().contains("tpm"));
        if is_tpm(&model) || is_tpm(&child_text(item, "Type")) {
            self.tpm = true;
            return;
        }
        match kind {
            Some(PROCESSOR) => self.set_processors(item),
            Some(MEMORY) => self.memory_mib = memory_mib(item),
            Some(kind @ (IDE_CONTROLLER | SCSI_CONTROLLER | OTHER_STORAGE)) => {
                let Some(kind) = controller_kind(kind, model.as_deref()) else { return };
                let id = child_text(item, "InstanceID").unwrap_or_default();
                self.controllers.push(ControllerItem {
                    id,
                    kind,
                    model,
                    address: number(item, "Address").unwrap_or(0),
                });
            }
            Some(NETWORK_CARD) => self.cards.push(card(item, model)),
            Some(DISK) => self.disks.extend(disk(item, envelope)),
            Some(SERIAL_PORT) => self.serial_ports += 1,
            Some(PARALLEL_PORT) => self.parallel_ports += 1,
            Some(GRAPHICS) => self.video_cards += 1,
            Some(OTHER) if model.is_some_and(|m| m.to_ascii_lowercase().contains("passthrough")) => {
                self.host_devices += 1;
            }
            _ => {}
        }
    }

    /// VMware says how many cores a socket has, oVirt how many sockets, cores and threads there are.
    fn set_processors(&mut self, item: Node) {
        self.vcpus = number(item, "VirtualQuantity").filter(|n| *n > 0);
        let threads = number(item, "threads_per_cpu").unwrap_or(1).max(1);
        let cores = number(item, "cpu_per_socket").and_then(|cores| cores.checked_mul(threads));
        self.cores_per_socket = number(item, "CoresPerSocket").or(cores).filter(|n| *n > 0);
    }

    /// Where the source doesn't tell the sockets it is one: Windows for clients uses no more than two.
    pub(super) fn add_processors(&self, machine: &mut Machine) {
        let Some(count) = self.vcpus else { return };
        let cores = self.cores_per_socket.unwrap_or(count);
        if count % cores == 0 {
            (machine.sockets, machine.cores_per_socket) = (Some(count / cores), Some(cores));
        } else {
            (machine.sockets, machine.cores_per_socket) = (Some(1), Some(count));
            machine.doubt(format!("{count} processors do not fill sockets of {cores} cores: they are in one socket"));
        }
    }

    /// What is lost.
    pub(super) fn add_doubts(&self, machine: &mut Machine) {
        for (count, kept, what) in [
            (self.serial_ports, 0, "serial ports of the source are"),
            (self.parallel_ports, 0, "parallel ports of the source are"),
            (self.video_cards, 1, "video cards of the source but the first are"),
            (self.host_devices, 0, "devices of the source's host are"),
        ] {
            if count > kept {
                machine.doubt(format!("{what} not carried over"));
            }
        }
        if self.cards.iter().any(|card| card.address.as_deref().is_some_and(|text| mac_address(text).is_none())) {
            machine.doubt("an address of a network card is none that a card can have: it gets another");
        }
    }
}

/// Whether `item` describes the machine: neither an item of another deployment option nor a bound of a range does.
fn applies(item: Node, configuration: Option<&str>) -> bool {
    let chosen = attribute(item, "configuration")
        .is_none_or(|list| configuration.is_some_and(|wanted| list.split_whitespace().any(|c| c == wanted)));
    chosen && attribute(item, "bound").is_none()
}

fn number(item: Node, name: &str) -> Option<u32> {
    child_text(item, name).and_then(|text| text.parse().ok())
}

fn memory_mib(item: Node) -> Option<u64> {
    let quantity: u64 = child_text(item, "VirtualQuantity")?.parse().ok()?;
    let unit = match child_text(item, "AllocationUnits") {
        Some(unit) => unit_bytes(&unit)?,
        None => 1 << 20,
    };
    let bytes = quantity.checked_mul(unit)?;
    Some(bytes.div_ceil(1 << 20)).filter(|mib| *mib > 0)
}

fn controller_kind(resource_type: u32, model: Option<&str>) -> Option<Kind> {
    let model = model.unwrap_or_default().to_ascii_lowercase();
    let kind = match resource_type {
        // VMware's paravirtual controller is called VirtualSCSI, VirtualBox's VirtioSCSI.
        _ if model.contains("virtio") && model.contains("scsi") => Controller::VirtioScsi,
        _ if model.contains("virtio") => Controller::Virtio,
        IDE_CONTROLLER => Controller::Ide,
        SCSI_CONTROLLER => Controller::Scsi,
        _ if model.contains("ahci") || model.contains("sata") => Controller::Sata,
        _ if model.contains("nvme") => Controller::Nvme,
        _ if model.contains("scsi") => Controller::Scsi,
        _ => return None,
    };
    Some(Kind(kind))
}

fn card(item: Node, model: Option<String>) -> CardItem {
    let is_no = |name: &str| child_text(item, name).is_some_and(|text| !is_true(&text));
    CardItem {
        address: child_text(item, "MACAddress").or_else(|| child_text(item, "Address")).filter(|a| !a.starts_with('{')),
        network: child_text(item, "Connection"),
        model,
        // VMware's state at power-on, and oVirt's two: link and plug.
        connected: !is_no("AutomaticAllocation") && !is_no("Linked") && !is_no("IsPlugged"),
    }
}

fn disk(item: Node, envelope: &Envelope) -> Option<DiskItem> {
    let resource = child_text(item, "HostResource")?;
    let disk = disk_id(&resource, envelope)?;
    Some(DiskItem {
        instance: child_text(item, "InstanceID").unwrap_or_default(),
        disk,
        parent: child_text(item, "Parent").unwrap_or_default(),
        unit: number(item, "AddressOnParent").or_else(|| drive_unit(item)).unwrap_or(0),
        boot_order: number(item, "BootOrder").filter(|n| *n > 0),
    })
}

/// oVirt's `{type=drive, bus=0, controller=0, target=0, unit=1}`.
fn drive_unit(item: Node) -> Option<u32> {
    let address = child_text(item, "Address")?;
    let unit = address.split(['{', '}', ',', ' ']).find_map(|part| part.strip_prefix("unit="))?;
    unit.parse().ok()
}

/// The disk behind a host resource: `ovf:/disk/ID`, `/disk/ID`, the file of one (`ovf:/file/ID`); in oVirt's exports
/// `GROUP/IMAGE`, where a disk is known by either.
fn disk_id(resource: &str, envelope: &Envelope) -> Option<String> {
    let path = resource.strip_prefix("ovf:").unwrap_or(resource);
    let by_id = |id: &str| envelope.disks.iter().find(|disk| disk.id == id);
    let by_file = |id: &str| envelope.disks.iter().find(|d| d.file.is_some_and(|f| envelope.files[f].id == id));
    let disk = if let Some(file) = path.strip_prefix("/file/") {
        by_file(file)
    } else if let Some(disk) = path.strip_prefix("/disk/") {
        by_id(disk)
    } else {
        path.rsplit('/').find_map(|part| by_id(part).or_else(|| by_file(part)))
    };
    disk.map(|disk| disk.id.clone())
}
