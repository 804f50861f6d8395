// SPDX-License-Identifier: Apache-2.0
//! What an envelope lists.

/// A `File` of the references section that a disk needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OvfFile {
    pub id: String,
    /// A plain base name: the href, its percent signs decoded.
    pub href: String,
    /// The href as it is written, where that is a plain name too and another one.
    pub written: Option<String>,
    /// Bytes, where the envelope says.
    pub size: Option<u64>,
    /// Whether the file itself is compressed with gzip.
    pub gzip: bool,
    /// Bytes of each part but the last, where the file is cut into `href.000000000`, `href.000000001`, …
    pub chunk: Option<u64>,
}

/// A `Disk` of the disk section that the machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OvfDisk {
    pub id: String,
    /// Index in `Ovf::files`; `None` means a blank disk.
    pub file: Option<usize>,
    /// Virtual size in bytes, as far as it is known. Some exporters put the file's size here.
    pub capacity: Option<u64>,
}

/// A deployment option: another machine that the same envelope describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OvfOption {
    pub id: String,
    /// Its name for a person.
    pub label: Option<String>,
    pub description: Option<String>,
    /// Whether this one is read.
    pub chosen: bool,
}

/// How many digits the number of a chunk has (DSP0243, "References to external files").
const CHUNK_DIGITS: usize = 9;

/// The name of a chunk of the file `href`.
#[must_use]
pub(crate) fn chunk_name(href: &str, number: u64) -> String {
    format!("{href}.{number:0CHUNK_DIGITS$}")
}

/// Whether this is the name of a chunk.
#[must_use]
pub(crate) fn is_chunk(name: &str) -> bool {
    let digits = name.rsplit_once('.').map_or("", |(_, digits)| digits);
    digits.len() == CHUNK_DIGITS && digits.bytes().all(|b| b.is_ascii_digit())
}
