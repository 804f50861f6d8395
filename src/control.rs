//! The control socket: one request a connection, one JSON object back.
//!
//! A request is a JSON object (`{"command":"status"}`) or a bare word (`status`), and is answered as soon as it is
//! complete: the client that people have sends neither a newline nor an end of stream. Whatever else comes is
//! answered with a JSON error.

pub mod client;
mod reply;
mod request;
mod server;

use std::fmt;
use std::future::Future;
use std::str::FromStr;

use crate::conversion::admission::RunState;

pub use reply::Reply;
pub use server::{BindError, Listener};

/// Where the socket lies below the output directory.
pub const SOCKET: &str = ".daemon/control.sock";

/// Where clients look next: a directory in memory, for outputs on volumes that take no socket.
pub const FALLBACK_DIR: &str = "/run/hyper2kvm";
/// Name of the socket there.
pub const FALLBACK_SOCKET_NAME: &str = "control.sock";

/// Longest request that is read, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// What the socket can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Status,
    Stats,
    Pause,
    Resume,
    Drain,
    Stop,
}

impl Command {
    /// All of them, in the order in which an error lists them.
    pub const ALL: [Self; 6] = [Self::Status, Self::Stats, Self::Pause, Self::Resume, Self::Drain, Self::Stop];

    /// The word on the wire and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Stats => "stats",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }

    /// The run state that this command asks for; none for the two that only ask.
    #[must_use]
    pub const fn run_state(self) -> Option<RunState> {
        match self {
            Self::Status | Self::Stats => None,
            Self::Pause => Some(RunState::Paused),
            Self::Resume => Some(RunState::Running),
            Self::Drain => Some(RunState::Draining),
            Self::Stop => Some(RunState::Stopped),
        }
    }
}

/// A word that is no command; case matters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no command")]
pub struct UnknownCommand(pub String);

impl FromStr for Command {
    type Err = UnknownCommand;

    fn from_str(word: &str) -> Result<Self, UnknownCommand> {
        Self::ALL.into_iter().find(|c| c.as_str() == word).ok_or_else(|| UnknownCommand(word.to_owned()))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who carries commands out: the engine on one host, a patch of the queue's object in the cluster.
pub trait Handler: Send + Sync + 'static {
    /// Carries out `command` and says what is answered. Repeating a command changes nothing more. A `stop` returns
    /// its reply before anything is stopped; the listener sends it even when it is told to shut down meanwhile.
    fn handle(&self, command: Command) -> impl Future<Output = Reply> + Send;
}

#[cfg(test)]
mod tests;
