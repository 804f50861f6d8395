// SPDX-License-Identifier: Apache-2.0
//! The machine that a source describes, and the devices that its disks and cards get on KVM.
//!
//! Everything in it is a stranger's word: it is bounded and holds no control characters ([`Machine::bounded`]), and what
//! was guessed or lost is a doubt, never a failure.

mod devices;
mod guest_os;
mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::NAME_MAX;

pub use self::devices::{
    DEFAULT_CORES, DEFAULT_MEMORY_MIB, Drivers, NO_CARD, decide, doubts_beside_devices, size_is_a_guess,
};
pub use self::text::{mac_address, one_line, uuid};

/// Most machines of one source, cards of one machine, disks of one machine, and doubts of one machine.
pub const MAX_MACHINES: usize = 16;
pub const MAX_CARDS: usize = 16;
pub const MAX_DISKS: usize = 256;
pub const MAX_DOUBTS: usize = 32;

/// Longest name or model, annotation and doubt, in bytes.
pub const MAX_NAME: usize = 256;
pub const MAX_ANNOTATION: usize = 1024;
pub const MAX_DOUBT: usize = 400;

/// Most sockets, cores of a socket, and MiB of memory that are believed: more than any hypervisor sells.
const MAX_PROCESSORS: u32 = 1024;
const MAX_MEMORY_MIB: u64 = 64 << 20;

/// A machine, as far as its source tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// What describes it.
    pub described_by: Description,
    /// Its name in the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub name: Option<String>,
    /// Processor sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub sockets: Option<u32>,
    /// Cores of each socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub cores_per_socket: Option<u32>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub memory_mib: Option<u64>,
    /// What the source says, else what the disks' partition tables show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Whether secure boot is on; absent where nothing tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// Whether it has a TPM. What that holds is in no export.
    pub tpm: bool,
    /// Its UUID, as the guest sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub uuid: Option<String>,
    /// Guest system in the source's words: `ubuntu64Guest`, `Windows2019_64`; where it has none, in the guest's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub guest_os: Option<String>,
    /// What somebody noted about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub annotation: Option<String>,
    /// Its disks, the one that boots first, then by controller and address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub disks: Vec<MachineDisk>,
    /// Its network cards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub cards: Vec<Card>,
    /// What was guessed or lost, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 400)))]
    pub doubts: Vec<String>,
}

/// What describes a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Description {
    /// Nothing but its disks.
    #[default]
    Disks,
    /// An OVF envelope.
    Ovf,
    /// A VMX file beside the disk.
    Vmx,
    /// The settings of Hyper-V beside the disk.
    HyperV,
}

/// What starts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    Bios,
    Efi,
}

impl Firmware {
    /// The word in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Efi => "efi",
        }
    }
}

/// A disk of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineDisk {
    /// Base name of the output file.
    #[schemars(length(max = 255))]
    pub file: String,
    /// Kind of the controller that it was behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
    /// That controller's model in the source's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub model: Option<String>,
    /// Number of that controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller_address: Option<u32>,
    /// The disk's number behind that controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<u32>,
    /// Its place in the boot order, from 1; absent for a disk that is not started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub boot_order: Option<u32>,
    /// Bus that it gets on KVM.
    pub bus: DiskBus,
}

/// Kind of a disk controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    Ide,
    Scsi,
    Sata,
    Nvme,
    Virtio,
    VirtioScsi,
}

/// Bus of a disk on KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    #[default]
    Sata,
    Virtio,
    VirtioScsi,
}

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Card {
    /// Its address, `00:50:56:9a:12:34`; absent where the source has none that a card can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    pub mac: Option<String>,
    /// Network that it was connected with, in the source's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub network: Option<String>,
    /// Its model in the source's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub model: Option<String>,
    /// Whether its cable was plugged in.
    pub connected: bool,
    /// Model that it gets on KVM.
    pub device: CardModel,
}

impl Default for Card {
    fn default() -> Self {
        Self { mac: None, network: None, model: None, connected: true, device: CardModel::default() }
    }
}

/// Model of a network card on KVM: what QEMU, libvirt, `KubeVirt` and Proxmox all call by these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CardModel {
    E1000,
    #[default]
    E1000e,
    Pcnet,
    Rtl8139,
    Virtio,
}

impl CardModel {
    /// The word in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Pcnet => "pcnet",
            Self::Rtl8139 => "rtl8139",
            Self::Virtio => "virtio",
        }
    }
}

impl Machine {
    /// Adds a doubt, unless it is there already.
    pub fn doubt(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        if !self.doubts.contains(&sentence) {
            self.doubts.push(sentence);
        }
    }

    /// Whether the source says that Windows runs in it.
    #[must_use]
    pub fn is_windows(&self) -> bool {
        self.guest_os.as_deref().is_some_and(guest_os::is_windows)
    }

    /// Whether the source says that its system is older than the machine type `q35` and SATA disks.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.guest_os.as_deref().is_some_and(guest_os::is_legacy)
    }

    /// The machine with every text on one line and within its limit, numbers within theirs, and no more of anything
    /// than a report holds. Safe to repeat.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for (text, most) in
            [(&mut self.name, MAX_NAME), (&mut self.guest_os, MAX_NAME), (&mut self.annotation, MAX_ANNOTATION)]
        {
            *text = text.take().map(|text| one_line(&text, most)).filter(|text| !text.is_empty());
        }
        self.uuid = self.uuid.as_deref().and_then(uuid);
        self.bound_numbers();
        if self.cards.len() > MAX_CARDS {
            let lost = self.cards.len() - MAX_CARDS;
            self.cards.truncate(MAX_CARDS);
            self.doubts.insert(0, format!("it has {lost} network cards more than the {MAX_CARDS} that are kept"));
        }
        for card in &mut self.cards {
            card.mac = card.mac.as_deref().and_then(mac_address);
            for text in [&mut card.network, &mut card.model] {
                *text = text.take().map(|text| one_line(&text, MAX_NAME)).filter(|text| !text.is_empty());
            }
        }
        self.disks.retain(|disk| disk.file.len() <= NAME_MAX);
        self.disks.truncate(MAX_DISKS);
        for disk in &mut self.disks {
            disk.boot_order = disk.boot_order.filter(|order| *order > 0);
            let model = disk.model.take().map(|text| one_line(&text, MAX_NAME));
            disk.model = model.filter(|text| !text.is_empty());
        }
        self.doubts = self.doubts.iter().map(|doubt| one_line(doubt, MAX_DOUBT)).filter(|d| !d.is_empty()).collect();
        if self.doubts.len() > MAX_DOUBTS {
            let lost = self.doubts.len() - (MAX_DOUBTS - 1);
            self.doubts.truncate(MAX_DOUBTS - 1);
            self.doubts.push(format!("{lost} doubts more are not listed"));
        }
        self
    }

    /// Leaves out numbers that are not believed. One of both numbers of processors would tell another machine.
    fn bound_numbers(&mut self) {
        let is_too_many = |n: Option<u32>| n.is_some_and(|n| n > MAX_PROCESSORS);
        if is_too_many(self.sockets) || is_too_many(self.cores_per_socket) {
            (self.sockets, self.cores_per_socket) = (None, None);
            self.doubts.insert(0, "the source tells more processors than any machine has".to_owned());
        }
        if self.memory_mib.is_some_and(|mib| mib > MAX_MEMORY_MIB) {
            self.memory_mib = None;
            self.doubts.insert(0, "the source tells more memory than any machine has".to_owned());
        }
        self.sockets = self.sockets.filter(|n| *n > 0);
        self.cores_per_socket = self.cores_per_socket.filter(|n| *n > 0);
        self.memory_mib = self.memory_mib.filter(|mib| *mib > 0);
    }
}

#[cfg(test)]
mod tests;
