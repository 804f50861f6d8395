// SPDX-License-Identifier: Apache-2.0
//! What metadata.json says of the guest, and what follows from a look into it for the machine's devices and doubts.

use serde::{Deserialize, Serialize};

use super::boot::{BootReport, BootResult};
use super::fix::{Change, GuestFix, Outcome};
use super::{Answer, Doubt, Driver, Family, Firmware, Fix, FixKind, Guest, OperatingSystem, Virtio};
use crate::conversion::Reason;
use crate::conversion::machine::{CardModel, DiskBus, Drivers, MAX_DOUBT, MAX_NAME, one_line};

/// Most elements of a list of a report.
pub const MAX_REPORTED: usize = 32;
/// Most changes of a report.
const MAX_CHANGES: usize = 128;
/// Contents that can't be looked into, or that no system of a machine is in.
const CLOSED: [&str; 4] = ["luks", "bitlocker", "mdraid", "iso9660"];
/// Most doubts of one kind that a machine gets from its guest; the report has all.
const MAX_TOLD: usize = 6;

/// The guest in metadata.json: what its disks tell of it, without what is only of use to who looks into it by hand
/// (`hyper2kvm inspect --guest`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestReport {
    pub family: Family,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OperatingSystem>,
    /// Name of the volume that holds the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Further volumes that hold a system each; they were not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_roots: Vec<String>,
    /// Volumes that are encrypted, parts of an array, or images of CDs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<Closed>,
    pub firmware: Firmware,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelReport>,
    /// Tools of another hypervisor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    pub virtio: Virtio,
    /// What must be changed, the most urgent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// What could not be found out, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
    /// What became of it, where it was to be made ready for virtio.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixReport>,
    /// What was seen when its boot was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_check: Option<BootReport>,
}

/// A volume that can't be looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Closed {
    pub name: String,
    /// `luks`, `bitlocker`, `mdraid`, `iso9660`.
    pub content: String,
}

/// A kernel that may be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelReport {
    pub version: String,
    /// Path in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Whether it has `virtio_blk` when it looks for its root.
    pub virtio_before: Answer,
    /// The same after a fix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio_after: Option<Answer>,
}

/// What became of a guest that was to be made ready for virtio.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FixReport {
    /// What changed it: `native`, the appliance of this program.
    pub engine: String,
    pub engine_version: String,
    pub outcome: Outcome,
    /// Present exactly where the outcome is `unfixed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Files that were written or removed.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// What was not changed although it may matter, and why.
    #[serde(default)]
    pub left: Vec<Doubt>,
    /// What its first disk and its first card are on.
    pub bus: DiskBus,
    pub nic: CardModel,
    /// Milliseconds of the whole fix.
    pub duration_ms: u64,
}

impl GuestReport {
    /// The report of a guest that was looked into.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let kernels = guest.kernels.iter().map(|kernel| KernelReport {
            version: kernel.version.clone(),
            initrd: kernel.initramfs.clone(),
            virtio_after: None,
            virtio_before: match kernel.drivers.get("virtio_blk").copied().unwrap_or_default() {
                Driver::BuiltIn | Driver::Initramfs => Answer::Yes,
                Driver::Root | Driver::Absent => Answer::No,
                Driver::Unknown => Answer::Unknown,
            },
        });
        let closed = guest.volumes.iter().filter(|volume| CLOSED.contains(&volume.content.as_str()));
        Self {
            family: guest.family,
            os: guest.os.clone(),
            root: guest.root.clone(),
            other_roots: guest.other_roots.clone(),
            closed: closed.map(|v| Closed { name: v.name.clone(), content: v.content.clone() }).collect(),
            firmware: guest.firmware.clone(),
            kernels: kernels.collect(),
            tools: guest.tools.clone(),
            virtio: guest.virtio.clone(),
            fixes: guest.fixes.clone(),
            doubts: guest.doubts.clone(),
            fix: None,
            boot_check: None,
        }
        .bounded()
    }

    /// The report with every text on one line and within its limit, and no list longer than [`MAX_REPORTED`]. Safe to
    /// repeat.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let name = |text: &mut String| *text = one_line(text, MAX_NAME);
        let sentence = |text: &mut String| *text = one_line(text, MAX_DOUBT);
        if let Some(os) = &mut self.os {
            [&mut os.id, &mut os.name, &mut os.version].into_iter().chain(&mut os.architecture).for_each(name);
        }
        self.root.iter_mut().for_each(name);
        self.other_roots.truncate(MAX_REPORTED);
        self.other_roots.iter_mut().for_each(name);
        self.closed.truncate(MAX_REPORTED);
        self.closed.iter_mut().flat_map(|volume| [&mut volume.name, &mut volume.content]).for_each(name);
        self.firmware.loaders.truncate(MAX_REPORTED);
        self.firmware.loaders.iter_mut().for_each(name);
        self.kernels.truncate(MAX_REPORTED);
        for kernel in &mut self.kernels {
            std::iter::once(&mut kernel.version).chain(&mut kernel.initrd).for_each(name);
        }
        self.tools.truncate(MAX_REPORTED);
        self.tools.iter_mut().for_each(name);
        self.virtio.reasons.truncate(MAX_REPORTED);
        self.virtio.reasons.iter_mut().for_each(sentence);
        self.fixes.truncate(MAX_REPORTED);
        for fix in &mut self.fixes {
            name(&mut fix.what);
            sentence(&mut fix.why);
        }
        self.doubts.truncate(MAX_REPORTED);
        for doubt in &mut self.doubts {
            name(&mut doubt.what);
            sentence(&mut doubt.why);
        }
        self.fix = self.fix.map(FixReport::bounded);
        if let Some(check) = &mut self.boot_check {
            check.message.iter_mut().for_each(sentence);
            check.accelerator.iter_mut().for_each(name);
        }
        self
    }

    /// Whether it has a fix of this kind that matters.
    #[must_use]
    pub fn has(&self, kind: FixKind) -> bool {
        self.fixes.iter().any(|fix| fix.kind == kind && fix.need < 3)
    }

    /// Adds what an appliance found out in more time, and what it changed.
    pub fn take_fix(&mut self, fix: &GuestFix) {
        if self.os.is_none() {
            self.os.clone_from(&fix.os);
        }
        if self.root.is_none() {
            self.root = fix.root.as_ref().map(|root| root.volume.clone());
        }
        for kernel in &fix.kernels {
            match self.kernels.iter_mut().find(|known| known.version == kernel.version) {
                Some(known) => known.virtio_after = Some(kernel.virtio_after),
                None => self.kernels.push(KernelReport {
                    version: kernel.version.clone(),
                    initrd: Some(kernel.initramfs.clone()),
                    virtio_before: kernel.virtio_before,
                    virtio_after: Some(kernel.virtio_after),
                }),
            }
        }
    }

    fn is_fixed(&self) -> bool {
        self.fix.as_ref().is_some_and(|fix| fix.outcome == Outcome::Fixed)
    }

    /// What is known of its drivers.
    #[must_use]
    pub fn drivers(&self) -> Drivers {
        let known = |answer| match answer {
            Answer::Yes => Some(true),
            Answer::No => Some(false),
            Answer::Unknown => None,
        };
        let Virtio { block, scsi, network, .. } = self.virtio;
        let told = Drivers {
            virtio_disk: known(block),
            virtio_scsi: known(scsi),
            virtio_net: known(network),
            fix_may_help: self.fix.is_none() && self.family == Family::Linux,
        };
        match (self.is_fixed(), self.family) {
            (false, _) => told,
            // Only its own first boot installs the driver of its cards.
            (true, Family::Windows) => Drivers { virtio_disk: Some(true), ..told },
            (true, _) => Drivers { virtio_disk: Some(true), virtio_net: Some(true), ..told },
        }
    }

    /// Sentences about it for the machine: why virtio is not for it, what must be changed, what was not read.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let drivers = self.drivers();
        let starts_from_virtio = drivers.virtio_disk == Some(true) || drivers.virtio_scsi == Some(true);
        let mut sentences = Vec::new();
        if self.family != Family::Unknown && !starts_from_virtio {
            let about = |reason: &&String| reason.contains("virtio-blk") || reason.contains("SATA");
            let against = self.virtio.reasons.iter().filter(about).filter(|reason| reason.starts_with("Not "));
            add(&mut sentences, against.map(|reason| lower(reason)));
        }
        let changed: &[Change] = self.fix.as_ref().map_or(&[], |fix| &fix.changes);
        let tellable = |fix: &&Fix| {
            let is_of_virtio = matches!(
                fix.kind,
                FixKind::InitramfsVirtio | FixKind::DeviceNames | FixKind::LvmDevices | FixKind::WindowsDrivers
            );
            let is_done = changed.iter().any(|change| change.fix == fix.kind);
            fix.need < 3 && !is_done && (!is_of_virtio || starts_from_virtio)
        };
        let fixes = self.fixes.iter().filter(tellable).map(|fix| {
            let need = if fix.need == 1 { "must" } else { "may have to" };
            format!("{} {need} be changed in the guest: {}", fix.what, lower(&fix.why))
        });
        add(&mut sentences, fixes);
        let unread = self.doubts.iter().map(|doubt| format!("of the guest's {}: {}", doubt.what, lower(&doubt.why)));
        add(&mut sentences, unread);
        if let Some(fix) = &self.fix {
            let unfixed = fix.message.iter().filter(|_| fix.outcome == Outcome::Unfixed);
            add(&mut sentences, unfixed.map(|message| format!("the guest was not fixed: {}", lower(message))));
            let left = fix.left.iter().map(|left| format!("{} was left as it was: {}", left.what, lower(&left.why)));
            add(&mut sentences, left);
        }
        sentences.extend(self.boot_sentence());
        sentences
    }
}

impl GuestReport {
    /// What a boot check that did not end well says.
    #[must_use]
    pub fn boot_sentence(&self) -> Option<String> {
        let check = self.boot_check.as_ref()?;
        let what = match check.result {
            BootResult::Booted => return None,
            BootResult::NotBooting => "the guest did not boot when it was tried",
            BootResult::Unchecked => "it was not tried whether the guest boots",
        };
        Some(format!("{what}: {}", check.message.as_deref().map_or_else(String::new, lower)))
    }
}

impl FixReport {
    fn bounded(mut self) -> Self {
        for text in [&mut self.engine, &mut self.engine_version] {
            *text = one_line(text, MAX_NAME);
        }
        self.message = self.message.map(|text| one_line(&text, MAX_DOUBT));
        self.changes.truncate(MAX_CHANGES);
        for change in &mut self.changes {
            change.file = one_line(&change.file, MAX_DOUBT);
            change.backup = change.backup.take().map(|text| one_line(&text, MAX_DOUBT));
        }
        self.left.truncate(MAX_REPORTED);
        for left in &mut self.left {
            left.what = one_line(&left.what, MAX_NAME);
            left.why = one_line(&left.why, MAX_DOUBT);
        }
        self
    }
}

/// Adds as many as one kind may have, and how many more there are.
fn add(sentences: &mut Vec<String>, more: impl Iterator<Item = String>) {
    let more: Vec<_> = more.collect();
    let lost = more.len().saturating_sub(MAX_TOLD);
    sentences.extend(more.into_iter().take(MAX_TOLD));
    if lost > 0 {
        sentences.push(format!("{lost} things more of this kind are in metadata.json"));
    }
}

/// A sentence as part of another one.
fn lower(sentence: &str) -> String {
    let mut letters = sentence.trim_end_matches('.').chars();
    let starts_a_word = letters.clone().nth(1).is_some_and(char::is_lowercase);
    let first = letters.next().into_iter();
    let first = first.flat_map(|c| if starts_a_word { c.to_lowercase().collect::<Vec<_>>() } else { vec![c] });
    first.chain(letters).collect()
}

#[cfg(test)]
mod tests;
