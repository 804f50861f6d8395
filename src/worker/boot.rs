// SPDX-License-Identifier: Apache-2.0
//! Tries whether the guest on the converted disks boots, where that is asked for. The disks are only read.

use std::time::{Duration, Instant};

use super::conversion::Conversion;
use super::progress::Meter;
use super::qemu::{CheckError, FixError, Programs, check};
use crate::conversion::emit::{Trial, trial};
use crate::conversion::guest::boot::{BootReport, BootResult};
use crate::conversion::guest::fix::Outcome;
use crate::conversion::guest::need::{Need, need};
use crate::conversion::options::{BootCheckMode, GuestOptions};
use crate::conversion::report::DiskReport;
use crate::conversion::{Failure, Metadata, Reason, Stage, chain};

/// What a boot check came to.
enum Tried {
    Seen(BootReport),
    /// Why it could not be tried.
    Unchecked(Reason, String),
    /// No system is on the disks.
    NoGuest,
}

/// Tries whether the guest boots, and reports that in `report`.
///
/// # Errors
/// `GuestNotBooting` where it must boot and does not, another reason where that could not be tried; or that the attempt
/// was told to end.
pub(super) fn check_boot(conversion: &Conversion<'_>, meter: &Meter, report: &mut Metadata) -> Result<(), Failure> {
    let mode = conversion.options.guest.boot_check.mode;
    let Some(programs) = conversion.programs.filter(|_| mode != BootCheckMode::Off) else { return Ok(()) };
    meter.enter(Stage::Boot);
    let start = Instant::now();
    let (seen, failure) = match tried(conversion, programs, meter, report)? {
        Tried::Seen(seen) if seen.result == BootResult::NotBooting => {
            let message = seen.message.clone().unwrap_or_default();
            (seen, Some(Failure::new(Reason::GuestNotBooting, message)))
        }
        Tried::Seen(seen) => (seen, None),
        Tried::Unchecked(reason, message) => {
            let unchecked = BootReport { message: Some(message.clone()), ..BootReport::default() };
            (unchecked, Some(Failure::new(reason, message)))
        }
        Tried::NoGuest => {
            tracing::info!("no system is on the disks: nothing to boot");
            return Ok(());
        }
    };
    tracing::info!(
        result = %seen.result,
        first_write_ms = seen.first_write_ms,
        first_frame_ms = seen.first_frame_ms,
        accelerator = seen.accelerator,
        message = seen.message,
        ms = start.elapsed().as_millis(),
        "tried whether the guest boots"
    );
    if let (Some(failure), BootCheckMode::Require) = (failure, mode) {
        return Err(failure.at_stage(Stage::Boot));
    }
    note(report, seen);
    Ok(())
}

/// Runs the machine, if there is one that can be run.
fn tried(conversion: &Conversion<'_>, programs: &Programs, meter: &Meter, report: &Metadata) -> Result<Tried, Failure> {
    let unsupported = |message: &str| Ok(Tried::Unchecked(Reason::GuestUnsupported, message.to_owned()));
    if is_no_guest(report) {
        return Ok(Tried::NoGuest);
    }
    let architecture = report.guest.as_ref().and_then(|guest| guest.os.as_ref()?.architecture.as_deref());
    if let Some(other) = architecture.filter(|name| !matches!(*name, "x86_64" | "amd64" | "i386" | "i686")) {
        return unsupported(&format!("the guest's system is made for {other}, and only x86 is tried"));
    }
    let Some(trial) = trial(report, &conversion.options.domain) else {
        return unsupported("the source has several machines, and one at a time is tried");
    };
    let Some(disks) = in_order(&trial, report) else {
        return unsupported("the machine has no disks");
    };
    let limit = Duration::from_secs(conversion.options.guest.boot_check.timeout_seconds.into());
    match check(programs, conversion.directory, (&trial, disks), limit, || meter.is_interrupted()) {
        Ok(seen) => Ok(Tried::Seen(seen)),
        Err(CheckError::Run(error @ FixError::Interrupted)) => Err(Failure::from(error).at_stage(Stage::Boot)),
        Err(error @ CheckError::Device(_)) => Ok(Tried::Unchecked(Reason::GuestUnsupported, chain(&error))),
        Err(error) => Ok(Tried::Unchecked(Reason::GuestFixFailed, chain(&error))),
    }
}

/// Whether a look at the disks, or a fix, found that they hold no system.
fn is_no_guest(report: &Metadata) -> bool {
    let fix = report.guest.as_ref().and_then(|guest| guest.fix.as_ref());
    fix.map_or_else(
        || need(report.guest.as_ref(), &GuestOptions::default()) == Need::Settled(Outcome::NotAGuest),
        |fix| fix.outcome == Outcome::NotAGuest,
    )
}

fn in_order<'a>(trial: &Trial, report: &'a Metadata) -> Option<Vec<&'a DiskReport>> {
    let of = |file: &String| report.disks.iter().find(|disk| disk.file == *file);
    let disks: Option<Vec<_>> = trial.disks.iter().map(|disk| of(&disk.file)).collect();
    disks.filter(|disks| !disks.is_empty())
}

/// Writes what was seen into the report, with a warning where it is no good news.
fn note(report: &mut Metadata, seen: BootReport) {
    let mut guest = report.guest.take().unwrap_or_default();
    guest.boot_check = Some(seen);
    let guest = guest.bounded();
    if let Some(sentence) = guest.boot_sentence() {
        if let [machine] = &mut report.machines[..] {
            machine.doubt(sentence.clone());
            *machine = std::mem::take(machine).bounded();
        }
        report.warnings.push(sentence);
    }
    report.guest = Some(guest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Metadata {
        serde_json::from_value(serde_json::json!({
            "contractVersion": 2, "toolVersion": "0", "startTime": "2026-01-17T09:45:00Z",
            "endTime": "2026-01-17T09:45:01Z", "durationMs": 1,
            "source": {"name": "a.vmdk", "sizeBytes": 1, "format": "vmdk"}, "disks": [], "machines": [{}],
        }))
        .unwrap()
    }

    #[test]
    fn a_guest_that_booted_is_reported_without_a_doubt() {
        let mut report = report();
        let seen = BootReport { result: BootResult::Booted, first_write_ms: Some(22_000), ..BootReport::default() };
        note(&mut report, seen);
        let told = serde_json::to_value(report.guest.unwrap()).unwrap();
        assert_eq!(told["bootCheck"], serde_json::json!({"result": "booted", "firstWriteMs": 22_000}));
        assert!(report.warnings.is_empty() && report.machines[0].doubts.is_empty());
    }

    #[test]
    fn a_guest_that_did_not_boot_is_a_warning_and_a_doubt() {
        let mut report = report();
        let message = Some("It did not write.".to_owned());
        note(&mut report, BootReport { result: BootResult::NotBooting, message, ..BootReport::default() });
        let expected = "the guest did not boot when it was tried: it did not write";
        assert_eq!((&report.warnings[0], &report.machines[0].doubts[0]), (&expected.to_owned(), &expected.to_owned()));
    }
}
