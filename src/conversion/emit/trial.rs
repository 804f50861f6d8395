// SPDX-License-Identifier: Apache-2.0
//! The machine that a boot check tries: with the devices that the files for platforms give it.

use super::domain::bus_word;
use super::guest::Guest;
use crate::conversion::machine::Firmware;
use crate::conversion::options::DomainOptions;

/// A machine to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    pub firmware: Firmware,
    /// `q35`, or what the options name.
    pub machine: String,
    pub memory_mib: u64,
    pub uuid: Option<String>,
    pub is_windows: bool,
    /// In the order in which the guest gets them.
    pub disks: Vec<TrialDisk>,
    pub cards: Vec<TrialCard>,
}

/// A disk of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialDisk {
    /// Base name of its file.
    pub file: String,
    /// `virtio`, `scsi`, `sata`, or what the options name.
    pub bus: String,
    /// Place in the boot order, from 1.
    pub boot_order: Option<u32>,
}

/// A network card of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialCard {
    pub mac: Option<String>,
    /// `virtio`, `e1000e`, or what the options name.
    pub model: String,
}

pub(super) fn trial(guest: &Guest<'_>, options: &DomainOptions) -> Trial {
    let bus = |disk: &super::guest::GuestDisk<'_>| options.disk_bus.as_deref().unwrap_or(bus_word(disk.machine.bus));
    Trial {
        firmware: guest.firmware,
        machine: options.machine.clone().unwrap_or_else(|| "q35".to_owned()),
        memory_mib: guest.memory_mib,
        uuid: guest.uuid.map(str::to_owned),
        is_windows: guest.is_windows,
        disks: guest
            .disks
            .iter()
            .map(|disk| TrialDisk {
                file: disk.report.file.clone(),
                bus: bus(disk).to_owned(),
                boot_order: disk.boot_order,
            })
            .collect(),
        cards: guest
            .cards
            .iter()
            .map(|card| TrialCard {
                mac: card.mac.clone(),
                model: options.net_model.as_deref().unwrap_or(card.device.as_str()).to_owned(),
            })
            .collect(),
    }
}
