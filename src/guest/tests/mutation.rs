// SPDX-License-Identifier: Apache-2.0
//! Good guests with changed bytes: every reader ends within the budget, and none panics.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bolero::{TypeGenerator, check, produce};

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

/// One change: of the bytes that are stored, at a place in parts of 65,536.
#[derive(Clone, Debug, TypeGenerator)]
enum Change {
    Flip { at: u16, fine: u8, mask: u8 },
    Number { at: u16, fine: u8, value: u64 },
    Extreme { at: u16, fine: u8, which: u8 },
    Copy { from: u16, to: u16, len: u8 },
}

const EXTREMES: [u64; 7] = [0, 1, 0xFFFF, 0x1_0000, u32::MAX as u64, 1 << 63, u64::MAX];
/// What is stored together, if any of it is not zero.
const BLOCK: usize = 512;

/// A disk without its zeros.
struct Stored {
    len: u64,
    /// Where each block lies.
    places: Vec<u64>,
    blocks: Vec<u8>,
}

impl Stored {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
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

    /// The disk with other blocks, in a file.
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
    let place = |at: u16, fine: u8| ((usize::from(at) * count) >> 16) * BLOCK + usize::from(fine) * 2;
    let mut number = |at, fine, value: u64| {
        let at = place(at, fine) & !3;
        let bytes = if value.is_multiple_of(2) { value.to_be_bytes() } else { value.to_le_bytes() };
        let end = blocks.len().min(at + 8);
        blocks[at..end].copy_from_slice(&bytes[..end - at]);
    };
    match *change {
        Change::Flip { at, fine, mask } => blocks[place(at, fine)] ^= mask.max(1),
        Change::Number { at, fine, value } => number(at, fine, value),
        Change::Extreme { at, fine, which } => number(at, fine, EXTREMES[usize::from(which) % EXTREMES.len()]),
        Change::Copy { from, to, len } => {
            let (from, to) = (place(from, 0), place(to, 0));
            let len = (usize::from(len) * 4 + 4).min(blocks.len() - from.max(to));
            blocks.copy_within(from..from + len, to);
        }
    }
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
        "unified" => super::volumes::unified_on(&maker)?,
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

/// Changes a guest and looks into it.
fn survives(name: &str) {
    let Some(stored) = guest(name) else {
        println!("LEFT OUT: changes of {name}, whose tools are not installed (tests/prerequisites.sh)");
        return;
    };
    let changes = produce::<Vec<Change>>().with().len(1usize..6);
    check!().with_generator(changes).with_iterations(CASES).for_each(|changes| {
        let mut blocks = stored.blocks.clone();
        for change in changes {
            apply(&mut blocks, change);
        }
        let image = Image::raw(&stored.written(&blocks)).unwrap();
        let start = Instant::now();
        let guest = inspect(&[("disk", &image)], &LIMITS);
        assert!(start.elapsed() < PATIENCE, "{name} took {:?}", start.elapsed());
        let told = serde_json::to_string(&guest).unwrap();
        assert!(told.len() < 1 << 20, "{name} tells {} bytes", told.len());
    });
}

macro_rules! guests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            survives(stringify!($name));
        }
    )*};
}

guests! { ext4 xfs btrfs fat ntfs lvm mirror cd unified }

/// An initramfs, however it is packed, changed anywhere.
#[test]
fn initramfs() {
    let archives: Vec<Vec<u8>> = super::images::packed().into_iter().map(|(_, archive)| archive).collect();
    // Of more changes than a few, one is in nearly every archive's head, and nothing behind it is read.
    let changes = (produce::<u8>(), produce::<Vec<Change>>().with().len(0usize..6));
    check!().with_generator(changes).with_iterations(8 * CASES).for_each(|(which, changes)| {
        let mut archive = archives[usize::from(*which) % archives.len()].clone();
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
        for change in changes {
            apply(&mut archive, change);
        }
        let start = Instant::now();
        if let Ok(entries) = crate::guest::list_initramfs(&archive[..], &LIMITS) {
            assert!(entries.len() <= 50_000);
        }
        assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    });
}
