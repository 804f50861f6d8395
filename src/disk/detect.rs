// SPDX-License-Identifier: Apache-2.0
//! What a file is, by its own bytes.
//!
//! Magic numbers: QEMU's `docs/interop` (qcow2, QED, VHDX, VDI, Parallels), VMware's *Virtual Disk Format 5.0* (KDMV), Microsoft's
//! *Virtual Hard Disk Image Format* (conectix), POSIX ustar, and the RFCs of the compressions. Partition tables, LUKS
//! and ISO 9660 are guest content.

use super::descriptor::vmdk;
use super::{Error, Region, parallels};
use crate::conversion::Reason;
use crate::conversion::contract::EXTENSIONS;
use crate::conversion::file_name::extension;

/// Bytes looked at from the start of a file.
pub(super) const HEAD_BYTES: usize = 4096;

/// Bytes looked at from the end of a file.
pub(super) const TAIL_BYTES: usize = 512;

/// A kind of content that has a reader here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// A VMDK sparse file (`KDMV`), with or without its descriptor inside.
    VmdkSparse,
    /// A VMDK text descriptor.
    VmdkText,
    /// A VHD; a fixed one has its signature at the end only.
    Vhd,
    Vhdx,
    Vdi,
    /// A qcow2, of any version from 2.
    Qcow2,
    /// An expanding disk of Parallels; a plain one is raw.
    Parallels,
    /// A tar, as an OVA is.
    Tar,
    /// An XML text, as an OVF is.
    Xml,
    /// None of the above: bytes of a disk.
    Raw,
}

impl Content {
    /// What people call it.
    #[must_use]
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::VmdkSparse => "vmdk",
            Self::VmdkText => "vmdk descriptor",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Qcow2 => "qcow2",
            Self::Parallels => "parallels",
            Self::Tar => "tar",
            Self::Xml => "xml",
            Self::Raw => "raw",
        }
    }

    /// Whether files of this extension (without the dot, any case) hold this content.
    #[must_use]
    pub(super) fn agrees_with(self, extension: &str) -> bool {
        match extension.to_ascii_lowercase().as_str() {
            "vmdk" => matches!(self, Self::VmdkSparse | Self::VmdkText),
            "vhd" => self == Self::Vhd,
            "vhdx" => self == Self::Vhdx,
            "vdi" => self == Self::Vdi,
            "qcow2" => self == Self::Qcow2,
            "raw" | "ami" => self == Self::Raw,
            "hdd" | "hds" => matches!(self, Self::Parallels | Self::Raw),
            "img" => matches!(self, Self::Raw | Self::Qcow2),
            "ova" => self == Self::Tar,
            "ovf" => self == Self::Xml,
            _ => false,
        }
    }
}

/// What a signature stands for: something that is read, or the name of something that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Read(Content),
    Refused(&'static str),
}

impl Match {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read(content) => content.as_str(),
            Self::Refused(name) => name,
        }
    }
}

/// Signatures at a fixed place from the start. A gzip is told by its method too (RFC 1952: always 8).
const SIGNATURES: [(usize, &[u8], Match); 19] = [
    (0, b"KDMV", Match::Read(Content::VmdkSparse)),
    (0, b"conectix", Match::Read(Content::Vhd)),
    (0, b"vhdxfile", Match::Read(Content::Vhdx)),
    (0x40, &0xBEDA_107F_u32.to_le_bytes(), Match::Read(Content::Vdi)),
    (257, b"ustar", Match::Read(Content::Tar)),
    (0, b"COWD", Match::Refused("vmdk of an ESX 2 host (COWD)")),
    (0, &0xCAFE_BABE_u64.to_le_bytes(), Match::Refused("vmdk seSparse")),
    (0, b"QED\0", Match::Refused("qed")),
    (0, parallels::OLD, Match::Read(Content::Parallels)),
    (0, parallels::EXTENDED, Match::Read(Content::Parallels)),
    (0, b"Bochs Virtual HD Image", Match::Refused("bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", Match::Refused("cloop")),
    (0, b"PK\x03\x04", Match::Refused("zip")),
    (0, b"\xFD7zXZ\0", Match::Refused("xz")),
    (0, b"\x1F\x8B\x08", Match::Refused("gzip")),
    (0, b"\x28\xB5\x2F\xFD", Match::Refused("zstd")),
    (0, b"7z\xBC\xAF\x27\x1C", Match::Refused("7z")),
    (0, b"\x04\x22\x4D\x18", Match::Refused("lz4")),
    (0, b"Rar!\x1A\x07", Match::Refused("rar")),
];

/// Every format that the bytes claim to be, each once.
fn matches(head: &[u8], tail: &[u8]) -> Vec<Match> {
    let mut found: Vec<Match> = Vec::new();
    let mut note = |what: Match| {
        if !found.contains(&what) {
            found.push(what);
        }
    };
    for (at, magic, what) in SIGNATURES {
        if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            note(what);
        }
    }
    if head.starts_with(b"QFI\xFB") {
        let first = head.get(4..8) == Some([0, 0, 0, 1].as_slice());
        note(if first { Match::Refused("qcow of version 1") } else { Match::Read(Content::Qcow2) });
    }
    if head.get(..10).is_some_and(|h| h.starts_with(b"BZh") && h[4..] == *b"1AY&SY") {
        note(Match::Refused("bzip2"));
    }
    if vmdk::is_text(head) {
        note(Match::Read(Content::VmdkText));
    }
    if is_xml(head) {
        note(Match::Read(Content::Xml));
    }
    let last = &tail[tail.len().saturating_sub(TAIL_BYTES)..];
    // Footers of Virtual PC before 2004 have 511 bytes.
    if last.starts_with(b"conectix") || last.get(1..).is_some_and(|l| l.len() == 511 && l.starts_with(b"conectix")) {
        note(Match::Read(Content::Vhd));
    }
    if last.starts_with(b"koly") {
        note(Match::Refused("dmg"));
    }
    found
}

/// Whether a text begins as an XML document with an envelope or a declaration does.
fn is_xml(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let opens = |tag: &[u8]| text.get(..tag.len()).is_some_and(|t| t == tag);
    opens(b"<?xml") || opens(b"<!--") || opens(b"<!DOCTYPE") || opens(b"<Envelope") || opens(b"<ovf:Envelope")
}

/// What the file `name` is, by its first [`HEAD_BYTES`] and last [`TAIL_BYTES`] (fewer of a shorter file).
///
/// # Errors
/// `FormatMismatch` where it is two formats at once, `UnsupportedFormat` where it is one without a reader here.
pub(super) fn detect(name: &str, head: &[u8], tail: &[u8]) -> Result<Content, Error> {
    match matches(head, tail).as_slice() {
        [] => Ok(Content::Raw),
        [Match::Read(content)] => Ok(*content),
        [Match::Refused(what)] => {
            Err(Error::refuse(Reason::UnsupportedFormat, name, format!("is {what}, which is not read")))
        }
        several => {
            let names: Vec<_> = several.iter().map(|m| m.as_str()).collect();
            let message = format!("is several formats at once: {}", names.join(", "));
            Err(Error::refuse(Reason::FormatMismatch, name, message))
        }
    }
}

/// What the file behind `region` is.
///
/// # Errors
/// As [`detect`], and as reading does.
pub(super) fn detect_region(region: &Region) -> Result<Content, Error> {
    let (head, tail) = ends(region)?;
    detect(region.name(), &head, &tail)
}

/// The bytes that [`detect`] looks at.
///
/// # Errors
/// As reading does.
pub(super) fn ends(region: &Region) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let read = |len: usize, from_end: bool| {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX).min(len);
        let mut bytes = vec![0; len];
        let offset = if from_end { region.len() - len as u64 } else { 0 };
        region.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    Ok((read(HEAD_BYTES, false)?, read(TAIL_BYTES, true)?))
}

/// Checks that the extension of `name` may hold `content`.
///
/// # Errors
/// `UnsupportedFormat` for an extension that is not accepted, `Corrupt` where the extension demands a signature and
/// there is none at all, `FormatMismatch` where the content is another format.
pub(super) fn check_extension(name: &str, content: Content) -> Result<(), Error> {
    let extension = extension(name).to_ascii_lowercase();
    if content.agrees_with(&extension) {
        return Ok(());
    }
    if !EXTENSIONS.contains(&extension.as_str()) {
        let message = if extension.is_empty() {
            "has no extension".to_owned()
        } else {
            format!("has the extension .{}, which is not taken", extension.escape_debug())
        };
        return Err(Error::refuse(Reason::UnsupportedFormat, name, message));
    }
    if content == Content::Raw {
        let message = format!("has no signature of a .{extension} file");
        return Err(Error::refuse(Reason::Corrupt, name, message).at(0));
    }
    let message = format!("is called .{extension} and holds {}", content.as_str());
    Err(Error::refuse(Reason::FormatMismatch, name, message))
}

/// The container that a tool would take raw output of these first and last bytes for; `None` where it is inert.
///
/// A guest writes these bytes. Were they a qcow2 header with a backing file, the next program that guesses the format
/// would open that file for it.
#[must_use]
pub(super) fn would_probe(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    // XML does not count: no program takes a disk for an OVF unless it is told to.
    matches(head, tail).into_iter().find(|m| *m != Match::Read(Content::Xml)).map(Match::as_str)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    const ZEROS: [u8; TAIL_BYTES] = [0; TAIL_BYTES];

    #[rstest]
    #[case(0, b"KDMV\x01\0\0\0", Content::VmdkSparse)]
    #[case(0, b"# Disk DescriptorFile\nversion=1\n", Content::VmdkText)]
    #[case(0, b"conectix", Content::Vhd)]
    #[case(0, b"vhdxfile", Content::Vhdx)]
    #[case(0x40, &[0x7F, 0x10, 0xDA, 0xBE], Content::Vdi)]
    #[case(0, b"QFI\xFB\0\0\0\x03", Content::Qcow2)]
    #[case(257, b"ustar\x0000", Content::Tar)]
    #[case(257, b"ustar  \0", Content::Tar)]
    #[case(0, b"\xEF\xBB\xBF<?xml version=\"1.0\"?>", Content::Xml)]
    #[case(0, b"  <Envelope>", Content::Xml)]
    #[case(0, b"", Content::Raw)]
    #[case(510, b"\x55\xAA", Content::Raw)]
    #[case(512, b"EFI PART", Content::Raw)]
    #[case(0, b"LUKS\xBA\xBE", Content::Raw)]
    #[case(0, b"\x1F\x8B\x07", Content::Raw)]
    fn content_is_known_by_its_bytes(#[case] at: usize, #[case] magic: &[u8], #[case] content: Content) {
        assert_eq!(detect("x", &head(at, magic), &ZEROS).unwrap(), content);
        let probes = !matches!(content, Content::Raw | Content::Xml);
        assert_eq!(would_probe(&head(at, magic), &ZEROS).is_some(), probes);
    }

    #[rstest]
    #[case(b"QFI\xFB\0\0\0\x01")]
    #[case(b"QED\0")]
    #[case(b"COWD")]
    #[case(b"\xBE\xBA\xFE\xCA\0\0\0\0")]
    #[case(b"PK\x03\x04")]
    #[case(b"\xFD7zXZ\0")]
    #[case(b"\x1F\x8B\x08")]
    #[case(b"BZh91AY&SY")]
    #[case(b"\x28\xB5\x2F\xFD")]
    #[case(b"Bochs Virtual HD Image")]
    fn known_formats_that_nobody_reads_are_refused_by_name(#[case] magic: &[u8]) {
        let error = detect("x", &head(0, magic), &ZEROS).unwrap_err();
        assert_eq!(error.reason, Reason::UnsupportedFormat, "{error}");
        assert!(would_probe(&head(0, magic), &ZEROS).is_some());
    }

    #[test]
    fn a_fixed_vhd_is_known_by_its_end_and_both_footers_are_one_match() {
        let mut tail = ZEROS.to_vec();
        tail[..8].copy_from_slice(b"conectix");
        assert_eq!(detect("x", &head(0, b""), &tail).unwrap(), Content::Vhd);
        assert_eq!(detect("x", &head(0, b"conectix"), &tail).unwrap(), Content::Vhd);
        let mut old = ZEROS.to_vec();
        old[1..9].copy_from_slice(b"conectix");
        assert_eq!(detect("x", &head(510, b"\x55\xAA"), &old).unwrap(), Content::Vhd);
        assert_eq!(would_probe(&head(510, b"\x55\xAA"), &tail), Some("vhd"));
    }

    #[test]
    fn two_formats_at_once_are_refused() {
        let mut tail = ZEROS.to_vec();
        tail[..8].copy_from_slice(b"conectix");
        let mut both = head(0, b"KDMV");
        both[0x40..0x44].copy_from_slice(&[0x7F, 0x10, 0xDA, 0xBE]);
        for (head, tail) in [
            (head(0, b"QFI\xFB\0\0\0\x03"), tail.as_slice()),
            (head(257, b"ustar"), tail.as_slice()),
            (both, ZEROS.as_slice()),
        ] {
            assert_eq!(detect("x", &head, tail).unwrap_err().reason, Reason::FormatMismatch);
        }
    }

    #[test]
    fn the_extension_must_agree() {
        use Content::{Qcow2, Raw, Tar, Vdi, Vhd, Vhdx, VmdkSparse, VmdkText, Xml};
        let all = [VmdkSparse, VmdkText, Vhd, Vhdx, Vdi, Qcow2, Tar, Xml, Raw];
        for (name, good) in [
            ("a.vmdk", vec![VmdkSparse, VmdkText]),
            ("a.b.VHD", vec![Vhd]),
            ("a.vhdx", vec![Vhdx]),
            ("a.vdi", vec![Vdi]),
            ("a.qcow2", vec![Qcow2]),
            ("a.raw", vec![Raw]),
            ("a.ami", vec![Raw]),
            ("a.IMG", vec![Raw, Qcow2]),
            ("a.ova", vec![Tar]),
            ("a.ovf", vec![Xml]),
        ] {
            for content in all {
                let result = check_extension(name, content).map_err(|e| e.reason);
                let expected = match content {
                    _ if good.contains(&content) => Ok(()),
                    Raw => Err(Reason::Corrupt),
                    _ => Err(Reason::FormatMismatch),
                };
                assert_eq!(result, expected, "{name} {content:?}");
            }
        }
        for name in ["a", "a.iso", "vmdk", ""] {
            assert_eq!(check_extension(name, Raw).unwrap_err().reason, Reason::UnsupportedFormat);
        }
    }

    #[test]
    fn short_files_are_looked_at_whole() {
        for len in 0..16 {
            let bytes = &b"# Disk DescriptorFile"[..len];
            assert_eq!(detect("x", bytes, bytes).unwrap(), Content::Raw);
        }
        assert_eq!(detect("x", b"conectix", b"conectix").unwrap(), Content::Vhd);
    }

    #[test]
    fn what_qemu_takes_for_a_descriptor_is_one_here_too() {
        let text = head(0, b"# my notes\n\nversion=1\n");
        assert_eq!(would_probe(&text, &ZEROS), Some("vmdk descriptor"));
    }
}
