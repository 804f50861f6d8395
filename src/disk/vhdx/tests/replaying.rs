// SPDX-License-Identifier: Apache-2.0
//! Logs to replay, and broken ones.

use super::*;

/// What a test's log entry changes.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    Data(usize, &'a [u8; 4096]),
    Zero(usize, usize),
}

/// Writes an entry at `at` bytes of the log, around its end, and returns where the next one goes.
pub(super) fn write_entry(file: &mut [u8], at: usize, tail: usize, sequence: u64, changes: &[Change<'_>]) -> usize {
    let head = (64 + changes.len() * 32).next_multiple_of(4096);
    let mut entry = vec![0; head];
    entry[..4].copy_from_slice(b"loge");
    put32(&mut entry, 12, tail as u32);
    put64(&mut entry, 16, sequence);
    put32(&mut entry, 24, changes.len() as u32);
    entry[32..48].copy_from_slice(&LOG_GUID);
    put64(&mut entry, 48, file.len() as u64);
    put64(&mut entry, 56, file.len() as u64);
    for (index, change) in changes.iter().enumerate() {
        let mut descriptor = [0; 32];
        put64(&mut descriptor, 24, sequence);
        match *change {
            Change::Zero(offset, len) => {
                descriptor[..4].copy_from_slice(b"zero");
                put64(&mut descriptor, 8, len as u64);
                put64(&mut descriptor, 16, offset as u64);
            }
            Change::Data(offset, data) => {
                descriptor[..4].copy_from_slice(b"desc");
                descriptor[4..8].copy_from_slice(&data[4092..]);
                descriptor[8..16].copy_from_slice(&data[..8]);
                put64(&mut descriptor, 16, offset as u64);
                let mut sector = *data;
                sector[..4].copy_from_slice(b"data");
                put32(&mut sector, 4, (sequence >> 32) as u32);
                put32(&mut sector, 4092, sequence as u32);
                entry.extend_from_slice(&sector);
            }
        }
        entry[64 + index * 32..][..32].copy_from_slice(&descriptor);
    }
    let len = entry.len() as u32;
    put32(&mut entry, 8, len);
    seal(&mut entry);
    for (index, byte) in entry.iter().enumerate() {
        file[LOG + (at + index) % BLOCK] = *byte;
    }
    (at + entry.len()) % BLOCK
}

#[test]
fn a_log_is_replayed_into_memory() {
    let mut file = with_log_guid(image(&[0, 0, 0], 3, 3 << 20));
    let mut first = table(&[stored(2), stored(0), 0]);
    first[4088..].copy_from_slice(&[0; 8]);
    let next = write_entry(&mut file, 0, 0, 41, &[Change::Data(BAT, &first), Change::Zero(BAT + 4096, 8192)]);
    assert_eq!(blocks(&file), [3, 1, 0]);
    write_entry(&mut file, next, 0, 42, &[Change::Data(BAT, &table(&[stored(2), stored(0), stored(1)]))]);
    assert_eq!(blocks(&file), [3, 1, 2]);
    let vhdx = Vhdx::open(&region_over(&file), LIMIT).unwrap();
    assert_eq!(vhdx.warnings(), ["image: was not closed; 2 entries of its log were applied"]);
}

#[test]
fn a_sector_of_the_log_gets_its_first_and_last_bytes_back() {
    let mut file = with_log_guid(good());
    let mut sector: [u8; 4096] = file[METADATA..METADATA + 4096].try_into().unwrap();
    sector[4092..].copy_from_slice(&[1, 2, 3, 4]);
    file[METADATA..METADATA + 4096].fill(0xEE);
    write_entry(&mut file, 0, 0, 1, &[Change::Data(METADATA, &sector)]);
    assert_eq!(blocks(&file), [2, 0, 1, 0, 0]);
    let region = region_over(&file);
    let (patches, _) = log::replay(&region, header::logs(&region, &mut Vec::new()).unwrap().current.unwrap()).unwrap();
    assert_eq!(patches[&(METADATA as u64)].as_deref(), Some(&sector));
}

#[test]
fn a_log_may_run_around_its_end_and_hold_older_entries() {
    let mut file = with_log_guid(image(&[0], 2, 1 << 20));
    // Old entries, whose changes were written in place long ago.
    write_entry(&mut file, 65536, 65536, 3, &[Change::Data(BAT, &table(&[stored(1)]))]);
    // The active sequence. Its head says that only the second entry is left to replay, and the ring's end cuts that
    // one.
    let second = write_entry(&mut file, BLOCK - 12288, BLOCK - 12288, 90, &[Change::Data(BAT, &table(&[stored(1)]))]);
    assert_eq!(second, BLOCK - 4096);
    let third = write_entry(&mut file, second, second, 91, &[Change::Data(BAT, &table(&[stored(0)]))]);
    assert_eq!(third, 4096);
    write_entry(&mut file, third, second, 92, &[Change::Zero(BAT + 4096, 4096)]);
    assert_eq!(blocks(&file), [1]);
    let vhdx = Vhdx::open(&region_over(&file), LIMIT).unwrap();
    assert!(vhdx.warnings()[0].contains("2 entries"), "{:?}", vhdx.warnings());
}

#[test]
fn a_log_without_an_entry_of_its_own_is_left_out() {
    let untouched = [2, 0, 1, 0, 0];
    let empty = with_log_guid(good());
    assert_eq!(blocks(&empty), untouched);
    let vhdx = Vhdx::open(&region_over(&empty), LIMIT).unwrap();
    assert!(vhdx.warnings()[0].contains("no valid entries"));

    // Entries of another log, whole and overwritten ones.
    let mut foreign = good();
    let second = write_entry(&mut foreign, 0, 0, 5, &[Change::Data(BAT, &table(&[0; 5]))]);
    write_entry(&mut foreign, second, second, 6, &[Change::Data(BAT, &table(&[0; 5]))]);
    assert_eq!(blocks(&foreign), untouched, "no log is named");
    let header = &mut foreign[128 << 10..(128 << 10) + 4096];
    header[48..64].copy_from_slice(&[0xA7; 16]);
    seal(header);
    assert_eq!(blocks(&foreign), untouched, "another log is named");
    foreign[LOG + 100] ^= 1;
    assert_eq!(blocks(&foreign), untouched, "another log is named, and this one torn");
}

/// The refusal of a damaged log, with its place.
fn damaged(file: &[u8]) -> Option<u64> {
    let error = read(file).unwrap_err();
    assert_eq!((error.reason, error.remedy), (Reason::Corrupt, Some(Remedy::ReplayLog)), "{error}");
    error.offset
}

#[test]
fn a_damaged_log_is_refused_before_blocks_that_only_it_knows_become_zeros() {
    let change = table(&[stored(1), 0, stored(0)]);
    let mut whole = with_log_guid(image(&[0, 0, 0], 2, 3 << 20));
    write_entry(&mut whole, 0, 0, 5, &[Change::Data(BAT, &change)]);
    assert_eq!(blocks(&whole), [2, 0, 1]);
    // Signature, checksum, length, number, descriptors, identifier, and the descriptor and data themselves.
    for at in [0, 4, 8, 12, 16, 24, 32, 47, 64, 80, 88, 100, 4096, 4100, 5000, 8188] {
        let mut bad = whole.clone();
        bad[LOG + at] ^= 1;
        assert_eq!(damaged(&bad), Some(LOG as u64), "byte {at}");
    }
    let mut bad = whole.clone();
    bad[LOG..LOG + 4096].fill(0);
    assert_eq!(damaged(&bad), Some(LOG as u64 + 4096), "a head that is lost");

    let mut tailless = with_log_guid(good());
    write_entry(&mut tailless, 4096, 0, 5, &[Change::Data(BAT, &change)]);
    assert_eq!(damaged(&tailless), Some(LOG as u64 + 4096), "its tail is not there");
}

#[test]
fn an_entry_with_a_higher_number_than_the_last_applied_is_refused() {
    let changes = [Change::Data(BAT, &table(&[stored(1)]))];
    let mut two = with_log_guid(good());
    let second = write_entry(&mut two, 0, 0, 5, &changes);
    let third = write_entry(&mut two, second, 0, 6, &changes);
    assert_eq!(blocks(&two), [2, 0, 0, 0, 0]);
    for at in [0, 16, 40, 90, 4100] {
        let mut bad = two.clone();
        bad[LOG + second + at] ^= 0x10;
        assert_eq!(damaged(&bad), Some((LOG + second) as u64), "byte {at}");
    }
    // Whole, but its tail lies in another sequence.
    write_entry(&mut two, 65536, second, 9, &[Change::Zero(BAT + 4096, 4096)]);
    assert_eq!(damaged(&two), Some(LOG as u64 + 65536));

    // What was applied long ago may be overwritten in part.
    let mut older = with_log_guid(good());
    write_entry(&mut older, third, third, 3, &changes);
    older[LOG + third + 4096] ^= 1;
    write_entry(&mut older, 0, 0, 5, &changes);
    assert_eq!(blocks(&older), [2, 0, 0, 0, 0]);
}

#[test]
fn a_damaged_newer_header_does_not_hide_its_log() {
    let mut file = with_log_guid(image(&[0], 1, 1 << 20));
    file[(128 << 10) + 100] ^= 1;
    let vhdx = Vhdx::open(&region_over(&file), LIMIT).unwrap();
    assert_eq!(vhdx.warnings(), ["image: one of its two headers is damaged; the other was read"]);
    write_entry(&mut file, 0, 0, 5, &[Change::Data(BAT, &table(&[stored(0)]))]);
    assert_eq!(damaged(&file), Some(128 << 10));
}

#[test]
fn a_log_that_changes_too_much_or_the_wrong_place_is_refused() {
    for (name, change, reason) in [
        ("16 MiB and a sector", Change::Zero(32 << 20, (16 << 20) + 4096), Reason::UnsupportedFormat),
        ("without end", Change::Zero(32 << 20, 1 << 62), Reason::UnsupportedFormat),
        ("over the end of all numbers", Change::Zero(1 << 63, 1 << 63), Reason::Corrupt),
        ("part of a sector", Change::Zero(32 << 20, 100), Reason::Corrupt),
        ("a header", Change::Zero(64 << 10, 4096), Reason::Corrupt),
        ("itself", Change::Zero(LOG + 8192, 4096), Reason::Corrupt),
        ("data", Change::Zero(4 * BLOCK + 8192, 4096), Reason::UnsupportedFormat),
    ] {
        let mut bad = with_log_guid(good());
        write_entry(&mut bad, 0, 0, 5, &[change]);
        assert_eq!(refusal(&bad).0, reason, "{name}");
    }
    let mut again = with_log_guid(good());
    let changes = vec![Change::Zero(32 << 20, 16 << 20); 65];
    write_entry(&mut again, 0, 0, 5, &changes);
    assert_eq!(refusal(&again).0, Reason::UnsupportedFormat, "the same place again and again");
}

#[test]
fn a_file_shorter_than_its_log_says_is_truncated() {
    let mut file = with_log_guid(image(&[0, 0, 0], 3, 3 << 20));
    write_entry(&mut file, 0, 0, 41, &[Change::Data(BAT, &table(&[stored(0)]))]);
    assert_eq!(refusal(&file[..6 * BLOCK]), (Reason::Truncated, Some(LOG as u64)));
}
