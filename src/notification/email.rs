// SPDX-License-Identifier: Apache-2.0
//! Sends messages by mail.

use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use tokio::time::timeout;

use super::again::Again;
use super::config::{EmailConfig, Encryption};
use super::event::Message;
use super::payload;

/// Why a mail was not accepted. None of these shows a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum EmailError {
    #[error("cannot build the mail: {0}")]
    Build(#[from] lettre::error::Error),
    #[error("timed out")]
    Timeout,
    #[error("{0}")]
    Smtp(#[from] lettre::transport::smtp::Error),
}

impl EmailError {
    /// Whether it is tried again: a temporary refusal (4xx, which greylisting uses) is.
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Timeout => Again::Later,
            Self::Smtp(error) if !(error.is_permanent() || error.is_client() || error.is_tls()) => Again::Later,
            Self::Build(_) | Self::Smtp(_) => Again::Never,
        }
    }
}

/// One mail server.
pub(super) struct Mailer {
    config: EmailConfig,
    transport: AsyncSmtpTransport<Tokio1Executor>,
    timeout: Duration,
}

impl Mailer {
    /// `timeout` bounds the whole dialogue: the transport's own timeout bounds only the connecting.
    pub(super) fn new(config: EmailConfig, timeout: Duration) -> Result<Self, EmailError> {
        let tls = match config.encryption {
            Encryption::Starttls => Tls::Required(TlsParameters::new(config.host.clone())?),
            Encryption::Tls => Tls::Wrapper(TlsParameters::new(config.host.clone())?),
            Encryption::None => Tls::None,
        };
        // This builder is called dangerous because it sets no TLS; TLS is set right here.
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(config.host.as_str())
            .port(config.port)
            .tls(tls)
            .timeout(Some(timeout));
        if let Some(username) = &config.username {
            let password = config.password.as_ref().map(|p| p.expose().clone()).unwrap_or_default();
            builder = builder.credentials(Credentials::new(username.clone(), password));
        }
        let transport = builder.build();
        Ok(Self { config, transport, timeout })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), EmailError> {
        let mut mail = lettre::Message::builder()
            .from(self.config.from.clone())
            .subject(format!("{} {}", self.config.subject_prefix, message.title).trim())
            .message_id(None)
            .header(ContentType::TEXT_PLAIN);
        for address in &self.config.to {
            mail = mail.to(address.clone());
        }
        let mail = mail.body(payload::mail(message))?;
        timeout(self.timeout, self.transport.send(mail)).await.map_err(|_| EmailError::Timeout)??;
        Ok(())
    }
}
