// SPDX-License-Identifier: Apache-2.0
//! The headers of a tar, one after the other, bounded, from a file or from a stream.
//!
//! Format: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar's manual, "Basic Tar
//! Format", for the type flags D, L, K, S, M and V.

use super::sparse::{MAX_SEGMENTS, Sparse};
use crate::conversion::{Reason, Remedy};
use crate::disk::segments::Segments;
use crate::disk::tar_header::{self, is_summed, number};
use crate::disk::{Error, Region};

const BLOCK: u64 = tar_header::BLOCK as u64;

/// Longest extended header or long name. One holds the map of a sparse member of the PAX formats 0.0 and 0.1.
const MAX_EXTENSION: u64 = 1 << 20;

/// Most headers of all kinds: each member of an OVA may have two extensions before it, and a disk may be cut in a
/// thousand parts.
const MAX_HEADERS: u32 = 4096;

/// A member with bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As written, unchecked; bytes that are no UTF-8 are U+FFFD.
    pub name: String,
    /// Offset of its header.
    pub header: u64,
    /// Offset of its first byte.
    pub data: u64,
    /// How many bytes the archive has of it; it may end before.
    pub size: u64,
    /// Of a sparse member: which bytes these are.
    pub segments: Option<Segments>,
}

impl Entry {
    /// Where its padding ends.
    pub(super) fn end(&self) -> u64 {
        self.data.saturating_add(self.size).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
    }
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    size: Option<u64>,
    sparse: Option<Sparse>,
}

/// The bytes of an archive. They are asked for in ascending order.
pub(super) trait Bytes {
    /// What errors call the archive.
    fn name(&self) -> &str;

    /// Whether the archive ends at or before `at`.
    fn ends_before(&mut self, at: u64) -> Result<bool, Error>;

    /// Fills `target` from `at`; `Truncated` where the archive ends before.
    fn read_exact_at(&mut self, target: &mut [u8], at: u64) -> Result<(), Error>;
}

impl Bytes for &Region {
    fn name(&self) -> &str {
        Region::name(self)
    }

    fn ends_before(&mut self, at: u64) -> Result<bool, Error> {
        Ok(at >= self.len())
    }

    fn read_exact_at(&mut self, target: &mut [u8], at: u64) -> Result<(), Error> {
        Region::read_exact_at(self, target, at)
    }
}

/// Where in the archive the walk is.
pub(super) struct Headers<B> {
    pub(super) bytes: B,
    next: u64,
    seen: u32,
    /// Segments of sparse members so far.
    segments: usize,
}

impl<B: Bytes> Headers<B> {
    pub(super) fn new(bytes: B) -> Self {
        Self { bytes, next: 0, seen: 0, segments: 0 }
    }

    /// The next member; `None` at the archive's end, which is a block of zeros or the end of the file.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extension = Extension::default();
        loop {
            let at = self.next;
            if self.bytes.ends_before(at)? {
                return Ok(None);
            }
            let mut header = [0; 512];
            self.bytes.read_exact_at(&mut header, at)?;
            if header.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            self.seen += 1;
            if self.seen > MAX_HEADERS {
                return Err(self.unsupported(at, format!("has more than {MAX_HEADERS} headers")));
            }
            let size = self.check(&header, at)?;
            match header[156] {
                b'0' | b'7' | b'S' | 0 => return self.member(&header, at, size, extension).map(Some),
                b'x' => self.read_pax(at, size, &mut extension)?,
                b'g' => self.skip_global(at, size)?,
                b'L' => {
                    let name = self.read_long_name(at, size)?;
                    self.name(at, &mut extension, name)?;
                }
                // A directory, or the archive's label. Neither has bytes of its own.
                b'5' | b'V' if size == 0 && extension.size.unwrap_or(0) == 0 => extension = Extension::default(),
                // The names in a directory, as incremental archives have them.
                b'D' => {
                    self.advance(at, std::mem::take(&mut extension).size.unwrap_or(size))?;
                    continue;
                }
                flag => return Err(self.refuse(flag, at)),
            }
            self.advance(at, size)?;
        }
    }

    fn member(&mut self, header: &[u8; 512], at: u64, size: u64, extension: Extension) -> Result<Entry, Error> {
        let size = extension.size.unwrap_or(size);
        let name = extension.name.unwrap_or_else(|| text(&header_name(header)));
        let member = Entry { name, header: at, data: at + BLOCK, size, segments: None };
        let entry = match (header[156], extension.sparse) {
            (b'S', None) => self.old_sparse(header, member)?,
            (b'S', Some(_)) => return Err(self.unmapped(at)),
            (_, Some(sparse)) => self.sparse(sparse, member)?,
            (_, None) => member,
        };
        self.advance(entry.data - BLOCK, entry.size)?;
        Ok(entry)
    }

    /// Reads the map of a sparse member of the old format, which goes on in blocks behind its header.
    fn old_sparse(&mut self, header: &[u8; 512], mut entry: Entry) -> Result<Entry, Error> {
        let at = entry.header;
        let (mut sparse, mut has_more) = Sparse::old(header).ok_or_else(|| self.unmapped(at))?;
        while has_more {
            let block = self.map_block(&mut entry.data)?;
            has_more = sparse.more(&block).ok_or_else(|| self.unmapped(at))?;
        }
        self.mapped(&sparse, entry)
    }

    /// Reads the map of a sparse member of the PAX formats, which the last one has before its data.
    fn sparse(&mut self, mut sparse: Sparse, mut entry: Entry) -> Result<Entry, Error> {
        let at = entry.header;
        if let Some(name) = sparse.name.take() {
            entry.name = name;
        }
        let mut is_read = !sparse.is_before_data();
        while !is_read {
            entry.size = entry.size.checked_sub(BLOCK).ok_or_else(|| self.unmapped(at))?;
            let block = self.map_block(&mut entry.data)?;
            is_read = sparse.text(&block).ok_or_else(|| self.unmapped(at))?;
        }
        self.mapped(&sparse, entry)
    }

    fn map_block(&mut self, at: &mut u64) -> Result<[u8; 512], Error> {
        let mut block = [0; 512];
        self.bytes.read_exact_at(&mut block, *at)?;
        *at += BLOCK;
        Ok(block)
    }

    fn mapped(&mut self, sparse: &Sparse, entry: Entry) -> Result<Entry, Error> {
        self.segments += sparse.ranges();
        let segments = sparse.segments(entry.size).filter(|_| self.segments <= MAX_SEGMENTS);
        let segments = segments.ok_or_else(|| self.unmapped(entry.header))?;
        Ok(Entry { segments: Some(segments), ..entry })
    }

    fn unmapped(&self, at: u64) -> Error {
        let what = "has a sparse member whose map is damaged, too long or cuts sectors";
        self.corrupt(at, what).with_remedy(Remedy::PackWithoutHoles)
    }

    /// Checks the sum over the header, and gives the size in it.
    fn check(&self, header: &[u8; 512], at: u64) -> Result<u64, Error> {
        if !is_summed(header).ok_or_else(|| self.corrupt(at, "has no tar header"))? {
            return Err(self.corrupt(at, "has a tar header with a wrong checksum"));
        }
        match (&header[124..136], header[156]) {
            // A label has none.
            (size, b'V') if size.iter().all(|b| *b == 0) => Ok(0),
            (size, _) => number(size).ok_or_else(|| self.corrupt(at, "has a member without a size")),
        }
    }

    fn read_pax(&mut self, at: u64, size: u64, extension: &mut Extension) -> Result<(), Error> {
        let records = self.read_extension(at, size)?;
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let (key, value, after) = record(rest).ok_or_else(|| self.corrupt(at, "has a bad pax header"))?;
            rest = after;
            match key {
                b"path" => self.name(at, extension, text(value))?,
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    let size = size.ok_or_else(|| self.corrupt(at, "has a bad pax size"))?;
                    if extension.size.replace(size).is_some_and(|other| other != size) {
                        return Err(self.corrupt(at, "gives a member two sizes"));
                    }
                }
                b"linkpath" => return Err(self.refuse(b'2', at)),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        let sparse = extension.sparse.get_or_insert_default();
                        sparse.record(key, value).ok_or_else(|| self.unmapped(at))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Names the next member. Of two names, one program takes the first and another the last.
    fn name(&self, at: u64, extension: &mut Extension, name: String) -> Result<(), Error> {
        match &extension.name {
            Some(other) if *other != name => Err(self.corrupt(at, "gives a member two names")),
            _ => {
                extension.name = Some(name);
                Ok(())
            }
        }
    }

    /// Skips a global header. It may set times and owners, but not what a member is.
    fn skip_global(&mut self, at: u64, size: u64) -> Result<(), Error> {
        let mut extension = Extension::default();
        self.read_pax(at, size, &mut extension)?;
        if extension.name.is_some() || extension.size.is_some() || extension.sparse.is_some() {
            return Err(self.unsupported(at, "has a global pax header with a path, a size or a map"));
        }
        Ok(())
    }

    fn read_long_name(&mut self, at: u64, size: u64) -> Result<String, Error> {
        let bytes = self.read_extension(at, size)?;
        let name = bytes.split(|b| *b == 0).next().unwrap_or_default();
        Ok(text(name))
    }

    fn read_extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            return Err(self.corrupt(at, format!("has an extended header of {size} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(size).expect("at most 64 KiB")];
        self.bytes.read_exact_at(&mut bytes, at + BLOCK)?;
        Ok(bytes)
    }

    fn advance(&mut self, at: u64, size: u64) -> Result<(), Error> {
        let next = size.checked_next_multiple_of(BLOCK).and_then(|size| size.checked_add(at + BLOCK));
        self.next = next.ok_or_else(|| self.corrupt(at, "has a member size that overflows"))?;
        Ok(())
    }

    fn refuse(&self, flag: u8, at: u64) -> Error {
        let (reason, what) = match flag {
            b'1' => (Reason::UnsafeReference, "a hard link"),
            b'2' | b'K' => (Reason::UnsafeReference, "a symbolic link"),
            b'3' | b'4' => (Reason::UnsafeReference, "a device"),
            b'5' | b'V' => (Reason::Corrupt, "a directory or label with bytes"),
            b'6' => (Reason::UnsafeReference, "a FIFO"),
            b'M' => (Reason::UnsupportedFormat, "a part of a multi-volume archive"),
            _ => (Reason::UnsupportedFormat, "a member of unknown type"),
        };
        Error::refuse(reason, self.bytes.name(), format!("has {what} where an OVA has files only")).at(at)
    }

    fn corrupt(&self, at: u64, message: impl Into<String>) -> Error {
        Error::corrupt(self.bytes.name(), at, message)
    }

    fn unsupported(&self, at: u64, message: impl Into<String>) -> Error {
        Error::refuse(Reason::UnsupportedFormat, self.bytes.name(), message).at(at)
    }
}

/// The name field, behind its prefix in POSIX headers. GNU's keep other things in the prefix's place.
fn header_name(header: &[u8; 512]) -> Vec<u8> {
    let until_nul = |field: &[u8]| field.split(|b| *b == 0).next().unwrap_or_default().to_vec();
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name;
    }
    [prefix, name].join(b"/".as_slice())
}

/// One pax record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
