// SPDX-License-Identifier: Apache-2.0
//! The client of the control socket, without a runtime: a call takes about a millisecond.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

use super::command::Command;

/// How long a client waits for its answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest path of a socket address: `sun_path` of unix(7) less its final NUL.
const MAX_PATH: usize = 107;

/// Longest answer that is read, in bytes.
const MAX_REPLY: u64 = 16 << 20;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("Daemon control socket not found: {path}")]
    NotFound { path: PathBuf },
    #[error("cannot connect to the daemon at {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the daemon did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("cannot talk to the daemon")]
    Talk(#[source] io::Error),
    #[error("the daemon's answer is no JSON object")]
    Answer(#[source] serde_json::Error),
}

/// Sends `command` and returns the whole answer, success or error.
pub fn request(path: &Path, command: Command) -> Result<Value, RequestError> {
    let mut stream = connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RequestError::NotFound { path: path.to_owned() },
        io::ErrorKind::WouldBlock => RequestError::Timeout,
        _ => RequestError::Connect { path: path.to_owned(), source },
    })?;
    let answer = exchange(&mut stream, command).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RequestError::Timeout,
        _ => RequestError::Talk(error),
    })?;
    let object: serde_json::Map<String, Value> = serde_json::from_slice(&answer).map_err(RequestError::Answer)?;
    Ok(object.into())
}

fn exchange(stream: &mut UnixStream, command: Command) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(json!({ "command": command.as_str() }).to_string().as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        // A timeout of zero would mean no timeout.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > MAX_REPLY || Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Connects to the socket at `path`, waiting at most [`TIMEOUT`] for a place in its backlog.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddress::of(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The send timeout bounds connect too (unix(7)).
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(TIMEOUT))?;
    rustix::net::connect(&socket, address.as_unix())?;
    Ok(socket.into())
}

/// The address of a socket at a path of any length.
#[derive(Debug)]
pub(super) struct SocketAddress {
    address: SocketAddrUnix,
    /// The directory that a long path's address goes through; it must stay open until the address is used.
    _directory: Option<OwnedFd>,
}

impl SocketAddress {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { address: SocketAddrUnix::new(path)?, _directory: None });
        }
        let name = path.file_name().unwrap_or(OsStr::new(""));
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut short = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        short.extend_from_slice(name.as_bytes());
        let address = SocketAddrUnix::new(OsStr::from_bytes(&short))?;
        Ok(Self { address, _directory: Some(directory) })
    }

    pub(super) fn as_unix(&self) -> &SocketAddrUnix {
        &self.address
    }
}
