// SPDX-License-Identifier: Apache-2.0
//! One child: starts it, watches its progress, ends it if need be, and reads what it left.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::conversion::contract::{FAILURE_FILE, variable};
use crate::conversion::verdict::{Exit, clean};
use crate::conversion::{
    Attempt, CONTRACT_VERSION, ConversionId, Failure, FailureReport, Progress, TerminationMessage,
};
use crate::executor::progress::{self, PROGRESS_POLL, Seen};
use crate::files::{store, waste};

use super::outcome::{KillCause, MAX_TEXT, Remains, judge};

/// How long a child has after SIGTERM before it is killed. The daemon has ten seconds to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Last bytes of a child's log that are kept.
const LOG_TAIL: usize = 16 << 10;

/// Environment that a worker inherits; the daemon's own may hold secrets.
const INHERITED: [&str; 5] = ["PATH", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// How a child is started.
#[derive(Clone, Debug)]
pub(super) struct ChildSpec {
    pub program: PathBuf,
    pub id: ConversionId,
    pub attempt: Attempt,
    pub claim: PathBuf,
    pub work: PathBuf,
    pub folder: &'static str,
    /// JSON of `ConversionOptions`.
    pub options: String,
    pub require_landlock: bool,
    /// Directory of the appliance that changes guests.
    pub appliance: PathBuf,
    /// Time without progress after which the child is ended.
    pub stall_after: Duration,
}

/// What a child's task reports to the executor.
#[derive(Clone, Debug)]
pub(super) enum ChildEvent {
    Progress { id: ConversionId, attempt: Attempt, progress: Progress },
    Ended { id: ConversionId, attempt: Attempt, outcome: Result<(), Failure> },
}

/// A child that was started, and the file without a name where it may leave its small message when the output volume
/// can't be written. It is the child's standard input, which a worker does not read.
pub(super) type Started = (Child, File);

/// The path by which a child opens that file.
const MESSAGE: &str = "/proc/self/fd/0";

/// Starts the child. The thread that calls must live as long as the daemon: a child dies with its parent's thread.
pub(super) fn spawn(spec: &ChildSpec) -> io::Result<Started> {
    let message = message_file()?;
    let mut command = Command::new(&spec.program);
    command
        .arg0("hyper2kvm")
        .arg("worker")
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            INHERITED.contains(&name.as_ref()) || cfg!(debug_assertions) && name.starts_with(variable::TEST_PREFIX)
        }))
        .env(variable::CLAIM, &spec.claim)
        .env(variable::WORK, &spec.work)
        .env(variable::FOLDER, spec.folder)
        .env(variable::OPTIONS, &spec.options)
        .env(variable::ATTEMPT, spec.attempt.to_string())
        .env(variable::TERMINATION_LOG, MESSAGE)
        .env(variable::REQUIRE_LANDLOCK, if spec.require_landlock { "1" } else { "" })
        .env(variable::APPLIANCE, &spec.appliance)
        .env(variable::PARENT, std::process::id().to_string())
        .stdin(message.try_clone()?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    Ok((command.spawn()?, message))
}

/// A file in memory that goes with the last process that has it open: whoever dies leaves nothing behind.
fn message_file() -> io::Result<File> {
    const NAME: &str = "hyper2kvm-message";
    // Linux before 6.3 does not know the second flag, and a hardened one demands it.
    let made = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL);
    Ok(made.or_else(|_| memfd_create(NAME, MemfdFlags::CLOEXEC))?.into())
}

/// Watches a child to its end and reports it. Messages in `kill_causes` end it early; the first one counts.
pub(super) async fn watch(
    spec: ChildSpec,
    (mut child, message): Started,
    mut kill_causes: mpsc::Receiver<KillCause>,
    events: mpsc::UnboundedSender<ChildEvent>,
) {
    let memory_kills = oom_kills();
    let stderr = child.stderr.take();
    let log = tokio::spawn(read_tail(stderr));
    let (exit, cause) = wait(&spec, &mut child, &mut kill_causes, &events).await;
    // A grandchild that keeps the pipe open must not delay the report.
    let log = tokio::time::timeout(PROGRESS_POLL, log).await.ok().and_then(Result::ok).unwrap_or_default();
    let (id, attempt) = (spec.id.clone(), spec.attempt);
    let oom_killed = oom_kills() > memory_kills;
    let collected = tokio::task::spawn_blocking(move || {
        let report = read_report(&spec.work);
        // The worker can't remove it: whoever did has taken its report along.
        let has_work = spec.work.is_dir();
        let remains = Remains { exit, cause, report, message: read_message(&message), oom_killed, has_work };
        let had_report = remains.report.is_some();
        let outcome = judge(remains);
        if let Err(failure) = &outcome {
            remove_waste(&spec);
            if !had_report {
                leave_report(&spec, failure, log);
            }
        }
        outcome
    });
    let outcome = collected.await.unwrap_or_else(|error| {
        Err(Failure::new(crate::conversion::Reason::Internal, format!("cannot look at what the worker left: {error}")))
    });
    // Fails only after the executor is gone, and with it the daemon.
    let _ = events.send(ChildEvent::Ended { id, attempt, outcome });
}

async fn wait(
    spec: &ChildSpec,
    child: &mut Child,
    kill_causes: &mut mpsc::Receiver<KillCause>,
    events: &mpsc::UnboundedSender<ChildEvent>,
) -> (Exit, Option<KillCause>) {
    let mut look = interval(PROGRESS_POLL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = Seen::nothing(Instant::now());
    let mut cause = None;
    let mut kill_at = None;
    loop {
        tokio::select! {
            status = child.wait() => {
                let exit = status.map_or(Exit::Unknown, |status| match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                });
                return (exit, cause);
            }
            Some(first) = kill_causes.recv(), if cause.is_none() => {
                cause = Some(first);
                kill_at = Some(Instant::now() + GRACE);
                signal(child, Signal::TERM);
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                signal(child, Signal::KILL);
                kill_at = None;
            }
            _ = look.tick() => {
                if let Some(progress) = read_progress(spec.work.clone()).await
                    && seen.moved(&progress, Instant::now())
                {
                    let event = ChildEvent::Progress { id: spec.id.clone(), attempt: spec.attempt, progress };
                    let _ = events.send(event);
                }
                if cause.is_none() && seen.still(Instant::now()) >= spec.stall_after {
                    cause = Some(KillCause::Stalled(spec.stall_after.as_secs()));
                    kill_at = Some(Instant::now() + GRACE);
                    signal(child, Signal::TERM);
                }
            }
        }
    }
}

/// Signals the child's whole group. The PID cannot have been reused: the child has not been reaped.
fn signal(child: &Child, signal: Signal) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else { return };
    if let Err(error) = kill_process_group(pid, signal) {
        tracing::debug!(%error, pid = pid.as_raw_nonzero(), "cannot signal a worker");
    }
}

async fn read_progress(work: PathBuf) -> Option<Progress> {
    let read = tokio::task::spawn_blocking(move || progress::read(&work));
    read.await.ok()?.ok()?
}

fn read_report(work: &Path) -> Option<FailureReport> {
    store::read_json(work, FAILURE_FILE, FailureReport::MAX_BYTES).unwrap_or_else(|error| {
        tracing::warn!(%error, "a worker left an unreadable report");
        None
    })
}

/// `None` where the child has left none, or one that is too long.
fn read_message(file: &File) -> Option<TerminationMessage> {
    let length =
        usize::try_from(file.metadata().ok()?.len()).ok().filter(|&len| len <= TerminationMessage::MAX_BYTES)?;
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Output of a failed attempt is waste, and may be what fills the output volume; a whole copy is kept for the next
/// attempt. A worker that found fault with its copy has removed it itself.
fn remove_waste(spec: &ChildSpec) {
    let folder = spec.work.join(spec.folder);
    if waste::holds_copy(&folder) {
        return;
    }
    if let Err(error) = waste::remove(&folder) {
        tracing::warn!(conversion = %spec.id, %error, "cannot remove what a failed attempt left");
    }
}

/// Writes a report for a worker that died without one: its log is all that a person has.
fn leave_report(spec: &ChildSpec, failure: &Failure, log_tail: Vec<String>) {
    let report = FailureReport {
        contract_version: CONTRACT_VERSION,
        failure: failure.clone(),
        error_chain: vec![failure.message.clone()],
        log_tail,
    };
    if let Err(error) = store::write_json(&spec.work.join(FAILURE_FILE), &report) {
        tracing::debug!(conversion = %spec.id, %error, "cannot leave a report for the worker");
    }
}

async fn read_tail(stderr: Option<ChildStderr>) -> Vec<String> {
    let Some(mut stderr) = stderr else { return Vec::new() };
    let mut tail = VecDeque::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.extend(&buffer[..read]);
        let excess = tail.len().saturating_sub(LOG_TAIL);
        tail.drain(..excess);
    }
    let bytes: Vec<u8> = tail.into();
    String::from_utf8_lossy(&bytes).lines().map(|line| clean(line, MAX_TEXT)).collect()
}

/// Processes that the kernel has killed for lack of memory since the machine started.
fn oom_kills() -> u64 {
    let counters = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}
