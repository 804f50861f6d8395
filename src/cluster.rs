// SPDX-License-Identifier: Apache-2.0
//! The cluster: custom resources, the controller's reconcilers, the watcher and its sidecar.

pub mod agent;
pub mod api;
pub(crate) mod cache;
pub mod client;
mod containers;
pub mod controller;
pub mod defaults;
pub(crate) mod executor;
pub mod identity;
pub mod machine;
pub mod names;
pub mod pulse;
pub(crate) mod seen;
pub mod sidecar;
pub(crate) mod snapshot;
