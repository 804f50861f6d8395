// SPDX-License-Identifier: Apache-2.0
//! A tar in a stream: its members are listed while it is unpacked, and nothing of them is kept but their beginnings.

use super::Names;
use super::archive::{Bytes, Headers};
use crate::disk::detect::HEAD_BYTES;
use crate::disk::packed::{Stream, Unpacking};
use crate::disk::{Error, Region};

/// Bytes unpacked at a time.
const CHUNK: usize = 256 << 10;

/// A member of a tar in a stream.
#[derive(Clone, Debug)]
pub(in crate::disk) struct Streamed {
    /// Its path in the archive.
    pub path: String,
    /// Its first byte in the tar, and its length.
    pub start: u64,
    pub len: u64,
    /// Its first bytes.
    pub head: Vec<u8>,
    /// Whether it has holes, so that these are not its bytes as they are.
    pub is_sparse: bool,
}

impl Streamed {
    /// Where the next header lies.
    pub(in crate::disk) fn end(&self) -> u64 {
        self.start.saturating_add(self.len).saturating_add(511) & !511
    }
}

/// A walk over the members, in their order.
pub(in crate::disk) struct Walk {
    headers: Headers<Source>,
    names: Names,
}

impl Walk {
    /// Begins at the start of `stream`, and looks no further than `most` bytes of the tar.
    pub(in crate::disk) fn new(stream: &Stream, most: u64) -> Result<Self, Error> {
        let packed = stream.region().clone();
        packed.expect(packed.len());
        let unpacking = stream.open()?;
        let source = Source { unpacking, packed, buffer: vec![0; CHUNK], start: 0, filled: 0, is_over: false, most };
        Ok(Self { headers: Headers::new(source), names: Names::default() })
    }

    /// Whether nothing is known of what follows, because it lies too far behind.
    pub(in crate::disk) fn is_cut(&self) -> bool {
        self.headers.bytes.is_cut()
    }

    /// The next member, `None` behind the last.
    ///
    /// # Errors
    /// As the members of a tar in a file, and as unpacking.
    pub(in crate::disk) fn next(&mut self) -> Result<Option<Streamed>, Error> {
        while let Some(entry) = self.headers.next_entry()? {
            let source = &mut self.headers.bytes;
            let Some((folder, name)) = self.names.admit(source.packed.name(), &entry)? else { continue };
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let len = usize::try_from(entry.size).unwrap_or(usize::MAX).min(HEAD_BYTES);
            let mut head = vec![0; len];
            source.read_exact_at(&mut head, entry.data)?;
            let is_sparse = entry.segments.is_some();
            return Ok(Some(Streamed { path, start: entry.data, len: entry.size, head, is_sparse }));
        }
        Ok(None)
    }
}

/// The stream, as far as it was unpacked.
struct Source {
    unpacking: Unpacking,
    packed: Region,
    buffer: Vec<u8>,
    /// Where in the tar the buffer's bytes begin.
    start: u64,
    filled: usize,
    is_over: bool,
    most: u64,
}

impl Source {
    fn is_cut(&self) -> bool {
        !self.is_over && self.start + self.filled as u64 >= self.most
    }

    /// The bytes from `at` that are unpacked, at least one unless the tar ends there, or the look where it is `bounded`.
    fn from(&mut self, at: u64, bounded: bool) -> Result<&[u8], Error> {
        while at >= self.start + self.filled as u64 && !self.is_over && !(bounded && self.is_cut()) {
            self.start += self.filled as u64;
            self.filled = self.unpacking.fill(&mut self.buffer)?;
            self.is_over = self.filled < self.buffer.len();
            self.packed.advance(self.unpacking.advanced());
        }
        let begin = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.filled);
        Ok(&self.buffer[begin..self.filled])
    }
}

impl Bytes for Source {
    fn name(&self) -> &str {
        self.packed.name()
    }

    fn ends_before(&mut self, at: u64) -> Result<bool, Error> {
        Ok(self.from(at, true)?.is_empty())
    }

    fn read_exact_at(&mut self, mut target: &mut [u8], mut at: u64) -> Result<(), Error> {
        while !target.is_empty() {
            // What begins within the look is read to its end.
            let bytes = self.from(at, false)?;
            let len = bytes.len().min(target.len());
            if len == 0 {
                return Err(Error::truncated(self.name(), self.packed.len(), "holds a tar that ends too early"));
            }
            target[..len].copy_from_slice(&bytes[..len]);
            target = &mut target[len..];
            at += len as u64;
        }
        Ok(())
    }
}

/// The bytes behind a member, up to the end.
struct Rest<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl Bytes for Rest<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn ends_before(&mut self, at: u64) -> Result<bool, Error> {
        Ok(at >= self.bytes.len() as u64)
    }

    fn read_exact_at(&mut self, target: &mut [u8], at: u64) -> Result<(), Error> {
        let found = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).and_then(|b| b.get(..target.len()));
        let cut = || Error::truncated(self.name, at, "holds a tar that ends too early");
        target.copy_from_slice(found.ok_or_else(cut)?);
        Ok(())
    }
}

/// The paths in `rest`, which follows the last member that is known of the tar in the file `name`.
///
/// # Errors
/// As the members of a tar in a file.
pub(in crate::disk) fn paths_in_rest(name: &str, rest: &[u8]) -> Result<Vec<String>, Error> {
    let mut headers = Headers::new(Rest { name, bytes: rest });
    let (mut names, mut paths) = (Names::default(), Vec::new());
    while let Some(entry) = headers.next_entry()? {
        paths.extend(names.admit(name, &entry)?.map(|(_, name)| name));
    }
    Ok(paths)
}
