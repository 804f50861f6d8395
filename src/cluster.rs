// SPDX-License-Identifier: Apache-2.0
//! The cluster: custom resources, the controller's reconcilers, the watcher and its sidecar.

pub mod agent;
pub mod api;
pub mod cache;
pub mod client;
mod containers;
pub mod controller;
pub mod executor;
pub mod identity;
pub mod names;
pub mod seen;
pub mod sidecar;
pub mod snapshot;
