// SPDX-License-Identifier: Apache-2.0
//! What a descriptor took in, and whether that is all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::scan::Name;
use super::{Elsewhere, File, TakenBack, Verdict};
use crate::conversion::{Failure, Reason};
use crate::disk::descriptor::StatedSize;

/// How many names a message lists at most.
const SHOWN: usize = 10;

/// How long to wait for a source that was converted by itself and is gone: a new copy that has begun is seen before its
/// OVF has settled.
const COMES_AGAIN: Duration = Duration::from_secs(15);

/// What a descriptor took in.
#[derive(Debug, Default)]
pub(super) struct Artifact {
    /// Members that are there, without the primary.
    pub present: BTreeSet<Name>,
    /// Required members that are missing, with the size that is stated of each.
    pub missing: BTreeMap<String, Option<StatedSize>>,
    /// Required members that another descriptor has already: its primary, by the member's name.
    pub taken: BTreeMap<String, Name>,
    /// Files that have the name of a required member, but not the stated size.
    pub unfit: BTreeMap<Name, Unfit>,
    /// Required members that fit these primaries (this one among them) equally well.
    pub contested: BTreeMap<Name, Vec<Name>>,
}

/// A file that has the name of a member and not its size. Sizes in bytes.
#[derive(Debug)]
pub(super) struct Unfit {
    pub found: u64,
    pub stated: u64,
    /// The descriptor that states the size.
    pub stated_by: Name,
}

/// Where the members are that aren't in the queue directory.
#[derive(Default)]
struct Sought {
    /// Members that are nowhere, with what is known of another file of the name.
    awaited: BTreeMap<String, Option<String>>,
    taken_back: Vec<TakenBack>,
    /// Why one of the members will never come.
    lost: Option<String>,
    /// Whether one of the members is on its way back.
    is_coming: bool,
}

impl Artifact {
    /// Decides about the artifact of `primary`; as [`super::group`] otherwise.
    pub(super) fn judge(
        &self,
        primary: &Name,
        files: &BTreeMap<Name, File>,
        elsewhere: impl Fn(&Name, &str, Option<StatedSize>) -> Option<Elsewhere>,
        now: Duration,
        timeout: Duration,
        decided: &mut impl FnMut(Verdict),
    ) {
        let primary = primary.clone();
        let sought = self.seek(&primary, elsewhere, decided);
        let present = self.present.iter().filter(|name| **name != primary).cloned();
        let members: Vec<_> = std::iter::once(primary.clone()).chain(present).collect();
        let is_unsettled = |name: &&Name| !files.get(*name).is_some_and(|file| file.is_stable);
        let contested = self.contested.iter().flat_map(|(name, rivals)| rivals.iter().chain([name]));
        let unsettled: BTreeSet<_> = members.iter().chain(contested).filter(is_unsettled).cloned().collect();
        if !unsettled.is_empty() {
            return decided(Verdict::Settling { primary, unsettled: unsettled.into_iter().collect() });
        }
        let fail = |members, message| {
            let failure = Failure::new(Reason::MissingMember, message);
            Verdict::Incomplete { primary: primary.clone(), members, failure }
        };
        if let Some((name, rivals)) = self.contested.first_key_value() {
            let rivals = rivals.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" and ");
            let message = format!(
                "{primary}: {name} is named by {rivals} and fits them equally, so nobody can tell whose it is: drop the \
                 files of one machine when those of the other are converted"
            );
            // Contested members go with the artifact that fails first, so that none is taken for a machine of its own.
            let all: BTreeSet<_> = self.present.iter().chain(self.contested.keys()).cloned().collect();
            return decided(fail(std::iter::once(primary.clone()).chain(all).collect(), message));
        }
        // Every arrival restarts the timeout: the disks of one machine are copied one after the other.
        let seen = members.iter().chain(self.unfit.keys()).filter_map(|name| files.get(name));
        let last = seen.map(|file| file.last_change).max().unwrap_or(now);
        if let Some(why) = &sought.lost {
            let until = last + timeout.min(COMES_AGAIN);
            let missing = sought.awaited.into_keys().collect();
            let wait = Verdict::Waiting { primary: primary.clone(), missing, until };
            decided(if now < until { wait } else { fail(members, format!("{primary}: {why}")) });
        } else if !sought.awaited.is_empty() {
            let until = last + timeout;
            if now < until {
                let missing = sought.awaited.into_keys().collect();
                decided(Verdict::Waiting { primary, missing, until });
            } else {
                let message = format!("{primary}: {}", self.describe(&sought.awaited, timeout));
                decided(fail(members, message));
            }
        } else if !sought.is_coming {
            decided(Verdict::Ready { primary, members, taken_back: sought.taken_back });
        }
    }

    /// Looks for the members that aren't there, and recalls those that were claimed alone.
    fn seek(
        &self,
        primary: &Name,
        elsewhere: impl Fn(&Name, &str, Option<StatedSize>) -> Option<Elsewhere>,
        decided: &mut impl FnMut(Verdict),
    ) -> Sought {
        let mut sought = Sought::default();
        for name in self.taken.keys().cloned().chain(self.unfit.keys().map(|name| name.as_ref().to_owned())) {
            sought.awaited.insert(name, None);
        }
        for (name, stated) in &self.missing {
            match elsewhere(primary, name, *stated) {
                Some(Elsewhere::Alone(id)) => {
                    sought.is_coming = true;
                    decided(Verdict::Recall { primary: primary.clone(), member: name.clone(), id });
                }
                Some(Elsewhere::Ending) => sought.is_coming = true,
                Some(Elsewhere::Ended(taken_back)) => sought.taken_back.push(*taken_back),
                Some(Elsewhere::Lost(why)) => sought.lost = Some(why),
                Some(Elsewhere::Another(bytes)) => {
                    let stated = stated.map_or(0, StatedSize::bytes);
                    let known = format!(
                        "one of {} bytes was converted by itself, {} are stated",
                        with_commas(bytes),
                        with_commas(stated)
                    );
                    sought.awaited.insert(name.clone(), Some(known));
                }
                Some(Elsewhere::Disproved) => {
                    let known = "one that was converted by itself has another digest than the manifest states";
                    sought.awaited.insert(name.clone(), Some(known.to_owned()));
                }
                None => {
                    sought.awaited.insert(name.clone(), None);
                }
            }
        }
        sought
    }

    fn describe(&self, awaited: &BTreeMap<String, Option<String>>, timeout: Duration) -> String {
        let mut sentences = Vec::new();
        let missing: Vec<_> = awaited.iter().filter(|(name, _)| !self.unfit.contains_key(name.as_str())).collect();
        if !missing.is_empty() {
            let named = missing.iter().take(SHOWN).map(|(name, known)| match (self.taken.get(*name), known) {
                (Some(owner), _) => format!("{name} (which belongs to {owner})"),
                (None, Some(known)) => format!("{name} ({known})"),
                (None, None) => (*name).clone(),
            });
            let named = named.collect::<Vec<_>>().join(", ");
            let more = missing.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            sentences.push(format!("{named}{more} did not come within {} s", timeout.as_secs()));
        }
        sentences.extend(self.unfit.iter().take(SHOWN).map(|(name, unfit)| {
            format!(
                "{name} is there with {} bytes, {} says {}: it belongs to another machine or is incomplete",
                with_commas(unfit.found),
                unfit.stated_by,
                with_commas(unfit.stated)
            )
        }));
        sentences.join("; ")
    }
}

/// `1,234,567`.
pub(super) fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
