// SPDX-License-Identifier: Apache-2.0
//! Who is notified about ends of conversions, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which events are announced, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NotificationSettings {
    /// Whether each success is announced.
    pub on_success: bool,
    /// Whether each file is announced that is skipped because it was converted before.
    pub on_duplicate: bool,
    /// Whether each final failure, and a full output volume, is announced.
    pub on_failure: bool,
    /// Whether a queue in which nothing moves is announced.
    pub on_stalled: bool,
    /// Seconds without any movement after which a non-empty queue counts as stalled.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub stalled_after_seconds: u32,
    /// An HTTP endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// A mail server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
}

impl Default for NotificationSettings {
    fn default() -> Self {
        Self {
            on_success: false,
            on_duplicate: false,
            on_failure: true,
            on_stalled: true,
            stalled_after_seconds: 3600,
            webhook: None,
            email: None,
        }
    }
}

/// An HTTP endpoint that takes notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Form of the message.
    #[serde(default, rename = "type")]
    pub kind: WebhookType,
    /// Secret key that holds the URL.
    pub url_secret_ref: SecretKeyRef,
    /// Secret whose keys are header names and whose values are their values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<SecretRef>,
}

/// Form of a webhook's message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebhookType {
    Slack,
    Discord,
    #[default]
    Generic,
}

/// A mail server and whom it writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Email {
    /// Host name or address of the mail server.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9.:_-]+$"))]
    pub host: String,
    /// Its port: STARTTLS, or TLS from the first byte on 465.
    #[serde(default = "submission_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Sender's address.
    #[schemars(length(min = 3, max = 320), regex(pattern = r"^[^@\s]+@[^@\s]+$"))]
    pub from: String,
    /// Receivers' addresses.
    #[schemars(length(min = 1, max = 50), inner(length(min = 3, max = 320), regex(pattern = r"^[^@\s]+@[^@\s]+$")))]
    pub to: Vec<String>,
    /// Secret with the keys `username` and `password`; left out, no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// Message submission (RFC 6409).
const fn submission_port() -> u16 {
    587
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
