// SPDX-License-Identifier: Apache-2.0
//! One artifact, one attempt, one work directory, and no knowledge of others: copy → fix → verify → digest → seal.

pub mod attempt;
mod boot;
pub mod by_hand;
pub mod contain;
pub mod conversion;
pub mod copy;
pub mod fix;
pub mod group;
pub mod interrupt;
pub mod log;
mod look;
mod machines;
pub mod marker;
pub mod names;
pub mod output;
pub mod place;
mod planning;
pub mod progress;
pub mod qemu;
pub mod scratch;
pub mod steps;
pub mod target;
