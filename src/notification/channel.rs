// SPDX-License-Identifier: Apache-2.0
//! The channels through which messages are sent.

use std::time::Duration;

use super::again::Again;
use super::config::NotificationConfig;
use super::email::{EmailError, Mailer};
use super::event::Message;
use super::webhook::{Webhook, WebhookError};

/// A mail takes some ten steps, and servers delay them on purpose: it may take this many times longer.
const MAIL_TIMES: u32 = 3;

/// Why a message was not accepted. Shows neither address nor credentials.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct SendError {
    text: String,
    pub again: Again,
}

/// A webhook or a mail server.
pub struct Channel(Way);

enum Way {
    Webhook(Webhook),
    Email(Mailer),
}

impl Channel {
    /// Its name in the outbox, which stays the same in later versions of the program.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.0 {
            Way::Webhook(_) => "webhook",
            Way::Email(_) => "email",
        }
    }

    /// Its name at the beginning of a log line.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self.0 {
            Way::Webhook(_) => "Webhook",
            Way::Email(_) => "Email",
        }
    }

    /// Sends `message` once. Returns within the timeout of the channel.
    pub async fn send(&self, message: &Message) -> Result<(), SendError> {
        match &self.0 {
            Way::Webhook(webhook) => webhook.send(message).await.map_err(SendError::from),
            Way::Email(mailer) => mailer.send(message).await.map_err(SendError::from),
        }
    }
}

impl From<WebhookError> for SendError {
    fn from(error: WebhookError) -> Self {
        Self { again: error.again(), text: error.to_string() }
    }
}

impl From<EmailError> for SendError {
    fn from(error: EmailError) -> Self {
        Self { again: error.again(), text: error.to_string() }
    }
}

/// The channels of `config`, and what is wrong with those that can never announce anything. Must be called after a TLS
/// provider was installed (`telemetry::install_crypto`). `timeout` bounds one request, from connecting to the end of
/// its answer; a mail may take three times as long.
pub fn open(config: &NotificationConfig, timeout: Duration) -> (Vec<Channel>, Vec<String>) {
    let mut channels = Vec::new();
    let mut unusable = Vec::new();
    if let Some(webhook) = config.webhook.clone() {
        match Webhook::new(webhook, timeout) {
            Ok(webhook) => channels.push(Channel(Way::Webhook(webhook))),
            Err(error) => unusable.push(format!("Failed to send webhook: {error}")),
        }
    }
    if let Some(email) = config.email.clone() {
        match Mailer::new(email, timeout * MAIL_TIMES) {
            Ok(mailer) => channels.push(Channel(Way::Email(mailer))),
            Err(error) => unusable.push(format!("Failed to send email: {error}")),
        }
    }
    for problem in &unusable {
        tracing::error!("{problem}");
    }
    (channels, unusable)
}
