// SPDX-License-Identifier: Apache-2.0
//! The files and disks of an envelope: those that the machine needs are vetted, no other is looked at.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use roxmltree::Node;

use super::options::{Others, property};
use super::parts::{OvfDisk, OvfFile, OvfOption};
use super::xml::{attribute, children, is, unit_bytes};
use super::{MAX_MEMBERS, plain_name, shown};
use crate::conversion::{Reason, Remedy};
use crate::disk::Error;

/// What an envelope lists, as far as the machine needs it.
pub(super) struct Listed {
    /// In the order of the references.
    pub files: Vec<OvfFile>,
    /// In the order of the disk section.
    pub disks: Vec<OvfDisk>,
    /// Names of the other files, as far as they are plain.
    pub extras: Vec<String>,
    pub warnings: Vec<String>,
}

/// A `File` as it is written.
struct Entry<'a> {
    node: Node<'a, 'a>,
    id: &'a str,
    href: &'a str,
}

pub(super) fn read<'a>(file: &str, envelope: Node<'a, 'a>, options: &[OvfOption]) -> Result<Listed, Error> {
    let elements = children(envelope, "References").flat_map(|references| children(references, "File"));
    let entries: Vec<Entry> = elements
        .map(|node| Entry {
            node,
            id: attribute(node, "id").unwrap_or_default(),
            href: attribute(node, "href").unwrap_or_default().trim(),
        })
        .collect();
    let mut listed = Listed { files: Vec::new(), disks: Vec::new(), extras: Vec::new(), warnings: Vec::new() };
    let disks = read_disks(file, envelope, options, &entries, &mut listed)?;
    let mut order: Vec<usize> = disks.iter().filter_map(|(_, entry)| *entry).collect();
    order.sort_unstable();
    for index in &order {
        listed.files.push(vetted(file, &entries[*index])?);
    }
    for (disk, entry) in disks {
        let place = entry.and_then(|entry| order.iter().position(|other| *other == entry));
        listed.disks.push(OvfDisk { file: place, ..disk });
    }
    if let Some(twice) =
        listed.files.iter().enumerate().find(|(n, f)| listed.files[..*n].iter().any(|o| o.href == f.href))
    {
        let message = format!("references the file {} or its id twice", shown(&twice.1.href));
        return Err(Error::refuse(Reason::Corrupt, file, message).with_remedy(Remedy::NameFilesOnce));
    }
    let is_needed = |name: &String| listed.files.iter().any(|f| f.href == *name || f.written.as_ref() == Some(name));
    let others = entries.iter().enumerate().filter(|(index, _)| order.binary_search(index).is_err());
    let names = others.filter_map(|(_, entry)| names(file, entry.href).ok());
    let mut seen = HashSet::new();
    listed.extras = names
        .flat_map(|(name, written)| std::iter::once(name).chain(written))
        .filter(|name| name != file && !is_needed(name) && seen.insert(name.clone()))
        .take(MAX_MEMBERS)
        .collect();
    Ok(listed)
}

/// The machine's disks, each with the index of its file among `entries`.
fn read_disks<'a>(
    file: &str,
    envelope: Node<'a, 'a>,
    options: &[OvfOption],
    entries: &[Entry],
    listed: &mut Listed,
) -> Result<Vec<(OvfDisk, Option<usize>)>, Error> {
    let mut disks: Vec<(OvfDisk, Option<usize>)> = Vec::new();
    let others = Others::find(envelope, options);
    let sections = envelope.children().filter(|n| is(*n, "DiskSection") || is(*n, "SharedDiskSection"));
    for element in sections.flat_map(|section| section.children()) {
        if !is(element, "Disk") && !is(element, "SharedDisk") {
            continue;
        }
        // oVirt writes the attributes of disks without a parent or a file, too, and leaves them empty.
        let said = |name| attribute(element, name).map(str::trim).filter(|value| !value.is_empty());
        let id = attribute(element, "diskId").unwrap_or_default();
        let reference = said("fileRef");
        if others.have(id, reference) {
            listed
                .warnings
                .push(format!("the disk {} belongs to another deployment option and is left out", shown(id)));
            continue;
        }
        let corrupt = |what: &str| Error::refuse(Reason::Corrupt, file, format!("its disk {} {what}", shown(id)));
        if said("parentRef").is_some() {
            let message = format!("its disk {} is a snapshot of another", shown(id));
            return Err(Error::refuse(Reason::UnsafeReference, file, message));
        }
        let entry = match reference {
            None => None,
            Some(reference) => Some(find(entries, reference).map_err(corrupt)?),
        };
        if disks.iter().any(|(other, of)| other.id == id || entry.is_some() && *of == entry) {
            return Err(corrupt("or its file is listed twice").with_remedy(Remedy::NameFilesOnce));
        }
        let capacity = capacity(element, envelope, options);
        if entry.is_none() && capacity.is_none_or(|c| c == 0) {
            return Err(corrupt(match said("capacity").and_then(property_name) {
                Some(_) => "has neither a file nor a capacity: the property that tells it has no default",
                None => "has neither a file nor a capacity",
            }));
        }
        disks.push((OvfDisk { id: id.to_owned(), file: None, capacity }, entry));
        if disks.len() > MAX_MEMBERS {
            let message = format!("describes more than {MAX_MEMBERS} disks");
            return Err(Error::refuse(Reason::UnsupportedFormat, file, message).with_remedy(Remedy::SplitOvf));
        }
    }
    Ok(disks)
}

/// The file that a disk refers to: by its id, or, as oVirt does, by its href.
fn find(entries: &[Entry], reference: &str) -> Result<usize, &'static str> {
    let by = |is: &dyn Fn(&Entry) -> bool| entries.iter().enumerate().filter(|(_, e)| is(e)).map(|(n, _)| n).collect();
    let mut found: Vec<usize> = by(&|entry| entry.id == reference);
    if found.is_empty() {
        found = by(&|entry| entry.href == reference);
    }
    match found.as_slice() {
        [] => Err("refers to a file that the OVF doesn't list"),
        [first, others @ ..] if others.iter().all(|other| entries[*other].href == entries[*first].href) => Ok(*first),
        _ => Err("refers to a file whose id is listed twice"),
    }
}

/// The file behind an entry that a disk needs.
fn vetted(file: &str, entry: &Entry) -> Result<OvfFile, Error> {
    let (href, written) = names(file, entry.href)?;
    if href == file {
        return Err(Error::refuse(Reason::Corrupt, file, "references itself as a disk's file"));
    }
    let unsupported = |what: String| Error::refuse(Reason::UnsupportedFormat, file, what);
    let said = |name| attribute(entry.node, name).map(str::trim).filter(|value| !value.is_empty());
    let gzip = match said("compression") {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("identity") => false,
        Some(word) if word.eq_ignore_ascii_case("gzip") => true,
        Some(other) => {
            return Err(unsupported(format!("its file {} has the compression {}", shown(&href), shown(other))));
        }
    };
    let chunk = match said("chunkSize").map(str::parse) {
        None => None,
        Some(Ok(bytes)) if bytes > 0 => Some(bytes),
        Some(_) => return Err(unsupported(format!("its file {} has chunks of no known size", shown(&href)))),
    };
    let size = said("size").and_then(|size| size.parse().ok());
    Ok(OvfFile { id: entry.id.to_owned(), href, written, size, gzip, chunk })
}

/// The name that an href stands for, its percent signs decoded, and the one that is written, where that is another.
///
/// # Errors
/// `UnsafeReference` where neither is the plain name of a file beside the OVF.
fn names(file: &str, href: &str) -> Result<(String, Option<String>), Error> {
    let bare = href.strip_prefix("./").unwrap_or(href);
    let written = plain_name(file, bare).map_err(|refused| {
        refused.with_remedy(if href.is_empty() {
            Remedy::ExportWithDisks
        } else if href.contains("://") || href.starts_with("file:") {
            Remedy::Download
        } else {
            Remedy::PutBesideOvf
        })
    })?;
    let decoded = percent_decode_str(&written).decode_utf8().ok().and_then(|name| plain_name(file, &name).ok());
    match decoded {
        Some(decoded) if decoded != written => Ok((decoded, Some(written))),
        _ => Ok((written, None)),
    }
}

fn capacity<'a>(disk: Node<'a, 'a>, envelope: Node<'a, 'a>, options: &[OvfOption]) -> Option<u64> {
    let written = attribute(disk, "capacity")?.trim();
    let value = property_name(written).map_or(Some(written), |name| property(envelope, name, options))?;
    let number: u64 = value.trim().parse().ok()?;
    let unit = attribute(disk, "capacityAllocationUnits").map_or(Some(1), unit_bytes)?;
    number.checked_mul(unit)
}

/// The name in `${name}`.
fn property_name(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').map(str::trim)
}
