// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoint: `/healthz`, `/readyz` and `/metrics`, and a daemon's page at `/`.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::connections::Limited;
use super::{metrics, page};
use crate::stats::Snapshot;

/// How long a shutdown waits for answers under way.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How many browsers may have the page open.
const MAX_READERS: usize = 32;

/// How often an open page is rendered anew.
const RENDER_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: u32 = 1024;

/// The error says why not.
pub type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The functions that the endpoint calls for its answers. None may block.
pub struct Probes {
    /// Whether the process works; if not, it should be restarted.
    pub healthy: Probe,
    /// Whether it has started and accepts work.
    pub ready: Probe,
    /// The metrics, as `metrics::exposition` writes them.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// What the page shows; `None` where there is no page.
    pub shown: Option<Board>,
}

/// The part of the page that changes, as it is now. It may not block.
pub type Board = Arc<dyn Fn(Timestamp) -> String + Send + Sync>;

impl Probes {
    /// A daemon's: healthy as long as its engine holds the snapshot's sender, ready when `ready` is true. `shown` gives what
    /// the page shows.
    #[must_use]
    pub fn of_daemon(
        snapshots: watch::Receiver<Snapshot>,
        ready: watch::Receiver<bool>,
        shown: impl Fn() -> Snapshot + Send + Sync + 'static,
    ) -> Self {
        let alive = snapshots.clone();
        let shown: Option<Board> = Some(Arc::new(move |now| page::board(&shown(), now)));
        Self {
            healthy: Box::new(move || match alive.has_changed() {
                Ok(_) => Ok(()),
                Err(_) => Err("the engine has ended".to_owned()),
            }),
            ready: Box::new(move || if *ready.borrow() { Ok(()) } else { Err("starting".to_owned()) }),
            metrics: Box::new(move || metrics::render(&snapshots.borrow(), Timestamp::now())),
            shown,
        }
    }
}

/// Listens on an address. That of all addresses of IPv6 is that of all addresses: IPv4's too, and IPv4's alone where the
/// machine has no IPv6.
///
/// # Errors
/// The system's, such as that the port is in use.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return TcpListener::bind(address).await;
    }
    match bind_both(address) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

fn bind_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    // Whatever the machine's default is.
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers requests on `listener` until `shutdown`, and up to a second longer for answers under way.
pub async fn serve(listener: TcpListener, probes: Probes, shutdown: CancellationToken) {
    let page = probes.shown.clone().map(|board| page_of(board, shutdown.clone()));
    let router = Router::new()
        .route("/healthz", get(|State(probes): State<Arc<Probes>>| async move { verdict(&(probes.healthy)()) }))
        .route("/readyz", get(|State(probes): State<Arc<Probes>>| async move { verdict(&(probes.ready)()) }))
        .route(
            "/metrics",
            get(|State(probes): State<Arc<Probes>>| async move {
                ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], (probes.metrics)())
            }),
        )
        .with_state(Arc::new(probes))
        .merge(page.unwrap_or_default());
    let served = axum::serve(Limited::new(listener), router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let cut = async {
        shutdown.cancelled().await;
        tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
    };
    tokio::select! {
        ended = served.into_future() => if let Err(error) = ended {
            tracing::error!(%error, "the HTTP endpoint has ended");
        },
        () = cut => {}
    }
}

/// The page, its two files, and its newer renderings as server-sent events. All of it is read only.
fn page_of(board: Board, shutdown: CancellationToken) -> Router {
    let asset =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    let shown = Arc::clone(&board);
    let whole = get(move || async move {
        let html = page::page(&shown(Timestamp::now()));
        ([(header::CONTENT_SECURITY_POLICY, page::POLICY), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Html(html))
    });
    let readers = Arc::new(Semaphore::new(MAX_READERS));
    let events = get(move || async move {
        let reader = Arc::clone(&readers).try_acquire_owned().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _reader = reader;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = render_on(board, sender) => {}
            }
        });
        Ok::<_, StatusCode>(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()))
    });
    Router::new()
        .route("/", whole)
        .route("/page.css", asset("text/css; charset=utf-8", page::STYLE))
        .route("/page.js", asset("text/javascript; charset=utf-8", page::SCRIPT))
        .route("/events", events)
}

/// Sends each rendering that differs from the one before, until nobody reads them.
async fn render_on(board: Board, sender: mpsc::Sender<Result<Event, Infallible>>) {
    let mut sent = String::new();
    while !sender.is_closed() {
        let rendered = board(Timestamp::now());
        if rendered != sent {
            if sender.send(Ok(Event::default().data(&rendered))).await.is_err() {
                return;
            }
            sent = rendered;
        }
        tokio::time::sleep(RENDER_INTERVAL).await;
    }
}

fn verdict(result: &Result<(), String>) -> impl IntoResponse + use<> {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    fn probes(snapshots: watch::Receiver<Snapshot>, ready: watch::Receiver<bool>) -> Probes {
        let shown = snapshots.clone();
        Probes::of_daemon(snapshots, ready, move || shown.borrow().clone())
    }

    #[tokio::test]
    async fn the_page_is_whole_without_a_script_and_goes_on_by_events() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (snapshots, receiver) = watch::channel(Snapshot::new(Timestamp::UNIX_EPOCH));
        let (_ready, is_ready) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, probes(receiver, is_ready), shutdown.clone()));

        let (status, head, body) = get(address, "/").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(body.contains("What runs"), "{body}");
        for (path, kind) in [("/page.css", "text/css"), ("/page.js", "text/javascript")] {
            let (status, head, _) = get(address, path).await;
            assert!(status == 200 && head.contains(kind), "{head}");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.contains("data: <p class=\"soft\">Converted 0") {
            let read = stream.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        snapshots.send_modify(|snapshot| snapshot.totals.all.succeeded = 41);
        while !seen.contains("Converted 41") {
            let read = stream.read(&mut buffer).await.unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        // A page that is open must not delay the shutdown.
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn all_addresses_of_ipv6_are_all_addresses() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect(("::1", port)).await.unwrap();
        }
        let taken = bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn those_who_say_nothing_keep_nobody_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_snapshots, receiver) = watch::channel(Snapshot::new(Timestamp::UNIX_EPOCH));
        let (_ready, is_ready) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, probes(receiver, is_ready), shutdown.clone()));
        let mut silent = Vec::new();
        for _ in 0..300 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
            silent.push(stream);
        }
        let begun = std::time::Instant::now();
        assert_eq!(get(address, "/healthz").await.0, 200);
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        drop(silent);
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn probes_and_metrics_follow_the_daemon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (snapshots, receiver) = watch::channel(Snapshot::new(Timestamp::UNIX_EPOCH));
        let (ready, is_ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, probes(receiver, is_ready), shutdown.clone()));

        assert_eq!(get(address, "/healthz").await.0, 200);
        let (status, _, body) = get(address, "/readyz").await;
        assert_eq!((status, body.as_str()), (503, "starting\n"));
        ready.send_replace(true);
        assert_eq!(get(address, "/readyz").await.0, 200);

        snapshots.send_modify(|snapshot| snapshot.queue_depth = 7);
        let (status, head, body) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(body.contains("\nhyper2kvm_queue_depth 7\n"), "{body}");
        assert_eq!(get(address, "/nothing").await.0, 404);

        drop(snapshots);
        let (status, _, body) = get(address, "/healthz").await;
        assert_eq!((status, body.as_str()), (503, "the engine has ended\n"));

        // A client that never completes its request must not delay the shutdown.
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /metrics HT").await.unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }
}
