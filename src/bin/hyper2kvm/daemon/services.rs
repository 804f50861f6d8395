// SPDX-License-Identifier: Apache-2.0
//! The services beside the engine: control socket, endpoint, statistics, signals, the heartbeat of the locks.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper2kvm::control::{self, Command, Handler, Reply};
use hyper2kvm::conversion::admission::RunState;
use hyper2kvm::conversion::chain;
use hyper2kvm::files::Paths;
use hyper2kvm::queue::engine::pulse::Pulse;
use hyper2kvm::queue::engine::{Receipt, Remote};
use hyper2kvm::queue::lock::{Beat, HEARTBEAT_INTERVAL, Keeper, LockError};
use hyper2kvm::queue::probe::is_no_space;
use hyper2kvm::stats::{self, Snapshot};
use hyper2kvm::telemetry::endpoint::{self, Probes};
use jiff::Timestamp;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::anew;
use super::deadline::Deadline;
use super::reload::Reload;

/// Name of the statistics below `{output}/.daemon/`: exporters read it.
const STATS_FILE: &str = "stats.json";

/// Greatest age of the file of statistics.
const STATS_INTERVAL: Duration = Duration::from_secs(60);

/// How often the summary is logged.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(3600);

/// How long an end waits for answers under way, and for a heartbeat.
const END_TIMEOUT: Duration = Duration::from_millis(1500);

/// How often the engine and the heartbeat are checked for standing still.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Everything beside the engine.
#[derive(Debug)]
pub(super) struct Services {
    remote: Remote,
    stats_file: PathBuf,
    shutdown: CancellationToken,
    deadline: Deadline,
    tasks: Vec<JoinHandle<()>>,
    heartbeat: JoinHandle<Option<Keeper>>,
}

impl Services {
    pub(super) fn start(
        runtime: &Handle,
        remote: Remote,
        signals: Option<Signals>,
        socket: control::Listener,
        endpoint: Option<TcpListener>,
        keeper: Keeper,
        paths: &Paths,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let stats_file = paths.daemon().join(STATS_FILE);
        let deadline = Deadline::default();
        let health = Health { remote: remote.clone(), heartbeat: Pulse::default(), unseen: Arc::default() };
        let control = Control { health: health.clone(), deadline: deadline.clone() };
        let mut tasks = vec![
            runtime.spawn(socket.serve(control, shutdown.clone())),
            runtime.spawn(health.clone().watch(shutdown.clone())),
            runtime.spawn(keep_stats(remote.watch(), stats_file.clone(), shutdown.clone())),
        ];
        if let Some(signals) = signals {
            tasks.push(runtime.spawn(obey_signals(signals, remote.clone(), deadline.clone(), shutdown.clone())));
        }
        if let Some(listener) = endpoint {
            let (_, ready) = watch::channel(true);
            let shown = health.clone();
            let probes = health.clone().probes(Probes::of_daemon(remote.watch(), ready, move || shown.snapshot()));
            tasks.push(runtime.spawn(serve_endpoint(listener, probes, shutdown.clone())));
        }
        let heartbeat = runtime.spawn(beat(keeper, health, remote.clone(), shutdown.clone()));
        Self { remote, stats_file, shutdown, deadline, tasks, heartbeat }
    }

    /// Reloads at each of these signals.
    pub(super) fn reload_on(&mut self, runtime: &Handle, hangups: Signal, reload: Reload) {
        self.tasks.push(runtime.spawn(reload.obey(hangups, self.shutdown.clone())));
    }

    /// The time limit of the end, which begins when the daemon is told to stop.
    pub(super) fn deadline(&self) -> &Deadline {
        &self.deadline
    }

    /// To be called outside any runtime. Finishes answers under way, writes the last statistics, and gives the
    /// directories up.
    pub(super) fn end(self, runtime: Runtime) {
        self.deadline.begin();
        self.shutdown.cancel();
        let snapshot = self.remote.snapshot();
        log_summary(&snapshot);
        let all = async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::debug!(%error, "a service has ended early");
                }
            }
            self.heartbeat.await
        };
        let ended = runtime.block_on(async { tokio::time::timeout(END_TIMEOUT, all).await });
        // Last, for an older state that is still being written must not replace it.
        write_stats(&self.stats_file, &snapshot);
        match ended {
            // An engine that was cut off has children, which end with this process: nobody may take over before that.
            Ok(Ok(Some(keeper))) if !self.deadline.has_cut() => {
                if let Err(error) = keeper.into_locks().release() {
                    tracing::warn!(error = %chain(&error), "cannot give the directories up");
                }
            }
            Ok(Ok(_)) => tracing::debug!("the directories are left to the next start"),
            Ok(Err(error)) => tracing::warn!(%error, "the heartbeat has ended early"),
            Err(_) => tracing::debug!("a service did not end in time"),
        }
        // Threads that hang in the kernel are not waited for.
        runtime.shutdown_background();
    }
}

/// Whether everything that may hang in the kernel runs.
#[derive(Clone, Debug)]
struct Health {
    remote: Remote,
    heartbeat: Pulse,
    /// Why the heartbeat can't be written, other than for room.
    unseen: Arc<Mutex<Option<String>>>,
}

impl Health {
    /// The error says what stands still.
    fn check(&self) -> Result<(), String> {
        if let Some(why) = self.hang() {
            return Err(why);
        }
        match self.unseen.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(why) => Err(format!("the heartbeat can't be written: {why}")),
            None => Ok(()),
        }
    }

    /// What has not answered for how long.
    fn hang(&self) -> Option<String> {
        if let Some(time) = self.heartbeat.standstill() {
            return Some(format!("a volume has not answered for {} s", time.as_secs()));
        }
        let time = self.remote.standstill()?;
        Some(format!("the engine has stood still for {} s: a volume or the ledger does not answer", time.as_secs()))
    }

    /// The engine's last snapshot; what stands still now is what it waits for.
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.remote.snapshot();
        snapshot.waiting_for = self.hang().or(snapshot.waiting_for);
        snapshot
    }

    fn probes(self, probes: Probes) -> Probes {
        let Probes { healthy, ready, metrics, shown } = probes;
        Probes { healthy: Box::new(move || healthy().and_then(|()| self.check())), ready, metrics, shown }
    }

    /// Logs when something stands still, and when it runs again.
    async fn watch(self, shutdown: CancellationToken) {
        let mut is_told = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            }
            match self.check() {
                Err(why) if !std::mem::replace(&mut is_told, true) => tracing::error!("{why}"),
                Ok(()) if std::mem::replace(&mut is_told, false) => tracing::info!("everything turns again"),
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// The control socket's commands, carried out by the engine.
#[derive(Debug)]
struct Control {
    health: Health,
    deadline: Deadline,
}

impl Handler for Control {
    async fn handle(&self, command: Command) -> Reply {
        match command.run_state() {
            Some(run_state) => {
                if run_state == RunState::Stopped {
                    self.deadline.begin();
                }
                answer(command, self.health.remote.set_run_state(run_state).await)
            }
            None if command == Command::Status => Reply::status(&self.health.snapshot()),
            None => Reply::stats(&self.health.remote.snapshot(), Timestamp::now()),
        }
    }
}

/// A pause and its end must survive a restart: the command is done when they are recorded.
fn answer(command: Command, receipt: Receipt) -> Reply {
    let is_remembered = matches!(command, Command::Pause | Command::Resume);
    match receipt {
        Receipt::Waiting if is_remembered => Reply::Failed(format!(
            "{command} is not recorded yet: the daemon is busy, or a volume or its ledger does not answer; it is done \
             as soon as that passes, ask for the status then"
        )),
        Receipt::Unrecorded(why) if is_remembered => Reply::Failed(format!(
            "{command} holds, but is not recorded: {why}; it is tried again, a restart before does not know of it"
        )),
        Receipt::Recorded | Receipt::Waiting | Receipt::Unrecorded(_) => Reply::accepted(command),
        Receipt::Ended => Reply::Failed("the daemon is stopping".to_owned()),
    }
}

/// Writes the statistics at each completion, and at regular times.
async fn keep_stats(mut snapshots: watch::Receiver<Snapshot>, file: PathBuf, shutdown: CancellationToken) {
    let mut often = interval(STATS_INTERVAL);
    let mut seldom = interval(SUMMARY_INTERVAL);
    for timer in [&mut often, &mut seldom] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    // The first tick comes at once, when there is nothing to sum up.
    seldom.tick().await;
    let mut written = snapshots.borrow().totals.clone();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = often.tick() => {}
            _ = seldom.tick() => {
                let snapshot = snapshots.borrow().clone();
                log_summary(&snapshot);
                continue;
            }
            changed = snapshots.changed() => match changed {
                Ok(()) if snapshots.borrow_and_update().totals == written => continue,
                Ok(()) => {}
                Err(_) => return,
            },
        }
        let snapshot = snapshots.borrow().clone();
        written.clone_from(&snapshot.totals);
        let file = file.clone();
        // The volume may hang, and this thread answers all requests.
        if let Err(error) = tokio::task::spawn_blocking(move || write_stats(&file, &snapshot)).await {
            tracing::warn!(%error, "cannot write the statistics");
        }
    }
}

fn write_stats(file: &Path, snapshot: &Snapshot) {
    if let Err(error) = stats::write(file, &snapshot.file_report(Timestamp::now())) {
        tracing::warn!(error = %chain(&error), "cannot write the statistics");
    }
}

fn log_summary(snapshot: &Snapshot) {
    for line in stats::summary(snapshot, Timestamp::now()) {
        tracing::info!("{line}");
    }
}

/// Signals that no longer end the process.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    tell: Signal,
}

/// Receives SIGHUP, which then no longer ends the process. Must be called within a runtime.
pub(super) fn listen_for_hangups() -> Option<Signal> {
    listen(SignalKind::hangup())
}

impl Signals {
    /// Must be called within a runtime.
    pub(super) fn listen() -> Option<Self> {
        Some(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            tell: listen(SignalKind::user_defined1())?,
        })
    }

    /// Waits for a signal to stop.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The first SIGTERM or SIGINT stops, the second ends at once; SIGUSR1 asks for the summary.
async fn obey_signals(mut signals: Signals, remote: Remote, deadline: Deadline, shutdown: CancellationToken) {
    let mut is_stopping = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = signals.tell.recv() => {
                log_summary(&remote.snapshot());
                continue;
            }
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        }
        // Before anything is logged: the log may hang.
        deadline.begin();
        if std::mem::replace(&mut is_stopping, true) {
            tracing::warn!("told twice to stop: ending at once");
            std::process::exit(1);
        }
        tracing::info!("stopping on a signal");
        let remote = remote.clone();
        tokio::spawn(async move { remote.set_run_state(RunState::Stopped).await });
    }
}

fn listen(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| tracing::error!(%error, "cannot listen for a signal")).ok()
}

async fn serve_endpoint(listener: TcpListener, probes: Probes, shutdown: CancellationToken) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => endpoint::serve(listener, probes, shutdown).await,
        Err(error) => tracing::error!(%error, "cannot serve the HTTP endpoint"),
    }
}

/// Whether only room is missing, which is announced elsewhere.
fn is_full(error: &LockError) -> bool {
    let first = Some(error as &(dyn std::error::Error + 'static));
    let mut causes = std::iter::successors(first, |error| error.source());
    causes.any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(is_no_space))
}

/// Shows that we live, and ends the process when the directories are no longer ours: then no file may be moved.
async fn beat(mut keeper: Keeper, health: Health, remote: Remote, shutdown: CancellationToken) -> Option<Keeper> {
    let mut timer = interval(HEARTBEAT_INTERVAL);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = tokio::time::Instant::now();
    // Each state is logged once, until it is over.
    let mut said = String::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Some(keeper),
            _ = timer.tick() => {}
        }
        health.heartbeat.begin();
        // A volume may hang, and this thread answers all requests.
        let beaten = tokio::task::spawn_blocking(move || {
            let beaten = keeper.beat(Timestamp::now(), begun.elapsed());
            (keeper, beaten)
        });
        let (back, beaten) = beaten.await.ok()?;
        keeper = back;
        health.heartbeat.rest();
        let unseen = match &beaten {
            Beat::Unseen(error) if !is_full(error) => Some(chain(error)),
            _ => None,
        };
        *health.unseen.lock().unwrap_or_else(PoisonError::into_inner) = unseen;
        match beaten {
            Beat::Held => said.clear(),
            Beat::Lost(error @ LockError::Anew(_))
                if matches!(remote.snapshot().run_state, RunState::Running | RunState::Paused) =>
            {
                tracing::warn!("{}; beginning anew in the same process", chain(&error));
                tracing::error!(error = %anew::begin(), "cannot begin anew; ending, to be started again");
                std::process::exit(1);
            }
            Beat::Lost(error) => {
                let what = match error {
                    LockError::Lost { .. } => "the directories are another's now",
                    LockError::Anew(_) => "ending on the old mount, for nothing more was to be taken",
                    _ => "another may have taken the directories by now; ending, to be started again",
                };
                tracing::error!(error = %chain(&error), "{what}");
                std::process::exit(1);
            }
            Beat::Unseen(error) if said != chain(&error) => {
                said = chain(&error);
                tracing::warn!(error = said, "cannot write the heartbeat");
            }
            Beat::Doubtful(error) if said != chain(&error) => {
                said = chain(&error);
                tracing::warn!(error = said, "cannot tell whose the directories are; looking again");
            }
            Beat::Unseen(_) | Beat::Doubtful(_) => {}
            // The engine logs it.
            Beat::Away(away) => tracing::debug!(error = %chain(&away), "no heartbeat"),
        }
    }
}
