// SPDX-License-Identifier: Apache-2.0
//! stats.json on disk: written by temp and rename, never read back.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::report::StatsReport;

/// stats.json could not be written. Nothing depends on it: the caller warns and continues.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes `report` to `path` so that a reader finds the old content or the new, never half of it. Mode 0644 less
/// umask: exporters under other users read it. Its directory must exist and have no other writer of this file.
///
/// Not synced: after a power cut, the next write follows within a minute.
pub fn write(path: &Path, report: &StatsReport) -> Result<(), WriteError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError { path, source }
    };
    let mut text = serde_json::to_vec_pretty(report).expect("keys are strings and all floats finite");
    text.push(b'\n');

    // A fixed name, so that a crash leaves at most one file. It is removed first, so that a link there is never
    // followed.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&temporary)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary).map_err(failed(&temporary))?;
    file.write_all(&text).map_err(failed(&temporary))?;
    drop(file);
    fs::rename(&temporary, path).map_err(failed(path))
}
