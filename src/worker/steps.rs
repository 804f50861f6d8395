// SPDX-License-Identifier: Apache-2.0
//! The steps of a conversion, the same by hand and in a worker.
//!
//! ```text
//!  copy ──────▶ (fix) ──▶ (boot), verify ─▶ digest ─────▶ seal            a worker's attempt
//!    │            │             │             │            │
//!  copied.json  fixed.json  verified.json  digested.json  metadata.json
//!
//!  copy ──────▶ (fix) ──▶ (boot), verify ─▶ digest ─────▶ place           by hand: no markers
//! ```
//!
//! A step's file is synced once its work is on stable storage, so a later attempt that finds the file goes on after
//! that step. Without metadata.json, which only *seal* writes, nothing is published. *Fix* changes what is on the disks:
//! everything that is reported about their bytes is found out after it, and what is compared with the source before it.
//! *Boot* tries whether the guest starts, on overlays that are thrown away.

use std::path::Path;

use jiff::Timestamp;

use super::boot::check_boot;
use super::conversion::Conversion;
use super::copy::copy;
use super::fix::fix;
use super::group::Group;
use super::marker::{Markers, Step};
use super::output::sync_directory;
use super::progress::Meter;
use super::target::Targets;
use crate::conversion::options::GuestFixMode;
use crate::conversion::{Class, Failure, Metadata, Reason, Stage};
use crate::disk::source::Source;
use crate::disk::{self, Error};

/// Converts by hand. Returns the report once every byte of every disk is on stable storage. `accept` receives the names
/// of the disks' files once the source is accepted, and may refuse before the first byte is copied.
///
/// # Errors
/// Why the conversion failed, with the stage it failed in, or why it was not accepted; the directory then holds waste.
pub fn convert<E: From<Failure>>(
    conversion: &Conversion<'_>,
    meter: &Meter,
    accept: impl FnOnce(&[String]) -> Result<(), E>,
) -> Result<Metadata, E> {
    let (source, report) = copy(conversion, meter, accept)?;
    Ok(finish(conversion, meter, Some(&source), (Step::Copy, report), None)?)
}

/// Converts in an attempt of a worker, beginning with the step after `done`, and seals the result.
///
/// # Errors
/// As [`convert`].
pub(super) fn attempt(
    conversion: &Conversion<'_>,
    meter: &Meter,
    markers: &Markers<'_>,
    done: Option<(Step, Metadata)>,
    work: &Path,
) -> Result<Metadata, Failure> {
    go_on(conversion, meter, markers, done, work).map_err(|failure| or_changed(failure, conversion.group))
}

/// What is wrong with an image that somebody writes to, or cuts short, says nothing of the image.
pub(super) fn or_changed(failure: Failure, group: &Group) -> Failure {
    if failure.class != Class::Permanent || failure.reason == Reason::Internal {
        return failure;
    }
    match group.check_unchanged() {
        Err(changed) if changed.reason == Reason::SourceChanged => Failure { stage: failure.stage, ..changed },
        _ => failure,
    }
}

fn go_on(
    conversion: &Conversion<'_>,
    meter: &Meter,
    markers: &Markers<'_>,
    done: Option<(Step, Metadata)>,
    work: &Path,
) -> Result<Metadata, Failure> {
    let report = if let Some((done, report)) = done {
        skip(conversion, meter, done, &report);
        finish(conversion, meter, None, (done, report), Some(markers))?
    } else {
        let (source, report) = copy::<Failure>(conversion, meter, |_| Ok(()))?;
        markers.leave(Step::Copy, &report)?;
        finish(conversion, meter, Some(&source), (Step::Copy, report), Some(markers))?
    };
    conversion.targets.map_or(Ok(()), Targets::seal)?;
    seal(markers, &report, work)?;
    Ok(report)
}

/// Counts the passes that an earlier attempt made.
fn skip(conversion: &Conversion<'_>, meter: &Meter, done: Step, report: &Metadata) {
    let all = report.disks.iter().map(|disk| disk.virtual_size_bytes).fold(0, u64::saturating_add);
    meter.set_total(all.saturating_mul(conversion.passes()));
    meter.copy.skip(all);
    if done >= Step::Digest {
        meter.copy.skip(all);
    }
}

/// Does the steps after `done`, which is the copy or a later step. `source` is what the output is compared with, if
/// that is asked for; `markers` are left after each step.
fn finish(
    conversion: &Conversion<'_>,
    meter: &Meter,
    source: Option<&Source>,
    (done, mut report): (Step, Metadata),
    markers: Option<&Markers<'_>>,
) -> Result<Metadata, Failure> {
    let leave = |step, report: &Metadata| markers.map_or(Ok(()), |markers| markers.leave(step, report));
    let mut compared = source.filter(|_| conversion.verify_full);
    let fixes = conversion.options.guest.fix != GuestFixMode::Off && conversion.programs.is_some();
    if done < Step::Fix && fixes {
        meter.enter(Stage::Verify);
        // A fixed guest differs from its source.
        if let Some(source) = compared.take() {
            verify(conversion, meter, Some(source), &report)?;
        }
        fix(conversion, meter, markers, &mut report)?;
        leave(Step::Fix, &report)?;
    }
    if done < Step::Verify {
        // What is tried takes long and changes nothing: an attempt that dies here goes on behind the fix.
        check_boot(conversion, meter, &mut report)?;
    }
    meter.enter(Stage::Verify);
    if done < Step::Verify {
        verify(conversion, meter, compared, &report)?;
        leave(Step::Verify, &report)?;
    }
    if done < Step::Digest && conversion.options.checksum {
        digest(conversion, meter, &mut report)?;
        leave(Step::Digest, &report)?;
    }
    conversion.group.check_unchanged()?;
    meter.enter(Stage::Report);
    report.end_time = Timestamp::now();
    report.stages = meter.stages();
    let duration = report.end_time.as_millisecond() - report.start_time.as_millisecond();
    report.duration_ms = u64::try_from(duration).unwrap_or(0);
    Ok(report)
}

/// Reads back the tables of every disk, and compares its guest with that of `source`, if there is one.
fn verify(
    conversion: &Conversion<'_>,
    meter: &Meter,
    source: Option<&Source>,
    report: &Metadata,
) -> Result<(), Failure> {
    for (n, disk) in report.disks.iter().enumerate() {
        let output = conversion.reopen(n, &disk.file)?;
        let compared = source.map(|source| &source.disks[n].image);
        disk::verify(&output, &disk.file, disk.format, compared, &meter.copy).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Computes the digest of every disk.
fn digest(conversion: &Conversion<'_>, meter: &Meter, report: &mut Metadata) -> Result<(), Failure> {
    for (n, disk) in report.disks.iter_mut().enumerate() {
        let output = conversion.reopen(n, &disk.file)?;
        let digest = disk::digest(&output, &disk.file, disk.format, disk.virtual_size_bytes, &meter.copy);
        disk.sha256 = Some(digest.map_err(|e| failed(&e))?);
    }
    Ok(())
}

fn failed(error: &Error) -> Failure {
    Failure::from(error).at_stage(Stage::Verify)
}

/// Makes an attempt's result final: writes metadata.json and syncs the name of the folder around it. Nothing else
/// writes it.
fn seal(markers: &Markers<'_>, report: &Metadata, work: &Path) -> Result<(), Failure> {
    markers.leave(Step::Seal, report)?;
    sync_directory(work)
}
