// SPDX-License-Identifier: Apache-2.0
//! One disk of a source: an image in a file, or what a descriptor makes of several.

use super::accepted::Limits;
use super::checks::check_size;
use super::split;
use crate::conversion::{Reason, Remedy};
use crate::disk::detect::Content;
use crate::disk::{Error, Image, Region};

/// Opens the disk in `region`, whose base name is `name`; `members` are the files beside it, for its extents.
pub(super) fn open_disk(
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
        Content::Zip | Content::Packed(_) => {
            let message = format!("is {}, and was not said to be packed", content.as_str());
            let refused = Error::refuse(Reason::UnsupportedFormat, region.name(), message);
            return Err(refused.with_remedy(Remedy::UnpackBeside));
        }
        Content::Tar | Content::Xml => {
            let message = format!("holds {} where a disk belongs", content.as_str());
            return Err(Error::refuse(Reason::FormatMismatch, region.name(), message));
        }
        Content::Vhd => Image::vhd(region, limits.max_virtual_size)?,
        Content::Vdi => Image::vdi(region, limits.max_virtual_size)?,
        Content::Qcow2 => Image::qcow2(region, limits.max_virtual_size)?,
        Content::Vhdx => Image::vhdx(region, limits.max_virtual_size)?,
        Content::Parallels => Image::parallels(region, limits.max_virtual_size)?,
    };
    check_size(region.name(), image.virtual_size(), limits)?;
    Ok(image)
}
