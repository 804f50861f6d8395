// SPDX-License-Identifier: Apache-2.0
//! The operator on a real cluster: a real API server, and a node that runs the image of the built binaries.
//!
//! Each test runs in a process of its own; all share the cluster that the first of them boots.
#![cfg(feature = "cluster")]

#[path = "../support/lib.rs"]
mod support;

mod audit;
mod harness;
mod replica;

mod access;
mod api;
mod controller;
mod conversion;
mod defaults;
mod faults;
mod kills;
mod kind;
mod kueue;
mod node;
mod nodes;
mod outage;
mod packaging;
mod plugin;
mod replicas;
mod starting;
mod strangers;
mod upgrade;
mod volumes;
mod wide;
