// SPDX-License-Identifier: Apache-2.0
//! The plan step: what a conversion would make, from headers and tables alone, before there is a target.

use std::path::Path;

use super::copy::{scratch, usable_bytes};
use super::group::Group;
use super::look::{LOOK_TIME, look};
use super::names::disk_names;
use super::output::output_failure;
use super::progress::Meter;
use super::steps;
use crate::conversion::contract::PLAN_FILE;
use crate::conversion::guest::Answer;
use crate::conversion::machine::Machine;
use crate::conversion::plan::{Plan, PlannedDisk};
use crate::conversion::report::DiskReport;
use crate::conversion::{ConversionOptions, Failure, Phase, Reason, Stage, chain};
use crate::disk::first_sectors;
use crate::disk::source::{self, Limits, Source};
use crate::files::store::{self, StoreError};

/// Writes plan.json into the directory `work`.
///
/// # Errors
/// Why the source is refused, with the stage, or the system's error.
pub(super) fn plan(
    group: &Group,
    stem: &str,
    options: &ConversionOptions,
    work: &Path,
    meter: &Meter,
) -> Result<(), Failure> {
    let source = open(group, options, work, meter)
        .map_err(|failure| steps::or_changed(failure.at_stage(Stage::Inspect), group))?;
    meter.enter(Stage::Plan);
    let measured = source.disks.iter().map(|disk| disk.image.measure(&meter.copy));
    let sizes = measured.collect::<Result<Vec<_>, _>>().map_err(|e| Failure::from(&e).at_stage(Stage::Plan))?;
    group.check_unchanged()?;
    let plan = describe(&source, stem, options, &sizes);
    let json = plan.to_json().map_err(|error| {
        let message = format!("{}: can't be planned: {}", group.primary.name(), chain(&error));
        Failure::in_phase(Reason::TooLarge, Phase::ArgumentPreparation, message).at_stage(Stage::Plan)
    })?;
    store::write(&work.join(PLAN_FILE), json.as_bytes()).map_err(|error| match error {
        StoreError::Write { source, .. } => output_failure(work, &source),
        error => Failure::new(Reason::Internal, error.to_string()),
    })?;
    tracing::info!(disks = plan.disks.len(), machines = plan.machines.len(), "planned");
    Ok(())
}

/// Opens the source. What is packed and large is unpacked only where its beginning shows no size.
fn open(group: &Group, options: &ConversionOptions, work: &Path, meter: &Meter) -> Result<Source, Failure> {
    meter.enter(Stage::Inspect);
    let limits =
        Limits { max_virtual_size: options.max_virtual_size, max_scratch_bytes: usable_bytes(work)?, ovf_option: None };
    let cancellation = meter.copy.cancellation();
    let siblings: Vec<_> = group.siblings.iter().map(|region| region.until(cancellation)).collect();
    let primary = group.primary.until(cancellation);
    let disks: Vec<_> = group.disks.iter().map(|region| region.until(cancellation)).collect();
    let mut scratch = || scratch(work);
    let looked = source::look_at_machine(&primary, &disks, &siblings, &limits, &mut scratch);
    let opened = match looked {
        Ok(source) if source.disks.len() <= disks.len() => {
            source::open_machine(&primary, &disks, &siblings, &limits, &mut scratch)
        }
        looked => looked,
    };
    opened.map_err(|e| Failure::from(&e))
}

fn describe(source: &Source, stem: &str, options: &ConversionOptions, sizes: &[u64]) -> Plan {
    let names = disk_names(stem, source.disks.len(), options.out_format);
    let report = |(n, file): (usize, String)| DiskReport {
        file,
        target: None,
        format: options.out_format,
        virtual_size_bytes: sizes[n],
        allocated_bytes: 0,
        sha256: None,
        source_member: source.disks[n].member.clone(),
    };
    let reports: Vec<_> = names.into_iter().enumerate().map(report).collect();
    let unpacked = |_| Err("it is packed, and not unpacked for a plan".to_owned());
    let (machines, guest) = look(source, &reports, LOOK_TIME, unpacked);
    let loader = guest.and_then(|guest| match guest.firmware.fallback_loader {
        Answer::Yes => Some(true),
        Answer::No => Some(false),
        Answer::Unknown => None,
    });
    let disks = source.disks.iter().zip(&reports).map(|(disk, report)| {
        let found = first_sectors::look(&disk.image).unwrap_or_default();
        PlannedDisk {
            // Of an image whose beginning alone was looked at nothing is known to be data.
            data_bytes: disk.image.data_bytes().filter(|&bytes| bytes > 0),
            partition_table: first_sectors::table(&disk.image).ok().flatten(),
            firmware: found.firmware(),
            fallback_loader: loader.filter(|_| found.efi),
            ..in_machine(report, &machines)
        }
    });
    Plan { disks: disks.collect(), machines: machines.clone(), doubts: source.warnings.clone() }
}

/// What a disk is in its machine.
fn in_machine(report: &DiskReport, machines: &[Machine]) -> PlannedDisk {
    let disk = machines.iter().flat_map(|machine| &machine.disks).find(|disk| disk.file == report.file);
    let address = disk.and_then(|disk| disk.address.map(|n| format!("{}:{n}", disk.controller_address.unwrap_or(0))));
    PlannedDisk {
        file: report.file.clone(),
        // Members in folders are known by their base names.
        member: report.source_member.rsplit('/').next().unwrap_or_default().to_owned(),
        virtual_size_bytes: report.virtual_size_bytes,
        is_estimate: false,
        data_bytes: None,
        controller: disk.and_then(|disk| disk.controller),
        address,
        partition_table: None,
        firmware: None,
        fallback_loader: None,
        boot: disk.is_some_and(|disk| disk.boot_order == Some(1)),
    }
}
