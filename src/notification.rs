// SPDX-License-Identifier: Apache-2.0
//! Tells people about conversions: webhooks and e-mail.
//!
//! Here is what is said and how it is sent once. When it is sent, and again, the outbox decides
//! (`queue::engine::outbox`).

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
