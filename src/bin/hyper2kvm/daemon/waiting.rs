// SPDX-License-Identifier: Apache-2.0
//! A start on volumes that can't be used yet: the daemon waits for them, and answers requests where it can.

use std::path::PathBuf;
use std::time::Duration;

use hyper2kvm::config::Config;
use hyper2kvm::control::{Command, Handler, Listener, Reply, SOCKET};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::chain;
use hyper2kvm::files::{Paths, moves};
use hyper2kvm::stats::Snapshot;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Refusal;
use super::services::Signals;
use super::volumes::{Ready, Unready, ready};

/// How often a volume that can't be used is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// The result of the wait.
#[derive(Debug)]
pub(super) struct Waited {
    /// `None` if the daemon was told to stop before.
    pub ready: Option<Ready>,
    /// What was asked for during the wait.
    pub run_state: RunState,
}

/// What a start waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Why {
    text: String,
    is_full: bool,
    /// The output directory for the control socket, if it can be used.
    output: Option<PathBuf>,
}

impl Why {
    /// Whether it is the same wait: the reason of a full volume names another file each time.
    fn is_same(&self, other: &Self) -> bool {
        self == other || (self.is_full && other.is_full)
    }
}

/// The control socket's commands, before there is an engine.
#[derive(Debug)]
struct Waiting {
    started: Timestamp,
    why: String,
    is_full: bool,
    run_state: watch::Sender<RunState>,
}

impl Handler for Waiting {
    async fn handle(&self, command: Command) -> Reply {
        match command.run_state() {
            Some(run_state) => {
                self.run_state.send_replace(run_state);
                Reply::accepted(command)
            }
            None if command == Command::Status => {
                let run_state = *self.run_state.borrow();
                let waiting_for = Some(self.why.clone());
                Reply::status(&Snapshot { run_state, waiting_for, ..Snapshot::new(self.started) })
            }
            None if self.is_full => {
                Reply::Failed("the volume is full: the daemon waits for space, and counts from then on".to_owned())
            }
            None => Reply::Failed(self.why.clone()),
        }
    }
}

/// Waits until the directories can be worked in. A volume that is full or away is no reason to end: nobody would start
/// the daemon again when it is back. Nothing else is open yet.
pub(super) async fn wait_for_volumes(
    config: &Config,
    is_meant: bool,
    started: Timestamp,
    beside: &Handle,
    signals: &mut Option<Signals>,
) -> Result<Waited, Refusal> {
    let (run_state, mut asked) = watch::channel(RunState::Running);
    let mut socket: Option<(Why, CancellationToken, JoinHandle<()>)> = None;
    let mut told: Option<Why> = None;
    let found = loop {
        let why = match ready(config, is_meant) {
            Ok(ready) => break Ok(Some(ready)),
            Err(Unready::Refused(refusal)) => break Err(refusal),
            Err(Unready::Full { why, output }) => Why { text: why, is_full: true, output: Some(output) },
            Err(Unready::Away { why, output }) => Why { text: why, is_full: false, output },
        };
        if !told.as_ref().is_some_and(|told| told.is_same(&why)) {
            tell(&why);
            told = Some(why.clone());
        }
        if socket.as_ref().is_some_and(|(of, ..)| !of.is_same(&why)) {
            close(socket.take()).await;
        }
        if socket.is_none() {
            let end = CancellationToken::new();
            let entered = beside.enter();
            let bound = bind(&why);
            drop(entered);
            socket = bound.map(|listener| {
                let (text, is_full) = (why.text.clone(), why.is_full);
                let handler = Waiting { started, why: text, is_full, run_state: run_state.clone() };
                (why, end.clone(), beside.spawn(listener.serve(handler, end)))
            });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = asked.changed() => if changed.is_ok() && *asked.borrow_and_update() == RunState::Stopped {
                break Ok(None);
            },
            () = stop_signal(signals) => break Ok(None),
        }
    };
    // The socket finishes answers under way, and ends by itself.
    close(socket).await;
    let ready = found?;
    let run_state = *run_state.borrow();
    Ok(Waited { ready, run_state })
}

/// Logs what is waited for; called once for each reason.
fn tell(why: &Why) {
    if why.is_full {
        tracing::warn!(error = why.text, "the volume is full; waiting for space");
    } else {
        tracing::error!("{}", why.text);
    }
}

/// If there is no room for a socket, or its directory is away, the next look tries again.
fn bind(why: &Why) -> Option<Listener> {
    let output = why.output.as_ref()?;
    if let Err(error) = moves::create_dir(&Paths::new("", output).daemon()) {
        tracing::debug!(error = %chain(&error), "no place for a control socket yet");
    }
    let bound = Listener::bind(&output.join(SOCKET));
    bound.inspect_err(|error| tracing::debug!(error = %chain(error), "no control socket yet")).ok()
}

async fn close(socket: Option<(Why, CancellationToken, JoinHandle<()>)>) {
    if let Some((_, end, serving)) = socket {
        end.cancel();
        // It finishes answers under way; a panic in it was logged already.
        let _ = serving.await;
    }
}

/// Returns at a signal to stop, never where none can be received.
pub(super) async fn stop_signal(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => signals.stop().await,
        None => std::future::pending().await,
    }
}
