// SPDX-License-Identifier: Apache-2.0
//! Webhooks.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use hyper2kvm::notification::{Event, NotificationConfig, Secret, WebhookConfig, WebhookKind};
use hyper2kvm::queue::engine::outbox::Patience;
use hyper2kvm::stats::NotificationTotals;

use super::post::{IMPATIENT, Post};
use super::recorder::Log;

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

        let post = Post::start(config(&format!("{}/hook", server.uri()), kind), IMPATIENT);
        post.announce(&success()).await;
        post.finish(Duration::from_secs(10)).await;

        assert!(bodies(&server).await[0].get(key).is_some(), "{key}");
        assert_eq!(log.lines("INFO"), ["Webhook sent: ✅ Conversion Successful"]);
    }
}

#[tokio::test]
async fn what_is_not_wanted_is_not_sent() {
    let server = MockServer::start().await;
    let wanted = NotificationConfig { on_success: false, ..config(&server.uri(), WebhookKind::Generic) };
    let post = Post::start(wanted, IMPATIENT);
    post.announce(&success()).await;
    post.finish(Duration::from_secs(10)).await;
    assert_eq!(bodies(&server).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again_until_the_notification_is_too_old() {
    let log = Log::collect();
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(500)).expect(3..).mount(&server).await;
    let patience = Patience { give_up: Duration::from_millis(500), ..IMPATIENT };
    let post = Post::start(config(&server.uri(), WebhookKind::Generic), patience);
    post.announce(&failure()).await;
    let totals = post.finish(Duration::from_secs(10)).await;
    assert_eq!(totals, NotificationTotals { pending: 0, sent: 0, given_up: 1 });
    let told = |level: &str| {
        log.lines(level)
            .iter()
            .map(|line| line.split(" notification=").next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(told("ERROR"), ["Failed to send webhook: the server answers 500 Internal Server Error"]);
    assert_eq!(told("WARN"), ["Failed to send webhook: the server answers 500 Internal Server Error; trying again"]);
}

#[tokio::test]
async fn what_a_long_outage_kept_back_is_tried_once_more_before_it_is_given_up() {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).up_to_n_times(1).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(503)).expect(1).mount(&server).await;
    let post = Post::start(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    let yesterday = Timestamp::now() - Duration::from_secs(25 * 3600);
    post.announce_as_of(&failure(), yesterday).await;
    post.announce_as_of(&failure(), yesterday).await;
    let totals = post.finish(Duration::from_secs(10)).await;
    assert_eq!(totals, NotificationTotals { pending: 0, sent: 1, given_up: 1 });
}

#[tokio::test]
async fn the_time_that_a_server_asks_for_is_waited_and_the_order_is_kept() {
    let server = MockServer::start().await;
    let busy = ResponseTemplate::new(429).insert_header("retry-after", "1");
    Mock::given(method("POST")).respond_with(busy).up_to_n_times(1).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).expect(3).mount(&server).await;
    let post = Post::start(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    let begun = std::time::Instant::now();
    post.announce(&failure()).await;
    post.announce(&success()).await;
    post.announce(&failure()).await;
    assert_eq!(post.finish(Duration::from_secs(10)).await, NotificationTotals { pending: 0, sent: 3, given_up: 0 });
    assert!(begun.elapsed() >= Duration::from_secs(1), "asked again after {:?}", begun.elapsed());
    let events: Vec<_> = bodies(&server).await.iter().map(|body| body["event"].clone()).collect();
    assert_eq!(events, ["conversion_failure", "conversion_failure", "conversion_success", "conversion_failure"]);
}

#[tokio::test]
async fn a_failure_that_passes_is_none() {
    let log = Log::collect();
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(503)).up_to_n_times(2).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).expect(1).mount(&server).await;
    let post = Post::start(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    post.announce(&failure()).await;
    post.finish(Duration::from_secs(10)).await;
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
        let post = Post::start(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
        post.announce(&failure()).await;
        post.finish(Duration::from_secs(10)).await;
        assert_eq!(bodies(&elsewhere).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_for_now_and_loses_nothing() {
    let log = Log::collect();
    let server = MockServer::start().await;
    let hanging = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    Mock::given(method("POST")).respond_with(hanging).mount(&server).await;
    let post = Post::start(config(&server.uri(), WebhookKind::Generic), IMPATIENT);
    for _ in 0..20 {
        post.announce(&failure()).await;
    }
    let totals = post.finish(Duration::from_secs(1)).await;
    assert_eq!(totals, NotificationTotals { pending: 20, sent: 0, given_up: 0 });
    let first = log.lines("WARN").first().cloned().unwrap_or_default();
    assert!(first.starts_with("Failed to send webhook: timed out; trying again"), "{first}");
}

#[tokio::test]
async fn a_server_that_refuses_is_told_without_its_url() {
    let log = Log::collect();
    // Bound without listening: it refuses connections, and no other process can take the port.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();

    let url = format!("http://user:hunter2@{address}/services/hunter2?token=hunter2");
    let post = Post::start(config(&url, WebhookKind::Slack), IMPATIENT);
    post.announce(&failure()).await;
    let debug = format!("{:?}", post.outbox);
    post.finish(Duration::from_millis(500)).await;

    let said = log.lines("WARN").first().cloned().unwrap_or_default();
    let expected = "Failed to send webhook: error sending request: Connection refused (os error 111); trying again";
    assert!(said.starts_with(expected), "{said}");
    for shown in [log.text(), debug] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
