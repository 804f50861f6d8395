// SPDX-License-Identifier: Apache-2.0
//! Runs the appliance in QEMU, on overlays over converted disks, and merges the overlays.

mod error;
mod programs;
mod run;

pub(super) use self::error::FixError;
pub use self::programs::{Programs, launch};
pub(super) use self::run::{Overlays, serial};
