// SPDX-License-Identifier: Apache-2.0
//! Tells people about conversions: webhooks and e-mail.
//!
//! Each channel has its own task with a bounded queue, so that neither a conversion nor the other channel ever waits
//! for a server that hangs.

mod config;
mod email;
mod event;
mod outbox;
mod payload;
mod stall;
mod webhook;

pub use config::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};
pub use event::{Event, Level, Message};
pub use outbox::{Notifier, Patience};
pub use stall::StallWatch;
