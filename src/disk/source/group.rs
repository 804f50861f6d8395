// SPDX-License-Identifier: Apache-2.0
//! OVF packages: the envelope with its files, in an OVA or side by side.

use super::accepted::{Limits, OvfOption, Scratch, Source, SourceDisk};
use super::checks::{blank, check_size, read_text};
use super::disk::open_disk;
use super::members::{Found, Member, Members};
use crate::conversion::file_name::{EXTENSIONS, extension, stem};
use crate::conversion::machine::Machine;
use crate::conversion::report::Hardware;
use crate::conversion::{Reason, Remedy};
use crate::disk::descriptor::ovf::{self, Ovf, OvfDisk, OvfFile, is_chunk};
use crate::disk::descriptor::{MAX_BYTES, shown};
use crate::disk::detect::{Content, Packing};
use crate::disk::image::Image;
use crate::disk::manifest::{self, Expected};
use crate::disk::{Error, Region, detect, gzip, ova};

/// Bytes that an inflated member may have beyond the largest virtual size: headers, tables, descriptors.
const METADATA_BYTES: u64 = 1 << 30;

pub(super) fn open_ova(archive: &Region, limits: &Limits, scratch: &mut Scratch) -> Result<Source, Error> {
    let ova = ova::open(archive)?;
    let all = ova.members.iter().map(|m| Member::new(&m.folder, &m.name, &m.region)).collect();
    let members = Members { all, home: &ova.members[ova.ovf].folder };
    let manifests: Vec<_> = ova.manifests.iter().map(|index| &ova.members[*index].region).collect();
    let envelope = &ova.members[ova.ovf];
    open_package("ova", (&envelope.name, &envelope.region), &manifests, &members, limits, scratch)
}

pub(super) fn open_ovf(
    envelope: &Region,
    siblings: &[Region],
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Source, Error> {
    let name = envelope.name();
    let regions = || std::iter::once(envelope).chain(siblings);
    let all = regions().map(|region| Member::new("", region.name(), region)).collect();
    // Its siblings are what it names, and a manifest for it or for one of its disks.
    let manifests: Vec<_> =
        siblings.iter().filter(|region| extension(region.name()).eq_ignore_ascii_case("mf")).collect();
    open_package("ovf", (name, envelope), &manifests, &Members { all, home: "" }, limits, scratch)
}

fn open_package(
    format: &str,
    (name, envelope): (&str, &Region),
    manifests: &[&Region],
    members: &Members,
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Source, Error> {
    let mut warnings = Vec::new();
    let digests = read_manifests(manifests, envelope, members, &mut warnings)?;
    let text = read_text(envelope, MAX_BYTES)?;
    let ovf = ovf::parse(name, &text, limits.ovf_option.as_deref())
        .map_err(|e| Error { file: envelope.name().to_owned(), ..e })?;
    if ovf.disks.is_empty() {
        let refused = Error::refuse(Reason::UnsupportedFormat, envelope.name(), "describes no disk");
        return Err(refused.with_remedy(Remedy::ExportWithDisks));
    }
    let beside = members.by_name();
    let mut scratch_left = limits.max_scratch_bytes;
    let mut disks = Vec::new();
    for disk in &ovf.disks {
        let opened = match disk.file {
            None => blank_disk(envelope.name(), disk, limits)?,
            Some(file) => {
                let file = &ovf.files[file];
                let Found { region, other_name } = members.disk(envelope.name(), file)?;
                warnings.extend(other_name.map(|name| {
                    format!(
                        "the OVF names the file {}, the only one alike is called {}",
                        shown(&file.href),
                        shown(name)
                    )
                }));
                let gzip = is_gzip(file, &region, &mut warnings)?;
                let file = &OvfFile { gzip, ..file.clone() };
                if !manifests.is_empty() && !digests.iter().any(|d| is_of(d, &region)) {
                    warnings.push(format!("the manifest has no digest of {}", shown(&file.href)));
                }
                compare_stored_size(file, &region, &mut warnings);
                // No disk unpacks to more than its own size and tables.
                let capacity = disk.capacity.filter(|capacity| *capacity > 0).unwrap_or(u64::MAX);
                let image = open_file(file, &region, &beside, (limits, capacity), &mut scratch_left, scratch)?;
                compare_capacity(disk, &file.href, &image, &mut warnings);
                SourceDisk { member: file.href.clone(), image }
            }
        };
        warnings.extend(opened.image.warnings());
        disks.push(opened);
    }
    warnings.extend(ovf.warnings.iter().cloned());
    Ok(Source {
        is_whole: true,
        format: format.to_owned(),
        hardware: ovf.hardware.clone().map(|hardware| by_member(hardware, &ovf)),
        machines: ovf.machines.iter().map(|machine| machine_by_member(machine.clone(), &ovf)).collect(),
        disks,
        digests,
        warnings,
        options: ovf.options.iter().map(OvfOption::from).collect(),
        members: members.all.iter().map(|m| (m.name.to_owned(), m.region.len())).collect(),
    })
}

/// Whether a digest is one of this file, or of a chunk of it.
fn is_of(digest: &Expected, region: &Region) -> bool {
    let name = digest.region.name();
    name == region.name() || is_chunk(name) && stem(name) == region.name()
}

/// The digests still to be verified. The envelope's own is verified here, before anything in it is trusted.
fn read_manifests(
    manifests: &[&Region],
    envelope: &Region,
    members: &Members,
    warnings: &mut Vec<String>,
) -> Result<Vec<Expected>, Error> {
    let mut digests: Vec<Expected> = Vec::new();
    for manifest in manifests {
        let bytes = read_text(manifest, manifest::MAX_BYTES)?;
        let (expected, odd) = manifest::expected(manifest.name(), &bytes, |name| members.digested(name))?;
        warnings.extend(odd);
        // Manifests that say the same demand it once.
        let is_known = |one: &Expected, known: &[Expected]| {
            known
                .iter()
                .any(|k| k.region.is_same(&one.region) && (k.algorithm, &k.digest) == (one.algorithm, &one.digest))
        };
        for one in expected {
            if !is_known(&one, &digests) {
                digests.push(one);
            }
        }
    }
    let (of_envelope, digests): (Vec<_>, Vec<_>) =
        digests.into_iter().partition(|d| d.region.name() == envelope.name());
    if envelope.len() <= MAX_BYTES as u64 {
        manifest::verify(&of_envelope, &manifest::Control::default())?;
    }
    Ok(digests)
}

/// Whether a file is a gzip: as the OVF says, unless the file shows clearly that somebody packed or unpacked it.
fn is_gzip(file: &OvfFile, region: &Region, warnings: &mut Vec<String>) -> Result<bool, Error> {
    let (head, tail) = detect::ends(region)?;
    let content = detect::detect(region.name(), &head, &tail).ok();
    let href = shown(&file.href);
    if file.gzip && content.is_some_and(Content::is_image) {
        warnings.push(format!("the OVF says that the file {href} is a gzip, it is not packed"));
        return Ok(false);
    }
    let is_named_so = extension(&file.href).eq_ignore_ascii_case("gz");
    if !file.gzip && is_named_so && content == Some(Content::Packed(Packing::Gzip)) {
        warnings.push(format!("the OVF does not say that the file {href} is a gzip, it is one"));
        return Ok(true);
    }
    Ok(file.gzip)
}

fn open_file(
    file: &OvfFile,
    region: &Region,
    members: &[(&str, &Region)],
    (limits, capacity): (&Limits, u64),
    scratch_left: &mut u64,
    scratch: &mut Scratch,
) -> Result<Image, Error> {
    let inflated;
    let (name, region) = if file.gzip {
        let length = limits.max_virtual_size.min(capacity).saturating_add(METADATA_BYTES);
        let bounds = gzip::Bounds { length, stored: *scratch_left };
        let (whole, stored) = gzip::inflate(region, scratch()?, bounds)?;
        *scratch_left -= stored;
        inflated = whole;
        (file.href.strip_suffix(".gz").unwrap_or(&file.href), &inflated)
    } else {
        (file.href.as_str(), region)
    };
    let content = detect::detect_region(region)?;
    // Some exporters give disks names without an extension; there the content alone decides.
    let extension = extension(name).to_ascii_lowercase();
    if EXTENSIONS.contains(&extension.as_str()) {
        let (head, _) = detect::ends(region)?;
        detect::check_extension(name, content, &head).map_err(|e| Error { file: region.name().to_owned(), ..e })?;
    }
    open_disk(region, name, content, members, limits)
}

fn blank_disk(envelope: &str, disk: &OvfDisk, limits: &Limits) -> Result<SourceDisk, Error> {
    let size = disk.capacity.unwrap_or(0).next_multiple_of(512);
    check_size(envelope, size, limits)?;
    Ok(SourceDisk { member: disk.id.clone(), image: blank(size, "blank") })
}

/// Warns where the OVF states another size of a file than it has. Exporters disagree whether that of a compressed file is
/// the one before or after.
fn compare_stored_size(file: &OvfFile, region: &Region, warnings: &mut Vec<String>) {
    if let Some(size) = file.size.filter(|size| *size > 0 && !file.gzip && *size != region.len()) {
        let (name, len) = (shown(&file.href), region.len());
        warnings.push(format!("the OVF gives the file {name} a size of {size} bytes, it has {len}"));
    }
}

/// Warns where the capacity is not the disk's size, which is what counts: some exporters write the file's size there.
fn compare_capacity(disk: &OvfDisk, href: &str, image: &Image, warnings: &mut Vec<String>) {
    let size = image.virtual_size();
    if let Some(capacity) = disk.capacity.filter(|capacity| *capacity != size) {
        warnings.push(format!("the OVF gives {} a capacity of {capacity} bytes, the disk has {size}", shown(href)));
    }
}

/// Controllers name their disks by the OVF's ids; from here on disks are known by their members.
fn by_member(mut hardware: Hardware, ovf: &Ovf) -> Hardware {
    for controller in &mut hardware.disk_controllers {
        controller.disks = controller.disks.iter().map(|id| member_of(id, ovf)).collect();
    }
    hardware
}

fn machine_by_member(mut machine: Machine, ovf: &Ovf) -> Machine {
    for disk in &mut machine.disks {
        disk.file = member_of(&disk.file, ovf);
    }
    machine
}

fn member_of(id: &str, ovf: &Ovf) -> String {
    let file = ovf.disks.iter().find(|d| d.id == id).and_then(|d| d.file);
    file.map_or_else(|| id.to_owned(), |index| ovf.files[index].href.clone())
}
