// SPDX-License-Identifier: Apache-2.0
//! What disks of every kind share: the size limit, texts that are read whole, and blank disks.

use super::accepted::Limits;
use crate::conversion::Reason;
use crate::conversion::options::ByteSize;
use crate::disk::image::Reader;
use crate::disk::{Error, Extent, Image, Location, Region};

pub(super) fn check_size(file: &str, size: u64, limits: &Limits) -> Result<(), Error> {
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
pub(super) fn read_text(region: &Region, most: usize) -> Result<Vec<u8>, Error> {
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
pub(super) fn blank(size: u64, kind: &'static str) -> Image {
    let extents = vec![Extent { guest: 0..size, at: Location::Zero }];
    Image { regions: Vec::new(), reader: Reader::Listed { kind, extents } }
}
