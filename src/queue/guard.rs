// SPDX-License-Identifier: Apache-2.0
//! Whether anything in the two directories may be touched: their volumes are there, and they are still ours.

use std::sync::Arc;

use super::identity::{Away, Volumes};
use super::lock::{LockError, Ownership};

/// Asked before each step of the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Guarded>);

#[derive(Debug)]
struct Guarded {
    volumes: Volumes,
    /// Ownership of the directories; `None` in a simulation, which has one engine at a time.
    ownership: Option<Ownership>,
}

/// Why nothing may be touched. It passes by itself, or ends with the process.
#[derive(Debug, thiserror::Error)]
pub enum Barred {
    #[error(transparent)]
    Away(#[from] Away),
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Guard {
    #[must_use]
    pub fn new(volumes: Volumes, ownership: Option<Ownership>) -> Self {
        Self(Arc::new(Guarded { volumes, ownership }))
    }

    /// Whether both volumes are there: two looks at most, and nothing is read.
    pub fn look(&self) -> Result<(), Away> {
        self.0.volumes.look()
    }

    /// The same after a volume was away, when somebody else may have taken over.
    pub fn look_again(&self) -> Result<(), Barred> {
        self.0.volumes.look()?;
        match &self.0.ownership {
            Some(ownership) => Ok(ownership.check()?),
            None => Ok(()),
        }
    }
}
