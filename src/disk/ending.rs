// SPDX-License-Identifier: Apache-2.0
//! Whether the end of an image is there, as far as its format tells: for files whose writer nobody can see.
//!
//! It makes a few bounded reads and never walks over a disk's tables: a file that passes may still be corrupt. Formats
//! that are written out of order (qcow2, VHDX, VDI, sparse VMDK) only show that an end is missing; those that end with
//! a mark (a tar, a stream, a VHD, an XML text) also show that a file is whole.

use std::sync::Arc;

use super::descriptor::{self, References};
use super::detect::{self, Content};
use super::fields::{be32, be64, le32, le64};
use super::packed::frames;
use super::{Region, ova, vmdk};
use crate::conversion::file_name::extension;

/// What the format says of the file's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The mark that ends such a file is there.
    Whole,
    /// Something that must be there is not.
    Missing,
    /// The disk in the file tells of bytes behind the file's end, which a reader would not miss.
    Short,
    /// The file has its form, and no block of the disk in it was ever written.
    Blank,
    /// The format has no such mark, or the file can't be read.
    Untold,
}

/// Largest table of a qcow2 that is looked at, in bytes, and its largest cluster: an L1 of 2 MiB reaches 128 TiB in
/// clusters of 64 KiB.
const MAX_TABLE: usize = 2 << 20;
const MAX_CLUSTER: usize = 2 << 20;
/// How many L2 tables of a qcow2 are looked at: those that lie last in the file.
const L2_TABLES: usize = 8;

/// Looks for the end of a file.
#[must_use]
pub(crate) fn ending(file: std::fs::File, name: &str) -> Ending {
    let Ok(found) = file.metadata() else { return Ending::Untold };
    of(&Region::whole(Arc::new(file), name, found.len()))
}

/// The extension that a file of an unknown one should have, by its content; `None` where that is no disk.
#[must_use]
pub(crate) fn fitting_extension(file: std::fs::File, name: &str) -> Option<&'static str> {
    let len = file.metadata().ok()?.len();
    let (head, tail) = detect::ends(&Region::whole(Arc::new(file), name, len)).ok()?;
    match detect::detect(name, &head, &tail).ok()? {
        Content::Raw => detect::is_disk_called(name, &head).then_some(Content::Raw.extension()),
        // Too many other files begin like these.
        Content::Xml | Content::Tar | Content::Zip | Content::Packed(_) => None,
        content => Some(content.extension()),
    }
}

fn of(region: &Region) -> Ending {
    let written = blank::first_written(region);
    let Ok((head, tail)) = detect::ends(region) else { return Ending::Untold };
    let Ok(content) = detect::detect(region.name(), &head, &tail) else { return Ending::Untold };
    if blank::is_blank(region, content, &head, written) {
        return Ending::Blank;
    }
    let found = match content {
        Content::Tar => tar(region, &tail),
        Content::Vhd => Some(by(tail.starts_with(b"conectix") || tail[1..].starts_with(b"conectix"), Ending::Whole)),
        Content::VmdkSparse => vmdk::has_end(region).map(|is_there| by(is_there, Ending::Whole)),
        Content::Qcow2 => qcow2(region, &head),
        Content::Vdi => Some(by(vdi_end(&head) <= region.len(), Ending::Untold)),
        Content::Xml => xml(region),
        // A raw disk may begin like one of these.
        Content::Packed(_) | Content::Zip if !content.agrees_with(extension(region.name())) => None,
        Content::Packed(packing) => frames::has_end(region, packing).map(|is_there| by(is_there, Ending::Whole)),
        Content::Zip => frames::has_zip_end(region).map(|is_there| by(is_there, Ending::Whole)),
        Content::Vhdx | Content::VmdkText | Content::Parallels => None,
        Content::Raw if Content::Raw.agrees_with(extension(region.name())) => {
            // A raw disk has whole sectors.
            let is_short = !region.len().is_multiple_of(512) || raw::is_short(region);
            Some(if is_short { Ending::Short } else { Ending::Untold })
        }
        // A file that lacks the signature that its extension demands got its length before its content.
        Content::Raw => Some(Ending::Missing),
    };
    found.unwrap_or(Ending::Untold)
}

fn by(is_there: bool, then: Ending) -> Ending {
    if is_there { then } else { Ending::Missing }
}

/// Whether the archive's end, every member that its OVF names, and the members' own ends are there.
fn tar(region: &Region, tail: &[u8]) -> Option<Ending> {
    use crate::conversion::Reason;
    if !extension(region.name()).eq_ignore_ascii_case("ova") {
        let members = ova::members(region).ok()?;
        let end = members.last()?.end;
        return Some(by(end < region.len() && tail.iter().all(|byte| *byte == 0), Ending::Whole));
    }
    let ova = match ova::open(region) {
        Ok(ova) => ova,
        Err(error) if matches!(error.reason, Reason::Truncated | Reason::MissingMember) => {
            return Some(Ending::Missing);
        }
        Err(_) => return None,
    };
    let end = ova.members.last()?.end;
    let is_closed = end < region.len() && tail.iter().all(|byte| *byte == 0);
    let named = names(&ova.members[ova.ovf].region)?;
    let has = |name: &str| ova.members.iter().any(|member| member.name == name);
    let is_there = |name: &String| named.spellings(name).any(has);
    let are_whole = || ova.members.iter().all(|member| of(&member.region) != Ending::Missing || !is_disk(&member.name));
    Some(by(is_closed && named.required.iter().all(is_there) && are_whole(), Ending::Whole))
}

fn is_disk(name: &str) -> bool {
    extension(name).eq_ignore_ascii_case("vmdk")
}

fn names(ovf: &Region) -> Option<References> {
    let mut text = vec![0; usize::try_from(ovf.len()).ok().filter(|len| *len <= descriptor::MAX_BYTES)?];
    ovf.read_exact_at(&mut text, 0).ok()?;
    descriptor::references(ovf.name(), &text, None).ok()
}

/// Whether the text ends as a document does. Whether it can be understood is for its reader to find out.
fn xml(region: &Region) -> Option<Ending> {
    let mut text = vec![0; usize::try_from(region.len()).ok().filter(|len| *len <= descriptor::MAX_BYTES)?];
    region.read_exact_at(&mut text, 0).ok()?;
    Some(by(descriptor::ovf::is_closed(&text), Ending::Whole))
}

/// Whether the L1 table, the last L2 tables and what they point to lie inside the file (QEMU's `docs/interop/qcow2.txt`).
/// A last cluster that the file ends in is read as if zeros followed, as QEMU does.
fn qcow2(region: &Region, head: &[u8]) -> Option<Ending> {
    const EXTENDED_L2: u64 = 1 << 4;
    let head = head.get(..80)?;
    if be32(head, 4) >= 3 && be64(head, 72) & EXTENDED_L2 != 0 {
        return None;
    }
    let cluster = usize::try_from(1_u64.checked_shl(be32(head, 20))?).ok().filter(|bytes| *bytes <= MAX_CLUSTER)?;
    let entries = usize::try_from(be32(head, 36)).ok()?;
    let l1 = be64(head, 40);
    if !is_inside(region, l1, entries)? {
        return Some(Ending::Missing);
    }
    let mut tables = pointers(region, l1, entries)?;
    tables.sort_unstable();
    let mut end = 0;
    for table in tables.into_iter().rev().take(L2_TABLES) {
        if !is_inside(region, table, cluster / 8)? {
            return Some(Ending::Missing);
        }
        let last = pointers(region, table, cluster / 8)?.into_iter().max();
        end = end.max(last.map_or(0, |last| last.saturating_add(cluster as u64)));
    }
    let missing = end.saturating_sub(region.len());
    // The disk's own end may lie in that cluster.
    let behind = (cluster as u64 - be64(head, 24) % cluster as u64) % cluster as u64;
    Some(match missing {
        0 => Ending::Untold,
        few if few <= behind => Ending::Untold,
        few if few < cluster as u64 => Ending::Short,
        _ => Ending::Missing,
    })
}

/// Whether a qcow2 table of so many entries ends inside the file; `None` where the header can't be valid.
fn is_inside(region: &Region, offset: u64, entries: usize) -> Option<bool> {
    let bytes = entries.checked_mul(8).filter(|bytes| *bytes <= MAX_TABLE)?;
    Some(offset.checked_add(bytes as u64)? <= region.len())
}

/// Where the entries of a qcow2 table inside the file point to, except those of compressed clusters.
fn pointers(region: &Region, offset: u64, entries: usize) -> Option<Vec<u64>> {
    const COMPRESSED: u64 = 1 << 62;
    const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
    let mut table = vec![0; entries * 8];
    region.read_exact_at(&mut table, offset).ok()?;
    let entries = table.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry));
    Some(entries.filter(|entry| entry & COMPRESSED == 0).map(|e| e & OFFSET).filter(|at| *at != 0).collect())
}

/// Where the last allocated block ends (VirtualBox' `VDICore.h`: offset of the data, block size, blocks allocated).
fn vdi_end(head: &[u8]) -> u64 {
    if head.len() < 0x188 || le64(head, 0x170) == 0 {
        return 0;
    }
    let (data, block, allocated) = (le32(head, 0x158), le32(head, 0x178), le32(head, 0x184));
    u64::from(data).saturating_add(u64::from(block).saturating_mul(u64::from(allocated)))
}

mod blank;
mod raw;
#[cfg(test)]
mod tests;
