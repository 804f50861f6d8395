// SPDX-License-Identifier: Apache-2.0
//! Drop a disk image on a volume, get a verified KVM disk, by itself.
//!
//! Layers, each importing only those below it (`tests/layering.rs` holds them to it):
//!
//! ```text
//! bin ─▶ cluster ─▶ queue ─▶ executor ─▶ ledger ─▶ files ─▶ conversion
//!        cluster, queue ─▶ control · notification · config · telemetry · stats ─▶ conversion
//! bin(hyper2kvm) ─▶ worker ─▶ guest, files ─▶ conversion
//! bin(hyper2kvm) ─▶ guest ─▶ disk ─▶ conversion
//! bin(hyper2kvm), bin(hyper2kvm-appliance), worker ─▶ appliance ─▶ guest, disk
//! queue ─▶ disk (what a descriptor names)
//! ```
#![forbid(unsafe_code)]

pub mod appliance;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod config;
pub mod control;
pub mod conversion;
pub mod disk;
pub mod executor;
pub mod files;
pub mod guest;
pub mod ledger;
pub mod notification;
pub mod queue;
pub mod stats;
pub mod telemetry;
pub mod worker;
