// SPDX-License-Identifier: Apache-2.0
//! Copies onto devices, for which files stand that are full of stale bytes.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::disk::{Geometry, Medium};

const STALE: u8 = 0xA5;

/// A file of `bytes` stale bytes, and the options to write to it as to a device.
fn device(bytes: usize, sector: u32) -> (File, CopyOptions) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![STALE; bytes], 0).unwrap();
    let medium = Medium::Device(Geometry { bytes: bytes as u64, sector });
    (file, CopyOptions { format: OutputFormat::Raw, medium, ..CopyOptions::default() })
}

fn content(file: &File) -> Vec<u8> {
    // A copy that failed leaves direct I/O on.
    rustix::fs::fcntl_setfl(file, OFlags::empty()).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_of_a_device_is_the_guest_s_or_zero(
        (pieces, order) in pieces_in_order(),
        unit in prop_oneof![Just(4096usize), Just(65536), Just(262_144)],
        cut in 0usize..8,
        more in prop_oneof![Just(0usize), Just(1), Just(7), Just(8), Just(5000)],
        sector in prop_oneof![Just(512u32), Just(4096), Just(16384)],
    ) {
        let size = (pieces.len() * unit - cut * 512).max(512);
        let (source, image, guest) = image_in_order(512, 512, &order, &pieces, unit, size);
        let image = image(region(&source));
        let bytes = (size + more * 512).next_multiple_of(sector as usize);
        let (file, options) = device(bytes, sector);
        let control = CopyControl::default();
        let copied = copy(&image, &file, "device", &options, &control).unwrap();
        prop_assert_eq!((copied.file_size, copied.written_zeros), (bytes as u64, 0));
        let found = content(&file);
        prop_assert!(found.len() == bytes && found[..size] == guest[..], "the guest's bytes");
        prop_assert!(found[size..].iter().all(|&byte| byte == 0), "what follows");
        verify(&file, "device", options.format, Some(&image), &control).unwrap();
        let (done, total) = control.progress();
        prop_assert_eq!(done, total);
        if bytes > size {
            file.write_all_at(&[1], bytes as u64 - 1).unwrap();
            let error = verify(&file, "device", options.format, Some(&image), &control).unwrap_err();
            prop_assert_eq!((error.reason, error.offset), (Reason::Internal, Some(bytes as u64 - 1)));
        }
    }
}

#[test]
fn a_device_that_is_too_small_is_not_touched() {
    let (image, _) = image(&[Piece::Stored(3)], 65536, 65536);
    let (file, options) = device(65536 - 512, 512);
    let error = copy(&image, &file, "device", &options, &CopyControl::default()).unwrap_err();
    assert_eq!((error.reason, error.needed_bytes), (Reason::TargetTooSmall, Some(65536)));
    assert!(content(&file).iter().all(|&byte| byte == STALE));
}

#[test]
fn a_copy_that_fails_leaves_zeros_at_both_ends_of_the_device() {
    let mut pieces = vec![Piece::Random(1); 80];
    pieces.extend([Piece::Zlib(5)]);
    let (mut source, image, _) = image_in_order(512, 512, &(0..81).collect::<Vec<_>>(), &pieces, 65536, 81 * 65536);
    // The last stream is damaged.
    let len = source.len();
    source[len - 40..].fill(0xff);
    let (file, options) = device(8 << 20, 512);
    let error = copy(&image(region(&source)), &file, "device", &options, &CopyControl::default()).unwrap_err();
    assert_eq!(error.reason, Reason::Corrupt, "{error}");
    let found = content(&file);
    assert!(found[..1 << 20].iter().all(|&byte| byte == 0), "the first MiB");
    assert!(found[7 << 20..].iter().all(|&byte| byte == 0), "the last MiB");
}

#[test]
fn an_image_is_rounded_up_with_zeros() {
    let (image, guest) = image(&[Piece::Stored(3), Piece::Absent, Piece::Random(1)], 65536, 3 * 65536 - 512);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let medium = Medium::Image { unit: 1 << 20 };
    let copied = copied(&image, &path, &CopyOptions { format: OutputFormat::Raw, medium, ..CopyOptions::default() });
    assert_eq!(copied.unwrap().file_size, 1 << 20);
    let found = std::fs::read(&path).unwrap();
    assert!(found.starts_with(&guest) && found[guest.len()..].iter().all(|&byte| byte == 0));
}
