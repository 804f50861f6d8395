// SPDX-License-Identifier: Apache-2.0
//! Which disk is first, and which firmware starts it.

use super::*;

const EFI: FirstSectors = FirstSectors { efi: true, bios: false };
const BIOS: FirstSectors = FirstSectors { efi: false, bios: true };
const BOTH: FirstSectors = FirstSectors { efi: true, bios: true };
const DATA: FirstSectors = FirstSectors { efi: false, bios: false };

fn found(firmware: Option<Firmware>, described_by: Description, disks: &[FirstSectors]) -> Machine {
    let names: Vec<String> = (0..disks.len()).map(|n| format!("d{n}")).collect();
    let all: Vec<Found> =
        names.iter().zip(disks).map(|(file, sectors)| Found { file, sectors: Some(*sectors) }).collect();
    let disk = |file: &String| MachineDisk { file: file.clone(), ..MachineDisk::default() };
    let mut machine = Machine { firmware, described_by, disks: names.iter().map(disk).collect(), ..Machine::default() };
    add_findings(&mut machine, &all);
    machine
}

#[test]
fn the_first_disk_that_starts_by_the_firmware_is_first() {
    let (bios, efi) = (Some(Firmware::Bios), Some(Firmware::Efi));
    for (said, disks, firmware, first, doubts) in [
        (None, &[EFI][..], efi, "d0", 0),
        (None, &[BIOS, DATA], bios, "d0", 0),
        (None, &[BOTH], bios, "d0", 1),
        (None, &[DATA, EFI], efi, "d1", 1),
        (None, &[DATA], None, "d0", 1),
        (bios, &[BIOS], bios, "d0", 0),
        (bios, &[EFI], bios, "d0", 1),
        (efi, &[BIOS], efi, "d0", 1),
        (efi, &[BIOS, EFI], efi, "d1", 1),
        (bios, &[DATA, DATA, BIOS], bios, "d2", 1),
    ] {
        let machine = found(said, Description::Ovf, disks);
        let told = (machine.firmware, machine.disks[0].file.as_str(), machine.doubts.len());
        assert_eq!(told, (firmware, first, doubts), "{said:?} {disks:?} {:?}", machine.doubts);
        assert_eq!(machine.disks[0].boot_order, Some(1));
        assert!(machine.disks[1..].iter().all(|disk| disk.boot_order.is_none()));
    }
    assert_eq!(
        found(None, Description::Disks, &[EFI]).doubts,
        ["the firmware is taken for EFI, as the partition table shows"]
    );
    assert!(found(None, Description::Disks, &[]).disks.is_empty());
}

#[test]
fn a_boot_order_of_the_source_stays() {
    let mut machine = Machine {
        disks: ["a", "b"].map(|file| MachineDisk { file: file.to_owned(), ..MachineDisk::default() }).into(),
        firmware: Some(Firmware::Bios),
        ..Machine::default()
    };
    machine.disks[0].boot_order = Some(1);
    let all = [Found { file: "a", sectors: Some(DATA) }, Found { file: "b", sectors: Some(BIOS) }];
    add_findings(&mut machine, &all);
    assert_eq!((machine.disks[0].file.as_str(), machine.disks[1].boot_order), ("a", None));
}
