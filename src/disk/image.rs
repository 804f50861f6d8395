// SPDX-License-Identifier: Apache-2.0
//! A disk image of any format: the files it lies in and how they make up the guest's disk.

use std::ops::Range;

use super::control::CopyControl;
use super::extent::{Extents, MAX_COMPRESSED};
use super::holes::without_holes;
use super::packed::PackedRaw;
use super::parallels::Parallels;
use super::qcow2::Qcow2;
use super::raw::Raw;
use super::vdi::Vdi;
use super::vhd::Vhd;
use super::vhdx::Vhdx;
use super::vmdk::Vmdk;
use super::{Error, Extent, Location, Region, raw, vmdk};
use crate::conversion::Reason;

/// One guest disk, opened and checked.
#[derive(Clone, Debug)]
pub struct Image {
    /// The files that [`Location`]s number.
    pub regions: Vec<Region>,
    pub reader: Reader,
}

/// The reader of its format, which knows how the regions make up the disk.
#[derive(Clone, Debug)]
pub enum Reader {
    Raw(Raw),
    Qcow2(Qcow2),
    Vdi(Vdi),
    Vhd(Vhd),
    Vhdx(Vhdx),
    Parallels(Parallels),
    /// A sparse VMDK extent: monolithicSparse, streamOptimized, or a part of a split disk.
    Vmdk(Vmdk),
    /// Extents as a descriptor lists them, in guest order, without gaps.
    Listed {
        kind: &'static str,
        extents: Vec<Extent>,
    },
    /// A raw disk in a packed stream: it has no map, and is read from its start to its end.
    Packed(PackedRaw),
    /// Disks one behind the other, each with its own regions.
    Joined {
        kind: &'static str,
        parts: Vec<Image>,
    },
}

impl Image {
    /// A raw image.
    pub fn raw(region: &Region) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Raw(raw::open(region)?)))
    }

    /// A monolithicSparse or streamOptimized VMDK whose virtual size is at most `limit` bytes.
    pub fn vmdk(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Vmdk(vmdk::open(region, limit)?)))
    }

    /// A qcow2 whose virtual size is at most `limit` bytes.
    pub fn qcow2(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Qcow2(Qcow2::open(region, limit)?)))
    }

    /// A VDI whose virtual size is at most `limit` bytes.
    pub fn vdi(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Vdi(Vdi::open(region, limit)?)))
    }

    /// A VHD whose virtual size is at most `limit` bytes.
    pub fn vhd(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Vhd(Vhd::open(region, limit)?)))
    }

    /// A VHDX whose virtual size is at most `limit` bytes.
    pub fn vhdx(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Vhdx(Vhdx::open(region, limit)?)))
    }

    /// A Parallels disk whose virtual size is at most `limit` bytes.
    pub fn parallels(region: &Region, limit: u64) -> Result<Self, Error> {
        Ok(Self::of(region, Reader::Parallels(Parallels::open(region, limit)?)))
    }

    /// A raw disk in a packed stream.
    #[must_use]
    pub fn packed(packed: PackedRaw) -> Self {
        Self { regions: vec![packed.region().clone()], reader: Reader::Packed(packed) }
    }

    fn of(region: &Region, reader: Reader) -> Self {
        Self { regions: vec![region.clone()], reader }
    }

    /// Joins disks, one behind the other, to one disk. Locations count the parts' regions in order.
    #[must_use]
    pub fn joined(kind: &'static str, parts: Vec<Self>) -> Self {
        let regions = parts.iter().flat_map(|part| part.regions.iter().cloned()).collect();
        Self { regions, reader: Reader::Joined { kind, parts } }
    }

    /// Whether only a copy reads all of it: it is a packed stream.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        matches!(self.reader, Reader::Packed(_))
    }

    /// Size of the guest's disk in bytes; `None` where only a copy finds out.
    #[must_use]
    pub fn known_size(&self) -> Option<u64> {
        match &self.reader {
            Reader::Packed(packed) => packed.size(),
            _ => Some(self.virtual_size()),
        }
    }

    /// Size of the guest's disk in bytes. Where only a copy finds it out, all of it is unpacked for that.
    ///
    /// # Errors
    /// As unpacking does, `Cancelled`.
    pub fn measure(&self, control: &CopyControl) -> Result<u64, Error> {
        if let Reader::Packed(packed) = &self.reader {
            packed.measure(control)?;
        }
        Ok(self.virtual_size())
    }

    /// The largest size that the guest's disk may turn out to have, in bytes.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        match &self.reader {
            Reader::Packed(packed) => packed.most(),
            _ => self.virtual_size(),
        }
    }

    /// Bytes that a copy counts as its progress: the guest's, or the packed ones.
    #[must_use]
    pub fn work(&self) -> u64 {
        match &self.reader {
            Reader::Packed(packed) => packed.region().len(),
            _ => self.virtual_size(),
        }
    }

    /// Size of the guest's disk in bytes; 0 as long as only a copy finds out ([`Image::known_size`]).
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        match &self.reader {
            Reader::Packed(packed) => packed.size().unwrap_or(0),
            Reader::Raw(raw) => raw.virtual_size(),
            Reader::Qcow2(qcow2) => qcow2.virtual_size(),
            Reader::Vdi(vdi) => vdi.virtual_size(),
            Reader::Vhd(vhd) => vhd.virtual_size(),
            Reader::Vhdx(vhdx) => vhdx.virtual_size(),
            Reader::Parallels(parallels) => parallels.virtual_size(),
            Reader::Vmdk(vmdk) => vmdk.virtual_size(),
            Reader::Listed { extents, .. } => extents.last().map_or(0, |last| last.guest.end),
            Reader::Joined { parts, .. } => parts.iter().map(Self::virtual_size).sum(),
        }
    }

    /// What it is, in words for a person.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.reader {
            Reader::Raw(_) => "raw",
            Reader::Qcow2(qcow2) => qcow2.kind(),
            Reader::Vdi(vdi) => vdi.kind(),
            Reader::Vhd(vhd) => vhd.kind(),
            Reader::Vhdx(vhdx) => vhdx.kind(),
            Reader::Packed(packed) => packed.kind(),
            Reader::Parallels(parallels) => parallels.kind(),
            Reader::Vmdk(vmdk) => vmdk.kind(),
            Reader::Listed { kind, .. } | Reader::Joined { kind, .. } => kind,
        }
    }

    /// Most bytes that the disk's last compressed extent decodes to: a whole grain or cluster, within which the disk may
    /// end.
    #[must_use]
    pub fn unit(&self) -> usize {
        let unit = match &self.reader {
            Reader::Qcow2(qcow2) => qcow2.cluster(),
            Reader::Vmdk(vmdk) => vmdk.grain(),
            // Only tests list compressed extents, and none of theirs is larger.
            Reader::Listed { .. } => MAX_COMPRESSED,
            Reader::Raw(_)
            | Reader::Vdi(_)
            | Reader::Vhd(_)
            | Reader::Vhdx(_)
            | Reader::Parallels(_)
            | Reader::Packed(_) => 0,
            Reader::Joined { parts, .. } => return parts.last().map_or(0, Self::unit),
        };
        usize::try_from(unit).expect("2 MiB at most")
    }

    /// Guest bytes that are stored, an upper bound of what an uncompressed copy writes; `None` where only a copy
    /// finds out.
    #[must_use]
    pub fn data_bytes(&self) -> Option<u64> {
        match &self.reader {
            Reader::Raw(raw) => raw.data_bytes(),
            Reader::Qcow2(qcow2) => Some(qcow2.data_bytes()),
            Reader::Vdi(vdi) => Some(vdi.data_bytes()),
            Reader::Vhd(vhd) => Some(vhd.data_bytes()),
            Reader::Vhdx(vhdx) => Some(vhdx.data_bytes()),
            Reader::Packed(_) => None,
            Reader::Parallels(parallels) => Some(parallels.data_bytes()),
            Reader::Vmdk(vmdk) => Some(vmdk.data_bytes()),
            Reader::Listed { extents, .. } => {
                Some(extents.iter().filter(|extent| extent.at != Location::Zero).map(Extent::len).sum())
            }
            Reader::Joined { parts, .. } => parts.iter().map(Self::data_bytes).sum(),
        }
    }

    /// What a person should know about it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        match &self.reader {
            Reader::Raw(raw) => raw.warnings().to_vec(),
            Reader::Qcow2(qcow2) => qcow2.warnings().to_vec(),
            Reader::Vdi(vdi) => vdi.warnings().to_vec(),
            Reader::Vhd(vhd) => vhd.warnings().to_vec(),
            Reader::Vhdx(vhdx) => vhdx.warnings().to_vec(),
            Reader::Packed(packed) => packed.warnings(),
            Reader::Parallels(parallels) => parallels.warnings().to_vec(),
            Reader::Vmdk(vmdk) => vmdk.warnings().to_vec(),
            Reader::Listed { .. } => Vec::new(),
            Reader::Joined { parts, .. } => parts.iter().flat_map(Self::warnings).collect(),
        }
    }

    /// The map, in guest order, without gaps, exactly up to the virtual size. Tables are read while it is walked; holes of
    /// its files are zeros.
    #[must_use]
    pub fn extents(&self) -> Extents<'_> {
        let map: Extents<'_> = match &self.reader {
            Reader::Raw(raw) => Box::new(raw.extents()),
            Reader::Qcow2(qcow2) => Box::new(qcow2.extents()),
            Reader::Vdi(vdi) => Box::new(vdi.extents()),
            Reader::Vhd(vhd) => Box::new(vhd.extents()),
            Reader::Vhdx(vhdx) => Box::new(vhdx.extents()),
            Reader::Parallels(parallels) => Box::new(parallels.extents()),
            Reader::Vmdk(vmdk) => Box::new(vmdk.extents()),
            Reader::Listed { extents, .. } => Box::new(extents.iter().cloned().map(Ok)),
            Reader::Joined { parts, .. } => return Box::new(joined(parts)),
            Reader::Packed(packed) => {
                let message = "is packed, and was asked for a map";
                return Box::new(std::iter::once(Err(Error::refuse(
                    Reason::Internal,
                    packed.region().name(),
                    message,
                ))));
            }
        };
        Box::new(without_holes(map, &self.regions))
    }

    /// The part of the map that covers `range`: whole extents, the first of which may begin before it and the last end
    /// behind it. Costs what the range costs, not what lies before it.
    #[must_use]
    pub fn extents_within(&self, range: &Range<u64>) -> Extents<'_> {
        let (start, end) = (range.start, range.end);
        let map: Extents<'_> = match &self.reader {
            Reader::Raw(raw) => Box::new(raw.extents()),
            Reader::Qcow2(qcow2) => Box::new(qcow2.extents_within(range)),
            Reader::Vdi(vdi) => Box::new(vdi.extents_within(range)),
            Reader::Vhd(vhd) => vhd.extents_within(range),
            Reader::Vhdx(vhdx) => Box::new(vhdx.extents_within(range)),
            Reader::Parallels(parallels) => Box::new(parallels.extents_within(range)),
            Reader::Vmdk(vmdk) => Box::new(vmdk.extents_within(range)),
            Reader::Listed { extents, .. } => Box::new(extents.iter().cloned().map(Ok)),
            Reader::Joined { parts, .. } => return joined_within(parts, range),
            // An error of its own.
            Reader::Packed(_) => return self.extents(),
        };
        let reaches = move |extent: &Result<Extent, Error>| {
            extent.as_ref().map_or(true, |extent| extent.guest.end > start && extent.guest.start < end)
        };
        let clipped = map.filter(reaches).map(move |extent| extent.map(|extent| extent.clipped(start..end)));
        Box::new(without_holes(clipped, &self.regions))
    }
}

fn joined_within<'a>(parts: &'a [Image], range: &Range<u64>) -> Extents<'a> {
    let (mut found, mut guest, mut file): (Vec<Extents<'a>>, _, _) = (Vec::new(), 0, 0);
    for part in parts {
        let size = part.virtual_size();
        let within = range.start.max(guest)..range.end.min(guest + size);
        if !within.is_empty() {
            let map = part.extents_within(&(within.start - guest..within.end - guest));
            found.push(Box::new(map.map(move |extent| extent.map(|extent| extent.moved(guest, file)))));
        }
        guest += size;
        file += part.regions.len();
    }
    Box::new(found.into_iter().flatten())
}

fn joined(parts: &[Image]) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
    let starts = parts.iter().scan((0, 0), |(guest, file), part| {
        let start = (*guest, *file);
        *guest += part.virtual_size();
        *file += part.regions.len();
        Some((part, start))
    });
    starts.flat_map(|(part, (guest, file))| {
        part.extents().map(move |extent| extent.map(|extent| extent.moved(guest, file)))
    })
}
