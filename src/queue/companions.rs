// SPDX-License-Identifier: Apache-2.0
//! Which files are one artifact, and which still wait for others of it.
//!
//! An OVF and a VMDK descriptor take in what they name, also what a member among those names in turn. Every
//! candidate stands in exactly one [`Verdict`], as primary or as member.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::scan::{self, Entry, Name};
use crate::conversion::{ConversionId, Failure, Reason};
use crate::disk::descriptor::{self, References};
use crate::files::paths::is_plain_name;
use crate::files::store::{self, StoreError};

/// A file of the queue directory, as far as grouping goes. An empty file that has settled is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Whether it has stopped changing.
    pub is_stable: bool,
    /// When it was seen first.
    pub first_sight: Duration,
    /// When it last changed (or was seen first).
    pub last_change: Duration,
    /// What it names ([`read_references`]); empty for everything but descriptors.
    pub references: Arc<References>,
}

/// Where a file is that a descriptor names and that isn't in the queue directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// An unfinished conversion took it, as its only member.
    Alone(ConversionId),
    /// A conversion of it has succeeded, no longer ago than the companion timeout; what it became, for a person.
    Finished(String),
}

/// What is to be done with an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All there, all stable: to be claimed. The primary comes first, the others in the order of their names.
    Ready { primary: Name, members: Vec<Name> },
    /// These of its members still change, or nobody looks at them yet.
    Settling { primary: Name, unsettled: Vec<Name> },
    /// These of its members have not come; they may until then.
    Waiting { primary: Name, missing: Vec<String>, until: Duration },
    /// A member was taken for an artifact of its own: that conversion gives it back, the primary waits.
    Recall { primary: Name, member: String, id: ConversionId },
    /// It will never be whole: to be claimed as it is, and failed.
    Incomplete { primary: Name, members: Vec<Name>, failure: Failure },
}

/// Decides about every candidate among `files`, and tells each verdict to `decided`. `elsewhere` tells of files that
/// aren't there; `now` and the times in `files` are of one monotonic clock.
pub fn group(
    files: &BTreeMap<Name, File>,
    elsewhere: impl Fn(&str) -> Option<Elsewhere>,
    now: Duration,
    companion_timeout: Duration,
    mut decided: impl FnMut(Verdict),
) {
    let mut owners = Owners::default();
    // OVFs first: a VMDK descriptor that one of them names is a member, not a primary.
    for (name, file) in files.iter().filter(|(name, _)| is_ovf(name)) {
        owners.take_in(name, file, files);
    }
    for (name, file) in files.iter().filter(|(name, f)| !is_ovf(name) && !f.references.is_empty()) {
        if !owners.is_member(name) {
            owners.take_in(name, file, files);
        }
    }
    owners.hold_for_unread_ovfs(files, now, companion_timeout);

    for (name, file) in files.iter().filter(|(name, _)| scan::is_candidate_name(name) && !owners.is_member(name)) {
        if let Some(artifact) = owners.artifacts.get(name) {
            artifact.judge(name, files, &elsewhere, now, companion_timeout, &mut decided);
        } else if descriptor::looks_like_extent(name) {
            decided(judge_extent(name, file, now, companion_timeout));
        } else if file.is_stable {
            decided(Verdict::Ready { primary: name.clone(), members: vec![name.clone()] });
        } else {
            decided(Verdict::Settling { primary: name.clone(), unsettled: vec![name.clone()] });
        }
    }
}

/// What a descriptor took in.
#[derive(Debug, Default)]
struct Artifact {
    /// Members that are there, without the primary.
    present: BTreeSet<Name>,
    /// Required ones that are not.
    missing: BTreeSet<String>,
    /// Required ones that another descriptor has already: by name, its primary.
    taken: BTreeMap<String, Name>,
}

/// Which file belongs to which primary.
#[derive(Debug, Default)]
struct Owners {
    of: BTreeMap<Name, Name>,
    artifacts: BTreeMap<Name, Artifact>,
}

impl Owners {
    fn is_member(&self, name: &str) -> bool {
        self.of.contains_key(name)
    }

    /// Gives `primary` what it names, and what that names. The first descriptor to name a file has it.
    fn take_in(&mut self, primary: &Name, file: &File, files: &BTreeMap<Name, File>) {
        let mut artifact = Artifact::default();
        let mut unread = vec![file];
        while let Some(descriptor) = unread.pop() {
            let required = descriptor.references.required.iter().map(|name| (name, true));
            let optional = descriptor.references.optional.iter().map(|name| (name, false));
            for (name, is_required) in required.chain(optional) {
                let name = name.as_str();
                if name == primary.as_ref() || artifact.present.contains(name) {
                    continue;
                }
                let of_itself = self.artifacts.get_key_value(name).map(|(name, _)| name);
                match (self.of.get(name).or(of_itself).cloned(), files.get_key_value(name)) {
                    (Some(owner), _) if is_required => {
                        artifact.taken.insert(name.to_owned(), owner);
                    }
                    (None, Some((name, found))) if !is_ovf(name) => {
                        artifact.present.insert(name.clone());
                        self.of.insert(name.clone(), primary.clone());
                        unread.push(found);
                    }
                    (None, None) if is_required => {
                        artifact.missing.insert(name.to_owned());
                    }
                    _ => {}
                }
            }
        }
        self.artifacts.insert(primary.clone(), artifact);
    }

    /// An OVF that arrives may not tell its disks yet. Until it does, but not for ever, disks that are called like
    /// it are kept with it.
    fn hold_for_unread_ovfs(&mut self, files: &BTreeMap<Name, File>, now: Duration, limit: Duration) {
        let unread = files.iter().filter(|(name, file)| {
            is_ovf(name) && !file.is_stable && file.references.is_empty() && now < file.first_sight + limit
        });
        for (ovf, _) in unread {
            let stem = stem_of(ovf);
            for name in files.keys().filter(|name| is_called_like(name, stem)) {
                if scan::is_candidate_name(name) && !self.is_member(name) && !self.artifacts.contains_key(name) {
                    self.of.insert(name.clone(), ovf.clone());
                }
            }
        }
    }
}

impl Artifact {
    fn judge(
        &self,
        primary: &Name,
        files: &BTreeMap<Name, File>,
        elsewhere: impl Fn(&str) -> Option<Elsewhere>,
        now: Duration,
        timeout: Duration,
        decided: &mut impl FnMut(Verdict),
    ) {
        let primary = primary.clone();
        let mut finished = Vec::new();
        let mut awaited: Vec<_> = self.taken.keys().cloned().collect();
        let mut recalled = false;
        for name in &self.missing {
            match elsewhere(name) {
                Some(Elsewhere::Alone(id)) => {
                    recalled = true;
                    decided(Verdict::Recall { primary: primary.clone(), member: name.clone(), id });
                }
                Some(Elsewhere::Finished(as_whom)) => finished.push((name, as_whom)),
                None => awaited.push(name.clone()),
            }
        }
        let present: Vec<_> = self.present.iter().filter(|name| **name != primary).cloned().collect();
        let whole = || std::iter::once(primary.clone()).chain(present.iter().cloned()).collect::<Vec<_>>();
        let unsettled: Vec<_> =
            whole().into_iter().filter(|name| !files.get(name).is_some_and(|f| f.is_stable)).collect();
        if !unsettled.is_empty() {
            decided(Verdict::Settling { primary, unsettled });
        } else if let Some((name, as_whom)) = finished.first() {
            let message = format!("{primary}: {name} arrived first and was already converted by itself, {as_whom}");
            let failure = Failure::new(Reason::MissingMember, message);
            decided(Verdict::Incomplete { members: whole(), primary, failure });
        } else if !awaited.is_empty() {
            // Every arrival gives the rest new time: the disks of one machine are copied one after the other.
            let last = whole().iter().filter_map(|name| files.get(name)).map(|f| f.last_change).max();
            let until = last.unwrap_or(now) + timeout;
            if now < until {
                decided(Verdict::Waiting { primary, missing: awaited, until });
            } else {
                let failure = Failure::new(Reason::MissingMember, self.describe(&primary, &awaited, timeout));
                decided(Verdict::Incomplete { members: whole(), primary, failure });
            }
        } else if !recalled {
            decided(Verdict::Ready { members: whole(), primary });
        }
    }

    fn describe(&self, primary: &str, missing: &[String], timeout: Duration) -> String {
        let named: Vec<_> = missing
            .iter()
            .take(10)
            .map(|name| match self.taken.get(name) {
                Some(owner) => format!("{name} (which belongs to {owner})"),
                None => name.clone(),
            })
            .collect();
        let more = if missing.len() > 10 { format!(" and {} more", missing.len() - 10) } else { String::new() };
        format!("{primary}: {}{more} did not come within {} s", named.join(", "), timeout.as_secs())
    }
}

/// An extent whose descriptor hasn't come.
fn judge_extent(name: &Name, file: &File, now: Duration, timeout: Duration) -> Verdict {
    let primary = name.clone();
    let until = file.last_change + timeout;
    if !file.is_stable {
        return Verdict::Settling { unsettled: vec![primary.clone()], primary };
    }
    if now < until {
        return Verdict::Waiting { primary, missing: Vec::new(), until };
    }
    let message = format!(
        "{name}: looks like an extent of a VMDK, and no descriptor that names it came within {} s",
        timeout.as_secs()
    );
    let failure = Failure::new(Reason::MissingMember, message);
    Verdict::Incomplete { members: vec![primary.clone()], primary, failure }
}

/// Whether it pays to read what this file names: an OVF, or a `.vmdk` that is small enough for a text descriptor.
#[must_use]
pub fn may_be_descriptor(entry: &Entry) -> bool {
    match scan::extension(&entry.name).as_str() {
        "ovf" => true,
        "vmdk" => entry.size <= descriptor::MAX_BYTES as u64,
        _ => false,
    }
}

/// What the file `name` in `dir` names. A descriptor that can't be understood (it may still be growing, or it is
/// broken, and the worker will say so) names what it seems to name, as optional members: so a broken artifact stays
/// together.
pub fn read_references(dir: &Path, name: &str) -> Result<References, StoreError> {
    let opened = store::open_dir(dir)?;
    let bytes = match store::read_untrusted(opened, dir, name, descriptor::MAX_BYTES) {
        Ok(bytes) => bytes,
        // Not a descriptor, or one that the worker refuses.
        Err(StoreError::TooLong { .. }) => return Ok(References::default()),
        Err(e) => return Err(e),
    };
    Ok(references(name, &bytes))
}

fn references(name: &str, bytes: &[u8]) -> References {
    descriptor::references(name, bytes)
        .unwrap_or_else(|_| References { optional: seemingly_named(name, bytes), ..References::default() })
}

/// Plain names in the places where a descriptor has those of its files, whatever is around them.
fn seemingly_named(name: &str, bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let quoted: Vec<&str> = if is_ovf(name) {
        text.split("href=").skip(1).filter_map(in_quotes).collect()
    } else {
        let extents =
            text.lines().filter(|l| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| l.starts_with(access)));
        extents.filter_map(|line| line.split_once('"')).filter_map(|(_, rest)| rest.split('"').next()).collect()
    };
    let plain: BTreeSet<_> = quoted.into_iter().filter(|n| is_plain_name(n) && *n != name).collect();
    plain.into_iter().take(descriptor::MAX_MEMBERS).map(str::to_owned).collect()
}

fn in_quotes(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    text[1..].split_once(quote).map(|(inner, _)| inner)
}

fn is_ovf(name: &str) -> bool {
    scan::extension(name) == "ovf"
}

fn stem_of(name: &str) -> &str {
    crate::files::names::split(name).0
}

/// `vm-disk1.vmdk`, `vm_1.vmdk` and `vm.vmdk` are called like `vm.ovf`.
fn is_called_like(name: &str, stem: &str) -> bool {
    name.get(..stem.len()).is_some_and(|start| start.eq_ignore_ascii_case(stem))
        && name[stem.len()..].starts_with(['-', '_', '.'])
        && !is_ovf(name)
}

#[cfg(test)]
mod tests;
