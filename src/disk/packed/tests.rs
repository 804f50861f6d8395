// SPDX-License-Identifier: Apache-2.0
//! Streams of every packing: whole, joined, padded, cut, changed and exploding.

use std::io::{Cursor, Write as _};

use rstest::rstest;

use super::frames::{has_end, has_zip_end};
use super::*;
use crate::conversion::Remedy;
use crate::disk::resolve::{region_over, sample_disk};
use crate::disk::{CopyControl, CopyOptions, Image};

const ALL: [Packing; 4] = [Packing::Gzip, Packing::Xz, Packing::Zstd, Packing::Bzip2];

fn pack(packing: Packing, bytes: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn unpacked(packing: Packing, bytes: &[u8]) -> Result<(Vec<u8>, u64), Error> {
    let mut unpacking = Stream::of(&region_over(bytes), packing).open()?;
    let mut all = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        let filled = unpacking.fill(&mut buffer)?;
        all.extend_from_slice(&buffer[..filled]);
        if filled < buffer.len() {
            assert_eq!(unpacking.advanced(), bytes.len() as u64, "all of it counts");
            return Ok((all, unpacking.surplus()));
        }
    }
}

fn refusal(packing: Packing, bytes: &[u8]) -> (Reason, Option<u64>) {
    let error = unpacked(packing, bytes).unwrap_err();
    (error.reason, error.offset)
}

#[test]
fn joined_streams_are_one() {
    let (one, two) = (sample_disk(700_000), sample_disk(300_001));
    for packing in ALL {
        let joined = [pack(packing, &one), pack(packing, &two)].concat();
        let (all, surplus) = unpacked(packing, &joined).unwrap();
        assert!(all == [one.as_slice(), &two].concat(), "{packing:?}");
        assert_eq!(surplus, 0);
        assert_eq!(unpacked(packing, &pack(packing, b"")).unwrap().0, b"");
    }
}

#[test]
fn padding_and_skippable_frames_are_passed_over() {
    let bytes = sample_disk(300_000);
    let xz = pack(Packing::Xz, &bytes);
    let padded = [&xz, [0; 8].as_slice(), &xz, &[0; 4]].concat();
    assert!(unpacked(Packing::Xz, &padded).unwrap().0 == [bytes.as_slice(), &bytes].concat());
    assert_eq!(frames::size(&region_over(&padded), Packing::Xz), Some(600_000));
    let skippable = b"\x57\x2A\x4D\x18\x05\0\0\0notes";
    let zstd = [skippable.as_slice(), &pack(Packing::Zstd, &bytes), skippable].concat();
    assert!(unpacked(Packing::Zstd, &zstd).unwrap().0 == bytes);
    for packing in [Packing::Gzip, Packing::Bzip2] {
        let zeros = [&pack(packing, &bytes), [0; 3000].as_slice()].concat();
        assert!(unpacked(packing, &zeros).unwrap() == (bytes.clone(), 0), "{packing:?}");
    }
}

#[test]
fn what_vendors_append_to_one_member_is_told_and_a_damaged_member_is_no_such_thing() {
    let bytes = sample_disk(200_000);
    for packing in [Packing::Gzip, Packing::Bzip2] {
        let member = pack(packing, &bytes);
        let signed = [member.clone(), b"signature".to_vec()].concat();
        assert!(unpacked(packing, &signed).unwrap() == (bytes.clone(), 9), "{packing:?}");
        let mut damaged = [member.clone(), member.clone(), member.clone()].concat();
        damaged[2 * member.len()] ^= 1;
        assert_eq!(refusal(packing, &damaged), (Reason::Corrupt, Some(2 * member.len() as u64)), "{packing:?}");
    }
}

#[test]
fn cut_and_changed_streams_are_refused_with_their_place() {
    let bytes = sample_disk(3 << 20);
    for packing in ALL {
        let whole = pack(packing, &bytes);
        for keep in [11, whole.len() / 2, whole.len() - 1] {
            assert_eq!(refusal(packing, &whole[..keep]), (Reason::Truncated, Some(keep as u64)), "{packing:?} {keep}");
        }
        for at in [whole.len() / 3, whole.len() / 2, whole.len() - 6] {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            let (reason, place) = refusal(packing, &changed);
            assert!(matches!(reason, Reason::Corrupt | Reason::Truncated), "{packing:?} {at}: {reason}");
            assert!(place.is_some_and(|place| place <= whole.len() as u64));
        }
    }
}

#[test]
fn the_end_of_a_stream_is_known_where_its_packing_marks_it() {
    let bytes = sample_disk(1 << 20);
    for packing in [Packing::Xz, Packing::Zstd, Packing::Bzip2] {
        let whole = pack(packing, &bytes);
        assert_eq!(has_end(&region_over(&whole), packing), Some(true), "{packing:?}");
        for keep in [whole.len() - 1, whole.len() / 2] {
            assert_eq!(has_end(&region_over(&whole[..keep]), packing), Some(false), "{packing:?} {keep}");
        }
    }
    assert_eq!(has_end(&region_over(&pack(Packing::Gzip, &bytes)), Packing::Gzip), None);
    let zip = zip(&[("a", &bytes)], zip::CompressionMethod::Deflated);
    assert_eq!(has_zip_end(&region_over(&zip)), Some(true));
    assert_eq!(has_zip_end(&region_over(&zip[..zip.len() - 1])), Some(false));
}

fn zip(files: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn entries_of_a_zip_state_what_they_are() {
    let bytes = sample_disk(400_000);
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let packed = zip(&[("dir/vm.img", &bytes), ("b", b"x")], method);
        let entries = entries::list(&region_over(&packed)).unwrap();
        assert_eq!(
            entries.iter().map(|e| (e.path.as_str(), e.size)).collect::<Vec<_>>(),
            [("dir/vm.img", 400_000), ("b", 1)]
        );
        let stream = entries[0].stream().unwrap();
        assert_eq!((stream.name(), stream.size()), ("image:vm.img", Some(400_000)));
        let mut all = vec![0; 500_000];
        assert_eq!(stream.open().unwrap().fill(&mut all).unwrap(), 400_000);
        assert!(all[..400_000] == bytes);

        let at = packed.windows(16).position(|window| *window == bytes[..16]).unwrap_or(100);
        let mut changed = packed.clone();
        changed[at + 5] ^= 1;
        let entries = entries::list(&region_over(&changed)).unwrap();
        let error = entries[0].stream().unwrap().open().unwrap().fill(&mut all).unwrap_err();
        assert!(matches!(error.reason, Reason::Corrupt | Reason::Truncated), "{error}");
        let cut = entries::list(&region_over(&packed[..packed.len() - 30])).unwrap_err();
        assert_eq!(cut.reason, Reason::Truncated, "{cut}");
    }
}

#[test]
fn a_zip_of_deflate64_is_refused_with_what_helps() {
    let mut packed = zip(&[("vm.img", &sample_disk(4000))], zip::CompressionMethod::Stored);
    // Method 9, in the file's header and in the directory (APPNOTE 4.3.7 and 4.3.12).
    packed[8] = 9;
    let at = packed.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    packed[at + 10] = 9;
    let error = entries::list(&region_over(&packed)).unwrap()[0].stream().unwrap_err();
    assert_eq!((error.reason, error.remedy), (Reason::UnsupportedFormat, Some(Remedy::ZipAgain)), "{error}");
    assert!(error.message.contains("vm.img") && error.message.contains("only deflate is read"), "{error}");
}

#[test]
fn a_raw_disk_streams_into_every_output_and_its_size_is_found_on_the_way() {
    let bytes = sample_disk((5 << 20) + 700);
    for packing in ALL {
        for format in [
            crate::conversion::OutputFormat::Qcow2,
            crate::conversion::OutputFormat::Raw,
            crate::conversion::OutputFormat::Vdi,
        ] {
            let region = region_over(&pack(packing, &bytes));
            let image = Image::packed(PackedRaw::new(Stream::of(&region, packing), 1 << 30));
            let output = tempfile::tempfile().unwrap();
            let control = CopyControl::default();
            let options = CopyOptions { format, ..CopyOptions::default() };
            crate::disk::copy(&image, &output, "out", &options, &control).unwrap();
            let size = bytes.len().next_multiple_of(512) as u64;
            assert_eq!((image.known_size(), image.warnings().len()), (Some(size), 1), "{packing:?} {format}");
            let (done, total) = control.progress();
            assert_eq!(done, total, "every packed byte is counted");
            crate::disk::verify(&output, "out", format, Some(&image), &control).unwrap();
        }
    }
}

#[rstest]
#[case(1 << 20, Reason::TooLarge)]
#[case(3 << 20, Reason::FormatMismatch)]
fn a_stream_beyond_the_limit_or_with_a_footer_at_its_end_is_refused_by_the_copy(
    #[case] limit: u64,
    #[case] reason: Reason,
) {
    let mut bytes = sample_disk(2 << 20);
    let footer = bytes.len() - 512;
    bytes[footer..footer + 8].copy_from_slice(b"conectix");
    let region = region_over(&pack(Packing::Gzip, &bytes));
    let image = Image::packed(PackedRaw::new(Stream::of(&region, Packing::Gzip), limit));
    let output = tempfile::tempfile().unwrap();
    let error = crate::disk::copy(&image, &output, "out", &CopyOptions::default(), &CopyControl::default());
    assert_eq!(error.unwrap_err().reason, reason);
}

#[test]
fn a_bomb_is_too_large_by_its_ratio() {
    let sevens = vec![7; 64 << 20];
    let packed = pack(Packing::Zstd, &sevens);
    let many: Vec<u8> = std::iter::repeat_n(packed, 6).flatten().collect();
    assert_eq!(refusal(Packing::Zstd, &many).0, Reason::TooLarge);
}

#[test]
fn scratch_is_bounded_and_counted() {
    let bytes = sample_disk(1 << 20);
    let region = region_over(&pack(Packing::Xz, &bytes));
    let run = |bounds| unpack(&Stream::of(&region, Packing::Xz), tempfile::tempfile().unwrap(), bounds);
    let wide = Bounds { length: 1 << 30, stored: 1 << 30, enough: u64::MAX };
    let whole = run(wide).unwrap();
    assert_eq!((whole.region.len(), whole.is_whole), (1 << 20, true));
    let full = run(Bounds { stored: 4096, ..wide }).unwrap_err();
    assert_eq!((full.reason, full.needed_bytes.is_some()), (Reason::OutputFull, true));
    assert_eq!(run(Bounds { length: 4096, ..wide }).unwrap_err().reason, Reason::TooLarge);
    let beginning = run(Bounds { enough: 300_000, ..wide }).unwrap();
    assert_eq!((beginning.region.len(), beginning.is_whole), (512 << 10, false));
}
