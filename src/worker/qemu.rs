// SPDX-License-Identifier: Apache-2.0
//! Runs the appliance in QEMU, on overlays over converted disks, and merges the overlays.

mod error;
mod map;
mod programs;
mod run;

pub(super) use self::error::FixError;
pub(super) use self::map::Change;
pub use self::programs::{Programs, launch};
pub(super) use self::run::{Overlays, serial};
