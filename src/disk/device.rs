// SPDX-License-Identifier: Apache-2.0
//! Block devices as places for raw disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt as _;

use rustix::fs::{SeekFrom, ioctl_blksszget, seek};

/// What a raw disk is written into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// A file that becomes as long as the disk.
    #[default]
    File,
    /// A file whose length is rounded up to a multiple of so many bytes.
    Image { unit: u64 },
    /// A block device, which is defined from its first byte to its last.
    Device(Geometry),
}

/// A block device's size and sector, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub bytes: u64,
    /// Logical block: the unit of direct I/O, and of ranges that the device zeros by itself.
    pub sector: u32,
}

impl Geometry {
    /// That of an open block device.
    ///
    /// # Errors
    /// The system's error; `InvalidInput` where it is no block device or has no bytes.
    pub fn of(device: &File) -> io::Result<Self> {
        if !device.metadata()?.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device"));
        }
        let bytes = seek(device, SeekFrom::End(0))?;
        let sector = ioctl_blksszget(device)?;
        if bytes == 0 || !sector.is_power_of_two() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a block device without a medium"));
        }
        Ok(Self { bytes, sector })
    }
}

/// Bytes of an open output: of a device those of the device.
pub(super) fn len(output: &File) -> io::Result<u64> {
    let metadata = output.metadata()?;
    if metadata.file_type().is_block_device() { Ok(seek(output, SeekFrom::End(0))?) } else { Ok(metadata.len()) }
}
