// SPDX-License-Identifier: Apache-2.0
//! Disks that QEMU makes and ones that only Parallels would make, whole and broken.
#![allow(clippy::cast_possible_truncation)]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};

const LIMIT: u64 = 64 << 40;
const CLUSTER: usize = 4096;

/// A disk of clusters of 8 sectors; each entry gives the place of a cluster in the file, counted in clusters, 0 for
/// none. The cluster at place `p` is filled with byte `p`.
fn image(magic: &[u8; 16], entries: &[u32], sectors: u64) -> Vec<u8> {
    let mut file = magic.to_vec();
    for value in [VERSION, 16, 4, 8, entries.len() as u32] {
        file.extend(value.to_le_bytes());
    }
    file.extend(sectors.to_le_bytes());
    for value in [0, 8_u32, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0_u64.to_le_bytes());
    let step = if magic == EXTENDED { 1 } else { 8 };
    file.extend(entries.iter().flat_map(|entry| (entry * step).to_le_bytes()));
    let places = entries.iter().copied().max().unwrap_or(0) as usize + 1;
    file.resize(places * CLUSTER, 0);
    for place in 1..places {
        file[place * CLUSTER..][..CLUSTER].fill(place as u8);
    }
    file
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let region = region_over(bytes);
    let disk = Parallels::open(&region, LIMIT)?;
    guest_bytes(&region, disk.virtual_size(), disk.extents())
}

fn refusal(bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = read(bytes).unwrap_err();
    (error.reason, error.offset)
}

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn what_qemu_img_writes_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sample_disk((9 << 20) + 1536);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    for options in ["cluster_size=1M", "cluster_size=64k"] {
        qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "parallels", "-o", options, "raw", "x.hdd"]);
        let region = region_of(&directory.path().join("x.hdd"));
        let image = Parallels::open(&region, LIMIT).unwrap();
        assert_eq!((image.kind(), image.virtual_size()), ("parallels expanding", disk.len() as u64));
        assert!(image.data_bytes() <= image.virtual_size());
        assert_eq!(image.warnings(), [] as [String; 0]);
        assert!(guest_bytes(&region, image.virtual_size(), image.extents()).unwrap() == disk, "{options}");
    }
}

#[test]
fn both_kinds_have_clusters_in_any_order() {
    for magic in [OLD, EXTENDED] {
        let disk = read(&image(magic, &[3, 0, 1, 2], 3 * 8 + 3)).unwrap();
        let firsts: Vec<u8> = disk.chunks(CLUSTER).map(|cluster| cluster[cluster.len() - 1]).collect();
        assert_eq!((firsts, disk.len()), (vec![3, 0, 1, 2], 27 * 512));
    }
}

#[test]
fn the_old_kind_has_clusters_at_any_sector_and_half_a_size() {
    let mut old = image(OLD, &[1, 0], 16);
    put(&mut old, 64, 1);
    put(&mut old, 48, 0);
    put(&mut old, 40, 0xFFFF_FFFF);
    assert_eq!(read(&old).unwrap().len(), 16 * 512);
    let mut extended = image(EXTENDED, &[1, 0], 16);
    put(&mut extended, 40, 0xFFFF_FFFF);
    assert_eq!(refusal(&extended), (Reason::TooLarge, Some(36)));
}

#[test]
fn marks_are_warnings() {
    let mut file = image(EXTENDED, &[1], 8);
    put(&mut file, 44, IN_USE);
    put(&mut file, 56, 16);
    let disk = Parallels::open(&region_over(&file), LIMIT).unwrap();
    assert_eq!(disk.warnings().len(), 2);
}

#[test]
fn what_contradicts_itself_is_refused_with_its_place() {
    let good = image(EXTENDED, &[1, 2], 16);
    assert_eq!(read(&good).unwrap().len(), 16 * 512);
    for (at, value, reason) in [
        (0, 0, Reason::FormatMismatch),
        (16, 3, Reason::UnsupportedFormat),
        (28, 0, Reason::Corrupt),
        (28, u32::MAX, Reason::Corrupt),
        (32, 1, Reason::Corrupt),
        (36, 0, Reason::Corrupt),
    ] {
        let mut bad = good.clone();
        put(&mut bad, at, value);
        assert_eq!(refusal(&bad), (reason, Some(at as u64)), "{at}");
    }
    for (at, value, refused) in [
        (32, 1 << 20, (Reason::Truncated, Some(64))),
        (64, 2, (Reason::Corrupt, Some(68))),
        (64, 3, (Reason::Truncated, Some(64))),
    ] {
        let mut bad = good.clone();
        put(&mut bad, at, value);
        assert_eq!(refusal(&bad), refused, "{at}");
    }
    let mut inside = image(OLD, &[1], 8);
    inside.resize(3 * CLUSTER, 0);
    put(&mut inside, 32, 200);
    put(&mut inside, 48, 0);
    put(&mut inside, 64, 1);
    assert_eq!(refusal(&inside), (Reason::Corrupt, Some(64)));
    put(&mut inside, 48, 1);
    assert_eq!(refusal(&inside), (Reason::Corrupt, Some(48)));
    let limit = Parallels::open(&region_over(&good), 4096).unwrap_err();
    assert_eq!(limit.reason, Reason::TooLarge);
}

/// The guest's bytes by QEMU; `None` where it refuses.
fn by_qemu(directory: &Path, bytes: &[u8]) -> Option<Vec<u8>> {
    std::fs::write(directory.join("x.hdd"), bytes).unwrap();
    let arguments = ["convert", "-f", "parallels", "-O", "raw", "x.hdd", "out"];
    let output = Command::new("qemu-img").args(arguments).current_dir(directory).output().unwrap();
    output.status.success().then(|| std::fs::read(directory.join("out")).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_taken_of_a_changed_header_is_what_qemu_reads(
        old: bool, at in 16_usize..80, byte: u8, bit in 0_u8..9, cut in 0_usize..40_000,
    ) {
        let mut file = image(if old { OLD } else { EXTENDED }, &[2, 0, 1, 3], 31);
        if bit == 8 { file[at] = byte } else { file[at] ^= 1 << bit }
        file.truncate(cut.max(80));
        let directory = tempfile::tempdir().unwrap();
        let region = region_over(&file);
        if let Ok(disk) = Parallels::open(&region, 1 << 24) {
            let ours = guest_bytes(&region, disk.virtual_size(), disk.extents()).unwrap();
            if let Some(theirs) = by_qemu(directory.path(), &file) {
                prop_assert!(ours == theirs);
            }
        }
    }
}
