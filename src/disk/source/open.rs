// SPDX-License-Identifier: Apache-2.0
//! Opens whatever was dropped, by its content.

use super::accepted::{Limits, Scratch, Source, SourceDisk};
use super::checks::read_text;
use super::disk::open_disk;
use super::group;
use super::packed::{Depth, Room, open_stream, open_tar, open_zip};
use crate::conversion::file_name::{extension, stem};
use crate::conversion::machine::Machine;
use crate::conversion::{Reason, Remedy, printable};
use crate::disk::descriptor::{MAX_BYTES, hyperv, vmx};
use crate::disk::detect::{self, Content};
use crate::disk::effort::Effort;
use crate::disk::packed::Stream;
use crate::disk::{Error, Region, descriptor, vhd};

/// Opens `primary` and, as further disks of the same machine, `disks`, which no descriptor names; otherwise as [`open`].
///
/// # Errors
/// As [`open`].
pub fn open_machine(
    primary: &Region,
    disks: &[Region],
    siblings: &[Region],
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Source, Error> {
    all(primary, disks, &mut |region| open(region, siblings, limits, scratch))
}

/// The same for a plan: what is packed and large is only looked at from its beginning, which may show no disk.
///
/// # Errors
/// As [`open`].
pub fn look_at_machine(
    primary: &Region,
    disks: &[Region],
    siblings: &[Region],
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Source, Error> {
    all(primary, disks, &mut |region| look(region, siblings, limits, scratch))
}

/// The machine in `primary` with the further `disks`, each opened by `open`.
fn all(
    primary: &Region,
    disks: &[Region],
    open: &mut dyn FnMut(&Region) -> Result<Source, Error>,
) -> Result<Source, Error> {
    let mut machine = open(primary)?;
    for disk in disks {
        let Source { disks, digests, warnings, members, .. } = open(disk)?;
        machine.disks.extend(disks);
        machine.digests.extend(digests);
        machine.warnings.extend(warnings);
        machine.members.extend(members);
    }
    Ok(machine)
}

/// Opens `primary`, with `siblings` for what it names: the other members of its claim, none of them read unless named.
///
/// # Errors
/// What the formats' readers refuse, with their reasons; `TooLarge` beyond `limits`.
pub fn open(primary: &Region, siblings: &[Region], limits: &Limits, scratch: &mut Scratch) -> Result<Source, Error> {
    open_bounded(primary, siblings, &mut Room { limits: limits.clone(), scratch, depth: Depth::Whole })
}

/// The same for an inspection: what is packed and large is only looked at from its beginning.
pub(super) fn look(
    primary: &Region,
    siblings: &[Region],
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Source, Error> {
    open_bounded(primary, siblings, &mut Room { limits: limits.clone(), scratch, depth: Depth::Beginning })
}

/// One budget for the tables of all files.
fn open_bounded(primary: &Region, siblings: &[Region], room: &mut Room) -> Result<Source, Error> {
    let stored = siblings.iter().chain([primary]).map(Region::stored).fold(0, u64::saturating_add);
    let effort = Effort::of_bytes(stored);
    let siblings: Vec<_> = siblings.iter().map(|region| region.within(&effort)).collect();
    let mut source = open_files(&primary.within(&effort), &siblings, room)?;
    if room.limits.ovf_option.is_some() && source.options.is_empty() {
        let message = "has no deployment options: it is no OVF";
        let refused = Error::refuse(Reason::UnsupportedFormat, primary.name(), message);
        return Err(refused.with_remedy(Remedy::ChooseOption));
    }
    for warning in &mut source.warnings {
        *warning = printable(warning).into_owned();
    }
    Ok(source)
}

pub(super) fn open_files(primary: &Region, siblings: &[Region], room: &mut Room) -> Result<Source, Error> {
    let name = primary.name();
    let (head, tail) = detect::ends(primary)?;
    let mut content = detect::detect(name, &head, &tail)?;
    // What ends with zeros shows no signature there.
    if content == Content::Raw && extension(name).eq_ignore_ascii_case("vhd") && vhd::is_padded(primary)? {
        content = Content::Vhd;
    }
    refuse_lone_extent(primary, content)?;
    // Names that say nothing come only from a person who named the file.
    detect::check_extension(name, content, &head)
        .or_else(|e| if content == Content::Raw && detect::is_disk_called(name, &head) { Ok(()) } else { Err(e) })?;
    match content {
        Content::Packed(packing) => open_stream(primary, &Stream::of(primary, packing), room),
        Content::Zip => open_zip(primary, room),
        Content::Tar => open_tar(primary, name, room),
        Content::Xml => group::open_ovf(primary, siblings, &room.limits, room.scratch),
        _ => {
            let named: Vec<_> = siblings.iter().map(|region| (region.name(), region)).collect();
            let image = open_disk(primary, name, content, &named, &room.limits)?;
            let mut members = vec![(name.to_owned(), primary.len())];
            let extents = image.regions.iter().filter(|region| region.name() != name);
            members.extend(extents.map(|region| (region.name().to_owned(), region.len())));
            Ok(Source {
                is_whole: true,
                format: image.kind().to_owned(),
                warnings: image.warnings(),
                disks: vec![SourceDisk { member: name.to_owned(), image }],
                hardware: None,
                machines: machine_of(primary, siblings)?.into_iter().collect(),
                digests: Vec::new(),
                options: Vec::new(),
                members,
            })
        }
    }
}

/// Refuses the raw bytes of a disk that are called like a VMDK: they are one of its extents.
fn refuse_lone_extent(region: &Region, content: Content) -> Result<(), Error> {
    let name = region.name();
    if content != Content::Raw || !descriptor::looks_like_extent(name) {
        return Ok(());
    }
    let message = format!(
        "is an extent of a VMDK without its descriptor: {}",
        descriptor::without_descriptor(name, region.len())
    );
    let refused = Error::refuse(Reason::MissingMember, name, message);
    Err(if descriptor::is_flat_extent(name) { refused.with_remedy(Remedy::BringDescriptor) } else { refused })
}

/// The machine that a file beside the disk describes: a VMX beside a VMDK, called alike, or Hyper-V's settings beside a
/// VHD or VHDX.
fn machine_of(primary: &Region, siblings: &[Region]) -> Result<Option<Machine>, Error> {
    let name = primary.name();
    if ["vhd", "vhdx"].iter().any(|wanted| extension(name).eq_ignore_ascii_case(wanted)) {
        return hyperv_machine_of(name, siblings);
    }
    let vmx = format!("{}.vmx", stem(name));
    let found = siblings.iter().find(|region| region.name() == vmx && region.len() <= MAX_BYTES as u64);
    let Some(vmx) = found.filter(|_| extension(name).eq_ignore_ascii_case("vmdk")) else { return Ok(None) };
    Ok(Some(vmx::read(&read_text(vmx, MAX_BYTES)?, name)))
}

/// The machine of the only settings that name the disk. Of several, nobody knows which is meant.
fn hyperv_machine_of(name: &str, siblings: &[Region]) -> Result<Option<Machine>, Error> {
    let settings = || siblings.iter().filter(|region| hyperv::is_settings(region.name()));
    let is_text = |region: &&Region| extension(region.name()).eq_ignore_ascii_case("xml");
    let here = |wanted: &str| {
        siblings.iter().map(Region::name).find(|name| name.eq_ignore_ascii_case(wanted)).map(str::to_owned)
    };
    let mut machines = Vec::new();
    for region in settings().filter(is_text).filter(|region| region.len() <= MAX_BYTES as u64) {
        machines.extend(hyperv::read(&read_text(region, MAX_BYTES)?, name, &here));
    }
    let binary: Vec<_> = settings().filter(|region| !is_text(region)).collect();
    Ok(match (machines.len(), binary.as_slice()) {
        (1, _) => machines.pop(),
        (0, [only]) => Some(hyperv::unread(only.name(), name)),
        _ => None,
    })
}
