// SPDX-License-Identifier: Apache-2.0
//! OVA: a tar of an OVF, its manifest and its disks, read in place.
//!
//! Format: DMTF DSP0243, "Distribution as a single file". Nothing is extracted and nothing opened by a name: a member
//! is a [`Region`] of the archive.

mod archive;

use super::descriptor::{MAX_BYTES, MAX_MEMBERS, plain_name, shown};
use super::{Error, Region, manifest};
use crate::conversion::{Reason, file_name};

/// The members of an OVA, each a plain file with a plain name, no name twice.
#[derive(Clone, Debug)]
pub(super) struct Ova {
    /// In the order of the archive; regions are called `vm.ova:disk1.vmdk`.
    pub members: Vec<OvaMember>,
    /// Index of the only `.ovf`.
    pub ovf: usize,
    /// Index of the only `.mf`.
    pub manifest: Option<usize>,
}

/// A member of an OVA.
#[derive(Clone, Debug)]
pub(super) struct OvaMember {
    /// Its base name.
    pub name: String,
    pub region: Region,
}

/// Walks the archive's headers, and refuses what no OVA has.
///
/// # Errors
/// As [`members`]; `Corrupt` for a second OVF, `MissingMember` where there is no OVF at all.
pub(super) fn open(region: &Region) -> Result<Ova, Error> {
    let file = region.name();
    let members = members(region)?;
    let ovf = only(file, &members, "ovf", MAX_BYTES)?;
    let ovf = ovf.ok_or_else(|| Error::refuse(Reason::MissingMember, file, "is a tar without an .ovf"))?;
    let manifest = only(file, &members, "mf", manifest::MAX_BYTES)?;
    Ok(Ova { members, ovf, manifest })
}

/// The members of a tar, each a plain file with a plain name.
///
/// # Errors
/// `UnsafeReference` for names that are no plain base names and for links, `UnsupportedFormat` for other special
/// members and for too many of them, `Corrupt` for bad headers and duplicates, `Truncated`.
pub(super) fn members(region: &Region) -> Result<Vec<OvaMember>, Error> {
    let file = region.name();
    let mut members: Vec<OvaMember> = Vec::new();
    let mut headers = archive::Headers::new(region);
    while let Some(entry) = headers.next_entry()? {
        let name = plain_name(file, &entry.name).map_err(|e| e.at(entry.header))?;
        if members.iter().any(|m| m.name == name) {
            return Err(Error::corrupt(file, entry.header, format!("has the member {} twice", shown(&name))));
        }
        if members.len() == MAX_MEMBERS {
            let message = format!("has more than {MAX_MEMBERS} members");
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message).at(entry.header));
        }
        let part = region.part(format!("{file}:{name}"), entry.data, entry.size).ok_or_else(|| {
            let message = format!("ends within its member {}, which has {} bytes", shown(&name), entry.size);
            Error::truncated(file, entry.data, message)
        })?;
        members.push(OvaMember { name, region: part });
    }
    Ok(members)
}

/// The only member with an extension, of at most `most` bytes.
fn only(file: &str, members: &[OvaMember], extension: &str, most: usize) -> Result<Option<usize>, Error> {
    let has = |name: &str| file_name::extension(name).eq_ignore_ascii_case(extension);
    let mut found = members.iter().enumerate().filter(|(_, m)| has(&m.name));
    let first = found.next();
    if found.next().is_some() {
        return Err(Error::refuse(Reason::Corrupt, file, format!("has more than one .{extension}")));
    }
    let Some((index, member)) = first else { return Ok(None) };
    if member.region.len() > most as u64 {
        let message = format!("is longer than {most} bytes");
        return Err(Error::refuse(Reason::Corrupt, member.region.name(), message));
    }
    Ok(Some(index))
}

#[cfg(test)]
mod tests;
