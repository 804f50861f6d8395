// SPDX-License-Identifier: Apache-2.0
//! Sparse VMDK extents: monolithicSparse, streamOptimized, and the parts of split sparse disks.
//!
//! Layout and constants: `VMware`'s "Virtual Disk Format 5.0", chapters "Hosted Sparse Extents" and "Stream-Optimized
//! Compressed Sparse Extents". The grain tables decide what the guest sees. Where redundant tables or grain markers
//! contradict them, the image is corrupt, because another reader might believe those.

mod header;
mod reserved;
mod tables;

use std::ops::Range;

use self::header::{CAPACITY_AT, Header};
use self::reserved::Reserved;
use self::tables::{Checked, Tables};
use super::{Error, Extent, Region, descriptor};
use crate::conversion::options::ByteSize;
use crate::conversion::{Reason, Remedy};

/// To a multiple of so many bytes VirtualBox enlarges the last part of a split disk.
const PART_ALIGNMENT: u64 = 64 << 10;

/// A sparse extent whose tables have been checked.
#[derive(Clone, Debug)]
pub struct Vmdk {
    region: Region,
    header: Header,
    reserved: Reserved,
    /// Whether the region is a disk by itself and not a part of a split one.
    whole: bool,
    data_bytes: u64,
    warnings: Vec<String>,
}

/// Opens a sparse VMDK that is a disk of `limit` bytes at most by itself: it has an embedded descriptor and refers to
/// nothing else.
///
/// # Errors
/// `Corrupt`, `Truncated`, `TooLarge`, `UnsupportedFormat`, `UnsafeReference` (a parent, another extent) or `MissingMember` (a part
/// of a split disk without its descriptor).
pub(super) fn open(region: &Region, limit: u64) -> Result<Vmdk, Error> {
    let header = Header::read(region)?;
    // Before the tables are walked: that may take as long as the disk is large.
    if header.capacity > limit {
        let message = format!("has a virtual size of {}, the limit is {}", ByteSize(header.capacity), ByteSize(limit));
        return Err(Error::refuse(Reason::TooLarge, region.name(), message).at(CAPACITY_AT));
    }
    let Some((offset, text)) = read_descriptor(region, &header)? else {
        let message = "is a part of a split disk: the descriptor that names it is missing";
        return Err(Error::refuse(Reason::MissingMember, region.name(), message));
    };
    check_descriptor(region, offset, &text)?;
    with_header(region, header, true)
}

/// Whether the footer that closes a stream is there; `None` where the tables lie in front, and the end tells nothing.
pub(super) fn has_end(region: &Region) -> Option<bool> {
    header::has_footer(region).ok().flatten()
}

/// Opens one part of a split sparse disk (twoGbMaxExtentSparse). The caller has checked the descriptor that names it and
/// says that it has `size` bytes. VirtualBox makes the last part larger: what is behind `size` is not the disk's.
///
/// # Errors
/// As [`open`]; a part that is smaller or that has a descriptor of its own is `Corrupt`, a compressed one
/// `UnsupportedFormat`.
pub(super) fn open_extent(region: &Region, size: u64) -> Result<Vmdk, Error> {
    let header = Header::read(region)?;
    if header.capacity < size {
        let message = format!("has {} bytes of a disk, its descriptor says {size}", header.capacity);
        return Err(Error::corrupt(region.name(), CAPACITY_AT, message));
    }
    if let Some((offset, _)) = read_descriptor(region, &header)? {
        return Err(Error::corrupt(region.name(), offset, "a part of a split disk has a descriptor of its own"));
    }
    if header.compressed {
        let message =
            "is a compressed part of a split disk, which no writer makes: convert it to streamOptimized first";
        return Err(Error::refuse(Reason::UnsupportedFormat, region.name(), message).with_remedy(Remedy::InMessage));
    }
    let capacity = header.capacity;
    let mut part = with_header(region, Header { capacity: size, ..header }, false)?;
    if capacity > size.next_multiple_of(PART_ALIGNMENT) {
        let name = region.name();
        part.warnings.push(format!("{name}: has {capacity} bytes of a disk, of which its descriptor takes {size}"));
    }
    Ok(part)
}

fn with_header(region: &Region, header: Header, whole: bool) -> Result<Vmdk, Error> {
    let mut warnings = Vec::new();
    if header.unclean {
        warnings.push(format!("{}: was not closed cleanly by its writer", region.name()));
    }
    let Checked { data: data_bytes, stale, reserved } = tables::check(region, &header)?;
    if stale > 0 || header.lost_redundant {
        let name = region.name();
        warnings.push(format!("{name}: its redundant grain tables are stale; they were left out"));
    }
    Ok(Vmdk { region: region.clone(), header, reserved, whole, data_bytes, warnings })
}

impl Vmdk {
    /// Size of the guest's disk, or of this part of it, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.header.capacity
    }

    /// Bytes of a grain.
    pub(super) fn grain(&self) -> u64 {
        self.header.grain
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (self.whole, self.header.compressed) {
            (true, true) => "vmdk streamOptimized",
            (true, false) => "vmdk monolithicSparse",
            (false, _) => "vmdk sparse extent",
        }
    }

    /// Guest bytes in grains that exist: an upper bound of what a copy writes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// What a person should know about it.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The map. Grain tables are read and checked while it is walked, markers with the grains behind them.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
        Tables::new(&self.region, &self.header, &self.reserved).extents()
    }

    /// The grains that `range` meets.
    pub(super) fn extents_within(
        &self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, Error>> + Send + use<'_> {
        Tables::new(&self.region, &self.header, &self.reserved).extents_within(range)
    }
}

/// The embedded descriptor and where it lies. QEMU leaves room for one in the parts of a split disk, too, filled with
/// zeros: that counts as none.
fn read_descriptor(region: &Region, header: &Header) -> Result<Option<(u64, Vec<u8>)>, Error> {
    let Some((offset, len)) = header.descriptor else { return Ok(None) };
    let mut bytes = vec![0; usize::try_from(len).expect("the header bounds it to 1 MiB")];
    region.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.iter().any(|byte| *byte != 0).then_some((offset, bytes)))
}

/// Checks that the descriptor `text` at `offset` says that this file is the whole disk.
fn check_descriptor(region: &Region, offset: u64, text: &[u8]) -> Result<(), Error> {
    let descriptor = descriptor::vmdk::parse(region.name(), text).map_err(|e| e.at(offset))?;
    if descriptor.create_type.is_embedded() {
        return Ok(());
    }
    let message =
        format!("its descriptor tells createType {}, which has files beside it", descriptor.create_type.as_str());
    Err(Error::refuse(Reason::UnsafeReference, region.name(), message).at(offset))
}

#[cfg(test)]
mod tests;
