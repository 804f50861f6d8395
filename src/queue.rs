// SPDX-License-Identifier: Apache-2.0
//! The queue directory: what is dropped into it, how it is claimed, published and disposed of.
//!
//! Everything here is synchronous and blocking; call it from the queue's own thread. Each effect is safe to repeat:
//! what is to happen is recorded first (claim.json, or the ledger's row), then done, and doing it again after a
//! crash ends in the same place.

pub mod arrival;
pub mod claim;
pub mod companions;
pub mod dispose;
pub mod engine;
pub mod error_file;
pub mod failpoint;
pub mod folder;
pub mod guard;
pub mod identity;
pub mod lock;
pub mod open_files;
pub mod park;
pub mod probe;
pub mod publish;
pub mod retention_day;
pub mod scan;
pub mod settle;
pub mod target;
pub mod work;
pub mod writers;
