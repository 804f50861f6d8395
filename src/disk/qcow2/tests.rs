// SPDX-License-Identifier: Apache-2.0
//! qcow2 images of QEMU and of our own making, and hostile ones.
#![allow(clippy::cast_possible_truncation, clippy::precedence)]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::header::MAGIC;
use super::*;
use crate::disk::resolve::{guest_bytes, qemu_img, region_of, region_over, sample_disk};

mod frames;

const LIMIT: u64 = 64 << 40;
const KIB: u64 = 1024;

/// The smallest image that has all: header, refcount table, L1, one L2 table, then clusters of 4 KiB. `entries` are the
/// L2 entries; cluster 4 + i of the file is filled with i + 1.
fn image(version: u32, entries: &[u64], clusters: usize, size: u64) -> Vec<u8> {
    let mut file = vec![0; 4096 * (4 + clusters)];
    file[..4].copy_from_slice(MAGIC);
    put32(&mut file, 4, version);
    put32(&mut file, 20, 12);
    put64(&mut file, 24, size);
    put32(&mut file, 36, 1);
    put64(&mut file, 40, 2 * 4096);
    put64(&mut file, 48, 4096);
    put32(&mut file, 56, 1);
    if version >= 3 {
        put32(&mut file, 96, 4);
        put32(&mut file, 100, 104);
    }
    put64(&mut file, 2 * 4096, 3 * 4096 | 1 << 63);
    for (index, entry) in entries.iter().enumerate() {
        put64(&mut file, 3 * 4096 + index * 8, *entry);
    }
    for index in 0..clusters {
        file[(4 + index) * 4096..][..4096].fill(index as u8 + 1);
    }
    file
}

fn stored(cluster: u64) -> u64 {
    (4 + cluster) * 4096 | 1 << 63
}

fn good() -> Vec<u8> {
    image(3, &[stored(1), 0, 1, stored(0), stored(2) | 1], 3, 20 * KIB)
}

fn put32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    read_region(&region_over(bytes))
}

fn read_region(region: &Region) -> Result<Vec<u8>, Error> {
    let image = Qcow2::open(region, LIMIT)?;
    guest_bytes(region, image.virtual_size(), image.extents())
}

fn refusal(bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = read(bytes).unwrap_err();
    (error.reason, error.offset)
}

fn qemu_io(directory: &Path, file: &str, commands: &[&str]) {
    let mut qemu = Command::new("qemu-io");
    qemu.current_dir(directory);
    for command in commands {
        qemu.args(["-c", command]);
    }
    let output = qemu.arg(file).output().expect("qemu-io runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_qemu_img_writes_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sample_disk((5 << 20) + 1536);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,preallocation=metadata",
        "compat=1.1,preallocation=falloc",
        "compat=1.1,lazy_refcounts=on,refcount_bits=1",
        "compat=1.1,extended_l2=on,cluster_size=128k",
        "compat=1.1,extended_l2=on,cluster_size=16k",
        "-c,compat=0.10",
        "-c,compat=1.1",
        "-c,compat=1.1,cluster_size=4k",
        "-c,compat=1.1,cluster_size=2M",
        "-c,compat=1.1,compression_type=zstd",
        "-c,compat=1.1,compression_type=zstd,extended_l2=on,cluster_size=32k",
    ] {
        let (flags, plain): (&[&str], _) = match options.strip_prefix("-c,") {
            Some(rest) => (&["-c", "-W", "-m", "8"], rest),
            None => (&[], options),
        };
        let arguments = [&["convert", "-O", "qcow2", "-f", "raw", "-o", plain], flags, &["raw", "x"]].concat();
        qemu_img(directory.path(), &arguments);
        let region = region_of(&directory.path().join("x"));
        let image = Qcow2::open(&region, LIMIT).unwrap_or_else(|e| panic!("{options}: {e}"));
        assert!(image.warnings().is_empty(), "{options}: {:?}", image.warnings());
        assert!(image.data_bytes() <= image.virtual_size());
        assert!(guest_bytes(&region, image.virtual_size(), image.extents()).unwrap() == disk, "{options}");
    }
}

#[test]
fn partly_written_subclusters_read_as_qemu_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    qemu_img(directory.path(), &["create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "x", "1000000"]);
    let commands =
        ["write -P 7 5000 3000", "write -P 9 65536 131072", "write -z 70000 30000", "write -P 3 999000 1000"];
    qemu_io(directory.path(), "x", &commands);
    qemu_img(directory.path(), &["convert", "-O", "raw", "x", "raw"]);
    let region = region_of(&at("x"));
    let image = Qcow2::open(&region, LIMIT).unwrap();
    assert_eq!(image.kind(), "qcow2 version 3 with subclusters");
    assert!(read_region(&region).unwrap() == std::fs::read(at("raw")).unwrap());
    assert!(image.data_bytes() < 3 * 65536);
}

#[test]
fn snapshots_bitmaps_and_a_dirty_bit_are_told_and_stop_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    let disk = sample_disk(1 << 20);
    std::fs::write(directory.path().join("raw"), &disk).unwrap();
    qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "qcow2", "raw", "x"]);
    qemu_img(directory.path(), &["snapshot", "-c", "before", "x"]);
    qemu_io(directory.path(), "x", &["write -P 5 64k 64k"]);
    qemu_img(directory.path(), &["bitmap", "--add", "x", "since"]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[79] |= 1;
    let mut expected = disk;
    expected[65536..131_072].fill(5);
    let region = region_over(&bytes);
    let image = Qcow2::open(&region, LIMIT).unwrap();
    assert!(read_region(&region).unwrap() == expected);
    let warnings = image.warnings().join("\n");
    for word in ["not closed", "1 internal snapshots", "bitmaps"] {
        assert!(warnings.contains(word), "{warnings}");
    }
}

#[test]
fn a_machine_state_beyond_the_disk_is_told() {
    let mut file = good();
    put32(&mut file, 36, 2);
    put64(&mut file, 2 * 4096 + 8, 0x1000_0000);
    let image = Qcow2::open(&region_over(&file), LIMIT).unwrap();
    assert_eq!(image.warnings(), ["image: a saved machine state is left out"]);
}

#[test]
fn an_image_of_our_own_making_reads_back() {
    let expected: Vec<u8> = [2, 0, 0, 1, 0].iter().flat_map(|&byte| [byte; 4096]).collect();
    assert!(read(&good()).unwrap() == expected);
    let second = image(2, &[stored(1), 0, 0, stored(0)], 2, 16 * KIB + 512);
    assert!(read(&second).unwrap() == expected[..16896]);
}

#[test]
fn a_disk_that_ends_within_a_sector_is_rounded_up_and_told() {
    let image = Qcow2::open(&region_over(&image(3, &[stored(0)], 1, 1000)), LIMIT).unwrap();
    assert_eq!((image.virtual_size(), image.warnings().len()), (1024, 1));
}

#[test]
fn a_compressed_length_may_pass_the_end_of_the_file() {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&[0x77; 4096]).unwrap();
    let stream = encoder.finish().unwrap();
    let bits = 62 - (12 - 8);
    // The stream begins at byte 100 of the cluster and claims three sectors more.
    let entry = 1 << 62 | 3 << bits | (4 * 4096 + 100);
    let mut file = image(3, &[entry], 1, 4096);
    file.truncate(4 * 4096 + 100);
    file.extend_from_slice(&stream);
    assert!(read(&file).unwrap() == [0x77; 4096]);
    file.truncate(4 * 4096 + 100);
    assert_eq!(refusal(&file), (Reason::Truncated, Some(3 * 4096)));
}

#[test]
fn whatever_leads_out_of_the_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("canary"), [7; 4096]).unwrap();
    for arguments in [
        &["create", "-f", "qcow2", "-b", "canary", "-F", "raw", "x"][..],
        &["create", "-f", "qcow2", "-u", "-F", "raw", "-b", r#"json:{"driver":"file","filename":"canary"}"#, "x", "1M"],
        &["create", "-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "x", "1M"],
    ] {
        qemu_img(directory.path(), arguments);
        let error = Qcow2::open(&region_of(&directory.path().join("x")), LIMIT).unwrap_err();
        assert_eq!(error.reason, Reason::UnsafeReference, "{arguments:?}");
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}

#[test]
fn an_encrypted_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let secret = ["create", "--object", "secret,id=s,data=passw0rd", "-f", "qcow2"];
    let options = ["-o", "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s", "x", "1M"];
    let create = || Command::new("qemu-img").args(secret).args(options).current_dir(directory.path()).output().unwrap();
    // It measures its own processor time, and gives up where the kernel's clock has not moved on.
    assert!((0..20).any(|_| create().status.success()), "{}", String::from_utf8_lossy(&create().stderr));
    let error = Qcow2::open(&region_of(&directory.path().join("x")), LIMIT).unwrap_err();
    assert_eq!(error.reason, Reason::Encrypted);
}

#[test]
fn what_a_header_must_not_say_is_refused_with_its_place() {
    let cases: [(&str, usize, u64, Reason, u64); 19] = [
        ("magic", 0, 0, Reason::FormatMismatch, 0),
        ("qcow1", 4, 1 << 32, Reason::UnsupportedFormat, 4),
        ("version 4", 4, 4 << 32, Reason::UnsupportedFormat, 4),
        ("backing file", 8, 104, Reason::UnsafeReference, 8),
        ("backing length", 16, (5 << 32) + 12, Reason::UnsafeReference, 8),
        ("cluster of 256 bytes", 16, 8, Reason::Corrupt, 20),
        ("cluster of 4 MiB", 16, 22, Reason::Corrupt, 20),
        ("empty disk", 24, 0, Reason::Corrupt, 24),
        ("disk above the limit", 24, 1 << 50, Reason::TooLarge, 24),
        ("disk larger than its L1", 24, 1 << 22, Reason::Corrupt, 36),
        ("encryption", 32, 2 << 32 | 1, Reason::Encrypted, 32),
        ("huge L1", 32, 0xFFFF_FFFF, Reason::Corrupt, 36),
        ("L1 past the end", 40, 1 << 30, Reason::Truncated, 1 << 30),
        ("L1 within a cluster", 40, 8200, Reason::Corrupt, 40),
        ("corrupt bit", 72, 2, Reason::Corrupt, 72),
        ("data file bit", 72, 4, Reason::UnsafeReference, 72),
        ("unknown bit", 72, 32, Reason::UnsupportedFormat, 72),
        ("subclusters of 128 bytes", 72, 16, Reason::Corrupt, 20),
        ("compression bit alone", 72, 8, Reason::Corrupt, 104),
    ];
    for (name, at, value, reason, place) in cases {
        let mut bad = good();
        put64(&mut bad, at, value);
        assert_eq!(refusal(&bad), (reason, Some(place)), "{name}");
    }
}

#[test]
fn what_an_extension_must_not_say_is_refused() {
    for (kind, len, expected) in [
        (0xE279_2ACA, 3, Some(Reason::UnsafeReference)),
        (0x4441_5441, 3, Some(Reason::UnsafeReference)),
        (0x0537_BE77, 16, Some(Reason::Encrypted)),
        (0x1234_5678, 8, None),
        (0x1234_5678, 5000, Some(Reason::Corrupt)),
        (0x1234_5678, u32::MAX, Some(Reason::Corrupt)),
    ] {
        let mut file = good();
        put32(&mut file, 104, kind);
        put32(&mut file, 108, len);
        assert_eq!(read(&file).err().map(|e| e.reason), expected, "{kind:#x} {len}");
    }
}

#[test]
fn what_an_entry_must_not_say_is_refused_with_its_place() {
    let second = 3 * 4096 + 8;
    for (name, entry, reason) in [
        ("on another cluster", stored(1), Reason::Corrupt),
        ("compressed on the header", 1 << 62 | 8, Reason::Corrupt),
        ("on the L1 table", 2 * 4096, Reason::Corrupt),
        ("on its own table", 3 * 4096, Reason::Corrupt),
        ("zeros on another cluster", stored(1) | 1, Reason::Corrupt),
        ("within a cluster", 4 * 4096 + 512, Reason::Corrupt),
        ("reserved bit", stored(2) | 1 << 57, Reason::Corrupt),
        ("past the end", stored(3), Reason::Truncated),
        ("far past the end", 0x00FF_FFFF_FFFF_F000, Reason::Truncated),
        ("compressed on another cluster", 1 << 62 | (5 * 4096 + 8), Reason::Corrupt),
        ("compressed past the end", 1 << 62 | (1 << 40), Reason::Truncated),
    ] {
        let bad = image(3, &[stored(1), entry], 3, 20 * KIB);
        assert_eq!(refusal(&bad), (reason, Some(second)), "{name}");
    }
    let mut bad = good();
    for (name, entry, reason) in [
        ("L2 on the refcounts", 4096, Reason::Corrupt),
        ("L2 on the L1", 2 * 4096, Reason::Corrupt),
        ("L2 past the end", 1 << 40, Reason::Truncated),
        ("L2 within a cluster", 3 * 4096 + 512, Reason::Corrupt),
        ("reserved bit", 3 * 4096 | 1, Reason::Corrupt),
    ] {
        put64(&mut bad, 2 * 4096, entry);
        assert_eq!(refusal(&bad), (reason, Some(2 * 4096)), "{name}");
    }
    let zero_in_version_2 = image(2, &[1], 0, 4096);
    assert_eq!(refusal(&zero_in_version_2), (Reason::Corrupt, Some(3 * 4096)));
}

#[test]
fn two_entries_of_one_compressed_stream_are_corrupt() {
    let entry = 1 << 62 | (4 * 4096 + 100);
    let bad = image(3, &[entry, entry], 1, 8192);
    assert_eq!(refusal(&bad), (Reason::Corrupt, Some(3 * 4096 + 8)));

    // The same from two L2 tables, which map 2 MiB each.
    let mut bad = image(3, &[entry], 2, 4 << 20);
    put32(&mut bad, 36, 2);
    put64(&mut bad, 2 * 4096 + 8, 5 * 4096 | 1 << 63);
    bad[5 * 4096..].fill(0);
    put64(&mut bad, 5 * 4096, entry + 1);
    assert!(Qcow2::open(&region_over(&bad), LIMIT).is_ok());
    put64(&mut bad, 5 * 4096, entry);
    assert_eq!(refusal(&bad), (Reason::Corrupt, Some(5 * 4096)));
}

#[test]
fn subclusters_that_contradict_themselves_are_corrupt() {
    let cluster = 16 * 1024;
    let extended = |entry: u64, bitmap: u64| {
        let mut file = vec![0; 5 * cluster];
        file[..4096].copy_from_slice(&good()[..4096]);
        put32(&mut file, 20, 14);
        put64(&mut file, 24, cluster as u64);
        put64(&mut file, 40, 2 * cluster as u64);
        put64(&mut file, 48, cluster as u64);
        put64(&mut file, 72, 16);
        put64(&mut file, 2 * cluster, 3 * cluster as u64);
        put64(&mut file, 3 * cluster, entry);
        put64(&mut file, 3 * cluster + 8, bitmap);
        file[4 * cluster..].fill(9);
        file
    };
    let host = 4 * cluster as u64;
    let read_of = |bitmap| read(&extended(host, bitmap)).unwrap().chunks(512).map(|c| c[0]).collect::<Vec<u8>>();
    assert_eq!(read_of(1 << 31 | 1), [&[9][..], &[0; 30], &[9]].concat());
    assert_eq!(read_of(u64::from(u32::MAX)), [9; 32]);
    assert_eq!(read_of(u64::from(u32::MAX) << 32), [0; 32]);
    assert_eq!(refusal(&extended(host, 1 << 32 | 1)).0, Reason::Corrupt);
    assert_eq!(refusal(&extended(0, 1)).0, Reason::Corrupt);
    assert_eq!(refusal(&extended(host | 1, 1)).0, Reason::Corrupt);
    // Only the subclusters in use must be in the file.
    let cut = extended(host, 1);
    assert!(read(&cut[..4 * cluster + 512]).is_ok());
    assert_eq!(refusal(&cut[..4 * cluster]).0, Reason::Truncated);
    let mut disk = vec![0; cluster];
    disk[..511].fill(9);
    assert!(read(&cut[..4 * cluster + 511]).unwrap() == disk);
}

#[test]
fn a_last_cluster_that_is_cut_reads_as_qemu_reads_it_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let file = image(3, &[stored(1), 0, stored(0), stored(2)], 3, 16 * KIB);
    for kept in [1, 100, 512, 4095] {
        let cut = &file[..6 * 4096 + kept];
        std::fs::write(directory.path().join("x"), cut).unwrap();
        qemu_img(directory.path(), &["convert", "-f", "qcow2", "-O", "raw", "x", "raw"]);
        assert!(read(cut).unwrap() == std::fs::read(directory.path().join("raw")).unwrap(), "{kept}");
        let image = Qcow2::open(&region_over(cut), LIMIT).unwrap();
        assert!(image.warnings()[0].contains("ends within the cluster of guest byte 12288"), "{:?}", image.warnings());
    }
    assert!(Qcow2::open(&region_over(&file), LIMIT).unwrap().warnings().is_empty());
    assert_eq!(refusal(&file[..6 * 4096]), (Reason::Truncated, Some(3 * 4096 + 24)));
}

#[test]
fn a_stream_that_begins_within_another_is_refused_by_the_copy() {
    use crate::disk::replay::replay;
    use crate::disk::{CopyControl, CopyOptions, Image, copy};
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(9));
    encoder.write_all(&[0x55; 4096]).unwrap();
    let inner = encoder.finish().unwrap();
    // Stored blocks: the outer stream holds the inner one as its text.
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(0));
    let mut text = vec![0x77; 4096];
    text[1000..1000 + inner.len()].copy_from_slice(&inner);
    encoder.write_all(&text).unwrap();
    let outer = encoder.finish().unwrap();
    let within = outer.windows(inner.len()).position(|window| window == inner).unwrap() as u64;
    let entry = |at: u64, len: usize| 1 << 62 | ((at % 512 + len as u64 - 1) / 512) << 58 | at;
    let host = 4 * 4096 + 17;
    let streams = |first: u64, second: u64| {
        let mut file = image(3, &[first, second], 3, 8192);
        file[4 * 4096 + 17..][..outer.len()].copy_from_slice(&outer);
        let behind = 4 * 4096 + 17 + outer.len();
        file[behind..][..inner.len()].copy_from_slice(&inner);
        file
    };
    let behind = host + outer.len() as u64;
    for (second, is_good) in [(behind, true), (host + within, false)] {
        for swapped in [false, true] {
            let entries = [entry(host, outer.len()), entry(second, inner.len())];
            let [first, second] = if swapped { [entries[1], entries[0]] } else { entries };
            let image = Image::qcow2(&region_over(&streams(first, second)), LIMIT).unwrap();
            let control = CopyControl::default();
            let replayed = replay(&image, &control, |_, _| Ok(()));
            let copied = copy(&image, &tempfile::tempfile().unwrap(), "out", &CopyOptions::default(), &control);
            let expected = if is_good { None } else { Some(Reason::Corrupt) };
            assert_eq!(replayed.err().map(|e| e.reason), expected);
            assert_eq!(
                copied.err().map(|e| (e.reason, e.message.contains("shares bytes"))),
                expected.map(|r| (r, true))
            );
        }
    }
}

#[test]
fn tables_in_holes_cost_nothing() {
    use std::os::unix::fs::FileExt;
    // 8 TiB in clusters of 64 KiB: 16,384 L2 tables, which together have 134 million entries of zeros.
    let (cluster, tables) = (65536_u64, 16_384_u64);
    let file = tempfile::tempfile().unwrap();
    let mut header = good()[..4096].to_vec();
    put32(&mut header, 20, 16);
    put64(&mut header, 24, 8 << 40);
    put32(&mut header, 36, tables as u32);
    put64(&mut header, 40, 2 * cluster);
    put64(&mut header, 48, cluster);
    file.write_all_at(&header, 0).unwrap();
    let first = 2 * cluster + tables * 8;
    let l1: Vec<u8> = (0..tables).flat_map(|n| (first + n * 2 * cluster).to_be_bytes()).collect();
    file.write_all_at(&l1, 2 * cluster).unwrap();
    let len = first + tables * 2 * cluster;
    file.set_len(len).unwrap();
    // One that is used, in the middle.
    file.write_all_at(&(first + cluster).to_be_bytes(), first + 7_000 * 2 * cluster + 8 * 77).unwrap();
    let region = Region::whole(std::sync::Arc::new(file), "image", len);
    let image = Qcow2::open(&region, LIMIT).unwrap();
    // The table, its first entry, and the others.
    assert!(Walk::new(&region, &image.header, image.size).count() < 3 * tables as usize + 100);
    let stored: Vec<_> = image.extents().map(Result::unwrap).filter(|e| e.at != Location::Zero).collect();
    let guest = 7_000 * 8192 * cluster + 77 * cluster;
    assert_eq!(
        stored,
        [Extent { guest: guest..guest + cluster, at: Location::Stored { file: 0, offset: first + cluster } }]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_truncated_file_is_refused(cut in 0_usize..=5 * 4096) {
        prop_assert!(read(&good()[..cut]).is_err());
    }

    #[test]
    fn a_flipped_bit_gives_an_error_or_a_whole_disk(at in prop_oneof![0_usize..120, 8192_usize..8200, 12288_usize..12336], bit in 0_u8..8) {
        let mut bad = good();
        bad[at] ^= 1 << bit;
        let region = region_over(&bad);
        match Qcow2::open(&region, 64 << 20) {
            Ok(image) => drop(guest_bytes(&region, image.virtual_size(), image.extents())),
            Err(error) => prop_assert!(error.offset.is_some(), "{error}"),
        }
    }
}
