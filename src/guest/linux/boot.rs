// SPDX-License-Identifier: Apache-2.0
//! Where boot loaders and kernel command lines say that the root is.

use std::collections::BTreeSet;

use super::naming::naming;
use super::release::assignments;
use super::unified::{self, Unified};
use crate::conversion::guest::{BootRoot, MAX_LIST};
use crate::guest::error::{Result, existing};
use crate::guest::fields::clean;
use crate::guest::tree::Tree;

/// Files whose kernel lines are read as they are.
const CONFIGURATIONS: [&str; 8] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/grub/menu.lst",
    "/boot/grub/grub.conf",
    "/boot/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/etc/kernel/cmdline",
];
/// Directories with one file for each entry, as the Boot Loader Specification has it.
pub(super) const ENTRIES: [&str; 4] =
    ["/boot/loader/entries", "/boot/efi/loader/entries", "/efi/loader/entries", "/boot/EFI/loader/entries"];
/// Directories of loaders on the EFI system partition.
const VENDORS: &str = "/boot/efi/EFI";

/// Every place that names the root, each root once a file.
pub(in crate::guest) fn roots(tree: &Tree) -> Result<Vec<BootRoot>> {
    let mut files: Vec<String> = CONFIGURATIONS.iter().map(|path| (*path).to_owned()).collect();
    for directory in ENTRIES {
        files.extend(tree.ending(directory, ".conf")?);
    }
    for vendor in tree.names(VENDORS)? {
        files.push(format!("{VENDORS}/{vendor}/grub.cfg"));
    }
    let mut roots = Vec::new();
    for file in files {
        if let Some(text) = existing(tree.text(&file))? {
            roots.extend(arguments(&text).map(|root| found(&file, &root)));
        }
    }
    for file in ["/boot/grub2/grubenv", "/boot/grub/grubenv"] {
        if let Some(text) = existing(tree.text(file))? {
            let options = text.lines().find_map(|line| line.strip_prefix("kernelopts="));
            roots.extend(arguments(options.unwrap_or_default()).map(|root| found(file, &root)));
        }
    }
    let file = "/etc/default/grub";
    if let Some(text) = existing(tree.text(file))? {
        let fields = assignments(&text);
        let lines = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"];
        for line in lines.into_iter().filter_map(|name| fields.get(name)) {
            roots.extend(arguments(line).map(|root| found(file, &root)));
        }
    }
    for path in unified::paths(tree)? {
        // What is no such image is told of where kernels are looked for.
        let line = match Unified::open(tree, &path).and_then(|image| image.command_line()) {
            Err(error) if error.is_final() => return Err(error),
            line => line.ok().flatten().unwrap_or_default(),
        };
        roots.extend(arguments(&line).map(|root| found(&path, &root)));
    }
    roots.truncate(MAX_LIST);
    Ok(roots)
}

fn found(file: &str, root: &str) -> BootRoot {
    BootRoot { file: file.to_owned(), naming: naming(root), root: clean(root), volume: None }
}

/// What `root=` and `resume=` name in the lines of a text, each once; what stands behind `#` is left out, and variables.
fn arguments(text: &str) -> impl Iterator<Item = String> + use<> {
    let lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(str::split_ascii_whitespace);
    let roots = words.filter_map(|word| word.trim_matches(['"', '\'']).strip_prefix("root="));
    // GRUB sets variables of this name too: `root='hd0,gpt2'`.
    let devices =
        roots.map(|root| root.trim_matches(['"', '\''])).filter(|root| root.starts_with("/dev/") || root.contains('='));
    devices.map(str::to_owned).collect::<BTreeSet<_>>().into_iter()
}
