// SPDX-License-Identifier: Apache-2.0
//! What a file of the queue directory names: read with bounds, and without trust.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::scan::{self, Entry};
use super::is_ovf;
use crate::disk::descriptor::{self, References};
use crate::files::paths::is_plain_name;
use crate::files::store::{self, StoreError};

/// Whether it is worth reading what this file names: an OVF, or a `.vmdk` that is small enough for a text descriptor.
#[must_use]
pub fn may_be_descriptor(entry: &Entry) -> bool {
    match scan::extension(&entry.name).as_str() {
        "ovf" => true,
        "vmdk" => entry.size <= descriptor::MAX_BYTES as u64,
        _ => false,
    }
}

/// What the file `path` below `dir` names. A descriptor that can't be understood may still be growing, or is broken, which
/// the worker will report. What it seems to name are optional members, so that a broken artifact stays together.
pub fn read_references(dir: &Path, path: &str) -> Result<References, StoreError> {
    let (below, name) = path.rsplit_once('/').unwrap_or(("", path));
    let opened = store::open_dir_below(dir, below)?;
    let bytes = match store::read_untrusted(opened, &dir.join(below), name, descriptor::MAX_BYTES) {
        Ok(bytes) => bytes,
        // Not a descriptor, or one that the worker refuses.
        Err(StoreError::TooLong { .. }) => return Ok(References::default()),
        Err(e) => return Err(e),
    };
    Ok(references(name, &bytes))
}

pub(super) fn references(name: &str, bytes: &[u8]) -> References {
    descriptor::references(name, bytes, None)
        .unwrap_or_else(|_| References { optional: seemingly_named(name, bytes), ..References::default() })
}

/// Plain names where a descriptor has the names of its files, whatever is around them.
fn seemingly_named(name: &str, bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let quoted: Vec<&str> = if is_ovf(name) {
        text.split("href=").skip(1).filter_map(in_quotes).collect()
    } else {
        let extents =
            text.lines().filter(|l| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| l.starts_with(access)));
        extents.filter_map(|line| line.split_once('"')).filter_map(|(_, rest)| rest.split('"').next()).collect()
    };
    let plain: BTreeSet<_> = quoted.into_iter().filter(|n| is_plain_name(n) && *n != name).collect();
    plain.into_iter().take(descriptor::MAX_MEMBERS).map(str::to_owned).collect()
}

fn in_quotes(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    text[1..].split_once(quote).map(|(inner, _)| inner)
}
