// SPDX-License-Identifier: Apache-2.0
//! Traces of conversions, received by a collector of the test.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::runtime::Runtime;
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::daemon::{Site, disk};

/// Takes traces; the first `refused` requests get 503.
fn collector(runtime: &Runtime, refused: u64) -> MockServer {
    runtime.block_on(async {
        let server = MockServer::start().await;
        let to_traces = || Mock::given(method("POST")).and(path("/v1/traces"));
        if refused > 0 {
            to_traces().respond_with(ResponseTemplate::new(503)).up_to_n_times(refused).mount(&server).await;
        }
        to_traces().respond_with(ResponseTemplate::new(200)).mount(&server).await;
        server
    })
}

/// The spans of every request, the refused ones too.
fn spans(runtime: &Runtime, server: &MockServer) -> Vec<Span> {
    let requests = runtime.block_on(server.received_requests()).unwrap();
    let sent = requests.iter().map(|request| ExportTraceServiceRequest::decode(&*request.body).unwrap());
    let resources = sent.flat_map(|sent| sent.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

#[test]
fn a_collector_gets_the_trace_of_each_conversion() {
    let runtime = Runtime::new().unwrap();
    let server = collector(&runtime, 1);
    let site = Site::new("");
    let daemon = site.start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &server.uri())]);
    site.drop_file("web.raw", &disk(1));
    site.drop_file("broken.vmdk", b"KDMV and nothing else");
    daemon.until("both ended", || site.published() == ["web"] && !daemon.lines("Failed: broken.vmdk").is_empty());
    daemon.until("both were sent", || {
        spans(&runtime, &server).iter().filter(|span| span.name == "conversion").count() >= 3
    });
    let spans = spans(&runtime, &server);
    let success = spans.iter().find(|span| span.name == "publish").expect("one was published");
    let of_success: Vec<_> = spans.iter().filter(|span| span.trace_id == success.trace_id).collect();
    let names: std::collections::BTreeSet<_> = of_success.iter().map(|span| span.name.as_str()).collect();
    for name in ["conversion", "settle", "wait", "attempt", "inspect", "copy", "verify", "publish"] {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    let root = of_success.iter().find(|span| span.name == "conversion").unwrap();
    for span in &of_success {
        assert!(root.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{span:?}");
    }
    let failed = spans.iter().find(|span| span.name == "conversion" && span.trace_id != success.trace_id).unwrap();
    assert!(failed.status.as_ref().is_some_and(|status| status.code == 2), "{failed:?}");
}

#[test]
fn a_collector_that_is_away_holds_nothing_up_and_is_told_of_once() {
    let site = Site::new("");
    // A port of loopback that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let daemon = site.start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}"))]);
    site.drop_file("a.raw", &disk(1));
    site.drop_file("b.raw", &disk(2));
    daemon.until("both are published", || site.published().len() == 2);
    daemon.until("it says so", || !daemon.lines("takes no traces").is_empty());
    assert_eq!(daemon.lines("takes no traces").len(), 1, "{}", daemon.log());
}

#[test]
fn an_endpoint_that_is_no_url_is_refused_at_the_start() {
    let site = Site::new("");
    let mut daemon = site.spawn_with(&["--traces", "not a host:4318"], &[]);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(2));
    assert!(daemon.log().contains("http://HOST:4318"), "{}", daemon.log());
}
