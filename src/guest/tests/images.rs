// SPDX-License-Identifier: Apache-2.0
//! Single structures: tables, file systems by name, and every way that an initramfs is packed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::makers::{MIB, Maker, archive, cpio, has, run};
use super::{PATIENT, look};
use crate::conversion::guest::{Answer, Family, PartitionTable};
use crate::guest::budget::{Budget, Limits};
use crate::guest::error::{Error, Result};
use crate::guest::linux::initramfs::{Initramfs, read};

const MODULES: [&str; 4] = ["virtio_blk", "virtio-scsi", "sd_mod", "e1000"];

fn walk(bytes: &[u8]) -> Result<Initramfs> {
    walk_within(bytes, &PATIENT)
}

fn walk_within(bytes: &[u8], limits: &Limits) -> Result<Initramfs> {
    let wanted = BTreeSet::from(["virtio_blk", "virtio_scsi", "nvme", "sd_mod"]);
    read(bytes, &wanted, &Rc::new(Budget::new(limits)))
}

fn found(bytes: &[u8]) -> (Option<&'static str>, Vec<String>) {
    let found = walk(bytes).unwrap();
    (found.compression, found.modules.into_iter().collect())
}

/// The main archive, packed in each way that kernels take.
pub(super) fn packed() -> Vec<(&'static str, Vec<u8>)> {
    let plain = archive(&MODULES);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(1));
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let xz = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let lzma = {
        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let lz4 = {
        let block = lz4_flex::block::compress(&plain);
        let len = u32::try_from(block.len()).unwrap().to_le_bytes();
        [&[0x02, 0x21, 0x4C, 0x18][..], &len, &block].concat()
    };
    vec![
        ("gzip", gzip),
        ("bzip2", bzip2),
        ("xz", xz),
        ("lzma", lzma),
        ("lz4", lz4),
        ("zstd", zstd::encode_all(&plain[..], 3).unwrap()),
    ]
}

#[test]
fn an_initramfs_is_read_however_it_is_packed() {
    let expected = ["sd_mod", "virtio_blk", "virtio_scsi"].map(str::to_owned).to_vec();
    let early = cpio(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 999])]);
    assert_eq!(found(&archive(&MODULES)), (None, expected.clone()));
    for (packing, main) in packed() {
        assert_eq!(found(&main), (Some(packing), expected.clone()));
        // Microcode before it, padding behind it, and another archive.
        let whole = [&early[..], &[0; 40], &main, &[0; 600]].concat();
        assert_eq!(found(&whole), (Some(packing), expected.clone()), "{packing}");
        let cut = walk(&main[..main.len() * 2 / 3]);
        assert!(matches!(cut, Err(Error::Corrupt(_))), "{packing}: {cut:?}");
    }
    let (one, other) = (archive(&["sd_mod"]), archive(&["virtio_blk"]));
    assert_eq!(found(&[one, other].concat()).1, ["sd_mod", "virtio_blk"]);
}

#[test]
fn an_initramfs_that_is_none_is_a_reason() {
    for (bytes, why) in [
        (&b"\x89LZO\0and more"[..], "is packed with lzo, which is not read"),
        (b"MZ\x90 an EFI program", "is packed in an unknown way"),
        (b"", "ends before its archive does"),
        (&[0; 5000], "ends before its archive does"),
        (b"070701not a number", "cannot be unpacked: failed to fill whole buffer"),
    ] {
        assert_eq!(walk(bytes).unwrap_err().to_string(), why);
    }
}

#[test]
fn a_bomb_in_an_initramfs_costs_no_more_than_the_budget() {
    let zeros = vec![0; 64 << 20];
    let bomb = zstd::encode_all(&[archive(&["e1000"]), zeros].concat()[..], 3).unwrap();
    let limits = Limits { decoded_bytes: 1 << 20, ..PATIENT };
    assert!(matches!(walk_within(&bomb, &limits), Err(Error::Spent(_))));
    let mut huge = cpio(&[("a", b"")]);
    huge[54..62].copy_from_slice(b"FFFFFFFF");
    assert!(walk(&huge).is_err());
}

#[test]
fn a_table_is_read_from_its_copy_and_over_logical_partitions() {
    if !has("sfdisk") {
        return;
    }
    let maker = Maker::new();
    let script = "label: gpt\nstart=2048,size=2048,type=linux\nstart=4096,size=4096,type=swap\n";
    let disk = maker.disk("gpt", 16 * MIB, script, &[]);
    let whole = look(&[&disk]);
    assert_eq!((whole.disks[0].table, whole.disks[0].partitions.len()), (PartitionTable::Gpt, 2));
    File::options().write(true).open(&disk).unwrap().write_all_at(&[0xFF; 512], 512).unwrap();
    let copied = look(&[&disk]);
    assert_eq!(copied.disks[0].partitions, whole.disks[0].partitions);
    assert!(copied.doubts[0].why.contains("its copy"), "{:?}", copied.doubts);
    File::options().write(true).open(&disk).unwrap().write_all_at(&[0xFF; 512], 16 * MIB - 512).unwrap();
    assert!(look(&[&disk]).doubts[0].why.contains("neither"));

    let script = "label: dos\nstart=2048,size=2048,type=83\nstart=4096,size=20000,type=5\n\
                  start=6144,size=2048,type=83\nstart=10240,size=2048,type=8e\n";
    let disk = maker.disk("mbr", 16 * MIB, script, &[]);
    let guest = look(&[&disk]);
    let partitions: Vec<_> =
        guest.disks[0].partitions.iter().map(|p| (p.number, p.start_bytes, p.kind.as_str())).collect();
    let sector = |number: u64| number * 512;
    assert_eq!(
        partitions,
        [(1, sector(2048), "83"), (2, sector(4096), "05"), (5, sector(6144), "83"), (6, sector(10_240), "8e")]
    );
    // A chain that leads back to itself ends.
    let mut table = vec![0; 512];
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    file.read_exact_at(&mut table, sector(4096)).unwrap();
    table[462 + 8..462 + 12].fill(0);
    table[462 + 8] = 1;
    let second = sector(4097);
    file.write_all_at(&table, sector(4096)).unwrap();
    file.write_all_at(&table, second).unwrap();
    assert!(look(&[&disk]).doubts.iter().any(|doubt| doubt.why.contains("loop")));
}

#[test]
fn what_is_not_read_is_named() {
    let maker = Maker::new();
    for (at, magic, content) in [
        (0, &b"LUKS\xba\xbe\0\x02"[..], "luks"),
        (3, b"-FVE-FS-", "bitlocker"),
        (32_769, b"CD001", "iso9660"),
        (4086, b"SWAPSPACE2", "swap"),
        (4096, b"\xfc\x4e\x2b\xa9", "mdraid"),
        (3, b"EXFAT   ", "exfat"),
        (1024, b"H+\0\x04", "hfsplus"),
        (0, b"", "empty"),
        (9, b"something", "unknown"),
    ] {
        let volume = maker.empty(content, 4 * MIB);
        File::options().write(true).open(&volume).unwrap().write_all_at(magic, at).unwrap();
        let guest = look(&[&volume]);
        assert_eq!(guest.volumes[0].content, content);
        assert_eq!((guest.family, guest.virtio.block), (Family::Unknown, Answer::Unknown));
        let is_closed = ["luks", "bitlocker", "mdraid"].contains(&content);
        assert_eq!(guest.virtio.reasons[0].contains("cannot be read"), is_closed, "{:?}", guest.virtio.reasons);
    }
}

#[test]
fn links_end_and_lead_nowhere_outside() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk"]);
    fs::remove_file(maker.files().join("etc/os-release")).unwrap();
    // Out of the root and back: the root is its own parent.
    maker.file("usr/lib/os-release", "ID=inside\n");
    maker.link("etc/os-release", "../../../../../../usr/lib/os-release");
    maker.link("etc/crypttab", "crypttab");
    let guest = look(&[&maker.ext4("root", 64 * MIB, &maker.files())]);
    assert_eq!(guest.os.unwrap().id, "inside");
    assert!(guest.doubts.iter().any(|doubt| doubt.why.contains("too many symbolic links")), "{:?}", guest.doubts);
}

#[test]
fn every_fat_is_read() {
    if !["mkfs.vfat", "mcopy", "sfdisk"].map(has).iter().all(|has| *has) {
        return;
    }
    for (bits, size) in [(12, 4), (16, 32), (32, 40)] {
        let maker = Maker::new();
        for number in 0..200 {
            maker.file(&format!("EFI/BOOT/a file with a long name {number}.efi"), [7; 5000]);
        }
        maker.file("EFI/BOOT/bootx64.efi", "loader");
        let esp = maker.fat("esp", size * MIB, bits, &maker.files());
        let script = format!("label: gpt\nstart=2048,size={},type=uefi\n", size * 2048);
        let guest = look(&[&maker.disk("disk", (size + 2) * MIB, &script, &[(MIB, &esp)])]);
        assert_eq!(guest.firmware.fallback_loader, Answer::Yes, "FAT{bits}: {:?}", guest.doubts);
        assert!(guest.firmware.loaders.len() > 100);
        let told = &guest.volumes[0];
        assert_eq!((told.uuid.as_deref(), told.label.as_deref()), (Some("ABCD-1234"), Some("EFI")));
    }
}

#[test]
fn nothing_is_written_and_time_that_is_over_is_a_doubt() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk"]);
    let volume = maker.ext4("root", 64 * MIB, &maker.files());
    run("chmod", &["400", volume.to_str().unwrap()]);
    let before = fs::read(&volume).unwrap();
    look(&[&volume]);
    assert!(before == fs::read(&volume).unwrap());
    let image = crate::disk::Image::raw(&crate::disk::resolve::region_of(&volume)).unwrap();
    for limits in [
        Limits { time: std::time::Duration::ZERO, ..PATIENT },
        Limits { read_bytes: 100_000, ..PATIENT },
        Limits { steps: 50, ..PATIENT },
    ] {
        let guest = crate::guest::inspect(&[("disk", &image)], &limits);
        assert!(guest.doubts.iter().any(|doubt| doubt.why.contains("ended early")), "{:?}", guest.doubts);
        assert_ne!(guest.virtio.block, Answer::Yes);
    }
}
