// SPDX-License-Identifier: Apache-2.0
//! Sizes that a header only claims.

use super::*;
use crate::disk::units::SECTOR;

/// A file of nothing but a header, a descriptor and a directory of zeros for so many bytes in grains of 4 KiB, and the
/// count of its reads.
fn hollow(capacity: u64, descriptor: Option<String>) -> (Region, Arc<AtomicU64>) {
    let kind = Sparse { redundant: false, descriptor, ..Sparse::monolithic_sparse(65536) };
    let mut bytes = built(&kind, &vec![0; 65536]);
    bytes[12..20].copy_from_slice(&(capacity / SECTOR).to_le_bytes());
    bytes[20..28].copy_from_slice(&8u64.to_le_bytes());
    bytes[56..64].copy_from_slice(&100u64.to_le_bytes());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let len = 100 * SECTOR + capacity / (4096 * 512) * 4;
    file.set_len(len).unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let region = Region::whole(Arc::new(file), "a.vmdk", len).before_reads(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    (region, reads)
}

#[test]
fn a_size_beyond_the_limit_or_of_another_part_is_refused_before_the_tables_are_walked() {
    let (region, reads) = hollow(1 << 44, Some(descriptor("monolithicSparse", 1 << 44)));
    let error = Image::vmdk(&region, (1 << 44) - 1).unwrap_err();
    assert_eq!((error.reason, error.offset), (Reason::TooLarge, Some(12)), "{error}");
    assert!(reads.load(Ordering::Relaxed) < 4, "{reads:?} reads");

    let (region, reads) = hollow(1 << 30, None);
    let error = open_extent(&region, (1 << 30) + 512).unwrap_err();
    assert_eq!((error.reason, error.offset), (Reason::Corrupt, Some(12)), "{error}");
    assert!(reads.load(Ordering::Relaxed) < 4, "{reads:?} reads");
}

#[test]
fn the_last_grain_of_the_largest_capacity_ends_with_it() {
    let content = content(65536);
    let region = region(&built(&Sparse::monolithic_sparse(65536), &content));
    let header = Header { capacity: u64::MAX - 511, grain: 2 << 20, ..Header::read(&region).unwrap() };
    let reserved = Reserved::default();
    let tables = Tables::new(&region, &header, &reserved);
    let last = header.tables() - 1;
    assert_eq!(tables.guest(last, 511), Some(u64::MAX - (2 << 20) + 1..u64::MAX - 511));
    assert_eq!(tables.guest(last, 512), None);
}
