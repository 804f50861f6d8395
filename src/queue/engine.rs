// SPDX-License-Identifier: Apache-2.0
//! The engine: one task owns one queue directory. Inputs come in, effects go out, and every effect is recorded first.
//!
//! ```text
//!  file events ─┐                                       ┌─▶ moves in the queue and output directories
//!  rescans     ─┤   intake ──▶ claim ──▶ advance ───────┼─▶ executor
//!  updates     ─┼─▶ (settle,   (dedup)   (decide: pure; ├─▶ ledger
//!  commands    ─┤    group)               then do)      ├─▶ notifications
//!  the clock   ─┘                                       └─▶ snapshot
//! ```
//!
//! The engine blocks on the file system. A socket is therefore served on another thread, which reads the snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::conversion::admission::RunState;
use crate::conversion::{ConversionId, Failure, Metadata, Progress, Stamp, chain};
use crate::executor::Executor;
use crate::ledger::{self, ConversionRow, NewNotification};
use crate::notification::StallWatch;
use crate::stats::Snapshot;

mod absence;
mod advance;
mod alone;
mod arrivals;
mod barred;
mod changed;
mod claim;
mod control;
mod decide;
mod denied;
mod dispose;
mod drain;
mod duplicates;
mod ended;
mod error;
pub mod events;
mod folders;
mod ignored;
mod intake;
pub mod outbox;
mod publish;
pub mod pulse;
mod recovery;
mod requests;
mod retention;
mod settings;
mod space;
mod view;
mod world;

#[cfg(test)]
mod simulation;

pub use control::{Receipt, Remote, Tuning};
pub use error::Error;
pub use settings::{Home, Settings};
pub use world::World;

use absence::Absence;
use barred::Barred;
use changed::Ended;
use control::{Order, Pulses, UnrecordedPause};
use drain::Drain;
use duplicates::Digests;
use events::Hints;
use intake::Intake;
use outbox::Outbox;
use requests::Requests;
use retention::Retaining;
use space::Space;

/// How many conversions are claimed beyond those that run: enough that a free slot never waits for a claim. The other
/// artifacts wait as files.
const CLAIMED_AHEAD: usize = 32;

/// How long an effect that failed waits until it is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// How often aged rows are removed from the ledger.
const PRUNE_INTERVAL: Duration = Duration::from_secs(24 * 3600);

type Result<T> = std::result::Result<T, Error>;

/// One queue's engine.
#[derive(Debug)]
pub struct Engine<E> {
    settings: Settings,
    executor: E,
    ledger: ledger::Writer,
    outbox: Outbox,
    /// Announcements that belong to no conversion and are not recorded yet.
    unposted: Vec<NewNotification>,
    run_state: RunState,
    intake: Intake,
    requests: Requests,
    digests: Digests,
    space: Space,
    /// Conversions of single files whose ends a descriptor waits for.
    awaited: BTreeSet<ConversionId>,
    /// Files that were recalled from conversions of their own, with the ids of those, until they are claimed again.
    recalled: HashMap<Stamp, ConversionId>,
    conversions: BTreeMap<ConversionId, Conversion>,
    /// Failed claims that may have left something in `.processing/`.
    failed_claims: BTreeSet<ConversionId>,
    /// What is still to be claimed while draining; `None` while not draining, or until that is known.
    drain: Option<Drain>,
    /// Whether what lay in the directory at the start has settled or will never settle.
    has_settled: bool,
    commands: mpsc::UnboundedReceiver<Order>,
    hints: mpsc::Receiver<String>,
    snapshot: watch::Sender<Snapshot>,
    /// The snapshot as it will be published.
    view: Snapshot,
    /// Whether the queue is paused, as long as a restart would not know of it.
    unrecorded_pause: Option<UnrecordedPause>,
    pulses: Pulses,
    /// Until when notifications delay the engine's end, once nothing else does.
    outbox_until: Option<Duration>,
    /// Moment that the engine's durations count from.
    origin: Instant,
    /// When something was last started, progressed or finished.
    last_activity: Option<Timestamp>,
    stall: StallWatch,
    ended: Ended,
    retaining: Retaining,
    next_prune: Duration,
    /// Nothing is claimed before then, after a claim of the intake failed.
    claim_pause: Duration,
    absence: Absence,
    barred: Barred,
}

/// A conversion as the engine holds it.
#[derive(Debug)]
struct Conversion {
    row: ConversionRow,
    /// Whether the executor knows of it.
    is_submitted: bool,
    may_run: bool,
    progress: Option<Progress>,
    /// Whether the moves that the row's state names are known to be done.
    is_in_place: bool,
    has_room: bool,
    /// Why it fails without an attempt.
    rejected: Option<Failure>,
    /// What was published.
    metadata: Option<Metadata>,
    /// After an error: when the next effect is tried.
    hold_until: Duration,
    last_error: String,
    /// Whether the last effect failed, and was not tried again with success.
    is_stuck: bool,
}

impl Conversion {
    /// A conversion of an earlier run: the executor has yet to say whether a worker runs.
    fn left(row: ConversionRow) -> Self {
        Self { may_run: true, ..Self::new(row) }
    }

    /// A new conversion that the executor does not know yet: no worker can run.
    fn new(row: ConversionRow) -> Self {
        Self {
            row,
            is_submitted: false,
            may_run: false,
            progress: None,
            is_in_place: false,
            has_room: true,
            rejected: None,
            metadata: None,
            hold_until: Duration::ZERO,
            last_error: String::new(),
            is_stuck: false,
        }
    }
}

impl<E: Executor> Engine<E> {
    /// Recovers what an earlier run left, and makes the engine that goes on from there. The caller holds the locks of
    /// both directories. `hints` are the names that file events carry.
    pub async fn start(
        settings: Settings,
        executor: E,
        ledger: ledger::Writer,
        outbox: Outbox,
        hints: Hints,
        started: Timestamp,
    ) -> Result<(Self, Remote)> {
        let (left, paused) = ledger.call(|ledger| Ok((ledger.left_in_place()?, ledger.is_paused()?))).await?;
        let run_state = if paused && settings.home == Home::Host { RunState::Paused } else { settings.run_state };
        let view = Snapshot { run_state, ..Snapshot::new(started) };
        let (snapshot, receiver) = watch::channel(view.clone());
        let (sender, commands) = mpsc::unbounded_channel();
        let pulses = Pulses::default();
        let pace = settings.pace();
        let Hints { names: hints, writers, events } = hints;
        let of_files = (writers, events);
        let intake = Intake::new(settings.paths.queue().to_owned(), pace, of_files, left, settings.world.clone());
        let drain = match &settings.home {
            Home::Cluster { revision, .. } if run_state == RunState::Draining => {
                Drain::resume(&settings.paths, *revision)
            }
            Home::Host | Home::Cluster { .. } => None,
        };
        // A daemon that is to drain ends with the files that it knows of.
        let has_settled = settings.home == Home::Host;
        let mut engine = Self {
            settings,
            executor,
            ledger,
            outbox,
            unposted: Vec::new(),
            run_state,
            intake,
            requests: Requests::default(),
            digests: Digests::default(),
            space: Space::default(),
            awaited: BTreeSet::new(),
            recalled: HashMap::new(),
            conversions: BTreeMap::new(),
            failed_claims: BTreeSet::new(),
            drain,
            has_settled,
            commands,
            hints,
            snapshot,
            view,
            unrecorded_pause: None,
            pulses: pulses.clone(),
            outbox_until: None,
            origin: Instant::now(),
            last_activity: None,
            stall: StallWatch::default(),
            ended: Ended::default(),
            retaining: Retaining::default(),
            next_prune: Duration::ZERO,
            claim_pause: Duration::ZERO,
            absence: Absence::default(),
            barred: Barred::default(),
        };
        engine.refresh_totals().await?;
        engine.remember_drain();
        engine.executor.set_run_state(run_state).await?;
        engine.recover().await?;
        engine.show();
        Ok((engine, Remote::new(sender, receiver, pulses)))
    }

    /// Runs until drained or stopped (on one host), or until every [`Remote`] is gone.
    pub async fn run(mut self) {
        let mut commands_open = true;
        let mut hints_open = true;
        loop {
            self.pulses.round.begin();
            self.pass().await;
            self.pulses.round.rest();
            let now = self.now();
            if self.is_over(now) {
                break;
            }
            let wake = self.origin + self.wake();
            let closed = self.notification_closed();
            tokio::select! {
                biased;
                command = self.commands.recv(), if commands_open => match command {
                    Some(command) => {
                        self.pulses.round.begin();
                        self.obey(command).await;
                    }
                    None => commands_open = false,
                },
                update = self.executor.next(), if self.takes_updates() => {
                    self.pulses.round.begin();
                    self.take_updates(update).await;
                }
                hint = self.hints.recv(), if hints_open => match hint {
                    Some(name) => self.take_hints(&name),
                    None => hints_open = false,
                },
                digest = self.digests.next() => self.digests.put(digest),
                () = closed => self.refresh_notifications().await,
                () = sleep_until(wake) => {}
            }
        }
        if let Err(error) = self.ledger.call(ledger::Ledger::flush).await {
            tracing::warn!(error = %chain(&error), "the ledger is behind; the next start makes up for it");
        }
        self.show();
    }

    /// One round over everything that may have become due.
    async fn pass(&mut self) {
        let now = self.now();
        if !self.may_touch(now).await {
            self.show();
            return;
        }
        self.prune(now).await;
        self.look_at_read_only();
        // An error is logged where it happens, each time.
        let _ = self.record_pause().await;
        self.intake.look(now);
        self.group(now);
        self.look_at_drain(now);
        self.look_at_ended(now).await;
        self.retain(now).await;
        self.recall().await;
        self.space_look(now);
        self.advance_all().await;
        let has_floor = self.has_floor(now);
        if self.run_state != RunState::Stopped && has_floor {
            self.claim_requested().await;
            self.claim_ready().await;
            self.advance_all().await;
        }
        self.show();
        self.watch_for_stall();
        self.post().await;
    }

    /// The present, as the engine's durations count it.
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The present, as people and records see it.
    fn wall(&self) -> Timestamp {
        self.settings.world.now()
    }

    fn wake(&self) -> Duration {
        let now = self.now();
        if let Some(at) = self.absence.next_look() {
            return at.max(now + SHORTEST_WAIT);
        }
        let held = self.conversions.values().map(|c| c.hold_until).filter(|at| *at > now).min();
        let due = self.next_retry().map(|delay| now + delay);
        let claim = (self.claim_pause > now).then_some(self.claim_pause);
        let over = self.outbox_until;
        [
            Some(self.intake.wake()),
            held,
            due,
            claim,
            over,
            self.next_request(),
            self.space.next_look(),
            Some(self.next_prune),
        ]
        .into_iter()
        .flatten()
        .fold(now + RESCAN_AT_LEAST, Duration::min)
        .max(now + SHORTEST_WAIT)
    }

    fn take_hints(&mut self, first: &str) {
        let now = self.now();
        self.intake.hint(first, now);
        while let Ok(name) = self.hints.try_recv() {
            self.intake.hint(&name, now);
        }
    }

    async fn prune(&mut self, now: Duration) {
        if now < self.next_prune {
            return;
        }
        self.next_prune = now + PRUNE_INTERVAL;
        let clock = self.settings.world.clock();
        match self.ledger.call(move |ledger| ledger.prune(&clock)).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "removed aged rows of processed_files"),
            Err(error) => tracing::warn!(error = %chain(&error), "cannot remove aged rows"),
        }
        self.prune_outbox().await;
    }

    fn is_over(&mut self, now: Duration) -> bool {
        if self.settings.home != Home::Host {
            return false;
        }
        let limit = match self.run_state {
            RunState::Stopped if self.conversions.values().all(|c| !c.may_run) => outbox::WAIT_AT_STOP,
            RunState::Draining if self.conversions.is_empty() && !self.has_to_drain() => outbox::WAIT_AT_DRAIN,
            RunState::Running | RunState::Paused | RunState::Stopped | RunState::Draining => {
                self.outbox_until = None;
                return false;
            }
        };
        !self.outbox_holds(now, limit)
    }
}

/// Upper bound of a sleep, in case a wake-up source was missed.
const RESCAN_AT_LEAST: Duration = Duration::from_secs(30);

/// Shortest sleep: what is due at this moment is done in the next round, after the inputs were read.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
