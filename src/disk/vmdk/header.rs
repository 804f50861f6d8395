// SPDX-License-Identifier: Apache-2.0
//! The header of a sparse extent and its footer.

use std::ops::Range;

use crate::conversion::{Reason, Remedy};
use crate::disk::units::SECTOR;
use crate::disk::{Error, Region};

/// `KDMV`, as its bytes lie in the file.
const MAGIC: &[u8; 4] = b"KDMV";
/// Where in a header the capacity is.
pub(super) const CAPACITY_AT: u64 = 12;
/// Entries of a grain table; the format knows no other number.
pub(super) const TABLE_ENTRIES: u64 = TABLE_LEN as u64;
/// The same, as a length in memory.
pub(super) const TABLE_LEN: usize = 512;
/// `gdOffset` of a header whose true values are in the footer at the end of the file.
const GD_AT_END: u64 = u64::MAX;
/// A footer is the last sector but one, after its marker and before the end-of-stream marker.
const FOOTER_FROM_END: u64 = 3 * SECTOR;
/// Type of the marker before a footer.
const MARKER_FOOTER: u32 = 3;
/// Largest grain taken, in bytes: bounds what one grain needs in memory.
const MAX_GRAIN: u64 = 2 << 20;
/// Largest descriptor taken, in bytes.
const MAX_DESCRIPTOR: u64 = 1 << 20;

const FLAG_NEWLINES: u32 = 1;
const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const ALGORITHM_DEFLATE: u16 = 1;

/// What the header (or the footer, where it decides) says, in bytes and checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Guest bytes, above zero.
    pub capacity: u64,
    /// Bytes of a grain: a power of two from 4 KiB to 2 MiB.
    pub grain: u64,
    /// Offset of the grain directory, which lies within the file.
    pub directory: u64,
    /// Offset of the redundant grain directory, where there is one.
    pub redundant: Option<u64>,
    /// A redundant grain directory is announced where none can be.
    pub lost_redundant: bool,
    /// Offset and length of the embedded descriptor, where there is one.
    pub descriptor: Option<(u64, u64)>,
    /// Offset of the footer, where there is one.
    pub footer: Option<u64>,
    /// Grains are zlib streams behind markers.
    pub compressed: bool,
    /// A table entry of 1 means a grain of zeros.
    pub zero_grains: bool,
    /// The writer did not close the file.
    pub unclean: bool,
}

/// The fields as they are in the file.
#[derive(Debug, PartialEq, Eq)]
struct Fields {
    version: u32,
    flags: u32,
    capacity: u64,
    grain: u64,
    descriptor_offset: u64,
    descriptor_size: u64,
    table_entries: u32,
    redundant: u64,
    directory: u64,
    unclean: u8,
    newlines: [u8; 4],
    algorithm: u16,
}

impl Header {
    /// Reads and checks the header and, where it points there, the footer.
    pub(super) fn read(region: &Region) -> Result<Self, Error> {
        let first = Fields::read(region, 0)?;
        first.check(region, 0)?;
        let (fields, at) = if first.directory == GD_AT_END {
            let (footer, at) = read_footer(region)?;
            footer.check(region, at)?;
            if !footer.agrees_with(&first) {
                return Err(Error::corrupt(region.name(), at, "the footer contradicts the header"));
            }
            (footer, at)
        } else {
            (first, 0)
        };
        fields.resolve(region, at)
    }

    /// Entries of the grain directory.
    pub(super) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * TABLE_ENTRIES)
    }

    /// Where no grain and no table may lie: header, descriptor, directories, and the footer between its two markers.
    pub(super) fn reserved(&self) -> Vec<Range<u64>> {
        let directory = self.tables() * 4;
        let mut ranges = vec![0..SECTOR, self.directory..self.directory + directory];
        ranges.extend(self.redundant.filter(|at| *at != self.directory).map(|at| at..at + directory));
        ranges.extend(self.descriptor.map(|(at, len)| at..at + len));
        ranges.extend(self.footer.map(|at| at - SECTOR..at + 2 * SECTOR));
        ranges
    }
}

/// Bytes of `sectors`, as a place in the file.
pub(super) fn bytes(sectors: u32) -> u64 {
    u64::from(sectors) * SECTOR
}

/// Whether the announced footer is there; `None` where none is announced.
///
/// # Errors
/// As reading the header does.
pub(super) fn has_footer(region: &Region) -> Result<Option<bool>, Error> {
    if Fields::read(region, 0)?.directory != GD_AT_END {
        return Ok(None);
    }
    match read_footer(region) {
        Ok(_) => Ok(Some(true)),
        Err(error) if error.reason == Reason::Truncated => Ok(Some(false)),
        Err(error) => Err(error),
    }
}

fn read_footer(region: &Region) -> Result<(Fields, u64), Error> {
    let missing = || {
        Error::truncated(region.name(), region.len(), "the footer that the header announces is missing")
            .with_remedy(Remedy::CopyAgain)
    };
    let marker_at = region.len().checked_sub(FOOTER_FROM_END).ok_or_else(missing)?;
    let mut marker = [0; 16];
    region.read_exact_at(&mut marker, marker_at)?;
    let kind = u32::from_le_bytes(marker[12..16].try_into().expect("four bytes"));
    let size = u32::from_le_bytes(marker[8..12].try_into().expect("four bytes"));
    let mut magic = [0; 4];
    region.read_exact_at(&mut magic, marker_at + SECTOR)?;
    if kind != MARKER_FOOTER || size != 0 || &magic != MAGIC {
        return Err(missing());
    }
    let at = marker_at + SECTOR;
    Ok((Fields::read(region, at)?, at))
}

impl Fields {
    fn read(region: &Region, at: u64) -> Result<Self, Error> {
        let mut bytes = [0; 512];
        region.read_exact_at(&mut bytes, at)?;
        if &bytes[..4] != MAGIC {
            return Err(Error::corrupt(region.name(), at, "is no sparse VMDK: the magic number is missing"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Ok(Self {
            version: u32_at(4),
            flags: u32_at(8),
            capacity: u64_at(12),
            grain: u64_at(20),
            descriptor_offset: u64_at(28),
            descriptor_size: u64_at(36),
            table_entries: u32_at(44),
            redundant: u64_at(48),
            directory: u64_at(56),
            unclean: bytes[72],
            newlines: [bytes[73], bytes[74], bytes[75], bytes[76]],
            algorithm: u16::from_le_bytes([bytes[77], bytes[78]]),
        })
    }

    /// What must hold of a header and of a footer alike.
    fn check(&self, region: &Region, at: u64) -> Result<(), Error> {
        let unsupported =
            |message: String| Err(Error::refuse(Reason::UnsupportedFormat, region.name(), message).at(at));
        let corrupt = |offset: u64, message: &str| Err(Error::corrupt(region.name(), at + offset, message));
        if !(1..=3).contains(&self.version) {
            return unsupported(format!("is a VMDK of version {}, known are 1 to 3", self.version));
        }
        if self.capacity == 0 {
            return corrupt(CAPACITY_AT, "the capacity is 0");
        }
        if self.flags & FLAG_NEWLINES != 0 && &self.newlines != b"\n \r\n" {
            let error = Error::corrupt(region.name(), at + 73, "line ends were converted: the file was copied as text");
            return Err(error.with_remedy(Remedy::CopyAsBinary));
        }
        let grain = self.grain.saturating_mul(SECTOR);
        if !grain.is_power_of_two() || !(4096..=MAX_GRAIN).contains(&grain) {
            return corrupt(20, "the grain size is no power of two from 4 KiB to 2 MiB");
        }
        if u64::from(self.table_entries) != TABLE_ENTRIES {
            return unsupported(format!("has grain tables of {} entries, known is 512", self.table_entries));
        }
        if self.flags & FLAG_COMPRESSED != 0 {
            if self.algorithm != ALGORITHM_DEFLATE {
                return unsupported(format!("uses compression {}, known is 1 (deflate)", self.algorithm));
            }
            if self.flags & FLAG_MARKERS == 0 {
                return unsupported("has compressed grains without markers".to_owned());
            }
        }
        Ok(())
    }

    /// Whether a footer describes the same disk as its header.
    fn agrees_with(&self, header: &Self) -> bool {
        (self.version, self.flags, self.capacity, self.grain)
            == (header.version, header.flags, header.capacity, header.grain)
            && (self.descriptor_offset, self.descriptor_size) == (header.descriptor_offset, header.descriptor_size)
            && (self.table_entries, self.algorithm) == (header.table_entries, header.algorithm)
    }

    /// Turns sectors into bytes that lie within the file.
    fn resolve(&self, region: &Region, at: u64) -> Result<Header, Error> {
        let corrupt = |offset: u64, message: &str| Error::corrupt(region.name(), at + offset, message);
        let capacity = self
            .capacity
            .checked_mul(SECTOR)
            .ok_or_else(|| corrupt(CAPACITY_AT, "the capacity is beyond any disk's"))?;
        let grain = self.grain * SECTOR;
        let directory_len = capacity
            .div_ceil(grain * TABLE_ENTRIES)
            .checked_mul(4)
            .ok_or_else(|| corrupt(CAPACITY_AT, "the capacity is beyond any disk's"))?;
        let directory = |sectors: u64, field: u64, name: &str| {
            let offset = sectors.checked_mul(SECTOR).ok_or_else(|| corrupt(field, "an offset is beyond any file"))?;
            if offset < SECTOR {
                return Err(corrupt(field, "the grain directory lies in the header"));
            }
            if offset.checked_add(directory_len).is_none_or(|end| end > region.len()) {
                return Err(Error::truncated(region.name(), offset, format!("the file ends before the {name}")));
            }
            Ok(offset)
        };
        if self.directory == GD_AT_END {
            return Err(corrupt(56, "the footer has no grain directory"));
        }
        // Writers that keep no redundant tables set the flag and leave the offset empty.
        let has_redundant = self.flags & FLAG_REDUNDANT != 0 && self.redundant != 0 && self.redundant != GD_AT_END;
        Ok(Header {
            capacity,
            grain,
            directory: directory(self.directory, 56, "grain directory")?,
            // Where it can't be there, it is of no use; the caller warns.
            redundant: if has_redundant {
                directory(self.redundant, 48, "redundant grain directory").ok()
            } else {
                None
            },
            lost_redundant: has_redundant && directory(self.redundant, 48, "redundant grain directory").is_err(),
            descriptor: self.descriptor(region, at)?,
            footer: (at > 0).then_some(at),
            compressed: self.flags & FLAG_COMPRESSED != 0,
            // The specification has the flag from version 2 on; readers go by the flag alone.
            zero_grains: self.flags & FLAG_ZERO_GRAINS != 0,
            unclean: self.unclean != 0,
        })
    }

    fn descriptor(&self, region: &Region, at: u64) -> Result<Option<(u64, u64)>, Error> {
        if self.descriptor_offset == 0 {
            return Ok(None);
        }
        let (offset, len) = (self.descriptor_offset.checked_mul(SECTOR), self.descriptor_size.checked_mul(SECTOR));
        match (offset, len) {
            (Some(offset), Some(len)) if len <= MAX_DESCRIPTOR => {
                if offset.checked_add(len).is_none_or(|end| end > region.len()) {
                    return Err(Error::truncated(region.name(), offset, "the file ends before the descriptor"));
                }
                Ok(Some((offset, len)))
            }
            _ => Err(Error::corrupt(region.name(), at + 28, "the embedded descriptor is larger than 1 MiB")),
        }
    }
}
