// SPDX-License-Identifier: Apache-2.0
//! Disks that are compressed as a whole inside an appliance: inflated once, into bounded scratch.

use std::fs::File;

use super::detect::Packing;
use super::packed::{self, Stream, Unpacked};
use super::{Error, Region};
use crate::conversion::Reason;

/// How much a gzip may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Most bytes in all.
    pub length: u64,
    /// Most bytes that aren't zeros, and so occupy the scratch volume.
    pub stored: u64,
}

/// Inflates every gzip member of `region` into `scratch`, an empty file; their checksums are verified (RFC 1952). Gives
/// the inflated bytes, and how many of them are stored.
///
/// # Errors
/// `TooLarge` beyond `bounds`, `Corrupt` and `Truncated`, and as reading and writing do.
pub(super) fn inflate(region: &Region, scratch: File, bounds: Bounds) -> Result<(Region, u64), Error> {
    let Bounds { length, stored } = bounds;
    let within = packed::Bounds { length, stored, enough: u64::MAX };
    let unpacked = packed::unpack(&Stream::of(region, Packing::Gzip), scratch, within);
    let Unpacked { region: inflated, stored, surplus, .. } = unpacked.map_err(|error| match error.reason {
        Reason::OutputFull if error.needed_bytes.is_some() => {
            let message = format!("is a gzip that occupies more than {} bytes", bounds.stored);
            Error::refuse(Reason::TooLarge, region.name(), message)
        }
        _ => error,
    })?;
    if surplus > 0 {
        let message = format!("is a gzip with {surplus} bytes behind its end");
        return Err(Error::corrupt(region.name(), region.len() - surplus, message));
    }
    Ok((inflated, stored))
}

#[cfg(test)]
mod tests;
