// SPDX-License-Identifier: Apache-2.0
//! OVF envelopes: which files, which disks, which machine.
//!
//! Format: DMTF DSP0243 (OVF 0.9 to 2.1). Elements and attributes are matched by their local names in any case, because
//! versions differ in their namespaces, and makers in their spelling. Neither a DTD nor entities are read.

mod files;
mod hardware;
mod options;
mod parts;
mod xml;

use roxmltree::{Document, Node, ParsingOptions};

pub(crate) use self::parts::{OvfDisk, OvfFile, OvfOption, chunk_name, is_chunk};
use self::xml::is;
use super::names::{MAX_BYTES, MAX_MEMBERS, References, StatedSize, plain_name, shown};
use crate::conversion::Reason;
use crate::conversion::file_name::stem;
use crate::conversion::machine::Machine;
use crate::conversion::report::Hardware;
use crate::disk::{Error, text};

/// Most XML nodes; an envelope of 100 disks has some 5,000. Bounds the parser's memory to about 10 MiB.
const MAX_NODES: u32 = 1 << 16;

/// Most chunks that a file may be cut in; with more, the OVF is one that no exporter writes.
const MAX_CHUNKS: u64 = 8192;

/// Most namespace declarations: the parser copies those in scope at every element that declares one.
const MAX_NAMESPACES: usize = 512;

/// Most attributes of an element: the parser compares each with each.
const MAX_ATTRIBUTES: usize = 256;

/// An envelope, its names vetted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ovf {
    /// The files that its disks need, in the order of the references.
    pub files: Vec<OvfFile>,
    /// The machine's disks, in the order of the disk section.
    pub disks: Vec<OvfDisk>,
    /// Names of the other files that it references, as far as they are plain. Nothing looks at them.
    pub extras: Vec<String>,
    /// Its deployment options.
    pub options: Vec<OvfOption>,
    /// The machine; `None` where the envelope has none or several. Its controllers name disks by [`OvfDisk::id`].
    pub hardware: Option<Hardware>,
    /// Every machine. Their disks are named by [`OvfDisk::id`].
    pub machines: Vec<Machine>,
    /// What was odd but handled.
    pub warnings: Vec<String>,
}

/// Parses an envelope of at most [`MAX_BYTES`], with the deployment option called `option`, or else its default one.
///
/// # Errors
/// `Corrupt` for what is no envelope, `UnsafeReference` for a disk's href that is no plain name and for delta disks,
/// `UnsupportedFormat` for other compressions, DTDs and an unknown option, `Encrypted`.
pub(crate) fn parse(file: &str, bytes: &[u8], option: Option<&str>) -> Result<Ovf, Error> {
    let corrupt = |message: String| Error::refuse(Reason::Corrupt, file, message);
    if bytes.len() > MAX_BYTES {
        return Err(corrupt(format!("the OVF is longer than {MAX_BYTES} bytes")));
    }
    let text = text::decode_xml(bytes).map_err(|undecodable| match undecodable.offset {
        Some(offset) => corrupt("the OVF is no UTF-8 text".to_owned()).at(offset as u64),
        None => corrupt("the OVF is no text of the encoding that it declares".to_owned()),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    refuse_costly(file, text)?;
    let parsing = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, entity_resolver: None };
    let document = Document::parse_with_options(text, parsing).map_err(|e| refuse_xml(file, &e))?;
    let envelope = document.root_element();
    if !is(envelope, "Envelope") {
        return Err(corrupt(format!("its root is {} and no OVF envelope", shown(envelope.tag_name().name()))));
    }
    let encrypted = |n: &Node| ["EncryptedData", "EncryptionSection", "EncryptedKey"].iter().any(|name| is(*n, name));
    if envelope.descendants().any(|n| encrypted(&n)) {
        return Err(Error::refuse(Reason::Encrypted, file, "has an encryption section"));
    }

    let options = options::read(file, envelope, option)?;
    let listed = files::read(file, envelope, &options)?;
    let mut warnings = listed.warnings;
    let chosen = options.iter().find(|option| option.chosen).map(|option| option.id.as_str());
    let hardware::Described { hardware, machines } =
        hardware::read(envelope, chosen, &listed.disks, &listed.files, &mut warnings);
    let files::Listed { files, disks, extras, .. } = listed;
    Ok(Ovf { files, disks, extras, options, hardware, machines, warnings })
}

/// Whether a text ends as an envelope does, apart from comments behind it.
#[must_use]
pub(crate) fn is_closed(bytes: &[u8]) -> bool {
    let Ok(text) = text::decode_xml(bytes) else { return false };
    let mut text = text.trim_end();
    while let Some((before, _)) = text.strip_suffix("-->").and_then(|text| text.rsplit_once("<!--")) {
        text = before.trim_end();
    }
    let closes = text.strip_suffix('>').map(str::trim_end);
    closes.is_some_and(|text| {
        text.get(text.floor_char_boundary(text.len().saturating_sub(8))..)
            .is_some_and(|name| name.eq_ignore_ascii_case("Envelope"))
    })
}

impl Ovf {
    /// The names that belong to the artifact of the OVF called `name`.
    #[must_use]
    pub(crate) fn references(&self, name: &str) -> References {
        let mut references = References::default();
        for file in &self.files {
            file.add_to(&mut references);
        }
        references.optional.extend(self.extras.iter().cloned());
        // Some writers make a manifest for each disk.
        let of_disks = self.files.iter().flat_map(|file| [(stem(&file.href), "mf"), (stem(&file.href), "MF")]);
        for (stem, extension) in
            ["mf", "MF", "cert"].map(|extension| (stem(name), extension)).into_iter().chain(of_disks)
        {
            let beside = format!("{stem}.{extension}");
            if !references.names(&beside) {
                references.optional.push(beside);
            }
        }
        references
    }
}

impl OvfFile {
    /// Adds the names that the file may have: its own, or those of its chunks.
    fn add_to(&self, references: &mut References) {
        // Exporters disagree whether the size of a compressed file is the one before or after.
        let size = self.size.filter(|size| *size > 0 && !self.gzip);
        references.sizes.extend(size.map(|size| (self.href.clone(), StatedSize::Exactly(size))));
        let Some(chunk) = self.chunk else {
            references.required.push(self.href.clone());
            references.written.extend(self.written.clone().map(|written| (self.href.clone(), written)));
            return;
        };
        let parts = size.map_or(1, |size| size.div_ceil(chunk)).min(MAX_CHUNKS);
        for number in 0..parts {
            let name = chunk_name(&self.href, number);
            let bytes = size.map(|size| chunk.min(size - number * chunk));
            references.sizes.extend(bytes.map(|bytes| (name.clone(), StatedSize::Exactly(bytes))));
            // Somebody may have joined them.
            references.written.insert(name.clone(), self.href.clone());
            references.required.push(name);
        }
    }
}

/// Whether the XML parser spends no more than linear time and memory on this text.
pub(super) fn is_cheap(text: &str) -> bool {
    text.split('<').all(|tag| attributes(tag) <= MAX_ATTRIBUTES) && text.matches("xmlns").count() <= MAX_NAMESPACES
}

fn refuse_costly(file: &str, text: &str) -> Result<(), Error> {
    if !is_cheap(text) {
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
    let place = format!("line {}, column {}", position.row, position.col);
    match error {
        roxmltree::Error::DtdDetected => {
            Error::refuse(Reason::UnsupportedFormat, file, "the OVF has a document type declaration, which is not read")
        }
        roxmltree::Error::UnknownEntityReference(..) => Error::refuse(
            Reason::UnsupportedFormat,
            file,
            format!("the OVF uses an entity in {place}, which is not read"),
        ),
        roxmltree::Error::UnexpectedEndOfStream | roxmltree::Error::UnclosedRootNode => {
            Error::refuse(Reason::Truncated, file, "the OVF ends before its envelope does")
        }
        // The parser's message may quote the text, so only the place is shown.
        _ => Error::refuse(Reason::Corrupt, file, format!("the OVF is not well-formed XML ({place})")),
    }
}

#[cfg(test)]
mod tests;
