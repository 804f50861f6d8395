// SPDX-License-Identifier: Apache-2.0
//! Opens whatever was dropped: one disk, a descriptor with its extents, an OVF with its disks, an OVA.
//!
//! Everything that must be refused is refused here, before the first byte is copied; what is left are the digests of a
//! manifest, which are verified beside the copy.

mod accepted;
mod checks;
mod disk;
mod group;
mod inspection;
mod members;
mod open;
mod packed;
mod split;

pub use self::accepted::{Limits, OvfOption, Scratch, Source, SourceDisk};
pub use self::inspection::{DiskInspection, Inspection, MemberInspection, inspect};
pub use self::open::{look_at_machine, open, open_machine};

#[cfg(test)]
mod tests;
