// SPDX-License-Identifier: Apache-2.0
//! VDI images of several makers, and broken ones.
#![allow(clippy::cast_possible_truncation)]

use proptest::prelude::*;

use super::*;
use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};

const MIB: usize = 1 << 20;
const LIMIT: u64 = 64 << 40;

/// A VDI of `blocks` entries with the data of block `b` filled with byte `b + 1`, data from byte `data`.
fn image(blocks: &[u32], data: u32, size: u64) -> Vec<u8> {
    let mut file = vec![0; 512];
    file[..40].copy_from_slice(b"<<< Some Other VirtualBox Disk Image >>>");
    let stored = blocks.iter().filter(|&&entry| entry < ZERO).count();
    for (at, value) in [
        (0x40, SIGNATURE),
        (0x44, VERSION),
        (0x48, 0x190),
        (0x4C, DYNAMIC),
        (0x154, 512),
        (0x158, data),
        (0x168, 512),
        (0x178, MIB as u32),
        (0x180, blocks.len() as u32),
        (0x184, stored as u32),
    ] {
        put(&mut file, at, value);
    }
    file[0x170..0x178].copy_from_slice(&size.to_le_bytes());
    for entry in blocks {
        file.extend_from_slice(&entry.to_le_bytes());
    }
    file.resize(data as usize + stored * MIB, 0);
    for block in 0..stored {
        file[data as usize + block * MIB..][..MIB].fill(block as u8 + 1);
    }
    file
}

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let region = region_over(bytes);
    let vdi = Vdi::open(&region, LIMIT)?;
    guest_bytes(&region, vdi.virtual_size(), vdi.extents())
}

fn refusal(bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = read(bytes).unwrap_err();
    (error.reason, error.offset)
}

#[test]
fn what_qemu_img_writes_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sample_disk(9 * MIB + 1536);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    for (options, kind) in [("static=off", "vdi dynamic"), ("static=on", "vdi static")] {
        qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "vdi", "-o", options, "raw", "x.vdi"]);
        let region = region_of(&directory.path().join("x.vdi"));
        let vdi = Vdi::open(&region, LIMIT).unwrap();
        assert_eq!(vdi.kind(), kind);
        assert_eq!(vdi.virtual_size(), disk.len() as u64);
        assert!(vdi.data_bytes() <= vdi.virtual_size());
        assert!(guest_bytes(&region, vdi.virtual_size(), vdi.extents()).unwrap() == disk, "{kind}");
    }
}

#[test]
fn data_may_begin_at_byte_1024_and_lie_in_any_order() {
    let blocks = [1, FREE, 0, ZERO, 2];
    let disk = read(&image(&blocks, 1024, 4 * MIB as u64 + 512)).unwrap();
    let first_bytes: Vec<u8> = disk.chunks(MIB).map(|block| block[block.len() - 1]).collect();
    assert_eq!(first_bytes, [2, 0, 1, 0, 3]);
    assert_eq!(disk.len(), 4 * MIB + 512);
}

#[test]
fn neighbouring_blocks_become_one_extent() {
    let region = region_over(&image(&[0, 1, 2, FREE, ZERO, 3], 1024, 6 * MIB as u64));
    let vdi = Vdi::open(&region, LIMIT).unwrap();
    let extents: Vec<Extent> = vdi.extents().map(Result::unwrap).collect();
    let mib = MIB as u64;
    assert_eq!(
        extents,
        [
            Extent { guest: 0..3 * mib, at: Location::Stored { file: 0, offset: 1024 } },
            Extent { guest: 3 * mib..5 * mib, at: Location::Zero },
            Extent { guest: 5 * mib..6 * mib, at: Location::Stored { file: 0, offset: 1024 + 3 * mib } },
        ]
    );
    assert_eq!(vdi.data_bytes(), 4 * mib);
}

#[test]
fn a_size_between_sectors_is_rounded_up_and_told() {
    let region = region_over(&image(&[0], 1024, 1000));
    let vdi = Vdi::open(&region, LIMIT).unwrap();
    assert_eq!(vdi.virtual_size(), 1024);
    assert_eq!(vdi.warnings().len(), 1);
}

#[test]
fn what_a_vdi_must_not_say_is_refused_with_its_place() {
    let good = image(&[1, FREE, 0], 1024, 3 * MIB as u64);
    let cases: [(&str, usize, u32, Reason, u64); 14] = [
        ("no VDI", 0x40, 0, Reason::FormatMismatch, 0x40),
        ("version 1.0", 0x44, 0x0001_0000, Reason::UnsupportedFormat, 0x44),
        ("undo image", 0x4C, 3, Reason::UnsafeReference, 0x4C),
        ("child", 0x4C, 4, Reason::UnsafeReference, 0x4C),
        ("unknown type", 0x4C, 9, Reason::Corrupt, 0x4C),
        ("link", 0x1A8, 7, Reason::UnsafeReference, 0x1A8),
        ("parent", 0x1C0, 7, Reason::UnsafeReference, 0x1B8),
        ("large sectors", 0x168, 4096, Reason::UnsupportedSectorSize, 0x168),
        ("odd block size", 0x178, 1_000_000, Reason::Corrupt, 0x178),
        ("extra bytes", 0x17C, 8, Reason::UnsupportedFormat, 0x17C),
        ("too few blocks", 0x180, 2, Reason::Corrupt, 0x180),
        ("map in the header", 0x154, 0x100, Reason::Corrupt, 0x154),
        ("data in the map", 0x158, 516, Reason::Corrupt, 0x158),
        ("more blocks than the file", 0x184, 3, Reason::Truncated, 1024),
    ];
    for (name, at, value, reason, place) in cases {
        let mut bad = good.clone();
        put(&mut bad, at, value);
        assert_eq!(refusal(&bad), (reason, Some(place)), "{name}");
    }
    assert!(read(&good).is_ok());
}

#[test]
fn a_disk_above_the_limit_is_too_large() {
    let region = region_over(&image(&[0], 1024, MIB as u64));
    assert_eq!(Vdi::open(&region, MIB as u64 - 1).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn two_blocks_in_one_place_are_corrupt() {
    assert_eq!(refusal(&image(&[1, 0, 1], 1024, 3 * MIB as u64)), (Reason::Corrupt, Some(512 + 8)));
}

#[test]
fn a_block_past_the_end_is_truncated_not_zeros() {
    assert_eq!(refusal(&image(&[0, 7], 1024, 2 * MIB as u64)), (Reason::Truncated, Some(512 + 4)));
}

#[test]
fn a_map_of_billions_of_blocks_in_a_small_file_is_refused_without_memory() {
    let mut bad = image(&[0], 1024, 1 << 50);
    put(&mut bad, 0x180, u32::MAX);
    put(&mut bad, 0x158, u32::MAX);
    let region = region_over(&bad);
    assert!(matches!(Vdi::open(&region, u64::MAX).unwrap_err().reason, Reason::Corrupt | Reason::Truncated));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_truncated_file_is_refused(cut in 0_usize..2 * MIB + 1024) {
        let good = image(&[1, FREE, 0], 1024, 3 * MIB as u64);
        prop_assert!(read(&good[..cut]).is_err());
    }

    #[test]
    fn a_flipped_bit_gives_an_error_or_a_whole_disk(at in 0_usize..524, bit in 0_u8..8) {
        let mut bad = image(&[1, FREE, 0], 1024, 3 * MIB as u64);
        bad[at] ^= 1 << bit;
        match read(&bad) {
            Ok(disk) => prop_assert!(disk.len() <= 4 * MIB),
            Err(error) => prop_assert!(error.offset.is_some(), "{error}"),
        }
    }
}
