//! The daemon under faults, from outside: kills, a full volume, servers that don't answer, a power cut.

#[allow(dead_code, reason = "shared with the other tests of the daemon, which use the rest")]
#[path = "../daemon/harness.rs"]
mod harness;

mod failpoints;
mod full;
mod kill;
mod notify;
mod power_cut;
mod random;
mod server;
mod trace;
