// SPDX-License-Identifier: Apache-2.0
//! The header and its extensions: what the image is made of, and what in it is refused.

use crate::conversion::{Reason, Remedy};
use crate::disk::fields::{be32, be64};
use crate::disk::{Error, Region};

/// The first four bytes.
pub(super) const MAGIC: &[u8; 4] = b"QFI\xFB";

/// Incompatible feature bits, by the specification.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Header extensions, by the specification.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const ENCRYPTION: u32 = 0x0537_BE77;
const DATA_FILE_NAME: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;
/// More extensions than any writer makes.
const MAX_EXTENSIONS: u32 = 256;

/// QEMU's own limit: an L1 table of 32 MiB reaches 2 EiB with clusters of 64 KiB.
const MAX_L1: u64 = 32 << 20;

const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;

/// What the header says, after all checks of its own fields.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Bytes of the guest's disk as stated.
    pub(super) size: u64,
    pub(super) l1_entries: u64,
    pub(super) l1_offset: u64,
    pub(super) refcount_offset: u64,
    pub(super) refcount_clusters: u64,
    pub(super) zstd: bool,
    pub(super) extended_l2: bool,
    pub(super) dirty: bool,
    pub(super) snapshots: u32,
    pub(super) bitmaps: bool,
}

impl Header {
    /// Reads and checks header and extensions.
    pub(super) fn read(region: &Region) -> Result<Self, Error> {
        let name = region.name();
        let mut bytes = [0; V3_LENGTH + 8];
        region.read_exact_at(&mut bytes[..V2_LENGTH], 0)?;
        if &bytes[..4] != MAGIC {
            return Err(Error::refuse(Reason::FormatMismatch, name, "is no qcow2").at(0));
        }
        let version = be32(&bytes, 4);
        let mut length = V2_LENGTH as u64;
        match version {
            2 => {}
            3 => {
                region.read_exact_at(&mut bytes[..V3_LENGTH], 0)?;
                length = u64::from(be32(&bytes, 100));
                if length > V3_LENGTH as u64 {
                    region.read_exact_at(&mut bytes, 0)?;
                }
            }
            _ => {
                let message = format!("qcow2 version {version} is not supported, only 2 and 3 are");
                return Err(Error::refuse(Reason::UnsupportedFormat, name, message).at(4));
            }
        }
        let header = Self::parse(name, &bytes, version, length)?;
        header.inside(region)?;
        header.extensions(region, length)
    }

    fn parse(name: &str, bytes: &[u8], version: u32, length: u64) -> Result<Self, Error> {
        let refuse = |reason, at, message: String| Err(Error::refuse(reason, name, message).at(at));
        let flatten = |at, message: &str| {
            let error = Error::refuse(Reason::UnsafeReference, name, message).at(at);
            Err(error.with_remedy(Remedy::FlattenQcow2))
        };
        if be64(bytes, 8) != 0 || be32(bytes, 16) != 0 {
            return flatten(8, "names a backing file: flatten it first");
        }
        let cluster_bits = be32(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return refuse(Reason::Corrupt, 20, format!("has clusters of 2^{cluster_bits} bytes"));
        }
        if be32(bytes, 32) != 0 {
            return refuse(Reason::Encrypted, 32, "is encrypted".into());
        }
        // Version 2 ends before these fields.
        let (features, order, compression) = match (version, length > V3_LENGTH as u64) {
            (2, _) => (0, 4, 0),
            (_, true) => (be64(bytes, 72), be32(bytes, 96), bytes[V3_LENGTH]),
            (_, false) => (be64(bytes, 72), be32(bytes, 96), 0),
        };
        if version == 3 && !(V3_LENGTH as u64..=1 << cluster_bits).contains(&length) {
            return refuse(Reason::Corrupt, 100, format!("has a header of {length} bytes"));
        }
        if features & DATA_FILE != 0 {
            return flatten(72, "keeps its data in another file");
        }
        if features & CORRUPT != 0 {
            let error = Error::corrupt(name, 72, "is marked as corrupt");
            return Err(error.with_remedy(Remedy::CheckQcow2));
        }
        let unknown = features & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2);
        if unknown != 0 {
            return refuse(Reason::UnsupportedFormat, 72, format!("needs unknown features {unknown:#x}"));
        }
        if order > 6 {
            return refuse(Reason::Corrupt, 96, format!("has refcounts of 2^{order} bits"));
        }
        if compression > 1 {
            return refuse(Reason::UnsupportedFormat, 104, format!("is compressed by unknown method {compression}"));
        }
        if (features & COMPRESSION_TYPE != 0) != (compression != 0) {
            return refuse(Reason::Corrupt, 104, "contradicts itself about its compression".into());
        }
        let extended_l2 = features & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return refuse(Reason::Corrupt, 20, format!("has subclusters in clusters of 2^{cluster_bits} bytes"));
        }
        Ok(Self {
            version,
            cluster_bits,
            size: be64(bytes, 24),
            l1_entries: u64::from(be32(bytes, 36)),
            l1_offset: be64(bytes, 40),
            refcount_offset: be64(bytes, 48),
            refcount_clusters: u64::from(be32(bytes, 56)),
            zstd: compression == 1,
            extended_l2,
            dirty: features & DIRTY != 0,
            snapshots: be32(bytes, 60),
            bitmaps: false,
        })
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Guest bytes that an L2 table, which is one cluster long, maps.
    pub(super) fn l2_bytes(&self) -> u64 {
        let entry = if self.extended_l2 { 16 } else { 8 };
        (self.cluster() / entry) << self.cluster_bits
    }

    /// Checks that tables begin on clusters behind the header and end inside the file.
    fn inside(&self, region: &Region) -> Result<(), Error> {
        let name = region.name();
        if self.l1_entries * 8 > MAX_L1 {
            let message = format!("has an L1 table of {} entries, more than 32 MiB", self.l1_entries);
            return Err(Error::corrupt(name, 36, message));
        }
        let tables = [
            ("L1 table", 40, self.l1_offset, self.l1_entries * 8),
            ("refcount table", 48, self.refcount_offset, self.refcount_clusters << self.cluster_bits),
        ];
        for (what, field, offset, len) in tables {
            if offset == 0 || offset % (1 << self.cluster_bits) != 0 {
                return Err(Error::corrupt(name, field, format!("has its {what} at byte {offset}")));
            }
            if offset.checked_add(len).is_none_or(|end| end > region.len()) {
                let message =
                    format!("needs {len} bytes of {what} at byte {offset}, but the file ends at {}", region.len());
                return Err(Error::truncated(name, offset, message));
            }
        }
        Ok(())
    }

    /// Walks the header extensions, which end within the first cluster.
    fn extensions(mut self, region: &Region, length: u64) -> Result<Self, Error> {
        let name = region.name();
        let end = 1_u64 << self.cluster_bits;
        let mut at = length.next_multiple_of(8);
        for _ in 0..MAX_EXTENSIONS {
            if at + 8 > end {
                return Ok(self);
            }
            let mut bytes = [0; 8];
            region.read_exact_at(&mut bytes, at)?;
            let refuse = |reason, message: &str| Err(Error::refuse(reason, name, message).at(at));
            let flatten = |message| {
                refuse(Reason::UnsafeReference, message).map_err(|error| error.with_remedy(Remedy::FlattenQcow2))
            };
            match be32(&bytes, 0) {
                END => return Ok(self),
                BACKING_FORMAT => return flatten("names the format of a backing file"),
                DATA_FILE_NAME => return flatten("names a data file"),
                ENCRYPTION => return refuse(Reason::Encrypted, "is encrypted"),
                BITMAPS => self.bitmaps = true,
                _ => {}
            }
            let len = u64::from(be32(&bytes, 4));
            if at + 8 + len > end {
                return Err(Error::corrupt(name, at, format!("has a header extension of {len} bytes")));
            }
            at += 8 + len.next_multiple_of(8);
        }
        Err(Error::corrupt(name, at, format!("has more than {MAX_EXTENSIONS} header extensions")))
    }
}
