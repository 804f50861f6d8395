// SPDX-License-Identifier: Apache-2.0
//! The text descriptor of a VMDK: beside its extents, or embedded in a sparse file.
//!
//! Format: VMware, *Virtual Disk Format 5.0*, section "The Descriptor File". Lines are `key=value` or
//! `ACCESS SECTORS KIND "name" [OFFSET]`; case and quotes vary between writers. Names are in the encoding that the
//! descriptor names, or in the one of the file system that it was copied from.

mod extent_name;

use encoding_rs::Encoding;

use super::names::{MAX_BYTES, References, StatedSize, plain_name, shown};
use crate::conversion::Reason;
use crate::conversion::contract::MAX_EXTENTS;
use crate::disk::Error;
use crate::disk::units::SECTOR;

/// How the descriptor's disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CreateType {
    /// One sparse file with an embedded descriptor.
    MonolithicSparse,
    /// One compressed file with an embedded descriptor.
    StreamOptimized,
    /// Sparse files of 2 GiB, without descriptors of their own.
    TwoGbMaxExtentSparse,
    /// One file of raw bytes.
    MonolithicFlat,
    /// Files of raw bytes, 2 GiB each.
    TwoGbMaxExtentFlat,
    /// One file of raw bytes, from an ESX host.
    Vmfs,
}

impl CreateType {
    /// The word as VMware writes it.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::Vmfs => "vmfs",
        }
    }

    /// Whether the descriptor lies within the sparse file that it describes.
    #[must_use]
    pub(crate) const fn is_embedded(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }

    fn parse(file: &str, word: &str) -> Result<Self, Error> {
        const READ: [CreateType; 6] = [
            CreateType::MonolithicSparse,
            CreateType::StreamOptimized,
            CreateType::TwoGbMaxExtentSparse,
            CreateType::MonolithicFlat,
            CreateType::TwoGbMaxExtentFlat,
            CreateType::Vmfs,
        ];
        /// They stand for a device of the host.
        const DEVICES: [&str; 5] =
            ["fullDevice", "partitionedDevice", "vmfsRaw", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap"];
        if let Some(known) = READ.into_iter().find(|t| t.as_str().eq_ignore_ascii_case(word)) {
            return Ok(known);
        }
        let device = DEVICES.iter().any(|d| d.eq_ignore_ascii_case(word));
        let reason = if device { Reason::UnsafeReference } else { Reason::UnsupportedFormat };
        Err(Error::refuse(reason, file, format!("cannot read a VMDK of createType {}", shown(word))))
    }
}

/// How an extent's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    /// As they are (`FLAT` and `VMFS`).
    Flat,
    /// A sparse file (`SPARSE`).
    Sparse,
    /// All zeros, without a file (`ZERO`).
    Zero,
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    /// Length in sectors of 512 bytes; never 0.
    pub sectors: u64,
    pub kind: ExtentKind,
    /// The name as written, unchecked: in an embedded descriptor it is only a label. Empty for `ZERO`.
    pub name: Vec<u8>,
    /// The encoding that the descriptor names, where it is known and not UTF-8.
    pub encoding: Option<&'static Encoding>,
    /// First sector within the file; 0 where the line doesn't say.
    pub offset: u64,
}

/// A descriptor that names no parent and whose kind can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub create_type: CreateType,
    /// In the order of the guest's disk; never empty.
    pub extents: Vec<ExtentLine>,
}

/// Whether a file that begins with `head` is a text descriptor. Like QEMU, takes every text of comments and blank
/// lines, then `version=1`, `2` or `3`, for one.
#[must_use]
pub(crate) fn is_text(head: &[u8]) -> bool {
    if head.trim_ascii_start().get(..21).is_some_and(|s| s.eq_ignore_ascii_case(b"# Disk DescriptorFile")) {
        return true;
    }
    let first = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).find(|l| !l.is_empty() && l[0] != b'#');
    first.is_some_and(|l| l.get(..8).is_some_and(|key| key.eq_ignore_ascii_case(b"version=")))
}

/// Parses the descriptor in `bytes`, up to the first NUL (embedded ones are padded).
///
/// # Errors
/// `UnsafeReference` for a parent, a device or an embedded descriptor's second extent, `Encrypted`,
/// `UnsupportedFormat` for kinds that are not read here, `Corrupt` for the rest.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
    let corrupt = |message: String| Error::refuse(Reason::Corrupt, file, message);
    let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
    if text.len() > MAX_BYTES {
        return Err(corrupt(format!("its descriptor is longer than {MAX_BYTES} bytes")));
    }
    refuse_parent_hint(file, text)?;

    let mut create_type = None;
    let mut encoding = None;
    let mut extents: Vec<ExtentLine> = Vec::new();
    for (index, line) in text.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        if starts_an_extent(line) {
            let extent =
                parse_extent(line).map_err(|what| corrupt(format!("{what} in descriptor line {}", index + 1)))?;
            extents.push(check_kind(file, &extent)?);
            if extents.len() > MAX_EXTENTS {
                return Err(corrupt(format!("more than {MAX_EXTENTS} extents")));
            }
            continue;
        }
        let Some(equals) = line.iter().position(|b| *b == b'=') else { continue };
        let (key, value) = (line[..equals].trim_ascii(), unquoted(&line[equals + 1..]));
        if key.eq_ignore_ascii_case(b"createType") {
            let word = String::from_utf8_lossy(value);
            if create_type.replace(CreateType::parse(file, &word)?).is_some() {
                return Err(corrupt("its descriptor has two createTypes".to_owned()));
            }
        } else if key.eq_ignore_ascii_case(b"encoding") {
            let known = crate::disk::text::encoding(&String::from_utf8_lossy(value));
            encoding = known.filter(|encoding| encoding.is_ascii_compatible() && *encoding != encoding_rs::UTF_8);
        } else if key.eq_ignore_ascii_case(b"parentCID") {
            if !value.eq_ignore_ascii_case(b"ffffffff") {
                return Err(Error::refuse(
                    Reason::UnsafeReference,
                    file,
                    "is a snapshot: its descriptor has a parentCID",
                ));
            }
        } else if key.eq_ignore_ascii_case(b"encryptionKeys") || key.eq_ignore_ascii_case(b"encryption.keySafe") {
            return Err(Error::refuse(Reason::Encrypted, file, "is encrypted, says its descriptor"));
        }
    }
    let create_type = create_type.ok_or_else(|| corrupt("its descriptor has no createType".to_owned()))?;
    for extent in &mut extents {
        extent.encoding = encoding;
    }
    let descriptor = Descriptor { create_type, extents };
    descriptor.check_shape(file)?;
    Ok(descriptor)
}

impl Descriptor {
    /// Virtual size in bytes.
    #[must_use]
    pub(crate) fn virtual_size(&self) -> u64 {
        self.extents.iter().map(|e| e.sectors * SECTOR).sum()
    }

    /// The files that a descriptor of its own names.
    ///
    /// # Errors
    /// `UnsafeReference` unless each is another plain base name, named once; `Corrupt` where the descriptor should lie
    /// inside a sparse file.
    pub(crate) fn references(&self, file: &str) -> Result<References, Error> {
        if self.create_type.is_embedded() {
            let kind = self.create_type.as_str();
            let message = format!("is a text of createType {kind}, which belongs inside a sparse file");
            return Err(Error::refuse(Reason::Corrupt, file, message));
        }
        let mut references = References::default();
        let mut seen = std::collections::HashSet::new();
        for extent in &self.extents {
            let Some((name, other)) = extent.file_names(file)? else { continue };
            if name == file {
                return Err(Error::refuse(Reason::UnsafeReference, file, "names itself as an extent"));
            }
            if !seen.insert(name.clone()) {
                let message = format!("names the extent {} twice", shown(&name));
                return Err(Error::refuse(Reason::UnsafeReference, file, message));
            }
            if let Some(bytes) = extent.file_bytes() {
                references.sizes.insert(name.clone(), StatedSize::AtLeast(bytes));
            }
            references.written.extend(other.filter(|other| other != file).map(|other| (name.clone(), other)));
            references.required.push(name);
        }
        Ok(references)
    }

    fn check_shape(&self, file: &str) -> Result<(), Error> {
        let kind = self.create_type.as_str();
        let corrupt = |message: String| Err(Error::refuse(Reason::Corrupt, file, message));
        if self.extents.is_empty() {
            return corrupt("its descriptor has no extent".to_owned());
        }
        if self.create_type.is_embedded() && self.extents.len() > 1 {
            let message = format!("a {kind} file is its only extent, its descriptor names {}", self.extents.len());
            return Err(Error::refuse(Reason::UnsafeReference, file, message));
        }
        let lonely = matches!(
            self.create_type,
            CreateType::MonolithicSparse | CreateType::StreamOptimized | CreateType::MonolithicFlat
        );
        let with_file = self.extents.iter().filter(|e| e.kind != ExtentKind::Zero).count();
        if lonely && with_file != 1 {
            return corrupt(format!("a {kind} descriptor has exactly one extent, this one {}", self.extents.len()));
        }
        let fits = |e: &ExtentLine| match e.kind {
            ExtentKind::Zero => true,
            ExtentKind::Flat => matches!(
                self.create_type,
                CreateType::MonolithicFlat | CreateType::TwoGbMaxExtentFlat | CreateType::Vmfs
            ),
            ExtentKind::Sparse => {
                self.create_type.is_embedded() || self.create_type == CreateType::TwoGbMaxExtentSparse
            }
        };
        if !self.extents.iter().all(fits) {
            return corrupt(format!("an extent doesn't fit the createType {kind}"));
        }
        let total = self.extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.sectors));
        if total.and_then(|sectors| sectors.checked_mul(SECTOR)).is_none() {
            return corrupt("the extents' sizes overflow".to_owned());
        }
        Ok(())
    }
}

impl ExtentLine {
    /// What a flat extent's file has at least, in bytes; `None` where the line doesn't tell.
    fn file_bytes(&self) -> Option<u64> {
        (self.kind == ExtentKind::Flat).then(|| self.offset.checked_add(self.sectors)?.checked_mul(SECTOR)).flatten()
    }
}

/// Refuses a text that has the hint anywhere, whatever the line says: QEMU and others look for it in the whole text,
/// comments included.
fn refuse_parent_hint(file: &str, text: &[u8]) -> Result<(), Error> {
    const HINT: &[u8] = b"parentFileNameHint";
    if text.windows(HINT.len()).any(|w| w.eq_ignore_ascii_case(HINT)) {
        return Err(Error::refuse(Reason::UnsafeReference, file, "is a snapshot: its descriptor names a parent"));
    }
    Ok(())
}

fn starts_an_extent(line: &[u8]) -> bool {
    let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    [b"RW".as_slice(), b"RDONLY", b"NOACCESS"].iter().any(|access| access.eq_ignore_ascii_case(word))
}

/// An extent as written, its kind still a word.
struct RawExtent<'a> {
    kind: &'a [u8],
    sectors: u64,
    name: &'a [u8],
    offset: u64,
}

fn parse_extent(line: &[u8]) -> Result<RawExtent<'_>, &'static str> {
    let (_access, rest) = word(line);
    let (sectors, rest) = word(rest);
    let (kind, rest) = word(rest);
    let sectors = number(sectors).filter(|n| *n > 0).ok_or("no size")?;
    if kind.eq_ignore_ascii_case(b"ZERO") {
        return Ok(RawExtent { kind, sectors, name: b"", offset: 0 });
    }
    let (name, offset) = if let Some(quoted) = rest.strip_prefix(b"\"") {
        let end = quoted.iter().position(|b| *b == b'"').ok_or("a quote without its end")?;
        (&quoted[..end], quoted[end + 1..].trim_ascii())
    } else {
        // Without quotes, a last word that is a number is the offset; everything before it is the name.
        match rest.iter().rposition(u8::is_ascii_whitespace) {
            Some(gap) if number(&rest[gap + 1..]).is_some() => (rest[..gap].trim_ascii(), &rest[gap + 1..]),
            _ => (rest, b"".as_slice()),
        }
    };
    if name.is_empty() {
        return Err("no file name");
    }
    // Writers for devices add words after the offset; their createTypes are refused anyway.
    let offset = match offset.split(u8::is_ascii_whitespace).next().unwrap_or_default() {
        b"" => 0,
        digits => number(digits).ok_or("no offset")?,
    };
    Ok(RawExtent { kind, sectors, name, offset })
}

fn check_kind(file: &str, extent: &RawExtent<'_>) -> Result<ExtentLine, Error> {
    let kind = match extent.kind.to_ascii_uppercase().as_slice() {
        b"FLAT" | b"VMFS" => ExtentKind::Flat,
        b"SPARSE" => ExtentKind::Sparse,
        b"ZERO" => ExtentKind::Zero,
        b"VMFSRDM" | b"VMFSRAW" => {
            return Err(Error::refuse(Reason::UnsafeReference, file, "names a device of the host as an extent"));
        }
        other => {
            let message = format!("cannot read an extent of kind {}", shown(&String::from_utf8_lossy(other)));
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message));
        }
    };
    Ok(ExtentLine { sectors: extent.sectors, kind, name: extent.name.to_vec(), encoding: None, offset: extent.offset })
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii_start())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

fn unquoted(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value).trim_ascii()
}

#[cfg(test)]
mod tests;
