// SPDX-License-Identifier: Apache-2.0
//! What a sparse VMDK reads as, and what is refused.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::conversion::{Compression, OutputFormat, Remedy};
use crate::disk::Image;
use crate::disk::replay::{GuestBytes, replay};
use crate::disk::resolve::{qemu_img, region_of, sample_disk};
use crate::disk::{CopyControl, CopyOptions, copy, verify};

use crate::disk::sample_vmdk::{GRAIN, Sparse, built, descriptor};

mod limits;
mod metadata;

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Region::whole(Arc::new(file), "a.vmdk", bytes.len() as u64)
}

fn guest(image: &Image) -> Result<Vec<u8>, Error> {
    let mut guest = Vec::new();
    replay(image, &CopyControl::default(), |at, found| {
        assert_eq!(at, guest.len() as u64);
        match found {
            GuestBytes::Zero(len) => guest.resize(guest.len() + usize::try_from(len).unwrap(), 0),
            GuestBytes::Data(bytes) => guest.extend_from_slice(bytes),
        }
        Ok(())
    })?;
    Ok(guest)
}

/// Text-like data with holes: some grains zero, some compressible, some not.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let mut content = vec![0; len];
    for (number, grain) in content.chunks_mut(65536).enumerate() {
        for byte in grain.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = match number % 4 {
                0 | 3 => (state >> 28).to_le_bytes()[0],
                1 => 0,
                _ => (state >> 24).to_le_bytes()[0],
            };
        }
    }
    content
}

fn kinds(capacity: u64) -> Vec<Sparse> {
    let stream = Sparse::stream_optimized(capacity);
    let sparse = Sparse::monolithic_sparse(capacity);
    vec![
        stream.clone(),
        Sparse { footer: false, ..stream.clone() },
        Sparse { footer: false, redundant: true, ..stream.clone() },
        Sparse { descending: true, ..stream.clone() },
        sparse.clone(),
        Sparse { redundant: false, ..sparse.clone() },
        Sparse { descending: true, ..sparse.clone() },
        Sparse { zero_grains: true, ..sparse },
        Sparse { zero_grains: true, ..stream },
    ]
}

#[test]
fn every_kind_reads_back_as_it_was_written() {
    for len in [512, 65536, 20 * 65536, 20 * 65536 + 5 * 512] {
        let content = content(len);
        for kind in kinds(len as u64) {
            let image = Image::vmdk(&region(&built(&kind, &content)), u64::MAX).unwrap();
            assert_eq!(image.virtual_size(), len as u64);
            assert!(guest(&image).unwrap() == content, "{kind:?}");
        }
    }
}

#[test]
fn a_mostly_empty_disk_has_few_extents() {
    let capacity = 8 << 40;
    let mut out = std::io::Cursor::new(Vec::new());
    let last = capacity / GRAIN - 1;
    Sparse::stream_optimized(capacity).write(&mut out, |n| (n == 0 || n == last).then(|| vec![1; 65536])).unwrap();
    let image = Image::vmdk(&region(out.get_ref()), u64::MAX).unwrap();
    // Zeros are joined up to 16 GiB.
    assert_eq!(image.extents().map(Result::unwrap).count(), 2 + (8 << 10) / 16);
    assert_eq!(image.data_bytes(), Some(2 * GRAIN));
}

/// Writes `bytes` at `at` of a built image and returns how it is refused, when opened or when read.
fn refusal(kind: &Sparse, content: &[u8], damage: impl FnOnce(&mut Vec<u8>)) -> Error {
    let mut bytes = built(kind, content);
    damage(&mut bytes);
    match Image::vmdk(&region(&bytes), u64::MAX) {
        Err(e) => e,
        Ok(image) => guest(&image).map(|_| ()).unwrap_err(),
    }
}

fn reason(kind: &Sparse, at: usize, value: &[u8]) -> Reason {
    let content = content(8 * 65536);
    refusal(kind, &content, |bytes| bytes[at..at + value.len()].copy_from_slice(value)).reason
}

#[test]
fn a_table_entry_of_1_means_zeros_only_where_the_header_says_so() {
    let mut content = content(3 * 65536);
    content[65536..2 * 65536].fill(0);
    let kind = Sparse { zero_grains: true, ..Sparse::monolithic_sparse(content.len() as u64) };
    assert!(guest(&Image::vmdk(&region(&built(&kind, &content)), u64::MAX).unwrap()).unwrap() == content);
    // Without the flag it is a grain at sector 1, which lies in the descriptor here.
    assert_eq!(refusal(&kind, &content, |bytes| bytes[8] &= !4).reason, Reason::Corrupt);
}

#[test]
fn headers_that_no_writer_makes_are_refused() {
    let sparse = Sparse::monolithic_sparse(8 * 65536);
    let cases: [(usize, &[u8], Reason); 11] = [
        (0, b"KDMX", Reason::Corrupt),
        (4, &[9, 0, 0, 0], Reason::UnsupportedFormat),
        (12, &[0; 8], Reason::Corrupt),
        (12, &[0xFF; 8], Reason::Corrupt),
        (12, &[0, 0, 0, 0, 0, 1, 0, 0], Reason::Truncated),
        (20, &[3, 0, 0, 0], Reason::Corrupt),
        (20, &[0, 0, 1, 0], Reason::Corrupt),
        (36, &[1, 8], Reason::Corrupt),
        (44, &[1, 0], Reason::UnsupportedFormat),
        (56, &[0; 8], Reason::Corrupt),
        (73, b"\r\n\r\n", Reason::Corrupt),
    ];
    for (at, value, expected) in cases {
        assert_eq!(reason(&sparse, at, value), expected, "at {at}");
    }
}

#[test]
fn a_footer_that_contradicts_its_header_is_refused() {
    let stream = Sparse::stream_optimized(8 * 65536);
    let content = content(8 * 65536);
    for (field, expected) in [(12, Reason::Corrupt), (8, Reason::Corrupt), (0, Reason::Truncated)] {
        let error = refusal(&stream, &content, |bytes| {
            let at = bytes.len() - 1024 + field;
            bytes[at] ^= 0x40;
        });
        assert_eq!(error.reason, expected, "field {field}");
    }
    assert_eq!(refusal(&stream, &content, |bytes| bytes.truncate(bytes.len() - 512)).reason, Reason::Truncated);
}

#[test]
fn redundant_tables_that_know_less_or_nothing_are_left_out_with_a_warning() {
    let sparse = Sparse::monolithic_sparse(8 * 65536);
    let content = content(8 * 65536);
    let (directory, table) = ((1 + 20) * 512, (1 + 20 + 1) * 512);
    let changes: [(&str, usize, &[u8]); 6] = [
        ("an entry is missing", table, &[0; 4]),
        ("all entries are missing", table, &[0; 2048]),
        ("the table is missing", directory, &[0; 4]),
        ("the table lies past the end", directory, &[0, 0, 0, 0x70]),
        ("an entry lies past the end", table, &[0, 0, 0, 0x70]),
        ("the directory lies past the end", 48, &[0xFF, 0xFF, 0xFF, 0x7F]),
    ];
    for (name, at, value) in changes {
        let mut bytes = built(&sparse, &content);
        bytes[at..at + value.len()].copy_from_slice(value);
        let image = Image::vmdk(&region(&bytes), u64::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(guest(&image).unwrap() == content, "{name}");
        assert_eq!(image.warnings(), ["a.vmdk: its redundant grain tables are stale; they were left out"], "{name}");
    }
}

#[test]
fn redundant_tables_that_know_another_grain_are_refused() {
    let sparse = Sparse::monolithic_sparse(8 * 65536);
    let content = content(8 * 65536);
    let table = (1 + 20 + 1) * 512;
    let error = refusal(&sparse, &content, |bytes| bytes.copy_within(table + 8..table + 12, table));
    assert_eq!((error.reason, error.remedy), (Reason::Corrupt, Some(Remedy::RepairVmdk)));
    // The table lacks what its copy has.
    let other = table + 5 * 512;
    let error = refusal(&sparse, &content, |bytes| bytes[other..other + 4].fill(0));
    assert_eq!((error.reason, error.remedy), (Reason::Corrupt, Some(Remedy::RepairVmdk)));
}

#[test]
fn zero_grains_are_told_by_their_flag_in_every_version() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = content(3 * 65536);
    content[65536..2 * 65536].fill(0);
    let kind = Sparse { zero_grains: true, ..Sparse::monolithic_sparse(content.len() as u64) };
    for version in 1..=3 {
        let mut bytes = built(&kind, &content);
        bytes[4] = version;
        std::fs::write(folder.path().join("a.vmdk"), &bytes).unwrap();
        let read = guest(&Image::vmdk(&region(&bytes), u64::MAX).unwrap()).unwrap();
        assert!(read == content && by_qemu(folder.path(), "a.vmdk", "vmdk") == content, "version {version}");
    }
}

#[test]
fn tables_scattered_over_a_hole_are_walked_once() {
    use std::os::unix::fs::FileExt;
    // 1 MiB on the disk: 4,096 tables with a grain each, all over 2 TiB, against any order.
    let tables = 4096_u64;
    let kind = Sparse { redundant: false, ..Sparse::monolithic_sparse(65536) };
    let bytes = built(&kind, &vec![0; 65536]);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes[..21 * 512], 0).unwrap();
    file.write_all_at(&(tables * 512 * 128).to_le_bytes(), 12).unwrap();
    file.write_all_at(&100_u64.to_le_bytes(), 56).unwrap();
    let step = (1 << 32) / (tables + 2) / 8 * 8;
    for number in 0..tables {
        let table = (number * 2_654_435_761 % tables + 1) * step;
        file.write_all_at(&u32::try_from(table).unwrap().to_le_bytes(), 100 * 512 + number * 4).unwrap();
        file.write_all_at(&u32::try_from(table + 64).unwrap().to_le_bytes(), table * 512 + number % 512 * 4).unwrap();
    }
    let len = 1 << 41;
    file.set_len(len).unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let region = Region::whole(Arc::new(file), "a.vmdk", len).before_reads(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let image = Image::vmdk(&region, u64::MAX);
    assert!(image.is_err() || image.unwrap().data_bytes() == Some(tables * GRAIN));
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads < 2 * tables + 200, "{reads} reads");
}

#[test]
fn grains_that_share_a_place_or_lie_in_the_metadata_are_refused() {
    let sparse = Sparse { redundant: false, ..Sparse::monolithic_sparse(8 * 65536) };
    let table = (1 + 20 + 1) * 512;
    let first = 128u32.to_le_bytes();
    assert_eq!(reason(&sparse, table + 8, &first), Reason::Corrupt, "the place of the first grain");
    assert_eq!(reason(&sparse, table, &[1, 0, 0, 0]), Reason::Corrupt, "the descriptor");
    assert_eq!(reason(&sparse, table, &[21, 0, 0, 0]), Reason::Corrupt, "the directory");
    assert_eq!(reason(&sparse, table, &[0, 0, 0, 1]), Reason::Truncated, "past the end");
    let lone = Sparse { capacity: GRAIN, ..sparse };
    let error = refusal(&lone, &content(65536), |bytes| bytes[table] = 22);
    assert_eq!(error.reason, Reason::Corrupt, "the table itself");
}

#[test]
fn a_marker_that_tells_another_place_than_its_entry_is_refused() {
    let stream = Sparse::stream_optimized(8 * 65536);
    assert_eq!(reason(&stream, 128 * 512, &[1]), Reason::Corrupt, "sector");
    assert_eq!(reason(&stream, 128 * 512 + 8, &[0; 4]), Reason::Corrupt, "no data");
    assert_eq!(reason(&stream, 128 * 512 + 8, &[0xFF; 4]), Reason::Corrupt, "too much data");
}

#[test]
fn a_grain_that_reaches_into_the_next_is_refused() {
    let stream = Sparse::stream_optimized(8 * 65536);
    let first = 128 * 512;
    let error = refusal(&stream, &content(8 * 65536), |bytes| {
        let len = &mut bytes[first + 8..first + 12];
        let padded = (u32::from_le_bytes(len.try_into().unwrap()) + 12).next_multiple_of(512) - 12;
        len.copy_from_slice(&(padded + 1).to_le_bytes());
    });
    assert_eq!((error.reason, error.offset), (Reason::Corrupt, Some(first as u64)));
    assert!(error.message.ends_with("are left for it"), "{error}");
}

#[test]
fn a_last_grain_that_inflates_to_more_than_a_grain_is_refused() {
    let grain = content(65536);
    for last in [65536, 512] {
        let kind = Sparse::stream_optimized(65536 + last as u64);
        for (len, is_good) in [(last, true), (65536, true), (65537, false), (2 << 20, false)] {
            let mut out = std::io::Cursor::new(Vec::new());
            let stored = grain.iter().copied().cycle().take(len).collect::<Vec<_>>();
            kind.write(&mut out, |n| Some(if n == 0 { grain.clone() } else { stored.clone() })).unwrap();
            let read = guest(&Image::vmdk(&region(out.get_ref()), u64::MAX).unwrap());
            assert_eq!(read.as_ref().err().map(|e| e.reason), (!is_good).then_some(Reason::Corrupt), "{last} {len}");
            assert!(read.is_err() || read.unwrap() == [&grain[..], &grain[..last]].concat(), "{last} {len}");
        }
    }
}

#[test]
fn a_damaged_stream_is_refused_with_its_place() {
    let stream = Sparse::stream_optimized(8 * 65536);
    let content = content(8 * 65536);
    let error = refusal(&stream, &content, |bytes| bytes[128 * 512 + 12 + 100] ^= 1);
    assert_eq!((error.reason, error.offset), (Reason::Corrupt, Some(128 * 512 + 12)));
}

#[test]
fn descriptors_that_refer_to_anything_else_are_refused() {
    let good = descriptor("monolithicSparse", 65536);
    let with = |line: &str| Some(good.replace("CID=fffffffe\n", &format!("CID=fffffffe\n{line}\n")));
    let cases = [
        (with("parentFileNameHint=\"x.vmdk\""), Reason::UnsafeReference),
        (with("PARENTFILENAMEHINT = x"), Reason::UnsafeReference),
        (with("parentCID=12345678"), Reason::UnsafeReference),
        (with("createType=\"vmfs\""), Reason::Corrupt),
        (Some(good.replace("monolithicSparse", "monolithicFlat")), Reason::Corrupt),
        (Some(good.replace("monolithicSparse", "vmfsSparse")), Reason::UnsupportedFormat),
        (Some(good.replace("monolithicSparse", "vmfs").replace("SPARSE", "VMFS")), Reason::UnsafeReference),
        (with("RW 10 FLAT \"/etc/shadow\" 0"), Reason::UnsafeReference),
        (Some(good.replace("RW 128", "# RW 128")), Reason::Corrupt),
        (Some(String::new()), Reason::MissingMember),
        (Some("# nothing".to_owned()), Reason::Corrupt),
        (None, Reason::MissingMember),
    ];
    for (descriptor, expected) in cases {
        let kind = Sparse { descriptor: descriptor.clone(), ..Sparse::monolithic_sparse(65536) };
        let error = Image::vmdk(&region(&built(&kind, &vec![1; 65536])), u64::MAX).unwrap_err();
        assert_eq!(error.reason, expected, "{descriptor:?}");
    }
}

#[test]
fn a_part_of_a_split_disk_needs_no_descriptor() {
    let kind = Sparse { descriptor: None, ..Sparse::monolithic_sparse(2 * 65536) };
    let content = content(2 * 65536);
    let region = region(&built(&kind, &content));
    let part = open_extent(&region, 2 * 65536).unwrap();
    let image = Image { regions: vec![region], reader: crate::disk::Reader::Vmdk(part) };
    let both = Image::joined("vmdk twoGbMaxExtentSparse", vec![image.clone(), image]);
    assert!(guest(&both).unwrap() == [content.clone(), content].concat());
}

#[test]
fn a_compressed_part_of_a_split_disk_is_refused() {
    let kind = Sparse { descriptor: None, footer: false, ..Sparse::stream_optimized(2 * 65536) };
    let error = open_extent(&region(&built(&kind, &content(2 * 65536))), 2 * 65536).unwrap_err();
    assert_eq!(error.reason, Reason::UnsupportedFormat, "{error}");
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    for kind in kinds(8 * 65536) {
        let whole = built(&kind, &content(8 * 65536));
        for len in (1..whole.len() - 512).step_by(4099) {
            let result = Image::vmdk(&region(&whole[..len]), u64::MAX).and_then(|image| guest(&image));
            let Err(error) = result else { panic!("{len} of {} bytes are taken: {kind:?}", whole.len()) };
            assert!(error.offset.is_some(), "{error}");
        }
    }
}

/// What QEMU makes of a disk image.
fn by_qemu(folder: &Path, source: &str, format: &str) -> Vec<u8> {
    qemu_img(folder, &["convert", "-f", format, "-O", "raw", source, "by-qemu.raw"]);
    std::fs::read(folder.join("by-qemu.raw")).unwrap()
}

#[test]
fn qemu_reads_the_samples_as_we_do() {
    let content = content(20 * 65536 + 5 * 512);
    for kind in kinds(content.len() as u64) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.vmdk"), built(&kind, &content)).unwrap();
        assert!(by_qemu(folder.path(), "a.vmdk", "vmdk") == content, "{kind:?}");
    }
}

#[test]
fn what_qemu_makes_is_read_and_copied_to_every_output() {
    let folder = tempfile::tempdir().unwrap();
    let content = sample_disk(70 * 65536 + 3 * 512);
    std::fs::write(folder.path().join("a.raw"), &content).unwrap();
    let outputs = [
        (OutputFormat::Raw, Compression::None),
        (OutputFormat::Qcow2, Compression::None),
        (OutputFormat::Qcow2, Compression::Zlib),
        (OutputFormat::Qcow2, Compression::Zstd),
        (OutputFormat::Qcow2, Compression::ZlibStrict),
    ];
    for kind in ["monolithicSparse", "streamOptimized"] {
        let options = format!("subformat={kind}");
        qemu_img(folder.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", &options, "a.raw", "a.vmdk"]);
        let image = Image::vmdk(&region_of(&folder.path().join("a.vmdk")), u64::MAX).unwrap();
        assert_eq!(image.kind(), format!("vmdk {kind}"));
        assert!(guest(&image).unwrap() == content, "{kind}");
        for (format, compress) in outputs {
            let path = folder.path().join(format!("{kind}-{compress:?}.{format}"));
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            let options = CopyOptions { format, compress, ..CopyOptions::default() };
            let control = CopyControl::default();
            copy(&image, &file, "out", &options, &control).unwrap();
            verify(&file, "out", format, Some(&image), &control).unwrap();
            let path = path.to_str().unwrap();
            if format == OutputFormat::Qcow2 {
                qemu_img(folder.path(), &["check", "-q", "-f", "qcow2", path]);
            }
            qemu_img(folder.path(), &["compare", "-q", "-f", "vmdk", "-F", format.as_str(), "a.vmdk", path]);
        }
    }
}

#[test]
fn the_parts_of_a_split_disk_that_qemu_makes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let content = sample_disk(40 * 65536);
    std::fs::write(folder.path().join("a.raw"), &content).unwrap();
    let options = "subformat=twoGbMaxExtentSparse";
    qemu_img(folder.path(), &["convert", "-f", "raw", "-O", "vmdk", "-o", options, "a.raw", "a.vmdk"]);
    let region = region_of(&folder.path().join("a-s001.vmdk"));
    assert_eq!(Image::vmdk(&region, u64::MAX).unwrap_err().reason, Reason::MissingMember);
    let reader = crate::disk::Reader::Vmdk(open_extent(&region, 40 * 65536).unwrap());
    assert!(guest(&Image { regions: vec![region], reader }).unwrap() == content);
}

#[test]
fn what_vmdkstream_makes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let content = sample_disk(40 * 65536);
    std::fs::write(folder.path().join("a.raw"), &content).unwrap();
    let made = Command::new("/usr/bin/python3")
        .args(["-m", "VMDKstream", "a.raw", "a.vmdk"])
        .current_dir(folder.path())
        .output();
    let made = made.expect("the system's python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let image = Image::vmdk(&region_of(&folder.path().join("a.vmdk")), u64::MAX).unwrap();
    assert!(guest(&image).unwrap() == content);
}

#[test]
fn tables_that_lie_one_behind_the_other_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), &["create", "-q", "-f", "vmdk", "a.vmdk", "16G"]);
    let written = Command::new("qemu-io")
        .args(["-f", "vmdk", "-c", "write -q -P 7 17179803648 64k", "a.vmdk"])
        .current_dir(folder.path())
        .status();
    assert!(written.unwrap().success());
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let region = region_of(&folder.path().join("a.vmdk")).before_reads(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let image = Image::vmdk(&region, u64::MAX).unwrap();
    let map: Vec<Extent> = image.extents().map(Result::unwrap).collect();
    assert_eq!(
        map.iter().map(|extent| extent.guest.clone()).collect::<Vec<_>>(),
        [0..17_179_803_648, 17_179_803_648..17_179_869_184]
    );
    // 512 tables, three times: their redundant copies, the check, the map.
    let reads = reads.load(Ordering::Relaxed);
    assert!(reads < 100, "{reads} reads");
}
