// SPDX-License-Identifier: Apache-2.0
//! What every platform is told of a machine: nothing is open any more.

use std::borrow::Cow;

use crate::conversion::file_name::stem;
use crate::conversion::machine::{
    Card, DEFAULT_CORES, DEFAULT_MEMORY_MIB, Drivers, Firmware, MAX_NAME, Machine, MachineDisk, NO_CARD, decide,
    mac_address, one_line, size_is_a_guess,
};
use crate::conversion::options::DomainOptions;
use crate::conversion::report::{DiskReport, Hardware, Metadata};

/// Most processors that libvirt's schema allows.
const MAX_VCPUS: u32 = 65_535;

/// A machine with every default filled in.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    /// One line, never empty.
    pub name: String,
    pub source: String,
    /// The conversion's id; empty for one by hand.
    pub id: &'a str,
    pub sockets: u32,
    pub cores: u32,
    pub memory_mib: u64,
    pub firmware: Firmware,
    pub secure_boot: bool,
    pub tpm: bool,
    pub uuid: Option<&'a str>,
    pub is_windows: bool,
    pub system: Option<&'a str>,
    pub annotation: Option<&'a str>,
    pub disks: Vec<GuestDisk<'a>>,
    pub cards: &'a [Card],
    pub doubts: Vec<Cow<'a, str>>,
}

/// A disk of a guest, in the order in which it gets them.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestDisk<'a> {
    pub machine: &'a MachineDisk,
    pub report: &'a DiskReport,
    /// Place in the boot order, from 1; the first disk has one.
    pub boot_order: Option<u32>,
}

impl<'a> Guest<'a> {
    /// What `options` leave open comes from the machine, else from defaults. Several machines keep their names.
    pub(super) fn new(metadata: &'a Metadata, machine: &'a Machine, options: &DomainOptions) -> Self {
        let by_option = options.name.as_deref().filter(|_| metadata.machines.len() <= 1);
        let source = one_line(&metadata.source.name, MAX_NAME);
        let named = by_option.or(machine.name.as_deref()).unwrap_or_else(|| stem(&source));
        let name = one_line(named, MAX_NAME);
        let (sockets, cores) = topology(machine, options);
        let firmware = match options.uefi {
            Some(true) => Firmware::Efi,
            Some(false) => Firmware::Bios,
            None => machine.firmware.unwrap_or(Firmware::Bios),
        };
        Self {
            name: if name.is_empty() { "vm".to_owned() } else { name },
            source,
            id: &metadata.id,
            sockets,
            cores,
            memory_mib: options.memory_mib.or(machine.memory_mib).unwrap_or(DEFAULT_MEMORY_MIB).max(1),
            firmware,
            secure_boot: firmware == Firmware::Efi && machine.secure_boot == Some(true),
            tpm: machine.tpm,
            uuid: machine.uuid.as_deref(),
            is_windows: machine.is_windows(),
            system: machine.guest_os.as_deref(),
            annotation: machine.annotation.as_deref(),
            disks: disks(metadata, machine),
            cards: &machine.cards,
            doubts: doubts(machine, options),
        }
    }

    /// The lines of a file's head: where it comes from, `usage`, and what is doubtful, `lost` on this platform included.
    pub(super) fn head(&self, usage: &[String], lost: &[String]) -> Vec<String> {
        let mut lines = vec![format!("Made by hyper2kvm {} from {}.", env!("CARGO_PKG_VERSION"), self.source)];
        lines.extend_from_slice(usage);
        lines.extend(
            self.doubts
                .iter()
                .map(AsRef::as_ref)
                .chain(lost.iter().map(String::as_str))
                .map(|doubt| format!("Doubt: {doubt}.")),
        );
        lines.iter().map(|line| one_line(line, 1000)).collect()
    }

    /// The disks that are started from, the first one first.
    pub(super) fn boot_disks(&self) -> Vec<usize> {
        let mut bootable: Vec<usize> = (0..self.disks.len()).filter(|n| self.disks[*n].boot_order.is_some()).collect();
        bootable.sort_by_key(|n| self.disks[*n].boot_order);
        bootable
    }
}

/// The machines of a report. One of the first contract version has hardware at most.
pub(super) fn machines(metadata: &Metadata) -> Cow<'_, [Machine]> {
    if !metadata.machines.is_empty() {
        return Cow::Borrowed(&metadata.machines);
    }
    Cow::Owned(vec![of_first_contract(metadata)])
}

fn of_first_contract(metadata: &Metadata) -> Machine {
    let mut machine = Machine {
        disks: metadata.disks.iter().map(|d| MachineDisk { file: d.file.clone(), ..MachineDisk::default() }).collect(),
        ..Machine::default()
    };
    if let Some(hardware) = &metadata.hardware {
        add_hardware(hardware, &mut machine);
    } else {
        machine.cards.push(Card::default());
        machine.doubt(NO_CARD);
    }
    decide(&mut machine, Drivers::default());
    machine.bounded()
}

fn add_hardware(hardware: &Hardware, machine: &mut Machine) {
    machine.name.clone_from(&hardware.name);
    machine.memory_mib = hardware.memory_mib;
    machine.guest_os.clone_from(&hardware.guest_os);
    machine.firmware = hardware.firmware.as_deref().map(|said| match said {
        "efi" => Firmware::Efi,
        _ => Firmware::Bios,
    });
    (machine.sockets, machine.cores_per_socket) = (hardware.vcpus.map(|_| 1), hardware.vcpus);
    machine.cards = hardware
        .nics
        .iter()
        .map(|nic| Card {
            mac: nic.mac.as_deref().and_then(mac_address),
            network: nic.network.clone(),
            model: nic.model.clone(),
            ..Card::default()
        })
        .collect();
}

/// The doubts that `options` leave open.
fn doubts<'a>(machine: &'a Machine, options: &DomainOptions) -> Vec<Cow<'a, str>> {
    let guessed = size_is_a_guess(machine);
    let left = size_is_a_guess(&Machine {
        memory_mib: options.memory_mib.or(machine.memory_mib),
        sockets: options.vcpus.or(machine.sockets),
        cores_per_socket: machine.cores_per_socket,
        ..Machine::default()
    });
    let others = machine.doubts.iter().filter(|doubt| Some(*doubt) != guessed.as_ref());
    left.map(Cow::Owned).into_iter().chain(others.map(|doubt| Cow::Borrowed(doubt.as_str()))).collect()
}

/// Sockets and cores of each: an option's processors are the cores of one socket.
fn topology(machine: &Machine, options: &DomainOptions) -> (u32, u32) {
    let (sockets, cores) = match (options.vcpus, machine.sockets, machine.cores_per_socket) {
        (Some(count), ..) => (1, count),
        (None, Some(sockets), cores) => (sockets, cores.unwrap_or(1)),
        (None, None, cores) => (1, cores.unwrap_or(DEFAULT_CORES)),
    };
    let (sockets, cores) = (sockets.max(1), cores.max(1));
    if sockets.checked_mul(cores).is_some_and(|count| count <= MAX_VCPUS) { (sockets, cores) } else { (1, MAX_VCPUS) }
}

fn disks<'a>(metadata: &'a Metadata, machine: &'a Machine) -> Vec<GuestDisk<'a>> {
    let mut disks: Vec<GuestDisk> = Vec::new();
    for disk in &machine.disks {
        let report = metadata.disks.iter().find(|report| report.file == disk.file);
        disks.extend(report.map(|report| GuestDisk { machine: disk, report, boot_order: disk.boot_order }));
    }
    // Platforms refuse two disks of one place.
    let mut places: Vec<usize> = (0..disks.len()).filter(|n| disks[*n].boot_order.is_some()).collect();
    places.sort_by_key(|n| disks[*n].boot_order);
    for (place, n) in places.iter().enumerate() {
        disks[*n].boot_order = u32::try_from(place + 1).ok();
    }
    if let Some(first) = disks.first_mut().filter(|_| places.is_empty()) {
        first.boot_order = Some(1);
    }
    disks
}

/// A label as DNS and Kubernetes have them (RFC 1123), made from `name`, at most `most` characters; never empty.
#[must_use]
pub fn label(name: &str, most: usize) -> String {
    let mut label = String::new();
    for c in name.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_alphanumeric() {
            label.push(c);
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    label.truncate(most);
    label.truncate(label.trim_end_matches('-').len());
    if label.is_empty() { "vm".to_owned() } else { label }
}
