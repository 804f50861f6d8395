// SPDX-License-Identifier: Apache-2.0
//! Files that VMware keeps beside a disk: logs, settings of its machine, changed blocks. They are no disks, nobody names
//! them, and they go where their disk goes.

use std::collections::BTreeMap;

use super::super::scan::{self, Name};
use super::File;
use crate::disk::descriptor;

/// Extensions of such files, in lower case.
const EXTENSIONS: [&str; 8] = ["vmsd", "vmxf", "nvram", "log", "vswp", "hlog", "scoreboard", MACHINE];

/// The extension of the file that describes a machine: it is read with the disk that is called alike, and with no other.
const MACHINE: &str = "vmx";

/// The disks of a directory, by which a file beside one of them is known.
pub struct Disks<'a> {
    files: &'a BTreeMap<Name, File>,
    /// The first disk of the only machine whose disks are here.
    of_only_machine: Option<&'a Name>,
}

/// Whether a file of this name lies beside a disk, and is none.
#[must_use]
pub fn is_kept_beside(name: &str) -> bool {
    scan::is_change_tracking(name) || EXTENSIONS.contains(&scan::extension(name).as_str())
}

impl<'a> Disks<'a> {
    /// The disks among `files`.
    #[must_use]
    pub fn among(files: &'a BTreeMap<Name, File>) -> Self {
        let disks = || files.keys().filter(|name| is_disk(name));
        let first = disks().min_by_key(|name| name.len());
        // Its other disks are `vm_1.vmdk`, `vm_2.vmdk`.
        let is_of = |first: &&Name| {
            let stem = stem(first);
            let is_like = |rest: &str| rest.is_empty() || rest.starts_with(['_', '-']);
            disks().all(|name| self::stem(name).strip_prefix(stem).is_some_and(is_like))
        };
        Self { files, of_only_machine: first.filter(is_of) }
    }

    /// The disk that the file called `name` lies beside.
    #[must_use]
    pub fn beside(&self, name: &str) -> Option<&'a Name> {
        if !is_kept_beside(name) {
            return None;
        }
        let stem = stem(name);
        if scan::extension(name) == MACHINE {
            return self.disk(stem);
        }
        // `vm-1a2b3c4d.vswp`, `vmx-vm-1a2b3c4d-1.vswp`
        let cut =
            |stem: &'_ str| std::iter::successors(Some(stem.to_owned()), |s| Some(s.rsplit_once('-')?.0.to_owned()));
        let named =
            cut(stem).chain(stem.strip_prefix("vmx-").map(cut).into_iter().flatten()).find_map(|s| self.disk(&s));
        let is_of_machine = || stem == "vmware" || stem.starts_with("vmware-");
        named.or_else(|| self.of_only_machine.filter(|_| is_of_machine()))
    }

    fn disk(&self, stem: &str) -> Option<&'a Name> {
        ["vmdk", "VMDK"].iter().find_map(|extension| {
            let (name, _) = self.files.get_key_value(format!("{stem}.{extension}").as_str())?;
            is_disk(name).then_some(name)
        })
    }
}

/// Whether this may be a disk with other files beside it, and not an extent of one.
fn is_disk(name: &str) -> bool {
    scan::is_candidate_name(name) && scan::extension(name) == "vmdk" && !descriptor::looks_like_extent(name)
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}
