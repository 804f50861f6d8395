// SPDX-License-Identifier: Apache-2.0
//! The copy: reads a map, decodes, finds zeros, encodes, and writes in any format.
//!
//! ```text
//!  map ─▶ read (threads) ─▶ decode, encode (N threads) ─▶ allocate in guest order ─▶ write (threads) ─▶ header ─▶ fsync
//! ```
//!
//! Work goes through in batches of a MiB. A budget in bytes bounds what is in flight; allocation is one thread's, in
//! guest order, so that the output does not depend on the number of threads.

mod encode;
pub(super) mod options;
mod page_cache;
mod queue;
mod source_digests;
mod stages;

use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use self::options::{CopyOptions, MAX_THREADS, available_threads};
use super::control::CopyControl;
use super::device::{self, Medium};
use super::writer::output::Output;
use super::{Error, Image};
use crate::conversion::OutputFormat;

/// A copy that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Length of the file or device in bytes.
    pub file_size: u64,
    /// Bytes that the file takes on its volume; of a device those that were written.
    pub allocated: u64,
    /// Bytes of zeros that were written because the device can't zero a range by itself.
    pub written_zeros: u64,
}

/// Copies `image` into `file`, which is open for reading and writing, and empty unless it is a device; errors call it
/// `name`. All is durable when this returns, but not yet verified ([`verify`](super::verify())). After an error its
/// content is worthless, and no disk is found on a device.
///
/// # Errors
/// The errors of the source's reader, with the place; `OutputIO`, `OutputFull`, `OutputWouldProbe`; `TargetTooSmall`
/// before the first byte is written;
/// `ManifestMismatch` where a digest differs; `Cancelled` once `control` says so; `Internal` where the image's map
/// has gaps or overlaps.
pub fn copy(
    image: &Image,
    file: &File,
    name: &str,
    options: &CopyOptions,
    control: &CopyControl,
) -> Result<Copied, Error> {
    // A VDI's map lies before its data, and the map's length follows from the size. A device must be large enough.
    let is_size_needed = options.format == OutputFormat::Vdi || matches!(options.medium, Medium::Device(_));
    if is_size_needed {
        image.measure(control)?;
    }
    control.expect(image.work());
    let output = Output::new(file, name, control, !options.buffered);
    let threads = options.threads.unwrap_or_else(available_threads).clamp(1, MAX_THREADS);
    stages::run(image, &output, name, threads, options, control)?;
    // The passes that follow read the file through the page cache.
    output.buffered()?;
    let metadata = file.metadata().map_err(|e| Error::writing(name, 0, e))?;
    let file_size = device::len(file).map_err(|e| Error::writing(name, 0, e))?;
    let allocated = if metadata.file_type().is_block_device() {
        output.written()
    } else {
        // The unit of `blocks` is 512 bytes, whatever the block size (stat(2)).
        metadata.blocks() * 512
    };
    Ok(Copied { file_size, allocated, written_zeros: output.written_zeros() })
}

#[cfg(test)]
mod tests;
