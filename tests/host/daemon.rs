// SPDX-License-Identifier: Apache-2.0
//! The daemon from outside: the built binaries, files dropped in, and what comes of them.

mod arrival;
mod ending;
mod files;
mod groups;
mod retrying;
mod settings;
mod socket;
mod statistics;
