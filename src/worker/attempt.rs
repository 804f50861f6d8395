//! One attempt as the executor starts it: everything from environment variables, results into a work directory.
//!
//! ```text
//! <work>/progress.json            while it runs
//! <work>/<folder>/<disks>         the output
//! <work>/<folder>/metadata.json   last: with it the folder is complete
//! <work>/failure.json             instead, when the attempt failed
//! ```

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::contain::{self, Enforcement};
use super::convert::{Conversion, convert};
use super::group::Group;
use super::interrupt::Interrupts;
use super::log::LogTail;
use super::output::{output_failure, sync_directory, write_synced};
use super::progress::{Meter, Ticker};
use crate::conversion::{
    Attempt, CONTRACT_VERSION, Claim, ConversionOptions, Failure, FailureReport, Metadata, Phase, Reason, Stage,
    TerminationMessage,
};
use crate::disk::pipeline::available_threads;

/// A claim of [`crate::disk`]'s largest group, with names of 255 bytes, stays below this.
const MAX_CLAIM_BYTES: u64 = 1 << 20;

/// What an executor asks of a worker, by environment variables: a command line would show paths to `pgrep -f`.
#[derive(Clone, Debug)]
pub struct Order {
    /// `HYPER2KVM_CLAIM`: directory of claim.json and the members.
    pub claim: PathBuf,
    /// `HYPER2KVM_WORK`: the attempt's work directory.
    pub work: PathBuf,
    /// `HYPER2KVM_FOLDER`: name of the folder to make in it.
    pub folder: String,
    /// `HYPER2KVM_OPTIONS`: JSON of [`ConversionOptions`].
    pub options: ConversionOptions,
    /// `HYPER2KVM_ATTEMPT`.
    pub attempt: Attempt,
    /// `HYPER2KVM_TERMINATION_LOG`: where the small message goes, in a pod.
    pub termination_log: Option<PathBuf>,
    /// `HYPER2KVM_REQUIRE_LANDLOCK`: `1` to refuse a kernel without it.
    pub require_landlock: bool,
    /// `HYPER2KVM_PARENT`: process id of the daemon, with which this process dies.
    pub parent: Option<i32>,
    /// Test-only: how this attempt is to fail.
    sabotage: Option<Sabotage>,
}

/// `HYPER2KVM_TEST_FAIL=<Reason>[:<attempts>]` fails the first attempts (all without a number) in the middle of the
/// copy; `HYPER2KVM_TEST_HANG=1` makes no progress there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sabotage {
    Fail(Reason),
    Hang,
}

impl Order {
    /// Reads the variables.
    ///
    /// # Errors
    /// A sentence that names the variable and what is wrong with it.
    pub fn from_environment() -> Result<Self, String> {
        let text = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let required = |name: &str| text(name).ok_or_else(|| format!("{name} is not set"));
        let options = required("HYPER2KVM_OPTIONS")?;
        let attempt = required("HYPER2KVM_ATTEMPT")?;
        let attempt = attempt.parse().map_err(|_| format!("HYPER2KVM_ATTEMPT={attempt:?} is no number"))?;
        let folder = required("HYPER2KVM_FOLDER")?;
        if folder.contains('/') || folder.starts_with('.') {
            return Err(format!("HYPER2KVM_FOLDER={folder:?} is no plain name"));
        }
        Ok(Self {
            claim: required("HYPER2KVM_CLAIM")?.into(),
            work: required("HYPER2KVM_WORK")?.into(),
            folder,
            options: serde_json::from_str(&options).map_err(|e| format!("HYPER2KVM_OPTIONS: {e}"))?,
            attempt: Attempt(attempt),
            termination_log: text("HYPER2KVM_TERMINATION_LOG").map(PathBuf::from),
            require_landlock: text("HYPER2KVM_REQUIRE_LANDLOCK").as_deref() == Some("1"),
            parent: text("HYPER2KVM_PARENT").and_then(|p| p.parse().ok()),
            sabotage: sabotage(text("HYPER2KVM_TEST_FAIL"), text("HYPER2KVM_TEST_HANG").is_some(), Attempt(attempt)),
        })
    }
}

fn sabotage(fail: Option<String>, hang: bool, attempt: Attempt) -> Option<Sabotage> {
    if hang {
        return Some(Sabotage::Hang);
    }
    let fail = fail?;
    let (reason, last) = match fail.split_once(':') {
        Some((reason, last)) => (reason, last.parse().ok()?),
        None => (fail.as_str(), u32::MAX),
    };
    let reason = Reason::ALL.into_iter().find(|r| r.to_string() == reason)?;
    (attempt.0 <= last).then_some(Sabotage::Fail(reason))
}

/// What the attempt is opened with before anything is parsed.
struct Places {
    claim: OwnedFd,
    work: OwnedFd,
    termination_log: Option<File>,
    /// CPUs that the process may use: the quota is read from files that it can't read later.
    threads: usize,
}

/// Does one attempt and returns the process' exit code (architecture: *Worker's exit*).
#[must_use]
pub fn run(order: &Order, log: &LogTail) -> u8 {
    let places = match prepare(order) {
        Ok(places) => places,
        Err(failure) => {
            tracing::error!(reason = %failure.reason, "{}", failure.message);
            return failure.reason.exit_code();
        }
    };
    let meter = Arc::new(Meter::default());
    let outcome = match Interrupts::catch(&[signal_hook::consts::SIGTERM]) {
        Ok(interrupts) => panic::catch_unwind(AssertUnwindSafe(|| attempt(order, &places, &meter, interrupts)))
            .unwrap_or_else(|panic| Err(Failure::new(Reason::Internal, describe_panic(panic.as_ref())))),
        Err(error) => Err(Failure::new(Reason::Internal, format!("cannot handle SIGTERM: {error}"))),
    };
    match outcome {
        Ok(metadata) => {
            let virtual_bytes: u64 = metadata.disks.iter().map(|d| d.virtual_size_bytes).sum();
            tracing::info!(
                disks = metadata.disks.len(),
                virtual_bytes,
                ms = metadata.duration_ms,
                threads = places.threads,
                "converted"
            );
            0
        }
        Err(failure) => {
            let failure = if meter.is_interrupted() {
                Failure::new(Reason::Disrupted, "the attempt was told to end")
            } else {
                Failure { stage: failure.stage.or(Some(meter.stage())), ..failure }
            };
            tracing::error!(reason = %failure.reason, "{}", failure.message);
            leave_failure(order, &places, &failure, log);
            failure.reason.exit_code()
        }
    }
}

fn describe_panic(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the worker panicked: {}", text.unwrap_or("no message"))
}

/// Opens the places and restricts the process, still single-threaded and before anything hostile is read.
fn prepare(order: &Order) -> Result<Places, Failure> {
    if let Some(parent) = order.parent {
        let internal = |e: rustix::io::Errno| Failure::new(Reason::Internal, format!("cannot tie to the parent: {e}"));
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(internal)?;
        // It may have died before the line above.
        if getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent) {
            return Err(Failure::new(Reason::Disrupted, "the daemon that started this worker is gone"));
        }
    }
    let places = Places {
        claim: open_directory(&order.claim)?,
        work: open_directory(&order.work)?,
        termination_log: order.termination_log.as_ref().and_then(|p| File::options().write(true).open(p).ok()),
        threads: available_threads(),
    };
    contain::limit_process().map_err(|e| Failure::new(Reason::Internal, format!("cannot limit the process: {e}")))?;
    let enforced = contain::restrict_to(Some(places.claim.as_fd()), places.work.as_fd(), order.require_landlock)?;
    if enforced == Enforcement::None {
        tracing::warn!("this kernel has no Landlock: the worker is contained by its limits and its user only");
    }
    Ok(places)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        let error = io::Error::from(error);
        let reason = match error.kind() {
            io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
            io::ErrorKind::NotFound => Reason::SourceMissing,
            _ => Reason::SourceIO,
        };
        Failure::in_phase(reason, Phase::Initialization, format!("{}: cannot open: {error}", path.display()))
    })
}

fn attempt(order: &Order, places: &Places, meter: &Arc<Meter>, interrupts: Interrupts) -> Result<Metadata, Failure> {
    meter.enter(Stage::Inspect);
    let claim = read_claim(&order.claim)?;
    let group = Group::open_claim(&places.claim, &claim)?;
    // Every file is open: from here on no path can be read at all.
    contain::restrict_to(None, places.work.as_fd(), order.require_landlock)?;
    interrupts.watch(meter);
    let progress = Ticker::write_file(Arc::clone(meter), order.work.join("progress.json"));
    let folder = order.work.join(&order.folder);
    fs::create_dir(&folder).map_err(|e| output_failure(&folder, &e))?;
    match order.sabotage {
        Some(Sabotage::Hang) => hang(meter),
        Some(Sabotage::Fail(reason)) => {
            meter.enter(Stage::Copy);
            return Err(Failure::new(reason, "as HYPER2KVM_TEST_FAIL asks"));
        }
        None => {}
    }
    let stem = order
        .options
        .to_output
        .as_deref()
        .map_or(claim.stem(), |name| name.strip_suffix(&format!(".{}", order.options.out_format)).unwrap_or(name));
    let conversion = Conversion {
        group: &group,
        directory: &folder,
        stem,
        id: claim.id.as_str(),
        options: &order.options,
        threads: Some(places.threads),
        verify_full: false,
    };
    let metadata = convert::<Failure>(&conversion, meter, |_| Ok(()))?;
    drop(progress);
    write_synced(&folder, "metadata.json", &metadata).map_err(|e| output_failure(&folder, &e))?;
    sync_directory(&order.work).map_err(|e| output_failure(&order.work, &e))?;
    Ok(metadata)
}

fn hang(meter: &Meter) {
    while !meter.is_interrupted() {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

fn read_claim(directory: &Path) -> Result<Claim, Failure> {
    let path = directory.join("claim.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_CLAIM_BYTES).read_to_end(&mut text))
        .map_err(|e| Failure::in_phase(Reason::SourceMissing, Phase::Initialization, format!("claim.json: {e}")))?;
    let claim: Claim = serde_json::from_slice(&text)
        .map_err(|e| Failure::in_phase(Reason::Internal, Phase::Initialization, format!("claim.json: {e}")))?;
    if claim.contract_version > CONTRACT_VERSION {
        let message = format!(
            "claim.json has contract version {}, this worker knows {CONTRACT_VERSION}: update the worker's image",
            claim.contract_version
        );
        return Err(Failure::in_phase(Reason::Internal, Phase::Initialization, message));
    }
    Ok(claim)
}

/// Leaves failure.json and the termination message, and removes what was written.
fn leave_failure(order: &Order, places: &Places, failure: &Failure, log: &LogTail) {
    // Nothing here may turn one failure into another: what can't be left is logged.
    if let Err(error) = fs::remove_dir_all(order.work.join(&order.folder))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove the partial output");
    }
    let report = FailureReport {
        contract_version: CONTRACT_VERSION,
        error_chain: vec![failure.message.clone()],
        failure: failure.clone(),
        log_tail: log.lines(),
    };
    if let Err(error) = write_synced(&order.work, "failure.json", &report) {
        tracing::warn!(%error, "cannot write failure.json");
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
    fn a_test_can_make_the_first_attempts_fail() {
        let fail = |text: &str, n| sabotage(Some(text.to_owned()), false, Attempt(n));
        assert_eq!(fail("SourceIO", 7), Some(Sabotage::Fail(Reason::SourceIO)));
        assert_eq!(fail("SourceIO:2", 2), Some(Sabotage::Fail(Reason::SourceIO)));
        assert_eq!(fail("SourceIO:2", 3), None);
        assert_eq!(fail("Nonsense", 1), None);
    }
}
