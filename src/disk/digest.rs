// SPDX-License-Identifier: Apache-2.0
//! The digest of an output.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use super::control::CopyControl;
use super::{Error, device};
use crate::conversion::{OutputFormat, hex};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// SHA-256 of a whole output file that errors call `name`, in hexadecimal; of a raw disk that of its own bytes, without
/// the zeros that follow in a longer file or device. Progress goes through the `size` bytes of its guest's disk.
///
/// # Errors
/// `OutputIO`, `Cancelled`.
pub fn digest(
    file: &File,
    name: &str,
    format: OutputFormat,
    size: u64,
    control: &CopyControl,
) -> Result<String, Error> {
    control.expect(size);
    let len = device::len(file).map_err(|e| Error::writing(name, 0, e))?;
    let len = if format == OutputFormat::Raw { len.min(size) } else { len };
    let guest = |at: u64| {
        u64::try_from(u128::from(size) * u128::from(at) / u128::from(len)).expect("no more than the disk's size")
    };
    // A hint, so a refusal changes nothing.
    let _ = fadvise(file, 0, None, Advice::Sequential);
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        control.check(name)?;
        let wanted = (len - at).min(CHUNK as u64);
        let chunk = &mut chunk[..usize::try_from(wanted).expect("at most a chunk")];
        file.read_exact_at(chunk, at).map_err(|e| Error::writing(name, at, e))?;
        digest.update(&*chunk);
        control.advance(guest(at + wanted) - guest(at));
        at += wanted;
    }
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    Ok(hex(digest.finalize()))
}
