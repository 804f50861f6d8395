// SPDX-License-Identifier: Apache-2.0
//! What the outside sees of a copy and of the passes over its output, and how it ends them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Cancellation, Error};

/// What the outside sees of a copy, a verification or a digest, and tells it. One control may serve one after the other.
#[derive(Debug, Default)]
pub struct CopyControl {
    cancellation: Cancellation,
    done: AtomicU64,
    total: AtomicU64,
}

impl CopyControl {
    /// Ends the copy: no read or write begins after those at hand, and it fails with `Cancelled`.
    pub fn cancel(&self) {
        self.cancellation.cancel();
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// What ends the copy, for those who open its source.
    #[must_use]
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Guest bytes done, zeros included, and guest bytes of all passes that were begun; 0 of 0 before the first.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// More bytes to do.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done.
    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Fails once it was cancelled.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        self.cancellation.check(name)
    }
}
