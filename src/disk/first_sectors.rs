// SPDX-License-Identifier: Apache-2.0
//! What the first sectors of a guest's disk tell about its firmware: the partition table, and the code that a BIOS runs.
//!
//! Formats: UEFI specification 2.10, chapter 5 (GPT, and the EFI system partition's type `0xEF` in an MBR); the MBR as
//! IBM's PC had it. Nothing beyond LBA 33 is read.

use super::control::CopyControl;
use super::replay::{GuestBytes, replay};
use super::{Error, Extent, Image, Location, Reader};
use crate::conversion::machine::Firmware;
use crate::conversion::plan::PartitionTable;

/// Bytes of LBA 0–33: the MBR, the GPT's header and its 128 entries.
const LENGTH: usize = 34 * 512;

/// Offsets and lengths in an MBR: code, table of four entries, signature.
const CODE: std::ops::Range<usize> = 0..440;
const TABLE: usize = 446;
const SIGNATURE: std::ops::Range<usize> = 510..512;

/// GUIDs of partition types, as they lie on disk: EFI system partition, BIOS boot partition of GRUB.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// How Microsoft's code begins, which Windows writes to each disk: it starts the active partition, and fails without.
const MICROSOFT: [u8; 7] = [0x33, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c];

/// Attribute of a GPT entry that a BIOS starts (UEFI 2.10, table 5.8).
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// Which firmware could start a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstSectors {
    /// It has an EFI system partition.
    pub efi: bool,
    /// It has code that a BIOS runs, and something for it to start.
    pub bios: bool,
}

impl FirstSectors {
    /// Whether anything starts from it.
    #[must_use]
    pub const fn boots(self) -> bool {
        self.efi || self.bios
    }

    /// The firmware, where these sectors tell; bios where both could start it.
    #[must_use]
    pub const fn firmware(self) -> Option<Firmware> {
        match self {
            Self { bios: true, .. } => Some(Firmware::Bios),
            Self { efi: true, .. } => Some(Firmware::Efi),
            Self { .. } => None,
        }
    }
}

/// Looks at the first sectors of a guest's disk, read by the image's own reader.
///
/// # Errors
/// The reader's.
pub fn look(image: &Image) -> Result<FirstSectors, Error> {
    Ok(read_sectors(&sectors(image)?))
}

/// The kind of a guest's partition table; `None` where there is none.
///
/// # Errors
/// The reader's.
pub fn table(image: &Image) -> Result<Option<PartitionTable>, Error> {
    let sectors = sectors(image)?;
    let is_mbr = sectors[SIGNATURE] == [0x55, 0xaa] && read_entries(&sectors).any(|entry| entry[4] != 0);
    Ok(gpt(&sectors).map(|_| PartitionTable::Gpt).or(is_mbr.then_some(PartitionTable::Mbr)))
}

fn sectors(image: &Image) -> Result<Vec<u8>, Error> {
    let mut sectors = vec![0; LENGTH];
    replay(&head(image)?, &CopyControl::default(), |at, found| {
        if let (GuestBytes::Data(bytes), Some(rest)) =
            (found, usize::try_from(at).ok().and_then(|at| sectors.get_mut(at..)))
        {
            let len = bytes.len().min(rest.len());
            rest[..len].copy_from_slice(&bytes[..len]);
        }
        Ok(())
    })?;
    Ok(sectors)
}

/// The entries of an MBR's table.
fn read_entries(sectors: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..4).map(|n| &sectors[TABLE + 16 * n..TABLE + 16 * (n + 1)])
}

/// The extents of `image` that begin among the first sectors.
fn head(image: &Image) -> Result<Image, Error> {
    let limit = LENGTH as u64;
    let mut extents: Vec<Extent> = Vec::new();
    for extent in image.extents() {
        let mut extent = extent?;
        if extent.guest.start >= limit {
            break;
        }
        // A compressed extent is decoded as a whole.
        if matches!(extent.at, Location::Zero | Location::Stored { .. }) {
            extent.guest.end = extent.guest.end.min(limit);
        }
        extents.push(extent);
    }
    Ok(Image { regions: image.regions.clone(), reader: Reader::Listed { kind: image.kind(), extents } })
}

fn read_sectors(sectors: &[u8]) -> FirstSectors {
    if sectors[SIGNATURE] != [0x55, 0xaa] {
        return FirstSectors::default();
    }
    let code = &sectors[CODE];
    let entries = || read_entries(sectors);
    let has_code = code.iter().any(|&byte| byte != 0);
    let is_active = entries().any(|entry| entry[0] == 0x80 && entry[4] != 0xee);
    let has_partition = entries().any(|entry| entry[4] != 0);
    if !has_partition || entries().any(|entry| !matches!(entry[0], 0 | 0x80)) {
        // A file system without a table begins with code, too, and may hold its own signature.
        return FirstSectors::default();
    }
    let needs_active = code.starts_with(&MICROSOFT);
    match gpt(sectors) {
        Some(Gpt { efi, bios_boot }) => {
            FirstSectors { efi, bios: has_code && (bios_boot || is_active || !(efi || needs_active)) }
        }
        None => FirstSectors {
            efi: entries().any(|entry| entry[4] == 0xef),
            bios: has_code && (is_active || !needs_active),
        },
    }
}

struct Gpt {
    efi: bool,
    bios_boot: bool,
}

/// Reads the entries of a GPT that begin within the sectors; `None` where there is none. Sectors have 512 or 4096 bytes.
fn gpt(sectors: &[u8]) -> Option<Gpt> {
    let sector = [512, 4096].into_iter().find(|&at| sectors[at..].starts_with(b"EFI PART"))?;
    let header = &sectors[sector..];
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let first = u64::from_le_bytes(header[72..80].try_into().expect("eight bytes"));
    let start = usize::try_from(first).ok()?.checked_mul(sector)?;
    let (count, size) = (number(80).min(128), usize::try_from(number(84)).ok()?);
    let mut found = Gpt { efi: false, bios_boot: false };
    if !(128..=4096).contains(&size) {
        return Some(found);
    }
    let entries = sectors.get(start..).unwrap_or_default().chunks_exact(size).take(count as usize);
    for entry in entries {
        let attributes = u64::from_le_bytes(entry[48..56].try_into().expect("eight bytes"));
        found.efi |= entry[..16] == EFI_SYSTEM;
        found.bios_boot |= entry[..16] == BIOS_BOOT || entry[..16] != [0; 16] && attributes & LEGACY_BOOTABLE != 0;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
