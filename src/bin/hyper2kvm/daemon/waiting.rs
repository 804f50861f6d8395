// SPDX-License-Identifier: Apache-2.0
//! A start on a full volume: the daemon waits for room, and answers meanwhile.

use std::time::Duration;

use hyper2kvm::control::{Command, Handler, Listener, Reply, SOCKET};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::chain;
use hyper2kvm::files::{Method, Paths};
use hyper2kvm::queue::probe;
use hyper2kvm::stats::Snapshot;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Refusal;
use super::services::Signals;

/// How often a full volume is tried again.
const LOOK: Duration = Duration::from_secs(5);

/// What was asked for while the daemon waited.
#[derive(Debug)]
pub(super) struct Waited {
    pub run_state: RunState,
    /// Signals that came since, and those that come until the services take over.
    pub signals: Option<Signals>,
}

/// The control socket's commands, before there is an engine.
#[derive(Debug)]
struct Waiting {
    started: Timestamp,
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
                Reply::status(&Snapshot { run_state, ..Snapshot::new(self.started) })
            }
            None => Reply::Failed("the volume is full: the daemon waits for space, and counts from then on".to_owned()),
        }
    }
}

/// Waits until the directories can be worked in. A full volume is no reason to end: nobody would start the daemon again
/// when there is room. Nothing else is open yet. A [`RunState::Stopped`] in the answer: it was told to stop.
pub(super) async fn wait_for_space(
    paths: &Paths,
    why: &probe::NotReady,
    started: Timestamp,
    beside: &Handle,
) -> Result<Waited, Refusal> {
    tracing::warn!(error = %chain(why), "the volume is full; waiting for space");
    let (run_state, mut asked) = watch::channel(RunState::Running);
    let shutdown = CancellationToken::new();
    let mut signals = Signals::listen();
    let mut serving = None;
    let tried = loop {
        if serving.is_none() {
            // Where not even a socket finds room, the next look tries again.
            let entered = beside.enter();
            let bound = Listener::bind(&paths.output().join(SOCKET));
            drop(entered);
            let bound = bound.inspect_err(|error| tracing::debug!(error = %chain(error), "no control socket yet"));
            serving = bound.ok().map(|socket| {
                let handler = Waiting { started, run_state: run_state.clone() };
                beside.spawn(socket.serve(handler, shutdown.clone()))
            });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => match probe::probe(paths, Method::NoReplace) {
                Err(error) if error.is_no_space() => {}
                tried => break tried,
            },
            changed = asked.changed() => if changed.is_ok() && *asked.borrow_and_update() == RunState::Stopped {
                break Ok(());
            },
            () = stop_signal(&mut signals) => {
                run_state.send_replace(RunState::Stopped);
                break Ok(());
            }
        }
    };
    shutdown.cancel();
    if let Some(serving) = serving {
        // It answers what is on its way, and ends by itself.
        let _ = serving.await;
    }
    tried.map_err(|error| Refusal::setting(chain(&error)))?;
    let run_state = *run_state.borrow();
    Ok(Waited { run_state, signals })
}

async fn stop_signal(signals: &mut Option<Signals>) {
    match signals {
        Some(signals) => signals.stop().await,
        None => std::future::pending().await,
    }
}
