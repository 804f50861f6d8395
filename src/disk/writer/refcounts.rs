// SPDX-License-Identifier: Apache-2.0
//! Reference counts of a qcow2 file's clusters, written block by block behind the frontier.

use std::collections::VecDeque;

use super::cluster::cluster_job;
use super::job::WriteJob;
use crate::disk::qcow2::offsets::{HostCluster, HostOffset};
use crate::disk::units::CLUSTER;

/// Counts in a block: 16 bits each (refcount order 4).
const BLOCK: u64 = CLUSTER / 2;

/// The counts that are not written yet, and where the written ones are.
#[derive(Debug)]
pub(super) struct Refcounts {
    /// Number of the first block held.
    first: u64,
    blocks: VecDeque<Vec<u16>>,
    /// Where each block written lies.
    pub(super) table: Vec<HostOffset>,
}

impl Refcounts {
    pub(super) fn new() -> Self {
        Self { first: 0, blocks: VecDeque::new(), table: Vec::new() }
    }

    /// One more reference to `cluster`, whose block is not written yet.
    pub(super) fn add(&mut self, HostCluster(number): HostCluster) {
        let block = usize::try_from(number / BLOCK - self.first).expect("blocks held are few");
        while self.blocks.len() <= block {
            self.blocks.push_back(vec![0; usize::try_from(BLOCK).expect("32768")]);
        }
        self.blocks[block][usize::try_from(number % BLOCK).expect("below 32768")] += 1;
    }

    /// Whether the first block held lies wholly before `floor`, where counts are final.
    pub(super) fn is_final(&self, floor: HostCluster) -> bool {
        !self.blocks.is_empty() && (self.first + 1) * BLOCK <= floor.0
    }

    /// Blocks needed for `clusters` host clusters in all, less those written.
    pub(super) fn missing(&self, clusters: u64) -> u64 {
        clusters.div_ceil(BLOCK) - self.first
    }

    /// Writes the first block held to `cluster`.
    pub(super) fn write_first(&mut self, cluster: HostCluster, jobs: &mut Vec<WriteJob>) {
        let block = self.blocks.pop_front().unwrap_or_default();
        self.first += 1;
        self.table.push(cluster.start());
        jobs.push(cluster_job(cluster, block.into_iter().flat_map(u16::to_be_bytes)));
    }
}
