// SPDX-License-Identifier: Apache-2.0
//! A raw disk in a tar in a stream: streamed like one without the tar, once it is sure that no other file may be meant.

use super::{BEGINNING, Depth, Room, base, choose, is_litter, single};
use crate::conversion::Reason;
use crate::conversion::file_name::{extension, is_disk_extension, unpacked};
use crate::disk::detect::{self, Content};
use crate::disk::ova::{Streamed, Walk, paths_in_rest};
use crate::disk::packed::{PackedRaw, Part, Stream};
use crate::disk::source::accepted::Source;
use crate::disk::source::checks::check_size;
use crate::disk::{Error, Image};

/// A packed tar up to this length is always listed before its disk is streamed: that costs less than a second. Of a longer
/// one it is enough that its length leaves no room for another disk.
const SHORT: u64 = 16 << 20;

/// What the first file that may be the disk is.
enum First {
    Raw(Streamed),
    /// It must be unpacked into scratch, or there is none.
    Other,
}

/// The only disk of the tar in `stream`, where it is raw. `None` where it is another image or an appliance: then the tar
/// must be unpacked.
pub(super) fn open_streamed(stream: &Stream, room: &Room) -> Result<Option<Source>, Error> {
    let most = if room.depth == Depth::Beginning { BEGINNING } else { u64::MAX };
    let mut walk = Walk::new(stream, most)?;
    let mut members = Vec::new();
    let First::Raw(disk) = first(&mut walk, &mut members)? else { return Ok(None) };
    check_size(stream.name(), disk.len, &room.limits)?;
    let is_alone = stream.region().len() > SHORT && stream.ends_close_to(disk.end());
    let mut warnings = Vec::new();
    if !is_alone {
        let rest = names(&mut walk);
        members.extend(rest?);
        if walk.is_cut() {
            warnings.push(format!("{}: only its first {BEGINNING} bytes were unpacked and looked at", stream.name()));
        }
    }
    let paths: Vec<_> = members.iter().map(|(path, _)| path.as_str()).collect();
    if paths[choose(stream.name(), &paths)?] != disk.path {
        return Ok(None);
    }
    let check_rest = is_alone.then_some(expect_no_other as _);
    let raw = PackedRaw::new(
        stream.part(Part { start: disk.start, len: disk.len, check_rest }),
        room.limits.max_virtual_size,
    );
    let mut source = single(base(&disk.path), Image::packed(raw));
    source.warnings.extend(warnings);
    Ok(Some(Source { members, ..source }))
}

/// Walks to the first file that may be the disk; what is passed is added to `members`.
fn first(walk: &mut Walk, members: &mut Vec<(String, u64)>) -> Result<First, Error> {
    while let Some(member) = walk.next()? {
        members.push((member.path.clone(), member.len));
        if is_litter(&member.path) {
            continue;
        }
        if member.is_sparse {
            break;
        }
        let name = base(&member.path);
        let ends_in = extension(unpacked(name).as_deref().unwrap_or(name)).to_ascii_lowercase();
        let is_raw = ends_in != "vhd"
            && detect::detect(name, &member.head, &[]).is_ok_and(|content| content == Content::Raw)
            && (detect::check_extension(name, Content::Raw, &member.head).is_ok()
                || detect::is_disk_called(name, &member.head));
        if is_raw {
            return Ok(First::Raw(member));
        }
        if is_disk_extension(&ends_in) || matches!(ends_in.as_str(), "ovf" | "ova") {
            break;
        }
    }
    Ok(First::Other)
}

/// Paths and lengths of the members that follow, as far as they were looked at.
fn names(walk: &mut Walk) -> Result<Vec<(String, u64)>, Error> {
    let mut names = Vec::new();
    while let Some(member) = walk.next()? {
        names.push((member.path, member.len));
    }
    Ok(names)
}

/// Refuses a tar that has another disk or an OVF behind its disk, of which nothing was known before it was unpacked.
fn expect_no_other(name: &str, rest: &[u8]) -> Result<(), Error> {
    let is_meant = |path: &String| {
        let ends_in = extension(path).to_ascii_lowercase();
        is_disk_extension(&ends_in) || matches!(ends_in.as_str(), "ovf" | "ova")
    };
    match paths_in_rest(name, rest)?.into_iter().filter(|path| !is_litter(path)).find(is_meant) {
        None => Ok(()),
        Some(path) => {
            let message = format!(
                "has {} behind its disk; unpack it and bring one of both",
                crate::disk::descriptor::shown(&path)
            );
            Err(Error::refuse(Reason::UnsupportedFormat, name, message))
        }
    }
}
