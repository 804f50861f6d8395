// SPDX-License-Identifier: Apache-2.0
//! Whether a changed file system is whole, by its own checker, which only reads.

use std::path::Path;
use std::process::{Command, Stdio};

/// Largest ext4 that is read whole; of a larger one only the superblock is looked at, because it takes minutes.
const MAX_WHOLE: u64 = 32 << 30;

/// A sentence about what is wrong, if anything is. Without the checker, nothing is known.
pub(crate) fn check(device: &Path, content: &str) -> Option<String> {
    let (program, arguments): (&str, &[&str]) = match content {
        "ext4" if size(device) <= MAX_WHOLE => ("/sbin/e2fsck", &["-f", "-n"]),
        "ext4" => ("/sbin/e2fsck", &["-n"]),
        "xfs" if size(device) <= MAX_WHOLE => ("/sbin/xfs_repair", &["-n", "-m", "256"]),
        "ntfs" => ("/sbin/ntfsfix", &["-n"]),
        _ => return None,
    };
    if !Path::new(program).exists() {
        return None;
    }
    let output = Command::new(program).args(arguments).arg(device).stdin(Stdio::null()).output().ok()?;
    if output.status.success() {
        return None;
    }
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    let name = program.trim_start_matches("/sbin/");
    Some(format!("{name} found faults on {} after the changes ({}).", device.display(), output.status))
}

/// Bytes of a device, or 0.
fn size(device: &Path) -> u64 {
    use std::io::{Seek as _, SeekFrom};
    std::fs::File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0))).unwrap_or_default()
}
