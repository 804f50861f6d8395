// SPDX-License-Identifier: Apache-2.0
//! Makes a guest ready for virtio, from within a small virtual machine of its own: the appliance.
//!
//! Its kernel mounts what strangers made, its first process edits files, and no program of the guest is ever run.
//!
//! ```text
//! host:      job ─▶ cpio behind the initrd ─▶ QEMU ─▶ second serial port ─▶ answer
//! appliance: disks ─▶ inspection ─▶ plan ─▶ changes ─▶ check ─▶ report
//! ```

pub mod apply;
pub mod cpio;
pub mod initrd;
mod libraries;
pub mod modules;
pub mod mounted;
pub mod plan;
pub mod protocol;
pub mod windows;
