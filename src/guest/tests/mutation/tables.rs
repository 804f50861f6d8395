// SPDX-License-Identifier: Apache-2.0
//! Tables and superblocks alone, on small disks. Half of the changed ones get right checksums again: with a wrong one nearly
//! nothing of them is read.

use std::io::Write;
use std::sync::Arc;

use bolero::{check, produce};

use super::super::volumes::{MIRROR, superblock};
use super::{CASES, Stored, changes, survives};
use crate::disk::Region;
use crate::disk::descriptor::mutation::{changed, edits};

const SECTOR: usize = 512;
/// The magic number of Linux' software RAID.
const MD: u32 = 0xA92B_4EFC;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn number(bytes: &mut [u8], at: usize, number: u64) {
    put(bytes, at, &number.to_le_bytes());
}

pub(super) fn in_a_file(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), "disk", bytes.len() as u64)
}

/// An entry of an MBR.
fn entry(kind: u8, first: u32, count: u32) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[4] = kind;
    put(&mut entry, 8, &first.to_le_bytes());
    put(&mut entry, 12, &count.to_le_bytes());
    entry
}

/// Two GPTs with two partitions.
fn gpt() -> Vec<u8> {
    let mut disk = vec![0; 64 * SECTOR];
    put(&mut disk, 446, &entry(0xEE, 1, 63));
    put(&mut disk, 510, &[0x55, 0xAA]);
    for (header, entries) in [(1, 2), (63, 62)] {
        let at = header * SECTOR;
        put(&mut disk, at, b"EFI PART\0\0\x01\0\x5C\0\0\0");
        for (field, value) in [(24, header), (32, 64 - header), (40, 4), (48, 60), (72, entries)] {
            number(&mut disk, at + field, value as u64);
        }
        put(&mut disk, at + 80, &[4, 0, 0, 0, 128, 0, 0, 0]);
        for (index, first) in [(0, 4), (1, 32)] {
            let at = entries * SECTOR + index * 128;
            // The EFI system partition's type, then any.
            put(&mut disk, at, b"\x28\x73\x2A\xC1\x1F\xF8\xD2\x11\xBA\x4B\x00\xA0\xC9\x3E\xC9\x3B");
            disk[at] += u8::try_from(index).unwrap();
            disk[at + 16] = 7;
            number(&mut disk, at + 32, first);
            number(&mut disk, at + 40, first + 20);
        }
    }
    mend_gpt(&mut disk);
    disk
}

fn mend_gpt(disk: &mut [u8]) {
    for at in [SECTOR, disk.len() - SECTOR] {
        let field = |at: usize| usize::try_from(u32_at(disk, at)).unwrap();
        let (len, first, count, each) = (field(at + 12), field(at + 72), field(at + 80), field(at + 84));
        let first = first.saturating_mul(SECTOR);
        if let Some(entries) = disk.get(first..first.saturating_add(count.saturating_mul(each))) {
            let sum = crc32fast::hash(entries).to_le_bytes();
            put(disk, at + 88, &sum);
        }
        put(disk, at + 16, &[0; 4]);
        let sum = crc32fast::hash(&disk[at..at + len.clamp(92, SECTOR)]).to_le_bytes();
        put(disk, at + 16, &sum);
    }
}

/// Two primary partitions, and three logical ones in a third.
fn mbr() -> Vec<u8> {
    let mut disk = vec![0; 256 * SECTOR];
    put(&mut disk, 440, &[1, 2, 3, 4]);
    for (index, entry) in [entry(0x83, 1, 20), entry(0x07, 24, 30), entry(0x05, 64, 192)].iter().enumerate() {
        put(&mut disk, 446 + index * 16, entry);
    }
    for (index, next) in [64, 128, 0].into_iter().enumerate() {
        let at = (64 + index * 64) * SECTOR;
        put(&mut disk, at + 446, &entry(0x83, 2, 40));
        put(&mut disk, at + 462, &entry(if next == 0 { 0 } else { 5 }, next, 64));
        put(&mut disk, at + 510, &[0x55, 0xAA]);
    }
    put(&mut disk, 510, &[0x55, 0xAA]);
    disk
}

fn as_it_is(_: &mut [u8]) {}

/// A member of a mirror whose superblock of version 1 is at `place`.
fn md_at(place: usize) -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    put(&mut disk, place, &superblock(&MIRROR, 64 << 10));
    number(&mut disk, place + 128, 8);
    number(&mut disk, place + 144, (place / SECTOR) as u64);
    mend_md(&mut disk);
    disk
}

fn md_1_0() -> Vec<u8> {
    md_at((256 << 10) - 8192)
}

fn md_1_1() -> Vec<u8> {
    md_at(0)
}

fn md_1_2() -> Vec<u8> {
    md_at(4096)
}

fn md_0_90() -> Vec<u8> {
    let mut disk = vec![0; 256 << 10];
    let place = (256 << 10) - 0x1_0000;
    for (field, value) in [(0, MD), (8, 90), (20, 7), (28, 1), (32, 128), (40, 2), (44, 3), (156, 9), (3984, 6)] {
        put(&mut disk, place + field, &value.to_le_bytes());
    }
    mend_md(&mut disk);
    disk
}

fn mend_md(disk: &mut [u8]) {
    for place in [0, 4096, disk.len() - 8192, disk.len() - 0x1_0000] {
        let block = &disk[place..place + 4096];
        let is_first = u32_at(block, 4) == 1;
        let (len, at) = if is_first { (256 + 2 * u32_at(block, 220).min(1920) as usize, 216) } else { (4096, 152) };
        if u32_at(block, 0) != MD {
            continue;
        }
        let words = block[..len].chunks(4).enumerate().filter(|(index, _)| index * 4 != at);
        let sum: u64 = words.map(|(_, word)| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))).sum();
        let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
        put(disk, place + at, &sum.to_le_bytes()[..4]);
    }
}

/// A target for each table.
macro_rules! tables {
    ($($target:ident $disk:ident $mend:ident)*) => {$(
        #[test]
        fn $target() {
            let stored = Stored::of(&$disk());
            let changes = (produce::<bool>(), changes());
            check!().with_generator(changes).with_iterations(4 * CASES).for_each(|(mended, changes)| {
                let mut disk = stored.whole(&super::changed(&stored.blocks, changes));
                if *mended {
                    $mend(&mut disk);
                }
                survives(stringify!($target), &in_a_file(&disk));
            });
        }
    )*};
}

tables! {
    table_gpt gpt mend_gpt
    table_mbr mbr as_it_is
    array_0_90 md_0_90 mend_md
    array_1_0 md_1_0 mend_md
    array_1_1 md_1_1 mend_md
    array_1_2 md_1_2 mend_md
    volumes_header physical as_it_is
}

/// The metadata of a group with a linear, a striped and a hidden volume.
const GROUP: &str = r#"vg { # by hand
id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
seqno = 3
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = 8
physical_volumes {
pv0 { id = "000000-0000-0000-0000-0000-0000-000000" pe_start = 256 pe_count = 64 dev_size = 1024 }
}
logical_volumes {
root { status = ["READ", "WRITE", "VISIBLE"] segment_count = 2
segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
segment2 { start_extent = 4 extent_count = 8 type = "striped" stripe_count = 2 stripe_size = 8 stripes = ["pv0", 4, "pv0", 9] } }
pool { status = ["READ", "VISIBLE"] segment_count = 1 segment1 { extent_count = 2 type = "thin-pool" } }
meta { status = ["READ"] segment_count = 1 segment1 { extent_count = 2 type = "striped" stripes = ["pv0", 20] } }
}
}
"#;
/// Where the metadata area is, and how long.
const AREA: usize = 4096;
const AREA_LEN: usize = 64 << 10;

/// A physical volume with this metadata from `at` of its area on, and around the area's end.
fn physical_with(text: &[u8], at: usize) -> Vec<u8> {
    let mut disk = vec![0; 512 << 10];
    put(&mut disk, SECTOR, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001");
    put(&mut disk, SECTOR + 32, &[b'0'; 32]);
    for (field, value) in [(64, 512 << 10), (72, 128 << 10), (104, AREA), (112, AREA_LEN)] {
        number(&mut disk, SECTOR + field, value as u64);
    }
    put(&mut disk, AREA + 4, b" LVM2 x[5A%r0N*>\x01\0\0\0");
    let text = &text[..text.len().min(AREA_LEN - SECTOR)];
    for (field, value) in [(24, AREA), (32, AREA_LEN), (40, at), (48, text.len())] {
        number(&mut disk, AREA + field, value as u64);
    }
    let first = text.len().min(AREA_LEN - at);
    put(&mut disk, AREA + at, &text[..first]);
    put(&mut disk, AREA + SECTOR, &text[first..]);
    disk
}

fn physical() -> Vec<u8> {
    physical_with(GROUP.as_bytes(), 1024)
}

/// Words of LVM's metadata.
#[test]
fn volumes_text() {
    let changes = (produce::<bool>(), edits());
    check!().with_generator(changes).with_iterations(4 * CASES).for_each(|(wraps, edits)| {
        let at = if *wraps { AREA_LEN - 100 } else { 1024 };
        let text = changed(GROUP, edits);
        let text = &text[..text.len().min(if *wraps { text.len() } else { AREA_LEN - at })];
        survives("volumes_text", &in_a_file(&physical_with(text, at)));
    });
}

#[test]
fn the_unchanged_ones_are_read() {
    for (disk, told) in [
        (gpt(), "\"gpt\""),
        (mbr(), "\"number\":7"),
        (md_0_90(), "md/3"),
        (md_1_0(), "md/root"),
        (md_1_1(), "md/root"),
        (md_1_2(), "md/root"),
        (physical(), "vg/root"),
        (physical_with(GROUP.as_bytes(), AREA_LEN - 100), "vg/root"),
    ] {
        let guest = super::inspected(&in_a_file(&disk));
        assert!(guest.contains(told), "no {told} in {guest}");
    }
}

#[test]
fn a_volume_that_lies_behind_all_numbers_is_a_doubt() {
    let huge = GROUP.replace("extent_size = 8", "extent_size = 1").replace("segment_count = 2", "segment_count = 1");
    // All but the last sector that a number of bytes can name.
    let most = (u64::MAX >> 9).to_string();
    let linear = huge.replace("extent_count = 4", &format!("extent_count = {most}"));
    let striped = huge
        .replacen("segment1 {", "segment9 {", 1)
        .replace("segment2 {", "segment1 {")
        .replace("extent_count = 8", &format!("extent_count = {most}"))
        .replace("stripe_size = 8", &format!("stripe_size = {most}"));
    for text in [linear, striped] {
        let guest = super::inspected(&in_a_file(&physical_with(text.as_bytes(), 1024)));
        assert!(guest.contains("has a segment whose place is not told"), "{guest}");
    }
    let mut disk = physical();
    for (field, value) in [(SECTOR + 112, u64::MAX), (AREA + 40, u64::MAX - 4000), (AREA + 48, 3000)] {
        number(&mut disk, field, value);
    }
    let guest = super::inspected(&in_a_file(&disk));
    assert!(guest.contains("has LVM metadata of no possible length"), "{guest}");
}
