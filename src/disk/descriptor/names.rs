// SPDX-License-Identifier: Apache-2.0
//! Names that a descriptor may give to other files, and bounds of descriptors.

use std::collections::BTreeMap;

use crate::conversion::Reason;
use crate::conversion::contract::{MAX_EXTENTS, NAME_MAX};
use crate::conversion::file_name::folded;
use crate::disk::Error;

/// Longest descriptor that is read, in bytes. An OVF of 100 disks has about 100 KiB, a split disk of 8,192 extents with
/// the longest names 2.3 MiB.
pub(crate) const MAX_BYTES: usize = 4 << 20;
const _: () = assert!(MAX_EXTENTS * (NAME_MAX + 64) < MAX_BYTES);

/// Most disks, files or OVA members that one artifact may have (split VMDKs aside).
pub(crate) const MAX_MEMBERS: usize = 128;

/// What a primary's descriptor says about the files beside it, in the descriptor's order, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Without these there is no conversion: disks and extents.
    pub required: Vec<String>,
    /// These belong to the artifact where they are there: manifest, certificate, NVRAM, CD images.
    pub optional: Vec<String>,
    /// Sizes of the files, as far as the descriptor states them: by these a member is told from another machine's file
    /// of its name.
    pub sizes: BTreeMap<String, StatedSize>,
    /// Of names that a file may have in another spelling, that spelling: it counts where there is no file of the name.
    pub written: BTreeMap<String, String>,
}

/// What a descriptor says of a file's size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatedSize {
    /// `ovf:size` of a file.
    Exactly(u64),
    /// The end of a flat extent's range: writers may leave room behind it.
    AtLeast(u64),
}

impl StatedSize {
    /// The number as it is stated.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Exactly(bytes) | Self::AtLeast(bytes) => bytes,
        }
    }
}

impl References {
    /// Whether the file stands alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.optional.is_empty()
    }

    /// Whether `name` belongs to the artifact, required or not.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.required.iter().chain(&self.optional).chain(self.written.values()).any(|n| n == name)
    }

    /// Whether `name` differs only in case or composition from one that belongs to the artifact.
    #[must_use]
    pub(crate) fn resembles(&self, name: &str) -> bool {
        let folded_name = folded(name);
        self.required.iter().chain(&self.optional).chain(self.written.values()).any(|n| folded(n) == folded_name)
    }

    /// The names that the file called `name` may have, the likeliest first.
    pub fn spellings<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::once(name).chain(self.written.get(name).map(String::as_str))
    }
}

/// Checks that `name`, as `file` writes it, is a base name in the same directory, and returns it.
///
/// # Errors
/// `UnsafeReference` for anything else: a path, a drive, `..`, a URL, control characters, over 255 bytes.
pub(crate) fn plain_name(file: &str, name: &str) -> Result<String, Error> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control);
    if plain {
        return Ok(name.to_owned());
    }
    Err(Error::refuse(Reason::UnsafeReference, file, format!("names {}, which is no plain file name", shown(name))))
}

/// Untrusted text, made fit for a message: escaped, and cut at 80 characters.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}
