// SPDX-License-Identifier: Apache-2.0
//! The client by which every process here talks to the API server: each of its calls has a time limit.

use std::time::Duration;

use kube::client::ClientBuilder;
use kube::{Client, Config};
use tokio::time::timeout;
use tower::BoxError;
use tower::util::MapFutureLayer;

/// How long the API server may take to begin its answer: the caller waits, and often everything behind it.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may pause once it has begun. A watch is silent while nothing happens, and ends after a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", CALL_LIMIT.as_secs())]
struct Late;

/// A client of the API server that `config` names.
///
/// # Errors
/// Where no client can be made of the configuration.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.read_timeout = Some(SILENCE_LIMIT);
    let limit = MapFutureLayer::new(|answer| async {
        timeout(CALL_LIMIT, answer).await.unwrap_or_else(|_| Err(BoxError::from(Late)))
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
        let said = crate::conversion::chain(&error);
        assert!(said.contains("the API server did not answer within 10 s"), "{said}");
    }
}
