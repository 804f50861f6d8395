// SPDX-License-Identifier: Apache-2.0
//! How much room a file system has left.

use std::io;
use std::path::Path;

use rustix::fs::StatVfs;

/// Bytes that we may still write to the file system of `path`; `None` where it doesn't report them.
pub(crate) fn free_bytes(path: &Path) -> io::Result<Option<u64>> {
    #[cfg(test)]
    if let Some(volume) = super::volume::simulated::current() {
        return Ok(Some(volume.free()));
    }
    Ok(told_free(&rustix::fs::statvfs(path)?))
}

/// The same from a statvfs(3) result. Some file systems (ramfs, buckets behind FUSE) report no blocks at all.
#[must_use]
pub(crate) fn told_free(told: &StatVfs) -> Option<u64> {
    (told.f_blocks > 0).then(|| told.f_bavail.saturating_mul(told.f_frsize))
}
