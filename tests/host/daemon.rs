// SPDX-License-Identifier: Apache-2.0
//! The daemon from outside: the built binaries, files dropped in, and the results.

mod arrival;
mod beside;
mod ending;
mod files;
mod folders;
mod groups;
mod held;
mod history;
mod members;
mod reload;
mod retention;
mod retrying;
mod settings;
mod socket;
mod statistics;
mod traces;
