// SPDX-License-Identifier: Apache-2.0
//! What is wrong with an image, and where.

use std::io;

use crate::conversion::{Failure, Reason, Remedy, printable};

/// A refused image or a failed read or write, with the file and the place in it.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Error {
    /// What it means for the conversion.
    pub reason: Reason,
    /// Base name of the file, or of the member within its container (`vm.ova:vm-disk1.vmdk`).
    pub file: String,
    /// Byte offset in that file where the trouble lies.
    pub offset: Option<u64>,
    /// What is wrong there, without the file's name.
    pub message: String,
    /// The system's error, where it was an I/O error.
    #[source]
    pub source: Option<io::Error>,
    /// Free bytes the output volume needs, where the reason is `OutputFull`.
    pub needed_bytes: Option<u64>,
    /// What helps in this case, where that is not what mostly helps.
    pub remedy: Option<Remedy>,
}

impl Error {
    /// The image `file` is refused for `reason`.
    pub fn refuse(reason: Reason, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason,
            file: file.into(),
            offset: None,
            message: message.into(),
            source: None,
            needed_bytes: None,
            remedy: None,
        }
    }

    /// The structure of `file` contradicts itself at `offset`.
    pub fn corrupt(file: impl Into<String>, offset: u64, message: impl Into<String>) -> Self {
        Self::refuse(Reason::Corrupt, file, message).at(offset)
    }

    /// `file` ends before what is needed at byte `offset`.
    pub fn truncated(file: impl Into<String>, offset: u64, message: impl Into<String>) -> Self {
        Self::refuse(Reason::Truncated, file, message).at(offset)
    }

    /// Reading the source failed.
    pub fn reading(file: impl Into<String>, offset: u64, source: io::Error) -> Self {
        Self::io(Reason::SourceIO, file, "cannot read", source).at(offset)
    }

    /// Writing the output failed; a full volume or quota is `OutputFull`.
    pub fn writing(file: impl Into<String>, offset: u64, source: io::Error) -> Self {
        Self::io(Reason::OutputIO, file, "cannot write", source).at(offset)
    }

    fn io(otherwise: Reason, file: impl Into<String>, message: &str, source: io::Error) -> Self {
        let reason = match source.kind() {
            io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded if otherwise == Reason::OutputIO => {
                Reason::OutputFull
            }
            io::ErrorKind::OutOfMemory => Reason::OutOfMemory,
            _ => otherwise,
        };
        let is_too_large = source.kind() == io::ErrorKind::FileTooLarge;
        Self {
            reason,
            file: file.into(),
            offset: None,
            message: message.to_owned(),
            source: Some(source),
            needed_bytes: None,
            remedy: is_too_large.then_some(Remedy::RaiseFileSize),
        }
    }

    /// Names the byte offset in the file.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Says what helps in this case.
    #[must_use]
    pub fn with_remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }

    fn describe(&self) -> String {
        let said = format!("{}: {}", self.file, self.message);
        let said = printable(&said);
        match self.offset {
            Some(offset) => format!("{said} (at byte {offset})"),
            None => said.into_owned(),
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let message = match &error.source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self { needed_bytes: error.needed_bytes, ..Self::new(error.reason, message) }.with_remedy(error.remedy)
    }
}
