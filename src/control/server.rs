// SPDX-License-Identifier: Apache-2.0
//! The server of the control socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{self, SocketAddress};
use super::command::Command;
use super::reply::Reply;
use super::request::{Completeness, Request};

/// Connections served side by side; further ones are refused at once.
const MAX_CONNECTIONS: usize = 64;
/// A whole request must be there after this: time enough for a person at `nc -U`.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A bare word without a newline counts as whole after this silence.
const WORD_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the handler may take; stock clients give up after 5 s.
const HANDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long, and up to how many bytes, what a client sends beyond its request is read and dropped: closing a socket
/// with unread bytes resets the connection, and the client would see an error after its answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;
/// How long a shutdown waits for answers under way.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Why the socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot create the control socket {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the control socket {path} is served by another process")]
    InUse { path: PathBuf },
    #[error("{path} is in the way of the control socket and is no socket")]
    InTheWay { path: PathBuf },
}

/// Carries commands out: the engine on one host, a patch of the queue's object in the cluster.
pub trait Handler: Send + Sync + 'static {
    /// Carries out `command` and returns the answer. Repeating a command changes nothing more. A `stop` returns its
    /// reply before anything is stopped; the listener sends it even if it is told to shut down meanwhile.
    fn handle(&self, command: Command) -> impl Future<Output = Reply> + Send;
}

/// A bound control socket of mode 0600. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: SocketFile,
}

/// The socket's file, identified by its inode, so that no other socket is removed.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

impl Listener {
    /// Binds the socket at `path`, in place of one that nobody serves any more. Paths too long for a socket address
    /// (107 bytes) are bound by way of `/proc/self/fd`. Must be called within a tokio runtime.
    ///
    /// Does not protect against a second daemon of the directory: the directory's lock does.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        make_way(path)?;
        let created = |source| BindError::Create { path: path.to_owned(), source };
        let (socket, identity) = listen(path).map_err(created)?;
        let file = SocketFile { path: path.to_owned(), identity };
        let socket = UnixListener::from_std(socket).map_err(created)?;
        Ok(Self { socket, file })
    }

    /// Answers requests until `shutdown`; then accepts no more, removes the socket and waits up to a second for
    /// answers under way.
    pub async fn serve(self, handler: impl Handler, shutdown: CancellationToken) {
        let handler = Arc::new(handler);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = sleep(ACCEPT_PAUSE) => continue,
                    }
                }
            };
            let place = Arc::clone(&places).try_acquire_owned().ok();
            connections.spawn(serve_one(stream, Arc::clone(&handler), shutdown.clone(), place));
        }
        drop(self.socket);
        drop(self.file);
        connections.close();
        if timeout(SHUTDOWN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::debug!("control connections were cut at shutdown");
        }
    }
}

/// Removes a socket that nobody listens on; refuses to touch anything else.
fn make_way(path: &Path) -> Result<(), BindError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Create { path: path.to_owned(), source }),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::InTheWay { path: path.to_owned() });
    }
    match client::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| BindError::Create { path: path.to_owned(), source })
        }
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

fn listen(path: &Path) -> io::Result<(blocking::UnixListener, (u64, u64))> {
    let address = SocketAddress::of(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // The socket's file gets the mode of the socket's own inode (unix(7) mentions only umask, but Linux also masks
    // with this mode), so it is never open to others, not even for a moment.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, address.as_unix())?;
    rustix::net::listen(&socket, 128)?;
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((socket.into(), (metadata.dev(), metadata.ino())))
}

async fn serve_one(
    mut stream: UnixStream,
    handler: Arc<impl Handler>,
    shutdown: CancellationToken,
    place: Option<OwnedSemaphorePermit>,
) {
    let reply = if place.is_some() {
        tokio::select! {
            // Requests that have arrived are answered, even at shutdown.
            biased;
            request = receive(&mut stream) => answer(request, &*handler).await,
            () = shutdown.cancelled() => return,
        }
    } else {
        Reply::Failed(format!("Too many connections: at most {MAX_CONNECTIONS} at a time"))
    };
    let text = reply.to_json().to_string();
    let sent = timeout(WRITE_TIMEOUT, async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    });
    match sent.await {
        Ok(Ok(())) => {}
        // A client that only checks whether somebody listens is gone by now.
        Ok(Err(error)) => tracing::debug!(%error, "a control client left before its answer"),
        Err(_) => tracing::debug!("a control client did not read its answer"),
    }
    let (mut rest, mut nowhere) = (stream.take(LINGER_BYTES), tokio::io::sink());
    tokio::select! {
        _ = timeout(LINGER_TIMEOUT, tokio::io::copy(&mut rest, &mut nowhere)) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn answer(request: Result<Request, Reply>, handler: &impl Handler) -> Reply {
    let command = match request.and_then(|request| request.parse()) {
        Ok(command) => command,
        Err(reply) => return reply,
    };
    timeout(HANDLE_TIMEOUT, handler.handle(command))
        .await
        .unwrap_or_else(|_| Reply::Failed(format!("The daemon is too busy to answer {command}")))
}

/// Reads one request, or returns the answer where none comes.
async fn receive(stream: &mut UnixStream) -> Result<Request, Reply> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut request = Request::default();
    let mut completeness = Completeness::Empty;
    let mut buffer = [0; 4096];
    while completeness != Completeness::Complete {
        let patience =
            if completeness == Completeness::Word { deadline.min(Instant::now() + WORD_TIMEOUT) } else { deadline };
        match timeout_at(patience, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => break,
            Ok(Ok(length)) => completeness = request.push(&buffer[..length]),
            Ok(Err(error)) => return Err(Reply::Failed(format!("Cannot read the request: {error}"))),
            Err(_) if completeness == Completeness::Word => break,
            Err(_) => return Err(Reply::Failed("Timed out waiting for a complete request".to_owned())),
        }
    }
    Ok(request)
}
