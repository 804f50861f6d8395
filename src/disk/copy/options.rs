// SPDX-License-Identifier: Apache-2.0
//! What to make of an image, and with how many threads.

use crate::conversion::{Compression, OutputFormat};
use crate::disk::manifest::Expected;

/// Threads at most: each has its codecs' memory, 2 MiB or so, and the whole process stays below 64 MiB.
pub const MAX_THREADS: usize = 8;

/// What to make of an image.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    pub format: OutputFormat,
    /// For qcow2 only.
    pub compress: Compression,
    /// The compression's own level; `None` is its usual one.
    pub level: Option<u32>,
    /// Threads that decode and encode, [`MAX_THREADS`] at most; `None` is one for each CPU that the process may use.
    pub threads: Option<usize>,
    /// Whether to write through the page cache even where the file system takes direct I/O.
    pub buffered: bool,
    /// Digests that a manifest demands of the source's regions; others among them are not looked at.
    pub digests: Vec<Expected>,
}

/// CPUs that this process may use: affinity and the quota of its cgroup, version 1 or 2. Reads files of /proc and /sys:
/// where those can't be read any more, the quota is not seen.
#[must_use]
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
