// SPDX-License-Identifier: Apache-2.0
//! Webhooks.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use hyper2kvm::notification::{Event, NotificationConfig, Notifier, Patience, Secret, WebhookConfig, WebhookKind};

use super::recorder::Log;

const IMPATIENT: Patience =
    Patience { timeout: Duration::from_millis(300), pause: Duration::from_millis(10), retries: 2 };

fn config(url: &str, kind: WebhookKind) -> NotificationConfig {
    hyper2kvm::telemetry::install_crypto();
    let url = Secret::new(Url::parse(url).expect("a URL"));
    let mut headers = HeaderMap::new();
    let mut token = HeaderValue::from_static("hunter2");
    token.set_sensitive(true);
    headers.insert("x-token", token);
    NotificationConfig {
        on_success: true,
        webhook: Some(WebhookConfig { kind, url, headers }),
        ..NotificationConfig::default()
    }
}

fn failure() -> Event {
    Event::Failure {
        filename: "web01.vmdk".to_owned(),
        error: "broken".to_owned(),
        retry_count: 0,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn success() -> Event {
    Event::Success {
        filename: "web01.vmdk".to_owned(),
        duration: Duration::from_secs(2),
        output_path: "/out".to_owned(),
        at: Timestamp::UNIX_EPOCH,
    }
}

async fn bodies(server: &MockServer) -> Vec<Value> {
    let requests = server.received_requests().await.expect("recording is on");
    requests.iter().map(|request| request.body_json().expect("JSON")).collect()
}

#[tokio::test]
async fn each_kind_is_posted_in_its_shape_with_the_headers() {
    for (kind, key) in
        [(WebhookKind::Generic, "details"), (WebhookKind::Slack, "attachments"), (WebhookKind::Discord, "embeds")]
    {
        let log = Log::collect();
        let server = MockServer::start().await;
        let taken = Mock::given(method("POST"))
            .and(path("/hook"))
            .and(header("x-token", "hunter2"))
            .and(header("content-type", "application/json"));
        taken.respond_with(ResponseTemplate::new(204)).expect(1).mount(&server).await;

        let notifier = Notifier::with_patience(config(&format!("{}/hook", server.uri()), kind), IMPATIENT);
        notifier.send(&success());
        notifier.finish(Duration::from_secs(10)).await;

        assert!(bodies(&server).await[0].get(key).is_some(), "{key}");
        assert_eq!(log.lines("INFO"), ["Webhook sent: ✅ Conversion Successful"]);
    }
}

#[tokio::test]
async fn what_is_not_wanted_is_not_sent() {
    let server = MockServer::start().await;
    let wanted = NotificationConfig { on_success: false, ..config(&server.uri(), WebhookKind::Generic) };
    let notifier = Notifier::with_patience(wanted, IMPATIENT);
    notifier.send(&success());
    notifier.finish(Duration::from_secs(10)).await;
    assert_eq!(bodies(&server).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again_a_few_times() {
    let log = Log::collect();
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(500)).expect(3).mount(&server).await;
    let notifier = Notifier::with_patience(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    notifier.send(&failure());
    notifier.finish(Duration::from_secs(10)).await;
    assert_eq!(log.lines("ERROR"), ["Failed to send webhook: the server answers 500 Internal Server Error"]);
}

#[tokio::test]
async fn a_failure_that_passes_is_none() {
    let log = Log::collect();
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(503)).up_to_n_times(2).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).expect(1).mount(&server).await;
    let notifier = Notifier::with_patience(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    notifier.send(&failure());
    notifier.finish(Duration::from_secs(10)).await;
    assert_eq!(log.lines("INFO"), ["Webhook sent: ❌ Conversion Failed"]);
    assert_eq!(log.lines("ERROR"), Vec::<String>::new());
}

#[tokio::test]
async fn a_refusal_is_final_and_a_redirect_is_not_followed() {
    for status in [404, 302] {
        let server = MockServer::start().await;
        let elsewhere = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(ResponseTemplate::new(status).insert_header("location", elsewhere.uri()))
            .expect(1)
            .mount(&server)
            .await;
        let notifier = Notifier::with_patience(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
        notifier.send(&failure());
        notifier.finish(Duration::from_secs(10)).await;
        assert_eq!(bodies(&elsewhere).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_nobody() {
    let log = Log::collect();
    let server = MockServer::start().await;
    let hanging = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    Mock::given(method("POST")).respond_with(hanging).mount(&server).await;
    let notifier = Notifier::with_patience(config(&server.uri(), WebhookKind::Generic), IMPATIENT);

    // Sending does not await, so no other task runs in between.
    for _ in 0..1000 {
        notifier.send(&failure());
    }
    assert_eq!(log.lines("WARN").len(), 1000 - 256, "the queue is bounded, and what is dropped is told");

    notifier.finish(Duration::from_secs(2)).await;
    assert_eq!(log.lines("ERROR").first().map(String::as_str), Some("Failed to send webhook: timed out"));
    assert_eq!(log.lines("WARN").last().map(String::as_str), Some("notifications were left unsent at the end"));
}

#[tokio::test]
async fn a_server_that_refuses_is_told_without_its_url() {
    let log = Log::collect();
    // Bound without listening: it refuses connections, and no other process can take the port.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();

    let url = format!("http://user:hunter2@{address}/services/hunter2?token=hunter2");
    let notifier = Notifier::with_patience(config(&url, WebhookKind::Slack), IMPATIENT);
    notifier.send(&failure());
    let debug = format!("{notifier:?}");
    notifier.finish(Duration::from_secs(10)).await;

    assert_eq!(
        log.lines("ERROR"),
        ["Failed to send webhook: error sending request: Connection refused (os error 111)"]
    );
    for shown in [log.text(), debug] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
