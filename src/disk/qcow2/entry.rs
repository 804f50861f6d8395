// SPDX-License-Identifier: Apache-2.0
//! Entries of L1 and L2 tables.

use super::offsets::HostOffset;
use crate::disk::units::SECTOR;

/// Bits 9 to 55 of an entry: a place in the file.
const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// The cluster's refcount is one; of no use to a reader.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In version 3, without subclusters: reads as zeros.
const ZERO: u64 = 1 << 0;

/// What an L2 entry says of a guest cluster. `host` is where its bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Unallocated,
    /// Reads as zeros. `host` is the cluster kept for it, 0 where there is none.
    Zero {
        host: HostOffset,
    },
    Standard {
        host: HostOffset,
    },
    /// At most `len` bytes of a compressed stream.
    Compressed {
        host: HostOffset,
        len: u64,
    },
    /// 32 subclusters, each in the file where its bit is set in `stored`, else zeros.
    Subclusters {
        host: HostOffset,
        stored: u32,
    },
}

/// Where an L1 entry's L2 table lies; `None` where there is none.
pub(super) fn l1(entry: u64, cluster_bits: u32) -> Result<Option<HostOffset>, String> {
    if entry & !(OFFSET | COPIED) != 0 {
        return Err(format!("the L1 entry {entry:#018x} has reserved bits set"));
    }
    match aligned(entry, cluster_bits)? {
        HostOffset(0) => Ok(None),
        host => Ok(Some(host)),
    }
}

/// Decodes an L2 entry. `bitmap` is the second word of an extended entry.
pub(super) fn l2(entry: u64, bitmap: Option<u64>, cluster_bits: u32, version: u32) -> Result<Entry, String> {
    if entry & COMPRESSED != 0 {
        return Ok(compressed(entry, cluster_bits));
    }
    let zero_allowed = if version >= 3 && bitmap.is_none() { ZERO } else { 0 };
    if entry & !(OFFSET | COPIED | zero_allowed) != 0 {
        return Err(format!("the L2 entry {entry:#018x} has reserved bits set"));
    }
    let host = aligned(entry, cluster_bits)?;
    if let Some(bitmap) = bitmap {
        return subclusters(host, bitmap);
    }
    Ok(match (entry & ZERO != 0, host) {
        (true, host) => Entry::Zero { host },
        (false, HostOffset(0)) => Entry::Unallocated,
        (false, host) => Entry::Standard { host },
    })
}

/// The offset has `62 - (cluster_bits - 8)` bits; the bits above it count further sectors. The stream may end
/// anywhere in the last sector.
fn compressed(entry: u64, cluster_bits: u32) -> Entry {
    let bits = 62 - (cluster_bits - 8);
    let host = HostOffset(entry & ((1 << bits) - 1));
    let further = (entry & (COMPRESSED - 1)) >> bits;
    Entry::Compressed { host, len: (further + 1) * SECTOR - host.0 % SECTOR }
}

fn subclusters(host: HostOffset, bitmap: u64) -> Result<Entry, String> {
    let stored = u32::try_from(bitmap & u64::from(u32::MAX)).expect("32 bits are left");
    let zero = u32::try_from(bitmap >> 32).expect("32 bits are left");
    if stored & zero != 0 {
        return Err(format!("subclusters {:#x} are both stored and zeros", stored & zero));
    }
    if stored != 0 && host == HostOffset(0) {
        return Err("its subclusters are stored nowhere".into());
    }
    Ok(match (host, stored) {
        (HostOffset(0), _) => Entry::Unallocated,
        (host, 0) => Entry::Zero { host },
        (host, u32::MAX) => Entry::Standard { host },
        (host, stored) => Entry::Subclusters { host, stored },
    })
}

fn aligned(entry: u64, cluster_bits: u32) -> Result<HostOffset, String> {
    let host = entry & OFFSET;
    if host.is_multiple_of(1 << cluster_bits) {
        Ok(HostOffset(host))
    } else {
        Err(format!("byte {host} begins no cluster"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_entry_splits_where_the_cluster_size_says() {
        let host = 0x12_3456_789A_BCDE_u64;
        let entry = COMPRESSED | 0xA5 << 54 | host;
        let len = (0xA5 + 1) * 512 - 0xDE;
        assert_eq!(l2(entry, None, 16, 3), Ok(Entry::Compressed { host: HostOffset(host), len }));
        let host = 0x1_3456_789A_BCDE_u64;
        let entry = COMPRESSED | 0x1FFF << 49 | host;
        assert_eq!(l2(entry, Some(0), 21, 3), Ok(Entry::Compressed { host: HostOffset(host), len: 8192 * 512 - 0xDE }));
    }
}
