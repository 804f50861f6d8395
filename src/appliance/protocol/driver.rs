// SPDX-License-Identifier: Apache-2.0
//! Drivers for Windows in a job: their names in its JSON, their files beside it in the archive.

use serde::{Deserialize, Serialize};

use super::JobError;
use crate::appliance::cpio;

/// Directory of the drivers in the appliance's first file system: `drivers/NAME/FILE`.
pub const DRIVERS: &str = "drivers";
/// Most bytes of all files. viostor and netkvm have less than 2 MiB without their symbols.
pub const MAX_DRIVER_BYTES: u64 = 32 << 20;
/// Most drivers of a job, files of one, and characters of a name.
const MAX_DRIVERS: usize = 8;
const MAX_FILES: usize = 32;
const MAX_NAME: usize = 64;

/// A driver of virtio-win.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Driver {
    /// As its service is called: `viostor`.
    pub name: String,
    /// Its directory in virtio-win: `viostor/2k22/amd64`.
    pub from: String,
    /// Names of its files in lower case, `NAME.inf` among them.
    pub files: Vec<String>,
}

/// A driver's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFile {
    /// The driver's name.
    pub driver: String,
    /// In lower case.
    pub name: String,
    pub content: Vec<u8>,
}

/// Whether the names are plain: they become paths in the appliance and in the guest.
pub(super) fn check(drivers: &[Driver]) -> Result<(), JobError> {
    let is_plain = |name: &str| {
        let is_part = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
        (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_part)
    };
    for (index, Driver { name, from, files }) in drivers.iter().enumerate() {
        let is_twice = drivers[..index].iter().any(|driver| driver.name == *name);
        let is_bounded = index < MAX_DRIVERS && files.len() <= MAX_FILES && from.len() <= 4 * MAX_NAME;
        if is_twice || !is_bounded || !is_plain(name) || !files.iter().all(|file| is_plain(file)) {
            return Err(JobError::Driver(name.chars().take(MAX_NAME).collect()));
        }
    }
    Ok(())
}

/// Adds the files that the job names.
pub(super) fn pack(archive: &mut cpio::Archive, drivers: &[Driver], files: &[DriverFile]) -> Result<(), JobError> {
    let bytes = files.iter().map(|file| file.content.len() as u64).sum();
    if bytes > MAX_DRIVER_BYTES {
        return Err(JobError::DriverBytes(bytes));
    }
    for Driver { name: driver, files: names, .. } in drivers {
        for name in names {
            let named = files.iter().find(|file| file.driver == *driver && file.name == *name);
            let file = named.ok_or_else(|| JobError::Driver(format!("{driver}/{name}")))?;
            archive.file(&format!("{DRIVERS}/{driver}/{name}"), 0o600, &file.content)?;
        }
    }
    Ok(())
}
