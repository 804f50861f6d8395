//! What the outside sees of a copy, and how it ends one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Cancellation, Error};

/// What the outside sees of a copy and tells it.
#[derive(Debug, Default)]
pub struct CopyControl {
    cancellation: Cancellation,
    done: AtomicU64,
    total: AtomicU64,
    verifying: AtomicBool,
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

    /// Guest bytes done, zeros included, and guest bytes in all passes; 0 of 0 before the start.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Whether an output is written and is being looked at once more.
    #[must_use]
    pub fn is_verifying(&self) -> bool {
        self.verifying.load(Ordering::Relaxed)
    }

    /// Whether what runs now looks at an output that is written.
    pub(super) fn set_verifying(&self, verifying: bool) {
        self.verifying.store(verifying, Ordering::Relaxed);
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
