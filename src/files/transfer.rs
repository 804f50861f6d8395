// SPDX-License-Identifier: Apache-2.0
//! Uploads to the queue, and downloads of disks, over a stream such as `kubectl exec`.
//!
//! Lines of JSON with bytes between them. The end of a stream is not passed on reliably, so every length is sent
//! before its bytes:
//!
//! ```text
//! receive   us {"have":n}   them size − n bytes        us {"sha256":…}   them commit   us {"done":name}
//!                                                                        them discard  us {"discarded":name}
//! send      us {"size":n}   us n − offset bytes        us {"sha256":…}
//! ```
//!
//! The files of a folder are received one by one into the hidden `.{folder}.part`, which is renamed in the end.
//!
//! Both digests are of the whole file. What was received before an interruption stays as `{name}.part`, which no
//! watcher touches, and is not sent again. A line `{"error":…}` may stand in place of any other.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, fstatvfs, statat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::moves::{self, Method, MoveError};
use super::paths::is_plain_name;
use super::space::told_free;
use super::store::{self, StoreError};
use crate::conversion::contract::{CLAIM_FILE, NAME_MAX, PART, UNFINISHED};
use crate::conversion::hex;

/// Longest line that either side reads, in bytes.
pub const MAX_LINE: u64 = 16 << 10;

const BUFFER: usize = 256 << 10;

/// One line of the exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// Number of bytes that are there already.
    Have(u64),
    /// Number of bytes of the whole file.
    Size(u64),
    /// Hex digest of the whole file.
    Sha256(String),
    /// The file has its name now.
    Done(String),
    /// What was received is removed.
    Discarded(String),
    /// The transfer ends, for this reason.
    Error(String),
}

impl Line {
    /// Writes the line and flushes it.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        output.write_all(&text)?;
        output.flush()
    }
}

/// Why an upload or a download failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("{0:?} is no name for a file of a queue: no slash, no leading dot, not ending in {PART} or the like")]
    Name(String),
    #[error("{0:?} is no path below the directory: no part of it may be empty, . or ..")]
    Path(String),
    #[error("the file is empty: there is nothing to convert in it")]
    Empty,
    #[error("{0} exists already in the queue: choose another name")]
    Taken(String),
    #[error("{0} is being uploaded by somebody else")]
    Busy(String),
    #[error("{0} is there, but is no plain file: remove it first")]
    NotRegular(String),
    #[error("{needed} bytes are needed and {free} are free: make room on the queue's volume")]
    Space { needed: u64, free: u64 },
    #[error("the file has {size} bytes, so none can be sent from byte {offset}")]
    Offset { size: u64, offset: u64 },
    #[error("{0} became shorter while it was read")]
    Shrank(String),
    #[error("the stream ended after {have} of {size} bytes; what came is kept as a {PART} file")]
    Ended { have: u64, size: u64 },
    #[error("cannot open {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk to the other end")]
    Stream(#[source] io::Error),
    #[error("cannot give the file its name")]
    Rename(#[source] MoveError),
}

/// An upload that has begun: the unfinished file, locked for us as long as this lives.
#[derive(Debug)]
struct Part<'a> {
    directory: &'a Path,
    folder: OwnedFd,
    name: &'a str,
    unfinished: String,
    file: File,
}

/// Receives the file `name` of `size` bytes into `directory`, continuing where an earlier upload ended.
///
/// The file appears under its name only after the other end has sent `commit`: whole and on disk, replacing nothing.
pub fn receive(
    directory: &Path,
    name: &str,
    size: u64,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<(), TransferError> {
    if size == 0 {
        return Err(TransferError::Empty);
    }
    let mut part = Part::open(directory, name)?;
    let have = part.have(size)?;
    Line::Have(have).write(output).map_err(TransferError::Stream)?;
    let digest = part.fill(have, size, input)?;
    Line::Sha256(digest).write(output).map_err(TransferError::Stream)?;

    let mut word = String::new();
    input.by_ref().take(MAX_LINE).read_line(&mut word).map_err(TransferError::Stream)?;
    let end = match word.trim() {
        "commit" => part.commit().map(|()| Line::Done(name.to_owned()))?,
        "discard" => part.discard().map(|()| Line::Discarded(name.to_owned()))?,
        // The other end left without commit or discard: the next upload may continue.
        _ => return Err(TransferError::Ended { have: size, size }),
    };
    end.write(output).map_err(TransferError::Stream)
}

/// Receives one file of the folder `folder`: `path` is relative to that. The folder is hidden until
/// [`finish_folder`]; a file that an earlier upload brought whole is only compared.
pub fn receive_in_folder(
    directory: &Path,
    folder: &str,
    path: &str,
    size: u64,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<(), TransferError> {
    let hidden = hidden_folder(directory, folder)?;
    let (below, name) = path.rsplit_once('/').unwrap_or(("", path));
    if !path.split('/').all(is_plain_name) || below.contains('/') || below.starts_with('.') {
        return Err(TransferError::Path(path.to_owned()));
    }
    let making = |source: MoveError| TransferError::Rename(source);
    moves::create_dir(&directory.join(&hidden).join(below)).map_err(making)?;
    // Nobody may have put a link there.
    let below = if below.is_empty() { hidden } else { format!("{hidden}/{below}") };
    let place = directory.join(&below);
    store::open_dir_below(directory, &below).map_err(|error| opened(&place, error))?;
    let whole = place.join(name);
    if whole.exists() {
        match moves::move_file(&whole, &place.join(format!("{name}{PART}")), Method::NoReplace) {
            Ok(()) | Err(MoveError::Taken(_)) => {}
            Err(error) => return Err(making(error)),
        }
    }
    receive(&place, name, size, input, output)
}

/// Gives a folder its name whose files have all been received: it appears whole, and replaces nothing.
pub fn finish_folder(directory: &Path, folder: &str, output: &mut impl Write) -> Result<(), TransferError> {
    let hidden = hidden_folder(directory, folder)?;
    store::open_dir_below(directory, &hidden).map_err(|error| opened(&directory.join(&hidden), error))?;
    match moves::move_dir(&directory.join(&hidden), &directory.join(folder), Method::NoReplace) {
        Ok(()) => Line::Done(folder.to_owned()).write(output).map_err(TransferError::Stream),
        Err(MoveError::Taken(_)) => Err(TransferError::Taken(folder.to_owned())),
        Err(error) => Err(TransferError::Rename(error)),
    }
}

/// The name of a folder while it is uploaded.
fn hidden_folder(directory: &Path, folder: &str) -> Result<String, TransferError> {
    let hidden = format!(".{folder}{PART}");
    let is_unfinished = UNFINISHED.iter().any(|end| folder.to_lowercase().ends_with(end));
    let is_name = is_plain_name(folder) && is_plain_name(&hidden) && !folder.contains(char::is_control);
    if !is_name || is_unfinished || folder.starts_with('.') || folder == CLAIM_FILE {
        return Err(TransferError::Name(folder.to_owned()));
    }
    let there = directory.join(folder);
    match moves::is_taken(&there) {
        Ok(false) => Ok(hidden),
        Ok(true) => Err(TransferError::Taken(folder.to_owned())),
        Err(source) => Err(TransferError::Open { path: there, source }),
    }
}

impl<'a> Part<'a> {
    fn open(directory: &'a Path, name: &'a str) -> Result<Self, TransferError> {
        let is_finished = !UNFINISHED.iter().any(|end| name.to_lowercase().ends_with(end));
        let fits = is_plain_name(name) && name.len() + PART.len() <= NAME_MAX;
        if !(fits && is_finished) || name.starts_with('.') || name.contains(char::is_control) {
            return Err(TransferError::Name(name.to_owned()));
        }
        let folder = store::open_dir(directory).map_err(|error| opened(directory, error))?;
        let part = format!("{name}{PART}");
        let path = directory.join(&part);
        let cannot = |source: io::Error| TransferError::Open { path: path.clone(), source };
        if is_taken(&folder, name).map_err(|errno| cannot(errno.into()))? {
            return Err(TransferError::Taken(name.to_owned()));
        }
        let file = match store::create_beneath(&folder, &part) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(TransferError::NotRegular(part)),
            Err(errno) => return Err(cannot(errno.into())),
        };
        let found = file.metadata().map_err(cannot)?;
        // With a second name, it could be a file that is still needed.
        if !found.is_file() || found.nlink() > 1 {
            return Err(TransferError::NotRegular(part));
        }
        // Where the volume has no locks, every upload is allowed.
        if matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
            return Err(TransferError::Busy(name.to_owned()));
        }
        let this = Self { directory, folder, name, unfinished: part, file };
        // The earlier holder of the lock may have finished between our open and our lock.
        if this.is_still_there()? { Ok(this) } else { Err(TransferError::Busy(name.to_owned())) }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(&self.unfinished)
    }

    fn is_still_there(&self) -> Result<bool, TransferError> {
        let ours = self.file.metadata().map_err(|source| TransferError::Read { path: self.path(), source })?;
        let found = statat(&self.folder, self.unfinished.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        Ok(found.is_ok_and(|found| (found.st_dev, found.st_ino) == (ours.dev(), ours.ino())))
    }

    /// Number of bytes that are there already. More than the whole file belong to another one, and are cut off.
    fn have(&self, size: u64) -> Result<u64, TransferError> {
        let length = self.file.metadata().map_err(|source| TransferError::Read { path: self.path(), source })?.len();
        let have = if length > size { 0 } else { length };
        if have != length {
            self.file.set_len(0).map_err(|source| TransferError::Write { path: self.path(), source })?;
        }
        let needed = size - have;
        match fstatvfs(&self.folder).ok().and_then(|told| told_free(&told)) {
            Some(free) if needed > free => Err(TransferError::Space { needed, free }),
            _ => Ok(have),
        }
    }

    /// Hashes what is there, receives the rest, and returns the digest of the whole.
    fn fill(&mut self, have: u64, size: u64, input: &mut impl Read) -> Result<String, TransferError> {
        let path = self.path();
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        self.file.seek(SeekFrom::Start(0)).map_err(|source| TransferError::Read { path: path.clone(), source })?;
        hash(&mut self.file, have, &mut hasher, &mut buffer, &path)?;
        let mut done = have;
        while done < size {
            let length = wanted(size - done, &buffer);
            let read = read_some(input, &mut buffer[..length]).map_err(TransferError::Stream)?;
            if read == 0 {
                return Err(TransferError::Ended { have: done, size });
            }
            hasher.update(&buffer[..read]);
            let written = self.file.write_all(&buffer[..read]);
            written.map_err(|source| TransferError::Write { path: path.clone(), source })?;
            done += read as u64;
        }
        Ok(hex(hasher.finalize()))
    }

    fn commit(&self) -> Result<(), TransferError> {
        self.file.sync_all().map_err(|source| TransferError::Write { path: self.path(), source })?;
        if !self.is_still_there()? {
            return Err(TransferError::Busy(self.name.to_owned()));
        }
        match moves::move_file(&self.path(), &self.directory.join(self.name), Method::NoReplace) {
            Ok(()) => Ok(()),
            Err(MoveError::Taken(_)) => Err(TransferError::Taken(self.name.to_owned())),
            Err(error) => Err(TransferError::Rename(error)),
        }
    }

    fn discard(&self) -> Result<(), TransferError> {
        let removed = unlinkat(&self.folder, self.unfinished.as_str(), AtFlags::empty());
        removed.map_err(|errno| TransferError::Write { path: self.path(), source: errno.into() })
    }
}

/// Sends the file at `path` below `directory` from byte `offset` on.
pub fn send(directory: &Path, path: &str, offset: u64, output: &mut impl Write) -> Result<(), TransferError> {
    let mut file = open_below(directory, path)?;
    let whole = directory.join(path);
    let size = file.metadata().map_err(|source| TransferError::Read { path: whole.clone(), source })?.len();
    if offset > size {
        return Err(TransferError::Offset { size, offset });
    }
    Line::Size(size).write(output).map_err(TransferError::Stream)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    hash(&mut file, offset, &mut hasher, &mut buffer, &whole)?;
    let mut left = size - offset;
    while left > 0 {
        let length = wanted(left, &buffer);
        let read = read_some(&mut file, &mut buffer[..length])
            .map_err(|source| TransferError::Read { path: whole.clone(), source })?;
        if read == 0 {
            return Err(TransferError::Shrank(path.to_owned()));
        }
        hasher.update(&buffer[..read]);
        output.write_all(&buffer[..read]).map_err(TransferError::Stream)?;
        left -= read as u64;
    }
    Line::Sha256(hex(hasher.finalize())).write(output).map_err(TransferError::Stream)
}

/// Opens a regular file below `directory`, one component after the other, without following symlinks.
fn open_below(directory: &Path, path: &str) -> Result<File, TransferError> {
    if !path.split('/').all(is_plain_name) {
        return Err(TransferError::Path(path.to_owned()));
    }
    let mut folder = store::open_dir(directory).map_err(|error| opened(directory, error))?;
    let mut rest = path;
    while let Some((component, below)) = rest.split_once('/') {
        let next = store::open_beneath(&folder, OsStr::new(component), OFlags::RDONLY | OFlags::DIRECTORY);
        folder = next.map_err(|errno| TransferError::Open { path: directory.join(path), source: errno.into() })?;
        rest = below;
    }
    match store::open_untrusted(&folder, directory, rest) {
        Ok(file) => Ok(file),
        Err(StoreError::NotRegular(_)) => Err(TransferError::NotRegular(path.to_owned())),
        Err(error) => Err(opened(&directory.join(path), error)),
    }
}

fn opened(path: &Path, error: StoreError) -> TransferError {
    let source = match error {
        StoreError::Read { source, .. } | StoreError::Write { source, .. } => source,
        other => io::Error::other(other),
    };
    TransferError::Open { path: path.to_owned(), source }
}

fn is_taken(folder: impl AsFd, name: &str) -> Result<bool, Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Hashes the next `length` bytes of `file`.
fn hash(
    file: &mut File,
    length: u64,
    hasher: &mut Sha256,
    buffer: &mut [u8],
    path: &Path,
) -> Result<(), TransferError> {
    let mut left = length;
    while left > 0 {
        let wanted = wanted(left, buffer);
        let read = read_some(file, &mut buffer[..wanted])
            .map_err(|source| TransferError::Read { path: path.to_owned(), source })?;
        if read == 0 {
            return Err(TransferError::Shrank(path.display().to_string()));
        }
        hasher.update(&buffer[..read]);
        left -= read as u64;
    }
    Ok(())
}

fn wanted(left: u64, buffer: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len())
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
