//! The clusters that a qcow2 output consists of.

use super::job::WriteJob;
use crate::disk::buffer::Buffer;

/// Bytes of a cluster, and its logarithm.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
pub(super) const CLUSTER_BITS: u32 = 16;
/// The same, as a length in memory.
pub(super) const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;

/// A write of one host cluster of metadata, padded with zeros.
pub(super) fn cluster_job(number: u64, bytes: impl Iterator<Item = u8>) -> WriteJob {
    let mut buffer = Buffer::new(CLUSTER_BYTES);
    for (target, byte) in buffer.iter_mut().zip(bytes) {
        *target = byte;
    }
    WriteJob { buffer, parts: vec![(number * CLUSTER, 0..CLUSTER_BYTES)] }
}
