// SPDX-License-Identifier: Apache-2.0
//! Which file belongs to which descriptor: to the one that names it and states its size.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::scan::{self, Name};
use super::artifact::{Artifact, Unfit};
use super::beside::Disks;
use super::{File, is_ovf};
use crate::disk::descriptor::StatedSize;
use crate::disk::descriptor::ovf::chunk_name;

/// Which file belongs to which primary.
#[derive(Debug, Default)]
pub(super) struct Owners {
    of: BTreeMap<Name, Name>,
    artifacts: BTreeMap<Name, Artifact>,
}

/// How a file's size compares with the stated one; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// Larger than stated: the file belongs to another machine.
    Long,
    /// Smaller than stated: the file belongs to another machine, or is an upload that may go on.
    Short,
    /// Nothing speaks against it.
    Possible,
    Exact,
}

/// A descriptor that names a file.
#[derive(Debug)]
struct Bid {
    primary: Name,
    /// The member of the primary's artifact that names the file.
    descriptor: Name,
    is_required: bool,
    stated: Option<StatedSize>,
    fit: Fit,
}

impl Bid {
    /// The order by which the best of several bids is chosen.
    fn rank(&self) -> (Fit, bool) {
        (self.fit, self.is_required)
    }
}

impl Owners {
    /// Gives every descriptor among `files` what it names.
    pub(super) fn find(files: &BTreeMap<Name, File>, now: Duration, limit: Duration) -> Self {
        let mut owners = Self::default();
        // OVFs first: a VMDK descriptor that one of them names is a member, not a primary.
        let ovfs: Vec<Name> = files.keys().filter(|name| is_ovf(name)).cloned().collect();
        owners.take_in(&ovfs, files);
        let roots = owners.lone_descriptors(files);
        owners.take_in(&roots, files);
        owners.take_in_from_beside(files);
        owners.hold_for_unread_ovfs(files, now, limit);
        owners
    }

    pub(super) fn is_member(&self, name: &str) -> bool {
        self.of.contains_key(name)
    }

    pub(super) fn artifact(&self, primary: &str) -> Option<&Artifact> {
        self.artifacts.get(primary)
    }

    /// VMDK descriptors that are primaries: no OVF and no other descriptor names them. Of descriptors that name each
    /// other, the first is a primary.
    fn lone_descriptors(&self, files: &BTreeMap<Name, File>) -> Vec<Name> {
        let mut roots = Vec::new();
        let mut named: BTreeSet<&str> = BTreeSet::new();
        for (name, file) in files.iter().filter(|(name, file)| !is_ovf(name) && !file.references.is_empty()) {
            if self.is_member(name) || named.contains(name.as_ref()) {
                continue;
            }
            roots.push(name.clone());
            let mut unread = vec![file];
            while let Some(descriptor) = unread.pop() {
                for (name, _, stated) in references(descriptor, files) {
                    let fits = |(_, file): &(&Name, &File)| fit(file, stated) >= Fit::Possible;
                    if let Some((name, found)) = files.get_key_value(name.as_ref()).filter(fits)
                        && named.insert(name)
                    {
                        unread.push(found);
                    }
                }
            }
        }
        roots
    }

    /// Gives each of `primaries` what it names, and then what that names. All primaries at once, so that a file goes to
    /// the one that it fits best, whichever came first.
    fn take_in(&mut self, primaries: &[Name], files: &BTreeMap<Name, File>) {
        for primary in primaries {
            self.artifacts.entry(primary.clone()).or_default();
        }
        let mut unread: Vec<(Name, Name)> = primaries.iter().map(|name| (name.clone(), name.clone())).collect();
        while !unread.is_empty() {
            let mut bids: BTreeMap<Name, Vec<Bid>> = BTreeMap::new();
            for (primary, descriptor) in unread.drain(..) {
                self.bid(&primary, &descriptor, files, &mut bids);
            }
            for (name, bids) in bids {
                if let Some(owner) = self.award(&name, &bids, &files[&name]) {
                    unread.push((owner, name));
                }
            }
        }
    }

    /// Collects what `descriptor`, a member of the artifact of `primary`, names and nobody has.
    fn bid(
        &mut self,
        primary: &Name,
        descriptor: &Name,
        files: &BTreeMap<Name, File>,
        bids: &mut BTreeMap<Name, Vec<Bid>>,
    ) {
        for (name, is_required, stated) in files.get(descriptor).into_iter().flat_map(|file| references(file, files)) {
            let name = name.as_ref();
            if name == primary.as_ref() || self.of.get(name) == Some(primary) {
                continue;
            }
            let of_itself = self.artifacts.get_key_value(name).map(|(name, _)| name);
            let owner = self.of.get(name).or(of_itself).cloned();
            let artifact = self.artifacts.entry(primary.clone()).or_default();
            match (owner, files.get_key_value(name)) {
                (Some(owner), _) if is_required => {
                    artifact.taken.insert(name.to_owned(), owner);
                }
                (None, Some((name, file))) if !file.not_of.contains(primary) => {
                    let (primary, descriptor) = (primary.clone(), descriptor.clone());
                    let bid = Bid { primary, descriptor, is_required, stated, fit: fit(file, stated) };
                    let of_name = bids.entry(name.clone()).or_default();
                    match of_name.iter_mut().find(|other| other.primary == bid.primary) {
                        Some(other) if other.rank() < bid.rank() => *other = bid,
                        Some(_) => {}
                        None => of_name.push(bid),
                    }
                }
                (None, _) if is_required => {
                    artifact.missing.insert(name.to_owned(), stated);
                }
                _ => {}
            }
        }
    }

    /// Gives a file to the descriptor that it fits best. A file that is shorter than stated is kept for that
    /// descriptor, and becomes a member when the rest has come. Returns whose member it is now.
    fn award(&mut self, name: &Name, bids: &[Bid], file: &File) -> Option<Name> {
        let best = bids.iter().map(Bid::rank).max()?;
        let mut winners = bids.iter().filter(|bid| bid.rank() == best);
        let winner = winners.next()?;
        let is_contested = best == (best.0, true) && best.0 >= Fit::Possible && winners.next().is_some();
        for bid in bids.iter().filter(|bid| bid.is_required) {
            let is_winner = bid.rank() == best && (is_contested || bid.primary == winner.primary);
            let artifact = self.artifacts.entry(bid.primary.clone()).or_default();
            match bid.stated {
                Some(stated) if bid.fit < Fit::Possible => {
                    let (found, stated_by) = (file.size, bid.descriptor.clone());
                    artifact.unfit.insert(name.clone(), Unfit { found, stated: stated.bytes(), stated_by });
                }
                _ if is_winner && is_contested => {
                    let rivals = bids.iter().filter(|other| other.rank() == best).map(|other| other.primary.clone());
                    artifact.contested.insert(name.clone(), rivals.collect());
                }
                _ if is_winner => {}
                _ => {
                    artifact.taken.insert(name.as_ref().to_owned(), winner.primary.clone());
                }
            }
        }
        if best.0 >= Fit::Possible {
            self.of.insert(name.clone(), winner.primary.clone());
            self.artifacts.entry(winner.primary.clone()).or_default().present.insert(name.clone());
            return Some(winner.primary.clone());
        }
        if best == (Fit::Short, true) {
            self.of.insert(name.clone(), winner.primary.clone());
        }
        None
    }

    /// Gives every disk what lies beside it and nobody has.
    fn take_in_from_beside(&mut self, files: &BTreeMap<Name, File>) {
        let disks = Disks::among(files);
        for name in files.keys().filter(|name| !self.of.contains_key(*name)).cloned().collect::<Vec<_>>() {
            let Some(disk) = disks.beside(&name) else { continue };
            let primary = self.of.get(disk).unwrap_or(disk).clone();
            self.of.insert(name.clone(), primary.clone());
            self.artifacts.entry(primary).or_default().present.insert(name);
        }
    }

    /// An OVF that is still arriving may not name its disks yet. Until it does, but not for ever, disks that are called
    /// like it are kept with it.
    fn hold_for_unread_ovfs(&mut self, files: &BTreeMap<Name, File>, now: Duration, limit: Duration) {
        let unread = files.iter().filter(|(name, file)| {
            is_ovf(name) && !file.is_stable && file.references.is_empty() && now < file.first_sight + limit
        });
        for (ovf, _) in unread {
            let stem = crate::files::names::split(ovf).0;
            for name in files.keys().filter(|name| is_called_like(name, stem)) {
                if scan::is_candidate_name(name) && !self.is_member(name) && !self.artifacts.contains_key(name) {
                    self.of.insert(name.clone(), ovf.clone());
                }
            }
        }
    }
}

/// What a descriptor names, by the names that the files here have; whether it must be there, and what is stated of its
/// size.
fn references<'a>(
    descriptor: &'a File,
    files: &'a BTreeMap<Name, File>,
) -> Vec<(Cow<'a, str>, bool, Option<StatedSize>)> {
    let references = descriptor.references.as_ref();
    let mut named: Vec<(Cow<'a, str>, bool, Option<StatedSize>)> = Vec::new();
    let required = references.required.iter().map(|name| (name, true));
    let optional = references.optional.iter().map(|name| (name, false));
    for (name, is_required) in required.chain(optional) {
        let found = references.spellings(name).find(|spelling| files.contains_key(*spelling));
        match found {
            // All its chunks are called like the file that somebody joined.
            Some(found) if named.last().is_some_and(|(last, ..)| last == found) => {}
            None if is_required && files.contains_key(chunk_name(name, 0).as_str()) => {
                named.extend(chunks(name, references.sizes.get(name).copied(), files));
            }
            _ => {
                let name = found.unwrap_or(name);
                named.push((name.into(), is_required, references.sizes.get(name).copied()));
            }
        }
    }
    named
}

/// The chunks of the file `name` that are here, and, while they are not all of it, the next.
fn chunks<'a>(
    name: &str,
    stated: Option<StatedSize>,
    files: &'a BTreeMap<Name, File>,
) -> impl Iterator<Item = (Cow<'a, str>, bool, Option<StatedSize>)> + use<'a> {
    let chunk = |number: usize| files.get_key_value(chunk_name(name, number as u64).as_str());
    let mut found: Vec<Cow<'a, str>> = Vec::new();
    let mut bytes = 0u64;
    while let Some((name, file)) = chunk(found.len()) {
        bytes = bytes.saturating_add(file.size);
        found.push(Cow::Borrowed(name.as_ref()));
    }
    if stated.is_some_and(|stated| bytes < stated.bytes()) {
        found.push(Cow::Owned(chunk_name(name, found.len() as u64)));
    }
    found.into_iter().map(|name| (name, true, None))
}

/// A file that still grows is shorter than it will be.
fn fit(file: &File, stated: Option<StatedSize>) -> Fit {
    let Some(stated) = stated else { return Fit::Possible };
    match file.size.cmp(&stated.bytes()) {
        std::cmp::Ordering::Equal => Fit::Exact,
        std::cmp::Ordering::Less if file.is_stable => Fit::Short,
        std::cmp::Ordering::Less => Fit::Possible,
        std::cmp::Ordering::Greater if matches!(stated, StatedSize::AtLeast(_)) => Fit::Possible,
        std::cmp::Ordering::Greater => Fit::Long,
    }
}

/// `vm-disk1.vmdk`, `vm_1.vmdk` and `vm.vmdk` are called like `vm.ovf`.
fn is_called_like(name: &str, stem: &str) -> bool {
    name.get(..stem.len()).is_some_and(|start| start.eq_ignore_ascii_case(stem))
        && name[stem.len()..].starts_with(['-', '_', '.'])
        && !is_ovf(name)
}
