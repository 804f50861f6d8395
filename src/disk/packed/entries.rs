// SPDX-License-Identifier: Apache-2.0
//! The entries of a zip, from its central directory.

use std::io::{self, Read, Seek, SeekFrom};

use zip::CompressionMethod;
use zip::read::ZipArchive;
use zip::result::ZipError;

use super::{Codec, Stated, Stream};
use crate::conversion::{Reason, Remedy};
use crate::disk::descriptor::{MAX_MEMBERS, shown};
use crate::disk::{Error, Region};

/// Most bytes that are read to list the entries: the directory of a few hundred with the longest names.
const MAX_READ: u64 = 4 << 20;

/// A file in a zip.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The path as written, unchecked; it opens nothing.
    pub path: String,
    /// Length of the file, in bytes.
    pub size: u64,
    content: Result<Stream, String>,
    region: Region,
}

impl Entry {
    /// Its bytes, packed as they are.
    ///
    /// # Errors
    /// `UnsupportedFormat` where they are encrypted, or compressed in a way that is not read.
    pub(crate) fn stream(&self) -> Result<&Stream, Error> {
        self.content.as_ref().map_err(|why| {
            let message = format!("has the file {} {why}", shown(&self.path));
            Error::refuse(Reason::UnsupportedFormat, self.region.name(), message).with_remedy(Remedy::ZipAgain)
        })
    }

    /// Its bytes in place, where they are stored as they are.
    pub(crate) fn stored(&self) -> Option<&Region> {
        self.content.as_ref().ok().filter(|stream| stream.codec == Codec::Stored).map(|stream| &stream.region)
    }
}

/// The files of the zip in `region`, directories left out. Each part is called `vm.zip:disk.img`.
///
/// # Errors
/// `Truncated` without an end, `Corrupt` for a directory that contradicts itself or has a name twice,
/// `UnsupportedFormat` for links, too many entries and several volumes; as reading does.
pub(crate) fn list(region: &Region) -> Result<Vec<Entry>, Error> {
    let name = region.name();
    let refuse = |e| refuse(region, e);
    let mut archive = ZipArchive::new(Source { region, at: 0, left: MAX_READ }).map_err(refuse)?;
    if archive.has_duplicate_names() {
        return Err(Error::refuse(Reason::Corrupt, name, "has two files of one name"));
    }
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index).map_err(refuse)?;
        if file.is_dir() {
            continue;
        }
        let path = String::from_utf8_lossy(file.name_raw()).into_owned();
        if file.is_symlink() {
            let message = format!("has the symbolic link {}, which is never followed", shown(&path));
            return Err(Error::refuse(Reason::UnsafeReference, name, message));
        }
        if entries.len() == MAX_MEMBERS {
            let message = format!("has more than {MAX_MEMBERS} files");
            return Err(Error::refuse(Reason::UnsupportedFormat, name, message));
        }
        let base = path.rsplit(['/', '\\']).next().unwrap_or_default();
        let start = file.data_start().unwrap_or(u64::MAX);
        let part = region.part(format!("{name}:{base}"), start, file.compressed_size()).ok_or_else(|| {
            let message = format!("ends within its file {}, of {} bytes", shown(&path), file.compressed_size());
            Error::truncated(name, start.min(region.len()), message)
        })?;
        let stated = Some(Stated { size: file.size(), crc32: file.crc32() });
        let content = match file.compression() {
            _ if file.encrypted() => Err("encrypted, and no password is known here".to_owned()),
            CompressionMethod::Stored if file.size() != file.compressed_size() => {
                return Err(Error::refuse(Reason::Corrupt, name, format!("states two sizes of {}", shown(&path))));
            }
            CompressionMethod::Stored => Ok(Codec::Stored),
            CompressionMethod::Deflated => Ok(Codec::Deflate),
            other => Err(format!("compressed by {other}, and only deflate is read")),
        };
        let content = content.map(|codec| Stream { region: part, codec, stated, part: None });
        entries.push(Entry { path, size: file.size(), content, region: region.clone() });
    }
    Ok(entries)
}

fn refuse(region: &Region, error: ZipError) -> Error {
    let corrupt = |message: &str| Error::refuse(Reason::Corrupt, region.name(), message);
    match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::truncated(region.name(), region.len(), "the zip ends too early")
        }
        ZipError::Io(error) => match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(_) => corrupt("is a zip whose directory can't be understood"),
        },
        _ if super::frames::has_zip_end(region) == Some(false) => {
            Error::truncated(region.name(), region.len(), "is a zip without its end")
        }
        ZipError::UnsupportedArchive(what) => {
            Error::refuse(Reason::UnsupportedFormat, region.name(), format!("is a zip that is not read: {what}"))
        }
        _ => corrupt("is a zip whose directory can't be understood"),
    }
}

/// A region as the crate reads it, bounded.
struct Source<'a> {
    region: &'a Region,
    at: u64,
    left: u64,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.region.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = rest.min(buffer.len());
        self.left = self.left.checked_sub(len as u64).ok_or_else(|| {
            let message = format!("has a directory of more than {MAX_READ} bytes");
            io::Error::other(Error::refuse(Reason::UnsupportedFormat, self.region.name(), message))
        })?;
        self.region.read_exact_at(&mut buffer[..len], self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.region.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the start"))?;
        Ok(self.at)
    }
}
