// SPDX-License-Identifier: Apache-2.0
//! Progress and cancellation of a copy and of the passes over its output.

use super::{Cancellation, Error};

/// Progress and cancellation of a copy, a verification or a digest. One control may serve several, one after the
/// other.
#[derive(Debug, Default)]
pub struct CopyControl {
    cancellation: Cancellation,
}

impl CopyControl {
    /// Ends the work with `Cancelled`: reads and writes under way are completed, no further one begins.
    pub fn cancel(&self) {
        self.cancellation.cancel();
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancellation.is_cancelled()
    }

    /// The cancellation, to be handed to the regions of the source: what is done with them before the copy counts too.
    #[must_use]
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Guest bytes done (zeros included), and guest bytes of all passes begun so far; `(0, 0)` before the first. Of a
    /// stream that is unpacked, its packed bytes are counted.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        self.cancellation.progress()
    }

    /// Counts bytes of a pass that need not be made: an earlier attempt made it.
    pub fn skip(&self, bytes: u64) {
        self.expect(bytes);
        self.advance(bytes);
    }

    /// Adds the guest bytes of another pass to the total.
    pub(super) fn expect(&self, bytes: u64) {
        self.cancellation.expect(bytes);
    }

    /// Adds guest bytes to those done.
    pub(super) fn advance(&self, bytes: u64) {
        self.cancellation.advance(bytes);
    }

    /// Fails once it was cancelled.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        self.cancellation.check(name)
    }
}
