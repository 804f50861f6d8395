// SPDX-License-Identifier: Apache-2.0
//! Whether a file has stopped changing: a clock for every file, side by side.
//!
//! ```text
//!            first look                 3 equal looks, an interval apart
//!  unknown ────────────▶ settling ────────────────────────────────▶ stable
//!                         ▲  │ changed: begins anew                   │
//!                         └──┘◀───────────────────────────────────────┘ changed
//! ```
//!
//! Nothing here reads a clock or a disk: the caller looks at files when [`Settling::take_due`] names them, and now
//! and then at all of them. Stable files are not due: ten thousand waiting ones cost nothing between rescans.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::scan::{Entry, Name};
use crate::conversion::Stamp;

/// Time between two looks that count.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Milliseconds that replace it in builds with debug assertions.
const LOOK_INTERVAL_VARIABLE: &str = "HYPER2KVM_TEST_LOOK_INTERVAL_MS";
/// Equal looks after the first that make a file stable.
pub const EQUAL_LOOKS: u32 = 3;
/// Shortest time between looks caused by events.
const HINT_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest time between two reports that a file grows.
const GROWING_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two warnings about a file that does not settle.
const OVERDUE_INTERVAL: Duration = Duration::from_secs(3600);

/// Time between two looks that count: a second, unless a test wants less.
#[must_use]
pub fn look_interval() -> Duration {
    if cfg!(debug_assertions) {
        let of_a_test = std::env::var(LOOK_INTERVAL_VARIABLE).ok().and_then(|text| text.parse().ok());
        return of_a_test.map_or(LOOK_INTERVAL, Duration::from_millis);
    }
    LOOK_INTERVAL
}

/// What a look at a file found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Changed since the last look; reported at most every 10 s.
    Growing { size: u64 },
    /// It has stopped changing.
    Stable { size: u64 },
    /// It was stable, and changed: it begins anew.
    Unsettled { size: u64 },
    /// Not stable this long after first sight; reported once, then hourly. It is still watched.
    Overdue { size: u64, since: Duration },
    /// No longer there.
    Gone,
}

#[derive(Clone, Debug)]
struct Clock {
    seen: Stamp,
    first_sight: Duration,
    last_change: Duration,
    growing_from: Duration,
    /// Absent while the file is stable and not to be looked at: ten thousand waiting files are kept small.
    watch: Option<Box<Watch>>,
}

/// How far a file that is looked at has settled.
#[derive(Clone, Copy, Debug)]
struct Watch {
    last_look: Duration,
    /// The last look that counted.
    counted: Duration,
    equal: u32,
    /// When it is looked at next.
    due: Duration,
    overdue_from: Duration,
}

impl Watch {
    /// Begins anew with a look at this moment.
    fn begun(now: Duration, pace: Pace) -> Self {
        Self { last_look: now, counted: now, equal: 0, due: now + pace.interval, overdue_from: now + pace.timeout }
    }

    fn is_stable(&self) -> bool {
        self.equal >= EQUAL_LOOKS
    }
}

impl Clock {
    fn is_stable(&self) -> bool {
        self.watch.as_ref().is_none_or(|watch| watch.is_stable())
    }

    fn due(&self) -> Option<Duration> {
        self.watch.as_ref().map(|watch| watch.due)
    }
}

/// What the clocks of all files share.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Time between two looks that count.
    interval: Duration,
    /// Time after first sight at which a file is overdue.
    timeout: Duration,
}

/// The clocks of all files. Times are durations since any fixed moment of a monotonic clock.
#[derive(Debug)]
pub struct Settling {
    pace: Pace,
    clocks: HashMap<Name, Clock>,
    schedule: BTreeSet<(Duration, Name)>,
}

impl Settling {
    /// No files yet; equal looks count `interval` apart, and a file that is not stable `timeout` after first sight is
    /// `Overdue`.
    #[must_use]
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self { pace: Pace { interval, timeout }, clocks: HashMap::new(), schedule: BTreeSet::new() }
    }

    /// Sets after how long files are overdue that are first seen from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.pace.timeout = timeout;
    }

    /// Records a look at a file. A change counts at once; an equal look counts an interval after the one before.
    pub fn observe(&mut self, entry: &Entry, now: Duration) -> Vec<Event> {
        let seen = entry.stamp();
        let Some(clock) = self.clocks.get_mut(&entry.name) else {
            let watch = Watch::begun(now, self.pace);
            self.schedule.insert((watch.due, entry.name.clone()));
            let clock =
                Clock { seen, first_sight: now, last_change: now, growing_from: now, watch: Some(Box::new(watch)) };
            self.clocks.insert(entry.name.clone(), clock);
            return Vec::new();
        };
        let was_due = clock.due();
        let events = look_again(clock, seen, now, self.pace);
        let due = clock.due();
        if was_due != due {
            self.reschedule(&entry.name, was_due, due);
        }
        events
    }

    /// Records a whole listing, in the order of the names: files that are missing in it are forgotten and reported
    /// `Gone`.
    pub fn observe_all(&mut self, entries: &[Entry], now: Duration) -> Vec<(Name, Event)> {
        let mut events = Vec::new();
        for entry in entries {
            events.extend(self.observe(entry, now).into_iter().map(|event| (entry.name.clone(), event)));
        }
        let is_listed = |name: &Name| entries.binary_search_by(|entry| entry.name.cmp(name)).is_ok();
        let mut gone: Vec<Name> = self.clocks.keys().filter(|name| !is_listed(name)).cloned().collect();
        gone.sort_unstable();
        for name in gone {
            self.forget(&name);
            events.push((name, Event::Gone));
        }
        events
    }

    /// An event says that this file may have changed: it is looked at soon, however many events come. `false` where the
    /// file is not known: the caller looks at it at once.
    pub fn hint(&mut self, name: &str, now: Duration) -> bool {
        let Some((name, clock)) = self.clocks.get_key_value(name) else { return false };
        let name = name.clone();
        let was_due = clock.due();
        let soon = clock.watch.as_ref().map_or(now + HINT_INTERVAL, |watch| now.max(watch.last_look + HINT_INTERVAL));
        if was_due.is_some_and(|due| due <= soon) {
            return true;
        }
        let settled = Watch { equal: EQUAL_LOOKS, ..Watch::begun(now, self.pace) };
        if let Some(clock) = self.clocks.get_mut(&name) {
            clock.watch.get_or_insert(Box::new(settled)).due = soon;
        }
        self.reschedule(&name, was_due, Some(soon));
        true
    }

    /// Files to be looked at now. The caller passes each look to [`Settling::observe`], or calls [`Settling::forget`] for
    /// a file that is gone.
    pub fn take_due(&mut self, now: Duration) -> Vec<Name> {
        let mut due = Vec::new();
        while self.schedule.first().is_some_and(|(at, _)| *at <= now) {
            let (_, name) = self.schedule.pop_first().expect("a first one was just seen");
            if let Some(watch) = self.clocks.get_mut(&name).and_then(|clock| clock.watch.as_mut()) {
                // If the look fails, the file is due again an interval later.
                watch.due = now + self.pace.interval;
                self.schedule.insert((watch.due, name.clone()));
            }
            due.push(name);
        }
        due
    }

    /// When [`Settling::take_due`] will name a file next; `None` while everything is stable.
    #[must_use]
    pub fn next_look(&self) -> Option<Duration> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// Forgets a file: gone, claimed or refused. Seen again, it begins anew.
    pub fn forget(&mut self, name: &str) {
        if let Some((name, clock)) = self.clocks.remove_entry(name) {
            self.reschedule(&name, clock.due(), None);
        }
    }

    /// Whether the file is known and has stopped changing.
    #[must_use]
    pub fn is_stable(&self, name: &str) -> bool {
        self.clocks.get(name).is_some_and(Clock::is_stable)
    }

    /// When the file was last seen to change (or seen first).
    #[must_use]
    pub fn last_change(&self, name: &str) -> Option<Duration> {
        self.clocks.get(name).map(|clock| clock.last_change)
    }

    /// When the file was seen first, since it was last stable.
    #[must_use]
    pub fn first_sight(&self, name: &str) -> Option<Duration> {
        self.clocks.get(name).map(|clock| clock.first_sight)
    }

    /// How many files are known and not stable.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.clocks.values().filter(|clock| !clock.is_stable()).count()
    }

    fn reschedule(&mut self, name: &Name, from: Option<Duration>, to: Option<Duration>) {
        if let Some(from) = from {
            self.schedule.remove(&(from, name.clone()));
        }
        if let Some(to) = to {
            self.schedule.insert((to, name.clone()));
        }
    }
}

/// Advances one clock.
fn look_again(clock: &mut Clock, seen: Stamp, now: Duration, pace: Pace) -> Vec<Event> {
    let mut events = Vec::new();
    let size = seen.size_bytes;
    if seen != clock.seen {
        let was_stable = clock.is_stable();
        let begun = Watch::begun(now, pace);
        let overdue_from = clock.watch.as_ref().filter(|_| !was_stable).map_or(begun.overdue_from, |w| w.overdue_from);
        clock.watch = Some(Box::new(Watch { overdue_from, ..begun }));
        clock.seen = seen;
        clock.last_change = now;
        if was_stable {
            clock.first_sight = now;
            events.push(Event::Unsettled { size });
        } else if now >= clock.growing_from {
            clock.growing_from = now + GROWING_INTERVAL;
            events.push(Event::Growing { size });
        }
    }
    let first_sight = clock.first_sight;
    let Some(watch) = clock.watch.as_mut() else { return events };
    watch.last_look = now;
    if !watch.is_stable() && now.saturating_sub(watch.counted) >= pace.interval {
        watch.equal += 1;
        watch.counted = now;
        if watch.is_stable() {
            events.push(Event::Stable { size });
        }
    }
    if watch.is_stable() {
        clock.watch = None;
        return events;
    }
    watch.due = (watch.counted + pace.interval).max(now);
    if now >= watch.overdue_from {
        watch.overdue_from = now + OVERDUE_INTERVAL;
        events.push(Event::Overdue { size, since: now.saturating_sub(first_sight) });
    }
    events
}

#[cfg(test)]
mod tests;
