// SPDX-License-Identifier: Apache-2.0
//! Conversions and inspections by hand, contained as an attempt is.
//!
//! ```text
//!  parent                                   child: the same program with the same arguments
//!  makes a scratch directory, starts ──────▶ opens the source's directory; restricts itself to reading that and writing
//!  waits, hands signals on                   the scratch directory; opens the source; restricts itself to the scratch
//!                                            directory; parses and converts into it; leaves report.json
//!  reads report.json, which is not trusted ◀─ ends
//!  moves the disks to their places
//! ```
//!
//! The parent never reads a byte of an image.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::contain::{self, Enforcement};
use super::group::{Group, Settings};
use super::interrupt::Interrupts;
use super::names::disk_names;
use super::output::write_synced;
use super::qemu::Programs;
use super::scratch::Scratch;
use super::target::{Target, Targets};
use crate::conversion::contract::{MAX_MARKER_BYTES, variable};
use crate::conversion::target::DiskTarget;
use crate::conversion::{Class, Failure, Metadata, OutputFormat, Phase, Reason, Remedy};
use crate::files::store;

/// Variable by which a child is told that it is one.
const CONTAINED: &str = "HYPER2KVM_CONTAINED";
/// The child's report in the scratch directory.
const REPORT: &str = "report.json";

/// What a child is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Child {
    parent: i32,
    /// The only directory that it may write to, if any.
    scratch: Option<PathBuf>,
    /// Descriptors of the devices that it may write to.
    #[serde(default)]
    devices: Vec<i32>,
}

/// What this process is, as its environment says: a child of [`run_contained`], or `None`.
#[must_use]
pub fn child() -> Option<Child> {
    serde_json::from_str(&env::var(CONTAINED).ok()?).ok()
}

/// Runs this program again with the same arguments, as a contained child that may write to `scratch` and `devices`
/// alone, and waits for its end. What the child prints goes where this process prints.
///
/// # Errors
/// `Internal` where it can't be started.
pub fn run_contained(
    scratch: Option<&Scratch>,
    devices: &[Target],
    interrupts: Option<Interrupts>,
) -> Result<ExitStatus, Failure> {
    let cannot = |e: io::Error| {
        let message = format!("cannot start the contained process that reads the image: {e}");
        Failure::in_phase(Reason::Internal, Phase::Initialization, message).with_remedy(Remedy::RunUncontained)
    };
    if let Some(scratch) = scratch {
        scratch.inherit().map_err(cannot)?;
    }
    let devices = devices.iter().filter_map(|target| target.as_device()).map(|(device, _)| device);
    for device in devices.clone() {
        fcntl_setfd(device, FdFlags::empty()).map_err(|e| cannot(e.into()))?;
    }
    let told = Child {
        parent: getpid().as_raw_nonzero().get(),
        scratch: scratch.map(|scratch| scratch.path().to_owned()),
        devices: devices.map(AsRawFd::as_raw_fd).collect(),
    };
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "hyper2kvm".into());
    let told = serde_json::to_string(&told).expect("a number and a path of ours serialise");
    // A program that was replaced or removed meanwhile is still there under the other name.
    let program = env::current_exe().ok().filter(|program| program.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut child = Command::new(program).arg0(name).args(arguments).env(CONTAINED, told).spawn().map_err(cannot)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(interrupts), Some(pid)) = (interrupts, pid)
        && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
    {
        interrupts.hand_on(process);
    }
    child.wait().map_err(cannot)
}

/// The failure of a child that a signal ended; `None` where it ended by itself, and has told why.
#[must_use]
pub fn died(status: ExitStatus) -> Option<Failure> {
    let signal = status.signal()?;
    let reason = if signal == Signal::KILL.as_raw() { Reason::Killed } else { Reason::Internal };
    Some(Failure::new(reason, format!("the process that read the image was ended by signal {signal}")))
}

/// A process that may no longer read but what it has opened.
#[derive(Debug)]
pub struct Contained {
    /// The devices that it writes to, if these are what it was told.
    pub targets: Option<Targets>,
    /// The source and what it names.
    pub group: Group,
    /// What a person should know of the containment.
    pub warning: Option<&'static str>,
}

impl Child {
    /// The directory to write to.
    #[must_use]
    pub fn scratch(&self) -> Option<&Path> {
        self.scratch.as_deref()
    }

    /// Restricts this process in two steps, and opens `source` between them, with the files of an OVF's deployment
    /// option where it names them. `programs` may still be run. Errors and reports call its devices `shown`.
    ///
    /// # Errors
    /// Why it can't be restricted, as [`Target::device_of_parent`], or as [`Group::open_beside`].
    pub fn open(
        &self,
        source: &Path,
        option: Option<&str>,
        programs: Option<&Programs>,
        shown: &[PathBuf],
    ) -> Result<Contained, Failure> {
        self.tie_to_parent()?;
        let executable = programs.map(|programs| programs.open(shown.iter().map(PathBuf::as_path)));
        let inherited = |device: &i32| PathBuf::from(format!("/proc/self/fd/{device}"));
        let devices = self.devices.iter().zip(shown);
        let devices = devices.map(|(device, shown)| Target::device_of_parent(&inherited(device), shown));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        let parent = source.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let readable = directory(parent).ok();
        let writable = self.scratch.as_deref().map(directory).transpose();
        let writable = writable.map_err(|e| super::output::output_failure(Path::new("scratch directory"), &e))?;
        let uncontained = |failure: Failure| failure.with_remedy(Remedy::RunUncontained);
        contain::limit_process()
            .map_err(|e| uncontained(Failure::new(Reason::Internal, format!("cannot limit the process: {e}"))))?;
        let required = env::var(variable::REQUIRE_LANDLOCK).as_deref() == Ok("1");
        let readable = readable.as_ref().map(AsFd::as_fd);
        let writable: Vec<_> = writable.iter().map(AsFd::as_fd).collect();
        // They may lie beside the source's directory. They are opened here, and read later.
        let settings = Settings::beside(source);
        let enforced = contain::restrict(readable, &writable, executable.as_ref(), required).map_err(uncontained)?;
        let group = Group::open_beside(source, option)?.with(settings);
        contain::restrict(None, &writable, executable.as_ref(), required).map_err(uncontained)?;
        let warning = (enforced == Enforcement::None)
            .then_some("this kernel has no Landlock: the image is read by a process with this user's rights");
        let targets = (!devices.is_empty()).then(|| Targets::of_devices(devices));
        Ok(Contained { targets, group, warning })
    }

    /// This process ends with its parent.
    fn tie_to_parent(&self) -> Result<(), Failure> {
        let internal = |e: rustix::io::Errno| Failure::new(Reason::Internal, format!("cannot tie to the parent: {e}"));
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal)?;
        // The parent may have died before the line above.
        if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != self.parent) {
            return Err(Failure::new(Reason::Disrupted, "the process that started this one is gone"));
        }
        Ok(())
    }

    /// Leaves the report for the parent.
    ///
    /// # Errors
    /// The system's error in the scratch directory.
    pub fn leave(&self, report: &Metadata) -> Result<(), Failure> {
        let scratch = self.scratch.as_deref().unwrap_or(Path::new("."));
        write_synced(scratch, REPORT, report)
    }
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The report of a child that ended well. A child that an image took over may have written anything: its disks must have
/// the names that the conversion gives them, and lie in the scratch directory, or else in `devices` in their order.
///
/// # Errors
/// `Internal` where there is none, or one that can't be true.
pub fn take_report(
    scratch: &Scratch,
    stem: &str,
    format: OutputFormat,
    devices: &[PathBuf],
) -> Result<Metadata, Failure> {
    let refuse = |what: &str| {
        let failure =
            Failure::in_phase(Reason::Internal, Phase::Completion, format!("the contained process left {what}"));
        Failure { class: Class::Transient, ..failure }
    };
    let report: Metadata = store::read_json(scratch.path(), REPORT, MAX_MARKER_BYTES)
        .map_err(|e| refuse(&format!("a report that can't be read: {e}")))?
        .ok_or_else(|| refuse("no report"))?;
    let names = disk_names(stem, report.disks.len(), format);
    let is_ours = report.disks.iter().map(|disk| &disk.file).eq(&names) && !names.is_empty();
    let is_file = |name: &String| fs::symlink_metadata(scratch.path().join(name)).is_ok_and(|m| m.is_file());
    let are_there = if devices.is_empty() {
        names.iter().all(is_file)
    } else {
        report.disks.iter().map(|disk| disk.target.clone()).eq(devices.iter().cloned().map(DiskTarget::Path).map(Some))
    };
    if is_ours && are_there { Ok(report) } else { Err(refuse("a report of other disks than it was to write")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(file: &str, make: impl FnOnce(&Path)) -> Result<String, Reason> {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(place.path()).unwrap();
        make(scratch.path());
        let report = json!({
            "contractVersion": 1, "toolVersion": "0.1.0", "startTime": "2026-01-17T09:45:00Z",
            "endTime": "2026-01-17T09:45:01Z", "durationMs": 1000,
            "source": {"name": "a.vmdk", "sizeBytes": 1, "format": "vmdk"},
            "disks": [{
                "file": file, "format": "qcow2", "virtualSizeBytes": 1, "allocatedBytes": 1, "sourceMember": "a.vmdk",
            }],
            "warnings": [],
        });
        fs::write(scratch.path().join(REPORT), report.to_string()).unwrap();
        let taken = take_report(&scratch, "a", OutputFormat::Qcow2, &[]);
        taken.map(|report| report.disks[0].file.clone()).map_err(|failure| failure.reason)
    }

    #[test]
    fn a_child_that_an_image_took_over_chooses_no_file() {
        let disk = |scratch: &Path| fs::write(scratch.join("a.qcow2"), "QFI").unwrap();
        assert_eq!(taken("a.qcow2", disk), Ok("a.qcow2".to_owned()));
        for file in ["../a.qcow2", "/etc/passwd", "b.qcow2", "", "."] {
            assert_eq!(taken(file, disk), Err(Reason::Internal), "{file}");
        }
        assert_eq!(taken("a.qcow2", |_| ()), Err(Reason::Internal), "no disk");
        let link = |scratch: &Path| std::os::unix::fs::symlink("/etc/passwd", scratch.join("a.qcow2")).unwrap();
        assert_eq!(taken("a.qcow2", link), Err(Reason::Internal), "a link");
    }
}
