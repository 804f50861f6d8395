//! Tells people about conversions: webhooks and e-mail.

mod config;

pub use config::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};
