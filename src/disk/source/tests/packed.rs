// SPDX-License-Identifier: Apache-2.0
//! Packed sources, by the programs that people pack with where these are installed.

use super::*;
use crate::disk::resolve::qemu_img;
use crate::disk::source::inspect;

fn raw_disk() -> Vec<u8> {
    let mut bytes = content(7, 3 << 20);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    bytes
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn qcow2(bytes: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("raw"), bytes).unwrap();
    qemu_img(directory.path(), &["convert", "-f", "raw", "-O", "qcow2", "raw", "out"]);
    std::fs::read(directory.path().join("out")).unwrap()
}

#[test]
fn one_disk_is_read_from_every_packing() {
    let bytes = raw_disk();
    let vmdk = stream(&bytes);
    let qcow2 = qcow2(&bytes);
    for (name, packed, format) in [
        ("vm.img.gz", gzip(&bytes), "raw in gzip"),
        ("vm.raw.xz", xz(&bytes), "raw in xz"),
        ("vm.vmdk.gz", gzip(&vmdk), "vmdk streamOptimized in gzip"),
        ("vm.qcow2.xz", xz(&qcow2), "qcow2 version 3 in xz"),
        ("vm.img.xz", xz(&qcow2), "qcow2 version 3 in xz"),
        ("vm.vmdk.zip", zip(&[("vm/vm.vmdk", &vmdk), ("vm/readme.txt", b"x")]), "vmdk streamOptimized in zip"),
        ("vm.zip", zip(&[("vm.img", &bytes)]), "raw in zip"),
        ("vm.tar", tar(&[("disk.raw", &bytes)]), "raw in tar"),
        ("vm.tar.gz", gzip(&tar(&[("disk.raw", &bytes)])), "raw in tar in gzip"),
        ("vm.tgz", gzip(&tar(&[("disk.raw", &bytes)])), "raw in tar in gzip"),
        ("vm.gz", gzip(&vmdk), "vmdk streamOptimized in gzip"),
        ("vm", gzip(&bytes), "raw in gzip"),
    ] {
        let source = good((name, &packed), &[]);
        assert_eq!((source.format.as_str(), source.disks.len()), (format, 1), "{name}");
        assert!(guest(&source.disks[0].image) == bytes, "{name}");
    }
}

#[test]
fn a_raw_disk_in_a_packed_tar_is_streamed_and_anything_else_is_not() {
    let bytes = raw_disk();
    let noise: Vec<u8> =
        (0..5_u32 << 20).flat_map(|n| n.wrapping_mul(n).wrapping_mul(0x9E37_79B1).to_be_bytes()).collect();
    let disk = stream(&bytes);
    let envelope = ovf(&[("disk.raw", 3 << 20)]);
    let count = |name: &str, packed: &[u8]| {
        let mut made = 0;
        let mut scratch = || {
            made += 1;
            Ok(tempfile::tempfile().unwrap())
        };
        let source = open(&region(name, packed), &[], &LIMITS, &mut scratch).unwrap();
        (made, source)
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let alone = tar(&[("disk.raw", &bytes)]);
    let notes = tar(&[("./readme.txt", b"x"), ("vm/disk.raw", &bytes), ("vm/sums.txt", b"y")]);
    for (name, packed, format) in [
        ("vm.tar.gz", gzip(&alone), "raw in tar in gzip"),
        ("vm.tar.xz", xz(&alone), "raw in tar in xz"),
        ("vm.tar.zst", zstd(&alone), "raw in tar in zstd"),
        ("vm.tgz", gzip(&notes), "raw in tar in gzip"),
        ("vm.zip", zip(&[("vm.tar", &notes)]), "raw in tar in zip"),
        ("vm.tar.gz", gzip(&tar(&[("disk", &bytes)])), "raw in tar in gzip"),
    ] {
        let (made, source) = count(name, &packed);
        assert_eq!((made, source.format.as_str()), (0, format), "{name}");
        assert_eq!(source.disks[0].image.known_size(), Some(3 << 20), "{name}");
        assert!(guest(&source.disks[0].image) == bytes, "{name}");
    }
    // So long that only its length tells that nothing follows.
    let (made, source) = count("vm.tar.gz", &gzip(&tar(&[("disk.raw", &noise), ("notes.txt", b"x")])));
    assert!(made == 0 && guest(&source.disks[0].image) == noise);
    for (name, packed) in [
        ("vm.tar.gz", gzip(&tar(&[("disk.vmdk", &disk)]))),
        ("vm.tar.gz", gzip(&tar(&[("disk.raw", &bytes), ("vm.ovf", envelope.as_bytes())]))),
    ] {
        let (made, source) = count(name, &packed);
        assert!(made > 0 && guest(&source.disks[0].image) == bytes, "{}", source.format);
    }
    assert_eq!(
        refused(("vm.tar.xz", &xz(&tar(&[("a.raw", &bytes), ("b.raw", &bytes)]))), &[]),
        Reason::UnsupportedFormat
    );
}

/// A tar of `names` in `directory`, by GNU tar.
fn gnu_tar(directory: &std::path::Path, arguments: &[&str], names: &[&str]) -> Vec<u8> {
    let mut tar = std::process::Command::new("tar");
    let output = tar.current_dir(directory).args(arguments).args(["-cf", "-"]).args(names).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn sparse_members_of_gnu_tar_are_read_with_their_holes() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("vm.ovf"), ovf(&[("disk.img", 3 << 20)])).unwrap();
    // As many segments as the header takes, as one block behind it does, and more; the file's end in data or in a hole.
    for (segments, end) in [(1, 0), (3, 100), (4, 4096), (24, 0), (25, 0), (26, 7), (300, 512)] {
        let mut bytes = vec![0; 3 << 20];
        let disk = std::fs::File::create(directory.path().join("disk.img")).unwrap();
        for number in 0..segments {
            let data = &mut bytes[number * 8192..][..4096];
            data.fill(u8::try_from(number % 250).unwrap() + 1);
            data[510..512].copy_from_slice(&[0x55, 0xAA]);
            std::os::unix::fs::FileExt::write_all_at(&disk, data, number as u64 * 8192).unwrap();
        }
        let len = 2_500_000 / 4096 * 4096;
        disk.set_len(len + end).unwrap();
        if end > 0 {
            std::os::unix::fs::FileExt::write_all_at(&disk, &[9], len + end - 1).unwrap();
            bytes[usize::try_from(len + end).unwrap() - 1] = 9;
        }
        bytes.truncate(usize::try_from(len + end).unwrap().next_multiple_of(512));
        for version in ["gnu", "0.0", "0.1", "1.0"] {
            let version = format!("--sparse-version={version}");
            let arguments: &[&str] =
                if version.ends_with("gnu") { &["-S", "-H", "gnu"] } else { &["-S", "-H", "posix", &version] };
            let alone = gnu_tar(directory.path(), arguments, &["disk.img"]);
            let appliance = gnu_tar(directory.path(), arguments, &["vm.ovf", "disk.img"]);
            assert!(alone.len() < 2 << 20, "not sparse");
            for (name, packed) in [
                ("vm.tar", &alone),
                ("vm.tar.gz", &gzip(&alone)),
                ("vm.ova", &appliance),
                ("vm.ova", &gzip(&appliance)),
                ("vm.zip", &zip(&[("vm.ova", &appliance)])),
            ] {
                let source = good((name, packed), &[]);
                assert!(guest(&source.disks[0].image) == bytes, "{name} {version} {segments} {end}");
            }
        }
    }
}

#[test]
fn a_huge_member_of_holes_costs_nothing() {
    let records = [("GNU.sparse.size", "1099511627776"), ("GNU.sparse.map", "0,512"), ("GNU.sparse.name", "d.img")];
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    let packed = [sample_ova::pax(&records), member("x", &sector), END.to_vec()].concat();
    let source = good(("vm.tar", &packed), &[]);
    let (mut data, size) = (0, source.disks[0].image.virtual_size());
    replay(&source.disks[0].image, &CopyControl::default(), |_, found| {
        if let GuestBytes::Data(bytes) = found {
            data += bytes.len();
        }
        Ok(())
    })
    .unwrap();
    assert!(size == 1 << 40 && data <= 1 << 20, "{data} bytes of {size} are data");
}

#[test]
fn tars_without_a_mark_of_their_kind_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = raw_disk();
    std::fs::write(directory.path().join("disk.img"), &bytes).unwrap();
    for arguments in [["-H", "v7", "-b1"], ["-V", "a label", "-b1"], ["-H", "gnu", "-G"]] {
        let packed = gnu_tar(directory.path(), &arguments, &["."]);
        for (name, packed) in [("vm.tar", &packed), ("vm.tar.gz", &gzip(&packed))] {
            assert!(guest(&good((name, packed), &[]).disks[0].image) == bytes, "{name} {arguments:?}");
        }
    }
}

#[test]
fn a_second_disk_behind_one_that_was_streamed_is_refused_before_anything_is_published() {
    let noise: Vec<u8> =
        (0..5_u32 << 20).flat_map(|n| n.wrapping_mul(n).wrapping_mul(0x9E37_79B1).to_be_bytes()).collect();
    for (name, reason) in [("b.raw", Some(Reason::UnsupportedFormat)), ("b.txt", None)] {
        let packed = gzip(&tar(&[("a.raw", &noise), (name, &[7; 4096])]));
        let source = good(("vm.tar.gz", &packed), &[]);
        let output = tempfile::tempfile().unwrap();
        let control = crate::disk::CopyControl::default();
        let copied =
            crate::disk::copy(&source.disks[0].image, &output, "out", &crate::disk::CopyOptions::default(), &control);
        assert_eq!(copied.err().map(|e| e.reason), reason, "{name}");
    }
    let mut cut = gzip(&tar(&[("a.raw", &noise)]));
    let length = cut.len();
    cut[length - 8] ^= 1;
    let source = good(("vm.tar.gz", &cut), &[]);
    let output = tempfile::tempfile().unwrap();
    let control = crate::disk::CopyControl::default();
    let copied =
        crate::disk::copy(&source.disks[0].image, &output, "out", &crate::disk::CopyOptions::default(), &control);
    assert_eq!(copied.unwrap_err().reason, Reason::Corrupt, "a wrong checksum");
}

#[test]
fn an_appliance_is_read_from_every_packing() {
    let bytes = raw_disk();
    let disk = stream(&bytes);
    let ova = sample_ova::ova("vm", &[("d.vmdk", &disk, 3 << 20)]);
    let envelope = ovf(&[("d.vmdk", 3 << 20)]);
    let files = [("vm/vm.ovf", envelope.as_bytes()), ("vm/d.vmdk", disk.as_slice()), ("vm/eula.txt", b"yes")];
    for (name, packed, format) in [
        ("vm.ova", gzip(&ova), "ova in gzip"),
        ("vm.ova", xz(&ova), "ova in xz"),
        ("vm.ova.gz", gzip(&ova), "ova in gzip"),
        ("vm.tar", ova.clone(), "ova"),
        ("vm.tar.gz", gzip(&ova), "ova in gzip"),
        ("vm.ova", zip(&files), "ovf in zip"),
        ("vm.zip", zip(&files), "ovf in zip"),
        ("vm.zip", zip(&[("vm.ova", &ova)]), "ova in zip"),
    ] {
        let source = good((name, &packed), &[]);
        assert_eq!((source.format.as_str(), source.disks.len()), (format, 1), "{name}");
        assert!(guest(&source.disks[0].image) == bytes, "{name}");
        assert!(source.hardware.is_some(), "{name}");
    }
    let flat = text("monolithicFlat", "RW 6144 FLAT \"d-flat.vmdk\" 0");
    let folder = zip(&[("d.vmdk", flat.as_bytes()), ("d-flat.vmdk", &bytes), ("d.vmx", b"x")]);
    assert!(guest(&good(("vm.zip", &folder), &[]).disks[0].image) == bytes);
}

#[test]
fn what_is_ambiguous_or_packed_twice_or_wrong_is_refused() {
    let bytes = raw_disk();
    let disk = stream(&bytes);
    let mut two = open_with(("vm.zip", &zip(&[("a.vmdk", &disk), ("b.vmdk", &disk)])), &[], &LIMITS).unwrap_err();
    assert_eq!(two.reason, Reason::UnsupportedFormat);
    assert!(two.message.contains("\"a.vmdk\", \"b.vmdk\""), "{two}");
    two = open_with(("vm.tar", &tar(&[("a.raw", &bytes), ("b.raw", &bytes)])), &[], &LIMITS).unwrap_err();
    assert!(two.message.contains("\"a.raw\", \"b.raw\""), "{two}");
    for (name, packed, reason) in [
        ("vm.img.gz.gz", gzip(&gzip(&bytes)), Reason::UnsupportedFormat),
        ("vm.img.gz", gzip(&xz(&bytes)), Reason::FormatMismatch),
        ("vm.img.gz", xz(&bytes), Reason::FormatMismatch),
        ("vm.img.gz", bytes.clone(), Reason::Corrupt),
        ("vm.vmdk.gz", gzip(&bytes), Reason::Corrupt),
        ("vm.qcow2.gz", gzip(&disk), Reason::FormatMismatch),
        ("notes.txt.gz", gzip(b"hello"), Reason::UnsupportedFormat),
        ("vm.zip", zip(&[]), Reason::Corrupt),
        ("vm.zip", zip(&[("vm.ovf", ovf(&[("d.vmdk", 1)]).as_bytes())]), Reason::MissingMember),
        ("vm.ova", gzip(&tar(&[("d.vmdk", &disk)])), Reason::MissingMember),
        ("vm.vmdk.gz", gzip(&disk)[..5000].to_vec(), Reason::Truncated),
    ] {
        assert_eq!(refused((name, &packed), &[]), reason, "{name}");
    }
}

#[test]
fn an_encrypted_file_or_one_of_another_method_is_refused_by_name() {
    let whole = zip(&[("vm.img", &raw_disk())]);
    let directory = whole.windows(4).rposition(|bytes| *bytes == *b"PK\x01\x02").unwrap();
    for (local, central, value, word) in [(6, 8, 1, "encrypted"), (8, 10, 9, "only deflate is read")] {
        let mut changed = whole.clone();
        changed[local] = value;
        changed[directory + central] = value;
        let error = open_with(("vm.zip", &changed), &[], &LIMITS).unwrap_err();
        assert_eq!(error.reason, Reason::UnsupportedFormat);
        assert!(error.message.contains(word) && error.message.contains("vm.img"), "{error}");
    }
}

#[test]
fn scratch_and_sizes_are_checked_before_they_are_spent() {
    let bytes = raw_disk();
    let noise: Vec<u8> =
        (0..3_u32 << 18).flat_map(|n| n.wrapping_mul(n).wrapping_mul(0x9E37_79B1).to_be_bytes()).collect();
    let vmdk = sparse(&Sparse::stream_optimized(3 << 20), &noise);
    let limits = Limits { max_scratch_bytes: 1 << 20, ..LIMITS };
    let mut made = 0;
    let mut scratch = || {
        made += 1;
        Ok(tempfile::tempfile().unwrap())
    };
    let error = open(&region("vm.vmdk.xz", &xz(&vmdk)), &[], &limits, &mut scratch).unwrap_err();
    assert_eq!((error.reason, error.needed_bytes), (Reason::OutputFull, Some(vmdk.len() as u64)));
    open(&region("vm.img.xz", &xz(&bytes)), &[], &limits, &mut scratch).unwrap();
    assert_eq!(made, 0, "neither needs a scratch file");
    let error = open_with(("vm.vmdk.gz", &gzip(&vmdk)), &[], &limits).unwrap_err();
    assert_eq!((error.reason, error.needed_bytes.is_some()), (Reason::OutputFull, true));
    let small = Limits { max_virtual_size: 1 << 20, ..LIMITS };
    assert_eq!(open_with(("vm.img.xz", &xz(&bytes)), &[], &small).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn an_inspection_says_what_is_known_of_a_packed_disk() {
    let bytes = raw_disk();
    let look = |name: &str, bytes: &[u8]| {
        inspect(&region(name, bytes), &[], &LIMITS, &mut || Ok(tempfile::tempfile().unwrap()))
    };
    let known = look("vm.img.xz", &xz(&bytes));
    assert_eq!((known.accepted, known.disks[0].virtual_size_bytes), (true, Some(3 << 20)));
    let unknown = look("vm.img.gz", &gzip(&bytes));
    assert_eq!((unknown.accepted, unknown.disks[0].virtual_size_bytes), (true, None));
    assert_eq!(unknown.disks[0].format, "raw in gzip");
}

#[test]
fn a_name_that_says_nothing_leaves_it_to_the_content() {
    let bytes = raw_disk();
    let disk = stream(&bytes);
    for (name, file) in [("vm", &bytes), ("vm.dd", &bytes), ("vm.bin", &bytes), ("vm", &disk), ("disk.1", &disk)] {
        assert!(guest(&good((name, file), &[]).disks[0].image) == bytes, "{name}");
    }
    for (name, reason) in [("vm.txt", Reason::UnsupportedFormat), ("vm", Reason::UnsupportedFormat)] {
        assert_eq!(refused((name, &[7; 4096]), &[]), reason, "{name}");
    }
}
