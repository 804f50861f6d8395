// SPDX-License-Identifier: Apache-2.0
//! The footer: what kind of disk this is and how large.

use crate::conversion::Reason;
use crate::disk::fields::{array, be16, be32, be64};
use crate::disk::{Error, Region};

/// The footer's first eight bytes.
pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// Length of the footer and of its copy.
pub(super) const FOOTER: usize = 512;

/// 2,040 GiB: what 32-bit sector numbers of 2 MiB blocks reach, by the specification.
const MAX_SIZE: u64 = 2040 << 30;
/// The largest geometry that the fields express: cylinders, heads, sectors per track.
const MAX_GEOMETRY: (u16, u8, u8) = (65535, 16, 255);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
}

/// What the footer says, after all checks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Where it lies: the last 512 bytes.
    pub(super) place: u64,
    pub(super) kind: Kind,
    /// Place of the dynamic disk header.
    pub(super) data_offset: u64,
    pub(super) saved_state: bool,
    creator: [u8; 4],
    current_size: u64,
    geometry: (u16, u8, u8),
    unique_id: [u8; 16],
}

impl Footer {
    /// Reads the footer and, of a dynamic disk, its copy: two readers must not see two disks.
    pub(super) fn read(region: &Region) -> Result<Self, Error> {
        let name = region.name();
        let mut bytes = [0; FOOTER];
        region.read_exact_at(&mut bytes, 0)?;
        let head = bytes;
        let place = region.len() - FOOTER as u64;
        region.read_exact_at(&mut bytes, place)?;
        if &bytes[..8] != COOKIE {
            return Err(if &head[..8] == COOKIE {
                Error::truncated(name, place, "its end, with the footer, is missing")
            } else {
                Error::refuse(Reason::FormatMismatch, name, "is no VHD").at(place)
            });
        }
        let footer = Self::parse(region, &bytes, place)?;
        if footer.kind == Kind::Dynamic {
            if &head[..8] != COOKIE {
                return Err(Error::corrupt(name, 0, "the footer's copy at the start is missing"));
            }
            let copy = Self { place, ..Self::parse(region, &head, 0)? };
            // The suspended machine's mark may have been written to one of them alone.
            if (Self { saved_state: footer.saved_state, ..copy }) != footer {
                return Err(Error::corrupt(name, 0, "the footer and its copy at the start differ"));
            }
        }
        Ok(footer)
    }

    fn parse(region: &Region, bytes: &[u8; 512], place: u64) -> Result<Self, Error> {
        let name = region.name();
        if !checksum_holds(bytes, 64) {
            return Err(Error::corrupt(name, place, "the footer's checksum is wrong"));
        }
        if be32(bytes, 12) >> 16 != 1 {
            let message = format!("has a footer of version {}", be32(bytes, 12) >> 16);
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(place + 12));
        }
        let kind = match be32(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => {
                let message = "is a differencing disk that needs its parent: merge it first";
                return Err(Error::refuse(Reason::UnsafeReference, name, message).at(place + 60));
            }
            other => return Err(Error::corrupt(name, place + 60, format!("has the unknown disk type {other}"))),
        };
        let footer = Self {
            place,
            kind,
            data_offset: be64(bytes, 16),
            saved_state: bytes[84] != 0,
            creator: array(bytes, 28),
            current_size: be64(bytes, 48),
            geometry: (be16(bytes, 56), bytes[58], bytes[59]),
            unique_id: array(bytes, 68),
        };
        if footer.current_size == 0 || footer.disk_size() > MAX_SIZE {
            let message = format!("has a disk of {} bytes; a VHD holds 1 byte to 2,040 GiB", footer.current_size);
            return Err(Error::corrupt(name, place + 48, message));
        }
        Ok(footer)
    }

    /// Virtual PC computes the disk from its geometry, all others take the current size. A geometry at its maximum
    /// says nothing, and one larger than the current size would reach beyond the data.
    pub(super) fn disk_size(&self) -> u64 {
        let (cylinders, heads, sectors) = self.geometry;
        let by_geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * 512;
        let size = self.current_size;
        if &self.creator == b"vpc " && self.geometry != MAX_GEOMETRY && (1..=size).contains(&by_geometry) {
            return by_geometry;
        }
        size.checked_next_multiple_of(512).unwrap_or(u64::MAX)
    }
}

/// Footer and header carry the one's complement of the sum of their bytes, without the checksum itself at `at`.
pub(super) fn checksum_holds(bytes: &[u8], at: usize) -> bool {
    let all: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = bytes[at..at + 4].iter().map(|&byte| u32::from(byte)).sum();
    !(all - own) == be32(bytes, at)
}
