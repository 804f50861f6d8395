// SPDX-License-Identifier: Apache-2.0
//! Which file of a package a name means.
//!
//! An OVF names its disks relative to itself, a manifest names files in many spellings, and people pack folders. A name
//! is taken for a file where that is unambiguous; of two disks none is guessed.

use percent_encoding::percent_decode_str;

use crate::conversion::file_name::{folded, stem};
use crate::conversion::{Reason, Remedy};
use crate::disk::descriptor::ovf::{OvfFile, chunk_name};
use crate::disk::descriptor::shown;
use crate::disk::{Error, Region};

/// A file of the package.
#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    /// Where it lies, relative to the root of the archive; empty beside an OVF that is a file.
    folder: &'a str,
    /// Its base name.
    pub name: &'a str,
    folded: String,
    pub region: &'a Region,
}

impl<'a> Member<'a> {
    pub(super) fn new(folder: &'a str, name: &'a str, region: &'a Region) -> Self {
        Self { folder, name, folded: folded(name), region }
    }
}

/// The file behind a disk.
pub(super) struct Found<'a> {
    pub region: Region,
    /// What it is called, where that differs in case or composition from how the OVF calls it.
    pub other_name: Option<&'a str>,
}

/// The files of a package.
pub(super) struct Members<'a> {
    pub all: Vec<Member<'a>>,
    /// The folder of the OVF.
    pub home: &'a str,
}

/// Several files that a name may mean.
struct Ambiguous;

impl<'a> Members<'a> {
    /// The file behind a disk: whole, or its chunks joined in place.
    ///
    /// # Errors
    /// `MissingMember` where it is not there, or not all of it; `Corrupt` where several files are called so, or where
    /// the chunks are not as large as `file` says.
    pub(super) fn disk(&self, envelope: &str, file: &OvfFile) -> Result<Found<'a>, Error> {
        let names = || std::iter::once(&file.href).chain(&file.written);
        let refuse = |reason, what: String| Error::refuse(reason, envelope, what);
        let ambiguous = |_| {
            let href = shown(&file.href);
            let message = format!("names the disk {href}, and several files are called so");
            refuse(Reason::Corrupt, message).with_remedy(Remedy::LeaveOne)
        };
        let mut whole = None;
        for name in names() {
            whole = whole.or(self.one(name).map_err(ambiguous)?);
        }
        let (mut prefix, mut chunks) = ("", Vec::new());
        for name in names() {
            if chunks.is_empty() {
                (prefix, chunks) = (name, self.chunks(name).map_err(ambiguous)?);
            }
        }
        match whole {
            Some(whole) if chunks.is_empty() || file.chunk.is_none() => {
                let other_name = names().all(|name| name != whole.name).then_some(whole.name);
                return Ok(Found { region: whole.region.clone(), other_name });
            }
            None if chunks.is_empty() => {
                let message = format!("names the disk {}, which is not there", shown(&file.href));
                return Err(refuse(Reason::MissingMember, message));
            }
            _ => {}
        }
        check_chunks(envelope, file, prefix, &chunks)?;
        let too_large = || refuse(Reason::TooLarge, format!("its chunks of {} are too large", shown(prefix)));
        Ok(Found { region: join(&chunks).ok_or_else(too_large)?, other_name: None })
    }

    /// The member that a manifest's line is about.
    pub(super) fn digested(&self, name: &str) -> Option<Region> {
        let path = name.trim().replace('\\', "/");
        let decoded = percent_decode_str(&path).decode_utf8().ok().filter(|decoded| *decoded != path);
        let paths = || [Some(path.as_str()), decoded.as_deref()].into_iter().flatten();
        let whole = paths().find_map(|path| self.at_path(path)).map(|member| member.region.clone());
        whole.or_else(|| paths().find_map(|path| join(&self.chunks(path.rsplit('/').next().unwrap_or_default()).ok()?)))
    }

    /// The files by their base names, for descriptors among them. Of several files of a name, the one beside the OVF.
    pub(super) fn by_name(&self) -> Vec<(&'a str, &'a Region)> {
        let (beside, elsewhere): (Vec<_>, Vec<_>) = self.all.iter().partition(|member| member.folder == self.home);
        beside.into_iter().chain(elsewhere).map(|member| (member.name, member.region)).collect()
    }

    /// The file at this path, else the only one with its last part.
    fn at_path(&self, path: &str) -> Option<&Member<'a>> {
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let (name, folders) = parts.split_last()?;
        let folder = folders.join("/");
        let exact = self.all.iter().find(|m| !folder.is_empty() && m.folder == folder && m.name == *name);
        exact.or_else(|| self.one(name).ok().flatten())
    }

    /// The only file with this base name; of several, the one beside the OVF. A name that differs in case or composition
    /// counts where no other does.
    fn one(&self, name: &str) -> Result<Option<&Member<'a>>, Ambiguous> {
        let exact = |member: &Member| member.name == name;
        let name_folded = folded(name);
        let alike = |member: &Member| member.folded == name_folded;
        for is_meant in [&exact as &dyn Fn(&Member) -> bool, &alike] {
            for is_near in [true, false] {
                let found: Vec<_> =
                    self.all.iter().filter(|m| (m.folder == self.home) == is_near && is_meant(m)).collect();
                match found.as_slice() {
                    [] => {}
                    [only] => return Ok(Some(*only)),
                    _ => return Err(Ambiguous),
                }
            }
        }
        Ok(None)
    }

    /// The chunks of a file, from the first to the last before a gap.
    fn chunks(&self, name: &str) -> Result<Vec<Region>, Ambiguous> {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.one(&chunk_name(name, chunks.len() as u64))? {
            chunks.push(chunk.region.clone());
        }
        Ok(chunks)
    }
}

/// The file that these chunks make up, called as they are without their number; `None` where there are none.
fn join(chunks: &[Region]) -> Option<Region> {
    let name = chunks.first()?.name();
    Region::joined(stem(name).to_owned(), chunks)
}

/// Checks that all chunks are there, as far as `file` tells, and that each is as large as it says.
fn check_chunks(envelope: &str, file: &OvfFile, prefix: &str, chunks: &[Region]) -> Result<(), Error> {
    let last = chunks.len() - 1;
    if let Some(size) = file.chunk {
        let odd = |(number, chunk): &(usize, &Region)| {
            if *number == last { chunk.len() > size } else { chunk.len() != size }
        };
        if let Some((_, chunk)) = chunks.iter().enumerate().find(odd) {
            let message = format!("has {} bytes, its OVF says that chunks have {size}", chunk.len());
            return Err(Error::refuse(Reason::Corrupt, chunk.name(), message));
        }
    }
    let total: u64 = chunks.iter().map(Region::len).fold(0, u64::saturating_add);
    match file.size.filter(|size| !file.gzip && *size != total) {
        None => Ok(()),
        Some(size) if total < size => {
            let missing = shown(&chunk_name(prefix, chunks.len() as u64));
            let message = format!(
                "names the disk {} of {size} bytes, its chunks have {total}: {missing} is missing or cut",
                shown(&file.href)
            );
            Err(Error::refuse(Reason::MissingMember, envelope, message))
        }
        Some(size) => {
            let message = format!("names the disk {} of {size} bytes, its chunks have {total}", shown(&file.href));
            Err(Error::refuse(Reason::Corrupt, envelope, message))
        }
    }
}
