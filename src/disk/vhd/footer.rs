// SPDX-License-Identifier: Apache-2.0
//! The footer: what kind of disk this is and how large.

use crate::conversion::{Reason, Remedy};
use crate::disk::fields::{array, be16, be32, be64};
use crate::disk::units::SECTOR;
use crate::disk::{Error, Region};

/// The footer's first eight bytes.
pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// Length of the footer and of its copy.
pub(super) const FOOTER: usize = 512;
/// Most zeros behind a fixed disk's footer that are looked through.
const MAX_PADDING: u64 = 16 << 20;

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
    /// Where what was read lies: at the end, or at the start where only the copy is whole.
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

/// Where the footer at the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There, at this byte.
    At(u64),
    /// At this byte, with so many zeros behind it.
    Padded(u64, u64),
    /// Nowhere: the copy at the start was read.
    Lost,
    /// At this byte, but damaged: the copy at the start was read.
    Damaged(u64),
}

impl End {
    /// The byte where the disk's data must have ended.
    pub(super) fn place(self, len: u64) -> u64 {
        match self {
            Self::At(place) | Self::Padded(place, _) | Self::Damaged(place) => place,
            Self::Lost => len,
        }
    }
}

impl Footer {
    /// Reads the footer and, of a dynamic disk, its copy: two readers must not see two disks. Where only the copy is
    /// whole, it is taken; the caller checks that the tables agree with it.
    pub(super) fn read(region: &Region) -> Result<(Self, End), Error> {
        let name = region.name();
        let mut head = [0; FOOTER];
        region.read_exact_at(&mut head, 0)?;
        let has_copy = &head[..8] == COOKIE;
        let Some((bytes, end)) = at_end(region, has_copy)? else {
            if has_copy {
                return Ok((Self::only_copy(region, &head)?, End::Lost));
            }
            return Err(Error::refuse(Reason::FormatMismatch, name, "is no VHD").at(region.len() - FOOTER as u64));
        };
        let place = end.place(region.len());
        let footer = match Self::parse(region, &bytes, place) {
            Err(error) if has_copy && !checksum_holds(&bytes, 64) => {
                return Ok((Self::only_copy(region, &head).map_err(|_| error)?, End::Damaged(place)));
            }
            footer => footer?,
        };
        match (footer.kind, has_copy) {
            (Kind::Fixed, false) => {}
            (Kind::Fixed, true) => {
                let message =
                    "is a fixed disk by its footer, but begins like a dynamic one: others would read another disk";
                let error = Error::refuse(Reason::FormatMismatch, name, message).at(0);
                return Err(error.with_remedy(Remedy::MakeDynamic));
            }
            (Kind::Dynamic, false) => {
                return Err(Error::corrupt(name, 0, "the footer's copy at the start is missing"));
            }
            (Kind::Dynamic, true) => {
                let copy = Self { place, ..Self::parse(region, &head, 0)? };
                // The suspended machine's mark may have been written to one of them alone.
                if (Self { saved_state: footer.saved_state, ..copy }) != footer {
                    return Err(Error::corrupt(name, 0, "the footer and its copy at the start differ"));
                }
            }
        }
        Ok((footer, end))
    }

    /// The copy of a dynamic disk's footer, where the footer itself can't be read.
    fn only_copy(region: &Region, head: &[u8; FOOTER]) -> Result<Self, Error> {
        let copy = Self::parse(region, head, 0)?;
        if copy.kind == Kind::Fixed {
            // Only dynamic disks have a copy.
            return Err(Error::corrupt(
                region.name(),
                0,
                "begins with the footer of a fixed disk, and has none at its end",
            ));
        }
        Ok(copy)
    }

    pub(super) fn parse(region: &Region, bytes: &[u8; 512], place: u64) -> Result<Self, Error> {
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
                let error = Error::refuse(Reason::UnsafeReference, name, message).at(place + 60);
                return Err(error.with_remedy(Remedy::MergeVhd));
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

/// The bytes at the end that look like a footer, and where they are. Behind a footer there may be zeros: some tools pad
/// files to whole blocks. A dynamic disk's is looked for at the end only, because its tables tell where it belongs.
fn at_end(region: &Region, is_dynamic: bool) -> Result<Option<([u8; FOOTER], End)>, Error> {
    let last = region.len() - FOOTER as u64;
    let mut bytes = [0; FOOTER];
    region.read_exact_at(&mut bytes, last)?;
    if &bytes[..8] == COOKIE {
        return Ok(Some((bytes, End::At(last))));
    }
    // Virtual PC wrote footers of 511 bytes before 2004: the last byte, which is reserved, is missing.
    if &bytes[1..9] == COOKIE {
        bytes.rotate_left(1);
        bytes[FOOTER - 1] = 0;
        return Ok(Some((bytes, End::At(last + 1))));
    }
    if is_dynamic {
        return Ok(None);
    }
    Ok(before_zeros(region)?.map(|(bytes, place)| (bytes, End::Padded(place, last - place))))
}

/// The footer of a fixed disk that is the last thing before the zeros at the file's end, and its place.
pub(super) fn before_zeros(region: &Region) -> Result<Option<([u8; FOOTER], u64)>, Error> {
    const CHUNK: u64 = 64 << 10;
    let mut end = region.len() / SECTOR * SECTOR;
    let lowest = end.saturating_sub(MAX_PADDING);
    let mut chunk = Vec::new();
    while end > lowest {
        let start = end.saturating_sub(CHUNK).max(lowest);
        chunk.resize(usize::try_from(end - start).expect("a chunk fits"), 0);
        region.read_exact_at(&mut chunk, start)?;
        if let Some(at) = chunk.chunks_exact(FOOTER).rposition(|sector| sector.iter().any(|&byte| byte != 0)) {
            let place = start + (at * FOOTER) as u64;
            let bytes: [u8; FOOTER] = array(&chunk, at * FOOTER);
            // The disk ends where its footer begins, so that no guest's own bytes are taken for one.
            let is_footer = &bytes[..8] == COOKIE
                && checksum_holds(&bytes, 64)
                && be32(&bytes, 60) == 2
                && be64(&bytes, 48).next_multiple_of(SECTOR) == place;
            return Ok(is_footer.then_some((bytes, place)));
        }
        end = start;
    }
    Ok(None)
}

/// Footer and header carry the one's complement of the sum of their bytes, without the checksum itself at `at`.
pub(super) fn checksum_holds(bytes: &[u8], at: usize) -> bool {
    let all: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = bytes[at..at + 4].iter().map(|&byte| u32::from(byte)).sum();
    !(all - own) == be32(bytes, at)
}
