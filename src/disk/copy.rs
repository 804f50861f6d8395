//! The copy: reads a map, decodes, finds zeros, encodes, and writes in any format.
//!
//! ```text
//!  map ─▶ read (threads) ─▶ decode, encode (N threads) ─▶ allocate in guest order ─▶ write (threads) ─▶ header ─▶ fsync
//! ```
//!
//! Work goes through in batches of a MiB. A budget in bytes bounds what is in flight; allocation is one thread's, in
//! guest order, so that the output does not depend on the number of threads.

mod encode;
mod page_cache;
mod queue;
mod source_digests;
mod stages;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use self::encode::{Cluster, Coded, Coding, Content};
use super::manifest::Expected;
use super::writer::output::Output;
use super::{Cancellation, Error, Image, verify};
use crate::conversion::{Compression, OutputFormat};

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
    /// Whether to compute the output's SHA-256, in a second pass.
    pub checksum: bool,
    /// Whether to compare source and output byte by byte, in a second pass.
    pub verify_full: bool,
    /// Whether to write through the page cache even where the file system takes direct I/O.
    pub buffered: bool,
    /// Digests that a manifest demands of the source's regions; others among them are not looked at.
    pub digests: Vec<Expected>,
}

impl CopyOptions {
    /// How often progress goes through the guest's disk.
    #[must_use]
    pub fn passes(&self) -> u64 {
        1 + u64::from(self.verify_full) + u64::from(self.checksum)
    }
}

/// What the outside sees of a copy and tells it.
#[derive(Debug, Default)]
pub struct CopyControl {
    cancellation: Cancellation,
    done: AtomicU64,
    total: AtomicU64,
    verifying: AtomicBool,
}

impl CopyControl {
    /// Ends the copy: no read or write begins after those at hand, and it fails with `Cancelled`.
    pub fn cancel(&self) {
        self.cancellation.cancel();
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// What ends the copy, for those who open its source.
    #[must_use]
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Guest bytes done, zeros included, and guest bytes in all passes; 0 of 0 before the start.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Whether an output is written and is being looked at once more.
    #[must_use]
    pub fn is_verifying(&self) -> bool {
        self.verifying.load(Ordering::Relaxed)
    }

    /// More bytes to do.
    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Fails once it was cancelled.
    pub(crate) fn check(&self, name: &str) -> Result<(), Error> {
        self.cancellation.check(name)
    }
}

/// A copy that is durable and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of the guest's disk.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes that the file takes on its volume.
    pub allocated: u64,
    /// Bytes written to it.
    pub written: u64,
    /// Its SHA-256 in hexadecimal, where asked for.
    pub sha256: Option<String>,
}

/// Copies `image` into `file`, which is empty and open for reading and writing; errors call it `name`. The file is
/// durable and its metadata verified when this returns. After an error its content is worthless.
///
/// # Errors
/// What the source's reader says of it, with the place; `OutputIO`, `OutputFull`, `OutputWouldProbe`;
/// `ManifestMismatch` where a digest differs; `Cancelled` once `control` says so; `Internal` where the output does not verify.
pub fn copy(
    image: &Image,
    file: &File,
    name: &str,
    options: &CopyOptions,
    control: &CopyControl,
) -> Result<Copied, Error> {
    let size = image.virtual_size();
    control.verifying.store(false, Ordering::Relaxed);
    control.expect(size * options.passes());
    let output = Output::new(file, name, control, !options.buffered);
    let threads = options.threads.unwrap_or_else(available_threads).clamp(1, MAX_THREADS);
    stages::run(image, &output, name, threads, options, control)?;
    output.buffered()?;

    control.verifying.store(true, Ordering::Relaxed);
    match options.format {
        OutputFormat::Qcow2 => verify::qcow2(file, name, control)?,
        OutputFormat::Vdi => verify::vdi(file, name, control)?,
        OutputFormat::Raw => {}
    }
    if options.verify_full {
        verify::same_guest(image, file, name, options.format, control)?;
    }
    let metadata = file.metadata().map_err(|e| Error::writing(name, 0, e))?;
    let sha256 = if options.checksum { Some(verify::sha256(file, metadata.len(), name, size, control)?) } else { None };
    Ok(Copied {
        virtual_size: size,
        file_size: metadata.len(),
        // Its unit is 512 bytes, whatever the block size (stat(2)).
        allocated: metadata.blocks() * 512,
        written: output.written(),
        sha256,
    })
}

/// CPUs that this process may use: affinity and the quota of its cgroup, version 1 or 2. Reads files of /proc and /sys:
/// where those can't be read any more, the quota is not seen.
#[must_use]
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests;
