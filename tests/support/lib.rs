// SPDX-License-Identifier: Apache-2.0
//! What the tests of several tiers share.

#![allow(dead_code, reason = "each tier uses its own part")]

pub(crate) mod daemon;
pub(crate) mod guest;
#[path = "../images/ova.rs"]
pub(crate) mod ova;
pub(crate) mod protocol;
pub(crate) mod random;
pub(crate) mod server;
#[path = "../images/vmdk.rs"]
pub(crate) mod vmdk;
