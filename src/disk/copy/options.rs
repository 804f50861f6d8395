// SPDX-License-Identifier: Apache-2.0
//! What to make of an image, and with how many threads.

use crate::conversion::{Compression, OutputFormat};
use crate::disk::device::Medium;
use crate::disk::manifest::Expected;

/// Most threads: each holds about 2 MiB for its codecs, and the whole process must stay below 64 MiB.
pub const MAX_THREADS: usize = 8;

/// What to make of an image.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    pub format: OutputFormat,
    /// For qcow2 only.
    pub compress: Compression,
    /// The compression's own level; `None` is its default.
    pub level: Option<u32>,
    /// Threads that decode and encode, [`MAX_THREADS`] at most; `None` is one for each CPU that the process may use.
    pub threads: Option<usize>,
    /// What a raw disk is written into; other formats are files.
    pub medium: Medium,
    /// Whether to write through the page cache even where the file system takes direct I/O.
    pub buffered: bool,
    /// Digests that a manifest demands. Those of files other than the source's regions are ignored.
    pub digests: Vec<Expected>,
}

/// CPUs that this process may use, by its affinity and the quota of its cgroup (version 1 or 2). The quota is read
/// from /proc and /sys; where they can no longer be read, it is ignored.
#[must_use]
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
