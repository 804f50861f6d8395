//! Opens whatever was dropped: one disk, a descriptor with its extents, an OVF with its disks, an OVA.
//!
//! Everything that must be refused is refused here, before the first byte is copied; what is left are the digests of a
//! manifest, which are verified beside the copy.

mod group;
mod inspection;
mod split;

use std::fs::File;

pub use inspection::{DiskInspection, Inspection, MemberInspection, inspect};

use super::detect::{self, Content};
use super::image::{Image, Layout};
use super::manifest::Expected;
use super::{Error, Extent, Location, Region};
use crate::conversion::Reason;
use crate::conversion::options::ByteSize;
use crate::conversion::report::Hardware;

/// What an attempt may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest virtual size of a disk, in bytes.
    pub max_virtual_size: u64,
    /// Most bytes that inflated members may occupy, all together.
    pub max_scratch_bytes: u64,
}

/// Makes an empty file, open for reading and writing, that goes away by itself.
pub type Scratch<'a> = dyn FnMut() -> Result<File, Error> + 'a;

/// A source that was accepted.
#[derive(Clone, Debug)]
pub struct Source {
    /// Format and kind: `ova`, `ovf`, `vmdk streamOptimized`, `vhdx dynamic`.
    pub format: String,
    /// Its disks, in the order of the OVF; never empty.
    pub disks: Vec<SourceDisk>,
    /// What the OVF says of the machine. Its controllers name disks by [`SourceDisk::member`].
    pub hardware: Option<Hardware>,
    /// Digests to verify before anything is published (`manifest::verify`).
    pub digests: Vec<Expected>,
    /// What was odd but handled.
    pub warnings: Vec<String>,
    /// Every file that it consists of, for a person: base name and length in bytes.
    pub members: Vec<(String, u64)>,
}

impl Source {
    /// Guest bytes that its disks store, an upper bound of what an uncompressed copy writes; `None` where only a copy
    /// tells.
    #[must_use]
    pub fn data_bytes(&self) -> Option<u64> {
        self.disks.iter().map(|disk| disk.image.data_bytes()).sum()
    }
}

/// One disk of a source.
#[derive(Clone, Debug)]
pub struct SourceDisk {
    /// Base name of the file that holds it (its descriptor, if it has one); of a blank disk, the OVF's id of it.
    pub member: String,
    pub image: Image,
}

/// Opens `primary`, with `siblings` for what it names: the other members of its claim, none of them read unless named.
///
/// # Errors
/// What the formats' readers refuse, with their reasons; `TooLarge` beyond `limits`.
pub fn open(primary: &Region, siblings: &[Region], limits: &Limits, scratch: &mut Scratch) -> Result<Source, Error> {
    let name = primary.name();
    let content = detect::detect_region(primary)?;
    detect::check_extension(name, content)?;
    match content {
        Content::Tar => group::open_ova(primary, limits, scratch),
        Content::Xml => group::open_ovf(primary, siblings, limits, scratch),
        _ => {
            let named: Vec<_> = siblings.iter().map(|region| (region.name(), region)).collect();
            let image = open_disk(primary, name, content, &named, limits)?;
            let mut members = vec![(name.to_owned(), primary.len())];
            let extents = image.regions.iter().filter(|region| region.name() != name);
            members.extend(extents.map(|region| (region.name().to_owned(), region.len())));
            Ok(Source {
                format: image.kind().to_owned(),
                warnings: image.warnings(),
                disks: vec![SourceDisk { member: name.to_owned(), image }],
                hardware: None,
                digests: Vec::new(),
                members,
            })
        }
    }
}

/// Opens the disk in `region`, whose base name is `name`; `members` are the files beside it, for its extents.
fn open_disk(
    region: &Region,
    name: &str,
    content: Content,
    members: &[(&str, &Region)],
    limits: &Limits,
) -> Result<Image, Error> {
    let image = match content {
        Content::Raw => Image::raw(region)?,
        Content::VmdkSparse => Image::vmdk(region, limits.max_virtual_size)?,
        Content::VmdkText => split::open(region, name, members, limits)?,
        Content::Tar | Content::Xml => {
            let message = format!("holds {} where a disk belongs", content.as_str());
            return Err(Error::refuse(Reason::FormatMismatch, region.name(), message));
        }
        Content::Vhd => Image::vhd(region, limits.max_virtual_size)?,
        Content::Vdi => Image::vdi(region, limits.max_virtual_size)?,
        Content::Qcow2 => Image::qcow2(region, limits.max_virtual_size)?,
        Content::Vhdx => Image::vhdx(region, limits.max_virtual_size)?,
    };
    check_size(region.name(), image.virtual_size(), limits)?;
    Ok(image)
}

fn check_size(file: &str, size: u64, limits: &Limits) -> Result<(), Error> {
    if size == 0 {
        return Err(Error::refuse(Reason::Corrupt, file, "has a virtual size of 0"));
    }
    if size > limits.max_virtual_size {
        let message =
            format!("has a virtual size of {}, the limit is {}", ByteSize(size), ByteSize(limits.max_virtual_size));
        return Err(Error::refuse(Reason::TooLarge, file, message));
    }
    Ok(())
}

/// The whole of a text file of at most `most` bytes.
fn read_text(region: &Region, most: usize) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(region.len()).ok().filter(|len| *len <= most);
    let Some(len) = len else {
        let message = format!("is a text longer than {most} bytes");
        return Err(Error::refuse(Reason::Corrupt, region.name(), message));
    };
    let mut bytes = vec![0; len];
    region.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A disk of zeros, stored nowhere.
fn blank(size: u64, kind: &'static str) -> Image {
    let extents = vec![Extent { guest: 0..size, at: Location::Zero }];
    Image { regions: Vec::new(), layout: Layout::Listed { kind, extents } }
}

#[cfg(test)]
mod tests;
