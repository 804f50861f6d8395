// SPDX-License-Identifier: Apache-2.0
//! Where the bytes of a guest extent lie.

use std::ops::Range;

use super::Error;

/// A compressed extent is no longer than this, in guest bytes (the largest cluster of qcow2, grain of VMDK).
pub(crate) const MAX_COMPRESSED: u64 = 2 << 20;

/// The map of an image.
pub(super) type Extents<'a> = Box<dyn Iterator<Item = Result<Extent, Error>> + Send + 'a>;

/// A range of the guest's disk and where its bytes are. A map yields extents in guest order, without gaps or
/// overlaps, and together they cover the virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest byte range; never empty.
    pub guest: Range<u64>,
    pub at: Location,
}

impl Extent {
    /// Length in guest bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.guest.end - self.guest.start
    }

    /// The same extent of a disk that starts at guest byte `guest` and whose regions are counted from `file`.
    #[must_use]
    pub fn moved(self, guest: u64, file: usize) -> Self {
        let at = match self.at {
            Location::Zero => Location::Zero,
            Location::Stored { file: of, offset } => Location::Stored { file: of + file, offset },
            Location::Deflate { file: of, offset, len, zlib } => {
                Location::Deflate { file: of + file, offset, len, zlib }
            }
            Location::Zstd { file: of, offset, len } => Location::Zstd { file: of + file, offset, len },
            Location::Framed { file: of, offset, reach } => Location::Framed { file: of + file, offset, reach },
        };
        Self { guest: self.guest.start + guest..self.guest.end + guest, at }
    }

    /// What of it lies within `range`, which it meets; all of it where it is compressed.
    #[must_use]
    pub fn clipped(self, range: Range<u64>) -> Self {
        let guest = self.guest.start.max(range.start)..self.guest.end.min(range.end);
        match self.at {
            Location::Zero => Self { guest, at: Location::Zero },
            Location::Stored { file, offset } => {
                let offset = offset + (guest.start - self.guest.start);
                Self { guest, at: Location::Stored { file, offset } }
            }
            Location::Deflate { .. } | Location::Zstd { .. } | Location::Framed { .. } => self,
        }
    }

    /// Never true of an extent that a map yields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.guest.is_empty()
    }
}

/// How an extent's bytes are stored. `file` indexes the source's regions, `offset` and `len` are bytes in that region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// All zeros, stored nowhere.
    Zero,
    /// As they are.
    Stored { file: usize, offset: u64 },
    /// One deflate stream that inflates to the extent's length, or to `Image::unit` at most where the
    /// extent is the disk's last. With `zlib`, it has zlib's header and adler32 (RFC 1950) and is `len` bytes long; else it is raw
    /// (RFC 1951), and `len` is an upper bound that may pass the end of the file.
    Deflate { file: usize, offset: u64, len: u32, zlib: bool },
    /// Zstd frames (RFC 8878), one behind the other, that decode to the extent's length, with the same exception; `len` is
    /// an upper bound.
    Zstd { file: usize, offset: u64, len: u32 },
    /// One zlib stream as in `Deflate` in a frame: behind a marker at `offset`, which tells its length. Both lie within
    /// `reach` bytes, which are in the region and at least a marker long: an upper bound.
    Framed { file: usize, offset: u64, reach: u32 },
}
