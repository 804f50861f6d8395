// SPDX-License-Identifier: Apache-2.0
//! Whether an image has its form and no content yet: `qemu-img create` and `fallocate` close a file that others fill later.
//!
//! Formats: QEMU's `docs/interop/qcow2.txt`, VirtualBox' `VDICore.h`, VMware's Virtual Disk Format 5.0, Microsoft's VHD 1.0
//! and VHDX (MS-VHDX), Parallels' as QEMU's `docs/interop/parallels.txt` has it. What is not understood is not called blank.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::super::Region;
use super::super::detect::Content;
use super::super::fields::{be32, be64, le16, le32, le64};
use super::{MAX_CLUSTER, MAX_TABLE};
use crate::conversion::file_name::extension;

/// How many L2 tables of a qcow2 are looked at: one that is filled has data in its first.
const L2_TABLES: usize = 64;

/// Identifies the block table in a VHDX' region table: 2DC27766-F623-4200-9D64-115E9BFD4A08.
const BAT: [u8; 16] = [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08];

/// Whether the image of this form, which begins with `head`, holds no block that was written.
/// `written` is what [`first_written`] said before anything was read.
pub(super) fn is_blank(region: &Region, content: Content, head: &[u8], written: u64) -> bool {
    let found = match content {
        Content::Raw if content.agrees_with(extension(region.name())) => Some(is_bare(region, region.len(), written)),
        Content::Qcow2 => qcow2(region, head),
        // Blocks that are allocated.
        Content::Vdi => (head.len() >= 0x188 && le64(head, 0x170) != 0).then(|| le32(head, 0x184) == 0),
        Content::VmdkSparse => vmdk(region, head),
        Content::Vhd => vhd(region, head, written),
        Content::Vhdx => vhdx(region),
        Content::Parallels => parallels(region, head),
        _ => None,
    };
    found.unwrap_or(false)
}

/// Whether the file system knows these bytes of the file, of which there are some, as never written.
fn is_hole(region: &Region, at: u64, len: u64) -> bool {
    let Some((file, start)) = region.file().filter(|_| len > 0 && at < region.len()) else { return false };
    match seek(file, SeekFrom::Data(start + at)) {
        Ok(data) => data >= start + at + len,
        // No data up to the file's end.
        Err(errno) => errno == Errno::NXIO,
    }
}

/// Whether the first `len` bytes were never written, but for the zeros that QEMU puts at a new file's beginning.
fn is_bare(region: &Region, len: u64, written: u64) -> bool {
    let is_first = || table(region, 0, FIRST).is_some_and(|first| first.iter().all(|byte| *byte == 0));
    len > FIRST as u64 && written >= len && is_first()
}

/// Bytes at a new file's beginning that QEMU writes as zeros.
const FIRST: usize = 4096;

/// Where the first data behind [`FIRST`] begins, as the file system knows it. To be asked before the file is read: what was
/// read of preallocated blocks counts as data as long as it is cached.
pub(super) fn first_written(region: &Region) -> u64 {
    let Some((file, start)) = region.file() else { return 0 };
    match seek(file, SeekFrom::Data(start + FIRST as u64)) {
        Ok(data) => data.saturating_sub(start),
        Err(Errno::NXIO) => u64::MAX,
        Err(_) => 0,
    }
}

fn table(region: &Region, at: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut table = vec![0; Some(bytes).filter(|bytes| *bytes <= MAX_TABLE)?];
    region.read_exact_at(&mut table, at).ok()?;
    Some(table)
}

/// No L2 table, or none with a compressed cluster, one that reads as zeros, or one that holds data.
fn qcow2(region: &Region, head: &[u8]) -> Option<bool> {
    const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
    const EXTENDED_L2: u64 = 1 << 4;
    let head = head.get(..80)?;
    // A backing file is refused by the conversion, and snapshots hold what they hold.
    let is_plain = be64(head, 8) == 0 && be32(head, 60) == 0;
    if !is_plain || be32(head, 4) >= 3 && be64(head, 72) & EXTENDED_L2 != 0 {
        return None;
    }
    let cluster = 1_usize.checked_shl(be32(head, 20)).filter(|bytes| (512..=MAX_CLUSTER).contains(bytes))?;
    let l1 = table(region, be64(head, 40), usize::try_from(be32(head, 36)).ok()?.checked_mul(8)?)?;
    let entries = |table: &[u8]| table.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
    let l1: Vec<u64> = entries(&l1);
    let tables: Vec<u64> = l1.into_iter().map(|entry| entry & OFFSET).filter(|at| *at != 0).collect();
    if tables.len() > L2_TABLES {
        return None;
    }
    for at in tables {
        let clusters: Vec<u64> = entries(&table(region, at, cluster)?);
        for entry in clusters.into_iter().filter(|entry| *entry != 0) {
            // Preallocated clusters are holes of the file.
            let is_empty = entry >> 62 & 1 == 0 && entry & 1 == 0 && is_hole(region, entry & OFFSET, cluster as u64);
            if !is_empty {
                return Some(false);
            }
        }
    }
    Some(true)
}

/// A sparse extent ends with its tables: no grain follows them.
fn vmdk(region: &Region, head: &[u8]) -> Option<bool> {
    const COMPRESSED: u32 = 1 << 16;
    const AT_END: u64 = u64::MAX;
    let head = head.get(..79).filter(|head| head.starts_with(b"KDMV"))?;
    let is_plain = le32(head, 8) & COMPRESSED == 0 && le16(head, 77) == 0 && le64(head, 56) != AT_END;
    is_plain.then(|| le64(head, 64).checked_mul(512).is_some_and(|tables| tables >= region.len()))
}

/// A fixed disk's file holds nothing but its footer; a dynamic one's table names no block.
fn vhd(region: &Region, head: &[u8], written: u64) -> Option<bool> {
    if !head.starts_with(b"conectix") {
        let disk = region.len().checked_sub(512)?;
        return Some(is_bare(region, disk, written));
    }
    let header = head.get(512..512 + 36).filter(|header| header.starts_with(b"cxsparse"))?;
    let blocks = table(region, be64(header, 16), usize::try_from(be32(header, 28)).ok()?.checked_mul(4)?)?;
    Some(blocks.iter().all(|byte| *byte == 0xFF))
}

/// The block table has no block that is present, and no log waits to be replayed.
fn vhdx(region: &Region) -> Option<bool> {
    const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
    const REGIONS: u64 = 192 << 10;
    for at in HEADERS {
        let header = table(region, at, 64)?;
        if header.starts_with(b"head") && header[48..64] != [0; 16] {
            return None;
        }
    }
    let regions = table(region, REGIONS, 64 << 10)?;
    let regions = regions.strip_prefix(b"regi")?;
    let count = usize::try_from(le32(regions, 4)).ok().filter(|count| *count <= 2047)?;
    let mut entries = regions[12..].chunks_exact(32).take(count);
    let blocks = entries.find(|entry| entry[..16] == BAT)?;
    let blocks = table(region, le64(blocks, 16), usize::try_from(le32(blocks, 24)).ok()?)?;
    // Fully or partially present; a fixed disk's blocks are all there, and holes of the file.
    let mut present = blocks.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)).filter(|e| e & 7 >= 6);
    Some(present.all(|entry| is_hole(region, entry & !0xF_FFFF, 1 << 20)))
}

fn parallels(region: &Region, head: &[u8]) -> Option<bool> {
    let count = usize::try_from(le32(head.get(..64)?, 32)).ok()?;
    let blocks = table(region, 64, count.checked_mul(4)?)?;
    Some(blocks.iter().all(|byte| *byte == 0))
}
