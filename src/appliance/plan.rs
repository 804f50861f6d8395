// SPDX-License-Identifier: Apache-2.0
//! What must be changed so that a Linux guest boots from virtio: read from its files, nothing written. Plans of Windows have
//! the same form.
//!
//! ```text
//! inspection ─▶ triage ─▶ plan: initramfs · devices · lvm · network · loader ─▶ room ─▶ changes
//! ```

mod devices;
mod firmware;
mod generator;
mod initramfs;
mod network;
mod persist;

use std::collections::BTreeMap;

use super::mounted::{self, Mounted};
use super::protocol::{GuestNames, Job};
use crate::conversion::guest::fix::{FixedKernel, Unfixed};
use crate::conversion::guest::{Doubt, Family, FixKind, Guest};

/// Free bytes that a file system must keep after the changes.
const SPARE: u64 = 1 << 20;

/// Questions of an inspection whose answers a plan stands on, as doubts name them.
const FOUNDATIONS: [&str; 5] = ["guest", "/etc/fstab", "boot loader", "LVM", "kernels"];

/// A file to write or to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub fix: FixKind,
    /// Path in the guest.
    pub path: String,
    pub act: Act,
}

/// What is done with a file. What was there is kept under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// It has this content.
    Write(Vec<u8>),
    /// These bytes stand before what it has.
    Prepend(Vec<u8>),
    /// These bytes stand behind what it has.
    Append(Vec<u8>),
    /// It is a copy of another file.
    CopyOf(String),
    /// It has this content, on an NTFS: where it is new, only administrators may change it.
    Install(Vec<u8>),
    /// This content is written into the file that is there, which keeps its security and its place.
    Edit(Vec<u8>),
    Remove,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    pub changes: Vec<Planned>,
    pub left: Vec<Doubt>,
    pub kernels: Vec<FixedKernel>,
}

impl Plan {
    pub(super) fn leave(&mut self, what: &str, why: impl Into<String>) {
        self.left.push(Doubt { what: bounded(what), why: bounded(&why.into()) });
    }

    pub(super) fn change(&mut self, fix: FixKind, path: &str, act: Act) {
        self.changes.push(Planned { fix, path: path.to_owned(), act });
    }
}

/// Why nothing may be changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub reason: Unfixed,
    /// A whole sentence.
    pub message: String,
}

impl Refusal {
    pub fn new(reason: Unfixed, message: impl AsRef<str>) -> Self {
        Self { reason, message: bounded(message.as_ref()) }
    }

    pub(super) fn unsupported(message: impl AsRef<str>) -> Self {
        Self::new(Unfixed::GuestUnsupported, message)
    }
}

impl From<mounted::Error> for Refusal {
    fn from(error: mounted::Error) -> Self {
        Self::unsupported(crate::conversion::chain(&error))
    }
}

/// A text from the guest as a report may have it.
#[must_use]
pub fn bounded(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c });
    shown.take(crate::conversion::guest::MAX_TEXT).collect()
}

/// Whether the inspected disks hold a system that may be treated; `false` where they hold none.
pub fn triage(guest: &Guest) -> Result<bool, Refusal> {
    let holding = |content: &str| guest.volumes.iter().find(|volume| volume.content == content);
    if let Some(volume) = holding("swsuspend") {
        let message = format!("{} holds a system that sleeps: start it once and shut it down.", volume.name);
        return Err(Refusal::new(Unfixed::GuestHibernated, message));
    }
    match guest.family {
        Family::Linux => {}
        Family::Windows => awake(guest)?,
        Family::Unknown => return unknown(guest).map(|()| false),
    }
    if let Some(root) = guest.root.as_deref().filter(|root| root.starts_with("md/")) {
        let message = format!("{root} is a mirror (RAID 1), whose members may only be changed together.");
        return Err(Refusal::unsupported(message));
    }
    if let Some(other) = guest.other_roots.first() {
        let first = guest.root.as_deref().unwrap_or_default();
        let message = format!("{first} holds a system, but so does {other}: which one starts is not known.");
        return Err(Refusal::new(Unfixed::GuestAmbiguous, message));
    }
    Ok(true)
}

/// Whether Windows was shut down, so that its files may be changed.
fn awake(guest: &Guest) -> Result<(), Refusal> {
    use crate::conversion::guest::Answer;
    let refused = |message: &str| Err(Refusal::new(Unfixed::GuestHibernated, message));
    if guest.windows.as_ref().is_some_and(|windows| windows.hibernated == Answer::Yes) {
        return refused(
            "Windows is hibernated, or was shut down with fast startup: start it once and shut it down wholly.",
        );
    }
    let root = guest.volumes.iter().find(|volume| Some(&volume.name) == guest.root.as_ref());
    if let Some(root) = root.filter(|root| root.dirty == Some(true)) {
        let message = format!(
            "{} is marked as in use by Windows (dirty): start it once and shut it down wholly, or let chkdsk repair it.",
            root.name
        );
        return refused(&message);
    }
    Ok(())
}

fn unknown(guest: &Guest) -> Result<(), Refusal> {
    for volume in &guest.volumes {
        let reason = match volume.content.as_str() {
            "luks" | "bitlocker" => Unfixed::GuestEncrypted,
            "mdraid" => Unfixed::GuestUnsupported,
            _ => continue,
        };
        let message = format!("{} is {}, so whether a system is on it is not known.", volume.name, volume.content);
        return Err(Refusal::new(reason, message));
    }
    // What could not be read may hold a system all the same; a CD holds none that is installed.
    let is_cd = |what: &str| guest.volumes.iter().any(|volume| volume.name == what && volume.content == "iso9660");
    if let Some(doubt) = guest.doubts.iter().find(|doubt| !is_cd(&doubt.what)) {
        let message = format!("Whether a system is on {} is not known: {}.", doubt.what, doubt.why);
        return Err(Refusal::unsupported(message));
    }
    Ok(())
}

/// Plans the changes of the Linux system whose files are `files`, mounted as its fstab says.
pub fn plan(guest: &Guest, files: &Mounted, job: &Job) -> Result<Plan, Refusal> {
    if let Some(doubt) = guest.doubts.iter().find(|doubt| FOUNDATIONS.contains(&doubt.what.as_str())) {
        let message =
            format!("An answer about its {} is missing, so a plan could be wrong: {}.", doubt.what, doubt.why);
        return Err(Refusal::unsupported(message));
    }
    let mut plan = Plan::default();
    initramfs::plan(guest, files, &mut plan)?;
    devices::plan(guest, files, &mut plan)?;
    if guest.lvm_devices_file {
        plan.change(FixKind::LvmDevices, initramfs::LVM_DEVICES, Act::Remove);
    }
    if job.guest_names == GuestNames::Keep {
        network::plan(guest, files, &job.cards, &mut plan);
    }
    firmware::plan(guest, files, &mut plan);
    // What a fix of an earlier time has done already is no change.
    plan.changes.retain(|change| !is_done(change, files));
    check_room(&plan, files, job.limits.growth_bytes)?;
    Ok(plan)
}

fn is_done(change: &Planned, files: &Mounted) -> bool {
    match &change.act {
        Act::Write(content) => files.read(&change.path).is_ok_and(|before| before.as_ref() == Some(content)),
        Act::Prepend(_) | Act::Append(_) | Act::CopyOf(_) | Act::Install(_) | Act::Edit(_) | Act::Remove => false,
    }
}

/// Whether every file system has room for what is written to it; what is replaced is kept, too.
pub(super) fn check_room(plan: &Plan, files: &Mounted, most: u64) -> Result<(), Refusal> {
    let mut needs: BTreeMap<u64, (u64, u64, &str)> = BTreeMap::new();
    let mut total = 0u64;
    for Planned { path, act, .. } in &plan.changes {
        let length = |path: &str| -> Result<u64, Refusal> { Ok(files.place(path)?.length()?.unwrap_or_default()) };
        let written = match act {
            // Where a file is edited, this is the copy that is kept, and what the file grows by.
            Act::Write(content) | Act::Install(content) | Act::Edit(content) => content.len() as u64,
            Act::Prepend(more) | Act::Append(more) => length(path)?.saturating_add(more.len() as u64),
            Act::CopyOf(other) => length(other)?,
            Act::Remove => 0,
        };
        total = total.saturating_add(written);
        let (system, free) = files.room(path)?;
        let need = needs.entry(system).or_insert((0, free, path));
        // A block for the file's name and one for its end.
        need.0 = need.0.saturating_add(written).saturating_add(8 << 10);
    }
    if total > most {
        let message = format!("The changes would add {total} bytes to the guest, more than the {most} that they may.");
        return Err(Refusal::new(Unfixed::GuestNoSpace, message));
    }
    for (need, free, path) in needs.values() {
        let needed = need.saturating_add(SPARE);
        if needed > *free {
            let message = format!("The file system of {path} has {free} bytes free, and {needed} are needed.");
            return Err(Refusal::new(Unfixed::GuestNoSpace, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
