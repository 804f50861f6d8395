// SPDX-License-Identifier: Apache-2.0
//! Tables, directories and the descriptor lie on nothing else, in both kinds.

use super::*;

/// Guest bytes of one grain table.
const COVERED: u64 = 512 * GRAIN;

/// A disk of two grain tables, with one grain in each.
fn two_tables(kind: &Sparse) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    kind.write(&mut out, |n| (n % 512 == 7).then(|| vec![1; 65536])).unwrap();
    out.into_inner()
}

fn kinds_of_two() -> Vec<Sparse> {
    kinds(2 * COVERED).into_iter().filter(|kind| !kind.zero_grains).collect()
}

/// Where the fields are that count: the footer, or the header.
fn fields(file: &[u8], kind: &Sparse) -> usize {
    if kind.footer { file.len() - 1024 } else { 0 }
}

fn directory(file: &[u8], kind: &Sparse) -> usize {
    let at = fields(file, kind) + 56;
    usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap() * 512
}

fn entry(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(file[at..at + 4].try_into().unwrap())
}

fn set(file: &mut [u8], at: usize, entry: u32) {
    file[at..at + 4].copy_from_slice(&entry.to_le_bytes());
}

fn corrupt_at(file: &[u8]) -> Option<u64> {
    let error = Image::vmdk(&region(file), u64::MAX).unwrap_err();
    assert_eq!(error.reason, Reason::Corrupt, "{error}");
    error.offset
}

#[test]
fn a_directory_that_lies_in_the_metadata_is_refused() {
    for kind in kinds_of_two() {
        let good = two_tables(&kind);
        guest(&Image::vmdk(&region(&good), u64::MAX).unwrap()).unwrap();
        let footer = u32::try_from(fields(&good, &kind) / 512).unwrap();
        // The descriptor's zeros, which would be an empty disk, and the footer.
        for sector in [20].into_iter().chain(kind.footer.then_some(footer)) {
            let mut bad = good.clone();
            let field = fields(&bad, &kind) + 56;
            set(&mut bad, field, sector);
            assert!(corrupt_at(&bad).is_some(), "{kind:?}");
        }
        if kind.redundant {
            let mut bad = good;
            set(&mut bad, 48, 20);
            assert!(corrupt_at(&bad).is_some(), "{kind:?}");
        }
    }
}

#[test]
fn a_table_that_lies_on_something_else_is_refused_with_its_place() {
    for kind in kinds_of_two() {
        let kind = Sparse { redundant: false, ..kind };
        let good = two_tables(&kind);
        let directory = directory(&good, &kind);
        let [first, second] = [entry(&good, directory), entry(&good, directory + 4)];
        let in_directory = u32::try_from(directory / 512).unwrap();
        let metadata = [10, 18, 20, in_directory, in_directory - 3];
        let footer = kind.footer.then(|| u32::try_from(good.len() / 512).unwrap() - 4);
        for sector in metadata.into_iter().chain([second, second - 3, second + 3]).chain(footer) {
            let mut bad = good.clone();
            // No table names a grain, so that only the place of the table itself can be wrong.
            for table in [first, second] {
                bad[table as usize * 512..][..2048].fill(0);
            }
            set(&mut bad, directory, sector);
            assert!(corrupt_at(&bad).is_some(), "sector {sector}: {kind:?}");
        }
    }
}

#[test]
fn one_table_for_many_entries_of_the_directory_is_refused() {
    for kind in kinds_of_two() {
        let mut bad = two_tables(&kind);
        let directory = directory(&bad, &kind);
        let second = entry(&bad, directory + 4);
        bad[second as usize * 512..][..2048].fill(0);
        set(&mut bad, directory, second);
        set(&mut bad, 8, entry(&two_tables(&kind), 8) & !2);
        assert_eq!(corrupt_at(&bad), Some(u64::from(second) * 512), "{kind:?}");
    }
}

#[test]
fn a_compressed_grain_that_begins_in_a_table_is_refused_when_opened() {
    let kind = Sparse::stream_optimized(2 * COVERED);
    let mut bad = two_tables(&kind);
    let directory = directory(&bad, &kind);
    let [first, second] = [entry(&bad, directory), entry(&bad, directory + 4)];
    set(&mut bad, first as usize * 512 + 7 * 4, second + 3);
    assert_eq!(corrupt_at(&bad), Some(u64::from(second + 3) * 512));
}

#[test]
fn a_compressed_grain_that_reaches_into_the_metadata_is_refused() {
    let kind = Sparse { descending: true, ..Sparse::stream_optimized(2 * COVERED) };
    let good = two_tables(&kind);
    let directory = directory(&good, &kind);
    let [first, second] = [entry(&good, directory), entry(&good, directory + 4)].map(|sector| sector as usize * 512);
    let grains = [first, second].map(|table| entry(&good, table + 7 * 4) as usize * 512);
    // Tables of another grain, the own one, the directory, the footer.
    for (grain, end) in [(1, first), (0, first), (1, second), (1, directory), (0, good.len() - 1536)] {
        let mut bad = good.clone();
        let len = end + 1 - grains[grain] - 12;
        set(&mut bad, grains[grain] + 8, u32::try_from(len).unwrap());
        let error = guest(&Image::vmdk(&region(&bad), u64::MAX).unwrap()).map(drop).unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::Corrupt, Some(grains[grain] as u64)), "{error}");
        assert!(error.message.ends_with(&format!("{} are left for it", first - grains[grain] - 12)), "{error}");
    }
}
