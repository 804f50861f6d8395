// SPDX-License-Identifier: Apache-2.0
//! The control socket: one request per connection, one JSON object back.
//!
//! A request is a JSON object (`{"command":"status"}`) or a bare word (`status`). It is answered as soon as it is
//! complete, because existing clients send neither a newline nor an end of stream. Anything else is answered with a
//! JSON error.

pub mod client;
mod command;
mod reply;
mod request;
mod server;

pub use command::{Command, UnknownCommand};
pub use reply::Reply;
pub use server::{BindError, Handler, Listener};

/// Where the socket lies below the output directory.
pub const SOCKET: &str = ".daemon/control.sock";

/// Where clients look next: a directory in memory, for outputs on volumes that refuse sockets.
pub const FALLBACK_DIR: &str = "/run/hyper2kvm";
/// Name of the socket there.
pub const FALLBACK_SOCKET_NAME: &str = "control.sock";

#[cfg(test)]
mod tests;
