// SPDX-License-Identifier: Apache-2.0
//! The ground floor: paths of everything on the two volumes, and file operations that a crash can't leave half done.
//!
//! Everything here is synchronous and blocking. Of the queue it knows only the paths. Each effect is safe to repeat.

pub(crate) mod fingerprint;
pub mod moves;
pub(crate) mod names;
pub mod paths;
pub(crate) mod placement;
pub mod recorded;
pub(crate) mod space;
pub(crate) mod store;
pub mod transfer;
pub(crate) mod volume;
pub(crate) mod waste;

pub use moves::{Method, MoveError};
pub use paths::Paths;
pub use placement::Placement;
pub use recorded::Recorded;
