// SPDX-License-Identifier: Apache-2.0
//! What a file is, by its own bytes.
//!
//! Magic numbers: QEMU's `docs/interop` (qcow2, QED, VHDX, VDI, Parallels), VMware's *Virtual Disk Format 5.0* (KDMV), Microsoft's
//! *Virtual Hard Disk Image Format* (conectix), POSIX ustar, and the RFCs of the compressions. Partition tables, LUKS
//! and ISO 9660 are guest content.

use super::descriptor::{hyperv, vmdk};
use super::fields::le32;
use super::tar_header::is_summed;
use super::{Error, Region, parallels, text};
use crate::conversion::file_name::{ARCHIVES, EXTENSIONS, MACHINES, PACKED};
use crate::conversion::file_name::{extension, is_taken};
use crate::conversion::{Reason, Remedy};

/// Bytes looked at from the start of a file.
pub(super) const HEAD_BYTES: usize = 4096;

/// How a member of a gzip begins: magic and method (RFC 1952: always 8).
pub(super) const GZIP: &[u8] = b"\x1F\x8B\x08";
/// How a stream of bzip2 begins; the level follows.
pub(super) const BZIP2: &[u8] = b"BZh";
/// How a frame of zstd begins.
pub(super) const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";

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
    /// One packed stream.
    Packed(Packing),
    Zip,
    /// None of the above: bytes of a disk.
    Raw,
}

/// What a stream is packed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Packing {
    /// What people call it.
    #[must_use]
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }
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
            Self::Packed(packing) => packing.as_str(),
            Self::Zip => "zip",
            Self::Raw => "raw",
        }
    }

    /// The extension that such a file should have.
    #[must_use]
    pub(super) const fn extension(self) -> &'static str {
        match self {
            Self::VmdkSparse | Self::VmdkText => "vmdk",
            Self::Tar => "ova",
            Self::Xml => "ovf",
            Self::Parallels => "hdd",
            Self::Packed(Packing::Gzip) => "gz",
            Self::Packed(Packing::Zstd) => "zst",
            Self::Packed(Packing::Bzip2) => "bz2",
            Self::Vhd | Self::Vhdx | Self::Vdi | Self::Qcow2 | Self::Zip | Self::Packed(Packing::Xz) | Self::Raw => {
                self.as_str()
            }
        }
    }

    /// Whether it is the image of a disk, known by its signature.
    #[must_use]
    pub(super) const fn is_image(self) -> bool {
        match self {
            Self::VmdkSparse | Self::Vhd | Self::Vhdx | Self::Vdi | Self::Qcow2 | Self::Parallels => true,
            Self::VmdkText | Self::Tar | Self::Xml | Self::Packed(_) | Self::Zip | Self::Raw => false,
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
            "ova" => matches!(self, Self::Tar | Self::Zip | Self::Packed(_)),
            "ovf" => self == Self::Xml,
            "gz" | "tgz" => self == Self::Packed(Packing::Gzip),
            "xz" | "txz" => self == Self::Packed(Packing::Xz),
            "zst" | "tzst" => self == Self::Packed(Packing::Zstd),
            "bz2" | "tbz2" => self == Self::Packed(Packing::Bzip2),
            "zip" => self == Self::Zip,
            "tar" => self == Self::Tar,
            _ => false,
        }
    }
}

/// What a signature stands for: something that is read, or the name of something that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Read(Content),
    /// Also what helps, where that is not what mostly helps.
    Refused(&'static str, Option<Remedy>),
}

impl Match {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Read(content) => content.as_str(),
            Self::Refused(name, _) => name,
        }
    }
}

/// Signatures at a fixed place from the start.
const SIGNATURES: [(usize, &[u8], Match); 19] = [
    (0, b"KDMV", Match::Read(Content::VmdkSparse)),
    (0, b"conectix", Match::Read(Content::Vhd)),
    (0, b"vhdxfile", Match::Read(Content::Vhdx)),
    (0x40, &0xBEDA_107F_u32.to_le_bytes(), Match::Read(Content::Vdi)),
    (257, b"ustar", Match::Read(Content::Tar)),
    (0, b"COWD", Match::Refused("vmdk of an ESX 2 host (COWD)", None)),
    (0, &0xCAFE_BABE_u64.to_le_bytes(), Match::Refused("vmdk seSparse", None)),
    (0, b"QED\0", Match::Refused("qed", Some(Remedy::ConvertByQemuImg))),
    (0, parallels::OLD, Match::Read(Content::Parallels)),
    (0, parallels::EXTENDED, Match::Read(Content::Parallels)),
    (0, b"Bochs Virtual HD Image", Match::Refused("bochs", Some(Remedy::ConvertByQemuImg))),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", Match::Refused("cloop", Some(Remedy::ConvertByQemuImg))),
    (0, b"PK\x03\x04", Match::Read(Content::Zip)),
    (0, b"\xFD7zXZ\0", Match::Read(Content::Packed(Packing::Xz))),
    (0, GZIP, Match::Read(Content::Packed(Packing::Gzip))),
    (0, ZSTD, Match::Read(Content::Packed(Packing::Zstd))),
    (0, b"7z\xBC\xAF\x27\x1C", Match::Refused("7z", Some(Remedy::Unpack))),
    (0, b"\x04\x22\x4D\x18", Match::Refused("lz4", Some(Remedy::Unpack))),
    (0, b"Rar!\x1A\x07", Match::Refused("rar", Some(Remedy::Unpack))),
];

/// Whether a skippable frame of zstd begins here.
#[must_use]
pub(super) fn is_skippable(head: &[u8]) -> bool {
    head.len() >= 4 && le32(head, 0) & 0xFFFF_FFF0 == 0x184D_2A50
}

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
        note(if first {
            Match::Refused("qcow of version 1", Some(Remedy::ConvertByQemuImg))
        } else {
            Match::Read(Content::Qcow2)
        });
    }
    if head.get(..10).is_some_and(|h| h.starts_with(BZIP2) && h[4..] == *b"1AY&SY") {
        note(Match::Read(Content::Packed(Packing::Bzip2)));
    }
    // pzstd begins with one.
    if is_skippable(head) {
        note(Match::Read(Content::Packed(Packing::Zstd)));
    }
    // Headers of the seventh Unix and labels have no mark of their own.
    if head.first_chunk().and_then(is_summed) == Some(true) {
        note(Match::Read(Content::Tar));
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
        note(Match::Refused("dmg", Some(Remedy::ConvertDmg)));
    }
    found
}

/// Whether a text begins as an XML document with an envelope or a declaration does.
fn is_xml(head: &[u8]) -> bool {
    let text = text::narrow(head);
    let text = text.trim_ascii_start();
    let opens = |tag: &[u8]| text.get(..tag.len()).is_some_and(|t| t == tag);
    opens(b"<?xml") || opens(b"<!--") || opens(b"<!DOCTYPE") || is_envelope(text)
}

/// Whether a text begins with the tag of an envelope, whatever its prefix and case.
fn is_envelope(text: &[u8]) -> bool {
    let Some(tag) = text.strip_prefix(b"<") else { return false };
    let end = tag.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'>' | b'/')).unwrap_or(tag.len());
    let name = tag[..end].rsplit(|b| *b == b':').next().unwrap_or_default();
    name.eq_ignore_ascii_case(b"Envelope")
}

/// What the file `name` is, by its first [`HEAD_BYTES`] and last [`TAIL_BYTES`] (fewer of a shorter file).
///
/// # Errors
/// `FormatMismatch` where it is two formats at once, `UnsupportedFormat` where it is one without a reader here.
pub(super) fn detect(name: &str, head: &[u8], tail: &[u8]) -> Result<Content, Error> {
    match matches(head, tail).as_slice() {
        [] => Ok(Content::Raw),
        [Match::Read(content)] => Ok(*content),
        [Match::Refused(what, remedy)] => {
            let refused = Error::refuse(Reason::UnsupportedFormat, name, format!("is {what}, which is not read"));
            Err(Error { remedy: *remedy, ..refused })
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

/// Extensions of packings that are not read. Some have no mark in the file.
const PACKINGS: [&str; 9] = ["lzma", "lz", "lzo", "lz4", "z", "br", "7z", "rar", "cab"];

/// Extensions of what is no disk, although its content may look like one.
const OTHERS: [&str; 1] = ["iso"];

/// Checks that the extension of `name` may hold `content`, which begins with `head`. An extension that says nothing of disks may hold whatever has
/// a signature.
///
/// # Errors
/// `UnsupportedFormat` for an unknown extension over bytes without a signature, `Corrupt` where the extension demands a
/// signature and there is none at all, `FormatMismatch` where the content is another format.
pub(super) fn check_extension(name: &str, content: Content, head: &[u8]) -> Result<(), Error> {
    let extension = extension(name).to_ascii_lowercase();
    if content.agrees_with(&extension) {
        return Ok(());
    }
    let is_known = |list: &[&str]| list.contains(&extension.as_str());
    if !is_known(&EXTENSIONS) && !is_known(&PACKED) && !is_known(&ARCHIVES) {
        let describes_machine = content == Content::Xml && is_machine(name, &extension);
        if content != Content::Raw && !is_known(&OTHERS) && !describes_machine {
            return Ok(());
        }
        return Err(no_disk(name, &extension, head));
    }
    if content == Content::Raw {
        let message = format!("has no signature of a .{extension} file");
        let refused = Error::refuse(Reason::Corrupt, name, message).at(0);
        // A fixed VHD that was cut begins like a raw disk, too.
        let looks_raw = extension != "vhd" && is_disk(head);
        return Err(if looks_raw { refused.with_remedy(Remedy::RenameToRaw) } else { refused });
    }
    let message =
        format!("is called .{extension} and holds {}; rename it to .{}", content.as_str(), content.extension());
    Err(Error::refuse(Reason::FormatMismatch, name, message))
}

/// Whether a file of this name, whose extension is `extension`, describes a machine in its product's own form.
fn is_machine(name: &str, extension: &str) -> bool {
    MACHINES.contains(&extension) || hyperv::is_settings(name)
}

/// What a file is whose name and content say nothing of disks.
fn no_disk(name: &str, extension: &str, head: &[u8]) -> Error {
    let (message, remedy) = match extension {
        "iso" => ("is a CD image, no disk".to_owned(), Remedy::NoDisk),
        "vmx" => {
            let message = "describes a machine and holds no disk; convert the .vmdk beside it, which reads it";
            (message.to_owned(), Remedy::InMessage)
        }
        _ if is_machine(name, extension) => {
            ("describes a machine and holds no disk; convert the disk beside it".to_owned(), Remedy::InMessage)
        }
        _ if is_text(head) => ("is a text, no disk".to_owned(), Remedy::NoDisk),
        packing if PACKINGS.contains(&packing) => {
            (format!("is called .{packing}, which is a packing that is not read"), Remedy::Unpack)
        }
        "" => (
            "has no extension, and nothing in it shows a disk; rename it to .raw if it is one".to_owned(),
            Remedy::InMessage,
        ),
        other => {
            let other = other.escape_debug();
            let message = format!(
                "has the extension .{other}, which is not taken, and nothing in it shows a disk; rename it to .raw if it is one"
            );
            (message, Remedy::InMessage)
        }
    };
    Error::refuse(Reason::UnsupportedFormat, name, message).with_remedy(remedy)
}

/// Whether a file that begins so holds text: no control character but those of lines and pages.
fn is_text(head: &[u8]) -> bool {
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace() && *byte != 0x1B;
    let whole = match std::str::from_utf8(head) {
        Ok(_) => true,
        // The last character may be cut.
        Err(error) => error.error_len().is_none(),
    };
    !head.is_empty() && whole && !head.iter().any(is_control)
}

/// Whether raw bytes that begin so are a disk, whatever their name: `.dd` says so, else it needs a boot sector, a
/// partition table, LVM, LUKS or a file system that lies on a whole disk.
#[must_use]
pub(super) fn is_disk_called(name: &str, head: &[u8]) -> bool {
    let extension = extension(name).to_ascii_lowercase();
    let is_closed = OTHERS.iter().chain(&PACKINGS).any(|one| *one == extension);
    let is_open = !is_closed && !is_taken(name);
    is_open && (extension == "dd" || is_disk(head))
}

/// Whether these first bytes are those of a disk.
#[must_use]
pub(super) fn is_disk(head: &[u8]) -> bool {
    const SIGNS: [(usize, &[u8]); 6] = [
        (510, b"\x55\xAA"),
        (512, b"EFI PART"),
        (512, b"LABELONE"),
        (0, b"LUKS\xBA\xBE"),
        (0, b"XFSB"),
        // The superblock of ext2, ext3 and ext4.
        (1080, b"\x53\xEF"),
    ];
    SIGNS.iter().any(|(at, sign)| head.get(*at..).is_some_and(|rest| rest.starts_with(sign)))
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
    #[case(0, b"WithoutFreeSpace", Content::Parallels)]
    #[case(0, b"WithouFreSpacExt", Content::Parallels)]
    #[case(0, b"PK\x03\x04", Content::Zip)]
    #[case(0, b"\xFD7zXZ\0", Content::Packed(Packing::Xz))]
    #[case(0, b"\x1F\x8B\x08", Content::Packed(Packing::Gzip))]
    #[case(0, b"BZh91AY&SY", Content::Packed(Packing::Bzip2))]
    #[case(0, b"\x28\xB5\x2F\xFD", Content::Packed(Packing::Zstd))]
    #[case(0, b"\x50\x2A\x4D\x18", Content::Packed(Packing::Zstd))]
    #[case(0, b"<ns0:envelope xmlns:ns0='o'>", Content::Xml)]
    #[case(0, b"\xFF\xFE<\0?\0x\0m\0l\0 \0", Content::Xml)]
    #[case(0, b"\0<\0E\0n\0v\0e\0l\0o\0p\0e\0>", Content::Xml)]
    #[case(0, b"<html>", Content::Raw)]
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
    #[case(b"7z\xBC\xAF\x27\x1C")]
    #[case(b"\x04\x22\x4D\x18")]
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
        use Content::{Packed, Parallels, Qcow2, Raw, Tar, Vdi, Vhd, Vhdx, VmdkSparse, VmdkText, Xml, Zip};
        let gzip = Packed(Packing::Gzip);
        let all = [VmdkSparse, VmdkText, Vhd, Vhdx, Vdi, Qcow2, Parallels, Tar, Xml, Zip, gzip, Raw];
        for (name, good) in [
            ("a.vmdk", vec![VmdkSparse, VmdkText]),
            ("a.b.VHD", vec![Vhd]),
            ("a.vhdx", vec![Vhdx]),
            ("a.vdi", vec![Vdi]),
            ("a.qcow2", vec![Qcow2]),
            ("a.raw", vec![Raw]),
            ("a.ami", vec![Raw]),
            ("a.IMG", vec![Raw, Qcow2]),
            ("a.ova", vec![Tar, Zip, gzip]),
            ("a.ovf", vec![Xml]),
            ("a.hdd", vec![Parallels, Raw]),
            ("a.hds", vec![Parallels, Raw]),
            ("a.img.GZ", vec![gzip]),
            ("a.img.xz", vec![Packed(Packing::Xz)]),
            ("a.tgz", vec![gzip]),
            ("a.vhdx.zip", vec![Zip]),
            ("a.tar", vec![Tar]),
        ] {
            for content in all {
                let result = check_extension(name, content, &[0]).map_err(|e| e.reason);
                let expected = match content {
                    _ if good.contains(&content) => Ok(()),
                    Raw => Err(Reason::Corrupt),
                    _ => Err(Reason::FormatMismatch),
                };
                assert_eq!(result, expected, "{name} {content:?}");
            }
        }
        for name in ["a", "a.iso", "vmdk", ""] {
            assert_eq!(check_extension(name, Raw, &[0]).unwrap_err().reason, Reason::UnsupportedFormat);
        }
    }

    #[test]
    fn an_extension_that_says_nothing_of_disks_leaves_it_to_the_content() {
        for name in ["a", "a.qcow", "a.avhdx", "a.vhdfixed", "a.1"] {
            check_extension(name, Content::Vhdx, b"vhdxfile").unwrap();
        }
        assert_eq!(check_extension("a.iso", Content::Vhdx, b"vhdxfile").unwrap_err().reason, Reason::UnsupportedFormat);
        let boot = head(510, b"\x55\xAA");
        assert!(is_disk_called("a", &boot) && is_disk_called("a.bin", &boot) && is_disk_called("a.dd", b""));
        for name in ["a.iso", "a.vmdk", "a.img.gz", "a.img.lzma"] {
            assert!(!is_disk_called(name, &boot), "{name}");
        }
        assert!(!is_disk_called("a.txt", &head(0, b"some text")));
    }

    #[test]
    fn the_xml_of_a_machine_is_no_damaged_ovf() {
        for name in ["vm.vbox", "vm.pvs", "11111111-2222-3333-4444-555555555555.xml"] {
            let error = check_extension(name, Content::Xml, b"<?xml").unwrap_err();
            assert!(error.message.contains("describes a machine and holds no disk"), "{name}: {error}");
        }
        check_extension("vm.xml", Content::Xml, b"<?xml").unwrap();
        check_extension("vm.xva", Content::Tar, b"").unwrap();
    }

    #[rstest]
    #[case("vm.vmx", b".encoding = \"UTF-8\"\n", "convert the .vmdk beside it, which reads it", Remedy::InMessage)]
    #[case("vm.vbox", b"\0", "describes a machine", Remedy::InMessage)]
    #[case("cd.ISO", b"\0", "is a CD image, no disk", Remedy::NoDisk)]
    #[case("notes.txt", b"some text", "is a text, no disk", Remedy::NoDisk)]
    #[case("passwd", "root:\u{fc}:0:0\n".as_bytes(), "is a text, no disk", Remedy::NoDisk)]
    #[case("d.img.lzma", b"\x5D\0\0\x80\0", "is called .lzma, which is a packing that is not read", Remedy::Unpack)]
    #[case("d.img.Z", b"\x1F\x9D\x90", "is called .z, which is a packing that is not read", Remedy::Unpack)]
    #[case("data", b"\x01\x02", "rename it to .raw if it is one", Remedy::InMessage)]
    #[case("data.bin", b"\xff\xff", "has the extension .bin, which is not taken", Remedy::InMessage)]
    fn what_is_no_disk_is_told_what_it_is(
        #[case] name: &str,
        #[case] head: &[u8],
        #[case] words: &str,
        #[case] remedy: Remedy,
    ) {
        let error = check_extension(name, Content::Raw, head).unwrap_err();
        assert_eq!((error.reason, error.remedy), (Reason::UnsupportedFormat, Some(remedy)));
        assert!(error.message.contains(words), "{error}");
    }

    #[rstest]
    #[case(b"QED\0", Remedy::ConvertByQemuImg)]
    #[case(b"QFI\xFB\0\0\0\x01", Remedy::ConvertByQemuImg)]
    #[case(b"7z\xBC\xAF\x27\x1C", Remedy::Unpack)]
    fn a_format_that_nobody_reads_has_its_way_round(#[case] magic: &[u8], #[case] remedy: Remedy) {
        assert_eq!(detect("x", &head(0, magic), &ZEROS).unwrap_err().remedy, Some(remedy));
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
