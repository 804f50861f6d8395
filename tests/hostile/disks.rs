// SPDX-License-Identifier: Apache-2.0
//! Single disks and descriptors (fixtures 1 to 10, 12 and 14 of the list), and a good one of every format.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use serde_json::json;

use crate::archives::{gzipped, ova_of_gzip, zipped};
use crate::support::ova::tar;
use crate::support::vmdk::{Sparse, built, descriptor};
use crate::trap::{BESIDE, CANARY, Trap, content, qemu_img, written};

const MIB: usize = 1 << 20;

fn flat_descriptor(extent: &str) -> String {
    descriptor("monolithicFlat", 64 << 10).replace("SPARSE \"generated-stream.vmdk\"", &format!("FLAT \"{extent}\" 0"))
}

#[test]
fn a_descriptor_reaches_no_file_outside_its_group() {
    for (extent, reason) in [
        ("/etc/passwd", "UnsafeReference"),
        ("../canary.raw", "UnsafeReference"),
        ("./canary.raw", "UnsafeReference"),
        ("..", "UnsafeReference"),
        ("C:canary.raw", "UnsafeReference"),
        ("absent-flat.vmdk", "MissingMember"),
    ] {
        Trap::new("vm.vmdk", flat_descriptor(extent).as_bytes()).is_refused(reason);
    }
    // By hand, a file beside the descriptor is its extent. A worker doesn't see it: its claim does not hold the file.
    Trap::new("vm.vmdk", flat_descriptor(BESIDE).as_bytes()).worker_refuses("MissingMember", &json!({}));
}

#[test]
fn a_sparse_header_is_no_way_to_a_text_descriptor() {
    let mut kind = Sparse::monolithic_sparse(MIB as u64);
    kind.descriptor = Some(flat_descriptor(BESIDE));
    let mut image = built(&kind, &content(MIB));
    Trap::new("vm.vmdk", &image).is_refused("UnsafeReference");
    image[12..20].fill(0);
    Trap::new("vm.vmdk", &image).is_refused("Corrupt");
}

#[test]
fn a_child_of_another_disk_is_refused() {
    for line in [
        format!("parentCID=12345678\nparentFileNameHint=\"{BESIDE}\""),
        format!("parentCID=ffffffff\nPARENTFILENAMEHINT=\"{BESIDE}\""),
        "parentCID=12345678".to_owned(),
    ] {
        let mut kind = Sparse::monolithic_sparse(MIB as u64);
        kind.descriptor = kind.descriptor.map(|text| text.replace("parentCID=ffffffff", &line));
        Trap::new("vm.vmdk", &built(&kind, &content(MIB))).is_refused("UnsafeReference");
    }
}

#[test]
fn a_qcow2_that_names_another_file_is_refused() {
    let good = written("qcow2", &content(MIB));
    for backing in [BESIDE, "json:{\"driver\":\"file\",\"filename\":\"canary.raw\"}", "nbd://127.0.0.1:1/x"] {
        let mut image = good.clone();
        image[8..16].copy_from_slice(&1024u64.to_be_bytes());
        image[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        image[1024..1024 + backing.len()].copy_from_slice(backing.as_bytes());
        Trap::new("vm.qcow2", &image).is_refused("UnsafeReference");
        Trap::new("vm.img", &image).is_refused("UnsafeReference");
    }
    let mut image = good;
    image[79] |= 4;
    Trap::new("vm.qcow2", &image).is_refused("UnsafeReference");
    for (options, with_backing) in [("data_file=canary.raw,data_file_raw=on", false), ("compat=1.1", true)] {
        let trap = Trap::empty("vm.qcow2");
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if with_backing {
            arguments.extend(["-b", BESIDE, "-F", "raw"]);
        }
        arguments.extend(["vm.qcow2", "1M"]);
        let aside = tempfile::tempdir().unwrap();
        fs::write(aside.path().join(BESIDE), vec![0; MIB]).unwrap();
        if !qemu_img(aside.path(), &arguments) {
            return;
        }
        fs::copy(aside.path().join("vm.qcow2"), trap.image()).unwrap();
        trap.is_refused("UnsafeReference");
    }
}

/// The last sector of a VHD (Virtual Hard Disk Image Format Specification, *Hard Disk Footer Format*).
fn vhd_footer(size: u64, kind: u32) -> [u8; 512] {
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x1_0000u32.to_be_bytes());
    footer[16..24].fill(0xff);
    footer[28..32].copy_from_slice(b"win ");
    footer[36..40].copy_from_slice(b"Wi2k");
    footer[40..48].copy_from_slice(&size.to_be_bytes());
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[56..60].copy_from_slice(&[0x00, 0x1e, 0x04, 0x11]);
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    let sum = footer.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

#[test]
fn a_differencing_vhd_is_refused_and_a_fixed_one_taken() {
    let bytes = content(MIB);
    Trap::new("vm.vhd", &[bytes.as_slice(), &vhd_footer(MIB as u64, 2)].concat()).is_converted();
    let child = [bytes.as_slice(), &vhd_footer(MIB as u64, 4)].concat();
    Trap::new("vm.vhd", &child).is_refused("UnsafeReference");
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut packed).unwrap();
    packed
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut packed).unwrap();
    packed
}

/// Images of `content` in every format that can be made here: name, bytes.
pub(crate) fn good(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let size = content.len() as u64;
    let stream = Sparse::stream_optimized(size);
    let packed = gzipped(&built(&stream, content));
    let mut images = vec![
        ("stream.vmdk", built(&stream, content)),
        ("no-footer.vmdk", built(&Sparse { footer: false, ..stream.clone() }, content)),
        ("descending.vmdk", built(&Sparse { descending: true, ..stream.clone() }, content)),
        ("sparse.vmdk", built(&Sparse::monolithic_sparse(size), content)),
        ("fixed.vhd", [content, &vhd_footer(size, 2)].concat()),
        ("disk.vdi", written("vdi", content)),
        ("disk.qcow2", written("qcow2", content)),
        ("one.ova", crate::support::ova::ova("one", &[("d.vmdk", &built(&stream, content), size)])),
        ("gzip.ova", ova_of_gzip(&packed, size)),
        ("stream.vmdk.xz", xz(&built(&stream, content))),
        ("stream.vmdk.gz", packed),
        ("disk.img.gz", gzipped(content)),
        ("disk.img.xz", xz(content)),
        ("disk.img.bz2", bzip2(content)),
        ("disk.img.zst", zstd::encode_all(content, 1).unwrap()),
        ("disk.tar", tar(&[("disk.raw", content)])),
        ("disk.tar.gz", gzipped(&tar(&[("disk.raw", content), ("sums.txt", b"none")]))),
        ("disk.tar.zst", zstd::encode_all(&tar(&[("read.me", b"a disk"), ("disk.raw", content)])[..], 1).unwrap()),
        ("vmdk.zip", zipped("d/d.vmdk", &built(&stream, content))),
    ];
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("truth"), content).unwrap();
    for (name, format, options) in [
        ("dynamic.vhd", "vpc", "subformat=dynamic,force_size=on"),
        ("dynamic.vhdx", "vhdx", "subformat=dynamic"),
        ("fixed.vhdx", "vhdx", "subformat=fixed"),
        ("static.vdi", "vdi", "static=on"),
        ("version-2.qcow2", "qcow2", "compat=0.10"),
        ("extended.qcow2", "qcow2", "extended_l2=on,cluster_size=128k"),
        ("disk.hdd", "parallels", "cluster_size=64k"),
        ("zlib.qcow2", "qcow2", "compression_type=zlib"),
        ("zstd.qcow2", "qcow2", "compression_type=zstd"),
    ] {
        let mut arguments = vec!["convert", "-f", "raw", "-O", format, "-o", options];
        arguments.extend(options.starts_with("compression").then_some("-c"));
        arguments.extend(["truth", name]);
        if qemu_img(place.path(), &arguments) {
            images.push((name, fs::read(place.path().join(name)).unwrap()));
        }
    }
    images
}

#[test]
fn a_good_one_of_every_format_is_taken_and_a_truncated_one_refused() {
    let bytes = content(4 * MIB);
    Trap::new("disk.raw", &bytes).is_converted();
    for (name, image) in good(&bytes) {
        Trap::new(name, &image).is_converted();
        // A VHD without its footer is no VHD, an archive without its end is a truncated one.
        let reason = if name == "fixed.vhd" { "Corrupt" } else { "Truncated" };
        Trap::new(name, &image[..image.len() * 2 / 5]).is_refused(reason);
    }
}

#[test]
fn odd_names_are_only_names() {
    let long = format!("{}.raw", "n".repeat(251));
    for name in ["-o.raw", "a\nb.raw", "nbd:host:1.raw", "a,b=c.raw", "json:{}.raw", "%s$(x)`y`.raw", &long] {
        Trap::new(name, &[7; 8192]).is_converted();
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join(OsStr::from_bytes(b"caf\xe9.raw"));
    fs::write(&path, [7; 8192]).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_hyper2kvm")).arg("convert").arg(&path).output().unwrap();
    assert_eq!(ran.status.code(), Some(10));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn a_disk_beyond_the_limit_or_a_grain_that_inflates_beyond_its_size_is_refused() {
    let huge = Sparse::stream_optimized(1 << 40);
    let mut image = std::io::Cursor::new(Vec::new());
    huge.write(&mut image, |n| (n == 0).then(|| vec![1; 1 << 16])).unwrap();
    let image = image.into_inner();
    Trap::new("huge.vmdk", &image).is_refused_with(
        "TooLarge",
        &["--max-virtual-size", "1G"],
        &json!({"maxVirtualSize": 1 << 30}),
    );
    let mut bomb = Sparse::stream_optimized(1 << 20);
    bomb.descriptor = Some(descriptor("streamOptimized", 1 << 20));
    let mut image = std::io::Cursor::new(Vec::new());
    bomb.write(&mut image, |n| (n == 3).then(|| vec![1; 1 << 22])).unwrap();
    Trap::new("bomb.vmdk", &image.into_inner()).is_refused("Corrupt");
    // This also holds for the last grain, whole or cut by the disk's end.
    for (capacity, len) in [(1 << 20, 1 << 21), (1 << 20, (1 << 16) + 1), ((1 << 20) - 512, 1 << 21)] {
        let mut image = std::io::Cursor::new(Vec::new());
        Sparse::stream_optimized(capacity).write(&mut image, |n| (n == 15).then(|| vec![1; len])).unwrap();
        Trap::new("bomb.vmdk", &image.into_inner()).is_refused("Corrupt");
    }
}

#[test]
fn a_guest_that_looks_like_a_container_becomes_no_raw_file() {
    let mut guest = written("qcow2", &content(MIB));
    guest[8..16].copy_from_slice(&1024u64.to_be_bytes());
    guest[16..20].copy_from_slice(&10u32.to_be_bytes());
    guest[1024..1034].copy_from_slice(BESIDE.as_bytes());
    guest.resize(guest.len().next_multiple_of(1 << 16), 0);
    let image = built(&Sparse::stream_optimized(guest.len() as u64), &guest);
    let trap = Trap::new("vm.vmdk", &image);
    trap.is_refused_with("OutputWouldProbe", &["--format", "raw"], &json!({"outFormat": "raw"}));
}

#[test]
fn what_is_two_formats_at_once_is_refused_and_a_partition_table_is_none() {
    let polyglot = [written("qcow2", &content(MIB)).as_slice(), &vhd_footer(MIB as u64, 2)].concat();
    for name in ["p.qcow2", "p.vhd", "p.img"] {
        Trap::new(name, &polyglot).is_refused("FormatMismatch");
    }
    Trap::new("text.raw", flat_descriptor("/etc/passwd").as_bytes()).is_refused("FormatMismatch");
    let mut disk = content(MIB);
    disk[..512].fill(0);
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[512..520].copy_from_slice(b"EFI PART");
    Trap::new("gpt.raw", &disk).is_converted();
}

#[test]
fn tables_that_overlap_or_point_at_the_header_are_refused() {
    let mut kind = Sparse::monolithic_sparse(4 << 20);
    kind.redundant = false;
    let image = built(&kind, &content(4 * MIB));
    let directory = usize::try_from(u64::from_le_bytes(image[56..64].try_into().unwrap()) * 512).unwrap();
    let table = usize::try_from(u32::from_le_bytes(image[directory..directory + 4].try_into().unwrap())).unwrap() * 512;
    let first: [u8; 4] = image[table..table + 4].try_into().unwrap();
    // Entries that point at the first grain, at the descriptor, and at the directory.
    let place = u32::try_from(directory / 512).unwrap().to_le_bytes();
    for (at, entry) in [(table + 4, first), (table + 4, [1, 0, 0, 0]), (table, place)] {
        println!("{entry:?} at byte {at}");
        let mut image = image.clone();
        image[at..at + 4].copy_from_slice(&entry);
        Trap::new("vm.vmdk", &image).is_refused("Corrupt");
    }
    assert!(CANARY.len() > 16, "long enough not to occur by chance");
}
