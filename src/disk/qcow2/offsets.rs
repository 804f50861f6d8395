// SPDX-License-Identifier: Apache-2.0
//! Offsets in a qcow2, each kind a type of its own, so that none of the guest's disk is taken for one of the file.

use crate::disk::units::CLUSTER;

/// A byte of the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuestOffset(pub(crate) u64);

/// A byte of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostOffset(pub(crate) u64);

/// The number of a cluster of an output's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostCluster(pub(crate) u64);

impl GuestOffset {
    /// The byte `bytes` further.
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl HostOffset {
    /// The byte `bytes` further.
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// The cluster of an output that it lies in.
    pub(crate) const fn cluster(self) -> HostCluster {
        HostCluster(self.0 / CLUSTER)
    }
}

impl HostCluster {
    /// The cluster `count` further.
    pub(crate) const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// Its first byte.
    pub(crate) const fn start(self) -> HostOffset {
        HostOffset(self.0 * CLUSTER)
    }
}
