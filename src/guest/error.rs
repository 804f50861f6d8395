// SPDX-License-Identifier: Apache-2.0
//! Why a part of a guest could not be read. Never the end of an inspection: it becomes a doubt.

use std::io;

use crate::disk;

/// A failed look into a guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The image itself cannot be read there.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A structure of the guest contradicts itself.
    #[error("{0}")]
    Corrupt(String),
    /// It is made in a way that is not read here.
    #[error("{0}")]
    Unsupported(String),
    /// The inspection's budget is spent.
    #[error("the inspection ended early: {0}")]
    Spent(&'static str),
    /// The file does not exist.
    #[error("does not exist")]
    Missing,
}

pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::Corrupt(message.into())
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// Whether nothing further can be read.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Spent(_))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(|error| Self::Corrupt(format!("cannot be unpacked: {error}")))
    }
}

/// What was found, or nothing where it does not exist.
pub(super) fn existing<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Missing) => Ok(None),
        Err(error) => Err(error),
    }
}
