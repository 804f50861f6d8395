// SPDX-License-Identifier: Apache-2.0
//! A claim: the members of an artifact as they were when it was claimed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConversionId;
use super::file_name::stem;
use super::platform::Emit;

/// What told that an artifact had arrived whole, the weakest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, strum::Display)]
pub enum Witness {
    /// Its writer: it closed the file, or renamed it to its name.
    Writer,
    /// Its format: the mark that closes such a file is there.
    Format,
    /// Nobody: it stood still for the quiet period.
    Quiet,
}

/// What distinguishes one state of a file from another: everything that changes when somebody writes to it. Its mode,
/// owner and number of links are left out, although a change of them changes its ctime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    pub inode: u64,
}

impl Stamp {
    /// The stamp in what the system says of a file.
    #[must_use]
    pub fn of(found: &Metadata) -> Self {
        Self {
            size_bytes: found.len(),
            mtime_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
            inode: found.ino(),
        }
    }
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its base name, in its origin and in the claim; of a file in a folder its path from there, `web01/vm.ovf`.
    pub name: String,
    pub size_bytes: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    pub inode: u64,
    /// The conversion whose only member it was, and where that left it: the member comes from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Box<Alone>>,
}

/// An ended conversion of a single file, which turned out to be a member or the beginning of another artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alone {
    pub id: ConversionId,
    /// Where its source was left, relative to the queue directory.
    pub location: String,
    /// Directory of its output; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_path: Option<String>,
}

impl Member {
    /// Its state when it was claimed.
    #[must_use]
    pub const fn stamp(&self) -> Stamp {
        Stamp { size_bytes: self.size_bytes, mtime_ns: self.mtime_ns, inode: self.inode }
    }
}

/// Content of `.processing/<id>/claim.json`: written and synced before any member is moved in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub contract_version: u32,
    pub id: ConversionId,
    /// UID of the `HyperConversion` that claimed it; empty on one host.
    #[serde(default)]
    pub queue_uid: String,
    /// Directory that the members came from and are given back to, relative to the queue directory; empty for the
    /// queue directory itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// The folder that was dropped, if the artifact is one: it is moved as a whole. It has a name, a modification time
    /// and an inode. Everything that it holds moves with it, members or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<Member>,
    /// Members that are disks of the machine, in their order, where a folder has several and no OVF; otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
    /// Name of the member that names the artifact: the OVF, the VMDK descriptor, or the only file.
    pub primary: String,
    /// Every member, the primary first, the others in the order of their names.
    pub members: Vec<Member>,
    pub claimed_at: Timestamp,
    /// When its first member was seen since it last stood still. Absent in claims of earlier versions, and where they
    /// were claimed because somebody asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Timestamp>,
    /// The weakest witness that its members had arrived whole. Absent where they were claimed because somebody asked
    /// for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_by: Option<Witness>,
    /// An ended conversion of what was only the beginning of this file: its upload was cut, and this is the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beginning: Option<Box<Alone>>,
    /// Fingerprint of the members' content, in the order of their names; absent where nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Platforms that files are written for; present where the conversion differs from its queue. Claims of the first
    /// contract version say `emitDomainXml`.
    #[serde(default, alias = "emitDomainXml", skip_serializing_if = "Option::is_none")]
    pub emit: Option<Emit>,
    /// Date in the names of the directories that get the output and the source, `YYYY-MM-DD`, chosen at the claim.
    pub date: String,
}

impl Claim {
    /// Conversions of single members, or of a beginning of this file, whose outputs this artifact supersedes.
    pub fn superseded(&self) -> impl Iterator<Item = &Alone> {
        let of_members = self.members.iter().filter_map(|member| member.alone.as_deref());
        of_members.chain(self.beginning.as_deref()).filter(|alone| alone.output_path.is_some())
    }

    /// Sum of the members' sizes in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.members.iter().map(|m| m.size_bytes).sum()
    }

    /// The stem of the names that are published: the folder's name, or the primary's without its extension.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.folder.as_ref().map_or_else(|| stem(&self.primary), |folder| &folder.name)
    }

    /// The name by which people find the artifact in a directory: that of the folder, or of the primary.
    #[must_use]
    pub fn entry_name(&self) -> &str {
        self.folder.as_ref().map_or(&self.primary, |folder| &folder.name)
    }

    /// What is renamed when the artifact moves: the folder, or each member.
    #[must_use]
    pub fn moved(&self) -> &[Member] {
        self.folder.as_ref().map_or(&self.members, std::slice::from_ref)
    }

    /// Path of a member within the folder that is the artifact, or its name.
    #[must_use]
    pub fn within<'a>(&self, member: &'a Member) -> &'a str {
        let folder = self.folder.as_ref().and_then(|folder| member.name.strip_prefix(folder.name.as_str()));
        folder.and_then(|path| path.strip_prefix('/')).unwrap_or(&member.name)
    }
}
