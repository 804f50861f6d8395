// SPDX-License-Identifier: Apache-2.0
//! The client by which every process here talks to the API server: each of its calls has a time limit.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::core::Status;
use kube::runtime::watcher;
use kube::{Client, Config};
use tokio::sync::watch;
use tokio::time::timeout;
use tower::BoxError;
use tower::util::MapFutureLayer;

use crate::conversion::{chain, verdict};

/// How long the API server may take to begin its answer: the caller waits, and often everything behind it.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may pause once it has begun. A watch is silent while nothing happens, and ends after a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);

/// Longest text of the API server's that is shown, in bytes.
pub(crate) const MAX_WORDS: usize = 1024;

/// Why a request failed, on one line: what the API server says, in its own words alone.
#[must_use]
pub(crate) fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => words(status),
        _ => chain(error),
    }
}

fn words(status: &Status) -> String {
    let words = verdict::clean(status.message.trim(), MAX_WORDS);
    if words.is_empty() { format!("the API server answered {} {}", status.code, status.reason) } else { words }
}

/// The same of a watch.
#[must_use]
pub(crate) fn told_by_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => told(error),
        watcher::Error::WatchError(status) => words(status),
        watcher::Error::NoResourceVersion => chain(error),
    }
}

/// Whether a request that failed so passes by itself: another writer was first, or the API server is busy or away.
#[must_use]
pub(crate) fn passes(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 409 | 429 | 500..),
        _ => true,
    }
}

/// A request that failed, as the cause of another error: kube's own text holds the API server's answer twice.
#[derive(Debug, thiserror::Error)]
#[error("{}", told(.0))]
pub(crate) struct Refused(pub kube::Error);

#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", CALL_LIMIT.as_secs())]
struct Late;

/// When the API server answered last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<watch::Sender<Option<Timestamp>>>);

impl Contact {
    /// It answered now.
    pub(crate) fn note(&self) {
        self.0.send_replace(Some(Timestamp::now()));
    }

    /// When it answered last.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        *self.0.borrow()
    }

    /// Returns once, after the first answer; later calls wait for ever.
    pub(crate) async fn first(&self) {
        if self.last().is_some() {
            return std::future::pending().await;
        }
        drop(self.0.subscribe().wait_for(Option::is_some).await);
    }
}

/// A client of the API server that `config` names.
///
/// # Errors
/// Where no client can be made of the configuration.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    client_with(config, &Contact::default())
}

/// The same; each answer is noted in `contact`.
///
/// # Errors
/// As [`client`].
pub fn client_with(mut config: Config, contact: &Contact) -> Result<Client, kube::Error> {
    config.read_timeout = Some(SILENCE_LIMIT);
    let contact = contact.clone();
    let limit = MapFutureLayer::new(move |answer| {
        let contact = contact.clone();
        async move {
            let answer = timeout(CALL_LIMIT, answer).await.unwrap_or_else(|_| Err(BoxError::from(Late)));
            if answer.is_ok() {
                contact.note();
            }
            answer
        }
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&limit).build())
}

#[cfg(test)]
mod tests {
    use kube::Api;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::cluster::seen::Pod;

    #[test]
    fn of_a_refused_request_only_the_api_server_s_own_words_are_told() {
        let answer = |message: &str, code: u16| {
            let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                            "message": message, "reason": "Conflict", "code": code});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        let words = "Operation cannot be fulfilled on conversionjobs \"a-00000001\": the object has been modified";
        let id = "a-00000001".parse().unwrap();
        let staged = crate::executor::Error::new("stage", &id, Refused(answer(words, 409)));
        assert_eq!(chain(&staged), format!("cannot stage conversion a-00000001: {words}"));
        assert_eq!(told(&answer("", 409)), "the API server answered 409 Conflict");
        assert_eq!(told_by_watch(&watcher::Error::WatchFailed(answer("a\nb", 410))), verdict::clean("a\nb", MAX_WORDS));
        for (code, passing) in [(409, true), (429, true), (503, true), (403, false), (422, false)] {
            assert_eq!(passes(&answer(words, code)), passing, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_to_a_server_that_takes_it_and_never_answers_ends_after_ten_seconds() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Ok(connection) = server.accept().await {
                taken.push(connection);
            }
        });
        let client = client(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let begun = Instant::now();
        let error = Api::<Pod>::default_namespaced(client).get("pod").await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), CALL_LIMIT.as_secs());
        let said = told(&error);
        assert!(said.contains("the API server did not answer within 10 s"), "{said}");
    }
}
