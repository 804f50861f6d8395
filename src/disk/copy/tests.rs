// SPDX-License-Identifier: Apache-2.0
//! What a copy makes of a map.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use rustix::fs::OFlags;

use sha2::{Digest, Sha256};

use super::*;
use crate::conversion::{Compression, OutputFormat, Reason};
use crate::disk::manifest::{Algorithm, Expected};
use crate::disk::replay::decode::Decode;
use crate::disk::replay::{GuestBytes, replay};
use crate::disk::{Extent, Location, Reader, Region, digest, verify};

use crate::disk::sample_vmdk::{Sparse, built};

mod device;
mod ending;
mod kept;
mod panicking;
mod passing;
mod pieces;
mod reading;
mod regions;

use passing::{Writer, fixed};
use pieces::*;

fn every_output() -> Vec<CopyOptions> {
    let qcow2 = [Compression::None, Compression::Zlib, Compression::Zstd, Compression::ZlibStrict]
        .map(|compress| CopyOptions { compress, ..CopyOptions::default() });
    let raw = CopyOptions { format: OutputFormat::Raw, ..CopyOptions::default() };
    let vdi = CopyOptions { format: OutputFormat::Vdi, ..CopyOptions::default() };
    qcow2.into_iter().chain([raw.clone(), CopyOptions { buffered: true, ..raw }, vdi]).collect()
}

fn copied(image: &Image, path: &Path, options: &CopyOptions) -> Result<Copied, Error> {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let control = CopyControl::default();
    let copied = copy(image, &file, "out", options, &control)?;
    verify(&file, "out", options.format, None, &control)?;
    let (done, total) = control.progress();
    assert_eq!(done, total, "progress ends at its total");
    Ok(copied)
}

/// What QEMU reads in an output.
fn read_by_qemu(path: &Path, format: OutputFormat) -> Vec<u8> {
    let raw = path.with_extension("by-qemu");
    let status = Command::new("qemu-img")
        .args(["convert", "-f", format.as_str(), "-O", "raw"])
        .arg(path)
        .arg(&raw)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(raw).unwrap()
}

fn checked_by_qemu(path: &Path, format: OutputFormat) {
    let output = Command::new("qemu-img").args(["check", "-f", format.as_str()]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_writer_gives_back_what_a_random_map_holds(
        (pieces, order) in pieces_in_order(),
        unit in prop_oneof![Just(4096usize), Just(65536), Just(262_144)],
        cut in 0usize..8,
        start in prop_oneof![Just(100usize), Just(512), Just(4096)],
        align in prop_oneof![Just(1usize), Just(512)],
    ) {
        let size = (pieces.len() * unit - cut * 512).max(512);
        let (file, image, guest) = image_in_order(start, align, &order, &pieces, unit, size);
        let image = image(region(&file));
        for options in every_output() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("out");
            copied(&image, &path, &options).unwrap();
            let written = File::options().read(true).write(true).open(&path).unwrap();
            verify(&written, "out", options.format, Some(&image), &CopyControl::default()).unwrap();
            if options.format == OutputFormat::Raw {
                prop_assert!(std::fs::read(&path).unwrap() == guest, "{:?}", options);
            } else {
                checked_by_qemu(&path, options.format);
                prop_assert!(read_by_qemu(&path, options.format) == guest, "{:?}", options);
            }
        }
    }

    #[test]
    fn a_digest_finds_each_flipped_bit_whatever_the_order_of_the_file(
        (pieces, order) in pieces_in_order(),
        align in prop_oneof![Just(1usize), Just(512)],
        flip in any::<u64>(),
        compress in prop_oneof![Just(Compression::None), Just(Compression::Zlib)],
    ) {
        let unit = 65536;
        let (mut file, image, guest) = image_in_order(100, align, &order, &pieces, unit, pieces.len() * unit);
        let digest = Sha256::digest(&file).to_vec();
        let folder = tempfile::tempdir().unwrap();
        let attempt = |name: &str, file: &[u8], is_digested: bool| {
            let region = region(file);
            let expected = Expected { region: region.clone(), algorithm: Algorithm::Sha256, digest: digest.clone() };
            let digests = if is_digested { vec![expected] } else { Vec::new() };
            let options = CopyOptions { compress, digests, ..CopyOptions::default() };
            copied(&image(region), &folder.path().join(name), &options)
        };
        attempt("good", &file, true).unwrap();
        prop_assert!(read_by_qemu(&folder.path().join("good"), OutputFormat::Qcow2) == guest);

        let at = usize::try_from(flip / 8 % file.len() as u64).unwrap();
        file[at] ^= 1 << (flip % 8);
        let error = attempt("bad", &file, true).unwrap_err();
        let (reason, offset) = match attempt("without digest", &file, false) {
            Ok(_) => (Reason::ManifestMismatch, None),
            Err(damage) => (damage.reason, damage.offset),
        };
        prop_assert_eq!((error.reason, error.offset), (reason, offset), "{}", error);
    }

    #[test]
    fn damaged_sources_give_the_same_error_or_the_same_guest_on_every_path(
        flips in proptest::collection::vec((0usize..200_000, 0u8..8), 1..6),
        compressed in any::<bool>(),
        footer in any::<bool>(),
    ) {
        let (_, content) = image(&[Piece::Stored(3), Piece::Absent, Piece::Random(9), Piece::Stored(200)], 65536, 4 * 65536);
        let stream = Sparse { footer, ..Sparse::stream_optimized(4 * 65536) };
        let kind = if compressed { stream } else { Sparse::monolithic_sparse(4 * 65536) };
        let mut bytes = built(&kind, &content);
        for (at, bit) in flips {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Ok(image) = Image::vmdk(&region(&bytes), u64::MAX) && image.virtual_size() <= 1 << 30 {
            let folder = tempfile::tempdir().unwrap();
            let plain = CopyOptions { format: OutputFormat::Raw, threads: Some(1), ..CopyOptions::default() };
            let passed = CopyOptions { compress: Compression::Zlib, threads: Some(3), ..CopyOptions::default() };
            let plain = copied(&image, &folder.path().join("plain"), &plain);
            match (plain, copied(&image, &folder.path().join("passed"), &passed)) {
                (Ok(_), Ok(_)) => {
                    let guest = std::fs::read(folder.path().join("plain")).unwrap();
                    prop_assert!(read_by_qemu(&folder.path().join("passed"), OutputFormat::Qcow2) == guest);
                }
                (Err(plain), Err(passed)) => {
                    prop_assert!(plain.offset.is_some(), "{}", plain);
                    prop_assert_eq!((plain.reason, plain.offset), (passed.reason, passed.offset));
                }
                (plain, passed) => prop_assert!(false, "{:?} but {:?}", plain, passed),
            }
        }
    }
}

#[test]
fn the_output_is_the_same_for_every_number_of_threads() {
    let kinds = [Piece::Random(1), Piece::Zlib(5), Piece::Absent, Piece::Stored(9), Piece::Zstd(77), Piece::Random(4)];
    let pieces: Vec<Piece> = kinds.iter().cycle().take(300).cloned().collect();
    let (image, _) = image(&pieces, 65536, 300 * 65536);
    for options in every_output() {
        let folder = tempfile::tempdir().unwrap();
        let digests: Vec<_> = [1, 2, 7]
            .iter()
            .map(|&threads| {
                let path = folder.path().join(threads.to_string());
                copied(&image, &path, &CopyOptions { threads: Some(threads), ..options.clone() }).unwrap();
                let file = File::open(path).unwrap();
                digest(&file, "out", options.format, image.virtual_size(), &CopyControl::default()).unwrap()
            })
            .collect();
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{options:?}");
    }
}

#[test]
fn a_stream_is_passed_through_only_where_it_ends_with_its_checksum() {
    let bytes = bytes_of(&Piece::Zlib(5), 65536);
    let stream = zlib(&bytes);
    let mut decode = Decode::new();
    let mut target = vec![0; 65536];
    assert_eq!(decode.pass_through(&stream, &mut target), Some(&stream[2..stream.len() - 4]));
    assert!(target == bytes);

    let junk = [stream.as_slice(), b"more"].concat();
    let mut wrong_sum = stream.clone();
    *wrong_sum.last_mut().unwrap() ^= 1;
    let mut wrong_header = stream.clone();
    wrong_header[0] = 0x79;
    let short = zlib(&bytes[..65535]);
    let sum = &stream[stream.len() - 4..];
    let junk_and_sum = [stream.as_slice(), b"junk", sum].concat();
    let twice = [stream.as_slice(), sum].concat();
    let late_sum = [&stream[..stream.len() - 4], b"junk", sum].concat();
    let cases = [
        junk.as_slice(),
        &junk_and_sum,
        &twice,
        &late_sum,
        &wrong_sum,
        &wrong_header,
        &short,
        &stream[..stream.len() - 1],
        &stream[..5],
        &[],
    ];
    for (number, case) in cases.iter().enumerate() {
        assert_eq!(decode.pass_through(case, &mut target), None, "case {number}");
    }
}

#[test]
fn passed_through_grains_keep_their_bytes_and_short_ones_are_encoded_again() {
    let capacity = 6 * 65536 + 512;
    let (_, content) = image(&vec![Piece::Stored(7); 7], 65536, capacity);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let vmdk = built(&Sparse::stream_optimized(capacity as u64), &content);
    let options = CopyOptions { compress: Compression::Zlib, ..CopyOptions::default() };
    copied(&Image::vmdk(&region(&vmdk), u64::MAX).unwrap(), &path, &options).unwrap();
    checked_by_qemu(&path, OutputFormat::Qcow2);
    assert!(read_by_qemu(&path, OutputFormat::Qcow2) == content);
    let stream = zlib(&content[..65536]);
    let body = &stream[2..stream.len() - 4];
    let output = std::fs::read(&path).unwrap();
    let passed = output.windows(body.len()).filter(|window| *window == body).count();
    assert_eq!(passed, 6);
}

#[test]
fn a_stream_that_qemu_can_not_inflate_is_refused() {
    let length = |writer: Writer, code| writer.code(code, 8).code(0, 5);
    // `a`, and 258 more of it 254 times, once as length symbol 286, which libdeflate alone takes; then 3 more.
    let first = length(fixed().code(0x30 + 97, 8), 0b1100_0110);
    let writer = (1..254).fold(first, |writer, _| length(writer, 0b1100_0101));
    let writer = writer.code(1, 7).code(0, 5).code(0, 7);
    let guest = vec![b'a'; 65536];
    let usual = zlib(&guest);
    let stream = [&usual[..2], &writer.bytes, &usual[usual.len() - 4..]].concat();

    let at = Location::Deflate { file: 0, offset: 0, len: u32::try_from(stream.len()).unwrap(), zlib: true };
    let extents = vec![Extent { guest: 0..65536, at }];
    let image = Image { regions: vec![region(&stream)], reader: Reader::Listed { kind: "listed", extents } };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    for compress in [Compression::Zlib, Compression::None] {
        let options = CopyOptions { compress, ..CopyOptions::default() };
        let error = copied(&image, &path, &options).unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::Corrupt, Some(0)));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn strict_deflate_uses_no_distance_beyond_4_kib() {
    let block: Vec<u8> = bytes_of(&Piece::Random(3), 8192);
    let content = block.repeat(128);
    let folder = tempfile::tempdir().unwrap();
    let sizes = [Compression::Zlib, Compression::ZlibStrict].map(|compress| {
        let options = CopyOptions { compress, ..CopyOptions::default() };
        let path = folder.path().join(compress.as_str());
        let image = Image::raw(&region(&content)).unwrap();
        copied(&image, &path, &options).unwrap();
        assert!(read_by_qemu(&path, OutputFormat::Qcow2) == content);
        std::fs::metadata(path).unwrap().len()
    });
    assert!(sizes[0] < sizes[1], "repetitions 8 KiB apart are out of a 4 KiB window's reach: {sizes:?}");
}

#[test]
fn zeros_are_holes() {
    let mut content = vec![0; 32 << 20];
    content[5 << 20] = 1;
    let folder = tempfile::tempdir().unwrap();
    for (name, format, most) in [("raw", OutputFormat::Raw, 4096), ("qcow2", OutputFormat::Qcow2, 6 * 65536)] {
        let options = CopyOptions { format, ..CopyOptions::default() };
        let copied = copied(&Image::raw(&region(&content)).unwrap(), &folder.path().join(name), &options).unwrap();
        assert!(copied.allocated <= most, "{name}: {} bytes", copied.allocated);
    }
}

#[test]
fn raw_output_that_would_be_taken_for_a_container_is_refused() {
    let mut head = vec![0; 1 << 20];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let mut tail = vec![0; 1 << 20];
    tail[(1 << 20) - 512..][..8].copy_from_slice(b"conectix");
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("head", head), ("tail", tail)] {
        let image = Image::raw(&region(&content)).unwrap();
        let raw = CopyOptions { format: OutputFormat::Raw, ..CopyOptions::default() };
        let error = copied(&image, &folder.path().join(name), &raw).unwrap_err();
        assert_eq!(error.reason, Reason::OutputWouldProbe);
        copied(&image, &folder.path().join(format!("{name}.qcow2")), &CopyOptions::default()).unwrap();
    }
}

#[test]
fn a_cancelled_copy_says_so() {
    let (image, _) = image(&vec![Piece::Random(1); 200], 65536, 200 * 65536);
    let file = tempfile::tempfile().unwrap();
    let control = CopyControl::default();
    control.cancel();
    let error = copy(&image, &file, "out", &CopyOptions::default(), &control).unwrap_err();
    assert_eq!(error.reason, Reason::Cancelled);
    let mut header = Vec::new();
    (&file).read_to_end(&mut header).unwrap();
    assert!(!header.starts_with(b"QFI\xfb"), "an unfinished output is no image");
}

#[test]
fn a_full_volume_is_output_full() {
    let (image, _) = image(&vec![Piece::Random(1); 40], 65536, 40 * 65536);
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let error = copy(&image, &full, "out", &CopyOptions::default(), &CopyControl::default()).unwrap_err();
    assert_eq!(error.reason, Reason::OutputFull);
}

#[test]
fn maps_with_gaps_or_overlaps_are_internal_errors() {
    let zero = |guest| Extent { guest, at: Location::Zero };
    for extents in [vec![zero(0..512), zero(1024..2048)], vec![zero(0..1024), zero(512..2048)], vec![zero(512..2048)]] {
        let image = Image { regions: vec![region(&[1; 512])], reader: Reader::Listed { kind: "listed", extents } };
        let folder = tempfile::tempdir().unwrap();
        let error = copied(&image, &folder.path().join("out"), &CopyOptions::default()).unwrap_err();
        assert_eq!(error.reason, Reason::Internal);
    }
}

#[test]
fn a_second_pass_finds_a_difference() {
    let (image, guest) = image(&[Piece::Stored(3), Piece::Absent, Piece::Random(1)], 65536, 3 * 65536);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    copied(&image, &path, &CopyOptions { format: OutputFormat::Raw, ..CopyOptions::default() }).unwrap();
    let control = CopyControl::default();
    verify(&File::open(path).unwrap(), "out", OutputFormat::Raw, Some(&image), &control).unwrap();

    let mut wrong = guest;
    wrong[65536 + 77] = 1;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&wrong).unwrap();
    let error = verify(&file, "out", OutputFormat::Raw, Some(&image), &control).unwrap_err();
    assert_eq!((error.reason, error.offset), (Reason::Internal, Some(0)));
}

#[test]
fn replay_covers_the_disk_in_order() {
    let (image, guest) = image(&[Piece::Absent, Piece::Zlib(3), Piece::Absent, Piece::Absent], 4096, 4 * 4096);
    let mut seen = Vec::new();
    replay(&image, &CopyControl::default(), |at, found| {
        assert_eq!(at, seen.len() as u64);
        match found {
            GuestBytes::Zero(len) => seen.resize(seen.len() + usize::try_from(len).unwrap(), 0),
            GuestBytes::Data(bytes) => seen.extend_from_slice(bytes),
        }
        Ok(())
    })
    .unwrap();
    assert!(seen == guest);
}
