//! The daemon from outside: the built binaries, files dropped in, and what comes of them.

mod ending;
mod files;
mod groups;
mod harness;
#[path = "../images/ova.rs"]
mod ova;
mod protocol;
mod retrying;
#[path = "../daemon_faults/server.rs"]
#[allow(dead_code, reason = "shared with the tests of faults, which use the rest")]
mod server;
mod settings;
mod socket;
mod statistics;
#[path = "../images/vmdk.rs"]
mod vmdk;
