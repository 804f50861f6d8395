// SPDX-License-Identifier: Apache-2.0
//! How long an object waits after a failed reconcile: counted by object, growing, and with jitter.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// Failures in a row, by object.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
    /// Seeded anew in each process; the hash of an object and its count is jitter enough.
    jitter: RandomState,
}

impl Backoff {
    /// Counts one more failure and returns how long to wait.
    pub(super) fn failed(&self, object: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_default();
        *count += 1;
        let full = FIRST.saturating_mul(1 << (*count - 1).min(16)).min(LONGEST);
        // Up to a fifth less.
        let fifth = self.jitter.hash_one((object, *count)) % 200;
        full.mul_f64(1.0 - u32::try_from(fifth).map_or(0.0, f64::from) / 1000.0)
    }

    /// Forgets an object's failures.
    pub(super) fn succeeded(&self, object: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_from_5_seconds_to_5_minutes_and_starts_anew_after_a_success() {
        let backoff = Backoff::default();
        for full in [5, 10, 20, 40, 80, 160, 300, 300] {
            let full = Duration::from_secs(full);
            let wait = backoff.failed("a");
            assert!(wait <= full && wait >= full.mul_f64(0.8), "{wait:?} of {full:?}");
        }
        assert!(backoff.failed("b") <= FIRST);
        backoff.succeeded("a");
        assert!(backoff.failed("a") <= FIRST);
    }
}
