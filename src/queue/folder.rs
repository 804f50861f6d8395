// SPDX-License-Identifier: Apache-2.0
//! A folder of the queue directory is one machine: what lies in it, and what is to be done with it.
//!
//! Its files are named by their paths from the queue directory, `web01/Virtual Hard Disks/web01.vhdx`. Within the folder
//! a descriptor names them by their base names, wherever they lie.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::companions::{File, Verdict};
use super::identity::FILE as VOLUME_FILE;
use super::scan::{self, Entry, Kind, Name, Refusal, Refused};
use crate::conversion::Failure;
use crate::conversion::contract::MAX_MEMBERS;
use crate::disk::descriptor::hyperv;

/// Most entries of a folder: the largest split disk, and as many other files.
pub const MAX_ENTRIES: usize = 2 * MAX_MEMBERS;

/// Extensions of Hyper-V's changes of a disk: without them the disk is not what the guest saw last.
const CHANGES: [&str; 2] = ["avhd", "avhdx"];

/// Most files with settings of a machine that a folder's claim holds.
const MAX_SETTINGS: usize = 16;

/// What lies in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Its regular files, hidden ones too, in the order of their paths.
    pub files: Vec<Entry>,
    /// Paths of the folders in it, in their order.
    pub folders: Vec<String>,
    /// The entry because of which it is not taken.
    pub fault: Option<Refused>,
    /// The path of a file that is an upload under way by its name or its place, or what is left of one.
    pub upload: Option<String>,
}

impl Content {
    /// Records why the folder is not taken; the first reason stays.
    fn refuse(&mut self, name: &str, inode: u64, refusal: Refusal) {
        self.fault.get_or_insert(Refused { name: name.to_owned(), inode, refusal });
    }
}

/// Lists the folder `name` of `dir` and the folders in it, without opening or following anything.
pub fn list(dir: &Path, name: &str) -> io::Result<Content> {
    let mut content = Content::default();
    list_into(&mut content, dir, name)?;
    for folder in content.folders.clone() {
        match list_into(&mut content, dir, &folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    content.files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    content.folders.sort_unstable();
    let named = content.files.iter().find(|file| scan::is_of_upload(&file.name));
    content.upload = named.map(|file| file.name.as_ref().to_owned()).or(content.upload);
    if content.files.len() + content.folders.len() > MAX_ENTRIES {
        content.refuse(name, 0, Refusal::Crowded);
        content.files.clear();
    }
    if let Some(part) = part_of_bundle(&content.files) {
        content.refuse(&part.name.clone(), part.inode, Refusal::Bundle);
    }
    if let Some(twin) = twin(&content.files) {
        content.refuse(&twin.name.clone(), twin.inode, Refusal::Twin);
    }
    Ok(content)
}

/// Adds what lies in `path`, which is the folder itself or a folder in it.
fn list_into(content: &mut Content, dir: &Path, path: &str) -> io::Result<()> {
    let is_top = !path.contains('/');
    for entry in fs::read_dir(dir.join(path))?.take(MAX_ENTRIES + 1) {
        let entry = entry?;
        let found = match entry.metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let name = entry.file_name();
        let Some(plain) = name.to_str() else {
            let shown = format!("{path}/{}", name.to_string_lossy());
            content.refuse(&shown, 0, Refusal::Name);
            continue;
        };
        let entry = Entry::of(&format!("{path}/{plain}"), &found);
        match entry.kind {
            Kind::Regular => {
                if plain == VOLUME_FILE {
                    content.refuse(path, 0, Refusal::Queue);
                }
                if CHANGES.contains(&scan::extension(plain).as_str()) {
                    content.refuse(&entry.name, entry.inode, Refusal::Checkpoint);
                }
                content.files.push(entry);
            }
            Kind::Directory if plain.starts_with('.') => {
                if content.upload.is_none() {
                    content.upload = upload_in(dir, &entry.name)?;
                }
            }
            Kind::Directory if scan::is_of_system(plain) => {}
            Kind::Directory if is_top => content.folders.push(entry.name.as_ref().to_owned()),
            Kind::Directory if is_empty(&dir.join(entry.name.as_ref()))? => {}
            Kind::Directory => content.refuse(&entry.name, entry.inode, Refusal::Deep),
            kind => content.refuse(&entry.name, entry.inode, Refusal::of_kind(kind)),
        }
    }
    Ok(())
}

/// A file in the hidden folder `path` that is to become a disk: rsync (`--temp-dir`, `--partial-dir`, `--delay-updates`) and
/// others keep there what is not whole.
fn upload_in(dir: &Path, path: &str) -> io::Result<Option<String>> {
    let is_of_rsync = scan::base(path).starts_with(".rsync") || scan::base(path) == ".~tmp~";
    let entries = match fs::read_dir(dir.join(path)) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => return Ok(None),
        Err(e) => return Err(e),
    };
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_upload = is_of_rsync || scan::is_candidate_name(&name) || scan::is_of_upload(&name);
        if is_upload && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            return Ok(Some(format!("{path}/{name}")));
        }
    }
    Ok(None)
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// A disk that has the base name of another one.
fn twin(files: &[Entry]) -> Option<&Entry> {
    let mut names = std::collections::HashSet::new();
    files.iter().find(|file| scan::is_candidate_name(&file.name) && !names.insert(scan::base(&file.name)))
}

/// One of several files of a Parallels disk: `vm.hdd.0.{GUID}.hds` has the number of a part, and the GUID of a snapshot.
/// By themselves they would be taken for disks.
fn part_of_bundle(files: &[Entry]) -> Option<&Entry> {
    let mut disks = std::collections::HashSet::new();
    files.iter().find(|file| {
        let disk = file.name.strip_suffix(".hds").and_then(|name| name.rsplit_once(".{")).map(|(disk, _)| disk);
        let disk = disk.map(|disk| disk.rsplit_once('.').map_or(disk, |(disk, _)| disk));
        disk.is_some_and(|disk| !disks.insert(disk))
    })
}

/// How long a folder must stand still before it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// As long as a file that settles: an OVF says what the machine has, and all of it is there.
    Looks,
    /// Longer: a manifest, or another file that the OVF may have, can follow.
    Optional,
    /// For the quiet period, unless the folder was renamed here: nothing says that no file is to follow.
    Quiet,
}

/// What is to be done with a folder whose files have all arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is claimed, when it has rested. All names are base names.
    Take {
        primary: Name,
        /// All members, the primary first.
        members: Vec<Name>,
        /// The members that are disks by themselves, where there are several and no OVF.
        disks: Vec<Name>,
        /// Why it fails without an attempt.
        failure: Option<Failure>,
        rest: Rest,
    },
    /// What the primary names may come until then; nothing where the primary waits for its descriptor.
    Wait { primary: Name, missing: Vec<String>, until: Duration },
    /// Some file is not complete.
    Settle,
    /// It is not taken, and when it has been quiet that is reported.
    Refuse(Refusal),
}

/// Decides about a folder, of whose files (by their base names) the grouping said this.
#[must_use]
pub fn decide(verdicts: Vec<Verdict>, files: &BTreeMap<Name, File>) -> Decision {
    if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Settling { .. } | Verdict::Recall { .. })) {
        return Decision::Settle;
    }
    let waiting = verdicts.iter().filter_map(|verdict| match verdict {
        Verdict::Waiting { primary, missing, until } => Some((until, primary, missing)),
        _ => None,
    });
    if let Some((until, primary, missing)) = waiting.min() {
        return Decision::Wait { primary: primary.clone(), missing: missing.clone(), until: *until };
    }
    let mut decided = verdicts.into_iter().filter_map(|verdict| match verdict {
        Verdict::Ready { primary, members, .. } => Some((primary, members, None)),
        Verdict::Incomplete { primary, members, failure } => Some((primary, members, Some(failure))),
        _ => None,
    });
    let Some((primary, mut members, failure)) = decided.next() else { return Decision::Refuse(Refusal::NoDisk) };
    if matches!(scan::extension(&primary).as_str(), "vhd" | "vhdx") {
        // Hyper-V's settings describe the machine.
        let settings = files.keys().filter(|name| hyperv::is_settings(name) && !members.contains(name));
        let settings: Vec<_> = settings.take(MAX_SETTINGS).cloned().collect();
        members.extend(settings);
    }
    let others: Vec<_> = decided.collect();
    if others.is_empty() {
        let rest = rest(&primary, files);
        return Decision::Take { primary, members, disks: Vec::new(), failure, rest };
    }
    let is_machine = |name: &str| matches!(scan::extension(name).as_str(), "ovf" | "ova");
    let is_disk = |name: &Name, failure: &Option<Failure>| failure.is_none() && !is_machine(name);
    // One machine that lacks a disk, beside disks that it does not name.
    let all = || std::iter::once((&primary, &failure)).chain(others.iter().map(|(name, _, failure)| (name, failure)));
    if all().filter(|(name, failure)| !is_disk(name, failure)).count() == 1
        && let Some((lacks, Some(failure))) = all().find(|(name, failure)| is_machine(name) && failure.is_some())
    {
        let beside: Vec<_> = all().filter(|(name, _)| *name != lacks).map(|(name, _)| name.as_ref()).take(8).collect();
        let mut failure = failure.clone();
        let _ = write!(failure.message, "; beside it is what nothing names: {}", beside.join(", "));
        let primary = lacks.clone();
        let of_all = std::iter::once(members).chain(others.into_iter().map(|(_, members, _)| members)).flatten();
        let mut members = vec![primary.clone()];
        members.extend(of_all.filter(|name| *name != primary));
        let rest = rest(&primary, files);
        return Decision::Take { primary, members, disks: Vec::new(), failure: Some(failure), rest };
    }
    if !is_disk(&primary, &failure) || !others.iter().all(|(name, _, failure)| is_disk(name, failure)) {
        return Decision::Refuse(Refusal::Several);
    }
    let disks = std::iter::once(&primary).chain(others.iter().map(|(name, ..)| name)).cloned().collect();
    members.extend(others.into_iter().flat_map(|(_, members, _)| members));
    Decision::Take { primary, members, disks, failure: None, rest: Rest::Quiet }
}

fn rest(primary: &Name, files: &BTreeMap<Name, File>) -> Rest {
    if scan::extension(primary) != "ovf" {
        return Rest::Quiet;
    }
    let named = files.get(primary).map(|file| &file.references);
    let optional = || named.into_iter().flat_map(|references| &references.optional);
    let is_there = |name: &String| files.contains_key(name.as_str());
    // There may be one for the OVF, or one for each disk.
    let is_manifest = |name: &&String| scan::extension(name) == "mf";
    let has_manifest = !optional().any(|name| is_manifest(&name)) || optional().filter(is_manifest).any(is_there);
    // Few exporters sign a manifest.
    let has_rest = optional().filter(|name| !is_manifest(name) && scan::extension(name) != "cert").all(is_there);
    if has_manifest && has_rest { Rest::Looks } else { Rest::Optional }
}

#[cfg(test)]
mod tests;
