// SPDX-License-Identifier: Apache-2.0
//! Partition tables as installers write them, and what is none.

use proptest::prelude::*;

use super::*;
use crate::disk::resolve::{qemu_img, region_of, region_over};

const GRUB: &[u8] = b"\xeb\x63\x90GRUB ";

/// Type and attributes of a partition.
type Entry = ([u8; 16], u64);

/// LBA 0–33 with this code, entries of the MBR (active, type) and types and attributes of the GPT.
fn sectors(code: &[u8], mbr: &[(bool, u8)], gpt: Option<(usize, &[Entry])>) -> Vec<u8> {
    let mut sectors = vec![0; LENGTH];
    sectors[..code.len()].copy_from_slice(code);
    sectors[SIGNATURE].copy_from_slice(&[0x55, 0xaa]);
    for (n, (active, kind)) in mbr.iter().enumerate() {
        let entry = TABLE + 16 * n;
        sectors[entry] = if *active { 0x80 } else { 0 };
        sectors[entry + 4] = *kind;
    }
    if let Some((sector, entries)) = gpt {
        sectors[sector..sector + 8].copy_from_slice(b"EFI PART");
        sectors[sector + 72] = 2;
        sectors[sector + 80] = 128;
        sectors[sector + 84] = 128;
        for (n, (kind, attributes)) in entries.iter().enumerate() {
            let at = 2 * sector + 128 * n;
            sectors[at..at + 16].copy_from_slice(kind);
            sectors[at + 48..at + 56].copy_from_slice(&attributes.to_le_bytes());
        }
    }
    sectors
}

#[test]
fn the_firmware_is_the_one_that_finds_something_to_start() {
    let linux = [7; 16];
    let esp: &[Entry] = &[(EFI_SYSTEM, 0), (linux, 0)];
    let both: &[Entry] = &[(BIOS_BOOT, 0), (EFI_SYSTEM, 0)];
    let syslinux: &[Entry] = &[(linux, LEGACY_BOOTABLE)];
    let data: &[Entry] = &[(linux, 0)];
    let protective = &[(false, 0xee)][..];
    let none: &[u8] = &[];
    for (what, code, mbr, gpt, efi, bios) in [
        ("an installed EFI system", none, protective, Some((512, esp)), true, false),
        ("the same with sectors of 4 KiB", none, protective, Some((4096, esp)), true, false),
        ("Windows by EFI, with Microsoft's code", &MICROSOFT, protective, Some((512, esp)), true, false),
        ("a cloud image for both", GRUB, protective, Some((512, both)), true, true),
        ("GRUB on GPT", GRUB, protective, Some((512, both[..1].as_ref())), false, true),
        ("syslinux on GPT", GRUB, protective, Some((512, syslinux)), false, true),
        ("a data disk with GPT", none, protective, Some((512, data)), false, false),
        ("a data disk of Windows with GPT", &MICROSOFT, protective, Some((512, data)), false, false),
        ("an old EFI bootloader's code on GPT", GRUB, protective, Some((512, esp)), true, false),
        ("Windows by BIOS", &MICROSOFT, &[(true, 7)][..], None, false, true),
        ("a data disk of Windows", &MICROSOFT, &[(false, 7)][..], None, false, false),
        ("GRUB on an MBR", GRUB, &[(false, 0x83)][..], None, false, true),
        ("a data disk of Linux", none, &[(false, 0x83)][..], None, false, false),
        ("EFI on an MBR", none, &[(false, 0xef)][..], None, true, false),
        ("a file system without a table", GRUB, &[][..], None, false, false),
    ] {
        assert_eq!(read_sectors(&sectors(code, mbr, gpt)), FirstSectors { efi, bios }, "{what}");
    }
    assert_eq!(read_sectors(&vec![0; LENGTH]), FirstSectors::default());
    assert_eq!(FirstSectors { efi: true, bios: true }.firmware(), Some(Firmware::Bios));
    assert_eq!(FirstSectors { efi: true, bios: false }.firmware(), Some(Firmware::Efi));
    assert_eq!(FirstSectors::default().firmware(), None);
}

#[test]
fn the_sectors_are_found_in_every_kind_of_image() {
    let directory = tempfile::tempdir().unwrap();
    let mut disk = sectors(&[], &[(false, 0xee)], Some((512, &[(EFI_SYSTEM, 0)])));
    disk.resize(4 << 20, 7);
    std::fs::write(directory.path().join("d.raw"), &disk).unwrap();
    let expected = FirstSectors { efi: true, bios: false };
    assert_eq!(look(&Image::raw(&region_over(&disk)).unwrap()).unwrap(), expected);
    for (arguments, file) in [
        (&["-O", "qcow2", "-c"][..], "c.qcow2"),
        (&["-O", "qcow2"], "p.qcow2"),
        (&["-O", "vmdk", "-o", "subformat=streamOptimized"], "s.vmdk"),
    ] {
        qemu_img(directory.path(), &[&["convert", "-f", "raw"], arguments, &["d.raw", file]].concat());
        let region = region_of(&directory.path().join(file));
        let image =
            if file.ends_with("vmdk") { Image::vmdk(&region, u64::MAX) } else { Image::qcow2(&region, u64::MAX) };
        assert_eq!(look(&image.unwrap()).unwrap(), expected, "{file}");
    }
    // A disk that is shorter than what is looked at.
    assert_eq!(look(&Image::raw(&region_over(&disk[..1024])).unwrap()).unwrap(), FirstSectors::default());
}

proptest! {
    #[test]
    fn no_sectors_make_it_panic(seed: u64, sector in prop::sample::select(vec![512usize, 4096]), field in 72usize..90, byte: u8) {
        let mut bytes = sectors(&seed.to_le_bytes(), &[(seed % 2 == 0, byte)], Some((sector, &[(EFI_SYSTEM, seed)])));
        bytes[sector + field] = byte;
        let _ = read_sectors(&bytes);
    }
}
