// SPDX-License-Identifier: Apache-2.0
//! What the controller waits for at its start, and when it reconciles an object again; the API server is simulated.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Request, Response};
use kube::client::Body;
use kube::runtime::reflector::store;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::cluster::controller::context::RESYNC_INTERVAL;
use crate::cluster::controller::objects::Image;

type ApiServer = mock::Handle<Request<Body>, Response<Body>>;

fn played() -> (Client, ApiServer) {
    let (service, api_server) = mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "n"), api_server)
}

fn options() -> Options {
    Options {
        images: Images { own: Image { name: "i".to_owned(), pull_policy: "Never".to_owned() }, fixer: None },
        defaults: QueueDefaults::default(),
        listen: "127.0.0.1:0".parse().unwrap(),
        page: false,
        namespaces: Vec::new(),
        lease_namespace: "n".to_owned(),
        lease: "l".to_owned(),
        identity: "a".to_owned(),
    }
}

async fn answer(api_server: &mut ApiServer, code: u16, body: Value) {
    let (_, send) = api_server.next_request().await.unwrap();
    let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
    send.send_response(answer.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_is_missing_is_said_and_it_is_ready_once_both_are_served() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let (client, mut api_server) = played();
    let (ready, readiness) = watch::channel(Readiness::Waiting("starting".to_owned()));
    // No API server listens there, so no lease is granted.
    let (elsewhere, options) = (Config::new("http://127.0.0.1:9".parse().unwrap()), options());
    let told = async {
        let missing = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""});
        answer(&mut api_server, 404, missing).await;
        // It asks again only after it reported what is missing.
        let none = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []});
        answer(&mut api_server, 200, none.clone()).await;
        let why = "the CustomResourceDefinition hyperconversions.hyper2kvm.io is missing: \
                   apply the files in crds/, or install the chart";
        assert_eq!(*readiness.borrow(), Readiness::Waiting(why.to_owned()));
        answer(&mut api_server, 200, none).await;
        let mut readiness = readiness.clone();
        readiness.wait_for(|readiness| *readiness == Readiness::Ready).await.unwrap();
    };
    tokio::select! {
        _ = lead(&client, &elsewhere, &options, &ready) => panic!("it leads"),
        () = told => {}
    }
}

fn context(client: Client, metrics: Arc<Metrics>) -> Arc<Context> {
    let reporter = Reporter { controller: "c".to_owned(), instance: None };
    Arc::new(Context {
        client: client.clone(),
        images: options().images,
        defaults: QueueDefaults::default(),
        kueue: watch::channel(false).1,
        kubevirt: watch::channel(false).1,
        caches: Caches { queues: store().0, conversions: store().0, jobs: store().0, pods: store().0 },
        admission: Admission::start(mpsc::unbounded_channel().0, |_, _| {}),
        recorder: Recorder::new(client, reporter),
        backoff: Backoff::default(),
        writes: Writes::default(),
        modes: Recent::default(),
        troubles: Shared::default(),
        proved: Proved::default(),
        warm: watch::channel(HashSet::from([None])).1,
        metrics,
    })
}

/// Answers the next request with its own object, and returns the request's verb, resource and body.
async fn echo(api_server: &mut ApiServer) -> (String, Value) {
    let (request, send) = api_server.next_request().await.unwrap();
    let asked = format!("{} {}", request.method(), request.uri().path());
    let body = request.into_body().collect_bytes().await.unwrap();
    send.send_response(Response::new(Body::from(body.to_vec())));
    (asked, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_that_hangs_is_ended_told_and_made_again_and_one_that_succeeds_after_minutes() {
    let object: ConversionJob = serde_json::from_value(json!({
        "metadata": {"name": "a-00000001", "namespace": "n"},
        "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.raw"}},
    }))
    .unwrap();
    let (objects, mut writer) = store();
    for event in [Event::Init, Event::InitDone, Event::Apply(object.clone())] {
        writer.apply_watcher_event(&event);
    }
    let metrics = Arc::new(Metrics::default());
    let (client, mut api_server) = played();
    let context = context(client, Arc::clone(&metrics));
    let (wake, wakes) = mpsc::unbounded_channel();
    wake.send(ObjectRef::from_obj(&object)).unwrap();
    let (made, mut calls) = mpsc::unbounded_channel();
    let count = Arc::new(AtomicUsize::new(0));
    let reconcile = move |_: Arc<ConversionJob>, _: Arc<Context>| {
        made.send(tokio::time::Instant::now()).unwrap();
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { std::future::pending().await } else { Ok(Action::requeue(RESYNC_INTERVAL)) } }
    };
    let three = async {
        let mut times = vec![calls.recv().await.unwrap()];
        let told = [echo(&mut api_server).await, echo(&mut api_server).await];
        while times.len() < 3 {
            times.push(calls.recv().await.unwrap());
        }
        (times, told)
    };
    let (times, [status, event]) = tokio::select! {
        () = reconciling(wakes, objects, context, reconcile, conversions::refuse) => panic!("it ends"),
        told = tokio::time::timeout(Duration::from_secs(3600), three) => told.expect("it is told and made again"),
    };
    let (ended, net) = (times[1] - times[0], times[2] - times[1]);
    assert!((34..=35).contains(&ended.as_secs()), "{ended:?}");
    assert_eq!(net.as_secs(), RESYNC_INTERVAL.as_secs());
    assert!(metrics.text().lines().any(|line| line.contains("TimedOut") && line.ends_with(" 1")), "{}", metrics.text());

    let message = "the reconcile took longer than 30 s and is made again by itself; if it stays so, look at the API \
                   server's load";
    assert_eq!(status.0, "PATCH /apis/hyper2kvm.io/v1alpha1/namespaces/n/conversionjobs/a-00000001/status");
    let admitted = &status.1["status"]["conditions"][0];
    let said = [&admitted["type"], &admitted["status"], &admitted["reason"], &admitted["message"]];
    assert_eq!(said, [&json!("Admitted"), &json!("False"), &json!("TimedOut"), &json!(message)]);
    assert_eq!(event.0, "POST /apis/events.k8s.io/v1/namespaces/n/events");
    assert_eq!([&event.1["reason"], &event.1["note"]], [&json!("TimedOut"), &json!(message)]);
}
