// SPDX-License-Identifier: Apache-2.0
//! The programs of one host from outside: the built binaries, and the results of what they are given.

#[path = "../support/hive.rs"]
mod hive;
#[path = "../support/lib.rs"]
mod support;

mod appliance;
mod boots;
mod by_hand;
mod convert;
mod daemon;
mod device;
mod faults;
mod fix;
mod guest;
mod hyper2kvmctl;
mod machines;
mod notification;
mod page;
mod release;
mod transfer;
mod whole;
mod windows;
mod worker;
