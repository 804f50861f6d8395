//! The cluster: custom resources, the controller's reconcilers, the watcher and its sidecar.

pub mod api;
pub mod controller;
pub mod names;
