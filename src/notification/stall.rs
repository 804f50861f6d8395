// SPDX-License-Identifier: Apache-2.0
//! When a queue counts as stalled.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::event::Event;
use crate::stats::Snapshot;

/// Watches snapshots for a queue in which nothing happens; reports each such episode once.
#[derive(Clone, Debug, Default)]
pub struct StallWatch {
    /// Since when files have waited while they could have started.
    waiting_since: Option<Timestamp>,
    /// Beginning of the episode that was already reported.
    told: Option<Timestamp>,
}

impl StallWatch {
    /// Looks at a snapshot; to be called about every minute. Returns an event when files have waited for `stall_after`
    /// although attempts might start, and nothing has started, progressed or finished in that time.
    pub fn look(&mut self, snapshot: &Snapshot, stall_after: Duration, now: Timestamp) -> Option<Event> {
        if snapshot.queue_depth == 0 || !snapshot.run_state.starts_attempts() {
            *self = Self::default();
            return None;
        }
        let waiting_since = *self.waiting_since.get_or_insert(now);
        // Time before files waited does not count: the queue may have been empty for days.
        let quiet_since = snapshot.last_activity.map_or(waiting_since, |last| last.max(waiting_since));
        let idle = Duration::try_from(now.duration_since(quiet_since).max(SignedDuration::ZERO)).unwrap_or_default();
        if idle < stall_after || self.told == Some(quiet_since) {
            return None;
        }
        self.told = Some(quiet_since);
        Some(Event::Stalled { queue_depth: snapshot.queue_depth, idle, last_activity: snapshot.last_activity, at: now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversion::admission::RunState;

    const HOUR: Duration = Duration::from_secs(3600);

    fn minute(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    fn waiting(queue_depth: u64, last_activity: i64, run_state: RunState) -> Snapshot {
        Snapshot { queue_depth, last_activity: Some(minute(last_activity)), run_state, ..Snapshot::new(minute(0)) }
    }

    /// The minutes at which an event came, for a snapshot (depth, last activity, run state) of each minute.
    fn told(snapshots: impl Fn(i64) -> (u64, i64, RunState)) -> Vec<i64> {
        let mut watch = StallWatch::default();
        let mut told = Vec::new();
        for now in 0..300 {
            let (depth, last, run_state) = snapshots(now);
            if watch.look(&waiting(depth, last, run_state), HOUR, minute(now)).is_some() {
                told.push(now);
            }
        }
        told
    }

    #[test]
    fn an_episode_is_told_once() {
        assert_eq!(told(|_| (2, 10, RunState::Running)), [70]);
    }

    #[test]
    fn activity_ends_an_episode_and_the_next_is_told_too() {
        assert_eq!(told(|now| (2, if now < 100 { 0 } else { 100 }, RunState::Running)), [60, 160]);
    }

    #[test]
    fn an_empty_queue_and_a_paused_one_are_quiet_by_right() {
        assert_eq!(told(|_| (0, 0, RunState::Running)), [0_i64; 0]);
        assert_eq!(told(|_| (2, 0, RunState::Paused)), [0_i64; 0]);
        assert_eq!(told(|now| (2, 0, if now < 200 { RunState::Paused } else { RunState::Running })), [260]);
    }

    #[test]
    fn a_file_that_comes_after_a_long_quiet_is_no_stall() {
        assert_eq!(told(|now| (u64::from(now >= 200), 0, RunState::Running)), [260]);
        assert_eq!(told(|now| (u64::from(now >= 250), 0, RunState::Running)), [0_i64; 0]);
    }

    #[test]
    fn the_event_says_how_long_and_how_many() {
        let mut watch = StallWatch::default();
        let snapshot = waiting(2, 0, RunState::Running);
        assert_eq!(watch.look(&snapshot, HOUR, minute(0)), None);
        assert_eq!(
            watch.look(&snapshot, HOUR, minute(61)),
            Some(Event::Stalled {
                queue_depth: 2,
                idle: Duration::from_secs(61 * 60),
                last_activity: Some(minute(0)),
                at: minute(61),
            })
        );
    }
}
