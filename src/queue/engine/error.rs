// SPDX-License-Identifier: Apache-2.0
//! Why an effect of the engine was not done.

use crate::executor;
use crate::files::placement::PlacementError;
use crate::files::store::StoreError;
use crate::ledger;
use crate::queue::claim::ClaimError;
use crate::queue::publish::PublishError;
use crate::queue::work::WorkError;
use crate::queue::{identity, probe};

/// Why an effect was not done. The effect is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Executor(#[from] executor::Error),
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Work(#[from] WorkError),
    #[error(transparent)]
    Move(#[from] crate::files::moves::MoveError),
    #[error("nothing is touched")]
    Away(#[from] identity::Away),
    #[error("cannot look at {path}")]
    Look {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether it passes by itself: another writer was first, or the other side is busy or away.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Executor(executor::Error { passes: true, .. }))
    }

    /// Whether a claim could not be written because the queue's volume is full.
    pub(super) fn is_full_queue(&self) -> bool {
        let source = match self {
            Self::Claim(ClaimError::Record { source: StoreError::Write { source, .. }, .. }) => Some(source),
            Self::Claim(ClaimError::Directory { source, .. }) => source.io(),
            _ => None,
        };
        source.is_some_and(probe::is_no_space)
    }
}
