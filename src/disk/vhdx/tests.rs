// SPDX-License-Identifier: Apache-2.0
//! VHDX images of qemu-img and of our own making, with and without a log to replay, and broken ones.
#![allow(clippy::cast_possible_truncation)]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::guid::Guid;
use super::header::SIGNATURE;
use super::*;
use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};

mod replaying;

use replaying::{Change, write_entry};

const LIMIT: u64 = 64 << 40;
const BLOCK: usize = 1 << 20;
const LOG: usize = BLOCK;
const METADATA: usize = 2 * BLOCK;
const BAT: usize = 3 * BLOCK;
const LOG_GUID: Guid = [0x55; 16];

fn put16(file: &mut [u8], at: usize, value: u16) {
    file[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Sets the CRC-32C of a structure.
fn seal(bytes: &mut [u8]) {
    put32(bytes, 4, 0);
    let sum = crc32c::crc32c(bytes);
    put32(bytes, 4, sum);
}

/// Block `i` of the file lies at MiB 4 + i and is filled with i + 1.
fn stored(block: u64) -> u64 {
    (4 + block) << 20 | 6
}

fn image(bat: &[u64], blocks: usize, size: u64) -> Vec<u8> {
    let mut file = vec![0; (4 + blocks) * BLOCK];
    file[..8].copy_from_slice(SIGNATURE);
    for (at, sequence) in [(64 << 10, 7), (128 << 10, 8)] {
        let header = &mut file[at..at + 4096];
        header[..4].copy_from_slice(b"head");
        put64(header, 8, sequence);
        put16(header, 66, 1);
        put32(header, 68, BLOCK as u32);
        put64(header, 72, LOG as u64);
        seal(header);
    }
    for at in [192 << 10, 256 << 10] {
        let table = &mut file[at..at + 65536];
        table[..4].copy_from_slice(b"regi");
        put32(table, 8, 2);
        for (index, (id, offset)) in [(guid::BAT, BAT), (guid::METADATA, METADATA)].into_iter().enumerate() {
            let entry = 16 + index * 32;
            table[entry..entry + 16].copy_from_slice(&id);
            put64(table, entry + 16, offset as u64);
            put32(table, entry + 24, BLOCK as u32);
            put32(table, entry + 28, 1);
        }
        seal(table);
    }
    let metadata = &mut file[METADATA..METADATA + BLOCK];
    metadata[..8].copy_from_slice(b"metadata");
    put16(metadata, 10, 5);
    let items = [
        (guid::FILE_PARAMETERS, BLOCK as u64),
        (guid::VIRTUAL_DISK_SIZE, size),
        (guid::LOGICAL_SECTOR_SIZE, 512),
        (guid::PHYSICAL_SECTOR_SIZE, 4096),
        (guid::VIRTUAL_DISK_ID, 1),
    ];
    for (index, (id, value)) in items.into_iter().enumerate() {
        let entry = 32 + index * 32;
        metadata[entry..entry + 16].copy_from_slice(&id);
        put32(metadata, entry + 16, 65536 + index as u32 * 16);
        put32(metadata, entry + 20, [8, 8, 4, 4, 16][index]);
        put32(metadata, entry + 24, 4);
        put64(metadata, 65536 + index * 16, value);
    }
    for (index, entry) in bat.iter().enumerate() {
        put64(&mut file, BAT + index * 8, *entry);
    }
    for block in 0..blocks {
        file[(4 + block) * BLOCK..][..BLOCK].fill(block as u8 + 1);
    }
    file
}

fn good() -> Vec<u8> {
    image(&[stored(1), 0, stored(0), 2, 3], 2, 5 * BLOCK as u64)
}

/// Names a log in the newer header.
fn with_log_guid(mut file: Vec<u8>) -> Vec<u8> {
    let header = &mut file[128 << 10..(128 << 10) + 4096];
    header[48..64].copy_from_slice(&LOG_GUID);
    seal(header);
    file
}

/// A first sector of the block table with these entries, and something in its last bytes.
fn table(entries: &[u64]) -> [u8; 4096] {
    let mut sector = [0; 4096];
    for (index, entry) in entries.iter().enumerate() {
        put64(&mut sector, index * 8, *entry);
    }
    sector
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let region = region_over(bytes);
    let vhdx = Vhdx::open(&region, LIMIT)?;
    guest_bytes(&region, vhdx.virtual_size(), vhdx.extents())
}

/// The first byte of each block.
fn blocks(bytes: &[u8]) -> Vec<u8> {
    read(bytes).unwrap().chunks(BLOCK).map(|block| block[0]).collect()
}

fn refusal(bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = read(bytes).unwrap_err();
    (error.reason, error.offset)
}

fn qemu_io(directory: &Path, file: &str, command: &str) {
    let output =
        Command::new("qemu-io").current_dir(directory).args(["-c", command, file]).output().expect("qemu-io runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_qemu_img_writes_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sample_disk((9 << 20) + 1536);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    for (options, kind) in [
        ("subformat=dynamic", "vhdx dynamic"),
        ("subformat=dynamic,block_size=1M,log_size=2M", "vhdx dynamic"),
        ("subformat=fixed,block_size=2M", "vhdx fixed"),
    ] {
        qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "vhdx", "-o", options, "raw", "x.vhdx"]);
        let region = region_of(&directory.path().join("x.vhdx"));
        let vhdx = Vhdx::open(&region, LIMIT).unwrap();
        // qemu-img rounds a VHDX up to whole MiB only where asked; the disk itself keeps its sectors.
        assert_eq!((vhdx.kind(), vhdx.virtual_size()), (kind, disk.len() as u64));
        assert!(vhdx.warnings().is_empty(), "{:?}", vhdx.warnings());
        assert!(guest_bytes(&region, vhdx.virtual_size(), vhdx.extents()).unwrap() == disk, "{options}");
    }
}

#[test]
fn bitmap_entries_between_the_blocks_are_stepped_over() {
    let directory = tempfile::tempdir().unwrap();
    qemu_img(directory.path(), &["create", "-f", "vhdx", "-o", "block_size=1M", "x.vhdx", "9G"]);
    // Blocks 4095, 4096 and 8192: before and behind the entries that follow 4,096 blocks each.
    for (offset, byte) in [("4095M", 1), ("4096M", 2), ("8192M", 3)] {
        qemu_io(directory.path(), "x.vhdx", &format!("write -P {byte} {offset} 1M"));
    }
    let region = region_of(&directory.path().join("x.vhdx"));
    let vhdx = Vhdx::open(&region, LIMIT).unwrap();
    let mut found = Vec::new();
    for extent in vhdx.extents() {
        let extent = extent.unwrap();
        if let Location::Stored { offset, .. } = extent.at {
            let mut bytes = vec![0; extent.len() as usize];
            region.read_exact_at(&mut bytes, offset).unwrap();
            found.extend(bytes.chunks(BLOCK).zip(extent.guest.start >> 20..).map(|(block, mib)| (mib, block[7])));
        }
    }
    assert_eq!(found, [(4095, 1), (4096, 2), (8192, 3)]);
    assert_eq!(vhdx.data_bytes(), 3 << 20);
}

#[test]
fn every_state_of_a_block_has_its_meaning() {
    assert_eq!(blocks(&image(&[stored(1), 0, 1, 2, 3, 5, stored(0)], 2, 7 << 20)), [2, 0, 0, 0, 0, 0, 1]);
    // A block that was discarded may still name its place.
    assert_eq!(blocks(&image(&[stored(0), 5 << 20 | 3], 2, 2 << 20)), [1, 0]);
    for state in [4, 7] {
        let bad = image(&[stored(0), 5 << 20 | state], 2, 2 << 20);
        assert_eq!(refusal(&bad), (Reason::Corrupt, Some(BAT as u64 + 8)), "state {state}");
    }
}

#[test]
fn the_newer_header_and_a_valid_region_table_are_taken() {
    let mut file = good();
    file[(64 << 10) + 30] ^= 1;
    file[(192 << 10) + 30] ^= 1;
    assert_eq!(blocks(&file), [2, 0, 1, 0, 0]);
    file[(256 << 10) + 30] ^= 1;
    assert_eq!(refusal(&file), (Reason::Corrupt, Some(192 << 10)));
    file[(128 << 10) + 30] ^= 1;
    assert_eq!(refusal(&file), (Reason::Corrupt, Some(64 << 10)));

    // The older header names a log, the newer one does not.
    let mut file = good();
    let older = &mut file[64 << 10..(64 << 10) + 4096];
    older[48..64].copy_from_slice(&LOG_GUID);
    seal(older);
    assert!(Vhdx::open(&region_over(&file), LIMIT).unwrap().warnings().is_empty());
    put64(&mut file[64 << 10..(64 << 10) + 4096], 8, 8);
    seal(&mut file[64 << 10..(64 << 10) + 4096]);
    assert_eq!(refusal(&file), (Reason::Corrupt, Some(128 << 10)), "one number, two headers");

    let mut file = good();
    put32(&mut file[192 << 10..], 16 + 24, 2 << 20);
    seal(&mut file[192 << 10..256 << 10]);
    assert_eq!(refusal(&file), (Reason::Corrupt, Some(256 << 10)), "two region tables");
}

#[test]
fn what_a_header_or_region_table_must_not_say_is_refused() {
    let header: [(&str, usize, u64, Reason); 4] = [
        ("version 2", 66, 2, Reason::UnsupportedFormat),
        ("log of version 1", 64, 0x0001_0001, Reason::UnsupportedFormat),
        ("log past the end", 72, 1 << 30, Reason::Truncated),
        ("log on the headers", 72, 0, Reason::Corrupt),
    ];
    for (name, at, value, reason) in header {
        let mut bad = with_log_guid(good());
        let header = &mut bad[128 << 10..(128 << 10) + 4096];
        let kept = header[at + 2..at + 8].to_vec();
        put64(header, at, value);
        if at == 66 {
            header[at + 2..at + 8].copy_from_slice(&kept);
        }
        seal(header);
        assert_eq!(refusal(&bad).0, reason, "{name}");
    }
    let regions: [(&str, usize, u64, Reason); 8] = [
        ("too many regions", 8, 2048, Reason::Corrupt),
        ("no metadata", 8, 1, Reason::Corrupt),
        ("a region of unknown use", 16, 1, Reason::UnsupportedFormat),
        ("a region within a MiB", 32, 5000, Reason::Corrupt),
        ("a region on the headers", 32, 0, Reason::Corrupt),
        ("a region past the end", 32, 1 << 40, Reason::Truncated),
        ("a region on another", 32, 2 << 20, Reason::Corrupt),
        ("an empty region", 40, 1 << 32, Reason::Corrupt),
    ];
    for (name, at, value, reason) in regions {
        let mut bad = good();
        for start in [192 << 10, 256 << 10] {
            let table = &mut bad[start..start + 65536];
            put64(table, at, value);
            seal(table);
        }
        assert_eq!(refusal(&bad).0, reason, "{name}");
    }
}

#[test]
fn what_metadata_must_not_say_is_refused_with_its_place() {
    let items = METADATA + 65536;
    let cases: [(&str, usize, u64, Reason, usize); 13] = [
        ("no table", METADATA, 0, Reason::Corrupt, METADATA),
        ("too many items", METADATA + 10, 2048, Reason::Corrupt, METADATA + 10),
        ("no items", METADATA + 10, 0, Reason::Corrupt, METADATA),
        ("an unknown item", METADATA + 32, 0, Reason::UnsupportedFormat, METADATA + 32),
        ("an item in the table", METADATA + 48, 8 << 32 | 0x100, Reason::Corrupt, METADATA + 32),
        ("an item past the region", METADATA + 48, 8 << 32 | 0xFF_FFFF, Reason::Corrupt, METADATA + 32),
        ("a short item", METADATA + 48, 4 << 32 | 65536, Reason::Corrupt, METADATA + 32),
        ("blocks of 3 MiB", items, 3 << 20, Reason::Corrupt, items),
        ("blocks of 512 MiB", items, 512 << 20, Reason::Corrupt, items),
        ("a parent", items, 2 << 32 | 1 << 20, Reason::UnsafeReference, items + 4),
        ("no disk", items + 16, 0, Reason::Corrupt, items + 16),
        ("part of a sector", items + 16, 1000, Reason::Corrupt, items + 16),
        ("sectors of 4096 bytes", items + 32, 4096, Reason::UnsupportedSectorSize, items + 32),
    ];
    for (name, at, value, reason, place) in cases {
        let mut bad = good();
        put64(&mut bad, at, value);
        assert_eq!(refusal(&bad), (reason, Some(place as u64)), "{name}");
    }
    let mut bad = good();
    bad[METADATA + 32 + 128..][..16].copy_from_slice(&guid::PARENT_LOCATOR);
    assert_eq!(refusal(&bad).0, Reason::UnsafeReference);
    let mut large = good();
    put64(&mut large, items + 16, 1 << 40);
    assert_eq!(refusal(&large), (Reason::Corrupt, Some(BAT as u64)), "more blocks than the table has");
    let error = Vhdx::open(&region_over(&good()), (5 << 20) - 1).unwrap_err();
    assert_eq!(error.reason, Reason::TooLarge);
}

#[test]
fn what_a_block_entry_must_not_say_is_refused_with_its_place() {
    for (name, entry, reason) in [
        ("on another block", stored(0), Reason::Corrupt),
        ("on the headers", 6, Reason::Corrupt),
        ("on the log", 1 << 20 | 6, Reason::Corrupt),
        ("on the metadata", 2 << 20 | 6, Reason::Corrupt),
        ("on the table", 3 << 20 | 6, Reason::Corrupt),
        ("reserved bits", stored(1) | 8, Reason::Corrupt),
        ("past the end", stored(2), Reason::Truncated),
        ("far past the end", 0xFFFF_FFFF_FFF0_0006, Reason::Truncated),
    ] {
        let bad = with_log_guid(image(&[stored(0), entry], 2, 2 << 20));
        assert_eq!(refusal(&bad), (reason, Some(BAT as u64 + 8)), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_truncated_file_is_refused(cut in 0_usize..6 << 20) {
        prop_assert!(read(&good()[..cut]).is_err());
    }

    #[test]
    fn a_flipped_bit_gives_an_error_or_a_whole_disk(
        at in prop_oneof![
            0_usize..8, 65536_usize..65616, 131_072_usize..131_152, 196_608_usize..196_688,
            LOG..LOG + 8192, METADATA..METADATA + 192, METADATA + 65536..METADATA + 65600, BAT..BAT + 40,
        ],
        bit in 0_u8..8,
    ) {
        let mut bad = with_log_guid(good());
        write_entry(&mut bad, 0, 0, 5, &[Change::Data(BAT, &table(&[stored(0)]))]);
        bad[at] ^= 1 << bit;
        let region = region_over(&bad);
        match Vhdx::open(&region, 64 << 20) {
            Ok(vhdx) => drop(guest_bytes(&region, vhdx.virtual_size(), vhdx.extents())),
            Err(error) => prop_assert!(error.offset.is_some(), "{error}"),
        }
    }
}
