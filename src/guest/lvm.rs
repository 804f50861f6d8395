// SPDX-License-Identifier: Apache-2.0
//! LVM2: which logical volumes lie where. From the metadata areas of the physical volumes; linear and striped ones.
//!
//! The layout is that of LVM2's `format_text`: a label in one of the first four sectors, a header with the areas, and
//! in an area the text of the newest metadata, which may wrap around its end.

mod text;

use std::rc::Rc;

use self::text::{Section, Value};
use super::budget::Budget;
use super::disk::{Piece, Place, Volume};
use super::error::{Error, Result};
use super::fields::{array, le32, le64, size, slice};
use crate::conversion::guest::MAX_LIST;

/// Longest metadata text that is read.
const MAX_METADATA: u64 = 4 << 20;
/// What stands at the start of a metadata area, behind its checksum.
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// Segments of one logical volume, and stripes of one segment.
const MAX_SEGMENTS: u64 = 4096;
const MAX_STRIPES: usize = 128;

/// A physical volume.
pub(super) struct Physical {
    /// 32 characters, without the dashes of the text.
    id: [u8; 32],
    volume: Volume,
    /// The newest metadata that it has, with its sequence number.
    metadata: Option<(u64, String, Section)>,
}

/// A logical volume that can be read, or why it cannot.
pub(super) struct Logical {
    /// `vg/lv`.
    pub(super) name: String,
    pub(super) volume: Result<Volume>,
}

impl Physical {
    /// Reads the label and the metadata of `volume`.
    pub(super) fn read(volume: &Volume) -> Result<Self> {
        for sector in 0..4 {
            let label = volume.bytes(sector * 512, 512)?;
            if !label.starts_with(b"LABELONE") || slice(&label, 24, 8)? != b"LVM2 001" {
                continue;
            }
            let header = volume.bytes(sector * 512 + u64::from(le32(&label, 20)?), 512)?;
            let id = array(&header, 0)?;
            let areas = metadata_areas(&header)?;
            let mut metadata: Option<(u64, String, Section)> = None;
            for (offset, len) in areas {
                let Some(found) = metadata_at(volume, offset, len)? else { continue };
                if metadata.as_ref().is_none_or(|known| known.0 < found.0) {
                    metadata = Some(found);
                }
            }
            return Ok(Self { id, volume: volume.clone(), metadata });
        }
        Err(Error::corrupt("has no LVM label where one was"))
    }
}

/// Places and lengths of the metadata areas: the header lists data areas first, each list ends with zeros.
fn metadata_areas(header: &[u8]) -> Result<Vec<(u64, u64)>> {
    let mut areas = Vec::new();
    let (mut at, mut lists) = (40, 0);
    while lists < 2 {
        let (offset, len) = (le64(header, at)?, le64(header, at + 8)?);
        at += 16;
        if offset == 0 {
            lists += 1;
        } else if lists == 1 {
            areas.push((offset, len));
        }
    }
    Ok(areas)
}

/// The metadata in one area: its sequence number, the group's name, and the group.
fn metadata_at(volume: &Volume, offset: u64, len: u64) -> Result<Option<(u64, String, Section)>> {
    let header = volume.bytes(offset, 512)?;
    if slice(&header, 4, 16)? != AREA_MAGIC {
        return Err(Error::corrupt("has no LVM metadata where its header says"));
    }
    let (at, count) = (le64(&header, 40)?, le64(&header, 48)?);
    if at == 0 || count == 0 {
        return Ok(None);
    }
    let ends_nowhere = offset.checked_add(len).is_none();
    if ends_nowhere || count > MAX_METADATA || at < 512 || at >= len || count > len - 512 {
        return Err(Error::corrupt("has LVM metadata of no possible length"));
    }
    // Around the end of the area to behind its header.
    let first = count.min(len - at);
    let mut text = volume.bytes(offset + at, size(first)?)?;
    text.extend(volume.bytes(offset + 512, size(count - first)?)?);
    let root = text::parse(&String::from_utf8_lossy(&text), &volume.budget)?;
    let group = root.into_iter().find_map(|(name, value)| match value {
        Value::Section(group) => Some((name, group)),
        _ => None,
    });
    let (name, group) = group.ok_or_else(|| Error::corrupt("has LVM metadata without a group"))?;
    let sequence = number(&group, "seqno").unwrap_or_default();
    Ok(Some((sequence, name, group)))
}

/// The logical volumes of all groups on `physical` volumes.
pub(super) fn logical(physical: &[Physical], budget: &Rc<Budget>) -> Vec<Logical> {
    let mut newest: Vec<&(u64, String, Section)> = Vec::new();
    for metadata in physical.iter().filter_map(|physical| physical.metadata.as_ref()) {
        match newest.iter_mut().find(|known| known.1 == metadata.1) {
            Some(known) if known.0 < metadata.0 => *known = metadata,
            Some(_) => {}
            None => newest.push(metadata),
        }
    }
    let mut found = Vec::new();
    for (_, name, group) in newest {
        let Some(volumes) = section(group, "logical_volumes") else { continue };
        for (volume, value) in volumes {
            let Value::Section(described) = value else { continue };
            // Parts of mirrors, pools and the like are not visible.
            let status = described.get("status");
            let is_visible = matches!(status, Some(Value::List(words)) if words.iter().any(|w| w.is("VISIBLE")));
            if is_visible && found.len() < MAX_LIST {
                let volume_found = assemble(group, described, physical, budget);
                let name = super::fields::clean(&format!("{name}/{volume}"));
                found.push(Logical { name, volume: volume_found });
            }
        }
    }
    found
}

/// Puts the segments of a logical volume together.
fn assemble(group: &Section, volume: &Section, physical: &[Physical], budget: &Rc<Budget>) -> Result<Volume> {
    let extent = number(group, "extent_size").and_then(|sectors| sectors.checked_mul(512)).filter(|size| *size > 0);
    let extent = extent.ok_or_else(|| Error::corrupt("its group has extents of no size"))?;
    let count = number(volume, "segment_count").unwrap_or_default();
    if count == 0 || count > MAX_SEGMENTS {
        return Err(Error::unsupported(format!("has {count} segments")));
    }
    let mut pieces = Vec::new();
    let mut start = 0_u64;
    for index in 1..=count {
        budget.step()?;
        let segment = section(volume, &format!("segment{index}"));
        let segment = segment.ok_or_else(|| Error::corrupt("lacks one of its segments"))?;
        let kind = match segment.get("type") {
            Some(Value::Text(kind)) => kind.as_str(),
            _ => "unknown",
        };
        if kind != "striped" {
            let kind = super::fields::clean(kind);
            return Err(Error::unsupported(format!("is an LVM volume of the type {kind}, which is not read")));
        }
        let len = number(segment, "extent_count").and_then(|count| count.checked_mul(extent));
        let len = len.filter(|len| *len > 0).ok_or_else(|| Error::corrupt("has a segment of no length"))?;
        let end = start.checked_add(len).ok_or_else(|| Error::corrupt("is too large"))?;
        pieces.push(Piece { start, len, place: stripes(group, segment, (extent, len), physical)? });
        start = end;
    }
    Ok(Volume::of(pieces, budget))
}

/// Where a segment of `len` bytes lies, in extents of `extent` bytes.
fn stripes(group: &Section, segment: &Section, (extent, len): (u64, u64), physical: &[Physical]) -> Result<Place> {
    let broken = || Error::corrupt("has a segment whose place is not told");
    let Some(Value::List(places)) = segment.get("stripes") else { return Err(broken()) };
    let mut stripes = Vec::new();
    for pair in places.as_chunks::<2>().0.iter().take(MAX_STRIPES) {
        let [Value::Text(name), Value::Number(first)] = pair else { return Err(broken()) };
        let described = section(group, "physical_volumes").and_then(|volumes| section(volumes, name));
        let described = described.ok_or_else(broken)?;
        let Some(Value::Text(id)) = described.get("id") else { return Err(broken()) };
        let id: Vec<u8> = id.bytes().filter(|byte| *byte != b'-').collect();
        let holder = physical.iter().find(|physical| physical.id[..] == id[..]);
        let holder = holder.ok_or_else(|| Error::unsupported("lies on a disk that is not here"))?;
        let start = number(described, "pe_start").and_then(|sectors| sectors.checked_mul(512)).ok_or_else(broken)?;
        let offset = first.checked_mul(extent).and_then(|at| at.checked_add(start)).ok_or_else(broken)?;
        let (disk, base) =
            holder.volume.only_range().ok_or_else(|| Error::unsupported("lies on another LVM volume"))?;
        // No byte of the segment lies behind the last number.
        let start = base.checked_add(offset).filter(|start| start.checked_add(len).is_some()).ok_or_else(broken)?;
        stripes.push((disk.clone(), start));
    }
    match stripes.as_slice() {
        [] => Err(broken()),
        [(disk, offset)] => Ok(Place::Linear { disk: disk.clone(), offset: *offset }),
        _ => {
            let unit = number(segment, "stripe_size").and_then(|sectors| sectors.checked_mul(512));
            let unit = unit.filter(|unit| *unit > 0).ok_or_else(broken)?;
            Ok(Place::Striped { unit, stripes })
        }
    }
}

fn section<'a>(of: &'a Section, name: &str) -> Option<&'a Section> {
    match of.get(name) {
        Some(Value::Section(section)) => Some(section),
        _ => None,
    }
}

fn number(of: &Section, name: &str) -> Option<u64> {
    match of.get(name) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    }
}
