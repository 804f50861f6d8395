// SPDX-License-Identifier: Apache-2.0
//! What an envelope lists.

/// A `File` of the references section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OvfFile {
    pub id: String,
    /// A plain base name.
    pub href: String,
    /// Bytes, where the envelope says.
    pub size: Option<u64>,
    /// Whether the file itself is compressed with gzip.
    pub gzip: bool,
}

/// A `Disk` of the disk section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OvfDisk {
    pub id: String,
    /// Index in `Ovf::files`; `None` means a blank disk.
    pub file: Option<usize>,
    /// Virtual size in bytes, as far as it is written as a number. Some exporters put the file's size here.
    pub capacity: Option<u64>,
}
