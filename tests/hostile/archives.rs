// SPDX-License-Identifier: Apache-2.0
//! OVAs and OVFs (fixture 11 of the list).

use std::io::Write;

use crate::support::ova::{END, entry, header, manifest, member, ova, ovf, pax, tar};
use crate::support::vmdk::{Sparse, built};
use crate::trap::{BESIDE, Trap, content};

const SIZE: u64 = 1 << 20;

fn disk() -> Vec<u8> {
    built(&Sparse::stream_optimized(SIZE), &content(1 << 20))
}

#[test]
fn an_archive_with_links_paths_or_doubles_is_refused() {
    let (disk, text) = (disk(), ovf(&[("d.vmdk", SIZE)]));
    let envelope = member("vm.ovf", text.as_bytes());
    let mut symlink = header(b"d.vmdk", 0, b'2');
    symlink[157..157 + BESIDE.len()].copy_from_slice(BESIDE.as_bytes());
    crate::support::ova::sum(&mut symlink);
    let mut hard_link = header(b"d.vmdk", 0, b'1');
    hard_link[157..157 + BESIDE.len()].copy_from_slice(BESIDE.as_bytes());
    crate::support::ova::sum(&mut hard_link);
    let good = member("d.vmdk", &disk);
    for (what, reason, rest) in [
        ("a path upwards", "UnsafeReference", member("../d.vmdk", &disk)),
        ("an absolute path", "UnsafeReference", member("/etc/d.vmdk", &disk)),
        ("a symbolic link", "UnsafeReference", entry(&symlink, &[])),
        ("a hard link", "UnsafeReference", entry(&hard_link, &[])),
        ("a double", "Corrupt", [good.clone(), good.clone()].concat()),
        ("two envelopes", "Corrupt", [good.clone(), member("other.ovf", text.as_bytes())].concat()),
        ("a device", "UnsafeReference", entry(&header(b"d.vmdk", 0, b'3'), &[])),
        (
            "a sparse member without its map",
            "Corrupt",
            [pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]), good].concat(),
        ),
    ] {
        println!("{what}");
        let archive = [envelope.clone(), rest, END.to_vec()].concat();
        Trap::new("vm.ova", &archive).is_refused(reason);
    }
}

#[test]
fn a_missing_disk_a_wrong_digest_and_a_dtd_are_refused() {
    let (disk, text) = (disk(), ovf(&[("d.vmdk", SIZE)]));
    Trap::new("vm.ova", &tar(&[("vm.ovf", text.as_bytes())])).is_refused("MissingMember");
    let wrong = manifest(&[("vm.ovf", text.as_bytes()), ("d.vmdk", b"other bytes")]);
    let members: &[(&str, &[u8])] = &[("vm.ovf", text.as_bytes()), ("vm.mf", wrong.as_bytes()), ("d.vmdk", &disk)];
    Trap::new("vm.ova", &tar(members)).is_refused("ManifestMismatch");
    let entity = text.replacen("<Envelope", "<!DOCTYPE x [<!ENTITY c SYSTEM \"canary.raw\">]>\n<Envelope", 1);
    Trap::new("vm.ova", &tar(&[("vm.ovf", entity.as_bytes()), ("d.vmdk", &disk)])).is_refused("UnsupportedFormat");
    for href in ["../canary.raw", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/d.vmdk"] {
        let text = ovf(&[(href, SIZE)]);
        Trap::new("vm.ova", &tar(&[("vm.ovf", text.as_bytes())])).is_refused("UnsafeReference");
        Trap::new("vm.ovf", text.as_bytes()).is_refused("UnsafeReference");
    }
}

/// `bytes` as gzip's.
pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A zip of one file.
pub(crate) fn zipped(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap().into_inner()
}

/// An OVA of a disk of `size` bytes, which is a gzip member.
pub(crate) fn ova_of_gzip(packed: &[u8], size: u64) -> Vec<u8> {
    let text = ovf(&[("d.vmdk.gz", size)]).replace("ovf:id=\"file0\"", "ovf:id=\"file0\" ovf:compression=\"gzip\"");
    tar(&[("vm.ovf", text.as_bytes()), ("d.vmdk.gz", packed)])
}

#[test]
fn a_compressed_member_is_read_and_a_bomb_is_not() {
    let packed = gzipped(&disk());
    Trap::new("vm.ova", &ova_of_gzip(&packed, SIZE)).is_converted();
    Trap::new("vm.ova", &ova_of_gzip(&packed[..packed.len() / 2], SIZE)).is_refused("Truncated");
}

#[test]
fn a_whole_archive_with_two_disks_is_taken() {
    let disk = disk();
    Trap::new("vm.ova", &ova("vm", &[("a.vmdk", &disk, SIZE), ("b.vmdk", &disk, SIZE)])).is_converted();
}

#[test]
fn a_packed_disk_is_read_and_a_bomb_an_archive_of_several_or_of_links_is_not() {
    let disk = content(1 << 20);
    Trap::new("vm.img.gz", &gzipped(&disk)).is_converted();
    Trap::new("vm.vmdk.zip", &zipped("vm/d.vmdk", &self::disk())).is_converted();
    Trap::new("vm.zip", &zipped("../../etc/d.vmdk", &self::disk())).is_converted();
    Trap::new("vm.img.gz.gz", &gzipped(&gzipped(&disk))).is_refused("UnsupportedFormat");
    Trap::new("vm.zip", &zipped("a.zip", &zipped("vm.img", &disk))).is_refused("UnsupportedFormat");
    let sevens = gzipped(&vec![7; 8 << 20]);
    let bomb: Vec<u8> = std::iter::repeat_n(sevens, 40).flatten().collect();
    Trap::new("vm.img.gz", &bomb).is_refused_with(
        "TooLarge",
        &["--max-virtual-size", "1M"],
        &serde_json::json!({"maxVirtualSize": 1 << 20}),
    );
}
