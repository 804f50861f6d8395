// SPDX-License-Identifier: Apache-2.0
//! OVF envelopes: which files, which disks, which machine.
//!
//! Format: DMTF DSP0243 (OVF 1.1, 2.1). Elements and attributes are matched by their local names, because versions
//! differ in their namespaces only. Neither a DTD nor entities are read.

mod hardware;
mod parts;
mod xml;

use std::collections::HashSet;

use roxmltree::{Document, Node, ParsingOptions};

pub(crate) use self::parts::{OvfDisk, OvfFile};
use self::xml::{attribute, children, unit_bytes};
use super::names::{MAX_BYTES, MAX_MEMBERS, References, StatedSize, plain_name, shown};
use crate::conversion::Reason;
use crate::conversion::file_name::stem;
use crate::conversion::report::Hardware;
use crate::disk::Error;

/// Most XML nodes; an envelope of 100 disks has some 5,000. Bounds the parser's memory to about 10 MiB.
const MAX_NODES: u32 = 1 << 16;

/// Most namespace declarations: the parser copies those in scope at every element that declares one.
const MAX_NAMESPACES: usize = 512;

/// Most attributes of an element: the parser compares each with each.
const MAX_ATTRIBUTES: usize = 256;

/// An envelope, its names vetted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ovf {
    /// Every file that it references, in its order.
    pub files: Vec<OvfFile>,
    /// Every disk of the disk section, in its order.
    pub disks: Vec<OvfDisk>,
    /// The machine; `None` where the envelope has none or several. Its controllers name disks by [`OvfDisk::id`].
    pub hardware: Option<Hardware>,
    /// What was odd but handled.
    pub warnings: Vec<String>,
}

/// Parses an envelope of at most [`MAX_BYTES`].
///
/// # Errors
/// `Corrupt` for what is no envelope, `UnsafeReference` for an href that is no plain name and for delta disks,
/// `UnsupportedFormat` for chunked files, other compressions and DTDs, `Encrypted`.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Ovf, Error> {
    let corrupt = |message: String| Error::refuse(Reason::Corrupt, file, message);
    if bytes.len() > MAX_BYTES {
        return Err(corrupt(format!("the OVF is longer than {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| corrupt("the OVF is no UTF-8 text".to_owned()).at(e.valid_up_to() as u64))?;
    refuse_costly(file, text)?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, entity_resolver: None };
    let document = Document::parse_with_options(text, options).map_err(|e| refuse_xml(file, &e))?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        return Err(corrupt(format!("its root is {} and no OVF envelope", shown(envelope.tag_name().name()))));
    }
    let encrypted = |n: &Node| matches!(n.tag_name().name(), "EncryptedData" | "EncryptionSection" | "EncryptedKey");
    if envelope.descendants().any(|n| encrypted(&n)) {
        return Err(Error::refuse(Reason::Encrypted, file, "has an encryption section"));
    }

    let files = read_files(file, envelope)?;
    let disks = read_disks(file, envelope, &files)?;
    let mut warnings = Vec::new();
    let hardware = hardware::read(envelope, &disks, &files, &mut warnings);
    Ok(Ovf { files, disks, hardware, warnings })
}

impl Ovf {
    /// The names that belong to the artifact of the OVF called `name`.
    #[must_use]
    pub(crate) fn references(&self, name: &str) -> References {
        let is_disk = |index: usize| self.disks.iter().any(|d| d.file == Some(index));
        let mut references = References::default();
        for (index, file) in self.files.iter().enumerate() {
            let list = if is_disk(index) { &mut references.required } else { &mut references.optional };
            list.push(file.href.clone());
            // Exporters disagree whether the size of a compressed file is the one before or after.
            if let Some(size) = file.size.filter(|size| *size > 0 && !file.gzip) {
                references.sizes.insert(file.href.clone(), StatedSize::Exactly(size));
            }
        }
        let stem = stem(name);
        for extension in ["mf", "cert"] {
            let beside = format!("{stem}.{extension}");
            if !references.names(&beside) {
                references.optional.push(beside);
            }
        }
        references
    }
}

/// Refuses texts on which the XML parser would spend more than linear time or memory.
fn refuse_costly(file: &str, text: &str) -> Result<(), Error> {
    let costly = text.split('<').any(|tag| attributes(tag) > MAX_ATTRIBUTES);
    if costly || text.matches("xmlns").count() > MAX_NAMESPACES {
        let message = "the OVF has more attributes or namespaces than any exporter writes";
        return Err(Error::refuse(Reason::Corrupt, file, message));
    }
    Ok(())
}

/// The attributes of a tag that `text` begins with, counted by their equals signs outside quotes.
fn attributes(text: &str) -> usize {
    let mut quote = None;
    let mut count = 0;
    // Comments and CDATA have no attributes, whatever they hold.
    for byte in text.bytes().take_while(|_| !text.starts_with('!')) {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'=') => count += 1,
            (None, b'>') => break,
            _ => {}
        }
    }
    count
}

fn refuse_xml(file: &str, error: &roxmltree::Error) -> Error {
    let position = error.pos();
    let at = format!("in line {}, column {}", position.row, position.col);
    match error {
        roxmltree::Error::DtdDetected => {
            Error::refuse(Reason::UnsupportedFormat, file, "the OVF has a document type declaration, which is not read")
        }
        roxmltree::Error::UnknownEntityReference(..) => {
            Error::refuse(Reason::UnsupportedFormat, file, format!("the OVF uses an entity {at}, which is not read"))
        }
        roxmltree::Error::UnexpectedEndOfStream | roxmltree::Error::UnclosedRootNode => {
            Error::refuse(Reason::Truncated, file, "the OVF ends before its envelope does")
        }
        // The parser's message may quote the text, so only the place is shown.
        _ => Error::refuse(Reason::Corrupt, file, format!("the OVF is no well-formed XML {at}")),
    }
}

fn read_files(file: &str, envelope: Node) -> Result<Vec<OvfFile>, Error> {
    let mut files: Vec<OvfFile> = Vec::new();
    let mut ids = HashSet::new();
    let elements = children(envelope, "References").flat_map(|references| children(references, "File"));
    for element in elements {
        let id = attribute(element, "id").unwrap_or_default();
        let href = attribute(element, "href").unwrap_or_default();
        let href = plain_name(file, href)?;
        let unsupported = |what: String| Error::refuse(Reason::UnsupportedFormat, file, what);
        if attribute(element, "chunkSize").is_some() {
            return Err(unsupported(format!("its file {} is cut in chunks", shown(&href))));
        }
        let gzip = match attribute(element, "compression").unwrap_or_default() {
            "" | "identity" => false,
            "gzip" => true,
            other => {
                return Err(unsupported(format!("its file {} has the compression {}", shown(&href), shown(other))));
            }
        };
        let size = attribute(element, "size").and_then(|s| s.trim().parse().ok());
        if href == file || files.iter().any(|f| f.href == href) || !ids.insert(id.to_owned()) {
            let message = format!("references the file {} or its id twice", shown(&href));
            return Err(Error::refuse(Reason::Corrupt, file, message));
        }
        files.push(OvfFile { id: id.to_owned(), href, size, gzip });
        if files.len() > MAX_MEMBERS {
            let message = format!("references more than {MAX_MEMBERS} files");
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message));
        }
    }
    Ok(files)
}

fn read_disks(file: &str, envelope: Node, files: &[OvfFile]) -> Result<Vec<OvfDisk>, Error> {
    let mut disks: Vec<OvfDisk> = Vec::new();
    let sections = envelope.children().filter(|n| matches!(n.tag_name().name(), "DiskSection" | "SharedDiskSection"));
    for element in sections.flat_map(|section| section.children()) {
        if !matches!(element.tag_name().name(), "Disk" | "SharedDisk") {
            continue;
        }
        let id = attribute(element, "diskId").unwrap_or_default().to_owned();
        let corrupt = |what: &str| Error::refuse(Reason::Corrupt, file, format!("its disk {} {what}", shown(&id)));
        if attribute(element, "parentRef").is_some() {
            let message = format!("its disk {} is a snapshot of another", shown(&id));
            return Err(Error::refuse(Reason::UnsafeReference, file, message));
        }
        let referenced = match attribute(element, "fileRef") {
            None => None,
            Some(reference) => {
                let index = files.iter().position(|f| f.id == reference);
                Some(index.ok_or_else(|| corrupt("refers to a file that the OVF doesn't list"))?)
            }
        };
        if disks.iter().any(|d| d.id == id || referenced.is_some() && d.file == referenced) {
            return Err(corrupt("or its file is listed twice"));
        }
        let capacity = capacity(element);
        if referenced.is_none() && capacity.is_none_or(|c| c == 0) {
            return Err(corrupt("has neither a file nor a capacity"));
        }
        disks.push(OvfDisk { id, file: referenced, capacity });
        if disks.len() > MAX_MEMBERS {
            let message = format!("describes more than {MAX_MEMBERS} disks");
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message));
        }
    }
    Ok(disks)
}

fn capacity(disk: Node) -> Option<u64> {
    let number: u64 = attribute(disk, "capacity")?.trim().parse().ok()?;
    let unit = attribute(disk, "capacityAllocationUnits").map_or(Some(1), unit_bytes)?;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests;
