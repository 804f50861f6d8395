// SPDX-License-Identifier: Apache-2.0
//! Makes ranges of a block device zeros: by the device itself, by the kernel, or by writing them.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::disk::Error;
use crate::disk::buffer::Buffer;
use crate::disk::control::CopyControl;

/// Bytes zeroed at once: a cancellation does not wait longer than that.
const STEP: u64 = 64 << 20;
/// Bytes of zeros in one write.
const PIECE: u64 = 1 << 20;

/// Ways to zero a range, the best first. A device that refuses one is never asked for it again.
///
/// *Punch*: the device zeros the range, and may free it. The kernel refuses where the device has no such command, and
/// guarantees zeros where it has. *Kernel*: it writes the zeros. *Write*: we do.
const PUNCH: u8 = 0;
const KERNEL: u8 = 1;
const WRITE: u8 = 2;

/// How a device is zeroed.
#[derive(Debug, Default)]
pub(super) struct Zeros {
    way: AtomicU8,
    written: AtomicU64,
}

impl Zeros {
    /// Makes `range` of `device` zeros. `write` writes zeros at an offset. Bytes that are written count as progress of
    /// their own, for nobody else counts them and they may take hours.
    pub(super) fn make(
        &self,
        device: &File,
        range: Range<u64>,
        name: &str,
        control: &CopyControl,
        mut write: impl FnMut(&[u8], u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            control.check(name)?;
            let end = range.end.min(at + STEP);
            while let way @ (PUNCH | KERNEL) = self.way.load(Ordering::Relaxed) {
                match fallocate(device, flags(way), at, end - at) {
                    Ok(()) => {
                        if way == KERNEL {
                            self.count(end - at, control);
                        }
                        break;
                    }
                    Err(Errno::INTR) => control.check(name)?,
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => self.refused(way, name),
                    Err(e) => return Err(Error::writing(name, at, e.into())),
                }
            }
            if self.way.load(Ordering::Relaxed) == WRITE {
                self.write(at..end, control, &mut write)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Bytes of zeros that were written, by the kernel or by us.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn refused(&self, way: u8, name: &str) {
        let first = self.way.compare_exchange(way, way + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if first && way == PUNCH {
            tracing::warn!(device = name, "the device can't zero a range by itself: its zeros are written");
        }
    }

    fn write(
        &self,
        range: Range<u64>,
        control: &CopyControl,
        write: &mut impl FnMut(&[u8], u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let most = PIECE.min(range.end - range.start);
        let zeros = Buffer::new(usize::try_from(most).expect("a MiB at most"));
        let mut at = range.start;
        while at < range.end {
            let len = most.min(range.end - at);
            write(&zeros[..usize::try_from(len).expect("a MiB at most")], at)?;
            self.count(len, control);
            at += len;
        }
        Ok(())
    }

    fn count(&self, len: u64, control: &CopyControl) {
        self.written.fetch_add(len, Ordering::Relaxed);
        control.skip(len);
    }
}

fn flags(way: u8) -> FallocateFlags {
    let how = if way == PUNCH { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    how | FallocateFlags::KEEP_SIZE
}
