// SPDX-License-Identifier: Apache-2.0
//! What the program tells about itself: log lines, metrics, and whether it is well.

pub mod endpoint;
pub mod logging;
pub mod metrics;

/// Makes *ring* the TLS provider of this process. The first line of every `main` (and of every test that opens a TLS
/// connection): without a provider reqwest panics, with two kube does.
pub fn install_crypto() {
    // An error means that one is installed already, by a test beside this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
