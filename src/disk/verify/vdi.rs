// SPDX-License-Identifier: Apache-2.0
//! The check of a VDI output's metadata, by the reader of VDI sources: bounds and overlaps.

use std::fs::File;
use std::sync::Arc;

use crate::conversion::Reason;
use crate::disk::control::CopyControl;
use crate::disk::vdi::Vdi;
use crate::disk::{Error, Region};

/// Reads the header and the whole block map of the output.
///
/// # Errors
/// `Internal` with the place where the metadata is wrong, `Cancelled` once `control` says so.
pub(super) fn vdi(file: &File, name: &str, control: &CopyControl) -> Result<(), Error> {
    let file = file.try_clone().map_err(|e| Error::writing(name, 0, e))?;
    let len = file.metadata().map_err(|e| Error::writing(name, 0, e))?.len();
    match Vdi::open(&Region::whole(Arc::new(file), name, len).until(control.cancellation()), u64::MAX) {
        Ok(_) => Ok(()),
        Err(e) if e.source.is_some() || e.reason == Reason::Cancelled => Err(e),
        Err(e) => {
            let message = format!("the output does not verify: {}", e.message);
            Err(Error { offset: e.offset, ..Error::refuse(Reason::Internal, name, message) })
        }
    }
}
