// SPDX-License-Identifier: Apache-2.0
//! The commands of the socket.

use std::fmt;
use std::str::FromStr;

use strum::VariantArray;

use crate::conversion::admission::RunState;

/// A command of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, VariantArray)]
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
    pub const ALL: &'static [Self] = Self::VARIANTS;

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

    /// The run state that this command sets; `None` for the two that only query.
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

/// An unknown command; case matters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no command")]
pub struct UnknownCommand(pub String);

impl FromStr for Command {
    type Err = UnknownCommand;

    fn from_str(word: &str) -> Result<Self, UnknownCommand> {
        Self::ALL.iter().copied().find(|c| c.as_str() == word).ok_or_else(|| UnknownCommand(word.to_owned()))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
