// SPDX-License-Identifier: Apache-2.0
//! What is announced, and where to.

use std::fmt;
use std::time::Duration;

use lettre::message::Mailbox;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Something that must not be seen in a log: printed as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides `value`.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for where it has to be sent.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which events are announced, and through which channels; without a channel, no event is.
#[derive(Clone, Debug, PartialEq)]
pub struct NotificationConfig {
    pub on_success: bool,
    /// Files that are skipped because they were converted before.
    pub on_duplicate: bool,
    /// Final failures, and a full output volume.
    pub on_failure: bool,
    pub on_stalled: bool,
    /// How long nothing may happen in a queue that isn't empty before the queue counts as stalled.
    pub stall_after: Duration,
    pub webhook: Option<WebhookConfig>,
    pub email: Option<EmailConfig>,
}

impl Default for NotificationConfig {
    fn default() -> Self {
        Self {
            on_success: false,
            on_duplicate: false,
            on_failure: true,
            on_stalled: true,
            stall_after: Duration::from_secs(60 * 60),
            webhook: None,
            email: None,
        }
    }
}

/// Whose format a webhook's body has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WebhookKind {
    Slack,
    Discord,
    #[default]
    Generic,
}

impl WebhookKind {
    /// The name used in a configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slack => "slack",
            Self::Discord => "discord",
            Self::Generic => "generic",
        }
    }
}

/// Where a webhook goes. Its URL is a secret: for Slack and Discord whoever knows it may post.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookConfig {
    pub kind: WebhookKind,
    pub url: Secret<Url>,
    /// Further headers; their values are marked sensitive.
    pub headers: HeaderMap,
}

impl WebhookConfig {
    /// Parses a webhook's URL: http or https, with a host. `None` for any other text, which must not be shown.
    #[must_use]
    pub fn parse_url(text: &str) -> Option<Secret<Url>> {
        let url = Url::parse(text.trim()).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then(|| Secret::new(url))
    }

    /// Parses headers, with their values marked sensitive. `None` where a name or a value is invalid.
    pub fn parse_headers<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            headers.insert(name.parse::<HeaderName>().ok()?, value);
        }
        Some(headers)
    }
}

/// How the connection to a mail server is kept private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// STARTTLS, required.
    Starttls,
    /// TLS from the first byte (port 465).
    Tls,
    /// None: for a relay on the same host.
    None,
}

/// Where mail is sent, and through which server.
#[derive(Clone, Debug, PartialEq)]
pub struct EmailConfig {
    pub host: String,
    pub port: u16,
    pub encryption: Encryption,
    pub from: Mailbox,
    /// Receivers; at least one.
    pub to: Vec<Mailbox>,
    pub username: Option<String>,
    pub password: Option<Secret<String>>,
    /// Text that every subject begins with.
    pub subject_prefix: String,
}
