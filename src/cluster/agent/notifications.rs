// SPDX-License-Identifier: Apache-2.0
//! Notifications of a queue: what its specification asks for, with the Secrets that are mounted beside it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use lettre::message::Mailbox;
use reqwest::header::HeaderMap;
use tokio::time::sleep;

use crate::cluster::api::{Email, NotificationSettings, Webhook, WebhookType};
use crate::cluster::names;
use crate::notification::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};

/// How often the mounted Secrets are read for changes: the kubelet itself takes about a minute.
const SECRETS_POLL: Duration = Duration::from_secs(5);

/// Why a channel can't be used as specified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error(
        "spec.notifications.{field}: Secret {secret} is not there, or has no key {key}: create it, and it is used within two \
         minutes"
    )]
    Missing { field: &'static str, secret: String, key: String },
    #[error("spec.notifications.{field}: key {key} of Secret {secret} can't be read: {detail}")]
    Unreadable { field: &'static str, secret: String, key: String, detail: String },
    #[error("spec.notifications.{field}: key {key} of Secret {secret} holds no {what}: correct it")]
    Malformed { field: &'static str, secret: String, key: String, what: &'static str },
    #[error("spec.notifications.{field}: {text} is no mail address: correct it")]
    Address { field: &'static str, text: String },
}

impl Wrong {
    /// The reason for the condition.
    #[must_use]
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "SecretMissing",
            Self::Unreadable { .. } => "SecretUnreadable",
            Self::Malformed { .. } => "SecretMalformed",
            Self::Address { .. } => "Unusable",
        }
    }
}

/// The Secrets of a specification, as they were when they were read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Secrets {
    pub config: NotificationConfig,
    /// What is wrong with them.
    pub wrong: Vec<Wrong>,
    /// The authorities that are trusted besides; clients read them when they are made.
    authorities: Option<Vec<u8>>,
}

impl Secrets {
    /// Reads the Secrets that are mounted below `directory`.
    pub(super) fn read(settings: &NotificationSettings, directory: &Path) -> Self {
        let mut wrong = Vec::new();
        let webhook = settings.webhook.as_ref().and_then(|wanted| noted(webhook(wanted, directory), &mut wrong));
        let email = settings.email.as_ref().and_then(|wanted| noted(email(wanted, directory), &mut wrong));
        let config = NotificationConfig {
            on_success: settings.on_success,
            on_duplicate: settings.on_duplicate,
            on_failure: settings.on_failure,
            on_stalled: settings.on_stalled,
            stall_after: Duration::from_secs(settings.stalled_after_seconds.into()),
            webhook,
            email,
        };
        let authorities = fs::read(directory.join(names::TRUSTED_CA)).ok();
        Self { config, wrong, authorities }
    }

    /// Returns when a Secret came, went or changed.
    pub(super) async fn changed(&self, settings: &NotificationSettings, directory: &Path) {
        while *self == Self::read(settings, directory) {
            sleep(SECRETS_POLL).await;
        }
    }
}

fn noted<T>(result: Result<T, Wrong>, wrong: &mut Vec<Wrong>) -> Option<T> {
    result.map_err(|why| wrong.push(why)).ok()
}

/// A Secret: the field that names it, and where it is mounted.
struct Mounted<'a> {
    field: &'static str,
    secret: &'a str,
    directory: &'a Path,
}

impl Mounted<'_> {
    /// The text of a key, which may be mounted under another name.
    fn text(&self, key: &str, file: &str) -> Result<String, Wrong> {
        let text = fs::read_to_string(self.directory.join(file)).map_err(|error| self.unreadable(key, &error))?;
        Ok(text.trim().to_owned())
    }

    fn unreadable(&self, key: &str, error: &io::Error) -> Wrong {
        let (field, secret, key) = (self.field, self.secret.to_owned(), key.to_owned());
        match error.kind() {
            io::ErrorKind::NotFound => Wrong::Missing { field, secret, key },
            _ => Wrong::Unreadable { field, secret, key, detail: error.to_string() },
        }
    }

    /// What is wrong with a text. The text itself is a secret and appears in no message.
    fn malformed(&self, key: &str, what: &'static str) -> Wrong {
        Wrong::Malformed { field: self.field, secret: self.secret.to_owned(), key: key.to_owned(), what }
    }

    /// Names of the keys; a Secret that is missing leaves an empty directory.
    fn keys(&self) -> Result<Vec<String>, Wrong> {
        let entries = fs::read_dir(self.directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| self.unreadable("*", &error))?;
        let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
        // Skips the kubelet's own links beside the keys.
        let mut keys: Vec<_> = names.filter(|name| !name.starts_with("..")).collect();
        if keys.is_empty() {
            return Err(self.unreadable("at all", &io::ErrorKind::NotFound.into()));
        }
        keys.sort();
        Ok(keys)
    }
}

fn webhook(wanted: &Webhook, directory: &Path) -> Result<WebhookConfig, Wrong> {
    let reference = &wanted.url_secret_ref;
    let directory_of_url = directory.join(names::WEBHOOK_DIR);
    let of_url = Mounted { field: "webhook.urlSecretRef", secret: &reference.name, directory: &directory_of_url };
    let text = of_url.text(&reference.key, "url")?;
    let url = WebhookConfig::parse_url(&text);
    let url = url.ok_or_else(|| of_url.malformed(&reference.key, "http or https URL"))?;
    let mut headers = HeaderMap::new();
    if let Some(reference) = &wanted.headers_secret_ref {
        let directory = directory.join(names::WEBHOOK_HEADERS_DIR);
        headers = read_headers(&Mounted {
            field: "webhook.headersSecretRef",
            secret: &reference.name,
            directory: &directory,
        })?;
    }
    let kind = match wanted.kind {
        WebhookType::Slack => WebhookKind::Slack,
        WebhookType::Discord => WebhookKind::Discord,
        WebhookType::Generic => WebhookKind::Generic,
    };
    Ok(WebhookConfig { kind, url, headers })
}

fn read_headers(mounted: &Mounted<'_>) -> Result<HeaderMap, Wrong> {
    let mut headers = HeaderMap::new();
    for key in mounted.keys()? {
        let header = WebhookConfig::parse_headers([(key.as_str(), mounted.text(&key, &key)?)]);
        headers.extend(header.ok_or_else(|| mounted.malformed(&key, "HTTP header"))?);
    }
    Ok(headers)
}

fn email(wanted: &Email, directory: &Path) -> Result<EmailConfig, Wrong> {
    let mut config = EmailConfig {
        host: wanted.host.clone(),
        port: wanted.port,
        encryption: if wanted.port == 465 { Encryption::Tls } else { Encryption::Starttls },
        from: address("email.from", &wanted.from)?,
        to: wanted.to.iter().map(|to| address("email.to", to)).collect::<Result<_, _>>()?,
        username: None,
        password: None,
        subject_prefix: "[hyper2kvm]".to_owned(),
    };
    if let Some(reference) = &wanted.credentials_secret_ref {
        let directory = directory.join(names::EMAIL_CREDENTIALS_DIR);
        let mounted = Mounted { field: "email.credentialsSecretRef", secret: &reference.name, directory: &directory };
        config.username = Some(mounted.text("username", "username")?);
        config.password = Some(Secret::new(mounted.text("password", "password")?));
    }
    Ok(config)
}

fn address(field: &'static str, text: &str) -> Result<Mailbox, Wrong> {
    text.parse().map_err(|_| Wrong::Address { field, text: text.to_owned() })
}

#[cfg(test)]
mod tests;
