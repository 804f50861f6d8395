// SPDX-License-Identifier: Apache-2.0
//! The controller: makes a queue's watcher and a conversion's Jobs, and touches no file.
//!
//! ```text
//! watches ─▶ caches ─▶ admission ─▶ reconcilers ─▶ API server
//!               └──────────────────────▲
//! ```

mod admission;
mod backoff;
mod board;
mod caches;
mod context;
mod conversions;
mod decision;
mod delivery;
mod error;
mod leadership;
mod metrics;
pub mod objects;
mod outcome;
mod ownership;
mod queues;
mod recent;
mod recording;
mod run;
mod shared;
mod starting;
mod status;
mod writes;

pub use run::{Options, RunError, run};
