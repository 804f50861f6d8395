// SPDX-License-Identifier: Apache-2.0
//! Whether a raw disk ends where its own content says: its partition table, or the file system that it holds without one.
//!
//! Formats: the MBR as IBM's PC had it; UEFI specification 2.10, chapter 5 (GPT); the superblocks of ext2–4, XFS, NTFS,
//! FAT and btrfs. A few sectors are read. What is not understood says nothing.

use super::super::Region;
use super::super::fields::{array, be32, be64, le16, le32, le64};

/// Sectors that a partition table may be made for, in bytes.
const SECTOR_SIZES: [usize; 2] = [512, 4096];
/// How a GPT's header begins, in LBA 1 and in the copy at the disk's end.
const GPT: &[u8; 8] = b"EFI PART";
/// Type of the partition that protects a GPT.
const PROTECTIVE: u8 = 0xEE;
/// Place of btrfs' superblock.
const BTRFS: u64 = 0x1_0000;

/// Whether the content tells of bytes behind the end of the file, or of a table at its end that is not there.
pub(super) fn is_short(region: &Region) -> bool {
    let mut head = [0; 2 * SECTOR_SIZES[1]];
    let read = head.len().min(usize::try_from(region.len()).unwrap_or(usize::MAX));
    if region.read_exact_at(&mut head[..read], 0).is_err() {
        return false;
    }
    if let Some(copy) = gpt_copy(&head) {
        return copy.checked_add(512).is_none_or(|end| end > region.len()) || !is_gpt(region, copy);
    }
    let head = &head;
    partitions_end(head).or_else(|| file_system_end(region, head)).is_some_and(|end| end > region.len())
}

/// Where the copy of the GPT's header must lie; `None` without a GPT whose checksum is right.
fn gpt_copy(head: &[u8]) -> Option<u64> {
    let sector = SECTOR_SIZES.into_iter().find(|&at| head[at..].starts_with(GPT))?;
    let header = &head[sector..];
    let len = usize::try_from(le32(header, 12)).ok().filter(|len| (92..=512).contains(len))?;
    let mut counted = header[..len].to_vec();
    counted[16..20].fill(0);
    if crc32fast::hash(&counted) != le32(header, 16) {
        return None;
    }
    le64(header, 32).checked_mul(sector as u64).filter(|copy| *copy != sector as u64)
}

fn is_gpt(region: &Region, at: u64) -> bool {
    let mut found = [0; GPT.len()];
    // A file that can't be read is its reader's to tell of.
    region.read_exact_at(&mut found, at).is_err() || &found == GPT
}

/// Where the last partition of an MBR ends; `None` without one. Its sectors have 512 bytes: a disk with larger ones has a GPT.
fn partitions_end(head: &[u8]) -> Option<u64> {
    let is_boot_sector = [&b"NTFS    "[..], b"-FVE-FS-"].iter().any(|name| head[3..].starts_with(name));
    let is_fat = head[54..].starts_with(b"FAT") || head[82..].starts_with(b"FAT");
    if head[510..512] != [0x55, 0xAA] || is_boot_sector || is_fat {
        return None;
    }
    let entries = || head[446..510].chunks_exact(16);
    // The last is no table, but code or text where one would be.
    if entries().any(|entry| entry[4] == PROTECTIVE || !matches!(entry[0], 0 | 0x80)) {
        return None;
    }
    let used = entries().filter(|entry| entry[4] != 0 && le32(entry, 8) != 0 && le32(entry, 12) != 0);
    used.map(|entry| (u64::from(le32(entry, 8)) + u64::from(le32(entry, 12))) * 512).max()
}

/// Where the file system that the disk holds without a table ends; `None` where there is none that is known.
fn file_system_end(region: &Region, head: &[u8]) -> Option<u64> {
    ext(head).or_else(|| xfs(head)).or_else(|| ntfs(head)).or_else(|| fat(head)).or_else(|| btrfs(region))
}

/// Linux' `fs/ext4/ext4.h`.
fn ext(head: &[u8]) -> Option<u64> {
    const HAS_64_BITS: u32 = 0x80;
    let block = &head[1024..2048];
    if block[56..58] != [0x53, 0xEF] {
        return None;
    }
    let high = if le32(block, 96) & HAS_64_BITS == 0 { 0 } else { u64::from(le32(block, 0x150)) };
    let blocks = high << 32 | u64::from(le32(block, 4));
    blocks.checked_mul(1024_u64.checked_shl(le32(block, 24)).filter(|bytes| *bytes <= 1 << 16)?)
}

/// Linux' `fs/xfs/libxfs/xfs_format.h`.
fn xfs(head: &[u8]) -> Option<u64> {
    let bytes = u64::from(be32(head, 4));
    let is_one = head.starts_with(b"XFSB") && bytes.is_power_of_two() && (512..=1 << 16).contains(&bytes);
    is_one.then(|| be64(head, 8).checked_mul(bytes)).flatten()
}

/// The sectors of the boot sector, and its copy behind them.
fn ntfs(head: &[u8]) -> Option<u64> {
    let is_one = head[3..].starts_with(b"NTFS    ") && head[510..512] == [0x55, 0xAA];
    is_one.then(|| le64(head, 40).checked_add(1)?.checked_mul(u64::from(le16(head, 11)))).flatten()
}

/// Microsoft's FAT specification 1.03.
fn fat(head: &[u8]) -> Option<u64> {
    let is_one = head[54..].starts_with(b"FAT") || head[82..].starts_with(b"FAT");
    if !is_one || head[510..512] != [0x55, 0xAA] {
        return None;
    }
    let sectors = match le16(head, 19) {
        0 => le32(head, 32),
        few => u32::from(few),
    };
    Some(u64::from(sectors) * u64::from(le16(head, 11)))
}

/// btrfs' on-disk format: the superblock's own device, of which it may have several.
fn btrfs(region: &Region) -> Option<u64> {
    let mut block = [0; 0x100];
    region.read_exact_at(&mut block, BTRFS).ok()?;
    (array::<8>(&block, 0x40) == *b"_BHRfS_M").then(|| le64(&block, 0xC9 + 8))
}
