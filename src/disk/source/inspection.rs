// SPDX-License-Identifier: Apache-2.0
//! What `hyper2kvm inspect` shows of a source, from its metadata alone.

use serde::Serialize;

use super::accepted::{Limits, OvfOption, Scratch, Source, SourceDisk};
use super::open::look;
use crate::conversion::Failure;
use crate::conversion::file_name::extension;
use crate::conversion::machine::Machine;
use crate::conversion::report::Hardware;
use crate::disk::detect::{self, Content};
use crate::disk::{Error, Location, Region};

/// Most extents looked at to find out how a disk is compressed.
const SAMPLE: usize = 1 << 16;

/// A source as a person wants to see it before it is converted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    pub name: String,
    /// Size of the primary file in bytes; absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Format and kind; where it is refused, the container that it seems to be; absent where that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Whether a conversion would take it. Digests and compressed data are only checked by the conversion itself.
    pub accepted: bool,
    /// Whether more than its beginning was looked at: a packed stream may end too early all the same.
    pub looked_at_whole: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Failure>,
    pub disks: Vec<DiskInspection>,
    /// The deployment options of its OVF.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ovf_options: Vec<OvfOption>,
    /// Digests of its manifest that only a conversion compares.
    #[serde(skip_serializing_if = "is_zero")]
    pub digests_left: usize,
    /// The files that it consists of.
    pub members: Vec<MemberInspection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Every machine that the source describes; their disks are named by their members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<Machine>,
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskInspection {
    /// File that holds it, or a blank disk's id.
    pub member: String,
    /// Format and kind: `vmdk streamOptimized`.
    pub format: String,
    /// Absent where only unpacking tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size_bytes: Option<u64>,
    /// Guest bytes that are stored, where the metadata tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// `none`, `deflate`, `zstd`.
    pub compression: &'static str,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberInspection {
    pub name: String,
    pub size_bytes: u64,
}

impl Inspection {
    /// A source that could not even be opened: of its content nothing is known.
    #[must_use]
    pub fn refused(name: String, refusal: Failure) -> Self {
        Self {
            size_bytes: None,
            format: descriptor_by_name(&name).map(str::to_owned),
            name,
            accepted: false,
            looked_at_whole: true,
            refusal: Some(refusal),
            disks: Vec::new(),
            ovf_options: Vec::new(),
            digests_left: 0,
            members: Vec::new(),
            hardware: None,
            machines: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// What `opened`, the source in `primary`, shows.
    #[must_use]
    pub fn of(primary: &Region, opened: Result<Source, Error>) -> Self {
        let (name, size_bytes) = (primary.name().to_owned(), primary.len());
        match opened {
            Ok(Source { format, disks, hardware, machines, warnings, options, members, digests, is_whole }) => Self {
                name,
                size_bytes: Some(size_bytes),
                looked_at_whole: is_whole && !disks.iter().any(|disk| disk.image.is_stream()),
                format: Some(format),
                accepted: true,
                refusal: None,
                disks: disks.iter().map(describe).collect(),
                ovf_options: options,
                digests_left: digests.len(),
                members: members.into_iter().map(|(name, size_bytes)| MemberInspection { name, size_bytes }).collect(),
                hardware,
                machines,
                warnings,
            },
            Err(error) => Self {
                members: vec![MemberInspection { name: name.clone(), size_bytes }],
                size_bytes: Some(size_bytes),
                format: detect::detect_region(primary).ok().map(|content| called(&name, content)),
                ..Self::refused(name, Failure::from(&error))
            },
        }
    }
}

/// What people call a refused file: an OVA and an OVF by their names, else what it holds.
fn called(name: &str, content: Content) -> String {
    let by_name = descriptor_by_name(name).filter(|by_name| content.agrees_with(by_name));
    by_name.unwrap_or(content.as_str()).to_owned()
}

/// What the name alone says of an appliance.
fn descriptor_by_name(name: &str) -> Option<&'static str> {
    ["ova", "ovf"].into_iter().find(|one| extension(name).eq_ignore_ascii_case(one))
}

/// Opens `primary` as [`open`](super::open()) does, but returns a refusal as a finding.
#[must_use]
pub fn inspect(primary: &Region, siblings: &[Region], limits: &Limits, scratch: &mut Scratch) -> Inspection {
    Inspection::of(primary, look(primary, siblings, limits, scratch))
}

fn describe(disk: &SourceDisk) -> DiskInspection {
    let compression = disk.image.extents().take(SAMPLE).filter_map(Result::ok).find_map(|extent| match extent.at {
        Location::Deflate { .. } | Location::Framed { .. } => Some("deflate"),
        Location::Zstd { .. } => Some("zstd"),
        _ => None,
    });
    DiskInspection {
        member: disk.member.clone(),
        format: disk.image.kind().to_owned(),
        virtual_size_bytes: disk.image.known_size(),
        allocated_bytes: disk.image.data_bytes(),
        compression: compression.unwrap_or("none"),
    }
}
