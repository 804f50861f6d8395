// SPDX-License-Identifier: Apache-2.0
//! Arrays, encrypted volumes, images of CDs and unified kernel images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::look;
use super::makers::{KERNEL, MIB, Maker, has, initramfs};
use crate::conversion::guest::{Answer, Driver, Family, FixKind, Guest, Naming};

/// What a superblock of version 1.2 says.
pub(super) struct Md {
    level: i32,
    disks: u32,
    role: u16,
    events: u64,
    features: u32,
}

pub(super) const MIRROR: Md = Md { level: 1, disks: 2, role: 0, events: 7, features: 0 };
/// Where the data of an array begins in a member.
const DATA: u64 = MIB;

/// Writes the superblock of a member whose data has `len` bytes.
pub(super) fn superblock(md: &Md, len: u64) -> Vec<u8> {
    let mut block = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xA92B_4EFC_u32.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(8, &md.features.to_le_bytes());
    put(16, &[0xAB; 16]);
    put(32, b"host:root");
    put(72, &md.level.to_le_bytes());
    put(80, &(len / 512).to_le_bytes());
    put(92, &md.disks.to_le_bytes());
    put(128, &(DATA / 512).to_le_bytes());
    put(136, &(len / 512).to_le_bytes());
    put(144, &8_u64.to_le_bytes());
    put(160, &0_u32.to_le_bytes());
    put(200, &md.events.to_le_bytes());
    put(220, &1_u32.to_le_bytes());
    put(256, &md.role.to_le_bytes());
    let words = block[..256].as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_le_bytes(*word)));
    let sum: u64 = words.sum::<u64>() + u64::from(md.role);
    let sum = u32::try_from(((sum & 0xFFFF_FFFF) + (sum >> 32)) & 0xFFFF_FFFF).unwrap();
    block[216..220].copy_from_slice(&sum.to_le_bytes());
    block
}

/// A disk that is a member, with the bytes of `content` as the array's.
fn member(maker: &Maker, name: &str, md: &Md, content: &[u8]) -> PathBuf {
    let len = content.len() as u64;
    let disk = maker.empty(name, DATA + len);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&superblock(md, len), 4096).unwrap();
    file.write_all_at(content, DATA).unwrap();
    disk
}

fn doubts(guest: &Guest) -> String {
    guest.doubts.iter().map(|doubt| format!("{}: {}", doubt.what, doubt.why)).collect::<Vec<_>>().join("\n")
}

/// A member of a mirror of the guest that `maker` made.
pub(super) fn mirror(maker: &Maker, made: &Maker) -> PathBuf {
    let content = std::fs::read(maker.ext4("of-mirror", 24 * MIB, &maker.files())).unwrap();
    member(made, "mirror", &MIRROR, &content)
}

#[test]
fn a_mirror_is_read_through_the_member_that_was_written_last() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk", "virtio_net"]);
    let whole = std::fs::read(maker.ext4("root", 64 * MIB, &maker.files())).unwrap();
    let stale = vec![0; whole.len()];
    let disks = [
        member(&maker, "stale", &Md { events: 6, ..MIRROR }, &stale),
        member(&maker, "newest", &MIRROR, &whole),
        member(&maker, "spare", &Md { events: 9, role: 0xFFFF, ..MIRROR }, &stale),
        member(&maker, "filling", &Md { events: 9, features: 2, ..MIRROR }, &stale),
    ];
    let guest = look(&[&disks[0], &disks[1], &disks[2], &disks[3]]);
    assert_eq!((guest.family, guest.root.as_deref()), (Family::Linux, Some("md/root")), "{}", doubts(&guest));
    assert_eq!(guest.virtio.block, Answer::Yes);
    let of = guest.volumes.iter().filter(|volume| volume.content == "mdraid");
    assert!(of.clone().all(|volume| volume.detail.as_deref() == Some("RAID 1 of 2 disks, md 1.2")));
    assert_eq!(of.count(), 4);
    let alone = look(&[&disks[1]]);
    assert!(doubts(&alone).contains("md/root: is a mirror of 2 disks, of which 1 are here"), "{}", doubts(&alone));
    assert_eq!(alone.root.as_deref(), Some("md/root"));
    let none = look(&[&disks[2]]);
    assert!(doubts(&none).contains("none of its members that are here is whole"), "{}", doubts(&none));
}

#[test]
fn an_array_that_is_not_read_is_named_with_its_level() {
    let maker = Maker::new();
    let content = vec![7; 65_536];
    for (level, word) in [(0, "RAID 0"), (5, "RAID 5"), (6, "RAID 6"), (10, "RAID 10"), (-1, "linear array")] {
        let disk = member(&maker, &format!("of{level}"), &Md { level, disks: 3, ..MIRROR }, &content);
        let guest = look(&[&disk]);
        let detail = format!("{word} of 3 disks, md 1.2");
        assert_eq!((guest.volumes.len(), guest.volumes[0].detail.as_deref()), (1, Some(detail.as_str())));
        assert!(doubts(&guest).contains(&format!("is a member of an array ({detail})")), "{}", doubts(&guest));
        assert!(guest.virtio.reasons[0].contains("cannot be read"));
    }
    // What was left behind by an older array, with a wrong checksum, is none.
    let disk = member(&maker, "old", &MIRROR, &content);
    File::options().write(true).open(&disk).unwrap().write_all_at(&[9], 4096 + 100).unwrap();
    assert_eq!(look(&[&disk]).volumes[0].detail, None);
}

#[test]
fn luks_is_named_with_its_version_and_what_to_do() {
    let maker = Maker::new();
    for version in [1, 2] {
        let disk = maker.empty(&format!("luks{version}"), MIB);
        let file = File::options().write(true).open(&disk).unwrap();
        file.write_all_at(&[b'L', b'U', b'K', b'S', 0xBA, 0xBE, 0, version], 0).unwrap();
        file.write_all_at(b"secret", 24).unwrap();
        file.write_all_at(b"0fb5ee87-5d5b-4ed1-a0a1-f7b1c9e1c7a0", 168).unwrap();
        let guest = look(&[&disk]);
        let volume = &guest.volumes[0];
        assert_eq!(volume.detail, Some(format!("LUKS {version}")));
        assert_eq!(volume.uuid.as_deref(), Some("0fb5ee87-5d5b-4ed1-a0a1-f7b1c9e1c7a0"));
        assert_eq!(volume.label.as_deref(), (version == 2).then_some("secret"));
        assert!(doubts(&guest).contains(&format!("disk 0: is encrypted (LUKS {version})")), "{}", doubts(&guest));
        assert!(doubts(&guest).contains("virtio's drivers in its initramfs"));
    }
}

/// An image of a CD with a boot catalogue of these platforms.
fn cd(platforms: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 40 * 2048];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        image[sector * 2048 + at..sector * 2048 + at + bytes.len()].copy_from_slice(bytes);
    };
    for (sector, kind) in [(16, 1), (17, 0), (18, 255)] {
        put(sector, 0, &[kind, b'C', b'D', b'0', b'0', b'1', 1]);
    }
    put(16, 40, format!("{:<32}", "Debian 12 n").as_bytes());
    put(17, 7, b"EL TORITO SPECIFICATION");
    put(17, 71, &30_u32.to_le_bytes());
    let Some((first, others)) = platforms.split_first() else { return image };
    put(30, 0, &[1, *first]);
    put(30, 30, &[0x55, 0xAA, 0x88]);
    for (index, platform) in others.iter().enumerate() {
        put(30, 64 + index * 64, &[0x91, *platform, 1]);
        put(30, 96 + index * 64, &[0x88]);
    }
    image
}

/// A disk that is the image of a CD.
pub(super) fn cd_on(maker: &Maker) -> PathBuf {
    let disk = maker.empty("cd-for-both", 4 * MIB);
    File::options().write(true).open(&disk).unwrap().write_all_at(&cd(&[0, 0xEF]), 0).unwrap();
    disk
}

#[test]
fn the_image_of_a_cd_is_no_disk() {
    let maker = Maker::new();
    for (platforms, detail) in [
        (&[0, 0xEF][..], "boots by BIOS and EFI"),
        (&[0], "boots by BIOS"),
        (&[0xEF], "boots by EFI"),
        (&[], "does not boot"),
    ] {
        let disk = maker.empty("cd", 4 * MIB);
        let file = File::options().write(true).open(&disk).unwrap();
        file.write_all_at(&cd(platforms), 0).unwrap();
        let guest = look(&[&disk]);
        let volume = &guest.volumes[0];
        assert_eq!((volume.content.as_str(), volume.detail.as_deref()), ("iso9660", Some(detail)));
        assert_eq!(volume.label.as_deref(), Some("Debian 12 n"));
        let told = format!("disk 0: is the image of a CD (\"Debian 12 n\", {detail}) and not a disk");
        assert!(doubts(&guest).contains(&told), "{}", doubts(&guest));
        assert!(guest.virtio.reasons[0].contains("disk 0 is the image of a CD"), "{:?}", guest.virtio.reasons);
        // Made for sticks, too: with a partition table.
        let entry = [0x80, 0, 1, 0, 0x17, 0, 0, 0, 64, 0, 0, 0, 0, 16, 0, 0];
        file.write_all_at(&entry, 446).unwrap();
        file.write_all_at(&[0x55, 0xAA], 510).unwrap();
        assert!(doubts(&look(&[&disk])).contains(&told));
    }
}

/// An EFI program with these sections.
fn program(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let head = u8::try_from(sections.len()).unwrap();
    image[..2].copy_from_slice(b"MZ");
    image[0x3C] = 0x80;
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x86] = head;
    image[0x94] = 240;
    for (index, (name, content)) in sections.iter().enumerate() {
        let (entry, at) = (0x98 + 240 + index * 40, image.len());
        image[entry..entry + name.len()].copy_from_slice(name.as_bytes());
        let numbers = [content.len(), 0x1000, content.len().next_multiple_of(512), at];
        for (number, value) in numbers.into_iter().enumerate() {
            let place = entry + 8 + number * 4;
            image[place..place + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
        }
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(512), 0);
    }
    image
}

/// A kernel as far as its version.
fn kernel(version: &str) -> Vec<u8> {
    let mut kernel = vec![0; 2048];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20E..0x210].copy_from_slice(&0x400_u16.to_le_bytes());
    let text = format!("{version} (me@here) #1 SMP");
    kernel[0x600..0x600 + text.len()].copy_from_slice(text.as_bytes());
    kernel
}

const UNIFIED_AT: u64 = 41 * MIB;
const GPT: &str = "label: gpt\nstart=2048,size=81920,type=uefi\nstart=83968,type=linux\n";

/// A Debian that a unified kernel image starts.
pub(super) fn unified_on(maker: &Maker) -> Option<PathBuf> {
    let sections: [(&str, &[u8]); 4] = [
        (".linux", &kernel(KERNEL)),
        (".initrd", &initramfs(&["virtio_blk"])),
        (".cmdline", b"root=/dev/sda2"),
        (".uname", KERNEL.as_bytes()),
    ];
    let disk = disk_started_by(&program(&sections))?;
    let place = maker.path("unified");
    std::fs::copy(disk.1, &place).unwrap();
    Some(place)
}

/// A Debian without a kernel in /boot, started by `image` on its EFI system partition.
fn started_by(image: &[u8]) -> Option<Guest> {
    disk_started_by(image).map(|(_maker, disk)| look(&[&disk]))
}

/// The disk of that, and what keeps it.
fn disk_started_by(image: &[u8]) -> Option<(Maker, PathBuf)> {
    if !["mkfs.ext4", "sfdisk", "mkfs.vfat", "mcopy"].map(has).iter().all(|has| *has) {
        return None;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk", "virtio_net"]);
    for entry in std::fs::read_dir(maker.files().join("boot")).unwrap().flatten() {
        if entry.path().is_file() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let root = maker.ext4("root", 64 * MIB, &maker.files());
    let loaders = Maker::new();
    loaders.file("EFI/BOOT/BOOTX64.EFI", "loader");
    loaders.file("EFI/Linux/debian.efi", image);
    loaders.file("EFI/Linux/debian-fallback.efi", "spare");
    let esp = loaders.fat("esp", 40 * MIB, 32, &loaders.files());
    let disk = maker.disk("disk", 112 * MIB, GPT, &[(MIB, &esp), (UNIFIED_AT, &root)]);
    Some((maker, disk))
}

#[test]
fn a_unified_kernel_image_is_a_kernel_with_its_initramfs_and_its_command_line() {
    let line = b"root=/dev/sda2 ro\0";
    for (modules, block) in [(&["virtio_blk", "sd_mod"][..], Answer::Yes), (&["sd_mod"], Answer::No)] {
        let archive = initramfs(modules);
        for version in [true, false] {
            let kernel = kernel(KERNEL);
            let mut sections: Vec<(&str, &[u8])> =
                vec![(".text", b"stub"), (".linux", &kernel), (".initrd", &archive), (".cmdline", line)];
            if version {
                sections.push((".uname", KERNEL.as_bytes()));
            }
            let Some(guest) = started_by(&program(&sections)) else { return };
            let path = "/boot/efi/EFI/Linux/debian.efi";
            assert_eq!(guest.kernels.len(), 1, "{}", doubts(&guest));
            let found = &guest.kernels[0];
            assert_eq!((found.version.as_str(), found.image.as_str()), (KERNEL, path));
            assert_eq!((found.initramfs.as_deref(), found.compression.as_deref()), (Some(path), Some("zstd")));
            let has = found.drivers["virtio_blk"] == Driver::Initramfs;
            assert_eq!(has, block == Answer::Yes);
            let boot = guest.boot.iter().find(|boot| boot.file == path).unwrap();
            assert_eq!((boot.root.as_str(), boot.naming), ("/dev/sda2", Naming::Name));
            let fixes: Vec<_> = guest.fixes.iter().filter(|fix| fix.what == path).map(|fix| fix.kind).collect();
            assert_eq!(fixes.contains(&FixKind::InitramfsVirtio), !has);
            assert!(fixes.contains(&FixKind::DeviceNames));
            assert_eq!(guest.virtio.scsi, Answer::No);
        }
    }
}

#[test]
fn a_file_that_is_no_unified_kernel_image_is_a_doubt() {
    let whole = program(&[(".linux", &kernel(KERNEL)), (".initrd", &initramfs(&["sd_mod"]))]);
    for (image, why) in [
        (b"#!/bin/sh".to_vec(), "is no unified kernel image"),
        (program(&[(".text", b"shell")]), "is no unified kernel image"),
        (whole[..3000].to_vec(), "ends within its sections"),
        (whole[..0x90].to_vec(), "a structure ends too early"),
    ] {
        let Some(guest) = started_by(&image) else { return };
        assert!(guest.kernels.is_empty());
        assert!(doubts(&guest).contains(&format!("debian.efi: {why}")), "{}", doubts(&guest));
    }
}
