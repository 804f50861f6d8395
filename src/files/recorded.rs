// SPDX-License-Identifier: Apache-2.0
//! Plans that are recorded: only such a one may be carried out.

use std::ops::Deref;

/// A plan that stands on the disk, where a restart finds it and carries it out to its end. What reads records makes it,
/// and nothing else (`tests/layering.rs` holds that): whoever has chosen a plan records it and reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded<T>(T);

impl<T> Recorded<T> {
    /// What a record says that is on the disk: a row as the ledger returned it, or a claim.json.
    pub(crate) const fn found(plan: T) -> Self {
        Self(plan)
    }

    /// A plan that follows from this one, so that a restart comes to it again.
    pub(crate) fn map<U>(&self, follow: impl FnOnce(&T) -> U) -> Recorded<U> {
        Recorded(follow(&self.0))
    }
}

impl<T> Deref for Recorded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
