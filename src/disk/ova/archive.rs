// SPDX-License-Identifier: Apache-2.0
//! The headers of a tar, one after the other, bounded, from a file or from a stream.
//!
//! Format: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar's manual, "Basic Tar
//! Format", for base-256 numbers and the type flags L, K, S, M and V.

use crate::conversion::{Reason, Remedy};
use crate::disk::{Error, Region};

const BLOCK: u64 = 512;

/// Longest extended header or long name.
const MAX_EXTENSION: u64 = 64 << 10;

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
    /// Its length in bytes; the archive may end before.
    pub size: u64,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    size: Option<u64>,
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
}

impl<B: Bytes> Headers<B> {
    pub(super) fn new(bytes: B) -> Self {
        Self { bytes, next: 0, seen: 0 }
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
                b'0' | b'7' | 0 => return self.member(&header, at, size, extension).map(Some),
                b'x' => self.read_pax(at, size, &mut extension)?,
                b'g' => self.skip_global(at, size)?,
                b'L' => {
                    let name = self.read_long_name(at, size)?;
                    self.name(at, &mut extension, name)?;
                }
                // A directory, or the archive's label. Neither has bytes of its own.
                b'5' | b'V' if size == 0 && extension.size.unwrap_or(0) == 0 => extension = Extension::default(),
                flag => return Err(self.refuse(flag, at)),
            }
            self.advance(at, size)?;
        }
    }

    fn member(&mut self, header: &[u8; 512], at: u64, size: u64, extension: Extension) -> Result<Entry, Error> {
        let size = extension.size.unwrap_or(size);
        let name = extension.name.unwrap_or_else(|| text(&header_name(header)));
        self.advance(at, size)?;
        Ok(Entry { name, header: at, data: at + BLOCK, size })
    }

    /// Checks the sum over the header, and gives the size in it.
    fn check(&self, header: &[u8; 512], at: u64) -> Result<u64, Error> {
        let said = octal(&header[148..156]).ok_or_else(|| self.corrupt(at, "has no tar header"))?;
        let blank = |index: usize| (148..156).contains(&index);
        let bytes = || header.iter().enumerate().map(|(index, byte)| if blank(index) { b' ' } else { *byte });
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old writers summed signed bytes.
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        if said != unsigned && i64::try_from(said) != Ok(signed) {
            return Err(self.corrupt(at, "has a tar header with a wrong checksum"));
        }
        number(&header[124..136]).ok_or_else(|| self.corrupt(at, "has a member without a size"))
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
                _ if key.starts_with(b"GNU.sparse") => return Err(self.refuse(b'S', at)),
                _ => {}
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
        if extension.name.is_some() || extension.size.is_some() {
            return Err(self.unsupported(at, "has a global pax header with a path or size"));
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
            b'S' => (Reason::UnsupportedFormat, "a sparse member"),
            b'M' => (Reason::UnsupportedFormat, "a part of a multi-volume archive"),
            _ => (Reason::UnsupportedFormat, "a member of unknown type"),
        };
        let refused =
            Error::refuse(reason, self.bytes.name(), format!("has {what} where an OVA has files only")).at(at);
        if flag == b'S' { refused.with_remedy(Remedy::PackWithoutHoles) } else { refused }
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

/// A number in a header: octal digits, or base-256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // 0xFF begins a negative number; 0x80 one whose eleven bytes must fit in eight.
    if field[0] != 0x80 || field[1..field.len() - 8].iter().any(|b| *b != 0) {
        return None;
    }
    field[field.len() - 8..].try_into().ok().map(u64::from_be_bytes)
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
