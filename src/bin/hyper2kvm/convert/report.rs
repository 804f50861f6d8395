// SPDX-License-Identifier: Apache-2.0
//! What is printed of a conversion that succeeded.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use hyper2kvm::conversion::guest::fix::Outcome;
use hyper2kvm::conversion::options::ByteSize;
use hyper2kvm::conversion::{Metadata, printable, printable_json};
use hyper2kvm::worker::place::Placed;

/// Prints the report, as JSON where that is asked for.
pub(super) fn print(metadata: &Metadata, placed: &Placed, as_json: bool) -> ExitCode {
    let mut out = io::stdout().lock();
    let printed = if as_json {
        let json = serde_json::to_string_pretty(metadata).map_err(io::Error::from);
        json.and_then(|json| writeln!(out, "{}", printable_json(&json)))
    } else {
        summary(&mut out, metadata, placed)
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("hyper2kvm: cannot print the report: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// How warnings and doubts begin that tell why a guest was not fixed.
const UNFIXED: &str = "the guest was not fixed: ";

/// What became of the guest, where it was to be fixed.
fn guest(metadata: &Metadata) -> Option<String> {
    let fix = metadata.guest.as_ref()?.fix.as_ref()?;
    Some(match fix.outcome {
        Outcome::Fixed => {
            let files = fix.changes.len();
            format!("guest: fixed, {files} {} changed", if files == 1 { "file" } else { "files" })
        }
        Outcome::NothingToDo => "guest: nothing to do".to_owned(),
        Outcome::NotAGuest => "guest: no system found, nothing was fixed".to_owned(),
        Outcome::Unfixed => format!("warning: {UNFIXED}{}", fix.message.as_deref().unwrap_or("no reason was told")),
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for a person")]
fn summary(out: &mut impl Write, metadata: &Metadata, placed: &Placed) -> io::Result<()> {
    let unsure = doubts(metadata).filter(|_| !placed.emitted.is_empty());
    // What became of the guest is told once, by its outcome.
    let others = metadata.warnings.iter().chain(unsure).filter(|warning| !warning.starts_with(UNFIXED));
    for warning in others {
        writeln!(out, "warning: {}", printable(warning))?;
    }
    if let Some(outcome) = guest(metadata) {
        writeln!(out, "{}", printable(&outcome))?;
    }
    for (disk, path) in metadata.disks.iter().zip(&placed.disks) {
        let (virtual_size, allocated) = (ByteSize(disk.virtual_size_bytes), ByteSize(disk.allocated_bytes));
        let how = if disk.target.is_some() { "written" } else { "on disk" };
        writeln!(out, "{}  {virtual_size} virtual, {allocated} {how}", shown(path))?;
        if let Some(sha256) = &disk.sha256 {
            writeln!(out, "  sha256 {sha256}")?;
        }
    }
    for path in &placed.emitted {
        let shown = shown(path);
        match path.extension().and_then(OsStr::to_str) {
            Some("xml") => writeln!(out, "{shown}  libvirt domain: virsh define {shown}")?,
            Some("yaml") => writeln!(out, "{shown}  KubeVirt machine: kubectl apply -f {shown}")?,
            Some("json") => writeln!(out, "{shown}  properties of the images, for the script beside it")?,
            _ => writeln!(out, "{shown}  its first lines say how to use it")?,
        }
    }
    let seconds = metadata.duration_ms as f64 / 1000.0;
    let virtual_size: u64 = metadata.disks.iter().map(|d| d.virtual_size_bytes).sum();
    let rate = virtual_size as f64 / 1e6 / seconds.max(0.001);
    writeln!(
        out,
        "{} ({}) in {seconds:.2} s, {rate:.0} MB/s of guest disk",
        printable(&metadata.source.name),
        metadata.source.format
    )
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

/// What the machine files are unsure of; nobody asked for a machine where there are none.
fn doubts(metadata: &Metadata) -> impl Iterator<Item = &String> {
    metadata.machines.iter().flat_map(|machine| &machine.doubts)
}
