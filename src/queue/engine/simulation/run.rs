// SPDX-License-Identifier: Apache-2.0
//! One seed, from the first drop to the last check.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::tz::TimeZone;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::conversion::admission::RunState;
use crate::conversion::{ConversionOptions, Emit};
use crate::files::Paths;
use crate::files::volume::simulated::{Death, Keeps, Random, Volume};
use crate::ledger::{self, Ledger};
use crate::notification::NotificationConfig;
use crate::queue::engine::events::{Events, Hints};
use crate::queue::engine::outbox::Outbox;
use crate::queue::engine::{Engine, Home, Remote, Settings, World as Machine};
use crate::queue::guard::Guard;
use crate::queue::identity;
use crate::telemetry::traces::Traces;

use crate::queue::writers::Writers;

use super::Simulated;
use super::executor::{Worker, World};
use super::script::{Act, Script};
use super::site::Site;

/// Time from the beginning within which everything must have come to rest, on the virtual clock.
const REST_WITHIN: Duration = Duration::from_secs(3600);

/// Longer than anything waits by itself: a descriptor waits for its extents.
const REST: Duration = Duration::from_secs(45);

/// How long a supervisor waits before it starts a process again.
const RESTART: Duration = Duration::from_secs(2);

/// The result of a seed.
#[derive(Debug)]
pub(super) struct Ran {
    pub outcome: Result<(), String>,
    pub trace: Vec<String>,
}

/// Runs one seed, on a directory in memory where there is one.
pub(super) fn run(seed: u64) -> Ran {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let place = place.expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime of one thread");
    runtime.block_on(async {
        let root = place.path().join("volume");
        let paths = Paths::new(root.join("queue"), root.join("output"));
        for dir in paths.standing() {
            std::fs::create_dir_all(dir).expect("a temporary directory");
        }
        let volume = Volume::new(&root, seed ^ 1);
        let _entered = volume.enter();
        let mut play = Play::new(seed, place.path(), paths, Rc::clone(&volume));
        let outcome = Box::pin(play.play()).await;
        Ran { outcome, trace: volume.trace() }
    })
}

/// What ended an engine.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// The engine itself: it was drained or stopped, or could not start.
    Itself,
    Death,
}

struct Play<'a> {
    place: &'a Path,
    script: Script,
    volume: Rc<Volume>,
    time: Simulated,
    world: Rc<RefCell<World>>,
    site: Site,
    /// What is asked of the queue (in a cluster), with its revision.
    asked: (RunState, i64),
    /// What the power cut at the next death leaves, if there is one.
    cut: Option<Keeps>,
    begun: Instant,
    /// Whether somebody deletes the ledger before the next start.
    loses_ledger: bool,
    /// Whether everything has come to rest once already.
    is_last: bool,
    /// The first thing that happened and must never happen.
    violation: Option<String>,
    random: Random,
}

impl<'a> Play<'a> {
    fn new(seed: u64, place: &'a Path, paths: Paths, volume: Rc<Volume>) -> Self {
        let mut random = Random::new(seed);
        let script = Script::of(&mut random);
        volume.note(format!("{script:?}"));
        let time = Simulated::new(random.next());
        let world = World::new(
            script.is_cluster,
            paths.clone(),
            script.policy,
            script.limit,
            time.clone(),
            Random::new(random.next()),
            Rc::clone(&volume),
        );
        let site = Site::new(paths, Rc::clone(&volume), time.clone(), Random::new(random.next()));
        let mut world = world;
        world.wrong = Rc::clone(&site.wrong);
        let world = Rc::new(RefCell::new(world));
        let asked = (RunState::Running, 1);
        Self {
            place,
            script,
            volume,
            time,
            world,
            site,
            asked,
            cut: None,
            begun: Instant::now(),
            loses_ledger: false,
            is_last: false,
            violation: None,
            random,
        }
    }

    async fn play(&mut self) -> Result<(), String> {
        let mut acts = self.script.acts.clone().into();
        loop {
            let (ending, is_at_rest) = Box::pin(self.live(&mut acts)).await;
            if let Some(violation) = self.volume.violation().or(self.violation.take()) {
                return Err(violation);
            }
            if is_at_rest {
                // Some things are removed by a start only, so there is one more start.
                if self.is_last {
                    break;
                }
                self.is_last = true;
                self.world.borrow_mut().engine_died();
                continue;
            }
            if ending == Ending::Death {
                self.world.borrow_mut().engine_died();
                if let Some(keeps) = self.cut.take() {
                    self.world.borrow_mut().machine_died();
                    self.volume.cut(keeps);
                    self.site.power_was_cut();
                    self.volume.note(format!("the power was cut: {keeps:?}"));
                }
                if !self.site.is_away() {
                    let published = self.site.check_published(false)?;
                    self.site.check_places(&published, &self.script.retention, false)?;
                }
            } else {
                self.world.borrow_mut().engine_died();
            }
            if self.begun.elapsed() > REST_WITHIN {
                return Err("no rest".to_owned());
            }
            sleep(RESTART).await;
        }
        // Everything has come to rest: the final check may begin.
        let mut ledger = self.open()?;
        self.site.check_end(&self.world.borrow(), &mut ledger, &self.script)
    }

    fn open(&self) -> Result<Ledger, String> {
        // Each transaction is on the disk when it returns: no power cut undoes one.
        Ledger::open(&self.place.join("ledger.db")).map_err(|error| format!("the ledger: {error}"))
    }

    /// Somebody deletes the ledger. What was counted and told is told to nobody any more.
    fn lose_ledger(&mut self) {
        self.volume.note("the ledger is lost".to_owned());
        for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db-journal"] {
            let _ = std::fs::remove_file(self.place.join(name));
        }
        self.world.borrow_mut().ended.clear();
        self.site.ledger_was_lost();
    }

    fn settings(&self, guard: Guard) -> Settings {
        let script = &self.script;
        let is_cluster = script.is_cluster;
        Settings {
            paths: self.site.paths.clone(),
            guard,
            home: if is_cluster {
                Home::Cluster { uid: "queue".to_owned(), revision: self.asked.1 }
            } else {
                Home::Host
            },
            method: script.method,
            limit: script.limit,
            archive_processed: script.archive_processed,
            deduplicate: script.deduplicate,
            deduplicate_by_md5: script.deduplicate && script.deduplicate_by_md5,
            look_interval: Duration::from_secs(1),
            file_stable_timeout: Duration::from_secs(30),
            companion_timeout: Duration::from_secs(20),
            quiet_period: Duration::from_secs(5),
            policy: script.policy,
            retention: script.retention,
            // Short enough that much is removed before the end.
            retention_day: Duration::from_secs(5),
            options: ConversionOptions {
                emit: Emit::domain_xml(script.emit_domain_xml),
                ..ConversionOptions::default()
            },
            zone: TimeZone::UTC,
            stall_threshold: Duration::from_secs(3600),
            run_state: if is_cluster { self.asked.0 } else { RunState::Running },
            traces: Traces::default(),
            world: Machine::Simulated(self.time.clone()),
        }
    }

    /// One life of an engine, until it ends or everything is at rest.
    async fn live(&mut self, acts: &mut std::collections::VecDeque<(Duration, Act)>) -> (Ending, bool) {
        let paths = self.site.paths.clone();
        let taken = AssertUnwindSafe(async { identity::plan(paths.queue(), paths.output(), false)?.carry_out(&paths) });
        let guard = match taken.catch_unwind().await {
            Ok(Ok(volumes)) => Guard::new(volumes, None),
            Ok(Err(error)) => {
                let root = self.place.display().to_string();
                self.volume.note(format!("cannot take the volumes: {error}").replace(&root, ""));
                self.while_down(acts);
                return (Ending::Itself, false);
            }
            Err(thrown) => {
                self.died(thrown);
                return (Ending::Death, false);
            }
        };
        if std::mem::take(&mut self.loses_ledger) {
            self.lose_ledger();
        }
        let Ok(ledger) = self.open() else { return (Ending::Itself, false) };
        let writer = ledger::Writer::inline(ledger);
        let executor = Worker::new(Rc::clone(&self.world), writer.clone());
        let outbox = Outbox::kept(NotificationConfig { on_success: true, ..NotificationConfig::default() });
        let (_events, names) = mpsc::channel(1);
        let writers = Writers::default();
        self.site.watched_by(writers.clone());
        let hints = Hints { names, writers, events: Events::default() };
        let started = self.time.now();
        self.volume.note("starts".to_owned());
        let starting = Box::pin(Engine::start(self.settings(guard), executor, writer.clone(), outbox, hints, started));
        let remote = match AssertUnwindSafe(starting).catch_unwind().await {
            Ok(Ok((engine, remote))) => {
                let running = AssertUnwindSafe(engine.run()).catch_unwind();
                let mut running = std::pin::pin!(running);
                return self.accompany(acts, &mut running, &remote, &writer).await;
            }
            Ok(Err(error)) => Err(error),
            Err(thrown) => Ok(thrown),
        };
        match remote {
            Ok(thrown) => {
                self.died(thrown);
                (Ending::Death, false)
            }
            Err(error) => {
                let root = self.place.display().to_string();
                self.volume.note(format!("cannot start: {error}").replace(&root, ""));
                self.while_down(acts);
                (Ending::Itself, false)
            }
        }
    }

    /// Any panic but that of a simulated death is a fault of the engine, or of the simulation.
    fn died(&mut self, thrown: Box<dyn std::any::Any + Send>) {
        if !thrown.is::<Death>() {
            std::panic::resume_unwind(thrown);
        }
        self.volume.die_in(None);
    }

    /// Performs the acts that are due while no engine runs.
    fn while_down(&mut self, acts: &mut std::collections::VecDeque<(Duration, Act)>) {
        while acts.front().is_some_and(|(at, _)| self.begun + *at <= Instant::now()) {
            let (_, act) = acts.pop_front().expect("a first one was just seen");
            self.act(act, None);
        }
        if acts.is_empty() {
            self.calm();
        }
    }

    async fn accompany(
        &mut self,
        acts: &mut std::collections::VecDeque<(Duration, Act)>,
        running: &mut (impl Future<Output = Result<(), Box<dyn std::any::Any + Send>>> + Unpin),
        remote: &Remote,
        ledger: &ledger::Writer,
    ) -> (Ending, bool) {
        let mut rest: Option<Instant> = None;
        loop {
            let next = acts.front().map(|(at, _)| self.begun + *at);
            // Deferred changes are written a while later, whatever happens.
            let pause = if rest.is_some() { 2000 } else { 1 + self.random.below(400) };
            let flush = Instant::now() + Duration::from_millis(pause);
            let tick = next.map_or(flush, |at| at.min(flush));
            tokio::select! {
                biased;
                ended = &mut *running => return match ended {
                    Ok(()) => (Ending::Itself, false),
                    Err(thrown) => {
                        self.died(thrown);
                        (Ending::Death, false)
                    }
                },
                () = sleep_until(tick) => {}
            }
            // If this fails, the next transaction reports it.
            let _ = self.volume.other(|| ledger.wait(Ledger::flush));
            while acts.front().is_some_and(|(at, _)| self.begun + *at <= Instant::now()) {
                let (_, act) = acts.pop_front().expect("a first one was just seen");
                if self.act(act, Some(remote)) {
                    return (Ending::Death, false);
                }
            }
            if acts.is_empty() {
                self.calm();
                // A restart may go by an old pause whose end could not be recorded while nothing could be written.
                if remote.snapshot().run_state != RunState::Running {
                    self.asked.0 = RunState::Paused;
                    self.command(RunState::Running, Some(remote));
                }
            }
            rest = (acts.is_empty() && self.is_at_rest(remote)).then(|| rest.unwrap_or_else(Instant::now));
            let is_over = rest.is_some_and(|since| since.elapsed() > REST) || self.begun.elapsed() > REST_WITHIN;
            if is_over || self.volume.violation().is_some() || self.violation.is_some() {
                return (Ending::Itself, is_over);
            }
        }
    }

    /// Ends all faults.
    fn calm(&mut self) {
        self.mount();
        self.site.finish_all();
        self.volume.fail(None);
        self.volume.release();
        self.volume.die_in(None);
        self.volume.set_free(1 << 40);
        self.world.borrow_mut().is_rough = false;
    }

    fn is_at_rest(&self, remote: &Remote) -> bool {
        let seen = remote.snapshot();
        let world = self.world.borrow();
        seen.queue_depth == 0
            && seen.settling == 0
            && seen.retrying == 0
            && seen.current_jobs.is_empty()
            && world.is_idle()
            && !world.has_asked()
            && self.site.holds_no_claim()
    }

    /// Brings back the volumes that are away.
    fn mount(&mut self) {
        if let Err(why) = self.site.mount() {
            self.violation.get_or_insert(why);
        }
        self.world.borrow_mut().is_away = false;
    }

    fn command(&mut self, run_state: RunState, remote: Option<&Remote>) {
        if self.asked.0 == run_state {
            return;
        }
        self.volume.note(format!("asked: {run_state:?}"));
        self.asked = (run_state, self.asked.1 + 1);
        if self.script.is_cluster {
            self.world.borrow_mut().run_state = run_state;
        }
        if let Some(remote) = remote.cloned() {
            let revision = if self.script.is_cluster { self.asked.1 } else { 0 };
            tokio::spawn(async move { remote.ask(run_state, revision).await });
        }
    }

    /// Performs an act. Returns whether the process died of it.
    fn act(&mut self, act: Act, remote: Option<&Remote>) -> bool {
        self.volume.note(format!("{:?}: {act:?}", self.begun.elapsed()));
        // Nobody finds files where a volume is away.
        let is_of_files = matches!(
            act,
            Act::Drop
                | Act::DropGroup
                | Act::DropFolder
                | Act::DropAgain
                | Act::DropLate
                | Act::Rename
                | Act::Grow
                | Act::Chmod
                | Act::Deny
                | Act::Remove
                | Act::Retry
                | Act::RetryFolder
                | Act::Correct
                | Act::WriteOn
                | Act::Upload(_)
                | Act::Continue
                | Act::Restart
                | Act::Finish
                | Act::Ask
        );
        if is_of_files && self.site.is_away() {
            return false;
        }
        match act {
            Act::Away(role) => self.world.borrow_mut().is_away |= self.site.unmount(role),
            Act::Back => self.mount(),
            Act::Drop => self.site.drop_file(),
            Act::DropGroup => self.site.drop_group(),
            Act::DropFolder => self.site.drop_folder(),
            Act::DropAgain => self.site.drop_again(),
            Act::DropLate => self.site.drop_late(),
            Act::Rename => self.site.rename(),
            Act::Grow => self.site.grow(),
            Act::Chmod => self.site.chmod(),
            Act::Deny => self.site.deny(),
            Act::Allow => self.volume.release(),
            Act::Remove => self.site.remove(),
            Act::Retry => self.site.retry(),
            Act::RetryFolder => self.site.retry_folder(),
            Act::Correct => self.site.correct(),
            Act::WriteOn => self.site.write_on(),
            Act::Upload(growth) => self.site.upload(growth),
            Act::Continue => self.site.write_piece(),
            Act::Restart => self.site.write_anew(),
            Act::Finish => self.site.finish(),
            Act::Command(run_state) => self.command(run_state, remote),
            Act::Delete => {
                let mut world = self.world.borrow_mut();
                if let Some(id) = world.some() {
                    world.delete(&id);
                }
            }
            Act::Ask => {
                if let Some(name) = self.site.some_name() {
                    self.world.borrow_mut().ask(&name);
                }
            }
            Act::Clock(seconds) => self.time.set_clock(jiff::SignedDuration::from_secs(seconds)),
            Act::LoseLedger => {
                self.loses_ledger = true;
                return true;
            }
            Act::Fault(fault) => self.volume.fail(fault),
            Act::Full(is_full) => self.volume.set_free(if is_full { 1 << 10 } else { 1 << 40 }),
            Act::Die => return true,
            Act::DieIn(events) => {
                self.cut = None;
                self.volume.die_in(Some(events));
            }
            Act::Cut(keeps) => {
                self.cut = Some(keeps);
                return true;
            }
            Act::CutIn(events, keeps) => {
                self.cut = Some(keeps);
                self.volume.die_in(Some(events));
            }
        }
        false
    }
}
