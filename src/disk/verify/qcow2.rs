// SPDX-License-Identifier: Apache-2.0
//! The bounded check of a qcow2 output's metadata: bounds, overlaps, reference counts.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::conversion::Reason;
use crate::disk::Error;
use crate::disk::control::CopyControl;
use crate::disk::qcow2::offsets::{GuestOffset, HostCluster, HostOffset};
use crate::disk::units::{CLUSTER, CLUSTER_BITS, CLUSTER_BYTES, SECTOR};

/// Entries of a table's cluster, and counts of a refcount block.
const ENTRIES: u64 = CLUSTER / 8;
const BLOCK: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, with or without a place of its own (version 3). The merge of a fixed guest leaves such entries
/// where the guest's file system had zeroed or discarded; ours never do.
const ZERO: u64 = 1 << 0;
/// Offset bits of a plain entry, of a compressed one, and where its extra sectors begin.
const PLAIN_OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
const PACKED_OFFSET: u64 = (1 << 54) - 1;
const SECTORS_SHIFT: u32 = 54;
/// Host clusters counted in one pass over the tables: 8 MiB of counts for 256 GiB of file.
const WINDOW: u64 = 4 << 20;
/// Set in a count where the cluster must belong to one user alone.
const ALONE: u16 = 1 << 15;

/// Reads the tables of the output and counts every reference anew.
///
/// # Errors
/// `Internal` with the place where the metadata is wrong.
pub(super) fn qcow2(file: &File, name: &str, control: &CopyControl) -> Result<(), Error> {
    let check = Check::open(file, name, control)?;
    let clusters = check.len / CLUSTER;
    let mut from = 0;
    while from < clusters {
        check.window(HostCluster(from), WINDOW.min(clusters - from))?;
        from += WINDOW;
    }
    Ok(())
}

struct Check<'a> {
    file: &'a File,
    name: &'a str,
    control: &'a CopyControl,
    len: u64,
    size: u64,
    l1: Table,
    refcounts: Table,
}

/// A table of 64-bit entries.
#[derive(Clone, Copy)]
struct Table {
    at: HostOffset,
    entries: u64,
}

impl Table {
    /// Where entry `number` lies.
    const fn entry(self, number: u64) -> HostOffset {
        self.at.plus(number * 8)
    }
}

/// The counts of a window of host clusters.
struct Counts {
    from: HostCluster,
    counts: Vec<u16>,
}

impl<'a> Check<'a> {
    fn open(file: &'a File, name: &'a str, control: &'a CopyControl) -> Result<Self, Error> {
        let len = file.metadata().map_err(|e| Error::writing(name, 0, e))?.len();
        let mut header = [0; 112];
        file.read_exact_at(&mut header, 0).map_err(|e| Error::writing(name, 0, e))?;
        let u32_at = |at: usize| u64::from(u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes")));
        let u64_at = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let check = Self {
            file,
            name,
            control,
            len,
            size: u64_at(24),
            l1: Table { at: HostOffset(u64_at(40)), entries: u32_at(36) },
            refcounts: Table { at: HostOffset(u64_at(48)), entries: u32_at(56) * ENTRIES },
        };
        if &header[..8] != b"QFI\xfb\0\0\0\x03" || u32_at(20) != u64::from(CLUSTER_BITS) || u32_at(96) != 4 {
            return Err(check.wrong(HostOffset(0), "the header is not what was written"));
        }
        if check.l1.entries != check.size.div_ceil(ENTRIES * CLUSTER) || !len.is_multiple_of(CLUSTER) {
            return Err(check.wrong(HostOffset(36), "the sizes do not agree"));
        }
        Ok(check)
    }

    fn wrong(&self, at: HostOffset, what: &str) -> Error {
        let message = format!("the output does not verify: {what}");
        Error::refuse(Reason::Internal, self.name, message).at(at.0)
    }

    /// Counts the references to `count` host clusters from `from`, and compares them with the stored counts.
    fn window(&self, from: HostCluster, count: u64) -> Result<(), Error> {
        let len = usize::try_from(count).expect("a window");
        let mut counts = Counts { from, counts: vec![0; len] };
        self.alone(&mut counts, HostOffset(0))?;
        self.tables(&mut counts, self.l1)?;
        self.tables(&mut counts, self.refcounts)?;
        let mut l2 = vec![0; CLUSTER_BYTES];
        for (number, entry) in (0..).zip(self.entries(self.l1)) {
            let entry = entry?;
            if entry == 0 {
                continue;
            }
            self.control.check(self.name)?;
            let offset = self.plain(&mut counts, entry, self.l1.entry(number))?;
            self.read(&mut l2, offset)?;
            let first = GuestOffset(number * ENTRIES * CLUSTER);
            let l2_table = Table { at: offset, entries: ENTRIES };
            for (index, bytes) in (0..).zip(l2.as_chunks::<8>().0) {
                let entry = u64::from_be_bytes(*bytes);
                if entry == 0 {
                    continue;
                }
                if first.plus(index * CLUSTER) >= GuestOffset(self.size) {
                    return Err(self.wrong(l2_table.entry(index), "an entry lies behind the disk's end"));
                }
                self.data(&mut counts, entry, l2_table.entry(index))?;
            }
        }
        let mut blocks = Vec::new();
        for (number, entry) in (0..).zip(self.entries(self.refcounts)) {
            let entry = entry?;
            if entry != 0 {
                self.plain(&mut counts, entry | COPIED, self.refcounts.entry(number))?;
            }
            let counted = number * BLOCK..(number + 1) * BLOCK;
            if counted.start < from.0 + count && from.0 < counted.end {
                blocks.push((number, HostOffset(entry)));
            }
        }
        self.compare(&counts, &blocks)
    }

    fn compare(&self, counts: &Counts, blocks: &[(u64, HostOffset)]) -> Result<(), Error> {
        let mut covered = 0;
        let mut block = vec![0; CLUSTER_BYTES];
        for &(number, at) in blocks {
            if at == HostOffset(0) {
                continue;
            }
            self.control.check(self.name)?;
            self.read(&mut block, at)?;
            for (cluster, bytes) in (number * BLOCK..).zip(block.as_chunks::<2>().0) {
                let stored = u16::from_be_bytes(*bytes);
                let counted = cluster
                    .checked_sub(counts.from.0)
                    .and_then(|at| counts.counts.get(usize::try_from(at).ok()?))
                    .copied();
                let Some(counted) = counted else {
                    if stored != 0 && cluster >= self.len / CLUSTER {
                        return Err(self.wrong(HostCluster(cluster).start(), "a cluster behind the end is counted"));
                    }
                    continue;
                };
                covered += 1;
                if counted & !ALONE != stored || (counted & ALONE != 0 && stored != 1) {
                    return Err(self.wrong(HostCluster(cluster).start(), "a cluster's references are miscounted"));
                }
            }
        }
        if covered != counts.counts.len() {
            return Err(self.wrong(self.refcounts.at, "clusters without a count"));
        }
        Ok(())
    }

    fn data(&self, counts: &mut Counts, entry: u64, at: HostOffset) -> Result<(), Error> {
        if entry == ZERO {
            return Ok(());
        }
        if entry & COMPRESSED == 0 {
            return self.plain(counts, entry & !ZERO, at).map(drop);
        }
        if entry & COPIED != 0 {
            return Err(self.wrong(at, "a compressed cluster is marked as copied"));
        }
        let offset = HostOffset(entry & PACKED_OFFSET);
        let sectors = (entry & !COMPRESSED) >> SECTORS_SHIFT;
        let last = HostOffset((offset.0 / SECTOR + sectors + 1) * SECTOR - 1);
        if offset.0 < CLUSTER || last.0 >= self.len {
            return Err(self.wrong(at, "an entry points outside the file"));
        }
        for cluster in offset.cluster().0..=last.cluster().0 {
            counts.add(HostCluster(cluster), 0);
        }
        Ok(())
    }

    /// Counts a cluster that belongs to one entry alone, and returns its offset.
    fn plain(&self, counts: &mut Counts, entry: u64, at: HostOffset) -> Result<HostOffset, Error> {
        let offset = HostOffset(entry & PLAIN_OFFSET);
        if entry & COPIED == 0 || entry & !(COPIED | PLAIN_OFFSET) != 0 || !offset.0.is_multiple_of(CLUSTER) {
            return Err(self.wrong(at, "an entry is malformed"));
        }
        if offset == HostOffset(0) {
            return Err(self.wrong(at, "an entry points at the header"));
        }
        self.alone(counts, offset)?;
        Ok(offset)
    }

    fn alone(&self, counts: &mut Counts, offset: HostOffset) -> Result<(), Error> {
        if offset.0 + CLUSTER > self.len {
            return Err(self.wrong(offset, "a cluster lies outside the file"));
        }
        counts.add(offset.cluster(), ALONE);
        Ok(())
    }

    fn tables(&self, counts: &mut Counts, table: Table) -> Result<(), Error> {
        if !table.at.0.is_multiple_of(CLUSTER) || table.at == HostOffset(0) {
            return Err(self.wrong(table.at, "a table is not aligned"));
        }
        for cluster in 0..table.entries.div_ceil(ENTRIES) {
            self.alone(counts, table.at.plus(cluster * CLUSTER))?;
        }
        Ok(())
    }

    /// The entries of a table, read cluster by cluster.
    fn entries(&self, table: Table) -> impl Iterator<Item = Result<u64, Error>> + '_ {
        let mut chunk = vec![0; CLUSTER_BYTES];
        let mut held = None;
        (0..table.entries).map(move |number| {
            let cluster = number / ENTRIES;
            if held != Some(cluster) {
                self.read(&mut chunk, table.at.plus(cluster * CLUSTER))?;
                held = Some(cluster);
            }
            let at = usize::try_from(number % ENTRIES * 8).expect("within a cluster");
            Ok(u64::from_be_bytes(chunk[at..at + 8].try_into().expect("eight bytes")))
        })
    }

    fn read(&self, buffer: &mut [u8], at: HostOffset) -> Result<(), Error> {
        if at.0 + buffer.len() as u64 > self.len {
            return Err(self.wrong(at, "a table lies outside the file"));
        }
        self.file.read_exact_at(buffer, at.0).map_err(|e| Error::writing(self.name, at.0, e))
    }
}

impl Counts {
    fn add(&mut self, cluster: HostCluster, flags: u16) {
        let at = cluster.0.checked_sub(self.from.0).and_then(|at| usize::try_from(at).ok());
        if let Some(count) = at.and_then(|at| self.counts.get_mut(at)) {
            *count = ((*count & !ALONE) + 1) | (*count & ALONE) | flags;
        }
    }
}
