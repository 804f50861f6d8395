// SPDX-License-Identifier: Apache-2.0
//! A raw disk in a stream: its bytes are known in their order only, and often its size only at its end.

use std::sync::{Arc, OnceLock};

use super::{Stream, Unpacking};
use crate::conversion::Reason;
use crate::conversion::options::ByteSize;
use crate::disk::control::CopyControl;
use crate::disk::detect::{self, Content, HEAD_BYTES, TAIL_BYTES};
use crate::disk::units::SECTOR_BYTES;
use crate::disk::{Error, Region};

/// Guest bytes of a piece: a whole number of clusters of every output.
pub(crate) const PIECE: usize = 1 << 20;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct PackedRaw {
    stream: Stream,
    kind: &'static str,
    /// Largest virtual size, in bytes.
    limit: u64,
    /// The size that the packing states.
    stated: Option<u64>,
    /// What the first pass over the whole stream found.
    found: Arc<OnceLock<Found>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    size: u64,
    warnings: Vec<String>,
}

impl PackedRaw {
    /// The disk in `stream`, of `limit` bytes at most.
    pub(in crate::disk) fn new(stream: Stream, limit: u64) -> Self {
        let kind = match (stream.packing(), stream.part.is_some()) {
            ("gzip", false) => "raw in gzip",
            ("xz", false) => "raw in xz",
            ("zstd", false) => "raw in zstd",
            ("bzip2", false) => "raw in bzip2",
            (_, false) => "raw in zip",
            ("gzip", true) => "raw in tar in gzip",
            ("xz", true) => "raw in tar in xz",
            ("zstd", true) => "raw in tar in zstd",
            ("bzip2", true) => "raw in tar in bzip2",
            (_, true) => "raw in tar in zip",
        };
        let stated = stream.size().and_then(|size| size.checked_next_multiple_of(SECTOR_BYTES as u64));
        Self { stream, kind, limit, stated, found: Arc::default() }
    }

    /// The packed bytes.
    pub(crate) fn region(&self) -> &Region {
        self.stream.region()
    }

    /// For people: format and packing.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Size of the guest's disk in bytes; `None` until it was unpacked once, where the packing does not state it.
    pub(crate) fn size(&self) -> Option<u64> {
        self.found.get().map(|found| found.size).or(self.stated)
    }

    /// No disk in it is larger.
    pub(crate) fn most(&self) -> u64 {
        self.size().unwrap_or(self.limit)
    }

    /// What a person should know, as far as it was unpacked.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.found.get().map(|found| found.warnings.clone()).unwrap_or_default()
    }

    /// Begins to read the disk.
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub(crate) fn pieces(&self) -> Result<Pieces<'_>, Error> {
        let unpacking = self.stream.open()?;
        Ok(Pieces { packed: self, unpacking, at: 0, head: Vec::new(), tail: Vec::new(), is_over: false })
    }

    /// Finds out the size by unpacking everything, for outputs that must know it first.
    ///
    /// # Errors
    /// As [`Pieces::next`].
    pub(crate) fn measure(&self, control: &CopyControl) -> Result<(), Error> {
        if self.size().is_some() {
            return Ok(());
        }
        control.expect(self.region().len());
        let mut pieces = self.pieces()?;
        let mut buffer = vec![0; PIECE];
        while pieces.next(&mut buffer)? > 0 {
            control.check(self.stream.name())?;
            control.advance(pieces.advanced());
        }
        control.advance(pieces.advanced());
        Ok(())
    }
}

/// The disk, piece by piece.
pub(crate) struct Pieces<'a> {
    packed: &'a PackedRaw,
    unpacking: Unpacking,
    at: u64,
    /// The disk's first and last bytes.
    head: Vec<u8>,
    tail: Vec<u8>,
    is_over: bool,
}

impl Pieces<'_> {
    /// Fills `buffer`, of [`PIECE`] bytes, with the disk's next bytes, and returns how many these are: less only at its
    /// end, always whole sectors. After 0 the size is known.
    ///
    /// # Errors
    /// `TooLarge` beyond the limit, `FormatMismatch` where the end shows that it is no raw disk, `Corrupt` where the
    /// packing stated another size, and as [`Unpacking::fill`].
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.is_over {
            return Ok(0);
        }
        let filled = self.unpacking.fill(buffer)?;
        if self.at == 0 {
            self.head = buffer[..filled.min(HEAD_BYTES)].to_vec();
        }
        self.tail.extend_from_slice(&buffer[filled.saturating_sub(TAIL_BYTES)..filled]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        let whole = filled.next_multiple_of(SECTOR_BYTES);
        buffer[filled..whole].fill(0);
        self.at += whole as u64;
        if self.at > self.packed.limit {
            let message = format!("has a virtual size above the limit of {}", ByteSize(self.packed.limit));
            return Err(Error::refuse(Reason::TooLarge, self.packed.stream.name(), message));
        }
        if filled < buffer.len() {
            self.is_over = true;
            self.end((whole - filled) as u64)?;
        }
        Ok(whole)
    }

    /// Packed bytes consumed since the last call.
    pub(crate) fn advanced(&mut self) -> u64 {
        self.unpacking.advanced()
    }

    /// Checks the whole, and keeps what was found; `padding` are the zeros that complete its last sector.
    fn end(&self, padding: u64) -> Result<(), Error> {
        let PackedRaw { stream, stated, found, .. } = self.packed;
        let (name, size) = (stream.name(), self.at);
        if size == 0 {
            return Err(Error::refuse(Reason::Truncated, name, "holds an empty file"));
        }
        let content = detect::detect(name, &self.head, &self.tail)?;
        if content != Content::Raw {
            let message = format!("holds {}, and not the raw disk that its name says", content.as_str());
            return Err(Error::refuse(Reason::FormatMismatch, name, message));
        }
        if stated.is_some_and(|stated| stated != size) {
            let message = format!("unpacks to {size} bytes, and states another number");
            return Err(Error::corrupt(name, stream.region().len(), message));
        }
        let mut warnings = Vec::new();
        if padding > 0 {
            let len = size - padding;
            warnings.push(format!("{name}: {len} bytes are no whole number of sectors, padded with zeros to {size}"));
        }
        warnings.extend(surplus_warning(name, self.unpacking.surplus()));
        // A second pass finds the same.
        let _ = found.set(Found { size, warnings });
        Ok(())
    }
}

/// The warning of bytes that don't belong to a stream.
pub(crate) fn surplus_warning(name: &str, surplus: u64) -> Option<String> {
    (surplus > 0).then(|| format!("{name}: {surplus} bytes behind the end of the packed data are ignored"))
}
