// SPDX-License-Identifier: Apache-2.0
//! The watcher: the one process that moves a queue's files. It waits for its specification, its volumes and its locks,
//! then lets the queue's engine work, with `ConversionJob`s for attempts.
//!
//! Users know the process as the watcher: the API, the subcommand and the pod's name say so. The module is called
//! `agent` because in this code a watcher is a watch of Kubernetes' objects (`kube::runtime::watcher`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::{Client, ResourceExt};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use crate::cluster::api::{HyperConversion, HyperConversionSpec, InvalidSetting};
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::executor::{ClusterExecutor, WatchEnded};
use crate::cluster::identity::Identity;
use crate::conversion::admission::RunState;
use crate::conversion::chain;
use crate::files::{Method, Paths};
use crate::ledger::{LEDGER_FILE, Ledger, Writer};
use crate::queue::engine;
use crate::queue::engine::outbox::{Outbox, Patience};
use crate::queue::engine::{Engine, Home, Remote, Settings, World, events};
use crate::queue::guard::Guard;
use crate::queue::lock::{Keeper, LockError};
use crate::queue::retention_day::retention_day;
use crate::queue::settle::look_interval;
use crate::telemetry::traces::Traces;

mod foresight;
mod notifications;
mod report;
mod specification;
mod storage;

use notifications::Secrets;
use report::{Reporter, UNREADABLE};
use specification::{Wanted, known, watch_queue};
use storage::patiently;

/// Shortest and longest pause before a ledger that can't be used is tried again. Short at first, because a person may
/// be mending it; long at last, because each try reads all of it.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Reason of `StorageReady` while the ledger can't be used.
const LEDGER_UNUSABLE: &str = "LedgerUnusable";

/// How long a new specification waits for notifications that are on their way: one that is cut off may arrive twice.
const DELIVERY_END: Duration = Duration::from_secs(5);

/// Why the watcher ended; the kubelet restarts its container.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Watch(#[from] WatchEnded),
}

/// Works until the queue is gone or a lock is lost. `defaults` are for what the queue leaves out. The engine runs in the
/// calling task and blocks on files: run this on a runtime with other threads.
pub async fn run(
    client: Client,
    identity: Identity,
    defaults: QueueDefaults,
    traces: Traces,
) -> Result<(), AgentError> {
    let started = Timestamp::now();
    let mut wanted = watch_queue(&client, &identity, defaults);
    let Some(queue) = known(&mut wanted).await else { return Ok(()) };
    let reporter = Reporter::start(client.clone(), &identity, &queue, wanted.clone());
    let (paths, volumes) = storage::volumes(&identity, &reporter, &wanted).await;
    foresight::one_level(&client, &identity, &reporter, &paths).await;
    let closed = foresight::closed_to_squashed_root(&paths);
    reporter.update(|report| report.foreseen(closed));
    let locks = storage::lock(&paths, &identity, &reporter).await;
    let guard = Guard::new(volumes.clone(), Some(locks.ownership()));
    let mut lost = tokio::spawn(storage::beat(Keeper::new(locks, volumes, Duration::ZERO)));
    let agent = Agent { client, identity, paths, guard, reporter: reporter.clone(), started, traces };
    // The other future is dropped wherever it is: every step of the engine is safe to repeat.
    tokio::select! {
        done = agent.work(wanted) => done,
        end = &mut lost => unlocked(end, &reporter),
    }
}

/// What a watcher works with while it holds the locks.
struct Agent {
    client: Client,
    identity: Identity,
    paths: Paths,
    guard: Guard,
    reporter: Reporter,
    started: Timestamp,
    traces: Traces,
}

impl Agent {
    /// Works with the ledger. When the ledger fails, reports that and opens it again: an engine that starts restores
    /// its state from the ledger, the directories and the objects.
    async fn work(&self, mut wanted: Wanted) -> Result<(), AgentError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let (reason, why) = match self.ledger().await {
                Ok(ledger) => {
                    let ledger = Writer::start(ledger);
                    let failed = tokio::select! {
                        ended = self.engines(&mut wanted, &ledger) => match ended {
                            Err(AgentError::Engine(engine::Error::Ledger(error))) => (LEDGER_UNUSABLE, chain(&error)),
                            Err(AgentError::Engine(error)) => (UNREADABLE, chain(&error)),
                            ended => return ended,
                        },
                        why = ledger.broken() => (LEDGER_UNUSABLE, why),
                    };
                    // The ledger has one writer: wait for its end before the next one begins.
                    ledger.ended().await;
                    failed
                }
                Err(why) => (LEDGER_UNUSABLE, why),
            };
            let message = format!("{why}; it is tried again by itself");
            tracing::error!(reason, "{message}");
            self.reporter.update(|report| report.storage_unready(reason, message));
            if begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Opens the ledger and writes to it. The error says why that failed.
    async fn ledger(&self) -> Result<Ledger, String> {
        let path = self.paths.daemon().join(LEDGER_FILE);
        let opened = tokio::task::spawn_blocking(move || {
            let ledger = Ledger::open(&path)?;
            ledger.try_write().map(|()| ledger)
        });
        match patiently(opened, &self.reporter).await {
            Ok(opened) => opened.map_err(|error| chain(&error)),
            Err(error) => Err(format!("the ledger could not be tried: {error}")),
        }
    }

    /// One engine after the other, each for a specification and its Secrets, until the queue is gone.
    async fn engines(&self, wanted: &mut Wanted, ledger: &Writer) -> Result<(), AgentError> {
        let Self { client, identity, paths, guard, reporter, started, traces } = self;
        loop {
            let Some(queue) = known(wanted).await else { return Ok(()) };
            let settings = match settings(&queue, paths.clone(), guard.clone(), traces.clone()) {
                Ok(settings) => settings,
                Err(invalid) => {
                    // The controller reports it on the object.
                    tracing::error!("spec.{invalid}; waiting until that is set right");
                    let other =
                        |now: &Option<Arc<HyperConversion>>| now.as_ref().is_none_or(|now| now.spec != queue.spec);
                    match wanted.wait_for(other).await {
                        Ok(_) => continue,
                        Err(_) => return Ok(()),
                    }
                }
            };
            let secrets = Secrets::read(&queue.spec.notifications, &identity.secrets_dir);
            let (outbox, deliveries) = Outbox::start(secrets.config.clone(), ledger.clone(), Patience::default());
            reporter.update(|report| report.notifications(&secrets.wrong, outbox.unusable()));
            let executor = ClusterExecutor::start(client.clone(), Arc::clone(&queue), paths.clone()).await?;
            let (_events, hints) = events::watch(paths.queue());
            let starting = Engine::start(settings, executor, ledger.clone(), outbox, hints, *started);
            let (engine, remote) = Box::pin(starting).await?;
            reporter.update(report::Report::storage_usable);
            tracing::info!(queue = identity.queue, "watching");
            // The engine blocks on files, so the snapshots are passed on in a task of their own, which ends with the
            // engine.
            let mut following = JoinSet::new();
            following.spawn(reporter.clone().follow(remote.watch()));
            following.spawn(reporter.clone().watch_standstill(remote.clone()));
            tokio::select! {
                () = engine.run() => {}
                () = respecified(wanted, &queue, &remote, reporter) => {}
                () = secrets.changed(&queue.spec.notifications, &identity.secrets_dir) => {}
            }
            deliveries.end(DELIVERY_END).await;
            tracing::info!(queue = identity.queue, "the specification or a Secret changed; starting anew");
        }
    }
}

/// Ends because the locks are lost.
fn unlocked(end: Result<LockError, JoinError>, reporter: &Reporter) -> Result<(), AgentError> {
    let Ok(error) = end else { return Ok(()) };
    reporter.unlocked();
    Err(error.into())
}

/// Passes the run state on; returns when anything else of the specification changed, or the queue is gone.
async fn respecified(wanted: &mut Wanted, before: &HyperConversion, remote: &Remote, reporter: &Reporter) {
    let without_state =
        |spec: &HyperConversionSpec| HyperConversionSpec { run_state: RunState::default(), ..spec.clone() };
    let held = without_state(&before.spec);
    let mut sent = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        match now {
            Some(queue) if without_state(&queue.spec) == held => {
                let asked = (queue.spec.run_state, revision(&queue));
                if sent != Some(asked) {
                    remote.ask(asked.0, asked.1).await;
                    sent = Some(asked);
                }
                reporter.update(|report| report.requested(&queue));
            }
            Some(queue) => {
                // Also to the engine that is about to end: it knows what was queued when draining began.
                remote.ask(queue.spec.run_state, revision(&queue)).await;
                return;
            }
            None => return,
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn settings(queue: &HyperConversion, paths: Paths, guard: Guard, traces: Traces) -> Result<Settings, InvalidSetting> {
    let spec = &queue.spec;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Ok(Settings {
        paths,
        guard,
        home: Home::Cluster { uid: queue.uid().unwrap_or_default(), revision: revision(queue) },
        method: Method::NoReplace,
        limit: usize::try_from(spec.max_concurrent_jobs).unwrap_or(usize::MAX),
        archive_processed: spec.archive_processed,
        deduplicate: spec.deduplication.enabled,
        deduplicate_by_md5: spec.deduplication.enabled && spec.deduplication.use_md5,
        look_interval: look_interval(),
        file_stable_timeout: seconds(spec.file_stable_timeout_seconds),
        companion_timeout: seconds(spec.companion_timeout_seconds),
        quiet_period: seconds(spec.quiet_period_seconds),
        policy: spec.retry_policy.policy()?,
        retention: spec.retention.limits(),
        retention_day: retention_day(),
        options: spec.conversion.options()?,
        zone: TimeZone::UTC,
        stall_threshold: seconds(spec.notifications.stalled_after_seconds),
        run_state: spec.run_state,
        world: World::Machine,
        traces,
    })
}

/// The revision of the specification: the API server counts its changes.
fn revision(queue: &HyperConversion) -> i64 {
    queue.metadata.generation.unwrap_or_default()
}
