// SPDX-License-Identifier: Apache-2.0
//! Guests that were made to cost more than they may.

use std::time::{Duration, Instant};

use super::super::makers::{MIB, Maker, has};
use super::inspected;
use super::tables::in_a_file;

/// What is told of the ext4 of the maker's files, and soon.
fn soon(maker: &Maker) -> String {
    let root = std::fs::read(maker.ext4("root", 96 * MIB, &maker.files())).unwrap();
    let disk = in_a_file(&root);
    let start = Instant::now();
    let told = inspected(&disk);
    // Two seconds are allowed; what looked at each with each took 17 and more.
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    told
}

#[test]
fn many_interfaces_in_one_file_cost_no_more_than_the_guest_may() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk"]);
    let lines: Vec<String> = (0..300_000).map(|number| format!("iface e{number:x}")).collect();
    maker.file("etc/network/interfaces", lines.join("\n"));
    assert!(soon(&maker).contains("\"interface\":\"e7f\""));
}

#[test]
fn many_unified_images_cost_no_more_than_the_guest_may() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["virtio_blk"]);
    for number in 0..20_000 {
        maker.file(&format!("boot/efi/EFI/Linux/{number}.efi"), "");
    }
    assert!(soon(&maker).contains("Debian"));
}

#[test]
fn an_inode_behind_the_last_number_is_a_doubt() {
    let mut disk = vec![0; 64 << 10];
    disk[..4].copy_from_slice(b"XFSB");
    // Blocks of 512 bytes, 256 inodes to one, groups of 2^31 blocks, 2^24 of them.
    for (at, bytes) in [(100, &[0, 5][..]), (120, &[9, 9, 8, 8, 31]), (84, &[0x80, 0, 0, 0]), (88, &[1, 0, 0, 0])] {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let last: u64 = ((1 << 55) - 1) << 8 | 255;
    disk[56..64].copy_from_slice(&last.to_be_bytes());
    let told = inspected(&in_a_file(&disk));
    assert!(told.contains("has a block that lies nowhere"), "{told}");
}
