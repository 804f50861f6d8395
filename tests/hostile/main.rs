// SPDX-License-Identifier: Apache-2.0
//! Hostile images from outside: refused for the right reason, and nothing of a canary beside them gets anywhere.

#[path = "../support/lib.rs"]
mod support;

mod archives;
mod disks;
mod dropped;
mod mutation;
mod trap;
