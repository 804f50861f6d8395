// SPDX-License-Identifier: Apache-2.0
//! fstab and crypttab.

use super::naming::naming;
use crate::conversion::guest::{MAX_LIST, Mount, Naming};
use crate::guest::error::{Result, existing};
use crate::guest::fields::clean;
use crate::guest::tree::Tree;

/// A line of fstab.
pub(in crate::guest) struct Line {
    pub(in crate::guest) device: String,
    pub(in crate::guest) target: String,
    pub(in crate::guest) options: String,
}

impl Line {
    /// The value of an option `name=`.
    pub(in crate::guest) fn option(&self, name: &str) -> Option<&str> {
        self.options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The lines of fstab.
pub(in crate::guest) fn fstab(tree: &Tree) -> Result<Vec<Line>> {
    let Some(text) = existing(tree.text("/etc/fstab"))? else { return Ok(Vec::new()) };
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Line> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let words = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        Some(Line {
            device: words.next()?.trim_matches('"').to_owned(),
            // fstab writes a space as \040.
            target: words.next()?.replace("\\040", " "),
            // The kind of the file system stands between.
            options: words.nth(1).unwrap_or_default().to_owned(),
        })
    });
    words.take(MAX_LIST).collect()
}

/// The lines that name a device, of both files.
pub(in crate::guest) fn mounts(tree: &Tree, fstab: &[Line]) -> Result<Vec<Mount>> {
    let of_fstab = fstab.iter().map(|line| ("/etc/fstab", line.device.clone(), line.target.clone()));
    let text = existing(tree.text("/etc/crypttab"))?.unwrap_or_default();
    let of_crypttab = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (name, device) = (words.next()?, words.next()?);
        Some(("/etc/crypttab", device.to_owned(), name.to_owned()))
    });
    let mounts = of_fstab.chain(of_crypttab).map(|(file, device, target)| Mount {
        file: file.to_owned(),
        naming: naming(&device),
        device: clean(&device),
        target: clean(&target),
        volume: None,
    });
    Ok(mounts.filter(|mount| mount.naming != Naming::Other).take(MAX_LIST).collect())
}
