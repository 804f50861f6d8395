// SPDX-License-Identifier: Apache-2.0
//! Whole guests, made by the real tools, and what is found in them.

mod debian;
mod images;
mod makers;
mod mutation;
mod systems;
mod volumes;

use std::path::Path;
use std::time::Duration;

use super::{Limits, inspect};
use crate::conversion::guest::Guest;
use crate::disk::Image;
use crate::disk::resolve::region_of;

/// Limits for machines that are busy with other tests.
const PATIENT: Limits =
    Limits { time: Duration::from_secs(120), read_bytes: 2 << 30, decoded_bytes: 4 << 30, steps: 2_000_000 };

/// Looks into the guest on raw disks.
fn look(disks: &[&Path]) -> Guest {
    let images: Vec<_> = disks.iter().map(|path| Image::raw(&region_of(path)).unwrap()).collect();
    let disks: Vec<_> = images.iter().map(|image| ("disk.raw", image)).collect();
    inspect(&disks, &PATIENT)
}
