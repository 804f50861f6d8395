// SPDX-License-Identifier: Apache-2.0
//! Makes the guest on converted disks ready for virtio, where that is asked for.
//!
//! ```text
//!  what is known ─▶ need ─┬▶ settled or refused                     no appliance starts
//!                         └▶ overlays ─▶ appliance ─▶ verdict ─▶ withdraw copied.json ─▶ merge ─▶ sync ─▶ fixed.json
//! ```
//!
//! A merge can't be undone and is not atomic. So the copy's marker is withdrawn before it, and an attempt that finds the
//! disks between begins anew from the source: what is published is the disk as converted, or as fixed.

mod drivers;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use super::conversion::Conversion;
use super::copy::usable_bytes;
use super::marker::Markers;
use super::progress::Meter;
use super::qemu::{FixError, Overlays, Programs, serial};
use crate::appliance::protocol::{self, DriverFile, Job, JobDisk, Limits};
use crate::conversion::guest::Family;
use crate::conversion::guest::fix::{GuestFix, Outcome};
use crate::conversion::guest::need::{Need, need};
use crate::conversion::guest::report::{FixReport, GuestReport};
use crate::conversion::machine::{CardModel, DiskBus, Machine, decide};
use crate::conversion::options::{GuestFixMode, GuestNames};
use crate::conversion::report::DiskReport;
use crate::conversion::{Failure, Metadata, Reason, Remedy, Stage};

/// How the guest ended, where the disks are whole.
enum Ended {
    Told(GuestFix),
    Refused(Failure),
}

/// Fixes the guest, and reports that in `report`: outcome, devices, sizes of the disks.
///
/// # Errors
/// Why it was not fixed although it must be; or that the attempt was told to end, or that the disks are not whole any
/// more.
pub(super) fn fix(
    conversion: &Conversion<'_>,
    meter: &Meter,
    markers: Option<&Markers<'_>>,
    report: &mut Metadata,
) -> Result<(), Failure> {
    let (Some(programs), GuestFixMode::BestEffort | GuestFixMode::Require) =
        (conversion.programs, conversion.options.guest.fix)
    else {
        return Ok(());
    };
    meter.enter(Stage::Fix);
    let start = Instant::now();
    let ended = match need(report.guest.as_ref(), &conversion.options.guest) {
        Need::Settled(outcome) => Ended::Told(GuestFix { outcome, ..GuestFix::default() }),
        Need::Refused(reason, message) => Ended::Refused(Failure::new(reason, message)),
        Need::Appliance => by_appliance(conversion, meter, markers, programs, report)?,
    };
    let (fix, failure) = match ended {
        Ended::Told(fix) => {
            let failure = fix.reason.map(|reason| {
                let message = fix.message.clone().unwrap_or_else(|| "the appliance does not say why".to_owned());
                Failure::new(reason.into(), message)
            });
            (fix, failure)
        }
        Ended::Refused(failure) => (GuestFix::default(), Some(failure)),
    };
    let failure = failure.map(|failure| failure.at_stage(Stage::Fix));
    tracing::info!(
        outcome = %fix.outcome,
        reason = failure.as_ref().map(|failure| failure.reason.to_string()),
        ms = start.elapsed().as_millis(),
        "looked after the guest"
    );
    if conversion.options.guest.fix == GuestFixMode::Require
        && let Some(failure) = failure
    {
        return Err(failure);
    }
    let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    note(report, &fix, failure, duration_ms);
    Ok(())
}

/// Runs the appliance, and merges what it changed.
fn by_appliance(
    conversion: &Conversion<'_>,
    meter: &Meter,
    markers: Option<&Markers<'_>>,
    programs: &Programs,
    report: &mut Metadata,
) -> Result<Ended, Failure> {
    let refused = |error: FixError| match error {
        FixError::Interrupted => Err(Failure::from(error)),
        error => Ok(Ended::Refused(error.into())),
    };
    let disks = in_order(report);
    let mut job = job(report, disks.len(), conversion.options.guest.names);
    let drivers = match bring_drivers(programs, report, &mut job) {
        Ok(drivers) => drivers,
        Err(failure) => return Ok(Ended::Refused(failure)),
    };
    let overlays = match Overlays::make(programs, conversion.directory, disks) {
        Ok(overlays) => overlays,
        Err(error) => return refused(error),
    };
    let fix = match overlays.run(&job, &drivers, || meter.is_interrupted()) {
        Ok(fix) => fix,
        Err(error) => return refused(error),
    };
    if fix.outcome != Outcome::Fixed {
        return Ok(Ended::Told(fix));
    }
    if !has_room(conversion, &overlays, report)? {
        return refused(FixError::NoRoom);
    }
    let changes = match overlays.changes() {
        Ok(changes) => changes,
        Err(error) => return refused(error),
    };
    conversion.group.check_unchanged()?;
    markers.map_or(Ok(()), Markers::withdraw_copy)?;
    let failed = |error: &dyn std::error::Error| {
        let message = format!("the disks can't be changed: {}", crate::conversion::chain(error));
        Failure::new(Reason::OutputIO, message).at_stage(Stage::Fix)
    };
    overlays.merge().map_err(|e| failed(&e))?;
    for (disk, overlay, changes) in changes {
        let targets = conversion.targets.expect("a disk in a target came from them");
        targets.merge(place(report, disk), &overlay, &changes).map_err(|e| failed(&e))?;
    }
    drop(overlays);
    for (n, disk) in report.disks.iter_mut().enumerate() {
        let allocated = match conversion.targets {
            Some(targets) => targets.allocated(n),
            None => fs::metadata(conversion.directory.join(&disk.file)).ok().map(|found| found.blocks() * 512),
        };
        disk.allocated_bytes = allocated.unwrap_or(disk.allocated_bytes);
    }
    Ok(Ended::Told(fix))
}

/// Chooses the drivers of a guest of Windows, names them in the job, and returns their files.
fn bring_drivers(programs: &Programs, report: &Metadata, job: &mut Job) -> Result<Vec<DriverFile>, Failure> {
    let guest = report.guest.as_ref().filter(|guest| guest.family == Family::Windows);
    let (Some(guest), Some(virtio_win)) = (guest, &programs.virtio_win) else { return Ok(Vec::new()) };
    let Some(os) = &guest.os else {
        let message = "its registry can't be read, so its version of Windows is not known";
        return Err(Failure::new(Reason::GuestUnsupported, message));
    };
    let chosen = drivers::choose(virtio_win, os)
        .map_err(|error| Failure::new(Reason::GuestDriversMissing, crate::conversion::chain(&error)))?;
    job.drivers = chosen.drivers;
    Ok(chosen.files)
}

/// The number of a disk among all.
fn place(report: &Metadata, disk: &DiskReport) -> usize {
    report.disks.iter().position(|one| one.file == disk.file).expect("it is one of them")
}

/// Whether the changes fit where the disks are.
fn has_room(conversion: &Conversion<'_>, overlays: &Overlays<'_>, report: &Metadata) -> Result<bool, Failure> {
    let Some(targets) = conversion.targets else {
        let all = overlays.bytes().map(|(_, bytes)| bytes).fold(0, u64::saturating_add);
        return Ok(usable_bytes(conversion.directory)? >= all);
    };
    let fits = |(disk, bytes)| targets.room(place(report, disk)).is_none_or(|room| room >= bytes);
    Ok(overlays.bytes().all(fits))
}

/// The disks in the order of the machine.
fn in_order(report: &Metadata) -> Vec<&DiskReport> {
    let of_machine = report.machines.first().map_or(&[][..], |machine| &machine.disks);
    let place = |disk: &DiskReport| of_machine.iter().position(|one| one.file == disk.file).unwrap_or(usize::MAX);
    let mut disks: Vec<&DiskReport> = report.disks.iter().collect();
    disks.sort_by_key(|disk| place(disk));
    disks
}

fn job(report: &Metadata, disks: usize, names: GuestNames) -> Job {
    let cards = report.machines.first().map_or(&[][..], |machine| &machine.cards);
    Job {
        version: protocol::VERSION,
        disks: (0..disks).map(|n| JobDisk { serial: serial(n) }).collect(),
        guest_names: match names {
            GuestNames::Keep => protocol::GuestNames::Keep,
            GuestNames::Leave => protocol::GuestNames::Leave,
        },
        cards: cards.iter().map(|card| protocol::Card { mac: card.mac.clone() }).collect(),
        drivers: Vec::new(),
        limits: Limits::default(),
    }
}

/// The failure in one sentence, with what helps where its cause is known.
fn with_help(mut failure: Failure) -> Failure {
    let mut help = failure.suggestion.chars();
    if let (Some(_), Some(first)) = (Remedy::of_text(&failure.suggestion), help.next()) {
        failure.message = format!("{}; {}{}", failure.message, first.to_lowercase(), help.as_str());
    }
    failure
}

/// Writes what became of the guest into the report, and gives its machine the devices that follow.
fn note(report: &mut Metadata, fix: &GuestFix, failure: Option<Failure>, duration_ms: u64) {
    let failure = failure.map(with_help);
    let before = report.guest.clone().unwrap_or_default();
    let mut after = before.clone();
    after.take_fix(fix);
    if let Some(failure) = &failure {
        report.warnings.push(format!("the guest was not fixed: {failure}"));
    }
    after.fix = Some(FixReport {
        engine: "native".to_owned(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        outcome: fix.outcome,
        reason: failure.as_ref().map(|failure| failure.reason),
        message: failure.map(|failure| failure.message),
        changes: fix.changes.clone(),
        left: fix.left.clone(),
        bus: DiskBus::default(),
        nic: CardModel::default(),
        duration_ms,
    });
    if let [machine] = &mut report.machines[..] {
        choose_devices(machine, &before, &after);
    }
    if let (Some(told), Some(machine)) = (&mut after.fix, report.machines.first()) {
        told.bus = machine.disks.first().map(|disk| disk.bus).unwrap_or_default();
        told.nic = machine.cards.first().map(|card| card.device).unwrap_or_default();
    }
    report.guest = Some(after.bounded());
}

/// Chooses the devices anew, and replaces the doubts that belonged to the guest as it was.
fn choose_devices(machine: &mut Machine, before: &GuestReport, after: &GuestReport) {
    let told = |guest: &GuestReport| {
        let mut machine = Machine { doubts: Vec::new(), ..machine.clone() };
        decide(&mut machine, guest.drivers());
        for sentence in guest.sentences() {
            machine.doubt(sentence);
        }
        machine.bounded()
    };
    let (stale, fresh) = (told(before).doubts, told(after));
    let kept: Vec<String> = machine.doubts.iter().filter(|doubt| !stale.contains(doubt)).cloned().collect();
    let doubts = kept.into_iter().chain(fresh.doubts.iter().cloned()).collect();
    *machine = Machine { doubts, ..fresh }.bounded();
}

#[cfg(test)]
mod tests;
