// SPDX-License-Identifier: Apache-2.0
//! Runs the appliance in QEMU, on overlays over converted disks, and merges the overlays; tries whether a guest boots.

mod accelerator;
mod boot;
mod devices;
mod error;
mod firmware;
mod map;
mod programs;
mod run;

pub(super) use self::boot::check;
pub(super) use self::error::{CheckError, FixError};
pub(super) use self::map::Change;
pub use self::programs::{Programs, launch};
pub(super) use self::run::{Overlays, serial};
