// SPDX-License-Identifier: Apache-2.0
//! Writing that lasts: files that are whole or not there, and what a failed write means.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::conversion::{Failure, Phase, Reason};

/// Writes `value` as JSON under a temporary name, syncs, renames and syncs the directory.
pub(super) fn write_synced(directory: &Path, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

/// Makes the directory's entries last.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
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
    Failure::in_phase(reason, phase, format!("{}: cannot write: {error}", path.display()))
}
