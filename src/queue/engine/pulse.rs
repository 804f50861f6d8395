// SPDX-License-Identifier: Apache-2.0
//! Whether work that may hang in the kernel stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest time that a round of the engine, or a heartbeat on both volumes, takes while all is well. A statement of the
/// ledger waits for five seconds at most, and a round makes a few of them.
pub const STANDSTILL: Duration = Duration::from_secs(20);

/// Since when its owner has been at a piece of work. The owner writes, and any thread reads; neither ever waits.
#[derive(Clone, Debug)]
pub struct Pulse {
    origin: Instant,
    /// Milliseconds from the origin to the beginning, plus one; 0 at rest.
    begun: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { origin: Instant::now(), begun: Arc::default() }
    }
}

impl Pulse {
    /// A piece of work begins now.
    pub fn begin(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.begun.store(now + 1, Ordering::Relaxed);
    }

    /// The work is done.
    pub fn rest(&self) {
        self.begun.store(0, Ordering::Relaxed);
    }

    /// How long the owner has been at its work, where that is longer than [`STANDSTILL`].
    #[must_use]
    pub fn standstill(&self) -> Option<Duration> {
        let begun = self.begun.load(Ordering::Relaxed).checked_sub(1)?;
        let busy = self.origin.elapsed().saturating_sub(Duration::from_millis(begun));
        (busy > STANDSTILL).then_some(busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_takes_too_long_stands_still() {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        let pulse = Pulse { origin: now.checked_sub(minute).unwrap(), ..Pulse::default() };
        assert_eq!(pulse.standstill(), None, "at rest since ever");
        pulse.begin();
        assert_eq!(pulse.standstill(), None);
        pulse.begun.store(1, Ordering::Relaxed);
        assert!(pulse.standstill().unwrap() >= minute);
        pulse.rest();
        assert_eq!(pulse.standstill(), None);
    }
}
