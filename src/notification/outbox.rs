// SPDX-License-Identifier: Apache-2.0
//! The queue and the tasks between an event and its servers.

use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config::NotificationConfig;
use super::email::{EmailError, Mailer};
use super::event::{Event, Message};
use super::webhook::{Webhook, WebhookError};

/// Messages that wait for one channel at most; beyond, the newest is dropped with a warning.
const CAPACITY: usize = 256;

/// A mail is a dialogue of some ten steps, and servers are made to hesitate: it may take this many times longer.
const MAIL_TIMES: u32 = 3;

/// How long a server may take, and how often it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one request, from connecting to the end of its answer; a mail may take three times as long.
    pub timeout: Duration,
    /// Before the first repetition; each further pause is twice as long.
    pub pause: Duration,
    /// Repetitions after the first try.
    pub retries: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), pause: Duration::from_secs(2), retries: 3 }
    }
}

/// Announces events.
#[derive(Debug)]
pub struct Notifier {
    config: NotificationConfig,
    channels: Vec<(&'static str, mpsc::Sender<Message>)>,
    unusable: Vec<String>,
    tasks: JoinSet<()>,
}

impl Notifier {
    /// Starts a task for each channel of `config`. Must be called within a tokio runtime, after a TLS provider was
    /// installed (`telemetry::install_crypto`).
    #[must_use]
    pub fn start(config: NotificationConfig) -> Self {
        Self::with_patience(config, Patience::default())
    }

    /// The same with other timeouts.
    #[must_use]
    pub fn with_patience(config: NotificationConfig, patience: Patience) -> Self {
        let mut channels = Vec::new();
        let mut unusable = Vec::new();
        let mut tasks = JoinSet::new();
        if let Some(webhook) = config.webhook.clone() {
            match Webhook::new(webhook, patience.timeout) {
                Ok(webhook) => {
                    let (sender, receiver) = mpsc::channel(CAPACITY);
                    channels.push(("webhook", sender));
                    tasks.spawn(post(webhook, receiver, patience));
                }
                Err(error) => unusable.push(format!("Failed to send webhook: {error}")),
            }
        }
        if let Some(email) = config.email.clone() {
            match Mailer::new(email, patience.timeout * MAIL_TIMES) {
                Ok(mailer) => {
                    let (sender, receiver) = mpsc::channel(CAPACITY);
                    channels.push(("email", sender));
                    tasks.spawn(mail(mailer, receiver, patience));
                }
                Err(error) => unusable.push(format!("Failed to send email: {error}")),
            }
        }
        for problem in &unusable {
            tracing::error!("{problem}");
        }
        Self { config, channels, unusable, tasks }
    }

    /// What is wrong with channels by which nothing can ever be announced.
    #[must_use]
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    /// Announces `event` if the configuration wants it. Returns at once, whatever the servers do.
    pub fn send(&self, event: &Event) {
        if !event.is_wanted(&self.config) {
            return;
        }
        let message = event.message();
        for (channel, sender) in &self.channels {
            match sender.try_send(message.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    tracing::warn!("Failed to send {channel}: too many wait already, dropped: {}", message.title);
                }
                Err(TrySendError::Closed(_)) => tracing::error!("Failed to send {channel}: its task is gone"),
            }
        }
    }

    /// Takes no more, and waits up to `patience` for what is queued; the rest is dropped.
    pub async fn finish(mut self, patience: Duration) {
        self.channels.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(patience, all).await.is_err() {
            tracing::warn!("notifications were left unsent at the end");
        }
    }
}

async fn post(webhook: Webhook, mut messages: mpsc::Receiver<Message>, patience: Patience) {
    while let Some(message) = messages.recv().await {
        let sent = (|| webhook.send(&message))
            .retry(schedule(patience))
            .when(WebhookError::is_transient)
            .notify(|error, pause| again("webhook", error, pause))
            .await;
        match sent {
            Ok(()) => tracing::info!("Webhook sent: {}", message.title),
            Err(error) => tracing::error!("Failed to send webhook: {error}"),
        }
    }
}

async fn mail(mailer: Mailer, mut messages: mpsc::Receiver<Message>, patience: Patience) {
    while let Some(message) = messages.recv().await {
        let sent = (|| mailer.send(&message))
            .retry(schedule(patience))
            .when(EmailError::is_transient)
            .notify(|error, pause| again("email", error, pause))
            .await;
        match sent {
            Ok(()) => tracing::info!("Email sent: {}", message.title),
            Err(error) => tracing::error!("Failed to send email: {error}"),
        }
    }
}

fn schedule(patience: Patience) -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(patience.pause).with_factor(2.0).with_max_times(patience.retries)
}

fn again(channel: &str, error: &impl Display, pause: Duration) {
    tracing::debug!(channel, %error, ?pause, "a notification is tried again");
}
