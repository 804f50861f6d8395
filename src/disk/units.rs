// SPDX-License-Identifier: Apache-2.0
//! Sizes that readers, writers and the copy share.

/// Bytes of a sector. A guest's disk consists of whole sectors, several formats count in them, and direct reads are
/// multiples of them.
pub(crate) const SECTOR: u64 = 512;
/// The same, as a length in memory.
pub(crate) const SECTOR_BYTES: usize = 512;

/// Bytes of a cluster of our qcow2 outputs, and its logarithm. Batches begin and end at multiples of it, except at
/// the disk's end.
pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
pub(crate) const CLUSTER_BITS: u32 = 16;
/// The same, as a length in memory.
pub(crate) const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;

const _: () = assert!(SECTOR_BYTES as u64 == SECTOR && CLUSTER_BYTES as u64 == CLUSTER);
