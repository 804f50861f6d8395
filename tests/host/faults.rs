// SPDX-License-Identifier: Apache-2.0
//! The daemon under faults, from outside: kills, volumes that are full or away, servers that don't answer, a power cut.

mod denied;
mod failpoints;
mod full;
mod hangs;
mod kill;
mod network;
mod notify;
mod outbox;
mod power_cut;
mod trace;
mod volumes;
