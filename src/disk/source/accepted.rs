// SPDX-License-Identifier: Apache-2.0
//! A source that was accepted, and what it may cost.

use std::fs::File;

use serde::Serialize;

use crate::conversion::machine::Machine;
use crate::conversion::report::Hardware;
use crate::disk::descriptor::ovf;
use crate::disk::manifest::Expected;
use crate::disk::{Error, Image};

/// What an attempt may cost, and what of the source is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest virtual size of a disk, in bytes.
    pub max_virtual_size: u64,
    /// Most bytes that inflated members may occupy, all together.
    pub max_scratch_bytes: u64,
    /// The deployment option of an OVF; absent: its default one.
    pub ovf_option: Option<String>,
}

/// Makes an empty file, open for reading and writing, that goes away by itself.
pub type Scratch<'a> = dyn FnMut() -> Result<File, Error> + 'a;

/// A source that was accepted.
#[derive(Clone, Debug)]
pub struct Source {
    /// Whether it was opened as a whole, and not only looked at from its beginning.
    pub is_whole: bool,
    /// Format and kind: `ova`, `ovf`, `vmdk streamOptimized`, `vhdx dynamic`.
    pub format: String,
    /// Its disks, in the order of the OVF; never empty.
    pub disks: Vec<SourceDisk>,
    /// What the OVF says of the machine. Its controllers name disks by [`SourceDisk::member`].
    pub hardware: Option<Hardware>,
    /// Every machine that it describes. Their disks are named by [`SourceDisk::member`].
    pub machines: Vec<Machine>,
    /// Digests to verify before anything is published (`manifest::verify`).
    pub digests: Vec<Expected>,
    /// What was odd but handled.
    pub warnings: Vec<String>,
    /// The deployment options of its OVF.
    pub options: Vec<OvfOption>,
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

/// A deployment option of an OVF: one of several machines that it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OvfOption {
    /// By this name it is asked for.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether the conversion takes this one.
    pub chosen: bool,
}

impl From<&ovf::OvfOption> for OvfOption {
    fn from(option: &ovf::OvfOption) -> Self {
        let ovf::OvfOption { id, label, description, chosen } = option.clone();
        Self { name: id, label, description, chosen }
    }
}
