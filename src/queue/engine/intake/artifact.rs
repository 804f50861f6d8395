// SPDX-License-Identifier: Apache-2.0
//! An artifact as it is claimed.

use crate::conversion::{Failure, Stamp, Witness};
use crate::queue::companions::TakenBack;
use crate::queue::scan::{Entry, Name};

/// An artifact that is whole, or will never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::queue::engine) struct Artifact {
    pub primary: Name,
    /// The primary first.
    pub members: Vec<Entry>,
    /// Further members, which were converted by themselves before.
    pub taken_back: Vec<TakenBack>,
    /// Why it fails without an attempt.
    pub failure: Option<Failure>,
    /// The weakest witness that its members are complete; absent where no witness was asked.
    pub complete_by: Option<Witness>,
    /// The folder that it is, if it is one.
    pub folder: Option<OfFolder>,
}

/// What an artifact is besides its members, if it is a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::queue::engine) struct OfFolder {
    pub entry: Entry,
    /// Members that are disks by themselves, where there are several and no OVF.
    pub disks: Vec<Name>,
    /// What told that no file is to follow.
    pub(super) witness: Witness,
}

impl Artifact {
    /// Sum of its members' sizes.
    pub(in crate::queue::engine) fn size_bytes(&self) -> u64 {
        self.entries().map(|member| member.size).sum()
    }

    /// All its members, wherever they lie.
    pub(in crate::queue::engine) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.members.iter().chain(self.taken_back.iter().map(|taken| &taken.entry))
    }

    /// The name by which people find it in the queue directory: that of the folder, or of the primary.
    pub(in crate::queue::engine) fn entry_name(&self) -> &Name {
        self.folder.as_ref().map_or(&self.primary, |folder| &folder.entry.name)
    }

    /// Identifies the present state of these files.
    pub(in crate::queue::engine) fn state(&self) -> State {
        self.entries().map(|member| (member.name.clone(), member.stamp())).collect()
    }
}

pub(in crate::queue::engine) type State = Vec<(Name, Stamp)>;
