// SPDX-License-Identifier: Apache-2.0
//! One attempt as the executor starts it: its input comes from environment variables, its results go into a work
//! directory.
//!
//! ```text
//! <work>/kept/                    the folder of an earlier attempt, to go on with
//! <work>/progress.json            while it runs
//! <work>/<folder>/<disks>         the output
//! <work>/<folder>/copied.json     and other markers: this step is done
//! <work>/<folder>/metadata.json   last: with it the folder is complete
//! <work>/failure.json             instead, when the attempt failed
//! ```

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::contain::{self, Enforcement};
use super::conversion::Conversion;
use super::group::Group;
use super::interrupt::Interrupts;
use super::log::LogTail;
use super::look::LOOK_TIME;
use super::marker::{Markers, Step};
use super::output::write_synced;
use super::planning;
use super::progress::{Meter, Ticker};
use super::qemu::Programs;
use super::steps;
use super::target::Targets;
use crate::conversion::contract::{
    self, APPLIANCE_DIR, CLAIM_FILE, FAILURE_FILE, MAX_CLAIM_BYTES, PROGRESS_FILE, variable,
};
use crate::conversion::guest::outcome::GuestOutcome;
use crate::conversion::target::{self, DiskTarget};
use crate::conversion::{
    Attempt, CONTRACT_VERSION, Claim, Compression, ConversionOptions, Failure, FailureReport, Metadata, OutputFormat,
    Phase, Reason, Stage, SuccessMessage, TerminationMessage, chain,
};
use crate::disk::available_threads;
use crate::files::store::{self, StoreError};
use crate::files::waste;

/// What an executor asks of a worker, in the variables of [`variable`].
#[derive(Clone, Debug)]
pub struct AttemptSpec {
    /// Directory of claim.json and the members.
    pub claim: PathBuf,
    /// The attempt's work directory.
    pub work: PathBuf,
    /// Name of the folder to make in it.
    pub folder: String,
    /// JSON of [`ConversionOptions`].
    pub options: ConversionOptions,
    pub attempt: Attempt,
    /// Whether only a plan is made.
    pub is_plan: bool,
    /// Where the disks go; empty: into the folder.
    pub targets: Vec<DiskTarget>,
    /// File for the short termination message, in a pod.
    pub termination_log: Option<PathBuf>,
    /// Whether a kernel without Landlock is refused.
    pub require_landlock: bool,
    /// Process id of the daemon, with which this process dies.
    pub parent: Option<i32>,
    /// Directory of the appliance that changes guests.
    pub appliance: PathBuf,
    /// How this attempt is to fail; only tests ask for that.
    sabotage: Option<Sabotage>,
}

/// A fault that [`variable::TEST_FAIL`], [`variable::TEST_HANG`] or [`variable::TEST_DIE`] asks for; builds without
/// debug assertions have none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sabotage {
    Fail(Reason),
    Hang,
    /// Killed once this step has left its file.
    Die(Step),
}

impl AttemptSpec {
    /// What changes the guest or tries it, where that is asked for.
    fn programs(&self) -> Option<Programs> {
        let is_wanted = self.options.guest.has_programs() && !self.is_plan;
        let guest = &self.options.guest;
        is_wanted.then(|| Programs::find(&self.appliance, guest.virtio_win.as_deref(), guest.accelerator))
    }

    /// Reads the variables.
    ///
    /// # Errors
    /// A sentence that names the variable and what is wrong with it.
    pub fn from_environment() -> Result<Self, String> {
        let text = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let required = |name: &str| text(name).ok_or_else(|| format!("{name} is not set"));
        let options = required(variable::OPTIONS)?;
        let attempt = required(variable::ATTEMPT)?;
        let attempt = attempt.parse().map_err(|_| format!("{}={attempt:?} is no number", variable::ATTEMPT))?;
        let folder = required(variable::FOLDER)?;
        if folder.contains('/') || folder.starts_with('.') {
            return Err(format!("{}={folder:?} is no plain name", variable::FOLDER));
        }
        let is_plan = match text(variable::STEP).as_deref() {
            None | Some(contract::STEP_CONVERT) => false,
            Some(contract::STEP_PLAN) => true,
            Some(other) => return Err(format!("{}={other:?} is no step", variable::STEP)),
        };
        let targets = text(variable::TARGETS).map(|list| target::read(&list)).transpose();
        Ok(Self {
            claim: required(variable::CLAIM)?.into(),
            work: required(variable::WORK)?.into(),
            folder,
            options: serde_json::from_str(&options).map_err(|e| format!("{}: {e}", variable::OPTIONS))?,
            attempt: Attempt(attempt),
            is_plan,
            targets: targets.map_err(|e| format!("{}: {}", variable::TARGETS, chain(&e)))?.unwrap_or_default(),
            termination_log: text(variable::TERMINATION_LOG).map(PathBuf::from),
            require_landlock: text(variable::REQUIRE_LANDLOCK).as_deref() == Some("1"),
            parent: text(variable::PARENT).and_then(|p| p.parse().ok()),
            appliance: text(variable::APPLIANCE).map_or_else(|| APPLIANCE_DIR.into(), PathBuf::from),
            sabotage: if cfg!(debug_assertions) {
                let hangs = text(variable::TEST_HANG).map(|_| Sabotage::Hang);
                let fails = || sabotage(&text(variable::TEST_FAIL)?, Attempt(attempt), fails);
                let dies = || sabotage(&text(variable::TEST_DIE)?, Attempt(attempt), dies);
                hangs.or_else(fails).or_else(dies)
            } else {
                None
            },
        })
    }
}

impl AttemptSpec {
    /// The options as they hold for its disks: what goes into a target is raw.
    fn options_of_disks(&self) -> ConversionOptions {
        let options = self.options.clone();
        if self.targets.is_empty() && !self.is_plan {
            return options;
        }
        let (out_format, compress) = (OutputFormat::Raw, Compression::None);
        ConversionOptions { out_format, compress, compress_level: None, ..options }
    }
}

/// The fault that `<fault>[:<attempts>]` asks of this attempt.
fn sabotage(text: &str, attempt: Attempt, fault: impl Fn(&str) -> Option<Sabotage>) -> Option<Sabotage> {
    let (name, last) = match text.split_once(':') {
        Some((name, last)) => (name, last.parse().ok()?),
        None => (text, u32::MAX),
    };
    fault(name).filter(|_| attempt.0 <= last)
}

fn fails(reason: &str) -> Option<Sabotage> {
    Reason::ALL.iter().copied().find(|r| r.to_string() == reason).map(Sabotage::Fail)
}

fn dies(marker: &str) -> Option<Sabotage> {
    Step::ALL.into_iter().find(|step| step.file() == marker).map(Sabotage::Die)
}

/// What the attempt opens before anything is parsed.
struct Places {
    claim: OwnedFd,
    work: OwnedFd,
    /// The disks' targets, if they don't become files in the folder; or why they can't be opened.
    targets: Result<Option<Targets>, Failure>,
    termination_log: Option<File>,
    /// CPUs that the process may use: the quota is in files that can't be read later.
    threads: usize,
    /// What must stay executable, where the guest is to be changed.
    executable: Option<contain::Executable>,
}

impl Places {
    /// The directories that the process may write to.
    fn writable(&self) -> Vec<BorrowedFd<'_>> {
        let targets = self.targets.iter().flatten().flat_map(Targets::directories);
        std::iter::once(self.work.as_fd()).chain(targets).collect()
    }
}

/// Does one attempt and returns the process' exit code, which `conversion::verdict` reads.
#[must_use]
pub fn run(spec: &AttemptSpec, log: &LogTail) -> u8 {
    let places = match prepare(spec) {
        Ok(places) => places,
        Err(failure) => {
            tracing::error!(reason = %failure.reason, "{}", failure.message);
            return failure.exit_code();
        }
    };
    let meter = Arc::new(Meter::default());
    let outcome = match Interrupts::catch(&[signal_hook::consts::SIGTERM]) {
        Ok(interrupts) => panic::catch_unwind(AssertUnwindSafe(|| attempt(spec, &places, &meter, interrupts)))
            .unwrap_or_else(|panic| Err(Failure::new(Reason::Internal, describe_panic(panic.as_ref())))),
        Err(error) => Err(Failure::new(Reason::Internal, format!("cannot handle SIGTERM: {error}"))),
    };
    match outcome {
        Ok(metadata) => {
            leave_message(&places, metadata.as_ref());
            0
        }
        Err(failure) => {
            let failure = if meter.is_interrupted() {
                Failure::new(Reason::Disrupted, "the attempt was told to end")
            } else {
                Failure { stage: failure.stage.or(Some(meter.stage())), ..failure }
            };
            tracing::error!(reason = %failure.reason, "{}", failure.message);
            leave_failure(spec, &places, &failure, log);
            failure.exit_code()
        }
    }
}

fn describe_panic(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the worker panicked: {}", text.unwrap_or("no message"))
}

/// Opens these and restricts the process, which is still single-threaded and has read nothing hostile.
fn prepare(spec: &AttemptSpec) -> Result<Places, Failure> {
    if let Some(parent) = spec.parent {
        let internal = |e: rustix::io::Errno| Failure::new(Reason::Internal, format!("cannot tie to the parent: {e}"));
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal)?;
        // The parent may have died before the line above.
        if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
            return Err(Failure::new(Reason::Disrupted, "the daemon that started this worker is gone"));
        }
    }
    let targets = if spec.targets.is_empty() { Ok(None) } else { Targets::open(&spec.targets).map(Some) };
    let devices = || spec.targets.iter().filter_map(DiskTarget::as_device);
    let places = Places {
        claim: open_directory(&spec.claim)?,
        work: open_directory(&spec.work)?,
        targets,
        termination_log: spec.termination_log.as_ref().and_then(|p| File::options().write(true).open(p).ok()),
        threads: available_threads(),
        executable: spec.programs().map(|programs| programs.open(devices())),
    };
    contain::limit_process().map_err(|e| Failure::new(Reason::Internal, format!("cannot limit the process: {e}")))?;
    let (claim, writable) = (places.claim.as_fd(), places.writable());
    let enforced = contain::restrict(Some(claim), &writable, places.executable.as_ref(), spec.require_landlock)?;
    if enforced == Enforcement::None {
        tracing::warn!("this kernel has no Landlock: the worker is contained by its limits and its user only");
    }
    Ok(places)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let error = io::Error::from(error);
        let message = format!("{}: cannot open: {error}", path.display());
        Failure::in_phase(unreadable(&error), Phase::Initialization, message)
    })
}

/// What it means that the claim can't be read.
fn unreadable(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
        io::ErrorKind::NotFound => Reason::SourceMissing,
        _ => Reason::SourceIO,
    }
}

fn attempt(
    spec: &AttemptSpec,
    places: &Places,
    meter: &Arc<Meter>,
    interrupts: Interrupts,
) -> Result<Option<Metadata>, Failure> {
    meter.enter(Stage::Inspect);
    let targets = places.targets.as_ref().map_err(Clone::clone)?.as_ref();
    let claim = read_claim(&spec.claim)?;
    let group = Group::open_claim(&places.claim, &claim)?;
    // All files are open: from here on no path can be read at all.
    contain::restrict(None, &places.writable(), places.executable.as_ref(), spec.require_landlock)?;
    interrupts.watch(meter);
    let progress = Ticker::write_file(Arc::clone(meter), spec.work.join(PROGRESS_FILE));
    let options = spec.options_of_disks();
    let stem = options
        .to_output
        .as_deref()
        .map_or(claim.stem(), |name| name.strip_suffix(&format!(".{}", options.out_format)).unwrap_or(name));
    if spec.is_plan {
        return planning::plan(&group, stem, &options, &spec.work, meter).map(|()| None);
    }
    let folder = spec.work.join(&spec.folder);
    let dies_after = match spec.sabotage {
        Some(Sabotage::Die(after)) => Some(after),
        _ => None,
    };
    let markers = Markers::new(&folder, &claim, &options, targets, dies_after);
    let done = markers.open(&spec.work)?;
    if let Some((last, _)) = &done {
        tracing::info!(after = last.file(), "goes on with what an earlier attempt left");
    }
    match spec.sabotage {
        Some(Sabotage::Hang) => hang(meter),
        Some(Sabotage::Fail(reason)) => {
            meter.enter(Stage::Copy);
            return Err(Failure::new(reason, "as the test asks"));
        }
        Some(Sabotage::Die(_)) | None => {}
    }
    let programs = spec.programs();
    let conversion = Conversion {
        group: &group,
        directory: &folder,
        stem,
        id: claim.id.as_str(),
        contract_version: claim.contract_version,
        options: &options,
        ovf_option: None,
        threads: Some(places.threads),
        verify_full: false,
        programs: programs.as_ref(),
        look_time: LOOK_TIME,
        targets,
        doubtful: claim.members.iter().filter(|m| m.alone.is_some()).map(|m| m.name.clone()).collect(),
    };
    let metadata = steps::attempt(&conversion, meter, &markers, done, &spec.work)?;
    drop(progress);
    tracing::info!(
        disks = metadata.disks.len(),
        virtual_bytes = metadata.disks.iter().map(|d| d.virtual_size_bytes).sum::<u64>(),
        ms = metadata.duration_ms,
        threads = places.threads,
        "converted"
    );
    Ok(Some(metadata))
}

/// Leaves the termination message of a success whose guest was to be fixed or tried.
fn leave_message(places: &Places, metadata: Option<&Metadata>) {
    let Some(metadata) = metadata else { return };
    let guest = metadata.guest.as_ref().and_then(|guest| GuestOutcome::of(guest, metadata.machines.first()));
    let (Some(guest), Some(mut file)) = (guest, places.termination_log.as_ref()) else { return };
    let message = SuccessMessage { contract_version: CONTRACT_VERSION, guest };
    // metadata.json has it, too.
    if let Err(error) = file.write_all(message.to_json().as_bytes()) {
        tracing::warn!(%error, "cannot write the termination message");
    }
}

fn hang(meter: &Meter) {
    while !meter.is_interrupted() {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

fn read_claim(directory: &Path) -> Result<Claim, Failure> {
    let refuse = |reason, error: &dyn std::fmt::Display| {
        Failure::in_phase(reason, Phase::Initialization, format!("{CLAIM_FILE}: {error}"))
    };
    let claim: Claim = match store::read_json(directory, CLAIM_FILE, MAX_CLAIM_BYTES) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Err(refuse(Reason::SourceMissing, &"no such file")),
        Err(StoreError::Read { source, .. }) => return Err(refuse(unreadable(&source), &source)),
        Err(StoreError::Malformed { source, .. }) => return Err(refuse(Reason::Internal, &source)),
        Err(error) => return Err(refuse(Reason::Internal, &error)),
    };
    if claim.contract_version > CONTRACT_VERSION {
        let message = format!(
            "claim.json has contract version {}, this worker knows {CONTRACT_VERSION}: update the worker's image",
            claim.contract_version
        );
        return Err(Failure::in_phase(Reason::Internal, Phase::Initialization, message));
    }
    Ok(claim)
}

/// Leaves failure.json and the termination message, and removes what was written. A whole copy stays if the attempt was
/// only told to end: after a failure of the attempt itself, nobody knows whether the copy is to blame.
fn leave_failure(spec: &AttemptSpec, places: &Places, failure: &Failure, log: &LogTail) {
    let folder = spec.work.join(&spec.folder);
    let is_kept = failure.reason == Reason::Disrupted && waste::holds_copy(&folder);
    // Nothing here may replace one failure by another: what can't be written or removed is logged.
    if !is_kept
        && let Err(error) = fs::remove_dir_all(&folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove the partial output");
    }
    if let (false, Ok(Some(targets))) = (is_kept, &places.targets) {
        targets.discard();
    }
    let report = FailureReport {
        contract_version: CONTRACT_VERSION,
        error_chain: vec![failure.message.clone()],
        failure: failure.clone(),
        log_tail: log.lines(),
    };
    if let Err(failure) = write_synced(&spec.work, FAILURE_FILE, &report) {
        tracing::warn!(error = failure.message, "cannot write failure.json");
    }
    let message = TerminationMessage { contract_version: CONTRACT_VERSION, failure: failure.clone() };
    if let Some(mut file) = places.termination_log.as_ref()
        && let Err(error) = file.write_all(message.to_json().as_bytes())
    {
        tracing::warn!(%error, "cannot write the termination message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_claim_that_is_not_there_is_missing() {
        use rustix::io::Errno;
        for (errno, expected) in [
            (Errno::NOENT, Reason::SourceMissing),
            (Errno::ACCESS, Reason::PermissionDenied),
            (Errno::IO, Reason::SourceIO),
            (Errno::STALE, Reason::SourceIO),
        ] {
            assert_eq!(unreadable(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn a_test_can_make_the_first_attempts_fail() {
        let fail = |text: &str, n| sabotage(text, Attempt(n), fails);
        assert_eq!(fail("SourceIO", 7), Some(Sabotage::Fail(Reason::SourceIO)));
        assert_eq!(fail("SourceIO:2", 2), Some(Sabotage::Fail(Reason::SourceIO)));
        assert_eq!(fail("SourceIO:2", 3), None);
        assert_eq!(fail("Nonsense", 1), None);
        assert_eq!(sabotage("copied.json:1", Attempt(1), dies), Some(Sabotage::Die(Step::Copy)));
    }
}
