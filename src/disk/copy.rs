//! The copy: reads a map, decodes, finds zeros, encodes, and writes in any format.
//!
//! ```text
//!  map ─▶ read (threads) ─▶ decode, encode (N threads) ─▶ allocate in guest order ─▶ write (threads) ─▶ header ─▶ fsync
//! ```
//!
//! Work goes through in batches of a MiB. A budget in bytes bounds what is in flight; allocation is one thread's, in
//! guest order, so that the output does not depend on the number of threads.

mod encode;
pub mod options;
mod page_cache;
mod queue;
mod source_digests;
mod stages;

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use self::options::{CopyOptions, MAX_THREADS, available_threads};
use super::control::CopyControl;
use super::writer::output::Output;
use super::{Error, Image, verify};
use crate::conversion::OutputFormat;

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
    control.set_verifying(false);
    control.expect(size * options.passes());
    let output = Output::new(file, name, control, !options.buffered);
    let threads = options.threads.unwrap_or_else(available_threads).clamp(1, MAX_THREADS);
    stages::run(image, &output, name, threads, options, control)?;
    output.buffered()?;

    control.set_verifying(true);
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

#[cfg(test)]
mod tests;
