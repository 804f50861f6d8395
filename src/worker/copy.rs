// SPDX-License-Identifier: Apache-2.0
//! The first step of a conversion, the same by hand and in a worker: inspect → plan → copy.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::conversion::Conversion;
use super::output::output_failure;
use super::progress::Meter;
use super::target::Targets;
use super::{contain, look, names};
use crate::conversion::options::ByteSize;
use crate::conversion::report::{DiskReport, Hardware, SourceReport};
use crate::conversion::{
    Compression, ConversionOptions, Failure, Metadata, OutputFormat, Phase, Reason, Remedy, Stage,
};
use crate::disk::manifest::{self, Expected, Outcome};
use crate::disk::source::{self, Limits, Source, SourceDisk};
use crate::disk::{self, CopyOptions, Error, Medium};
use crate::files::space::told_free;

/// Share of the output's file system that is kept free: its size divided by this number, at most [`MAX_RESERVE`].
const RESERVE_SHARE: u64 = 100;
const MAX_RESERVE: u64 = 64 << 20;

/// Copies every disk of the source. Returns the source with a report once every byte is on stable storage and the
/// digests that the source states are right. `accept` receives the names of the disks' files once the source is
/// accepted, and may refuse before the first byte is copied.
///
/// # Errors
/// Why the copy failed, with the stage it failed in, or why it was not accepted; the directory then holds waste.
pub(super) fn copy<E: From<Failure>>(
    conversion: &Conversion<'_>,
    meter: &Meter,
    accept: impl FnOnce(&[String]) -> Result<(), E>,
) -> Result<(Source, Metadata), E> {
    let start_time = Timestamp::now();
    meter.enter(Stage::Inspect);
    let group = conversion.group;
    let space = Space::of(conversion.directory)?;
    let limits = Limits {
        max_virtual_size: conversion.options.max_virtual_size,
        max_scratch_bytes: space.usable(),
        ovf_option: conversion.ovf_option.map(str::to_owned),
    };
    // Checking the tables of a large disk, or inflating a member, takes a while: both stop when the conversion is
    // cancelled.
    let cancellation = meter.copy.cancellation();
    let siblings: Vec<_> = group.siblings.iter().map(|region| region.until(cancellation)).collect();
    let primary = group.primary.until(cancellation);
    let disks: Vec<_> = group.disks.iter().map(|region| region.until(cancellation)).collect();
    let opened = source::open_machine(&primary, &disks, &siblings, &limits, &mut || scratch(conversion.directory));
    let source = opened.map_err(|error| {
        let failure = Failure::from(&error).at_stage(Stage::Inspect);
        match failure.needed_bytes {
            Some(needed) => space.lacking(needed, group.primary.name(), failure),
            None => failure,
        }
    })?;

    meter.enter(Stage::Plan);
    // What was unpacked takes room too.
    let space = Space::of(conversion.directory)?;
    let (unpacked, _) = meter.copy.progress();
    let names = names::disk_names(conversion.stem, source.disks.len(), conversion.options.out_format);
    accept(&names)?;
    plan(conversion, &source, &space, meter).map_err(|f| f.at_stage(Stage::Plan))?;
    let work: u64 = source.disks.iter().map(|d| d.image.work()).sum();
    // As far as they are known; each pass counts what it has to do when it begins.
    let all: u64 = source.disks.iter().map(|d| d.image.virtual_size()).sum();
    meter.set_total(unpacked + work + all * (conversion.passes() - 1));

    meter.enter(Stage::Copy);
    let disks = copy_disks(conversion, &source, names, meter).map_err(|failure| match failure.reason {
        Reason::OutputFull => {
            let most = source.disks.iter().map(|d| d.image.data_bytes().unwrap_or(d.image.most_bytes()));
            let bound = most.fold(0, u64::saturating_add);
            let written = allocated_bytes(conversion.directory);
            let needed = needed_after_all(written, meter.copy.progress().0 - unpacked, work, bound);
            space.lacking(needed, conversion.group.primary.name(), failure)
        }
        _ => failure,
    })?;
    let (machines, guest) = look::machines_and_guest(conversion, &source, &disks, &meter.copy);
    group.check_unchanged()?;
    if group.was_touched()? {
        meter.set_total(unpacked + work + all * conversion.passes());
        compare(conversion, &source, &disks, meter)?;
        group.check_unchanged()?;
    }
    let told = conversion.targets.into_iter().flat_map(Targets::warnings);
    let report = Metadata {
        contract_version: conversion.contract_version,
        id: conversion.id.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time,
        end_time: start_time,
        duration_ms: 0,
        source: SourceReport {
            name: group.primary.name().to_owned(),
            size_bytes: group.size_bytes(),
            format: source.format.clone(),
            sha256: None,
        },
        hardware: source.hardware.clone().map(|hardware| by_output(hardware, &disks)),
        machines,
        guest,
        disks,
        stages: Vec::new(),
        side_files: Vec::new(),
        warnings: source.warnings_after_copy().into_iter().chain(told).collect(),
        superseded_by: None,
        source_changed_at: None,
    };
    Ok((source, report))
}

/// Compares what was copied with what the source is now, after somebody changed its mode or owner during the copy, or
/// wrote to it and set its time back.
fn compare(conversion: &Conversion<'_>, source: &Source, disks: &[DiskReport], meter: &Meter) -> Result<(), Failure> {
    meter.enter(Stage::Verify);
    tracing::info!("mode, owner or links of the source changed during the copy: comparing its content");
    for (n, (disk, made)) in source.disks.iter().zip(disks).enumerate() {
        let output = conversion.reopen(n, &made.file)?;
        disk::verify(&output, &made.file, made.format, Some(&disk.image), &meter.copy).map_err(|error| {
            // This is not a fault of ours: the output is what was read.
            if error.reason != Reason::Internal {
                return Failure::from(&error).at_stage(Stage::Verify);
            }
            let message = format!("{}: was written to while it was copied", conversion.group.primary.name());
            Failure::new(Reason::SourceChanged, message).at_stage(Stage::Verify)
        })?;
    }
    Ok(())
}

/// Bounds what the copy may do: the largest offset of a file, the space on the volume or in the targets.
fn plan(conversion: &Conversion<'_>, source: &Source, space: &Space, meter: &Meter) -> Result<(), Failure> {
    let largest = source.disks.iter().map(|d| d.image.most_bytes()).max().unwrap_or(0);
    let of_programs = conversion.programs.map_or(0, |_| contain::FILE_OF_PROGRAM);
    contain::limit_file_size(largest.max(of_programs))
        .map_err(|e| Failure::new(Reason::Internal, format!("cannot limit the output's size: {e}")))?;
    if let Some(targets) = conversion.targets {
        // Disks whose size only their end tells are unpacked once more: a target that is too small is never written to.
        let measured = source.disks.iter().map(|disk| disk.image.measure(&meter.copy));
        let sizes = measured.collect::<Result<Vec<_>, _>>().map_err(|e| Failure::from(&e))?;
        return targets.check(conversion.group.primary.name(), &sizes);
    }
    let needed = needed_bytes(conversion.options, source);
    if needed > space.usable() {
        let name = conversion.group.primary.name();
        let message =
            format!("{name}: needs {} on the output volume, {} are free", ByteSize(needed), ByteSize(space.free));
        let failure = Failure::in_phase(Reason::OutputFull, Phase::OutputDirectoryCreation, message);
        return Err(space.lacking(needed, name, failure));
    }
    Ok(())
}

/// Room on the output's volume, in bytes.
struct Space {
    free: u64,
    /// Size of the whole volume.
    size: u64,
    reserve: u64,
}

impl Space {
    fn of(directory: &Path) -> Result<Self, Failure> {
        let stat = rustix::fs::statvfs(directory).map_err(|e| output_failure(directory, &e.into()))?;
        Ok(Self {
            // If the file system does not report it, the copy will find out.
            free: told_free(&stat).unwrap_or(u64::MAX),
            size: if stat.f_blocks == 0 { u64::MAX } else { stat.f_blocks.saturating_mul(stat.f_frsize) },
            reserve: (stat.f_blocks.saturating_mul(stat.f_frsize) / RESERVE_SHARE).min(MAX_RESERVE),
        })
    }

    /// The failure of an output that needs so many bytes: one that waits for room, unless the output would not fit on
    /// the empty volume.
    fn lacking(&self, needed: u64, name: &str, full: Failure) -> Failure {
        let needed_bytes = Some(needed.saturating_add(self.reserve));
        if needed <= self.size {
            return Failure { needed_bytes, ..full };
        }
        let message = format!(
            "{name}: needs {} on the output volume, which has {} in all",
            ByteSize(needed),
            ByteSize(self.size)
        );
        let failure = Failure::in_phase(Reason::TooLarge, Phase::OutputDirectoryCreation, message);
        Failure { needed_bytes, ..failure }.with_remedy(Remedy::LargerVolume)
    }

    const fn usable(&self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }
}

/// Bytes on the volume of `directory` that a conversion or inspection may use: what is free, without the reserve.
///
/// # Errors
/// The system's error.
pub fn usable_bytes(directory: &Path) -> Result<u64, Failure> {
    Space::of(directory).map(|space| space.usable())
}

/// A file without a name on the output's volume: it is gone when this process ends, in whatever way.
pub(super) fn scratch(directory: &Path) -> Result<File, Error> {
    tempfile::tempfile_in(directory).map_err(|e| Error::writing("scratch file", 0, e))
}

/// Bytes that the output takes at least: exact where the source's tables show its data and nothing is compressed,
/// otherwise a lower bound.
fn needed_bytes(options: &ConversionOptions, source: &Source) -> u64 {
    let compressed = options.out_format == OutputFormat::Qcow2 && options.compress != Compression::None;
    if compressed {
        return 0;
    }
    source.disks.iter().map(|d| d.image.data_bytes().unwrap_or(0)).sum()
}

/// What a copy that filled the volume would have needed: the bytes written per guest byte copied, for all guest bytes.
/// At most `bound` (the source's data uncompressed), and at least what was written.
fn needed_after_all(written: u64, copied: u64, all: u64, bound: u64) -> u64 {
    let in_all = u128::from(written) * u128::from(all) / u128::from(copied.max(1));
    u64::try_from(in_all).unwrap_or(u64::MAX).min(bound).max(written)
}

/// What the files of a directory take on their volume; 0 where it can't be read.
fn allocated_bytes(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    // st_blocks counts 512 bytes each, whatever the file system's block (stat(2)).
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// Options of a copy that computes `digests` of what it reads.
fn copy_options(conversion: &Conversion<'_>, digests: Vec<Expected>) -> CopyOptions {
    let options = conversion.options;
    CopyOptions {
        format: options.out_format,
        compress: options.compress,
        level: options.compress_level,
        threads: conversion.threads,
        medium: Medium::default(),
        buffered: false,
        digests,
    }
}

/// Copies every disk. The digests of what is copied are computed during the copy; those of other members are computed
/// beside it. Whichever of the two fails first ends the other.
fn copy_disks(
    conversion: &Conversion<'_>,
    source: &Source,
    names: Vec<String>,
    meter: &Meter,
) -> Result<Vec<DiskReport>, Failure> {
    let digests = manifest::Control::default();
    let is_copied =
        |one: &Expected| source.disks.iter().any(|d| d.image.regions.iter().any(|r| r.is_same(&one.region)));
    let (on_the_way, others): (Vec<_>, Vec<_>) = source.digests.iter().cloned().partition(is_copied);
    thread::scope(|scope| {
        let verifying = scope.spawn(|| {
            let verified = manifest::verify(&others, &digests);
            if verified.is_err() {
                meter.copy.cancel();
            }
            verified
        });
        let options = copy_options(conversion, on_the_way);
        let disks = source.disks.iter().zip(names).enumerate();
        let made = disks.map(|(n, (disk, name))| copy_disk(conversion, (n, disk), name, &options, meter));
        let copied = made.collect::<Result<Vec<_>, _>>();
        if copied.is_err() {
            digests.cancel.store(true, Ordering::Relaxed);
        }
        while !verifying.is_finished() {
            if meter.is_interrupted() {
                digests.cancel.store(true, Ordering::Relaxed);
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        let verified = verifying.join().unwrap_or_else(|panic| resume_unwind(panic));
        // If a digest differs, it is the cause of a copy that ended early.
        match verified.map_err(|e| conversion.blame(&e, Stage::Verify))? {
            Outcome::Cancelled if copied.is_ok() => {
                Err(Failure::new(Reason::Disrupted, "ended while digests were checked"))
            }
            _ => copied,
        }
    })
}

fn copy_disk(
    conversion: &Conversion<'_>,
    (n, disk): (usize, &SourceDisk),
    name: String,
    options: &CopyOptions,
    meter: &Meter,
) -> Result<DiskReport, Failure> {
    let image = &disk.image;
    let (output, medium) = conversion.create(n, &name)?;
    let options = &CopyOptions { medium, ..options.clone() };
    let copied = disk::copy(image, &output, &name, options, &meter.copy).map_err(|e| {
        // The manifest's digests are computed during the copy, but they verify the source.
        let stage = if e.reason == Reason::ManifestMismatch { Stage::Verify } else { Stage::Copy };
        let failure = conversion.blame(&e, stage);
        conversion.targets.map_or(failure.clone(), |targets| targets.blame(n, &e, failure))
    })?;
    if let Some(targets) = conversion.targets {
        targets.copied(n, &copied);
    }
    Ok(DiskReport {
        file: name,
        target: conversion.targets.map(|targets| targets.named(n)),
        format: options.format,
        virtual_size_bytes: image.virtual_size(),
        allocated_bytes: copied.allocated,
        sha256: None,
        source_member: disk.member.clone(),
    })
}

/// The OVF's hardware, with controllers that name the output files instead of the members.
fn by_output(mut hardware: Hardware, disks: &[DiskReport]) -> Hardware {
    for controller in &mut hardware.disk_controllers {
        for member in &mut controller.disks {
            if let Some(disk) = disks.iter().find(|d| d.source_member == *member) {
                member.clone_from(&disk.file);
            }
        }
    }
    hardware
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_filled_the_volume_tells_what_all_of_it_would_have_needed() {
        for (written, copied, bound, needed) in
            [(100, 250, 1000, 400), (100, 250, 300, 300), (100, 0, 700, 700), (100, 1000, 60, 100), (0, 0, 0, 0)]
        {
            assert_eq!(needed_after_all(written, copied, 1000, bound), needed);
        }
    }
}
