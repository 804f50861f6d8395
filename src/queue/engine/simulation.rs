// SPDX-License-Identifier: Apache-2.0
//! The whole engine in one thread, on a virtual clock, with an executor and a volume that do what a seed says: attempts
//! fail, hang and are heard of late, changes of files fail, the process dies between any two of them, the power goes,
//! other processes rename, change and remove files. Whatever happened, at the end every source lies in one place, every
//! published disk is whole, the counts are right, and nothing waits for ever.
//!
//! ```text
//!  seed ─▶ Script ──▶ run ──▶ Engine ──▶ Worker (Executor)
//!                      │         └─────▶ volume::simulated, ledger (without a thread)
//!                      └──▶ Site: what was dropped, and what must have come of it
//! ```

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::files::volume::simulated::Random;

mod executor;
mod run;
mod script;
mod site;

/// Time and random numbers of a simulated engine.
#[derive(Clone, Debug)]
pub struct Simulated {
    origin: tokio::time::Instant,
    /// How far the wall clock was set forward, in seconds; negative: back.
    shift: Arc<AtomicI64>,
    random: Arc<Mutex<Random>>,
}

/// When simulations begin (2001-09-09T01:46:40Z).
const EPOCH: i64 = 1_000_000_000;

impl Simulated {
    fn new(seed: u64) -> Self {
        let shift = Arc::default();
        Self { origin: tokio::time::Instant::now(), shift, random: Arc::new(Mutex::new(Random::new(seed))) }
    }

    /// The wall clock.
    pub(super) fn now(&self) -> Timestamp {
        self.steady() + SignedDuration::from_secs(self.shift.load(Ordering::Relaxed))
    }

    /// The wall clock as it would be if nobody set it.
    fn steady(&self) -> Timestamp {
        let epoch = Timestamp::from_second(EPOCH).expect("a small number");
        epoch + SignedDuration::try_from(self.uptime()).expect("a run takes less than a year")
    }

    /// Time since the beginning, which nobody sets.
    pub(super) fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Somebody sets the clock, so far from where it would be.
    fn set_clock(&self, shift: SignedDuration) {
        self.shift.store(shift.as_secs(), Ordering::Relaxed);
    }

    pub(super) fn random(&self) -> u32 {
        // A process that died while it held the lock is followed by one that goes on.
        let bits = self.random.lock().unwrap_or_else(PoisonError::into_inner).next();
        u32::try_from(bits >> 32).expect("32 bits")
    }
}

/// How long simulations run beside the other tests.
const USUAL: Duration = Duration::from_secs(60);

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs one seed after the other until the time is over or enough are done. Returns the failed seeds, each with its
/// reason.
fn simulate(first: u64, count: Option<u64>, time: Duration) -> Vec<(u64, String)> {
    let begun = Instant::now();
    let mut failed = Vec::new();
    let mut seed = first;
    while count.map_or(begun.elapsed() < time, |count| seed - first < count) {
        if let Err(why) = run::run(seed).outcome {
            eprintln!("seed {seed} fails after {:.1} s: {why}", begun.elapsed().as_secs_f64());
            eprintln!("again: make sim SEED={seed} COUNT=1");
            failed.push((seed, why));
            if failed.len() == 10 {
                break;
            }
        }
        seed += 1;
    }
    eprintln!("{} seeds from {first} on in {:.1} s", seed - first, begun.elapsed().as_secs_f64());
    failed
}

/// `SEED` is the first seed (`make sim` takes it from the clock; the suite always takes the same), `COUNT` is how many
/// seeds, and `MINUTES` is for how long. A single seed shows its trace.
#[test]
fn whatever_happens_nothing_is_lost_doubled_or_forgotten() {
    let seed = number("SEED").unwrap_or(1);
    let count = number("COUNT");
    let time = number("MINUTES").map_or(USUAL, |minutes| Duration::from_secs(60 * minutes));
    if count == Some(1) {
        for line in run::run(seed).trace {
            eprintln!("{line}");
        }
    }
    let failed = simulate(seed, count, time);
    assert!(failed.is_empty(), "{} seeds failed", failed.len());
}

#[test]
fn one_seed_always_does_the_same() {
    for seed in 0..8 {
        let (one, other) = (run::run(seed), run::run(seed));
        for (n, (a, b)) in one.trace.iter().zip(&other.trace).enumerate() {
            assert_eq!(a, b, "line {n} of seed {seed}");
        }
        assert_eq!((one.trace.len(), one.outcome), (other.trace.len(), other.outcome), "seed {seed}");
    }
}
