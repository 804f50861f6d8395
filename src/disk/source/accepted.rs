// SPDX-License-Identifier: Apache-2.0
//! A source that was accepted, and what it may cost.

use std::fs::File;

use crate::conversion::report::Hardware;
use crate::disk::manifest::Expected;
use crate::disk::{Error, Image};

/// What an attempt may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest virtual size of a disk, in bytes.
    pub max_virtual_size: u64,
    /// Most bytes that inflated members may occupy, all together.
    pub max_scratch_bytes: u64,
}

/// Makes an empty file, open for reading and writing, that goes away by itself.
pub type Scratch<'a> = dyn FnMut() -> Result<File, Error> + 'a;

/// A source that was accepted.
#[derive(Clone, Debug)]
pub struct Source {
    /// Format and kind: `ova`, `ovf`, `vmdk streamOptimized`, `vhdx dynamic`.
    pub format: String,
    /// Its disks, in the order of the OVF; never empty.
    pub disks: Vec<SourceDisk>,
    /// What the OVF says of the machine. Its controllers name disks by [`SourceDisk::member`].
    pub hardware: Option<Hardware>,
    /// Digests to verify before anything is published (`manifest::verify`).
    pub digests: Vec<Expected>,
    /// What was odd but handled.
    pub warnings: Vec<String>,
    /// Every file that it consists of, for a person: base name and length in bytes.
    pub members: Vec<(String, u64)>,
}

impl Source {
    /// What was odd but handled, and what only the copy found out.
    #[must_use]
    pub fn warnings_after_copy(&self) -> Vec<String> {
        let found = self.disks.iter().flat_map(|disk| disk.image.warnings());
        let new: Vec<_> = found.filter(|warning| !self.warnings.contains(warning)).collect();
        self.warnings.iter().cloned().chain(new).collect()
    }

    /// Guest bytes that its disks store, an upper bound of what an uncompressed copy writes; `None` where only a copy
    /// tells.
    #[must_use]
    pub fn data_bytes(&self) -> Option<u64> {
        self.disks.iter().map(|disk| disk.image.data_bytes()).sum()
    }
}

/// One disk of a source.
#[derive(Clone, Debug)]
pub struct SourceDisk {
    /// Base name of the file that holds it (its descriptor, if it has one); of a blank disk, the OVF's id of it.
    pub member: String,
    pub image: Image,
}
