//! Notifications of a queue: what its specification asks for, with the secrets that are mounted beside it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::cluster::api::{Email, NotificationSettings, Webhook, WebhookType};
use crate::cluster::names;
use crate::notification::{EmailConfig, Encryption, NotificationConfig, Secret, WebhookConfig, WebhookKind};

/// What can be announced, and what of it can't for want of a secret.
pub fn config(settings: &NotificationSettings) -> (NotificationConfig, Vec<String>) {
    let mut missing = Vec::new();
    let webhook = settings.webhook.as_ref().and_then(|wanted| noted(webhook(wanted), &mut missing));
    let email = settings.email.as_ref().and_then(|wanted| noted(email(wanted), &mut missing));
    let config = NotificationConfig {
        on_success: settings.on_success,
        on_failure: settings.on_failure,
        on_stalled: settings.on_stalled,
        stall_after: Duration::from_secs(settings.stalled_after_seconds.into()),
        webhook,
        email,
    };
    (config, missing)
}

fn noted<T>(result: Result<T, String>, missing: &mut Vec<String>) -> Option<T> {
    result.map_err(|why| missing.push(why)).ok()
}

fn webhook(wanted: &Webhook) -> Result<WebhookConfig, String> {
    let reference = &wanted.url_secret_ref;
    let secret = format!("Secret {} with key {}", reference.name, reference.key);
    let text = read(Path::new(names::WEBHOOK_URL_FILE)).map_err(|error| format!("{secret}: {error}"))?;
    // The URL is itself a secret: it is named in no message.
    let url = Url::parse(&text).map_err(|_| format!("{secret} holds no URL"))?;
    let mut headers = HeaderMap::new();
    if let Some(reference) = &wanted.headers_secret_ref {
        headers = read_headers().map_err(|error| format!("Secret {}: {error}", reference.name))?;
    }
    let kind = match wanted.kind {
        WebhookType::Slack => WebhookKind::Slack,
        WebhookType::Discord => WebhookKind::Discord,
        WebhookType::Generic => WebhookKind::Generic,
    };
    Ok(WebhookConfig { kind, url: Secret::new(url), headers })
}

fn read_headers() -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for entry in fs::read_dir(names::WEBHOOK_HEADERS_DIR).map_err(|error| error.to_string())? {
        let entry = entry.map_err(|error| error.to_string())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The kubelet's own links beside the keys.
        if name.starts_with("..") {
            continue;
        }
        let key = HeaderName::try_from(&name).map_err(|_| format!("{name} is no header's name"))?;
        let text = read(&entry.path())?;
        let mut value = HeaderValue::try_from(text).map_err(|_| format!("{name} holds no header's value"))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

fn email(wanted: &Email) -> Result<EmailConfig, String> {
    let address = |text: &str| text.parse().map_err(|_| format!("{text} is no mail address"));
    let mut config = EmailConfig {
        host: wanted.host.clone(),
        port: wanted.port,
        encryption: if wanted.port == 465 { Encryption::Tls } else { Encryption::Starttls },
        from: address(&wanted.from)?,
        to: wanted.to.iter().map(|to| address(to)).collect::<Result<_, _>>()?,
        username: None,
        password: None,
        subject_prefix: "[hyper2kvm]".to_owned(),
    };
    if let Some(reference) = &wanted.credentials_secret_ref {
        let key = |key: &str| {
            let text = read(&Path::new(names::EMAIL_CREDENTIALS_DIR).join(key));
            text.map_err(|error| format!("Secret {} with key {key}: {error}", reference.name))
        };
        config.username = Some(key("username")?);
        config.password = Some(Secret::new(key("password")?));
    }
    Ok(config)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
}
