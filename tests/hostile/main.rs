//! Hostile images from outside: refused for the right reason, and nothing of a canary beside them gets anywhere.

#[path = "../daemon/harness.rs"]
#[allow(dead_code, reason = "one pass through the daemon needs a part of it")]
mod harness;
#[path = "../images/ova.rs"]
mod ova;
#[path = "../images/vmdk.rs"]
mod vmdk;

mod archives;
mod disks;
mod dropped;
mod mutation;
mod trap;
