// SPDX-License-Identifier: Apache-2.0
use std::fs::{self, File};
use std::process::Command;

use tempfile::tempdir;

use super::*;
use crate::disk::{sample_ova, sample_vmdk};

fn of_bytes(name: &str, bytes: &[u8]) -> Ending {
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, bytes).unwrap();
    ending(File::open(path).unwrap(), name)
}

/// Everything but the last bytes, and the same at its whole length.
fn cuts(bytes: &[u8], missing: usize) -> [Vec<u8>; 2] {
    let cut = bytes[..bytes.len() - missing].to_vec();
    let mut filled = cut.clone();
    filled.resize(bytes.len(), 0);
    [cut, filled]
}

fn stream() -> Vec<u8> {
    let content: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    sample_vmdk::built(&sample_vmdk::Sparse::stream_optimized(1 << 20), &content)
}

#[test]
fn a_stream_and_an_archive_close_with_a_mark() {
    let disk = stream();
    assert_eq!(of_bytes("vm.vmdk", &disk), Ending::Whole);
    let ova = sample_ova::ova("vm", &[("disk1.vmdk", &disk, 1 << 20), ("disk2.vmdk", &disk, 1 << 20)]);
    assert_eq!(of_bytes("vm.ova", &ova), Ending::Whole);
    let ovf = sample_ova::ovf(&[("disk1.vmdk", 1 << 20)]);
    assert_eq!(of_bytes("vm.ovf", ovf.as_bytes()), Ending::Whole);
    for [cut, filled] in [cuts(&disk, 2000), cuts(&disk, disk.len() / 2), cuts(&disk, disk.len() - 600)] {
        assert_eq!(of_bytes("vm.vmdk", &cut), Ending::Missing, "{} of {}", cut.len(), disk.len());
        assert_eq!(of_bytes("vm.vmdk", &filled), Ending::Missing, "{} of {}", cut.len(), disk.len());
    }
    // The last cut takes the second disk whole: at its place begins what could be an archive's end.
    let second = 1024 + 512 + disk.len().next_multiple_of(512);
    for [cut, filled] in [cuts(&ova, 1024), cuts(&ova, 3000), cuts(&ova, ova.len() / 2), cuts(&ova, second)] {
        assert_eq!(of_bytes("vm.ova", &cut), Ending::Missing, "{} of {}", cut.len(), ova.len());
        if cut.len() + 1024 < ova.len() {
            assert_eq!(of_bytes("vm.ova", &filled), Ending::Missing, "{} of {}", cut.len(), ova.len());
        }
    }
    let ovf = ovf.as_bytes();
    assert_eq!(of_bytes("vm.ovf", &ovf[..ovf.len() - 20]), Ending::Missing);
}

#[test]
fn what_is_written_out_of_order_tells_of_a_missing_end_only() {
    let dir = tempdir().unwrap();
    let raw = dir.path().join("raw");
    let content: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&raw, &content).unwrap();
    for (format, name, whole) in
        [("qcow2", "vm.qcow2", Ending::Untold), ("vdi", "vm.vdi", Ending::Untold), ("vpc", "vm.vhd", Ending::Whole)]
    {
        let path = dir.path().join(name);
        let status = Command::new("qemu-img").args(["convert", "-O", format]).arg(&raw).arg(&path).status().unwrap();
        assert!(status.success());
        let bytes = fs::read(&path).unwrap();
        assert_eq!(of_bytes(name, &bytes), whole);
        let [cut, _] = cuts(&bytes, bytes.len() / 4 * 3);
        assert_eq!(of_bytes(name, &cut), Ending::Missing, "{name}");
    }
    assert_eq!(of_bytes("vm.raw", &content), Ending::Untold);
    assert_eq!(of_bytes("vm.raw", &content[..1000]), Ending::Short);
    assert_eq!(of_bytes("vm.raw", b"x"), Ending::Short);
    let zeros = vec![0; 65536];
    for name in ["vm.vmdk", "vm.ova", "vm.vhd", "vm.vhdx", "vm.qcow2", "vm.vdi", "vm.ovf"] {
        assert_eq!(of_bytes(name, &zeros), Ending::Missing, "{name} has its length and no content yet");
    }
    assert_eq!(of_bytes("vm.zip.raw", b"PK\x03\x04"), Ending::Untold);
}

#[test]
fn an_image_that_was_only_made_is_blank_until_a_block_of_it_is_written() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data.raw");
    fs::write(&data, [7; 512]).unwrap();
    let run = |arguments: &[&str]| assert!(Command::new("qemu-img").args(arguments).status().unwrap().success());
    let of = |path: &std::path::Path| ending(File::open(path).unwrap(), path.file_name().unwrap().to_str().unwrap());
    for (format, options, name) in [
        ("raw", "preallocation=off", "vm.raw"),
        ("qcow2", "compat=1.1", "vm.qcow2"),
        ("qcow2", "compat=0.10", "old.qcow2"),
        ("qcow2", "preallocation=metadata", "preallocated.qcow2"),
        ("vmdk", "subformat=monolithicSparse", "vm.vmdk"),
        ("vpc", "subformat=dynamic", "vm.vhd"),
        ("vpc", "subformat=fixed", "fixed.vhd"),
        ("vhdx", "subformat=dynamic", "vm.vhdx"),
        ("vhdx", "subformat=fixed", "fixed.vhdx"),
        ("vdi", "static=off", "vm.vdi"),
        ("parallels", "cluster_size=1M", "vm.hdd"),
    ] {
        let path = dir.path().join(name);
        let file = path.to_str().unwrap();
        run(&["create", "-q", "-f", format, "-o", options, file, "10M"]);
        assert_eq!(of(&path), Ending::Blank, "{name}");
        run(&["convert", "-n", "-f", "raw", "-O", format, data.to_str().unwrap(), file]);
        assert!(matches!(of(&path), Ending::Untold | Ending::Whole), "{name}: {:?}", of(&path));
    }
    // It has its blocks, and nothing is in them.
    let path = dir.path().join("allocated.raw");
    if Command::new("fallocate").args(["-l", "1M"]).arg(&path).status().is_ok_and(|status| status.success()) {
        assert_eq!(of(&path), Ending::Blank);
        fs::write(&path, vec![0; 1 << 16]).unwrap();
        assert_eq!(of(&path), Ending::Untold, "zeros that were written are content");
    }
}

#[test]
fn a_qcow2_that_ends_in_its_last_cluster_is_short() {
    let dir = tempdir().unwrap();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("vm.qcow2"));
    fs::write(&raw, (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>()).unwrap();
    let status = Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&path).status().unwrap();
    assert!(status.success());
    let bytes = fs::read(path).unwrap();
    assert_eq!(of_bytes("vm.qcow2", &bytes), Ending::Untold);
    assert_eq!(of_bytes("vm.qcow2", &bytes[..bytes.len() - 1]), Ending::Short);
    assert_eq!(of_bytes("vm.qcow2", &bytes[..bytes.len() - (64 << 10)]), Ending::Missing);
}

#[test]
fn a_packed_file_closes_with_its_packing_s_mark_where_there_is_one() {
    use std::io::Write as _;
    let content = vec![7; 300_000];
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&content).unwrap();
    let xz = xz.finish().unwrap();
    assert_eq!(of_bytes("vm.img.xz", &xz), Ending::Whole);
    let [cut, filled] = cuts(&xz, 20);
    assert_eq!(of_bytes("vm.img.xz", &cut), Ending::Missing);
    assert_eq!(of_bytes("vm.img.xz", &filled), Ending::Missing);
    let zstd = zstd::bulk::compress(&content, 1).unwrap();
    assert_eq!(of_bytes("vm.img.zst", &zstd), Ending::Whole);
    assert_eq!(of_bytes("vm.img.zst", &zstd[..zstd.len() - 1]), Ending::Missing);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    gzip.write_all(&content).unwrap();
    assert_eq!(of_bytes("vm.img.gz", &gzip.finish().unwrap()), Ending::Untold);
    assert_eq!(of_bytes("vm.img.xz", &content), Ending::Missing, "it has its length and no content yet");
    assert_eq!(of_bytes("vm.raw", &xz), Ending::Untold, "a raw disk may begin like that");
    let tar = sample_ova::tar(&[("disk.raw", &content)]);
    assert_eq!(of_bytes("vm.tar", &tar), Ending::Whole);
    assert_eq!(of_bytes("vm.tar", &tar[..tar.len() - 1024]), Ending::Missing);
}

#[test]
fn no_bytes_are_too_few() {
    let disk = stream();
    let ova = sample_ova::ova("vm", &[("disk1.vmdk", &disk, 1 << 20)]);
    for (name, bytes) in [("vm.vmdk", &disk), ("vm.ova", &ova)] {
        for len in (0..2048).step_by(61) {
            assert_ne!(of_bytes(name, &bytes[..len]), Ending::Whole, "{len} bytes");
        }
    }
}

/// A raw disk made by programs that are installed with the tests; `None`, loudly, where one is missing.
fn made(bytes: u64, command: &[&str], stdin: &str) -> Option<Vec<u8>> {
    use std::io::Write as _;
    let dir = tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    let child = Command::new(command[0])
        .args(&command[1..])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("left out: {} is not installed", command[0]);
        return None;
    };
    // Most of them read nothing.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    assert!(child.wait().unwrap().success(), "{command:?}");
    Some(fs::read(path).unwrap())
}

#[test]
fn a_raw_disk_is_short_where_its_table_or_file_system_goes_on_behind_the_file() {
    const MIB: u64 = 1 << 20;
    for (bytes, command, stdin) in [
        (16 * MIB, &["sfdisk", "--quiet", "--label", "dos"][..], "2048,8192\n10240,\n"),
        (16 * MIB, &["sfdisk", "--quiet", "--label", "gpt"], ",\n"),
        (16 * MIB, &["mke2fs", "-q", "-F", "-t", "ext4", "-O", "64bit"], ""),
        (16 * MIB, &["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"], ""),
        (320 * MIB, &["mkfs.xfs", "-q"], ""),
        (16 * MIB, &["mkntfs", "-q", "-F", "-Q"], ""),
        (16 * MIB, &["mkfs.vfat", "-F", "16"], ""),
        (64 * MIB, &["mkfs.vfat", "-F", "32"], ""),
        (128 * MIB, &["mkfs.btrfs", "-q"], ""),
    ] {
        let Some(mut disk) = made(bytes, command, stdin) else { continue };
        assert_eq!(of_bytes("vm.img", &disk), Ending::Untold, "{command:?}");
        disk.extend_from_slice(&[0; 4096]);
        assert_eq!(of_bytes("vm.img", &disk), Ending::Untold, "{command:?} with room behind it");
        disk.truncate(usize::try_from(bytes).unwrap() / 2);
        assert_eq!(of_bytes("vm.img", &disk), Ending::Short, "{command:?}");
        // Behind the superblock of each.
        assert_eq!(of_bytes("vm.img", &disk[..128 << 10]), Ending::Short, "{command:?}");
    }
    // Sectors of 4 KiB, by hand: sfdisk makes none in a file.
    let mut large = vec![0; 1 << 20];
    let header = &mut large[4096..4096 + 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[32] = 255;
    let sum = crc32fast::hash(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(of_bytes("vm.img", &large), Ending::Short, "the copy is not there");
    large[255 * 4096..][..8].copy_from_slice(b"EFI PART");
    assert_eq!(of_bytes("vm.img", &large), Ending::Untold);
    assert_eq!(of_bytes("vm.img", &large[..255 * 4096]), Ending::Short);
    // Its whole length, and not yet its end.
    if let Some(mut disk) = made(16 * MIB, &["sfdisk", "--quiet", "--label", "gpt"], ",\n") {
        let half = disk.len() / 2;
        disk[half..].fill(0);
        assert_eq!(of_bytes("vm.raw", &disk), Ending::Short);
    }
}

#[test]
fn a_raw_disk_without_a_table_that_is_understood_is_not_called_short() {
    let content: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut code = content.clone();
    code[510..512].copy_from_slice(&[0x55, 0xAA]);
    let mut huge = vec![0; 1 << 20];
    huge[..4].copy_from_slice(b"XFSB");
    huge[4..16].fill(0xFF);
    for (what, disk) in [("noise", content), ("code with the signature", code), ("an impossible size", huge)] {
        assert_eq!(of_bytes("vm.raw", &disk), Ending::Untold, "{what}");
    }
}
