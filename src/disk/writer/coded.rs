// SPDX-License-Identifier: Apache-2.0
//! What a writer is given: guest bytes, encoded as it asked for.

use std::ops::Range;

use crate::conversion::Compression;
use crate::disk::buffer::Buffer;

/// How a writer wants its guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Runs of units (a power of two) that hold something else than zeros.
    Runs { unit: usize },
    /// Clusters of 64 KiB, compressed. The level is the compression's own, where given.
    Packed { compression: Compression, level: Option<u32> },
}

/// A batch, ready to be stored.
#[derive(Debug)]
pub(crate) struct Coded {
    pub guest: Range<u64>,
    /// The guest bytes, padded with zeros to a whole cluster.
    pub buffer: Buffer,
    pub content: Content,
}

/// What of a batch is to be stored.
#[derive(Debug)]
pub(crate) enum Content {
    /// These parts of the buffer.
    Runs(Vec<Range<usize>>),
    /// These clusters, one after the other; compressed ones take their bytes from `packed` in turn.
    Packed { packed: Vec<u8>, clusters: Vec<Cluster> },
}

/// A cluster of 64 KiB of guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    Zero,
    /// Stored as it is: it did not shrink.
    Plain,
    /// So many compressed bytes.
    Packed(u32),
}
