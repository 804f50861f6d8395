// SPDX-License-Identifier: Apache-2.0
//! Unified kernel images: an EFI program whose sections are a kernel, its initramfs and its command line.
//!
//! Formats: *PE Format*, sections 2 and 4 (headers and the section table); the UAPI group's *Unified Kernel Image* for
//! the sections' names; Linux' `x86/boot.rst` for the version in a kernel.

use std::collections::BTreeSet;
use std::io::Read;

use crate::guest::error::{Error, Result};
use crate::guest::fields::{clean, le16, le32, slice, until_nul};
use crate::guest::tree::{Found, Tree};

/// Directories that hold them.
const DIRECTORIES: [&str; 3] = ["/boot/efi/EFI/Linux", "/efi/EFI/Linux", "/boot/EFI/Linux"];
/// Bytes of an image's headers, and sections that are looked at.
const HEADERS: usize = 64 << 10;
const MAX_SECTIONS: usize = 96;
/// Longest command line (the kernel takes 2 KiB) or version.
const MAX_TEXT: u64 = 16 << 10;

/// A unified kernel image.
pub(super) struct Unified {
    file: Found,
    sections: Vec<Section>,
}

struct Section {
    name: [u8; 8],
    start: u64,
    len: u64,
}

/// Paths of the images, each once; those that are there for emergencies are left out.
pub(super) fn paths(tree: &Tree) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut known = BTreeSet::new();
    for directory in DIRECTORIES {
        for name in tree.names(directory)? {
            let lower = name.to_ascii_lowercase();
            let is_spare = ["rescue", "fallback"].iter().any(|word| lower.contains(word));
            if name.to_ascii_lowercase().ends_with(".efi") && !is_spare && !known.contains(&name) {
                paths.push(format!("{directory}/{name}"));
                known.insert(name);
            }
        }
    }
    Ok(paths)
}

impl Unified {
    /// Reads the section table of the image at `path`.
    pub(super) fn open(tree: &Tree, path: &str) -> Result<Self> {
        let file = tree.find(path)?;
        let mut head = Vec::new();
        file.open().take(HEADERS as u64).read_to_end(&mut head)?;
        let none = || Error::corrupt("is no unified kernel image");
        if !head.starts_with(b"MZ") {
            return Err(none());
        }
        let header = le32(&head, 0x3C)? as usize;
        if slice(&head, header, 4)? != b"PE\0\0" {
            return Err(none());
        }
        let count = usize::from(le16(&head, header + 6)?);
        let table = header + 24 + usize::from(le16(&head, header + 20)?);
        if count > MAX_SECTIONS {
            return Err(Error::corrupt(format!("has {count} sections, more than any program")));
        }
        let mut sections = Vec::new();
        for index in 0..count {
            let entry = slice(&head, table + index * 40, 40)?;
            let (used, stored) = (le32(entry, 8)?, le32(entry, 16)?);
            // Stored sections are padded.
            let len = u64::from(if used == 0 { stored } else { used.min(stored) });
            let start = u64::from(le32(entry, 20)?);
            if start + len > file.stat.len {
                return Err(Error::corrupt("ends within its sections"));
            }
            sections.push(Section { name: crate::guest::fields::array(entry, 0)?, start, len });
        }
        let unified = Self { file, sections };
        if unified.section(".linux").is_none() { Err(none()) } else { Ok(unified) }
    }

    /// The first section of this name: further ones belong to other profiles.
    fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| until_nul(&section.name) == name.as_bytes())
    }

    /// A section's bytes, from its start.
    fn read(&self, section: &Section) -> impl Read + use<> {
        let mut file = self.file.open();
        file.at = section.start;
        file.take(section.len)
    }

    pub(super) fn has_initramfs(&self) -> bool {
        self.section(".initrd").is_some()
    }

    /// Its initramfs, where it has one.
    pub(super) fn initramfs(&self) -> Option<impl Read + use<>> {
        self.section(".initrd").map(|section| self.read(section))
    }

    /// The text of a section; `None` where there is none.
    fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(section) = self.section(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        self.read(section).take(MAX_TEXT).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(until_nul(&bytes)).into_owned()))
    }

    /// The kernel's command line; `None` where the loader gives it.
    pub(super) fn command_line(&self) -> Result<Option<String>> {
        self.text(".cmdline")
    }

    /// The kernel's version: its own section, else what the kernel's header says.
    pub(super) fn version(&self) -> Result<Option<String>> {
        if let Some(version) = self.text(".uname")?.map(|text| clean(&text)).filter(|text| !text.is_empty()) {
            return Ok(Some(version));
        }
        let Some(kernel) = self.section(".linux") else { return Ok(None) };
        let mut head = Vec::new();
        self.read(kernel).take(HEADERS as u64).read_to_end(&mut head)?;
        if slice(&head, 0x202, 4).ok() != Some(b"HdrS") {
            return Ok(None);
        }
        let at = 0x200 + usize::from(le16(&head, 0x20E)?);
        let said =
            head.get(at..).map(|rest| String::from_utf8_lossy(until_nul(&rest[..rest.len().min(256)])).into_owned());
        let word = said.and_then(|said| said.split_ascii_whitespace().next().map(clean));
        Ok(word.filter(|word| word.starts_with(|c: char| c.is_ascii_digit())))
    }
}
