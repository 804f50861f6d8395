// SPDX-License-Identifier: Apache-2.0
//! Which devices a machine gets on KVM: virtio where it is known that the guest has the drivers, else the ones that
//! systems have by themselves.

use super::{Card, CardModel, Controller, DiskBus, Firmware, Machine, MachineDisk};

/// The doubt about a firmware that nothing tells.
const FIRMWARE_IS_A_GUESS: &str = "neither the source nor a partition table tells the firmware: bios is a guess";
/// The doubt about EFI variables, which nothing but a look for the file settles.
const NO_EFI_VARIABLES: &str = "EFI variables are in no export: the boot entries are gone, and the firmware starts \
                                \\EFI\\BOOT\\BOOTX64.EFI of the first disk, if it is there";

/// The doubt about the card of a machine of which nothing is known but its disks.
pub const NO_CARD: &str = "the source tells no network card: one is added";
/// Memory of a machine whose source says none, in MiB.
pub const DEFAULT_MEMORY_MIB: u64 = 2048;
/// Processors of a machine whose source says none.
pub const DEFAULT_CORES: u32 = 2;

/// What is known of a guest's drivers, each `None` where nobody looked or nobody could tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drivers {
    /// Whether it starts from a virtio disk.
    pub virtio_disk: Option<bool>,
    /// Whether it starts from a disk behind a virtio SCSI controller.
    pub virtio_scsi: Option<bool>,
    /// Whether it has a driver of virtio network cards.
    pub virtio_net: Option<bool>,
    /// Whether a fix of the guest was not tried yet, and may change that.
    pub fix_may_help: bool,
}

/// Chooses the devices of `machine` and its firmware where that is open, and adds a doubt for each guess. Safe to
/// repeat.
pub fn decide(machine: &mut Machine, drivers: Drivers) {
    if machine.firmware.is_none() {
        machine.firmware = Some(Firmware::Bios);
        machine.doubt(FIRMWARE_IS_A_GUESS);
    }
    let mut doubts = Vec::new();
    for disk in &mut machine.disks {
        disk.bus = disk_bus(disk, drivers, &mut doubts);
    }
    for card in &mut machine.cards {
        card.device = card_model(card, drivers, &mut doubts);
    }
    if machine.is_legacy() {
        doubts.push(
            "the guest's system is older than SATA: if it does not start, use an IDE disk and the machine type pc"
                .to_owned(),
        );
    }
    if machine.firmware == Some(Firmware::Efi) {
        doubts.push(NO_EFI_VARIABLES.to_owned());
    }
    if machine.tpm {
        doubts.push("what its TPM holds is in no export: BitLocker asks for its recovery key".to_owned());
    }
    for doubt in doubts {
        machine.doubt(doubt);
    }
}

/// The doubt about memory and processors that the source does not tell, and that files of a platform must have.
#[must_use]
pub fn size_is_a_guess(machine: &Machine) -> Option<String> {
    let has_processors = machine.sockets.is_some() || machine.cores_per_socket.is_some();
    match (machine.memory_mib.is_some(), has_processors) {
        (true, true) => None,
        (true, false) => Some(format!("the source tells no processors: {DEFAULT_CORES} is a guess")),
        (false, true) => Some(format!("the source tells no memory: {DEFAULT_MEMORY_MIB} MiB is a guess")),
        (false, false) => Some(format!(
            "the source tells no memory and no processors: {DEFAULT_MEMORY_MIB} MiB and {DEFAULT_CORES} are guesses"
        )),
    }
}

/// The doubts of a machine for which somebody has chosen the devices: what was said of these is settled, and so is what
/// was said of EFI variables where the file is there that firmware without them starts.
#[must_use]
pub fn doubts_beside_devices(machine: &Machine, has_fallback_loader: bool) -> Vec<String> {
    let mut devices =
        Machine { guest_os: None, tpm: false, firmware: Some(Firmware::Bios), doubts: Vec::new(), ..machine.clone() };
    for fix_may_help in [false, true] {
        decide(&mut devices, Drivers { fix_may_help, ..Drivers::default() });
        let as_it_is = Some(false);
        decide(
            &mut devices,
            Drivers { virtio_disk: as_it_is, virtio_net: as_it_is, fix_may_help, ..Drivers::default() },
        );
    }
    let is_open = |doubt: &&String| {
        let is_settled = has_fallback_loader && doubt.as_str() == NO_EFI_VARIABLES;
        !is_settled && !devices.doubts.contains(doubt)
    };
    machine.doubts.iter().filter(is_open).cloned().collect()
}

fn disk_bus(disk: &MachineDisk, drivers: Drivers, doubts: &mut Vec<String>) -> DiskBus {
    match (disk.controller, drivers) {
        (Some(Controller::Virtio), _) | (_, Drivers { virtio_disk: Some(true), .. }) => DiskBus::Virtio,
        (Some(Controller::VirtioScsi), _) | (_, Drivers { virtio_scsi: Some(true), .. }) => DiskBus::VirtioScsi,
        (_, Drivers { virtio_disk: Some(false), .. }) => {
            let help = if drivers.fix_may_help { " (reasons below); --fix-guest may help" } else { "" };
            doubts.push(format!("the disks are on sata: the guest does not start from virtio as it is{help}"));
            DiskBus::Sata
        }
        (controller, _) => {
            doubts.push(match controller {
                Some(Controller::Scsi | Controller::Nvme) => "the disks are on sata, which the guest has not seen \
                    before: whether it has a virtio driver is not known"
                    .to_owned(),
                _ => "the disks are on sata: whether the guest has a virtio driver, which is faster, is not known"
                    .to_owned(),
            });
            DiskBus::Sata
        }
    }
}

fn card_model(card: &Card, drivers: Drivers, doubts: &mut Vec<String>) -> CardModel {
    let model = card.model.as_deref().unwrap_or_default().to_ascii_lowercase();
    // oVirt numbers its models: VmInterfaceType has rtl8139_pv 0, rtl8139 1, e1000 2, pv (virtio) 3.
    let is_virtio = model.contains("virtio") || model == "3" || model == "pv";
    if is_virtio || drivers.virtio_net == Some(true) {
        return CardModel::Virtio;
    }
    if model.starts_with("e1000e") || model == "82574l" {
        return CardModel::E1000e;
    }
    if model.contains("e1000") || model.starts_with("8254") || model == "2" {
        return CardModel::E1000;
    }
    if model.contains("pcnet") || model.starts_with("am79c97") {
        return CardModel::Pcnet;
    }
    if model.contains("rtl8139") || model == "1" || model == "0" {
        return CardModel::Rtl8139;
    }
    let why = if drivers.virtio_net == Some(false) { "has no virtio driver" } else { "may have no virtio driver" };
    doubts.push(format!("network cards are e1000e, because the guest {why}: the interface's name may change"));
    CardModel::E1000e
}
