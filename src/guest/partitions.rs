// SPDX-License-Identifier: Apache-2.0
//! Partition tables: MBR with logical partitions, GPT with its copy at the disk's end.

use super::disk::Volume;
use super::error::{Error, Result};
use super::fields::{array, byte, guid, le32, le64, size, slice};
use crate::conversion::guest::{MAX_LIST, Partition, PartitionTable};

/// Sectors that a GPT may be made for.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Types of partitions that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// Type of the partition that protects a GPT.
const PROTECTIVE: u8 = 0xEE;
/// Most bytes of a GPT's entries; 16 KiB is usual.
const MAX_ENTRIES: u64 = 1 << 20;

/// EFI system partition.
pub(super) const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// BIOS boot partition, where GRUB lies.
pub(super) const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";

/// A disk's division.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) kind: PartitionTable,
    pub(super) partitions: Vec<Partition>,
    /// Whether the first sector has boot code.
    pub(super) boot_code: bool,
    /// What was odd.
    pub(super) odd: Vec<String>,
}

/// Reads the table of `disk`.
pub(super) fn read(disk: &Volume) -> Result<Table> {
    if disk.len() < 512 {
        return Ok(Table::default());
    }
    let first = disk.bytes(0, 512)?;
    let mut odd = Vec::new();
    let has_signature = first[510..] == [0x55, 0xAA];
    let protected = has_signature && (0..4).any(|index| first[446 + index * 16 + 4] == PROTECTIVE);
    // With code that a BIOS would start; Windows' and GRUB's begin with a jump or with cli.
    let boot_code = has_signature && first[..440].iter().any(|byte| *byte != 0);
    if let Some(partitions) = gpt(disk, protected, &mut odd)? {
        return Ok(Table { kind: PartitionTable::Gpt, partitions, boot_code, odd });
    }
    // A file system's boot sector has the same signature, and code or text where the table would be.
    if !has_signature || is_boot_sector(&first) {
        return Ok(Table { boot_code, odd, ..Table::default() });
    }
    match mbr(disk, &first, &mut odd)? {
        Some(partitions) => Ok(Table { kind: PartitionTable::Mbr, partitions, boot_code, odd }),
        None => Ok(Table { boot_code, odd, ..Table::default() }),
    }
}

/// Whether the first sector belongs to FAT, NTFS or `BitLocker` and not to a table.
fn is_boot_sector(first: &[u8]) -> bool {
    let has = |at: usize, what: &[u8]| first[at..].starts_with(what);
    let is_plausible = (0..4).all(|index| matches!(first[446 + index * 16], 0 | 0x80));
    has(3, b"NTFS    ") || has(3, b"-FVE-FS-") || ((has(54, b"FAT") || has(82, b"FAT")) && !is_plausible)
}

fn mbr(disk: &Volume, first: &[u8], odd: &mut Vec<String>) -> Result<Option<Vec<Partition>>> {
    let signature = le32(first, 440)?;
    let mut partitions = Vec::new();
    let mut extended = None;
    for index in 0..4 {
        let entry = slice(first, 446 + index * 16, 16)?;
        let (flag, kind) = (byte(entry, 0)?, byte(entry, 4)?);
        if !matches!(flag, 0 | 0x80) {
            return Ok(None);
        }
        let number = u32::try_from(index + 1).expect("at most 4");
        let Some(partition) = mbr_entry(entry, 0, number, signature)? else { continue };
        if EXTENDED.contains(&kind) {
            extended = Some(partition.start_bytes);
        }
        partitions.push(partition);
    }
    if let Some(start) = extended {
        logical(disk, start, signature, &mut partitions, odd)?;
    }
    Ok((!partitions.is_empty()).then_some(partitions))
}

/// The chain of tables in the extended partition at `start`.
fn logical(
    disk: &Volume,
    start: u64,
    signature: u32,
    partitions: &mut Vec<Partition>,
    odd: &mut Vec<String>,
) -> Result<()> {
    let mut at = start;
    for number in 5.. {
        if partitions.len() >= MAX_LIST {
            odd.push(format!("has more than {MAX_LIST} partitions: the rest was not looked at"));
            return Ok(());
        }
        if at.checked_add(512).is_none_or(|end| end > disk.len()) {
            odd.push("a table of logical partitions lies behind the disk's end".into());
            return Ok(());
        }
        let sector = disk.bytes(at, 512)?;
        if sector[510..] != [0x55, 0xAA] {
            odd.push("a table of logical partitions has no signature".into());
            return Ok(());
        }
        partitions.extend(mbr_entry(&sector[446..462], at, number, signature)?);
        let next = u64::from(le32(&sector, 462 + 8)?) * 512;
        // The chain goes up; one that goes back is a loop.
        if byte(&sector, 462 + 4)? == 0 || next == 0 {
            return Ok(());
        }
        if start + next <= at {
            odd.push("the tables of logical partitions form a loop".into());
            return Ok(());
        }
        at = start + next;
    }
    Ok(())
}

/// An entry whose start counts from `base`; `None` where it is empty.
fn mbr_entry(entry: &[u8], base: u64, number: u32, signature: u32) -> Result<Option<Partition>> {
    let kind = byte(entry, 4)?;
    let (start, len) = (u64::from(le32(entry, 8)?) * 512, u64::from(le32(entry, 12)?) * 512);
    if kind == 0 || len == 0 {
        return Ok(None);
    }
    Ok(Some(Partition {
        number,
        start_bytes: base + start,
        size_bytes: len,
        kind: format!("{kind:02x}"),
        uuid: format!("{signature:08x}-{number:02x}"),
        active: byte(entry, 0)? == 0x80,
    }))
}

/// The partitions of a GPT; `None` where there is none.
fn gpt(disk: &Volume, protected: bool, odd: &mut Vec<String>) -> Result<Option<Vec<Partition>>> {
    for sector in SECTOR_SIZES {
        if let Ok(Some(partitions)) = gpt_at(disk, sector, sector) {
            return Ok(Some(partitions));
        }
    }
    if !protected {
        return Ok(None);
    }
    for sector in SECTOR_SIZES {
        let last = (disk.len() / sector).saturating_sub(1) * sector;
        if let Ok(Some(partitions)) = gpt_at(disk, last, sector) {
            odd.push("the first partition table is broken: its copy at the disk's end was read".into());
            return Ok(Some(partitions));
        }
    }
    Err(Error::corrupt("has neither a whole GPT nor a whole copy of it"))
}

/// The partitions of the GPT whose header is at `offset`.
fn gpt_at(disk: &Volume, offset: u64, sector: u64) -> Result<Option<Vec<Partition>>> {
    let mut header = disk.bytes(offset, 512)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let len = size(le32(&header, 12)?.into())?;
    let stated = le32(&header, 16)?;
    header[16..20].fill(0);
    if !(92..=512).contains(&len) || crc32fast::hash(&header[..len]) != stated {
        return Err(Error::corrupt("the checksum of a GPT's header is wrong"));
    }
    let (first, count) = (le64(&header, 72)?, u64::from(le32(&header, 80)?));
    let each = u64::from(le32(&header, 84)?);
    let bytes = count.saturating_mul(each);
    if each < 128 || !each.is_power_of_two() || bytes > MAX_ENTRIES {
        return Err(Error::corrupt("a GPT has entries of an unknown size"));
    }
    let place = first.checked_mul(sector).ok_or_else(|| Error::corrupt("a GPT's entries lie nowhere"))?;
    let entries = disk.bytes(place, size(bytes)?)?;
    if crc32fast::hash(&entries) != le32(&header, 88)? {
        return Err(Error::corrupt("the checksum of a GPT's entries is wrong"));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks(size(each)?)) {
        let kind: [u8; 16] = array(entry, 0)?;
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        if kind == [0; 16] || last < first || partitions.len() >= MAX_LIST {
            continue;
        }
        let (start, count) = (first.checked_mul(sector), (last - first).checked_add(1));
        let (Some(start_bytes), Some(size_bytes)) = (start, count.and_then(|count| count.checked_mul(sector))) else {
            continue;
        };
        let uuid = guid(array(entry, 16)?);
        partitions.push(Partition { number, start_bytes, size_bytes, kind: guid(kind), uuid, active: false });
    }
    Ok(Some(partitions))
}
