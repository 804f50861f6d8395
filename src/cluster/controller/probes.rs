//! Health, readiness and metrics over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::metrics::Metrics;

/// How far the controller is on its way to be ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// What it waits for.
    Waiting(String),
    /// It works, or stands by while another replica leads.
    Ready,
}

#[derive(Clone)]
struct Shared {
    readiness: watch::Receiver<Readiness>,
    metrics: Arc<Metrics>,
}

/// Serves `/healthz` (the process lives), `/readyz` and `/metrics` until `listener` fails.
pub async fn serve(
    listener: TcpListener,
    readiness: watch::Receiver<Readiness>,
    metrics: Arc<Metrics>,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .with_state(Shared { readiness, metrics });
    axum::serve(listener, routes).await
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.readiness.borrow().clone() {
        Readiness::Ready => (StatusCode::OK, "ok".to_owned()),
        Readiness::Waiting(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn exposition(State(shared): State<Shared>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text())
}
