// SPDX-License-Identifier: Apache-2.0
//! Traces: each conversion that ended, sent to a collector by OTLP over HTTP.
//!
//! ```text
//!  conversion ├────────────────────────────────────────────────────────────┤
//!  settle     ├──────┤
//!  wait               ├───┤                        ├───┤
//!  attempt                 ├──────────────────────┤     ├───────────┤
//!  its stages                                            inspect · copy · fix · verify · report
//!  publish                                                           ├─────┤
//! ```
//!
//! The names of traces and spans follow from the claim, so what is sent twice is the same span. Traces are sent once and
//! again for a short while; after that they are lost, as those of a process that dies are: nothing waits for them.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use reqwest::Client;
use reqwest::redirect::Policy;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

mod spans;

pub use spans::Ended;

/// Where a collector takes spans, below its endpoint (OTLP/HTTP).
const PATH: &str = "v1/traces";

/// Most conversions whose spans wait to be sent; those beyond are dropped.
const WAITING: usize = 256;

/// Longest time that one request takes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends traces; or nothing, where no endpoint is named.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<mpsc::Sender<Vec<SpanData>>>);

/// Why no traces can be sent to an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("cannot make a client of the collector")]
    Client(#[from] reqwest::Error),
    #[error("no traces can be sent to {endpoint:?}; name it as http://HOST:4318")]
    Endpoint {
        endpoint: String,
        #[source]
        source: ExporterBuildError,
    },
}

/// The task that sends.
#[derive(Debug)]
pub struct Sending(JoinHandle<()>);

impl Traces {
    /// Begins to send to the collector at `endpoint`, such as `http://localhost:4318`, in a task of this runtime.
    /// `resource` says what the spans come from.
    ///
    /// # Errors
    /// Where `endpoint` is no URL.
    pub fn start(endpoint: &str, resource: Vec<KeyValue>) -> Result<(Self, Sending), TracesError> {
        let mut client = Client::builder().timeout(TIMEOUT).redirect(Policy::none());
        if endpoint.starts_with("http:") {
            // A system without certificates of authorities can still post over http.
            client = client.tls_certs_only(std::iter::empty());
        }
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.build()?)
            .with_timeout(TIMEOUT)
            .with_endpoint(format!("{}/{PATH}", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|source| TracesError::Endpoint { endpoint: endpoint.to_owned(), source })?;
        exporter.set_resource(&Resource::builder_empty().with_attributes(resource).build());
        let (sender, waiting) = mpsc::channel(WAITING);
        Ok((Self(Some(sender)), Sending(tokio::spawn(send(exporter, waiting)))))
    }

    /// Sends the trace of a conversion that ended, soon.
    pub fn send(&self, ended: &Ended<'_>) {
        let Some(sender) = &self.0 else { return };
        if sender.try_send(ended.spans()).is_err() {
            tracing::debug!(conversion = %ended.claim.id, "too many traces wait for their collector; this one is dropped");
        }
    }
}

impl Sending {
    /// Waits until what was given to [`Traces::send`] is sent, at most this long. Every [`Traces`] must be dropped
    /// before.
    pub async fn end(self, patience: Duration) {
        let Self(mut task) = self;
        if tokio::time::timeout(patience, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// Sends what comes until nothing can come any more.
async fn send(exporter: SpanExporter, mut waiting: mpsc::Receiver<Vec<SpanData>>) {
    let mut is_failing = false;
    while let Some(mut spans) = waiting.recv().await {
        while let Ok(more) = waiting.try_recv() {
            spans.extend(more);
        }
        let again = ExponentialBuilder::default().with_min_delay(Duration::from_secs(1)).with_max_times(3);
        let sent = (|| exporter.export(spans.clone())).retry(again).await;
        match sent {
            Ok(()) => is_failing = false,
            // Once: a collector that is away would fill the log.
            Err(error) if !std::mem::replace(&mut is_failing, true) => {
                tracing::warn!(%error, spans = spans.len(), "the collector takes no traces; they are lost until it does");
            }
            Err(_) => {}
        }
    }
}
