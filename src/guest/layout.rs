// SPDX-License-Identifier: Apache-2.0
//! Disks, their partitions, and what each holds.

use std::rc::Rc;

use super::budget::Budget;
use super::disk::{Disk, Volume};
use super::error::{Error, Result};
use super::files::Shared;
use super::files::btrfs::{self, Btrfs};
use super::files::ext4::Ext;
use super::files::fat::{self, Fat};
use super::files::ntfs::{self, Windows};
use super::files::xfs::Xfs;
use super::iso::Iso;
use super::lvm;
use super::partitions::{self, BIOS_BOOT, ESP, Table};
use super::probe::{Content, probe};
use super::raid;
use crate::conversion::guest::{self, Answer, Doubt, Guest, GuestDisk, MAX_LIST, PartitionTable};
use crate::disk::view::View;
use crate::disk::{Image, Reader};

/// Pages of 64 KiB that all disks together hold: 8 MiB.
const PAGES: usize = 128;

/// A volume with what it holds.
pub(super) struct Held {
    pub(super) told: guest::Volume,
    pub(super) content: Content,
    pub(super) volume: Volume,
    /// Index of the disk and number of the partition, 0 for the whole disk; absent of logical volumes.
    pub(super) partition: Option<(usize, u32)>,
    /// The partition's own GUID, or the MBR's PARTUUID.
    pub(super) partition_uuid: String,
    pub(super) is_esp: bool,
    /// Of which array it is a member.
    member: Option<raid::Member>,
    /// The file system, where it could be opened.
    pub(super) files: Option<Shared>,
}

/// All volumes of a guest.
pub(super) struct Layout {
    pub(super) volumes: Vec<Held>,
}

/// Reads the layout of `disks` into `guest`; what cannot be read becomes a doubt.
pub(super) fn read(disks: &[(&str, &Image)], budget: &Rc<Budget>, guest: &mut Guest) -> Layout {
    let mut volumes = Vec::new();
    let share = PAGES / disks.len().max(1);
    for (index, (member, image)) in disks.iter().take(MAX_LIST).enumerate() {
        if matches!(image.reader, Reader::Packed(_)) {
            let why = "is a packed raw disk, which only a conversion unpacks".into();
            guest.doubts.push(Doubt { what: super::fields::clean(member), why });
            continue;
        }
        let disk = Disk::new(View::new((*image).clone(), share), budget);
        let whole = Volume::part(&disk, 0, disk.size());
        let name = format!("disk {index}");
        let table = partitions::read(&whole).unwrap_or_else(|error| {
            guest.doubts.push(Doubt { what: name.clone(), why: error.to_string() });
            Table::default()
        });
        guest.doubts.extend(table.odd.iter().map(|why| Doubt { what: name.clone(), why: why.clone() }));
        firmware(&table, guest);
        // An image of a CD may have a table for those who write it to a stick.
        let is_cd = Iso::read(&whole).is_ok_and(|iso| iso.is_some());
        if table.kind == PartitionTable::None || is_cd {
            volumes.extend(hold(name, whole, Some((index, 0)), guest));
        }
        for partition in &table.partitions {
            let name = format!("disk {index} partition {}", partition.number);
            if partition.start_bytes.saturating_add(partition.size_bytes) > disk.size() {
                let why = "ends behind the disk's end".into();
                guest.doubts.push(Doubt { what: name.clone(), why });
            }
            // An extended partition is only where others lie.
            if matches!(partition.kind.as_str(), "05" | "0f" | "85") {
                continue;
            }
            let volume = Volume::part(&disk, partition.start_bytes, partition.size_bytes);
            let held = hold(name, volume, Some((index, partition.number)), guest);
            volumes.extend(held.map(|held| Held {
                partition_uuid: partition.uuid.clone(),
                is_esp: partition.kind == ESP || partition.kind == "ef",
                ..held
            }));
        }
        guest.disks.push(GuestDisk {
            member: super::fields::clean(member),
            size_bytes: disk.size(),
            table: table.kind,
            partitions: table.partitions,
        });
    }
    volumes.extend(mirrors(&volumes, guest));
    volumes.extend(logical(&volumes, budget, guest));
    guest.volumes = volumes.iter().map(|held: &Held| held.told.clone()).take(MAX_LIST).collect();
    Layout { volumes }
}

/// The mirrors among the arrays that `volumes` are members of; each other member becomes a doubt.
fn mirrors(volumes: &[Held], guest: &mut Guest) -> Vec<Held> {
    let members: Vec<_> =
        volumes.iter().filter_map(|held| held.member.as_ref().map(|member| (member, &held.volume))).collect();
    let mut found = Vec::new();
    for raid::Array { name, volume, here, disks } in raid::arrays(&members) {
        if here < disks as usize {
            let why = format!("is a mirror of {disks} disks, of which {here} are here: it starts without the others");
            guest.doubts.push(Doubt { what: name.clone(), why });
        }
        match volume {
            Ok(volume) => found.extend(hold(name, volume, None, guest)),
            Err(error) => guest.doubts.push(Doubt { what: name, why: error.to_string() }),
        }
    }
    found
}

/// The logical volumes that LVM makes of `volumes`.
fn logical(volumes: &[Held], budget: &Rc<Budget>, guest: &mut Guest) -> Vec<Held> {
    let mut physical = Vec::new();
    for held in volumes.iter().filter(|held| held.content == Content::Lvm) {
        match lvm::Physical::read(&held.volume) {
            Ok(found) => physical.push(found),
            Err(error) => guest.doubts.push(Doubt { what: held.told.name.clone(), why: error.to_string() }),
        }
    }
    let mut found = Vec::new();
    for lvm::Logical { name, volume } in lvm::logical(&physical, budget) {
        match volume {
            Ok(volume) => found.extend(hold(name, volume, None, guest)),
            Err(error) => guest.doubts.push(Doubt { what: name, why: error.to_string() }),
        }
    }
    found
}

/// By which firmware the first disk with a table may start.
fn firmware(table: &Table, guest: &mut Guest) {
    let firmware = &mut guest.firmware;
    if table.kind == PartitionTable::None {
        return;
    }
    let has = |kinds: [&str; 2]| table.partitions.iter().any(|partition| kinds.contains(&partition.kind.as_str()));
    let is_active = table.partitions.iter().any(|partition| partition.active);
    let bios = table.boot_code && (has([BIOS_BOOT, BIOS_BOOT]) || is_active || table.kind == PartitionTable::Mbr);
    for (answer, is) in [(&mut firmware.bios, bios), (&mut firmware.efi, has([ESP, "ef"]))] {
        if is {
            *answer = Answer::Yes;
        } else if *answer == Answer::Unknown {
            *answer = Answer::No;
        }
    }
}

/// Looks at what `volume` holds, and opens its file system.
fn hold(name: String, volume: Volume, partition: Option<(usize, u32)>, guest: &mut Guest) -> Option<Held> {
    let mut doubt = |error: Error| guest.doubts.push(Doubt { what: name.clone(), why: error.to_string() });
    let (mut content, mut told) = probe(&volume).map_err(&mut doubt).ok()?;
    // Before its content: a member with its superblock at the end begins like what is on the array.
    let member = raid::Member::read(&volume).map_err(&mut doubt).ok().flatten();
    if let Some(member) = &member {
        content = Content::Named("mdraid");
        let (content, detail) = ("mdraid".to_owned(), Some(member.detail()));
        told = guest::Volume {
            content,
            detail,
            uuid: Some(member.uuid.clone()),
            size_bytes: told.size_bytes,
            ..guest::Volume::default()
        };
    }
    if content == Content::Named("iso9660")
        && let Some(iso) = Iso::read(&volume).map_err(&mut doubt).ok().flatten()
    {
        (told.detail, told.label) = (Some(iso.detail().to_owned()), iso.label);
    }
    if let Some(why) = closed(&told, member.as_ref()) {
        doubt(Error::unsupported(why));
    }
    let opened = open(content, &volume).and_then(|files| {
        told.dirty = dirty(content, &volume)?.or(told.dirty);
        Ok(files)
    });
    let files = opened.map_err(doubt).ok().flatten();
    let told = guest::Volume { name, ..told };
    Some(Held { told, content, volume, partition, partition_uuid: String::new(), is_esp: false, member, files })
}

/// Why nothing in the volume is looked at, and what to do.
fn closed(told: &guest::Volume, member: Option<&raid::Member>) -> Option<String> {
    let detail = told.detail.as_deref().unwrap_or_default();
    match told.content.as_str() {
        "luks" => Some(format!(
            "is encrypted ({detail}), so nothing in it was looked at: it asks for its passphrase as before, and the guest \
             must have virtio's drivers in its initramfs before it is moved, or start from SATA"
        )),
        "mdraid" if member.is_some_and(|member| !member.is_mirror()) => Some(format!(
            "is a member of an array ({detail}), which is not read: bring all its disks, and the guest puts them together"
        )),
        "iso9660" => {
            let label = told.label.as_deref().map(|label| format!("\"{label}\", ")).unwrap_or_default();
            Some(format!(
                "is the image of a CD ({label}{detail}) and not a disk: attach it as a CD-ROM, or bring the machine's disk"
            ))
        }
        _ => None,
    }
}

/// Opens the file system of `volume`, if it has one that is read.
fn open(content: Content, volume: &Volume) -> Result<Option<Shared>> {
    Ok(match content {
        Content::Ext => Some(Rc::new(Ext::open(volume)?)),
        Content::Xfs => Some(Rc::new(Xfs::open(volume)?)),
        Content::Btrfs => Some(Rc::new(Btrfs::open(volume)?)),
        Content::Fat => Some(Rc::new(Fat::open(volume)?)),
        Content::Ntfs => Some(Rc::new(Windows::open(volume)?)),
        Content::Lvm | Content::Named(_) | Content::Empty | Content::Unknown => None,
    })
}

/// Whether a file system was not unmounted, where that is told apart from its superblock.
fn dirty(content: Content, volume: &Volume) -> Result<Option<bool>> {
    match content {
        Content::Fat => fat::is_dirty(volume),
        Content::Ntfs => ntfs::is_dirty(volume).map(Some),
        Content::Btrfs => btrfs::is_dirty(volume).map(Some),
        _ => Ok(None),
    }
}
