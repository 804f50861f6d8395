// SPDX-License-Identifier: Apache-2.0
//! Packs compressed clusters byte by byte into host clusters.

use super::job::WriteJob;
use crate::disk::buffer::Buffer;
use crate::disk::qcow2::offsets::{HostCluster, HostOffset};
use crate::disk::units::CLUSTER_BYTES;

/// Bytes gathered before they are written.
const GATHER: usize = 1 << 20;
/// A compressed cluster is smaller than one cluster, so that this much room is always enough for one more.
const ROOM: usize = GATHER + 2 * CLUSTER_BYTES;

/// The host clusters being filled: allocated, contiguous, the last perhaps partly.
#[derive(Debug)]
pub(super) struct Packer {
    /// Where the buffer's first byte belongs: the start of a cluster.
    base: HostOffset,
    buffer: Option<Buffer>,
    filled: usize,
    /// Bytes from `base` that are allocated: whole clusters.
    allocated: usize,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self { base: HostOffset(0), buffer: None, filled: 0, allocated: 0 }
    }

    /// First host cluster that may still get another compressed cluster; `None` where none is open.
    pub(super) fn floor(&self) -> Option<HostCluster> {
        self.buffer.is_some().then(|| self.base.plus(self.filled as u64).cluster())
    }

    /// Appends `bytes` and returns where they lie. `frontier` is the first free host cluster: it moves where more
    /// clusters are needed. A compressed cluster must be contiguous.
    pub(super) fn add(&mut self, bytes: &[u8], frontier: &mut HostCluster, jobs: &mut Vec<WriteJob>) -> HostOffset {
        let room = self.allocated - self.filled;
        let is_adjacent = self.base.plus(self.allocated as u64) == frontier.start();
        if bytes.len() > room && !is_adjacent {
            self.flush(jobs);
        }
        let buffer = self.buffer.get_or_insert_with(|| {
            self.base = frontier.start();
            Buffer::new(ROOM)
        });
        while self.allocated - self.filled < bytes.len() {
            self.allocated += CLUSTER_BYTES;
            *frontier = frontier.plus(1);
        }
        let offset = self.base.plus(self.filled as u64);
        buffer[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        if self.filled >= GATHER {
            self.write_whole(jobs);
        }
        offset
    }

    /// Writes the clusters that are full and keeps the rest.
    fn write_whole(&mut self, jobs: &mut Vec<WriteJob>) {
        let whole = self.filled / CLUSTER_BYTES * CLUSTER_BYTES;
        let Some(buffer) = self.buffer.take() else { return };
        let mut next = Buffer::new(ROOM);
        next[..self.filled - whole].copy_from_slice(&buffer[whole..self.filled]);
        jobs.push(WriteJob { buffer, parts: vec![(self.base.0, 0..whole)], zeros: Vec::new() });
        self.base = self.base.plus(whole as u64);
        self.filled -= whole;
        self.allocated -= whole;
        self.buffer = Some(next);
    }

    /// Writes everything; what is left of the last cluster stays unused.
    pub(super) fn flush(&mut self, jobs: &mut Vec<WriteJob>) {
        if let Some(buffer) = self.buffer.take()
            && self.allocated > 0
        {
            jobs.push(WriteJob { buffer, parts: vec![(self.base.0, 0..self.allocated)], zeros: Vec::new() });
        }
        self.filled = 0;
        self.allocated = 0;
    }
}
