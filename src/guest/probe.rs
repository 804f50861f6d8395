// SPDX-License-Identifier: Apache-2.0
//! What a volume holds, by the signatures that file systems and others have at fixed places.

use super::disk::Volume;
use super::error::Result;
use super::fields::{array, be16, le32, le64, slice, text, until_nul, uuid};
use super::files::ext4;
use crate::conversion::guest;

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Ext,
    Xfs,
    Btrfs,
    Fat,
    Ntfs,
    Lvm,
    /// Recognised by name, not read.
    Named(&'static str),
    /// Nothing but zeros where signatures lie.
    Empty,
    Unknown,
}

/// Bytes at a volume's start that are looked at; btrfs' superblock lies in the last 4 KiB of them.
const HEAD: u64 = 68 << 10;

/// Recognises the content and describes it; the name is the caller's.
pub(super) fn probe(volume: &Volume) -> Result<(Content, guest::Volume)> {
    let len = volume.len().min(HEAD);
    let head = volume.bytes(0, usize::try_from(len).expect("68 KiB"))?;
    let has = |at: usize, what: &[u8]| slice(&head, at, what.len()).is_ok_and(|found| found == what);
    let mut found = guest::Volume { size_bytes: volume.len(), ..guest::Volume::default() };
    let content = if has(0, b"LUKS\xba\xbe") || has(0, b"SKUL\xba\xbe") {
        found.uuid = label(slice(&head, 168, 40)?);
        let version = be16(&head, 6)?;
        if version == 2 {
            found.label = label(slice(&head, 24, 48)?);
        }
        found.detail = Some(format!("LUKS {version}"));
        Content::Named("luks")
    } else if has(3, b"-FVE-FS-") {
        Content::Named("bitlocker")
    } else if (0..4).any(|sector| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2 001")) {
        Content::Lvm
    } else if has(0, b"XFSB") {
        found.uuid = Some(uuid(array(&head, 32)?));
        found.label = label(slice(&head, 108, 12)?);
        Content::Xfs
    } else if has(65_536 + 64, b"_BHRfS_M") {
        found.uuid = Some(uuid(array(&head, 65_536 + 32)?));
        found.label = label(slice(&head, 65_536 + 299, 256)?);
        Content::Btrfs
    } else if has(1080, &[0x53, 0xEF]) {
        found.uuid = Some(uuid(array(&head, 1024 + 104)?));
        found.label = label(slice(&head, 1024 + 120, 16)?);
        let superblock = slice(&head, 1024, 1024)?;
        found.dirty = ext4::superblock(superblock).ok().map(|superblock| superblock.dirty);
        found.content = ext_name(superblock)?.into();
        Content::Ext
    } else if has(3, b"NTFS    ") {
        found.uuid = Some(format!("{:016X}", le64(&head, 72)?));
        Content::Ntfs
    } else if has(3, b"EXFAT   ") {
        Content::Named("exfat")
    } else if has(3, b"ReFS\0\0\0\0") {
        Content::Named("refs")
    } else if has(510, &[0x55, 0xAA]) && (has(82, b"FAT32") || has(54, b"FAT")) {
        let at = if has(82, b"FAT32") { 67 } else { 39 };
        let serial = le32(&head, at)?;
        found.uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF));
        found.label = label(slice(&head, at + 4, 11)?).filter(|label| label != "NO NAME");
        Content::Fat
    } else if has(32_769, b"CD001") {
        found.label = label(slice(&head, 32_768 + 40, 32)?);
        Content::Named("iso9660")
    } else if has(4086, b"SWAPSPACE2") || has(4086, b"SWAP-SPACE") || has(65_526, b"SWAPSPACE2") {
        found.uuid = array(&head, 1024 + 12).ok().map(uuid);
        Content::Named("swap")
    } else if ["S1SUSPEND", "S2SUSPEND", "ULSUSPEND", "LINHIB0001"].iter().any(|sign| has(4086, sign.as_bytes())) {
        found.uuid = array(&head, 1024 + 12).ok().map(uuid);
        Content::Named("swsuspend")
    } else if has(4096, &[0xFC, 0x4E, 0x2B, 0xA9]) || has(0, &[0xFC, 0x4E, 0x2B, 0xA9]) || md_at_end(volume)? {
        Content::Named("mdraid")
    } else if let Some(name) = other(&head) {
        Content::Named(name)
    } else if head.iter().all(|byte| *byte == 0) {
        Content::Empty
    } else {
        Content::Unknown
    };
    if found.content.is_empty() {
        name(content).clone_into(&mut found.content);
    }
    Ok((content, found))
}

fn name(content: Content) -> &'static str {
    match content {
        Content::Ext => "ext4",
        Content::Xfs => "xfs",
        Content::Btrfs => "btrfs",
        Content::Fat => "vfat",
        Content::Ntfs => "ntfs",
        Content::Lvm => "lvm2",
        Content::Named(name) => name,
        Content::Empty => "empty",
        Content::Unknown => "unknown",
    }
}

/// ext2 has no journal, ext3 none of ext4's features.
fn ext_name(superblock: &[u8]) -> Result<&'static str> {
    let (compatible, incompatible, read_only) = (le32(superblock, 92)?, le32(superblock, 96)?, le32(superblock, 100)?);
    // Extents, 64 bit, flexible groups; huge files, checksums, nanoseconds.
    let is_ext4 = incompatible & 0x2C0 != 0 || read_only & 0x478 != 0;
    Ok(if is_ext4 {
        "ext4"
    } else if compatible & 4 != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

/// Versions 0.90 and 1.0 of Linux' software RAID have their superblock near the end.
fn md_at_end(volume: &Volume) -> Result<bool> {
    const MAGIC: u32 = 0xA92B_4EFC;
    let sectors = volume.len() / 512;
    let places =
        [(volume.len() & !0xFFFF).checked_sub(0x1_0000), sectors.checked_sub(16).map(|sector| (sector & !7) * 512)];
    for place in places.into_iter().flatten() {
        if le32(&volume.bytes(place, 4)?, 0)? == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// File systems that are only named.
fn other(head: &[u8]) -> Option<&'static str> {
    let has = |at: usize, what: &[u8]| slice(head, at, what.len()).is_ok_and(|found| found == what);
    [
        (1024, &b"\x10\x20\xF5\xF2"[..], "f2fs"),
        (1030, b"\x34\x34", "nilfs2"),
        (32_769, b"BEA01", "udf"),
        (0, b"hsqs", "squashfs"),
        (65_536 + 52, b"ReIsEr2Fs", "reiserfs"),
        (65_536 + 52, b"ReIsErFs", "reiserfs"),
        (32_768, b"JFS1", "jfs"),
        (1024, b"H+", "hfsplus"),
        (1024, b"HX", "hfsplus"),
        (32, b"NXSB", "apfs"),
        (65_536 + 1372, b"\x19\x01\x54\x19", "ufs2"),
        (8192 + 1372, b"\x19\x54\x01\x00", "ufs1"),
        (1024, b"\xE2\xE1\xF5\xE0", "erofs"),
        (4096, b"\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81", "bcachefs"),
    ]
    .into_iter()
    .find(|(at, what, _)| has(*at, what))
    .map(|(_, _, name)| name)
}

fn label(bytes: &[u8]) -> Option<String> {
    let label = text(until_nul(bytes));
    (!label.is_empty()).then_some(label)
}
