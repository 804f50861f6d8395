// SPDX-License-Identifier: Apache-2.0
//! VHD images of several makers, and broken ones.
#![allow(clippy::cast_possible_truncation)]

use proptest::prelude::*;

use super::footer::COOKIE;
use super::*;
use crate::conversion::Remedy;
use crate::disk::Image;
use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};

const LIMIT: u64 = 64 << 40;
const BLOCK: usize = 512 * 1024;
const GEOMETRY: [u8; 4] = [0xFF, 0xFF, 16, 255];

fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn footer(kind: u32, creator: [u8; 4], size: u64, geometry: [u8; 4]) -> Vec<u8> {
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(COOKIE);
    footer[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    footer[16..24].copy_from_slice(&if kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
    footer[28..32].copy_from_slice(&creator);
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[56..60].copy_from_slice(&geometry);
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    footer[68..84].fill(0xAB);
    seal(&mut footer, 64);
    footer
}

fn fixed(data: &[u8], creator: [u8; 4], geometry: [u8; 4]) -> Vec<u8> {
    [data, &footer(2, creator, data.len() as u64, geometry)].concat()
}

/// A dynamic disk: `order[i]` is the place in the file of block i, `None` a free one; block i is filled with i + 1, and
/// its sector bitmap says that nothing is in it.
fn dynamic(order: &[Option<u32>], size: u64, kind: u32) -> Vec<u8> {
    let footer = footer(kind, *b"win ", size, GEOMETRY);
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xFF);
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    header[28..32].copy_from_slice(&(order.len() as u32).to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    seal(&mut header, 36);
    let mut file = [footer.clone(), header].concat();
    for place in order {
        let sector = place.map_or(FREE, |place| 4 + place * (BLOCK as u32 / 512 + 1));
        file.extend_from_slice(&sector.to_be_bytes());
    }
    file.resize(2048, 0xFF);
    let stored = order.iter().flatten().max().map_or(0, |&last| last as usize + 1);
    for place in 0..stored {
        let index = order.iter().position(|&o| o == Some(place as u32)).unwrap_or(99);
        file.extend_from_slice(&[0; 512]);
        file.extend_from_slice(&vec![index as u8 + 1; BLOCK]);
    }
    file.extend_from_slice(&footer);
    file
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let region = region_over(bytes);
    let vhd = Vhd::open(&region, LIMIT)?;
    guest_bytes(&region, vhd.virtual_size(), vhd.extents())
}

fn refusal(bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = read(bytes).unwrap_err();
    (error.reason, error.offset)
}

#[test]
fn what_qemu_img_writes_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sample_disk((9 << 20) + 1536);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    for (options, kind) in [
        ("subformat=fixed,force_size=on", "vhd fixed"),
        ("subformat=dynamic,force_size=on", "vhd dynamic"),
        ("subformat=dynamic", "vhd dynamic"),
    ] {
        qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "vpc", "-o", options, "raw", "x.vhd"]);
        let region = region_of(&directory.path().join("x.vhd"));
        let vhd = Vhd::open(&region, LIMIT).unwrap();
        assert_eq!(vhd.kind(), kind);
        let mut expected = disk.clone();
        if !options.contains("force_size") {
            // Rounded up to whole cylinders.
            expected.resize(usize::try_from(vhd.virtual_size()).unwrap(), 0);
            assert!(expected.len() >= disk.len());
        }
        assert!(guest_bytes(&region, vhd.virtual_size(), vhd.extents()).unwrap() == expected, "{options}");
    }
}

#[test]
fn sector_bitmaps_are_not_believed_and_blocks_lie_in_any_order() {
    let disk = read(&dynamic(&[Some(1), None, Some(0), Some(2)], 3 * BLOCK as u64 + 1024, 3)).unwrap();
    assert_eq!(disk.len(), 3 * BLOCK + 1024);
    for (index, block) in disk.chunks(BLOCK).enumerate() {
        let byte = [1, 0, 3, 4][index];
        assert!(block.iter().all(|&b| b == byte), "block {index}");
    }
}

#[test]
fn only_virtual_pc_takes_the_size_from_its_geometry() {
    let data = sample_disk(4 << 20);
    // 7 cylinders, 16 heads, 63 sectors.
    let geometry = [0, 7, 16, 63];
    let by_geometry = 7 * 16 * 63 * 512;
    for (creator, geometry, size) in [
        (b"vpc ", geometry, by_geometry),
        (b"vpc ", GEOMETRY, data.len()),
        (b"vpc ", [0, 0, 16, 63], data.len()),
        (b"vpc ", [9, 9, 16, 63], data.len()),
        (b"win ", geometry, data.len()),
        (b"qemu", geometry, data.len()),
        (b"tap\0", geometry, data.len()),
    ] {
        assert!(read(&fixed(&data, *creator, geometry)).unwrap() == data[..size], "{creator:?} {geometry:?}");
    }
}

#[test]
fn holes_of_a_fixed_disk_are_zeros() {
    let mut data = vec![0; 4 << 20];
    data[1 << 20..(1 << 20) + 65536].fill(7);
    let region = region_over(&fixed(&data, *b"win ", GEOMETRY));
    let vhd = Image::vhd(&region, LIMIT).unwrap();
    assert_eq!(vhd.data_bytes(), Some(65536));
    let extents: Vec<Extent> = vhd.extents().map(Result::unwrap).collect();
    assert_eq!(extents[1].at, Location::Stored { file: 0, offset: 1 << 20 });
    assert!(guest_bytes(&region, vhd.virtual_size(), vhd.extents()).unwrap() == data);
}

#[test]
fn a_suspended_machine_is_told() {
    let mut file = dynamic(&[Some(0)], BLOCK as u64, 3);
    let end = file.len() - 512;
    file[end + 84] = 1;
    seal(&mut file[end..], 64);
    let vhd = Vhd::open(&region_over(&file), LIMIT).unwrap();
    assert_eq!(vhd.warnings().len(), 1);
    assert_eq!(vhd.data_bytes(), BLOCK as u64);
}

#[test]
fn a_differencing_disk_is_refused() {
    let (reason, _) = refusal(&dynamic(&[Some(0)], BLOCK as u64, 4));
    assert_eq!(reason, Reason::UnsafeReference);
}

#[test]
fn a_footer_that_lies_is_refused() {
    let good = dynamic(&[Some(0), Some(1)], 2 * BLOCK as u64, 3);
    let end = good.len() - 512;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        refusal(&bad)
    };
    let place = end as u64;
    let both = |bad: &mut Vec<u8>| {
        bad[50] ^= 1;
        bad[end + 50] ^= 1;
    };
    assert_eq!(with(&both), (Reason::Corrupt, Some(place)), "checksum");
    assert_eq!(with(&|bad| bad[0] = 0), (Reason::Corrupt, Some(0)), "no copy at the start");
    let change = |bad: &mut Vec<u8>, at: usize, value: u8, both: bool| {
        for start in if both { vec![0, end] } else { vec![end] } {
            bad[start + at] = value;
            seal(&mut bad[start..start + 512], 64);
        }
    };
    assert_eq!(with(&|bad| change(bad, 55, 8, false)), (Reason::Corrupt, Some(0)), "two sizes");
    assert_eq!(with(&|bad| change(bad, 63, 7, true)), (Reason::Corrupt, Some(place + 60)), "unknown type");
    assert_eq!(with(&|bad| change(bad, 13, 2, true)), (Reason::UnsupportedFormat, Some(place + 12)), "version 2");
    assert_eq!(with(&|bad| change(bad, 48, 1, true)), (Reason::Corrupt, Some(place + 48)), "above 2,040 GiB");
    assert_eq!(with(&|bad| change(bad, 52, 9, true)), (Reason::Corrupt, Some(512 + 28)), "too few blocks");
    assert_eq!(with(&|bad| change(bad, 22, 9, true)), (Reason::Corrupt, Some(512 + 0x700)), "header elsewhere");
}

#[test]
fn a_header_that_lies_is_refused() {
    let good = dynamic(&[Some(0), Some(1)], 2 * BLOCK as u64, 3);
    for (name, at, value, expected) in [
        ("block size", 34, 1, (Reason::Corrupt, Some(512 + 32))),
        ("version", 25, 2, (Reason::UnsupportedFormat, Some(512 + 24))),
        ("table in a sector", 23, 1, (Reason::Corrupt, Some(512 + 16))),
        ("table past the end", 19, 1, (Reason::Truncated, Some((1 << 32) + 1536))),
        ("table of billions", 28, 0xFF, (Reason::Truncated, Some(1536))),
        ("table on the header", 22, 2, (Reason::Corrupt, Some(512))),
    ] {
        let mut bad = good.clone();
        bad[512 + at] = value;
        seal(&mut bad[512..1536], 36);
        assert_eq!(refusal(&bad), expected, "{name}");
    }
}

#[test]
fn blocks_that_overlap_or_point_at_metadata_are_corrupt() {
    assert_eq!(refusal(&dynamic(&[Some(0), Some(0)], 2 * BLOCK as u64, 3)), (Reason::Corrupt, Some(1536 + 4)));
    for sector in [0_u32, 2, 3, 5] {
        let mut bad = dynamic(&[Some(0), Some(1)], 2 * BLOCK as u64, 3);
        bad[1540..1544].copy_from_slice(&sector.to_be_bytes());
        assert_eq!(refusal(&bad), (Reason::Corrupt, Some(1540)), "block at sector {sector}");
    }
}

#[test]
fn a_block_past_the_end_is_truncated_not_zeros() {
    let mut bad = dynamic(&[Some(0), Some(1)], 2 * BLOCK as u64, 3);
    bad[1540..1544].copy_from_slice(&99_999_u32.to_be_bytes());
    assert_eq!(refusal(&bad), (Reason::Truncated, Some(1540)));
    let short = fixed(&[7; 4096], *b"win ", GEOMETRY);
    assert_eq!(refusal(&short[1024..]), (Reason::Truncated, Some(3072)));
}

#[test]
fn a_disk_above_the_limit_is_too_large() {
    let region = region_over(&fixed(&[1; 4096], *b"win ", GEOMETRY));
    assert_eq!(Vhd::open(&region, 4095).unwrap_err().reason, Reason::TooLarge);
}

/// The guest's disk, and the warnings.
fn read_and_told(bytes: &[u8]) -> (Vec<u8>, Vec<String>) {
    let vhd = Vhd::open(&region_over(bytes), LIMIT).unwrap();
    (read(bytes).unwrap(), vhd.warnings().to_vec())
}

#[test]
fn a_dynamic_disk_whose_end_is_lost_damaged_or_padded_is_read_by_its_copy_with_a_warning() {
    let good = dynamic(&[Some(1), None, Some(0)], 3 * BLOCK as u64, 3);
    let end = good.len() - 512;
    let expected = read(&good).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    for (bytes, words) in [
        (with(&|bytes| bytes.truncate(end)), "its footer at the end is missing"),
        (with(&|bytes| bytes.truncate(end + 100)), "its footer at the end is missing"),
        (with(&|bytes| bytes[end..].fill(0)), "its footer at the end is missing"),
        (with(&|bytes| bytes[end] = 0), "its footer at the end is missing"),
        (with(&|bytes| bytes[end + 50] ^= 1), "its footer at the end is damaged"),
        (with(&|bytes| bytes.resize(end + 512 + 4096, 0)), "was padded with 4096 bytes"),
        (with(&|bytes| bytes.resize(end + 512 + 77, 0xFF)), "was padded with 77 bytes"),
    ] {
        let (disk, warnings) = read_and_told(&bytes);
        assert!(disk == expected, "{words}");
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?} for {words}");
    }
    // A block is cut as well: the copy alone does not make a disk.
    assert_eq!(refusal(&good[..end - 1]).0, Reason::Truncated);
    // Neither is whole.
    assert_eq!(refusal(&with(&|bytes| (bytes[50], bytes[end + 50]) = (9, 9))).0, Reason::Corrupt);
}

#[test]
fn a_footer_of_511_bytes_is_read() {
    let good = dynamic(&[Some(1), None, Some(0)], 3 * BLOCK as u64, 3);
    assert!(read(&good[..good.len() - 1]).unwrap() == read(&good).unwrap());
    let data = sample_disk(1 << 20);
    let fixed = fixed(&data, *b"vpc ", GEOMETRY);
    assert!(read(&fixed[..fixed.len() - 1]).unwrap() == data);
}

#[test]
fn a_padded_fixed_disk_is_read_and_told() {
    let data = sample_disk(1 << 20);
    for padding in [1, 512, 4000, 1 << 20] {
        let padded = [fixed(&data, *b"win ", GEOMETRY), vec![0; padding]].concat();
        let source = crate::disk::source::open(
            &Region::whole(region_over(&padded).file().unwrap().0.clone(), "a.vhd", padded.len() as u64),
            &[],
            &crate::disk::source::Limits { max_virtual_size: LIMIT, max_scratch_bytes: 0, ovf_option: None },
            &mut || unreachable!("nothing is inflated"),
        );
        let source = source.unwrap();
        assert!(source.warnings[0].contains("was padded with"), "{:?}", source.warnings);
        assert!(read(&padded).unwrap() == data, "{padding}");
    }
    // A guest whose own last sector looks like a footer of another disk is not taken for one.
    let other = [vec![1; 4096], fixed(&[1; 512], *b"win ", GEOMETRY), vec![0; 512]].concat();
    assert_eq!(refusal(&other).0, Reason::FormatMismatch);
}

#[test]
fn a_fixed_disk_that_begins_like_a_dynamic_one_is_refused() {
    let inner = dynamic(&[Some(1), None, Some(0)], 3 * BLOCK as u64, 3);
    for cut in [0, 1] {
        let outer = fixed(&inner, *b"win ", GEOMETRY);
        let error = read(&outer[..outer.len() - cut]).unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::FormatMismatch, Some(0)));
        assert_eq!(error.remedy, Some(Remedy::MakeDynamic));
    }
    // Even where only the first bytes look like one.
    let outer = fixed(&[&b"conectix"[..], &[7; 4096 - 8]].concat(), *b"win ", GEOMETRY);
    assert_eq!(refusal(&outer).0, Reason::FormatMismatch);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_truncated_file_is_refused(cut in 0_usize..2 * BLOCK + 3000) {
        let good = dynamic(&[Some(1), None, Some(0)], 3 * BLOCK as u64, 3);
        prop_assert!(read(&good[..cut]).is_err());
    }

    #[test]
    fn a_flipped_bit_gives_an_error_or_a_whole_disk(at in 0_usize..2048, bit in 0_u8..8) {
        let mut bad = dynamic(&[Some(1), None, Some(0)], 3 * BLOCK as u64, 3);
        bad[at] ^= 1 << bit;
        match read(&bad) {
            Ok(disk) => prop_assert_eq!(disk.len(), 3 * BLOCK),
            Err(error) => prop_assert!(error.offset.is_some(), "{error}"),
        }
    }
}

#[test]
fn the_largest_disk_is_one_extent_of_zeros_for_each_stretch_that_can_be_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    qemu_img(directory.path(), &["create", "-f", "vpc", "-o", "force_size=on", "x.vhd", "2040G"]);
    let vhd = Vhd::open(&region_of(&directory.path().join("x.vhd")), LIMIT).unwrap();
    assert_eq!((vhd.virtual_size(), vhd.data_bytes()), (2040 << 30, 0));
    let lengths: Vec<u64> = vhd.extents().map(|extent| extent.unwrap().len()).collect();
    assert_eq!(lengths.iter().sum::<u64>(), 2040 << 30);
    assert!(lengths.len() < 256, "{}", lengths.len());
}
