// SPDX-License-Identifier: Apache-2.0
//! The clusters that a qcow2 output consists of.

use super::job::WriteJob;
use crate::disk::buffer::Buffer;
use crate::disk::qcow2::offsets::HostCluster;
use crate::disk::units::CLUSTER_BYTES;

/// A write of one host cluster of metadata, padded with zeros.
pub(super) fn cluster_job(cluster: HostCluster, bytes: impl Iterator<Item = u8>) -> WriteJob {
    let mut buffer = Buffer::new(CLUSTER_BYTES);
    for (target, byte) in buffer.iter_mut().zip(bytes) {
        *target = byte;
    }
    WriteJob { buffer, parts: vec![(cluster.start().0, 0..CLUSTER_BYTES)], zeros: Vec::new() }
}
