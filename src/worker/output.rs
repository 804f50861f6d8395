// SPDX-License-Identifier: Apache-2.0
//! What a write that fails in the output directory means for the conversion.

use std::io;
use std::path::Path;

use crate::conversion::{Failure, Phase, Reason, Remedy};
use crate::files::store::{self, StoreError};
use crate::files::volume;

/// Writes `value` as JSON in one step, and syncs it.
pub(super) fn write_synced(directory: &Path, name: &str, value: &impl serde::Serialize) -> Result<(), Failure> {
    store::write_json(&directory.join(name), value).map_err(|error| match error {
        StoreError::Write { source, .. } => output_failure(directory, &source),
        error => Failure::new(Reason::Internal, error.to_string()),
    })
}

/// Syncs the directory's entries.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Failure> {
    volume::sync_dir(directory).map_err(|e| output_failure(directory, &e))
}

/// What a failed write in the output directory means.
#[must_use]
pub fn output_failure(path: &Path, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::OutputFull,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Reason::PermissionDenied,
        _ => Reason::OutputIO,
    };
    let phase = Phase::OutputDirectoryCreation;
    let is_read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    Failure::in_phase(reason, phase, format!("{}: cannot write: {error}", path.display()))
        .with_remedy(is_read_only.then_some(Remedy::MountWritable))
}
