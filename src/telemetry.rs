// SPDX-License-Identifier: Apache-2.0
//! What the program reports about itself: log lines, metrics, and whether it is healthy.

mod connections;
pub mod endpoint;
pub mod logging;
pub(crate) mod metrics;
pub(crate) mod page;
pub mod traces;

/// Makes *ring* the TLS provider of this process. The first line of every `main`, and of every test that opens a TLS
/// connection: reqwest panics without a provider, kube with two.
pub fn install_crypto() {
    // An error means that a provider is installed already, by another test in this process.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
