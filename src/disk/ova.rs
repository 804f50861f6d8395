// SPDX-License-Identifier: Apache-2.0
//! OVA: a tar of an OVF, its manifest and its disks, read in place.
//!
//! Format: DMTF DSP0243, "Distribution as a single file". Nothing is extracted and nothing opened by a name: a member
//! is a [`Region`] of the archive.

mod archive;
mod sparse;
mod streamed;

use self::archive::Entry;
pub(super) use self::streamed::{Streamed, Walk, paths_in_rest};
use super::descriptor::{MAX_BYTES, MAX_MEMBERS, shown};
use super::{Error, Region, manifest};
use crate::conversion::{Reason, Remedy, file_name};

/// Most parts of disks that are cut in chunks, besides the other members.
const MAX_PARTS: usize = 1024;

/// The members of an OVA that may be of use, no path twice.
#[derive(Clone, Debug)]
pub(super) struct Ova {
    /// In the order of the archive; regions are called `vm.ova:disk1.vmdk`.
    pub members: Vec<OvaMember>,
    /// Index of the only `.ovf`.
    pub ovf: usize,
    /// Indices of the `.mf` files: some writers make one for each disk.
    pub manifests: Vec<usize>,
}

/// A member of an OVA.
#[derive(Clone, Debug)]
pub(super) struct OvaMember {
    /// Its folder in the archive, without `./` before and `/` behind; empty for most.
    pub folder: String,
    /// Its base name: the last part of its path.
    pub name: String,
    /// Its bytes; of a sparse member with the zeros of its holes.
    pub region: Region,
    /// Where its padding ends in the archive.
    pub end: u64,
}

/// The package in an archive. Directories and the companions that
/// macOS adds are left out: a name in an archive opens nothing, and what is of use is found by its last part.
///
/// # Errors
/// As [`members`]; `Corrupt` for a second OVF, `MissingMember` where there is no OVF at all.
pub(super) fn open(region: &Region) -> Result<Ova, Error> {
    let file = region.name();
    let members = members(region)?;
    let ovfs = with_extension(&members, "ovf", MAX_BYTES)?;
    let manifests = with_extension(&members, "mf", manifest::MAX_BYTES)?;
    match ovfs.as_slice() {
        [ovf] => Ok(Ova { members, ovf: *ovf, manifests }),
        [] => Err(Error::refuse(Reason::MissingMember, file, "is a tar without an .ovf")),
        _ => Err(Error::refuse(Reason::Corrupt, file, "has more than one .ovf").with_remedy(Remedy::LeaveOne)),
    }
}

/// The members of a tar, each a plain file.
///
/// # Errors
/// `UnsafeReference` for names that leave the archive and for links, `UnsupportedFormat` for other special
/// members and for too many of them, `Corrupt` for bad headers and duplicates, `Truncated`.
pub(super) fn members(region: &Region) -> Result<Vec<OvaMember>, Error> {
    let file = region.name();
    let mut members: Vec<OvaMember> = Vec::new();
    let mut names = Names::default();
    let mut headers = archive::Headers::new(region);
    while let Some(entry) = headers.next_entry()? {
        let Some((folder, name)) = names.admit(file, &entry)? else { continue };
        let part = region.part(format!("{file}:{name}"), entry.data, entry.size).ok_or_else(|| {
            let message = format!("ends within its member {}, which has {} bytes", shown(&name), entry.size);
            Error::truncated(file, entry.data, message)
        })?;
        let (name_in_errors, end) = (part.name().to_owned(), entry.end());
        let region = match entry.segments {
            Some(segments) => Region::sparse(name_in_errors, &part, segments),
            None => part,
        };
        members.push(OvaMember { folder, name, region, end });
    }
    Ok(members)
}

/// The names of an archive's members so far: none twice, and not too many.
#[derive(Debug, Default)]
struct Names {
    /// Folders and base names.
    seen: Vec<(String, String)>,
    parts: usize,
}

impl Names {
    /// Folder and base name of the next member; `None` for what is no file of the package.
    ///
    /// # Errors
    /// As [`path`]; `Corrupt` for a name that was seen before, `UnsupportedFormat` for too many of them.
    fn admit(&mut self, file: &str, entry: &Entry) -> Result<Option<(String, String)>, Error> {
        let Some(found) = path(file, entry)? else { return Ok(None) };
        if self.seen.contains(&found) {
            return Err(Error::corrupt(file, entry.header, format!("has the member {} twice", shown(&found.1))));
        }
        self.parts += usize::from(is_part(&found.1));
        self.seen.push(found.clone());
        if self.seen.len() - self.parts > MAX_MEMBERS || self.parts > MAX_PARTS {
            let message = format!("has more than {MAX_MEMBERS} members");
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message).at(entry.header));
        }
        Ok(Some(found))
    }
}

/// Folder and base name of a member; `None` for what is no file of the package.
///
/// # Errors
/// `UnsafeReference` for a path that leaves the archive, and for names with control characters.
fn path(file: &str, entry: &Entry) -> Result<Option<(String, String)>, Error> {
    let unsafe_path = |what: &str| {
        let message = format!("has a member {}, {what}", shown(&entry.name));
        let refused = Error::refuse(Reason::UnsafeReference, file, message).at(entry.header);
        Err(refused.with_remedy(Remedy::PackWithoutPaths))
    };
    let path = entry.name.replace('\\', "/");
    if path.chars().any(char::is_control) {
        return unsafe_path("whose name has control characters");
    }
    let is_drive = path.as_bytes().get(1) == Some(&b':') && path.starts_with(|c: char| c.is_ascii_alphabetic());
    if path.starts_with('/') || is_drive || path.split('/').any(|part| part == "..") {
        return unsafe_path("a path that leaves the archive");
    }
    // Old writers mark a directory by its name only.
    if path.ends_with('/') {
        return Ok(None);
    }
    let mut parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let Some(name) = parts.pop() else { return Ok(None) };
    // macOS' tar and Finder put attributes of each file into a second one.
    if name.starts_with("._") || parts.contains(&"__MACOSX") {
        return Ok(None);
    }
    Ok(Some((parts.join("/"), name.to_owned())))
}

/// Whether this is a part of a file that is cut in chunks: `disk.vmdk.000000000`.
fn is_part(name: &str) -> bool {
    let number = file_name::extension(name);
    number.len() == 9 && number.bytes().all(|b| b.is_ascii_digit())
}

/// The members with an extension, each of at most `most` bytes.
fn with_extension(members: &[OvaMember], extension: &str, most: usize) -> Result<Vec<usize>, Error> {
    let has = |name: &str| file_name::extension(name).eq_ignore_ascii_case(extension);
    let found: Vec<_> = members.iter().enumerate().filter(|(_, m)| has(&m.name)).map(|(index, _)| index).collect();
    if let Some(long) = found.iter().map(|index| &members[*index].region).find(|region| region.len() > most as u64) {
        return Err(Error::refuse(Reason::Corrupt, long.name(), format!("is longer than {most} bytes")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
