// SPDX-License-Identifier: Apache-2.0
//! Good guests with changed bytes: every reader ends within the budget, and none panics.

mod effort;
mod tables;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bolero::{TypeGenerator, ValueGenerator, check, produce};

use super::makers::{MIB, Maker, can_mount, has, run};
use crate::disk::{Image, Region};
use crate::guest::{Limits, inspect};

/// Cases of each guest, unless a variable sets another number.
const CASES: usize = 48;
/// What one case may cost, far below what is allowed to be found out.
const LIMITS: Limits =
    Limits { time: Duration::from_secs(2), read_bytes: 256 << 20, decoded_bytes: 64 << 20, steps: 200_000 };
/// How long a case may take: its time, and what a busy machine needs to notice.
const PATIENCE: Duration = Duration::from_secs(20);

/// One change: of the bytes that are stored, at a place in parts of 65,536 of the first or of all.
#[derive(Clone, Debug, TypeGenerator)]
enum Change {
    Flip { at: u16, head: bool, fine: u8, mask: u8 },
    Number { at: u16, head: bool, fine: u8, value: u64 },
    Small { at: u16, head: bool, fine: u8, value: u8 },
    Extreme { at: u16, head: bool, fine: u8, which: u8 },
    Copy { from: u16, to: u16, head: bool, len: u8 },
}

const EXTREMES: [u64; 7] = [0, 1, 0xFFFF, 0x1_0000, u32::MAX as u64, 1 << 63, u64::MAX];
/// What is stored together, if any of it is not zero.
const BLOCK: usize = 512;
/// The first blocks, where most structures begin.
const HEAD: usize = 64;

/// A disk without its zeros.
struct Stored {
    len: u64,
    /// Where each block lies.
    places: Vec<u64>,
    blocks: Vec<u8>,
}

impl Stored {
    fn read(path: &Path) -> Self {
        Self::of(&fs::read(path).unwrap())
    }

    fn of(bytes: &[u8]) -> Self {
        let mut stored = Self { len: bytes.len() as u64, places: Vec::new(), blocks: Vec::new() };
        let pages = bytes.chunks(64 * BLOCK).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        for (page, bytes) in pages {
            for (index, block) in bytes.chunks(BLOCK).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    stored.places.push(((page * 64 + index) * BLOCK) as u64);
                    stored.blocks.extend(block);
                }
            }
        }
        stored
    }

    /// With the blocks that begin so before the others.
    fn first(self, magic: &[u8]) -> Self {
        let (first, others): (Vec<_>, Vec<_>) =
            self.places.iter().zip(self.blocks.chunks(BLOCK)).partition(|(_, block)| block.starts_with(magic));
        let (places, blocks): (Vec<_>, Vec<_>) = first.into_iter().chain(others).unzip();
        Self { len: self.len, places, blocks: blocks.concat() }
    }

    /// The disk with other blocks.
    fn whole(&self, blocks: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap()];
        for (place, block) in self.places.iter().zip(blocks.chunks(BLOCK)) {
            let at = usize::try_from(*place).unwrap();
            bytes[at..at + block.len()].copy_from_slice(block);
        }
        bytes
    }

    /// The same in a file.
    fn written(&self, blocks: &[u8]) -> Region {
        let file = tempfile::tempfile().unwrap();
        file.set_len(self.len).unwrap();
        for (place, block) in self.places.iter().zip(blocks.chunks(BLOCK)) {
            file.write_all_at(block, *place).unwrap();
        }
        Region::whole(Arc::new(file), "disk", self.len)
    }
}

fn apply(blocks: &mut [u8], change: &Change) {
    let count = blocks.len() / BLOCK;
    let block = |at: u16, head: bool| ((usize::from(at) * if head { count.min(HEAD) } else { count }) >> 16) * BLOCK;
    let place = |at: u16, head: bool, fine: u8| block(at, head) + usize::from(fine) * 2;
    let mut number = |at: usize, value: u64| {
        let at = at & !3;
        let bytes = if value.is_multiple_of(2) { value.to_be_bytes() } else { value.to_le_bytes() };
        let end = blocks.len().min(at + 8);
        blocks[at..end].copy_from_slice(&bytes[..end - at]);
    };
    match *change {
        Change::Flip { at, head, fine, mask } => blocks[place(at, head, fine)] ^= mask.max(1),
        Change::Number { at, head, fine, value } => number(place(at, head, fine), value),
        // A field of four bytes, its neighbour left alone.
        Change::Small { at, head, fine, value } => {
            let at = place(at, head, fine) & !3;
            let bytes = if value < 128 { u32::from(value).to_le_bytes() } else { u32::from(value).to_be_bytes() };
            blocks[at..at + 4].copy_from_slice(&bytes);
        }
        Change::Extreme { at, head, fine, which } => {
            number(place(at, head, fine), EXTREMES[usize::from(which) % EXTREMES.len()]);
        }
        Change::Copy { from, to, head, len } => {
            let (from, to) = (block(from, false), block(to, head));
            let len = (usize::from(len) * 4 + 4).min(blocks.len() - from.max(to));
            blocks.copy_within(from..from + len, to);
        }
    }
}

fn changed(blocks: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut blocks = blocks.to_vec();
    for change in changes {
        apply(&mut blocks, change);
    }
    blocks
}

/// A guest; `None` where its tools are not installed.
fn guest(name: &str) -> Option<Stored> {
    let maker = Maker::new();
    let path = match name {
        "ext4" if has("mkfs.ext4") && has("sfdisk") => {
            maker.linux(&["virtio_blk", "ahci"]);
            let root = maker.ext4("ext4", 24 * MIB, &maker.files());
            let script = "label: gpt\nstart=2048,size=49152,type=linux\n";
            maker.disk("disk", 26 * MIB, script, &[(MIB, &root)])
        }
        "xfs" if has("mkfs.xfs") => {
            maker.linux(&["virtio_blk", "ahci"]);
            for number in 0..400 {
                maker.file(&format!("boot/many/{number:050}"), "");
            }
            maker.xfs("xfs", 300 * MIB, &maker.files(), &[])
        }
        "btrfs" if has("mkfs.btrfs") => {
            maker.linux(&["virtio_blk", "ahci"]);
            let volume = maker.empty("btrfs", 128 * MIB);
            run("mkfs.btrfs", &["-q", "--rootdir", maker.files().to_str().unwrap(), volume.to_str().unwrap()]);
            volume
        }
        "fat" if ["mkfs.vfat", "mcopy", "sfdisk"].map(has).iter().all(|has| *has) => {
            maker.file("EFI/BOOT/BOOTX64.EFI", "loader");
            maker.file("EFI/debian/a long name of a loader.efi", "loader");
            let esp = maker.fat("esp", 16 * MIB, 16, &maker.files());
            let script = "label: gpt\nstart=2048,size=32768,type=uefi\n";
            maker.disk("disk", 18 * MIB, script, &[(MIB, &esp)])
        }
        "mirror" if has("mkfs.ext4") => {
            maker.linux(&["virtio_blk", "ahci"]);
            super::volumes::mirror(&maker, &maker)
        }
        "cd" => super::volumes::cd_on(&maker),
        "unified" => return Some(Stored::read(&super::volumes::unified_on(&maker)?).first(b"MZ")),
        "ntfs" if super::systems::can_make_windows() => {
            super::systems::windows(&maker, Some(0));
            super::systems::ntfs(&maker)
        }
        "lvm" if has("pvcreate") && can_mount() => {
            let disks = ["one", "two"].map(|name| maker.empty(name, 60 * MIB));
            super::systems::lvm(&maker, &format!("h2k-hostile-{}", std::process::id()), &disks);
            let [one, _] = disks;
            one
        }
        _ => return None,
    };
    Some(Stored::read(&path))
}

/// What is told of a disk.
fn inspected(disk: &Region) -> String {
    let image = Image::raw(disk).unwrap();
    serde_json::to_string(&inspect(&[("disk", &image)], &LIMITS)).unwrap()
}

/// Looks into a changed disk.
fn survives(name: &str, disk: &Region) {
    let start = Instant::now();
    let told = inspected(disk);
    assert!(start.elapsed() < PATIENCE, "{name} took {:?}", start.elapsed());
    assert!(told.len() < 1 << 20, "{name} tells {} bytes", told.len());
}

fn changes() -> impl ValueGenerator<Output = Vec<Change>> {
    produce::<Vec<Change>>().with().len(1usize..6)
}

macro_rules! guests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let name = stringify!($name);
            let Some(stored) = guest(name) else {
                println!("LEFT OUT: changes of {name}, whose tools are not installed (tests/prerequisites.sh)");
                return;
            };
            check!().with_generator(changes()).with_iterations(CASES).for_each(|changes| {
                survives(name, &stored.written(&changed(&stored.blocks, changes)));
            });
        }
    )*};
}

guests! { ext4 xfs btrfs fat ntfs lvm mirror cd unified }

/// An archive of modules, packed so.
fn packed(packing: &str) -> Vec<u8> {
    let modules = ["virtio_blk", "virtio-scsi", "sd_mod"];
    let mut packed = match packing {
        "unpacked" => super::makers::archive(&modules),
        "of Debian" => super::makers::initramfs(&modules),
        _ => super::images::packed().into_iter().find(|(known, _)| *known == packing).expect("it is a packing").1,
    };
    packed.resize(packed.len().next_multiple_of(BLOCK), 0);
    packed
}

macro_rules! packings {
    ($($target:ident $packing:literal)*) => {$(
        #[test]
        fn $target() {
            let good = packed($packing);
            check!().with_generator(changes()).with_iterations(4 * CASES).for_each(|changes| {
                let archive = changed(&good, changes);
                let start = Instant::now();
                if let Ok(entries) = crate::guest::list_initramfs(&archive[..], &LIMITS) {
                    assert!(entries.len() <= 50_000);
                }
                assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
            });
        }
    )*};
}

packings! {
    initramfs "unpacked"
    initramfs_of_debian "of Debian"
    initramfs_in_gzip "gzip"
    initramfs_in_bzip2 "bzip2"
    initramfs_in_xz "xz"
    initramfs_in_lzma "lzma"
    initramfs_in_lz4 "lz4"
    initramfs_in_zstd "zstd"
}
