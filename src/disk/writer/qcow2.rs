// SPDX-License-Identifier: Apache-2.0
//! qcow2 output: version 3, clusters of 64 KiB, 16-bit reference counts.
//!
//! Layout and constants: QEMU's `docs/interop/qcow2.txt`. Host clusters are handed out in guest order from a frontier;
//! an L2 table goes behind the data it maps, a refcount block behind the clusters it counts, then L1 and refcount table,
//! and the header at last. Until then the file has no magic number: an unfinished one is no image.

use super::cluster::cluster_job;
use super::coded::{Cluster, Coded, Coding, Content};
use super::job::WriteJob;
use super::output::Output;
use super::packer::Packer;
use super::refcounts::Refcounts;
use crate::conversion::{Compression, Reason};
use crate::disk::Error;
use crate::disk::buffer::Buffer;
use crate::disk::qcow2::offsets::{GuestOffset, HostCluster, HostOffset};
use crate::disk::units::{CLUSTER, CLUSTER_BITS, CLUSTER_BYTES, SECTOR};

/// Entries of an L2 table, and guest bytes that it maps.
const L2_ENTRIES: u64 = CLUSTER / 8;
const L2_BYTES: u64 = L2_ENTRIES * CLUSTER;
/// QEMU refuses an L1 table of more than 32 MiB: 2 PiB at this cluster size.
const MAX_SIZE: u64 = (32 << 20) / 8 * L2_BYTES;
/// "Refcount is exactly one": set for tables and plain clusters, never for compressed ones.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// A compressed entry's offset has `62 - (cluster_bits - 8)` bits; the extra sectors come above it.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
const HEADER_BYTES: u32 = 112;
/// Incompatible feature bit 3: the compression type is in the header.
const FEATURE_COMPRESSION_TYPE: u64 = 1 << 3;
const COMPRESSION_ZSTD: u8 = 1;
/// An open packed cluster this far behind the frontier is closed, so that refcount blocks can be written.
const MAX_LAG: u64 = 4096;

/// A qcow2 disk being written.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    size: u64,
    name: String,
    coding: Coding,
    zstd: bool,
    /// First host cluster that is free.
    frontier: HostCluster,
    packer: Packer,
    refcounts: Refcounts,
    /// Number of the L2 table being filled, and its entries, if any is set.
    l2: Option<(u64, Vec<u64>)>,
    l1: Vec<u64>,
    header: Option<Buffer>,
}

impl Qcow2 {
    /// A disk of `size` bytes; where these are not known yet, [`Qcow2::set_size`] follows.
    pub(super) fn new(
        compression: Compression,
        level: Option<u32>,
        size: Option<u64>,
        name: &str,
    ) -> Result<Self, Error> {
        let coding = match compression {
            Compression::None => Coding::Runs { unit: CLUSTER_BYTES },
            compression => Coding::Packed { compression, level },
        };
        let mut refcounts = Refcounts::new();
        refcounts.add(HostCluster(0));
        let mut disk = Self {
            size: 0,
            name: name.to_owned(),
            coding,
            zstd: compression == Compression::Zstd,
            frontier: HostCluster(1),
            packer: Packer::new(),
            refcounts,
            l2: None,
            l1: Vec::new(),
            header: None,
        };
        size.map_or(Ok(()), |size| disk.set_size(size))?;
        Ok(disk)
    }

    pub(super) fn set_size(&mut self, size: u64) -> Result<(), Error> {
        if size > MAX_SIZE {
            return Err(Error::refuse(Reason::TooLarge, &*self.name, "a qcow2 disk holds at most 2 PiB"));
        }
        self.size = size;
        self.l1.resize(usize::try_from(size.div_ceil(L2_BYTES)).expect("bounded by the largest size"), 0);
        Ok(())
    }

    pub(super) fn coding(&self) -> Coding {
        self.coding
    }

    pub(super) fn place(&mut self, coded: Coded, jobs: &mut Vec<WriteJob>) {
        let Coded { guest, buffer, content } = coded;
        let guest_start = GuestOffset(guest.start);
        let mut parts: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
        match content {
            Content::Runs(runs) => {
                for run in runs {
                    for at in run.step_by(CLUSTER_BYTES) {
                        self.plain(guest_start, at, &mut parts, jobs);
                    }
                }
            }
            Content::Packed { packed, clusters } => {
                let mut rest = packed.as_slice();
                for (at, cluster) in (0..).step_by(CLUSTER_BYTES).zip(clusters) {
                    match cluster {
                        Cluster::Zero => {}
                        Cluster::Plain => self.plain(guest_start, at, &mut parts, jobs),
                        Cluster::Packed(len) => {
                            let (bytes, behind) = rest.split_at(len as usize);
                            rest = behind;
                            self.packed(guest_start.plus(at as u64), bytes, jobs);
                        }
                    }
                }
            }
        }
        jobs.push(WriteJob { buffer, parts, zeros: Vec::new() });
        self.flush_refcounts(jobs);
    }

    /// Gives the cluster at `at` in the buffer a host cluster of its own.
    fn plain(
        &mut self,
        start: GuestOffset,
        at: usize,
        parts: &mut Vec<(u64, std::ops::Range<usize>)>,
        jobs: &mut Vec<WriteJob>,
    ) {
        let guest = start.plus(at as u64);
        self.enter(guest, jobs);
        let host = self.allocate().start();
        match parts.last_mut() {
            Some((offset, range)) if range.end == at && *offset + range.len() as u64 == host.0 => {
                range.end += CLUSTER_BYTES;
            }
            _ => parts.push((host.0, at..at + CLUSTER_BYTES)),
        }
        self.map(guest, alone(host));
    }

    fn packed(&mut self, guest: GuestOffset, bytes: &[u8], jobs: &mut Vec<WriteJob>) {
        self.enter(guest, jobs);
        let host = self.packer.add(bytes, &mut self.frontier, jobs);
        let last = host.plus(bytes.len() as u64 - 1);
        for number in host.cluster().0..=last.cluster().0 {
            self.refcounts.add(HostCluster(number));
        }
        let sectors = last.0 / SECTOR - host.0 / SECTOR;
        self.map(guest, COMPRESSED | sectors << SECTORS_SHIFT | host.0);
    }

    /// Makes the L2 table for `guest` the current one.
    fn enter(&mut self, guest: GuestOffset, jobs: &mut Vec<WriteJob>) {
        let number = guest.0 / L2_BYTES;
        if self.l2.as_ref().is_none_or(|(current, _)| *current != number) {
            self.flush_l2(jobs);
            self.l2 = Some((number, vec![0; usize::try_from(L2_ENTRIES).expect("8192")]));
        }
    }

    fn map(&mut self, guest: GuestOffset, entry: u64) {
        let (_, entries) = self.l2.as_mut().expect("entered before it is mapped");
        entries[usize::try_from(guest.0 % L2_BYTES / CLUSTER).expect("below 8192")] = entry;
    }

    /// The next host cluster, counted once.
    fn allocate(&mut self) -> HostCluster {
        let cluster = self.frontier;
        self.frontier = cluster.plus(1);
        self.refcounts.add(cluster);
        cluster
    }

    fn flush_l2(&mut self, jobs: &mut Vec<WriteJob>) {
        let Some((number, entries)) = self.l2.take() else { return };
        let host = self.allocate();
        let index = usize::try_from(number).expect("an index of L1");
        if index >= self.l1.len() {
            // The size isn't known yet.
            self.l1.resize(index + 1, 0);
        }
        self.l1[index] = alone(host.start());
        jobs.push(cluster_job(host, entries.into_iter().flat_map(u64::to_be_bytes)));
    }

    /// Writes the refcount blocks whose clusters get no more references.
    fn flush_refcounts(&mut self, jobs: &mut Vec<WriteJob>) {
        if self.packer.floor().is_some_and(|floor| floor.plus(MAX_LAG) < self.frontier) {
            self.packer.flush(jobs);
        }
        let floor = self.packer.floor().unwrap_or(self.frontier);
        while self.refcounts.is_final(floor) {
            let host = self.allocate();
            self.refcounts.write_first(host, jobs);
        }
    }

    pub(super) fn close(&mut self, jobs: &mut Vec<WriteJob>) {
        self.flush_l2(jobs);
        self.packer.flush(jobs);
        let l1 = self.frontier.start();
        let entries = std::mem::take(&mut self.l1);
        let l1_len = u32::try_from(entries.len()).expect("bounded by the largest size");
        self.table(&entries, jobs);

        // The blocks count themselves and the table that points at them: look for the number that suffices.
        let mut blocks = 0;
        let table = loop {
            let table = (self.refcounts.table.len() as u64 + blocks).div_ceil(CLUSTER / 8);
            let needed = self.refcounts.missing(self.frontier.0 + blocks + table);
            if needed <= blocks {
                break table;
            }
            blocks = needed;
        };
        let first = self.frontier;
        for _ in 0..blocks + table {
            self.allocate();
        }
        for number in 0..blocks {
            self.refcounts.write_first(first.plus(number), jobs);
        }
        let table_at = first.plus(blocks);
        for (number, entries) in (0..).zip(self.refcounts.table.chunks(CLUSTER_BYTES / 8)) {
            let entries = entries.iter().flat_map(|block| block.0.to_be_bytes());
            jobs.push(cluster_job(table_at.plus(number), entries));
        }
        let table_len = u32::try_from(table).expect("a refcount table is small");
        self.header = Some(self.header(l1, l1_len, table_at.start(), table_len));
    }

    /// Writes a table that may take several clusters.
    fn table(&mut self, entries: &[u64], jobs: &mut Vec<WriteJob>) {
        for entries in entries.chunks(CLUSTER_BYTES / 8) {
            let host = self.allocate();
            jobs.push(cluster_job(host, entries.iter().flat_map(|entry| entry.to_be_bytes())));
        }
    }

    fn header(&self, l1: HostOffset, l1_len: u32, table: HostOffset, table_clusters: u32) -> Buffer {
        let features = if self.zstd { FEATURE_COMPRESSION_TYPE } else { 0 };
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend_from_slice(b"QFI\xfb");
        header.extend_from_slice(&3u32.to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no backing file
        header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        header.extend_from_slice(&self.size.to_be_bytes());
        header.extend_from_slice(&[0; 4]); // no encryption
        header.extend_from_slice(&l1_len.to_be_bytes());
        header.extend_from_slice(&l1.0.to_be_bytes());
        header.extend_from_slice(&table.0.to_be_bytes());
        header.extend_from_slice(&table_clusters.to_be_bytes());
        header.extend_from_slice(&[0; 12]); // no snapshots
        header.extend_from_slice(&features.to_be_bytes());
        header.extend_from_slice(&[0; 16]); // no compatible or autoclear features
        header.extend_from_slice(&4u32.to_be_bytes()); // refcount order: 16 bits
        header.extend_from_slice(&HEADER_BYTES.to_be_bytes());
        header.push(if self.zstd { COMPRESSION_ZSTD } else { 0 });
        let mut buffer = Buffer::new(CLUSTER_BYTES);
        buffer[..header.len()].copy_from_slice(&header);
        buffer
    }

    pub(super) fn finish(self, output: &Output) -> Result<(), Error> {
        let header = self.header.expect("closed before it is finished");
        output.write(&header, 0)?;
        output.sync()
    }
}

/// The entry for a cluster at `host` that it alone refers to.
fn alone(host: HostOffset) -> u64 {
    host.0 | COPIED
}
