// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm convert --to-device`: disks onto block devices.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use hyper2kvm::conversion::guest::fix::Unfixed;
use hyper2kvm::conversion::options::ByteSize;
use hyper2kvm::conversion::{Failure, Reason};
use hyper2kvm::disk::signature;
use hyper2kvm::worker::place::PlaceError;
use hyper2kvm::worker::target::Target;

/// Opens the devices for this process alone, and asks before what they hold is overwritten. Nothing is written yet.
pub(super) fn open(paths: &[PathBuf], force: bool) -> Result<Vec<Target>, PlaceError> {
    let devices = paths.iter().map(|path| Target::device(path, Instant::now())).collect::<Result<Vec<_>, _>>()?;
    for (path, target) in paths.iter().zip(&devices) {
        let Some((device, geometry)) = target.as_device().filter(|_| !force) else { continue };
        let holds = signature::find(device, geometry).map_err(|e| {
            let message = format!("{}: cannot read it: {e}", path.display());
            Failure::new(Reason::TargetLost, message)
        })?;
        if let Some(holds) = holds {
            ask(path, geometry.bytes, holds)?;
        }
    }
    Ok(devices)
}

/// Asks whether what a device holds may be overwritten; without a terminal it may not.
fn ask(path: &Path, bytes: u64, holds: &'static str) -> Result<(), PlaceError> {
    let refused = || PlaceError::Holds { path: path.to_owned(), holds };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused());
    }
    let mut answer = String::new();
    eprint!("{} ({}) holds {holds}. Overwrite all of it? [y/N] ", path.display(), ByteSize(bytes));
    // Without an answer, nothing is overwritten.
    let _ = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(refused()) }
}

/// What a person can do about a failure at a device.
pub(super) const fn suggestion(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::TargetDenied => Some("Name a block device that this user may write to; for a file use --output FILE"),
        Reason::TargetTooSmall => Some("Use a device of at least that size"),
        Reason::TargetInUse => Some("Unmount it, or end what uses it (lsblk, fuser), or name another device"),
        Reason::TargetLost => Some("Check the device's name and that it is attached (lsblk)"),
        Reason::OutputIO => Some("Check the device and the kernel's log (dmesg)"),
        _ => None,
    }
}

/// What is to be known about devices after a conversion that ended once its copy had begun.
pub(super) fn tell_unfinished(paths: &[PathBuf], error: &PlaceError) {
    let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let shown = shown.join(", ");
    // A guest is refused behind the copy, while the disk is whole.
    let is_whole = matches!(error, PlaceError::Failed(failure) if Unfixed::of(failure.reason).is_some());
    if is_whole {
        eprintln!("hyper2kvm: the whole disk is on {shown}, and only its guest is refused");
    } else {
        eprintln!("hyper2kvm: no whole disk is on {shown}, and what it held before is gone");
    }
}
