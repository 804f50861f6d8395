// SPDX-License-Identifier: Apache-2.0
//! The machines of a source, with what its disks tell of them.

use crate::conversion::guest::report::GuestReport;
use crate::conversion::machine::{Card, Description, Firmware, Machine, MachineDisk, NO_CARD, decide, size_is_a_guess};
use crate::conversion::report::DiskReport;
use crate::disk::first_sectors::{FirstSectors, look};
use crate::disk::source::Source;

/// What was found on a disk of the output.
struct Found<'a> {
    file: &'a str,
    /// `None` where the first sectors can't be read.
    sectors: Option<FirstSectors>,
}

/// The machines of `source`, whose disks became `disks`: at least one. `ask` looks into the guest on the disks of one
/// machine, by index and in the machine's order; the guest is also returned where it is the only one.
pub(super) fn machines(
    source: &Source,
    disks: &[DiskReport],
    mut ask: impl FnMut(&[usize]) -> GuestReport,
) -> (Vec<Machine>, Option<GuestReport>) {
    let found: Vec<Found> = source
        .disks
        .iter()
        .zip(disks)
        .map(|(disk, report)| Found { file: &report.file, sectors: look(&disk.image).ok() })
        .collect();
    let mut described = if source.machines.is_empty() { vec![bare(disks)] } else { source.machines.clone() };
    if let [only] = &mut described[..] {
        attach_the_rest(only, disks);
    }
    let mut guests = Vec::new();
    let finish = |mut machine: Machine| {
        by_output(&mut machine, disks);
        let index = |disk: &MachineDisk| disks.iter().position(|report| report.file == disk.file);
        let guest = ask(&machine.disks.iter().filter_map(index).collect::<Vec<_>>());
        add_findings(&mut machine, &found);
        if let Some(guess) = size_is_a_guess(&machine) {
            machine.doubt(guess);
        }
        add_guest(&mut machine, &guest);
        guests.push(guest);
        machine.bounded()
    };
    let machines: Vec<Machine> = described.into_iter().map(finish).collect();
    (machines, guests.pop().filter(|_| guests.is_empty()))
}

/// Chooses the devices by what the guest can drive, and tells what it says of itself.
fn add_guest(machine: &mut Machine, guest: &GuestReport) {
    if machine.guest_os.is_none() {
        machine.guest_os = guest.os.as_ref().map(|os| os.name.clone()).filter(|name| !name.is_empty());
    }
    decide(machine, guest.drivers());
    for sentence in guest.sentences() {
        machine.doubt(sentence);
    }
}

/// A machine of which nothing is known but its disks; every machine has a network card.
fn bare(disks: &[DiskReport]) -> Machine {
    let disk = |report: &DiskReport| MachineDisk { file: report.source_member.clone(), ..MachineDisk::default() };
    let doubts = vec![NO_CARD.to_owned()];
    Machine { disks: disks.iter().map(disk).collect(), cards: vec![Card::default()], doubts, ..Machine::default() }
}

/// Gives the only machine the disks that its description does not name: of a dropped folder, all are its own.
fn attach_the_rest(machine: &mut Machine, disks: &[DiskReport]) {
    for report in disks {
        if !machine.disks.iter().any(|disk| disk.file == report.source_member) {
            machine.disks.push(MachineDisk { file: report.source_member.clone(), ..MachineDisk::default() });
        }
    }
}

/// Names the output's files instead of the members.
fn by_output(machine: &mut Machine, disks: &[DiskReport]) {
    for disk in &mut machine.disks {
        if let Some(report) = disks.iter().find(|report| report.source_member == disk.file) {
            disk.file.clone_from(&report.file);
        }
    }
}

/// Adds the firmware and the first disk, where the source does not tell them.
fn add_findings(machine: &mut Machine, found: &[Found<'_>]) {
    let sectors = |file: &str| found.iter().find(|disk| disk.file == file).and_then(|disk| disk.sectors);
    let unread: Vec<String> =
        machine.disks.iter().filter(|d| sectors(&d.file).is_none()).map(|d| d.file.clone()).collect();
    for file in unread {
        machine.doubt(format!("the first sectors of {file} can't be read"));
    }
    let all: Vec<FirstSectors> = machine.disks.iter().map(|d| sectors(&d.file).unwrap_or_default()).collect();
    add_firmware(machine, &all);
    if machine.disks.is_empty() || machine.disks.iter().any(|disk| disk.boot_order.is_some()) {
        return;
    }
    let wanted = |s: &FirstSectors| if machine.firmware == Some(Firmware::Efi) { s.efi } else { s.bios };
    let first = all.iter().position(wanted).or_else(|| all.iter().position(|s| s.boots()));
    match first {
        Some(0) => {}
        Some(n) => {
            let disk = machine.disks.remove(n);
            let file = disk.file.clone();
            machine.disks.insert(0, disk);
            machine.doubt(format!("{file} is first, because the disks before it have nothing to start"));
        }
        None => machine.doubt("no disk has a partition table with something to start"),
    }
    machine.disks[0].boot_order = Some(1);
}

/// The firmware that starts one of the disks, as a word of the source or by its first sectors.
fn add_firmware(machine: &mut Machine, all: &[FirstSectors]) {
    let first = all.iter().find(|sectors| sectors.boots()).copied();
    let said = machine.firmware;
    let (Some(first), by) = (first, source_of(machine)) else { return };
    match said {
        None => {
            machine.firmware = first.firmware();
            if first.efi && first.bios {
                machine.doubt("its disk starts by BIOS and by EFI, and nothing tells which it was: bios is a guess");
            } else if machine.described_by == Description::Disks {
                machine.doubt(format!(
                    "the firmware is taken for {}, as the partition table shows",
                    if machine.firmware == Some(Firmware::Efi) { "EFI" } else { "BIOS" }
                ));
            }
        }
        Some(Firmware::Efi) if !all.iter().any(|sectors| sectors.efi) => {
            machine.doubt(format!("{by} says efi, but no disk has an EFI system partition"));
        }
        Some(Firmware::Bios) if !all.iter().any(|sectors| sectors.bios) => {
            machine.doubt(format!("{by} says bios, but no disk has code that a BIOS starts"));
        }
        Some(_) => {}
    }
}

const fn source_of(machine: &Machine) -> &'static str {
    match machine.described_by {
        Description::Disks => "the disk",
        Description::Ovf => "the OVF",
        Description::Vmx => "the VMX",
        Description::HyperV => "Hyper-V",
    }
}

#[cfg(test)]
mod tests;
