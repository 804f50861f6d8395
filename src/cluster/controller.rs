// SPDX-License-Identifier: Apache-2.0
//! The controller: makes a queue's watcher and a conversion's Jobs, and touches no file.
//!
//! ```text
//! watches ─▶ caches ─▶ admission ─▶ reconcilers ─▶ API server
//!               └──────────────────────▲
//! ```

pub mod admission;
pub mod backoff;
pub mod caches;
pub mod context;
pub mod conversions;
pub mod decision;
pub mod error;
pub mod leadership;
pub mod metrics;
pub mod objects;
pub mod outcome;
pub mod queues;
pub mod recent;
mod run;
mod starting;
pub mod status;
mod writes;

pub use run::{Options, RunError, run};
