// SPDX-License-Identifier: Apache-2.0
//! Linux' software RAID (md): which volumes are members of which array. A mirror is read through one of its members; any
//! other array is named with its level.
//!
//! The layouts are those of the kernel's `md_p.h`: version 1 (1.0 near the end, 1.1 at the start, 1.2 at 4 KiB) and 0.90,
//! little-endian. A superblock counts only with its checksum: old ones stay behind where disks are used anew.

use super::disk::Volume;
use super::error::{Error, Result};
use super::fields::{array, le16, le32, le64, text, until_nul, uuid};
use crate::conversion::guest::MAX_LIST;

const MAGIC: u32 = 0xA92B_4EFC;
/// Most devices that a superblock of version 1 has roles for.
const MAX_ROLES: u32 = 1920;
/// Features: a member that is still being filled, an array that changes its shape.
const RECOVERING: u32 = 2;
const RESHAPING: u32 = 4;
/// State of a member in version 0.90: active and in sync.
const IN_SYNC: u32 = 6;

/// A member of an array.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) version: &'static str,
    pub(super) level: i32,
    /// Members that the array is made for.
    pub(super) disks: u32,
    pub(super) uuid: String,
    /// Its name without the host's; empty where it has none.
    name: String,
    events: u64,
    /// Where the array's data lies in the member.
    start: u64,
    len: u64,
    /// Whether the data is whole.
    ready: bool,
}

/// An array that can be read, or why it cannot.
pub(super) struct Array {
    /// `md/0`, `md/root`.
    pub(super) name: String,
    pub(super) volume: Result<Volume>,
    /// Members that are here, and that it is made for.
    pub(super) here: usize,
    pub(super) disks: u32,
}

impl Member {
    /// Reads the superblock of `volume`, if it is a member.
    pub(super) fn read(volume: &Volume) -> Result<Option<Self>> {
        let sectors = volume.len() / 512;
        let near_end = sectors.checked_sub(16).map(|sector| (sector & !7) * 512);
        for (version, place) in [("1.2", Some(4096)), ("1.1", Some(0)), ("1.0", near_end)] {
            let Some(place) = place.filter(|place| place + 4096 <= volume.len()) else { continue };
            if let Some(member) = version_1(&volume.bytes(place, 4096)?, version, place)? {
                return Ok(Some(member));
            }
        }
        match (volume.len() & !0xFFFF).checked_sub(0x1_0000) {
            Some(place) => version_0(&volume.bytes(place, 4096)?, volume.len()),
            None => Ok(None),
        }
    }

    /// `RAID 1`.
    pub(super) fn level(&self) -> String {
        match self.level {
            -1 => "linear array".into(),
            -4 => "multipath device".into(),
            level => format!("RAID {level}"),
        }
    }

    /// For a person: level, version and size of the array.
    pub(super) fn detail(&self) -> String {
        format!("{} of {} disks, md {}", self.level(), self.disks, self.version)
    }

    pub(super) const fn is_mirror(&self) -> bool {
        self.level == 1
    }
}

fn version_1(block: &[u8], version: &'static str, place: u64) -> Result<Option<Member>> {
    let roles = le32(block, 220)?;
    // The place is written there, so that no copy elsewhere counts.
    let is_here = le64(block, 144)?.checked_mul(512) == Some(place);
    if le32(block, 0)? != MAGIC || le32(block, 4)? != 1 || roles > MAX_ROLES || !is_here {
        return Ok(None);
    }
    let mut sum = (0..256 + 2 * roles as usize).step_by(4).try_fold(0_u64, |sum, at| {
        let is_half = at + 4 > 256 + 2 * roles as usize;
        let word = if is_half { u64::from(le16(block, at)?) } else { u64::from(le32(block, at)?) };
        Ok::<_, Error>(sum + if at == 216 { 0 } else { word })
    })?;
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    if sum & 0xFFFF_FFFF != u64::from(le32(block, 216)?) {
        return Ok(None);
    }
    let (features, disks, number) = (le32(block, 8)?, le32(block, 92)?, le32(block, 160)?);
    let role = (number < roles).then(|| le16(block, 256 + 2 * number as usize)).transpose()?;
    let is_active = role.is_some_and(|role| u32::from(role) < disks);
    let full_name = text(until_nul(&array::<32>(block, 32)?));
    let name = full_name.rsplit_once(':').map_or(full_name.as_str(), |(_, name)| name).to_owned();
    Ok(Some(Member {
        version,
        level: le32(block, 72)?.cast_signed(),
        disks,
        uuid: uuid(array(block, 16)?),
        name,
        events: le64(block, 200)?,
        start: le64(block, 128)?.saturating_mul(512),
        len: le64(block, 80)?.saturating_mul(512),
        ready: is_active && features & (RECOVERING | RESHAPING) == 0,
    }))
}

fn version_0(block: &[u8], len: u64) -> Result<Option<Member>> {
    if le32(block, 0)? != MAGIC || le32(block, 4)? != 0 || le32(block, 8)? < 90 {
        return Ok(None);
    }
    let sum = (0..4096)
        .step_by(4)
        .try_fold(0_u64, |sum, at| Ok::<_, Error>(sum + if at == 152 { 0 } else { u64::from(le32(block, at)?) }))?;
    if ((sum & 0xFFFF_FFFF) + (sum >> 32)) & 0xFFFF_FFFF != u64::from(le32(block, 152)?) {
        return Ok(None);
    }
    let mut id = [0; 16];
    for (index, at) in [20, 52, 56, 60].into_iter().enumerate() {
        id[index * 4..index * 4 + 4].copy_from_slice(&array::<4>(block, at)?);
    }
    let size = u64::from(le32(block, 32)?).saturating_mul(1024);
    Ok(Some(Member {
        version: "0.90",
        level: le32(block, 28)?.cast_signed(),
        disks: le32(block, 40)?,
        uuid: uuid(id),
        name: le32(block, 44)?.to_string(),
        events: u64::from(le32(block, 156)?) | u64::from(le32(block, 160)?) << 32,
        start: 0,
        len: size.min(len),
        // The member's own entry is the last.
        ready: le32(block, 3968 + 16)? & IN_SYNC == IN_SYNC,
    }))
}

/// The arrays of these members, each with the volume that it lies on. A mirror is read through the member that was
/// written last.
pub(super) fn arrays(members: &[(&Member, &Volume)]) -> Vec<Array> {
    let mut arrays: Vec<Array> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (first, _) in members.iter().filter(|(member, _)| member.is_mirror()) {
        if seen.contains(&first.uuid.as_str()) || seen.len() == MAX_LIST {
            continue;
        }
        seen.push(&first.uuid);
        let of: Vec<_> = members.iter().filter(|(member, _)| member.uuid == first.uuid).collect();
        let newest = of.iter().filter(|(member, _)| member.ready).max_by_key(|(member, _)| member.events);
        let volume = newest.map_or_else(
            || Err(Error::unsupported("none of its members that are here is whole")),
            |(member, volume)| data(member, volume),
        );
        let name = if first.name.is_empty() { (arrays.len()).to_string() } else { first.name.clone() };
        arrays.push(Array { name: format!("md/{name}"), volume, here: of.len(), disks: first.disks });
    }
    arrays
}

/// The array's data in a member.
fn data(member: &Member, volume: &Volume) -> Result<Volume> {
    let (disk, base) = volume.only_range().ok_or_else(|| Error::unsupported("lies on another volume"))?;
    let end = member.start.checked_add(member.len).filter(|end| *end <= volume.len() && member.len > 0);
    end.ok_or_else(|| Error::corrupt("an array's data lies behind its member's end"))?;
    let start = base.checked_add(member.start).ok_or_else(|| Error::corrupt("an array's data lies nowhere"))?;
    Ok(Volume::part(disk, start, member.len))
}
