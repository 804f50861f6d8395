// SPDX-License-Identifier: Apache-2.0
//! The near end of an upload or a download; `hyper2kvm::files::transfer` describes the protocol and is the far end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use hyper2kvm::conversion::hex;
use hyper2kvm::files::moves::{self, Method, MoveError};
use hyper2kvm::files::transfer::{Line, MAX_LINE};
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const BUFFER: usize = 256 << 10;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The far end's own message.
    #[error("{0}")]
    Refused(String),
    #[error("the connection ended; run the same command again, it goes on where this one ended")]
    Ended,
    #[error("the far end said {0:?}, which is not understood; are both of one version?")]
    Unexpected(String),
    #[error("{0} became shorter while it was read; try again when nobody writes to it")]
    Shrank(String),
    #[error("{0} exists already; choose another directory, or move it away")]
    Taken(String),
    #[error("cannot give {path} its name")]
    Rename {
        path: String,
        #[source]
        source: MoveError,
    },
}

/// How a transfer ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Whole, in place, and with this digest on both ends.
    Done { sha256: String },
    /// The digests differ, and what was transferred is removed. If `resumed`, the part that was there before may
    /// belong to another file.
    Differs { resumed: bool },
}

/// Sends the file at `path`, which has `size` bytes.
pub(super) async fn upload(
    path: &Path,
    size: u64,
    output: &mut (impl AsyncBufRead + Unpin),
    input: &mut (impl AsyncWrite + Unpin),
    bar: &ProgressBar,
) -> Result<Outcome, TransferError> {
    let shown = path.display().to_string();
    let have = match next(output).await? {
        Line::Have(have) if have <= size => have,
        line => return Err(unexpected(&line)),
    };
    let mut file = File::open(path).map_err(|source| TransferError::Read { path: shown.clone(), source })?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    hash(&mut file, have, &mut hasher, &mut buffer, &shown)?;
    bar.set_position(have);
    bar.reset_eta();
    let mut left = size - have;
    while left > 0 {
        let read = piece(&mut file, left, &mut buffer, &shown)?;
        hasher.update(&buffer[..read]);
        if input.write_all(&buffer[..read]).await.is_err() {
            // The far end is gone; it may have sent the reason.
            return Err(match next(output).await {
                Err(error) => error,
                Ok(line) => unexpected(&line),
            });
        }
        bar.inc(read as u64);
        left -= read as u64;
    }
    input.flush().await.map_err(|_| TransferError::Ended)?;
    bar.set_message("checking");
    let Line::Sha256(theirs) = next(output).await? else { return Err(TransferError::Unexpected("no digest".into())) };
    let ours = hex(hasher.finalize());
    let word = if ours == theirs { "commit\n" } else { "discard\n" };
    input.write_all(word.as_bytes()).await.map_err(|_| TransferError::Ended)?;
    input.flush().await.map_err(|_| TransferError::Ended)?;
    match next(output).await? {
        Line::Done(_) => Ok(Outcome::Done { sha256: ours }),
        Line::Discarded(_) => Ok(Outcome::Differs { resumed: have > 0 }),
        line => Err(unexpected(&line)),
    }
}

/// Waits until the far end has given a folder its name.
pub(super) async fn finished(output: &mut (impl AsyncBufRead + Unpin)) -> Result<(), TransferError> {
    match next(output).await? {
        Line::Done(_) => Ok(()),
        line => Err(unexpected(&line)),
    }
}

/// An unfinished download: its bytes so far, and their digest, which continues with the next ones.
pub(super) struct Unfinished {
    file: File,
    path: String,
    have: u64,
    hasher: Sha256,
}

impl Unfinished {
    /// Opens `path`, resuming what an interrupted download left there.
    pub(super) fn open(path: &Path) -> Result<Self, TransferError> {
        let shown = path.display().to_string();
        let failed = |source| TransferError::Write { path: shown.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let have = file.metadata().map_err(failed)?.len();
        let mut hasher = Sha256::new();
        hash(&mut file, have, &mut hasher, &mut vec![0; BUFFER], &shown)?;
        Ok(Self { file, path: shown, have, hasher })
    }

    /// First byte that is missing.
    pub(super) const fn have(&self) -> u64 {
        self.have
    }

    /// Drops the bytes so far.
    pub(super) fn restart(&mut self) -> Result<(), TransferError> {
        let cut = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cut.map_err(|source| TransferError::Write { path: self.path.clone(), source })?;
        (self.have, self.hasher) = (0, Sha256::new());
        Ok(())
    }

    /// Receives what the far end sends from byte [`have`](Self::have) on; `path` is this file's. The file gets the
    /// name `target` once it is whole, checked and on disk, and replaces nothing.
    pub(super) async fn download(
        mut self,
        path: &Path,
        target: &Path,
        output: &mut (impl AsyncBufRead + Unpin),
        bar: &ProgressBar,
    ) -> Result<Outcome, TransferError> {
        let size = match next(output).await? {
            Line::Size(size) if size >= self.have => size,
            line => return Err(unexpected(&line)),
        };
        bar.set_length(size);
        bar.set_position(self.have);
        bar.reset_eta();
        let mut buffer = vec![0; BUFFER];
        let mut left = size - self.have;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = output.read(&mut buffer[..wanted]).await.unwrap_or(0);
            if read == 0 {
                return Err(TransferError::Ended);
            }
            self.hasher.update(&buffer[..read]);
            let written = self.file.write_all(&buffer[..read]);
            written.map_err(|source| TransferError::Write { path: self.path.clone(), source })?;
            bar.inc(read as u64);
            left -= read as u64;
        }
        bar.set_message("checking");
        let Line::Sha256(theirs) = next(output).await? else {
            return Err(TransferError::Unexpected("no digest".into()));
        };
        let failed = |source| TransferError::Write { path: self.path.clone(), source };
        let ours = hex(self.hasher.finalize());
        if ours != theirs {
            std::fs::remove_file(path).map_err(failed)?;
            return Ok(Outcome::Differs { resumed: self.have > 0 });
        }
        self.file.sync_all().map_err(failed)?;
        match moves::move_file(path, target, Method::NoReplace) {
            Ok(()) => Ok(Outcome::Done { sha256: ours }),
            Err(MoveError::Taken(path)) => Err(TransferError::Taken(path.display().to_string())),
            Err(source) => Err(TransferError::Rename { path: target.display().to_string(), source }),
        }
    }
}

/// The far end's next line; its refusals are errors.
async fn next(output: &mut (impl AsyncBufRead + Unpin)) -> Result<Line, TransferError> {
    let mut line = String::new();
    let read = (&mut *output).take(MAX_LINE).read_line(&mut line).await;
    if read.map_or(true, |read| read == 0) || !line.ends_with('\n') {
        return Err(TransferError::Ended);
    }
    match serde_json::from_str(&line) {
        Ok(Line::Error(message)) => Err(TransferError::Refused(message)),
        Ok(line) => Ok(line),
        Err(_) => Err(TransferError::Unexpected(line.trim().to_owned())),
    }
}

fn unexpected(line: &Line) -> TransferError {
    TransferError::Unexpected(serde_json::to_string(line).unwrap_or_default())
}

fn hash(
    file: &mut File,
    length: u64,
    hasher: &mut Sha256,
    buffer: &mut [u8],
    shown: &str,
) -> Result<(), TransferError> {
    let mut left = length;
    while left > 0 {
        let read = piece(file, left, buffer, shown)?;
        hasher.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(())
}

fn piece(file: &mut File, left: u64, buffer: &mut [u8], shown: &str) -> Result<usize, TransferError> {
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    match file.read(&mut buffer[..wanted]) {
        Ok(0) => Err(TransferError::Shrank(shown.to_owned())),
        Ok(read) => Ok(read),
        Err(source) => Err(TransferError::Read { path: shown.to_owned(), source }),
    }
}
