// SPDX-License-Identifier: Apache-2.0
//! Sources that are packed: a disk or an appliance in a stream, in a zip, or in a tar that is no OVA.
//!
//! One layer is unpacked, and a tar inside it. A raw disk in a stream is streamed; everything else lies in scratch, or
//! in place where the archive stores it as it is.

mod tar;

use super::accepted::{Limits, Scratch, Source, SourceDisk};
use super::checks::blank;
use super::disk::open_disk;
use super::group;
use crate::conversion::file_name::{extension, is_disk_extension, is_taken, unpacked};
use crate::conversion::{Reason, Remedy};
use crate::disk::descriptor::{self, MAX_BYTES, looks_like_extent, shown};
use crate::disk::detect::{self, Content, HEAD_BYTES};
use crate::disk::packed::entries::{self, Entry};
use crate::disk::packed::{self, Bounds, PackedRaw, Stream, Unpacked};
use crate::disk::{Error, Image, Region, ova, peek};

/// Bytes that an unpacked image may have beyond the largest virtual size: headers, tables, descriptors.
const METADATA_BYTES: u64 = 1 << 30;

/// How much of a stream an inspection unpacks: what takes a second or two.
const BEGINNING: u64 = 64 << 20;

/// How much of a source is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Whole,
    /// What is packed and large is only looked at from its beginning.
    Beginning,
}

/// What unpacking may cost, and where it goes.
pub(super) struct Room<'a, 'b> {
    pub limits: Limits,
    pub scratch: &'a mut Scratch<'b>,
    pub depth: Depth,
}

impl Room<'_, '_> {
    /// Most bytes of an image.
    fn longest(&self) -> u64 {
        self.limits.max_virtual_size.saturating_add(METADATA_BYTES)
    }
}

/// Opens what the whole of `primary` is packed from.
pub(super) fn open_stream(primary: &Region, stream: &Stream, room: &mut Room) -> Result<Source, Error> {
    let name = primary.name();
    let inner = unpacked(name).unwrap_or_else(|| name.to_owned());
    let source = open_inner(stream, &inner, name, room)?;
    Ok(Source { members: vec![(name.to_owned(), primary.len())], ..source })
}

/// Opens the stream's content, whose name is `inner`; `member` is what holds it.
fn open_inner(stream: &Stream, inner: &str, member: &str, room: &mut Room) -> Result<Source, Error> {
    let head = stream.beginning(HEAD_BYTES)?;
    let named = |e: Error| Error { file: stream.name().to_owned(), ..e };
    let content = detect::detect(stream.name(), &head, &[])?;
    let ends_in = extension(inner).to_ascii_lowercase();
    // A fixed VHD shows itself only at its end.
    let is_streamed = content == Content::Raw && ends_in != "vhd";
    if is_streamed || content != Content::Raw {
        let named = |e: Error| match e.reason {
            // What it is stands in its message.
            Reason::UnsupportedFormat if e.remedy == Some(Remedy::NoDisk) => named(e),
            Reason::UnsupportedFormat if !is_taken(inner) => {
                let packed = stream.packing_extension();
                let message = format!(
                    "packs something that its name does not tell; call it NAME.img.{packed}, for example, if it is a raw disk"
                );
                Error::refuse(e.reason, stream.name(), message).with_remedy(Remedy::InMessage)
            }
            _ => named(e),
        };
        detect::check_extension(inner, content, &head)
            .or_else(|e| detect::is_disk_called(inner, &head).then_some(()).ok_or(e))
            .map_err(named)?;
    }
    if let Content::Packed(_) | Content::Zip = content {
        let message = format!("holds {} again; unpack it once", content.as_str());
        return Err(Error::refuse(Reason::UnsupportedFormat, stream.name(), message).with_remedy(Remedy::InMessage));
    }
    if is_streamed {
        let raw = PackedRaw::new(stream.clone(), room.limits.max_virtual_size);
        if let Some(size) = raw.size() {
            super::checks::check_size(stream.name(), size, &room.limits)?;
        }
        return Ok(single(member, Image::packed(raw)));
    }
    if content == Content::Tar
        && ends_in != "ova"
        && let Some(source) = tar::open_streamed(stream, room)?
    {
        return Ok(source);
    }
    // A fixed VHD is mostly zeros, which take no room.
    if content != Content::Raw && room.depth == Depth::Whole {
        check_room(stream, room)?;
    }
    let unpacked = unpack(stream, room)?;
    if !unpacked.is_whole {
        return Ok(from_beginning(stream, content, member, &unpacked));
    }
    let mut source = open_unpacked(&unpacked.region, inner, member, room)?;
    source.format = format!("{} in {}", source.format, stream.packing());
    source.warnings.extend(packed::surplus_warning(stream.name(), unpacked.surplus));
    Ok(source)
}

/// Opens what was unpacked into `region`: a disk called `inner`, or a tar.
fn open_unpacked(region: &Region, inner: &str, member: &str, room: &mut Room) -> Result<Source, Error> {
    let named = |e: Error| Error { file: region.name().to_owned(), ..e };
    let content = detect::detect_region(region)?;
    let (head, _) = detect::ends(region)?;
    detect::check_extension(inner, content, &head).map_err(named)?;
    if content == Content::Tar {
        return open_tar(region, inner, room);
    }
    let image = open_disk(region, inner, content, &[], &room.limits)?;
    Ok(single(member, image))
}

/// What the beginning of an image tells of it.
fn from_beginning(stream: &Stream, content: Content, member: &str, unpacked: &Unpacked) -> Source {
    let seen = unpacked.region.len();
    let disks = peek::virtual_size(content, &unpacked.region)
        .map(|size| SourceDisk { member: member.to_owned(), image: blank(size, content.as_str()) });
    let warning = format!("{}: only its first {seen} bytes were unpacked and looked at", stream.name());
    Source {
        is_whole: false,
        format: format!("{} in {}", content.as_str(), stream.packing()),
        disks: disks.into_iter().collect(),
        hardware: None,
        machines: Vec::new(),
        digests: Vec::new(),
        options: Vec::new(),
        warnings: vec![warning],
        members: Vec::new(),
    }
}

fn single(member: &str, image: Image) -> Source {
    Source {
        is_whole: true,
        format: image.kind().to_owned(),
        warnings: image.warnings(),
        disks: vec![SourceDisk { member: member.to_owned(), image }],
        hardware: None,
        machines: Vec::new(),
        digests: Vec::new(),
        options: Vec::new(),
        members: Vec::new(),
    }
}

/// Refuses what can't have room, where the packing tells its length, before the first byte is unpacked.
fn check_room(stream: &Stream, room: &Room) -> Result<(), Error> {
    let Some(size) = stream.size() else { return Ok(()) };
    if size > room.longest() {
        return Err(packed::too_long(stream, room.longest()));
    }
    if size > room.limits.max_scratch_bytes {
        return Err(packed::no_room(stream, size, room.limits.max_scratch_bytes));
    }
    Ok(())
}

/// Unpacks a stream into scratch, and counts what it takes.
fn unpack(stream: &Stream, room: &mut Room) -> Result<Unpacked, Error> {
    let bounds = Bounds {
        length: room.longest(),
        stored: room.limits.max_scratch_bytes,
        enough: if room.depth == Depth::Beginning { BEGINNING } else { u64::MAX },
    };
    let unpacked = packed::unpack(stream, (room.scratch)()?, bounds)?;
    room.limits.max_scratch_bytes -= unpacked.stored;
    Ok(unpacked)
}

/// Opens a tar: an OVA, or an archive around one disk.
pub(super) fn open_tar(archive: &Region, name: &str, room: &mut Room) -> Result<Source, Error> {
    let members = ova::members(archive)?;
    let has_ovf = members.iter().any(|member| extension(&member.name).eq_ignore_ascii_case("ovf"));
    if has_ovf || extension(name).eq_ignore_ascii_case("ova") {
        return group::open_ova(archive, &room.limits, room.scratch);
    }
    let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    let chosen = &members[choose(archive.name(), &names)?];
    let beside: Vec<_> = members.iter().map(|member| (member.name.as_str(), &member.region)).collect();
    let content = detect::detect_region(&chosen.region)?;
    check_member(&chosen.name, content, &chosen.region)?;
    let image = match content {
        Content::Tar => return group::open_ova(&chosen.region, &room.limits, room.scratch),
        Content::Packed(packing) => return open_member(&Stream::of(&chosen.region, packing), &chosen.name, room),
        _ => open_disk(&chosen.region, &chosen.name, content, &beside, &room.limits)?,
    };
    let source = single(&chosen.name, image);
    let members = members.iter().map(|member| (member.name.clone(), member.region.len())).collect();
    Ok(Source { members, format: format!("{} in tar", source.format), ..source })
}

/// Opens a packed member of a tar that is not packed itself.
fn open_member(stream: &Stream, name: &str, room: &mut Room) -> Result<Source, Error> {
    let inner = unpacked(name).unwrap_or_else(|| name.to_owned());
    open_inner(stream, &inner, name, room)
}

fn check_member(name: &str, content: Content, region: &Region) -> Result<(), Error> {
    let (head, _) = detect::ends(region)?;
    let checked = detect::check_extension(name, content, &head);
    checked
        .or_else(|e| (content == Content::Raw && detect::is_disk_called(name, &head)).then_some(()).ok_or(e))
        .map_err(|e| Error { file: region.name().to_owned(), ..e })
}

/// Opens a zip around one disk or one appliance.
pub(super) fn open_zip(archive: &Region, room: &mut Room) -> Result<Source, Error> {
    let entries = entries::list(archive)?;
    let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let chosen = &entries[choose(archive.name(), &paths)?];
    let name = base(&chosen.path);
    let mut source = if names_others(chosen) {
        open_group(archive, chosen, &entries, room)?
    } else {
        let stream = chosen.stream()?;
        match chosen.stored() {
            // Read in place; a raw disk is streamed all the same, so that its checksum is verified on the way.
            Some(region) if !matches!(detect::detect_region(region)?, Content::Raw) => {
                if room.depth == Depth::Whole {
                    check_stored(stream)?;
                }
                let opened = open_unpacked(region, name, name, room)?;
                Source { format: format!("{} in zip", opened.format), ..opened }
            }
            _ => open_inner(stream, name, name, room)?,
        }
    };
    source.members = entries.iter().map(|entry| (entry.path.clone(), entry.size)).collect();
    Ok(source)
}

/// Reads a stored entry once, for its checksum.
fn check_stored(stream: &Stream) -> Result<(), Error> {
    let region = stream.region();
    region.expect(region.len());
    let mut unpacking = stream.open()?;
    let mut buffer = vec![0; 1 << 20];
    while unpacking.fill(&mut buffer)? == buffer.len() {
        region.advance(unpacking.advanced());
    }
    region.advance(unpacking.advanced());
    Ok(())
}

/// Whether the file may be a descriptor.
fn names_others(entry: &Entry) -> bool {
    let extension = extension(&entry.path).to_ascii_lowercase();
    extension == "ovf" || (extension == "vmdk" && entry.size <= MAX_BYTES as u64)
}

/// Opens a descriptor of a zip with the files that it names.
fn open_group(archive: &Region, primary: &Entry, entries: &[Entry], room: &mut Room) -> Result<Source, Error> {
    let name = base(&primary.path);
    if primary.size > MAX_BYTES as u64 {
        let message = format!("has the text {} of more than {MAX_BYTES} bytes", shown(&primary.path));
        return Err(Error::refuse(Reason::Corrupt, archive.name(), message));
    }
    let text = take_out(primary, room)?;
    let mut bytes = vec![0; usize::try_from(text.len()).unwrap_or(usize::MAX).min(MAX_BYTES + 1)];
    text.read_exact_at(&mut bytes, 0)?;
    let named = descriptor::references(name, &bytes, room.limits.ovf_option.as_deref())?;
    let is_meant = |entry: &&Entry| named.names(base(&entry.path)) || named.resembles(base(&entry.path));
    let beside: Vec<_> = entries.iter().filter(is_meant).collect();
    let large = beside.iter().filter(|entry| entry.stored().is_none()).map(|entry| entry.size).sum::<u64>();
    if room.depth == Depth::Beginning && large > BEGINNING {
        let warning = format!("{}: its disks are packed and were not looked at", archive.name());
        let (format, warnings) = ("ovf in zip".to_owned(), vec![warning]);
        return Ok(Source {
            is_whole: false,
            format,
            warnings,
            disks: Vec::new(),
            hardware: None,
            machines: Vec::new(),
            digests: Vec::new(),
            options: Vec::new(),
            members: Vec::new(),
        });
    }
    let siblings = beside.into_iter().map(|entry| take_out(entry, room)).collect::<Result<Vec<_>, _>>()?;
    let content = detect::detect_region(&text)?;
    check_member(name, content, &text)?;
    let source = if content == Content::Xml {
        group::open_ovf(&text, &siblings, &room.limits, room.scratch)?
    } else {
        let named: Vec<_> = siblings.iter().map(|region| (region.name(), region)).collect();
        single(name, open_disk(&text, name, content, &named, &room.limits)?)
    };
    Ok(Source { format: format!("{} in zip", source.format), ..source })
}

/// The file as a region with its base name: in place where it is stored so, else in scratch.
fn take_out(entry: &Entry, room: &mut Room) -> Result<Region, Error> {
    let stream = entry.stream()?;
    let region = if let Some(region) = entry.stored() {
        check_stored(stream)?;
        region.clone()
    } else {
        check_room(stream, room)?;
        let depth = std::mem::replace(&mut room.depth, Depth::Whole);
        let unpacked = unpack(stream, room);
        room.depth = depth;
        unpacked?.region
    };
    Ok(region.part(base(&entry.path), 0, region.len()).expect("all of it"))
}

fn base(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// What other programs leave in archives beside the files that somebody meant.
fn is_litter(path: &str) -> bool {
    let name = base(path);
    name.starts_with('.') || path.starts_with("__MACOSX/") || name.eq_ignore_ascii_case("Thumbs.db")
}

/// Which of these files of an archive is the disk or the appliance: the only OVF, else the only OVA, else the only disk
/// that is no part of another, else the only file.
fn choose(archive: &str, paths: &[&str]) -> Result<usize, Error> {
    let files: Vec<_> = (0..paths.len()).filter(|index| !is_litter(paths[*index])).collect();
    let ends_in =
        |index: usize| extension(unpacked(paths[index]).as_deref().unwrap_or(paths[index])).to_ascii_lowercase();
    let with = |wanted: &str| files.iter().copied().filter(|index| ends_in(*index) == wanted).collect::<Vec<_>>();
    let disks = || {
        let is_part = |name: &str| looks_like_extent(name) || name.to_ascii_lowercase().ends_with("-ctk.vmdk");
        let of_a_disk = |index: &usize| is_disk_extension(&ends_in(*index)) && !is_part(base(paths[*index]));
        files.iter().copied().filter(of_a_disk).collect::<Vec<_>>()
    };
    let found = [with("ovf"), with("ova"), disks(), files.clone()].into_iter().find(|found| !found.is_empty());
    match found.as_deref() {
        Some([only]) => Ok(*only),
        Some(several) => {
            let names: Vec<_> = several.iter().take(8).map(|index| shown(paths[*index])).collect();
            let more = if several.len() > names.len() { ", …" } else { "" };
            let message = format!(
                "has {} files that may be the disk: {}{more}; unpack it and bring one at a time",
                several.len(),
                names.join(", ")
            );
            Err(Error::refuse(Reason::UnsupportedFormat, archive, message).with_remedy(Remedy::InMessage))
        }
        None => Err(Error::refuse(Reason::MissingMember, archive, "has no file in it")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["vm/readme.txt", "vm/disk.qcow2"], Some(1))]
    #[case(&["disk.raw"], Some(0))]
    #[case(&["disk"], Some(0))]
    #[case(&["__MACOSX/._d.vmdk", "d.vmdk", ".DS_Store"], Some(1))]
    #[case(&["vm.vmdk", "vm-s001.vmdk", "vm-s002.vmdk", "vm.vmx"], Some(0))]
    #[case(&["a.vmdk", "b.vmdk", "vm.ovf", "vm.mf"], Some(2))]
    #[case(&["vm.ova", "vm.sha256"], Some(0))]
    #[case(&["a.vmdk", "b.vmdk"], None)]
    #[case(&["one.ovf", "two.ovf", "a.vmdk"], None)]
    #[case(&["a.txt", "b.txt"], None)]
    #[case(&["disk.img.xz", "SHA256SUMS"], Some(0))]
    #[case(&[], None)]
    fn the_disk_of_an_archive_is_chosen_only_where_nothing_else_can_be_meant(
        #[case] paths: &[&str],
        #[case] chosen: Option<usize>,
    ) {
        assert_eq!(choose("vm.zip", paths).ok(), chosen);
    }
}
