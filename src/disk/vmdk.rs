//! Sparse VMDK extents: monolithicSparse, streamOptimized, and the parts of split sparse disks.
//!
//! Layout and constants: `VMware`'s "Virtual Disk Format 5.0", chapters "Hosted Sparse Extents" and "Stream-Optimized
//! Compressed Sparse Extents". The grain tables decide what the guest sees; where redundant tables or grain markers
//! tell another story the image is corrupt, for another reader might believe them.

mod embedded;
mod header;
mod tables;

use self::header::{Header, SECTOR};
use self::tables::Tables;
use super::{Error, Extent, Region};
use crate::conversion::Reason;

/// A sparse extent whose tables have been checked.
#[derive(Clone, Debug)]
pub struct Vmdk {
    region: Region,
    header: Header,
    /// Whether the region is a disk by itself and not a part of a split one.
    whole: bool,
    data_bytes: u64,
}

/// Opens a sparse VMDK that is a disk by itself: it has an embedded descriptor and refers to nothing else.
///
/// # Errors
/// `Corrupt`, `Truncated`, `UnsupportedFormat`, `UnsafeReference` (a parent, another extent) or `MissingMember` (a part
/// of a split disk without its descriptor).
pub fn open(region: &Region) -> Result<Vmdk, Error> {
    let header = Header::read(region)?;
    let Some((offset, len)) = header.descriptor else {
        let message = "is a part of a split disk: the descriptor that names it is missing";
        return Err(Error::refuse(Reason::MissingMember, region.name(), message));
    };
    embedded::check(region, offset, len)?;
    finish(region, header, true)
}

/// Opens one part of a split sparse disk (twoGbMaxExtentSparse). The caller has checked the descriptor that names it.
///
/// # Errors
/// As [`open`]; a descriptor in it is checked too, should there be one.
pub fn open_extent(region: &Region) -> Result<Vmdk, Error> {
    let header = Header::read(region)?;
    if let Some((offset, len)) = header.descriptor {
        embedded::check(region, offset, len)?;
    }
    finish(region, header, false)
}

fn finish(region: &Region, header: Header, whole: bool) -> Result<Vmdk, Error> {
    let data_bytes = Tables::new(region, &header).check()?;
    Ok(Vmdk { region: region.clone(), header, whole, data_bytes })
}

impl Vmdk {
    /// Size of the guest's disk, or of this part of it, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.header.capacity
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
    pub fn warnings(&self) -> Vec<String> {
        if self.header.unclean {
            return vec![format!("{}: was not closed cleanly by its writer", self.region.name())];
        }
        Vec::new()
    }

    /// The map. Grain tables and markers are read and checked while it is walked.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, Error>> + Send + '_ {
        Tables::new(&self.region, &self.header).extents()
    }
}

/// Bytes of `sectors`, as a place in the file.
fn bytes(sectors: u32) -> u64 {
    u64::from(sectors) * SECTOR
}

#[cfg(test)]
mod tests;
