// SPDX-License-Identifier: Apache-2.0
//! What the tests of several tiers share.

#![allow(dead_code, reason = "each tier uses its own part")]

pub mod daemon;
#[path = "../images/ova.rs"]
pub mod ova;
pub mod protocol;
pub mod random;
pub mod server;
#[path = "../images/vmdk.rs"]
pub mod vmdk;
