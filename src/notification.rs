// SPDX-License-Identifier: Apache-2.0
//! Tells people about conversions: webhooks and e-mail.
//!
//! These modules say what is announced, and send a message once. The outbox (`queue::engine::outbox`) decides when it
//! is sent, and whether again.

mod again;
mod channel;
mod config;
mod email;
mod event;
mod payload;
mod stall;
mod webhook;

pub use again::Again;
pub use channel::{Channel, SendError, open};
pub use config::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};
pub use event::{Event, Level, Message};
pub use stall::StallWatch;
