// SPDX-License-Identifier: Apache-2.0
//! What a Linux guest says of itself.

pub(super) mod boot;
pub(super) mod initramfs;
pub(super) mod kernels;
pub(super) mod naming;
pub(super) mod network;
pub(super) mod release;
pub(super) mod tables;
mod unified;
