// SPDX-License-Identifier: Apache-2.0
//! Room on the output volume: conversions that found none wait until what they need is free.

use std::time::Duration;

use crate::conversion::lifecycle::{Step, next_step};
use crate::conversion::{ConversionId, ConversionStatus, Reason, chain};
use crate::executor::Executor;
use crate::files::space::free_bytes;
use crate::ledger::{ClaimState, ConversionRow};
use crate::notification::Event;
use crate::stats::Shortage;

use super::{Conversion, Engine, Error};

/// How often free space is looked at while a conversion waits for it.
const LOOK: Duration = Duration::from_secs(30);

/// With less than this not even the ledger may be writable: nothing is begun.
const FLOOR: u64 = 1 << 20;

/// What a claim needs on the queue's volume: a directory and a record, one block each.
const CLAIM: u64 = 8 << 10;

/// How often free space is compared with the floor while there is something to do.
const FLOOR_LOOK: Duration = Duration::from_secs(1);

/// Whether a conversion waits for room, and when room is looked for next.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// What was announced in this episode, which ends when no conversion has waited from one look to the next.
    told: Option<Shortage>,
    /// Whether the episode begins with an attempt that found no room, whatever the figures say.
    is_new: bool,
    next_look: Option<Duration>,
    next_floor_look: Duration,
    is_below_floor: bool,
    /// What the queue's own volume lacks, after a claim found no room there.
    queue: Option<Shortage>,
}

impl Space {
    /// What is missing, as it was announced.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.told
    }

    /// What the queue's volume lacks, as it was announced.
    pub(super) fn queue_shortage(&self) -> Option<Shortage> {
        self.queue
    }

    /// Ends the episode of the queue's volume: a claim was written.
    pub(super) fn queue_has_room(&mut self) {
        if self.queue.take().is_some() {
            tracing::info!("the queue's volume has room again");
        }
    }

    /// When free space is looked at next.
    pub(super) fn next_look(&self) -> Option<Duration> {
        self.next_look
    }

    /// An attempt found no room. It waits until the second look from now, because free space does not show a quota.
    pub(super) fn hold(&mut self) {
        if self.next_look.is_none() {
            self.is_new = true;
            self.next_look = Some(Duration::ZERO);
        }
    }

    /// A conversion found no room in an earlier run: looks at once.
    pub(super) fn look_now(&mut self) {
        self.next_look.get_or_insert(Duration::ZERO);
    }
}

impl<E: Executor> Engine<E> {
    /// Lets the conversions go on that have room now.
    pub(super) fn space_look(&mut self, now: Duration) {
        if self.space.next_look.is_none_or(|at| at > now) {
            return;
        }
        let held: Vec<(ConversionId, u64)> = self
            .conversions
            .values()
            .filter(|c| !c.has_room)
            .map(|c| (c.row.id.clone(), needed_bytes(&c.row)))
            .collect();
        if held.is_empty() && !self.space.is_below_floor {
            self.space = Space { queue: self.space.queue, ..Space::default() };
            return;
        }
        self.space.next_look = Some(now + LOOK);
        let Some(free) = self.free_space() else { return };
        let reserved = self.conversions.values().map(reserved).sum();
        let is_new = std::mem::take(&mut self.space.is_new);
        let go_on = if is_new { Vec::new() } else { with_room(&held, free, reserved) };
        for id in &go_on {
            if let Some(conversion) = self.conversions.get_mut(id) {
                tracing::info!(conversion = %id, free_bytes = free, "room for {}", conversion.row.claim.primary);
                conversion.has_room = true;
            }
        }
        if let Some((_, needed)) = held.iter().find(|(id, _)| !go_on.contains(id)) {
            self.tell_full(*needed, free);
        }
    }

    /// Whether there is room for the ledger itself. Without it nothing can be claimed and no attempt's end can be
    /// recorded; this is announced if there is anything to do.
    pub(super) fn has_floor(&mut self, now: Duration) -> bool {
        let needed = match (self.intake.ready_at(0), self.conversions.values().next()) {
            (Some(artifact), _) => artifact.size_bytes(),
            (None, Some(conversion)) => needed_bytes(&conversion.row),
            (None, None) => return true,
        };
        if now >= self.space.next_floor_look {
            self.space.next_floor_look = now + FLOOR_LOOK;
            let Some(free) = self.free_space() else { return true };
            self.space.is_below_floor = free < FLOOR;
            if self.space.is_below_floor {
                self.space.next_look.get_or_insert(now + LOOK);
                // While an attempt fills the volume, it will report itself what it needs, and what it wrote will be
                // removed.
                if !self.conversions.values().any(|c| c.may_run) {
                    self.tell_full(needed.max(FLOOR), free);
                }
            }
        }
        !self.space.is_below_floor
    }

    fn free_space(&self) -> Option<u64> {
        free_bytes(self.settings.paths.output())
            .inspect_err(|error| tracing::warn!(%error, "cannot learn how much of the output volume is free"))
            .ok()
            .flatten()
    }

    /// A claim found no room on the queue's volume. This is announced once, until a claim is written.
    pub(super) fn hold_full_queue(&mut self, why: &Error) {
        if self.space.queue.is_some() {
            return;
        }
        let queue = self.settings.paths.queue();
        let free_bytes = free_bytes(queue).ok().flatten().unwrap_or_default();
        self.space.queue = Some(Shortage { needed_bytes: CLAIM, free_bytes });
        tracing::warn!(error = %chain(why), free_bytes, "the queue's volume is full; the queue holds");
        let queue_path = queue.display().to_string();
        self.notify(&Event::QueueFull { needed_bytes: CLAIM, free_bytes, queue_path, at: self.wall() });
    }

    /// Announces a full output volume, once an episode.
    fn tell_full(&mut self, needed_bytes: u64, free_bytes: u64) {
        if self.space.told.is_some() {
            return;
        }
        self.space.told = Some(Shortage { needed_bytes, free_bytes });
        let output_path = self.settings.paths.output().display().to_string();
        tracing::warn!(needed_bytes, free_bytes, "the output volume is full; the queue holds");
        self.notify(&Event::OutputFull { needed_bytes, free_bytes, output_path, at: self.wall() });
    }
}

/// The conversions that fit, in their order, into the free space that the running ones do not need.
fn with_room(held: &[(ConversionId, u64)], free: u64, reserved: u64) -> Vec<ConversionId> {
    let mut left = free.saturating_sub(reserved);
    let mut fitting = Vec::new();
    for (id, needed) in held {
        if *needed <= left {
            left -= needed;
            fitting.push(id.clone());
        }
    }
    fitting
}

/// Whether a status says that its next attempt waits for room; this also holds after a restart.
pub(super) fn waits_for_room(row: &ConversionRow) -> bool {
    row.state == ClaimState::Submitted && matches!(next_step(&row.status), Step::Stage(_)) && is_full(&row.status)
}

fn is_full(status: &ConversionStatus) -> bool {
    status.failure.as_ref().is_some_and(|failure| failure.reason == Reason::OutputFull)
}

/// What the next attempt needs: what the last one reported, otherwise the size of the source.
fn needed_bytes(row: &ConversionRow) -> u64 {
    let told = row.status.failure.as_ref().and_then(|failure| failure.needed_bytes);
    told.unwrap_or_else(|| row.claim.size_bytes())
}

/// What a conversion that runs, or may run, still needs. One that waits for room does not run, also where an earlier run
/// left it and the executor has not said so yet.
fn reserved(conversion: &Conversion) -> u64 {
    match &conversion.progress {
        _ if !conversion.may_run || !conversion.has_room => 0,
        Some(progress) => progress.bytes_total.saturating_sub(progress.bytes_done),
        None => conversion.row.claim.size_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decide::tests::row;
    use super::*;

    #[test]
    fn what_fits_goes_on_and_what_running_ones_need_is_left_to_them() {
        let ids: Vec<_> = (0..3).map(|n| ConversionId::for_file("vm.raw", n)).collect();
        let held: Vec<_> = ids.iter().cloned().zip([60, 50, 30]).collect();
        assert_eq!(with_room(&held, 100, 0), [ids[0].clone(), ids[2].clone()]);
        assert_eq!(with_room(&held, 100, 45), [ids[1].clone()]);
        assert_eq!(with_room(&held, 100, 200), []);
    }

    #[test]
    fn one_that_waits_for_room_reserves_none_after_a_restart() {
        let left = Conversion::left(row(ClaimState::Submitted, ConversionStatus::default()));
        assert_eq!(reserved(&left), 512, "it may run");
        assert_eq!(reserved(&Conversion { has_room: false, ..left }), 0);
        let new = Conversion::new(row(ClaimState::Submitted, ConversionStatus::default()));
        assert_eq!(reserved(&new), 0);
    }
}
