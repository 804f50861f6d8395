// SPDX-License-Identifier: Apache-2.0
//! Brings the changes of an overlay into a target.
//!
//! ```text
//!  image:   changes into disk.img.part, sync
//!  device:  zero the first MiB, sync ─▶ changes, but for the first MiB, sync ─▶ first MiB with its changes, sync
//! ```
//!
//! Wherever this ends early, the target is worth nothing, as after a copy that ended early.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::openat;
use rustix::fs::{Mode, OFlags, fstatvfs};

use super::{DISK_IMAGE_PART, Held, Target, Targets};
use crate::files::space::told_free;
use crate::worker::qemu::Change;

/// Bytes at a device's beginning that are written last, as the copy does.
const EDGE: u64 = 1 << 20;
/// Bytes that are moved at once.
const PIECE: u64 = 1 << 20;

impl Targets {
    /// Bytes that target `n` has room for beside its disk; `None` where its disk can't grow.
    pub(in crate::worker) fn room(&self, n: usize) -> Option<u64> {
        match &self.0[n].held {
            Held::Device(..) => None,
            Held::Directory(directory) => fstatvfs(directory).ok().and_then(|stat| told_free(&stat)),
        }
    }

    /// Bytes that the image in target `n` occupies; `None` on a device.
    pub(in crate::worker) fn allocated(&self, n: usize) -> Option<u64> {
        use std::os::unix::fs::MetadataExt as _;
        let image = matches!(self.0[n].held, Held::Directory(_)).then(|| self.reopen(n).ok())??;
        image.metadata().ok().map(|found| found.blocks().saturating_mul(512))
    }

    /// Brings `changes`, whose bytes lie in the file `overlay`, into target `n`, and syncs it. After an error the disk is
    /// neither what it was nor what it was to become.
    pub(in crate::worker) fn merge(&self, n: usize, overlay: &File, changes: &[Change]) -> io::Result<()> {
        self.0[n].merge(overlay, changes)
    }
}

impl Target {
    fn merge(&self, overlay: &File, changes: &[Change]) -> io::Result<()> {
        match &self.held {
            Held::Device(device, geometry) => merge_into_device(device, geometry.bytes, overlay, changes),
            Held::Directory(directory) => {
                let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let image = File::from(openat(directory, DISK_IMAGE_PART, flags, Mode::empty())?);
                for change in changes {
                    bring(overlay, change, change.disk.clone(), |piece, at| image.write_all_at(piece, at))?;
                }
                image.sync_all()
            }
        }
    }
}

fn merge_into_device(device: &File, bytes: u64, overlay: &File, changes: &[Change]) -> io::Result<()> {
    let edge = EDGE.min(bytes);
    let mut first = vec![0; usize::try_from(edge).expect("a MiB at most")];
    device.read_exact_at(&mut first, 0)?;
    device.write_all_at(&vec![0; first.len()], 0)?;
    device.sync_all()?;
    for change in changes {
        let early = change.disk.start.min(edge)..change.disk.end.min(edge);
        bring(overlay, change, early, |piece, at| {
            let at = usize::try_from(at).expect("within the first MiB");
            first[at..at + piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        let late = change.disk.start.max(edge)..change.disk.end.max(edge);
        bring(overlay, change, late, |piece, at| device.write_all_at(piece, at))?;
    }
    device.sync_all()?;
    device.write_all_at(&first, 0)?;
    device.sync_all()
}

/// Hands `part` of a change to `write`, piece by piece.
fn bring(
    overlay: &File,
    change: &Change,
    part: Range<u64>,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = Vec::new();
    let mut at = part.start;
    while at < part.end {
        let length = PIECE.min(part.end - at);
        piece.clear();
        piece.resize(usize::try_from(length).expect("a MiB at most"), 0);
        if let Some(begin) = change.at {
            overlay.read_exact_at(&mut piece, begin + (at - change.disk.start))?;
        }
        write(&piece, at)?;
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_every_change_on_both_sides_of_what_is_written_last() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            std::fs::write(place.path().join(name), content).unwrap();
            File::options().read(true).write(true).open(place.path().join(name)).unwrap()
        };
        let bytes = 3 << 20;
        let (mut expected, overlay) = (vec![7_u8; bytes], vec![9_u8; 2 << 20]);
        let (device, overlay) = (file("device", &expected), file("overlay", &overlay));
        let edge = 1 << 20;
        let changes = [
            Change { disk: 512..1024, at: Some(4096) },
            Change { disk: edge - 512..edge + 512, at: Some(0) },
            Change { disk: edge + 4096..3 << 20, at: None },
        ];
        merge_into_device(&device, bytes as u64, &overlay, &changes).unwrap();
        expected[512..1024].fill(9);
        expected[(1 << 20) - 512..(1 << 20) + 512].fill(9);
        expected[(1 << 20) + 4096..].fill(0);
        assert!(std::fs::read(place.path().join("device")).unwrap() == expected);
    }
}
