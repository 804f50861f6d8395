// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm inspect`: what an image is, from its metadata alone; on request, what the guest in it is.

mod guest;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper2kvm::conversion::guest::Guest;
use hyper2kvm::conversion::options::{ByteSize, DEFAULT_MAX_VIRTUAL_SIZE};
use hyper2kvm::conversion::report::Hardware;
use hyper2kvm::conversion::{Failure, printable, printable_json};
use hyper2kvm::disk::Error;
use hyper2kvm::disk::source::{self, Inspection, Limits};
use hyper2kvm::worker::by_hand::{self, Contained};
use hyper2kvm::worker::copy::usable_bytes;
use hyper2kvm::worker::group::{Group, Settings};
use hyper2kvm::worker::interrupt::Interrupts;
use hyper2kvm::worker::scratch::Scratch;
use serde::Serialize;

use crate::number::look_seconds;
use crate::refusal;

/// Most bytes that what is unpacked may take in the temporary directory during the inspection.
const MAX_SCRATCH: u64 = 4 << 30;

const EXAMPLES: &str = "Examples:
  hyper2kvm inspect web01.ova
  hyper2kvm inspect db.vmdk --json | jq .accepted
  hyper2kvm inspect web01.ova --guest

Exit codes: 0 it would be accepted; 2 wrong usage, or no such file; else the code of its reason (10 to 13).";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A disk image, an OVA, an OVF with its disks beside it, or a VMDK descriptor; one of these packed
    source: PathBuf,
    /// Refuse disks larger than this [default: 64 TiB]
    #[arg(long, value_name = "SIZE", hide_default_value = true, default_value_t = ByteSize(DEFAULT_MAX_VIRTUAL_SIZE))]
    max_virtual_size: ByteSize,
    /// Look at this deployment option of an OVF [default: the one that it marks as default]
    #[arg(long, value_name = "NAME")]
    ovf_option: Option<String>,
    /// Read the image in this process, without containment: for kernels and containers that allow none
    #[arg(long)]
    no_sandbox: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Look into the guest: its system, its drivers, and whether it boots from virtio
    #[arg(long)]
    guest: bool,
    /// Seconds that the look into the guest may take
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = look_seconds)]
    guest_limit: u64,
}

/// What is printed: the image, and the guest where it was asked for.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    image: Inspection,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Guest>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    // Where no temporary directory can be had, members that are compressed as a whole can't be looked into.
    let temporary = || Scratch::new(&std::env::temp_dir()).ok();
    match by_hand::child() {
        Some(child) => {
            let opened = child.open(&arguments.source, arguments.ovf_option.as_deref(), None, &[]);
            if let Ok(Contained { warning: Some(warning), .. }) = &opened {
                eprintln!("hyper2kvm: warning: {warning}");
            }
            print(arguments, &look(arguments, opened.map(|contained| contained.group), child.scratch()))
        }
        None if arguments.no_sandbox => {
            eprintln!("hyper2kvm: warning: --no-sandbox: the image is read by a process with all rights of this user");
            let scratch = temporary();
            let settings = Settings::beside(&arguments.source);
            let group = Group::open_beside(&arguments.source, arguments.ovf_option.as_deref());
            let group = group.map(|group| group.with(settings));
            print(arguments, &look(arguments, group, scratch.as_ref().map(Scratch::path)))
        }
        None => supervise(temporary().as_ref()),
    }
}

/// Lets a contained child look and print.
fn supervise(scratch: Option<&Scratch>) -> ExitCode {
    // The child is asked to end with this process, which then removes the scratch directory.
    let interrupts = Interrupts::catch(&[signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]).ok();
    match by_hand::run_contained(scratch, &[], interrupts)
        .and_then(|status| by_hand::died(status).map_or(Ok(status), Err))
    {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(failure) => {
            eprintln!("hyper2kvm: {failure}\n  {}", failure.suggestion);
            ExitCode::from(refusal::exit_code(&failure))
        }
    }
}

fn print(arguments: &Arguments, told: &Told) -> ExitCode {
    let mut out = io::stdout().lock();
    let printed = if arguments.json {
        let json = serde_json::to_string_pretty(told).map_err(io::Error::from);
        json.and_then(|json| writeln!(out, "{}", printable_json(&json)))
    } else {
        let guest = told.guest.as_ref();
        describe(&mut out, &arguments.source, &told.image)
            .and_then(|()| guest.map_or(Ok(()), |guest| guest::describe(&mut out, guest)))
    };
    match (printed, &told.image.refusal) {
        (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("hyper2kvm: cannot print: {error}");
            ExitCode::FAILURE
        }
        (_, Some(refusal)) => ExitCode::from(refusal::exit_code(refusal)),
        (_, None) => ExitCode::SUCCESS,
    }
}

fn look(arguments: &Arguments, group: Result<Group, Failure>, scratch: Option<&Path>) -> Told {
    let free = scratch.and_then(|scratch| usable_bytes(scratch).ok()).unwrap_or(0);
    let limits = Limits {
        max_virtual_size: arguments.max_virtual_size.0,
        max_scratch_bytes: MAX_SCRATCH.min(free),
        ovf_option: arguments.ovf_option.clone(),
    };
    let mut scratch = || {
        let scratch = scratch.ok_or_else(|| io::Error::other("there is no temporary directory"));
        scratch.and_then(tempfile::tempfile_in).map_err(|e| Error::writing("scratch file", 0, e))
    };
    let group = match group {
        Ok(group) => group,
        Err(refusal) => {
            let name = arguments.source.file_name().unwrap_or(arguments.source.as_os_str());
            let refusal = refusal::by_hand(refusal, &arguments.source);
            let mut image = Inspection::refused(name.to_string_lossy().into_owned(), refusal);
            let found = arguments.source.symlink_metadata().ok().filter(fs::Metadata::is_file);
            image.size_bytes = found.map(|found| found.len());
            return Told { image, guest: None };
        }
    };
    if !arguments.guest {
        let image = source::inspect(&group.primary, &group.siblings, &limits, &mut scratch);
        return Told { image: by_hand(image, arguments), guest: None };
    }
    // What is packed is unpacked as for a conversion.
    let opened = source::open(&group.primary, &group.siblings, &limits, &mut scratch);
    let guest = opened.as_ref().ok().map(|source| {
        let disks: Vec<_> = source.disks.iter().map(|disk| (disk.member.as_str(), &disk.image)).collect();
        let time = Duration::from_secs(arguments.guest_limit);
        hyper2kvm::guest::inspect(&disks, &hyper2kvm::guest::Limits { time, ..Default::default() })
    });
    Told { image: by_hand(Inspection::of(&group.primary, opened), arguments), guest }
}

fn by_hand(mut image: Inspection, arguments: &Arguments) -> Inspection {
    image.refusal = image.refusal.map(|refusal| refusal::by_hand(refusal, &arguments.source));
    image
}

fn describe(out: &mut impl Write, source: &Path, told: &Inspection) -> io::Result<()> {
    let mut row = |key: &str, value: &str| writeln!(out, "{key:<14} {}", printable(value));
    row("file", &source.to_string_lossy())?;
    if let Some(format) = &told.format {
        row("format", format)?;
    }
    if let Some(size) = told.size_bytes {
        row("size", &ByteSize(size).to_string())?;
    }
    for disk in &told.disks {
        let size = disk.virtual_size_bytes.map(|bytes| format!("{} virtual", ByteSize(bytes)));
        let size = size.unwrap_or_else(|| "size unknown until it is unpacked".to_owned());
        let data = disk.allocated_bytes.map(|bytes| format!(", {} of data", ByteSize(bytes))).unwrap_or_default();
        let compression = disk.compression;
        row("disk", &format!("{}: {}, {size}{data}, compression {compression}", disk.member, disk.format))?;
    }
    for option in &told.ovf_options {
        let texts = [Some(&option.name), option.label.as_ref(), option.description.as_ref()];
        let text = texts.into_iter().flatten().cloned().collect::<Vec<_>>().join(": ");
        row("option", &if option.chosen { format!("{text} (taken)") } else { text })?;
    }
    if told.members.len() > 1 {
        for member in &told.members {
            row("member", &format!("{} ({})", member.name, ByteSize(member.size_bytes)))?;
        }
    }
    if let Some(hardware) = &told.hardware {
        row("hardware", &summarise(hardware))?;
    }
    if told.digests_left > 0 {
        row("digests", &format!("{} of its manifest, which convert compares", told.digests_left))?;
    }
    for warning in &told.warnings {
        row("warning", warning)?;
    }
    match &told.refusal {
        None if told.looked_at_whole => row("accepted", "yes"),
        None => row("accepted", "as far as its beginning shows (convert reads the whole stream)"),
        Some(refusal) => {
            row("accepted", &format!("no: {}: {}", refusal.reason, refusal.message))?;
            if refusal.suggestion.is_empty() { Ok(()) } else { row("", &refusal.suggestion) }
        }
    }
}

fn summarise(hardware: &Hardware) -> String {
    let mut parts = Vec::new();
    if let Some(name) = &hardware.name {
        parts.push(name.clone());
    }
    if let Some(vcpus) = hardware.vcpus {
        parts.push(format!("{vcpus} vCPUs"));
    }
    if let Some(memory) = hardware.memory_mib {
        parts.push(format!("{} memory", ByteSize(memory << 20)));
    }
    if let Some(firmware) = &hardware.firmware {
        parts.push(firmware.clone());
    }
    for controller in &hardware.disk_controllers {
        parts.push(controller.kind.clone());
    }
    for nic in &hardware.nics {
        parts.push(format!("network card on {}", nic.network.as_deref().unwrap_or("no network")));
    }
    if let Some(guest) = &hardware.guest_os {
        parts.push(guest.clone());
    }
    parts.join(", ")
}
