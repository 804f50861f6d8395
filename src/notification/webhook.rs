// SPDX-License-Identifier: Apache-2.0
//! Sends messages to a webhook.

use std::error::Error as _;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};

use super::again::{Again, retry_after};
use super::config::{WebhookConfig, WebhookKind};
use super::event::Message;
use super::payload;

/// Why a webhook was not accepted. Never shows the URL: whoever knows it may post.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebhookError {
    #[error("{0}")]
    Request(String, #[source] reqwest::Error),
    /// With the server's word on the next try.
    #[error("the server answers {0}")]
    Status(StatusCode, Option<Duration>),
}

impl WebhookError {
    fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = if error.is_timeout() { "timed out".to_owned() } else { error.to_string() };
        // The last cause is the useful one: connection refused, unknown host, bad certificate.
        let mut cause = error.source();
        while let Some(deeper) = cause.and_then(|cause| cause.source()) {
            cause = Some(deeper);
        }
        if let Some(cause) = cause.filter(|_| !error.is_timeout()) {
            text = format!("{text}: {cause}");
        }
        Self::Request(text, error)
    }

    /// Whether it is tried again.
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Request(_, error) if error.is_builder() => Again::Never,
            Self::Request(..) => Again::Later,
            Self::Status(status, retry_after) => match *status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
                    retry_after.map_or(Again::Later, Again::After)
                }
                status if status.is_server_error() => retry_after.map_or(Again::Later, Again::After),
                _ => Again::Never,
            },
        }
    }
}

/// One webhook, with its connections kept.
pub(super) struct Webhook {
    config: WebhookConfig,
    client: Client,
}

impl Webhook {
    pub(super) fn new(config: WebhookConfig, timeout: Duration) -> Result<Self, WebhookError> {
        let mut client = Client::builder()
            .user_agent(concat!("hyper2kvm/", env!("CARGO_PKG_VERSION")))
            .default_headers(config.headers.clone())
            .timeout(timeout)
            // A redirect would send headers and body to a place that nobody configured.
            .redirect(Policy::none());
        if config.url.expose().scheme() == "http" {
            // A system without certificates of authorities can still post over http.
            client = client.tls_certs_only(std::iter::empty());
        }
        let client = client.build().map_err(WebhookError::of)?;
        Ok(Self { config, client })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), WebhookError> {
        let body = match self.config.kind {
            WebhookKind::Slack => payload::slack(message),
            WebhookKind::Discord => payload::discord(message),
            WebhookKind::Generic => payload::generic(message),
        };
        let request = self.client.post(self.config.url.expose().clone()).json(&body);
        let answer = request.send().await.map_err(WebhookError::of)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let told = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Err(WebhookError::Status(status, told.and_then(|text| retry_after(text, Timestamp::now()))))
    }
}
