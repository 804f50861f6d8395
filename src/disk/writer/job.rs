// SPDX-License-Identifier: Apache-2.0
//! A write that a writer wants done.

use std::ops::Range;

use crate::disk::buffer::Buffer;

/// A write that may be done at any time before `Writer::finish`, in any order. Offsets and
/// lengths suit direct I/O.
#[derive(Debug)]
pub(crate) struct WriteJob {
    pub buffer: Buffer,
    /// Parts of the buffer and the file offsets they go to.
    pub parts: Vec<(u64, Range<usize>)>,
    /// Ranges of a block device that become zeros.
    pub zeros: Vec<Range<u64>>,
}

impl WriteJob {
    /// Bytes of memory it holds.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it writes nothing.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.zeros.is_empty()
    }
}
