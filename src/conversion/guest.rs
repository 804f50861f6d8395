// SPDX-License-Identifier: Apache-2.0
//! What an inspection found out about a guest: its disks, its system, and whether that boots from virtio.
//!
//! Texts come from the guest: cleaned of control characters and cut to [`MAX_TEXT`] characters, but never escaped for a
//! format. Lists have [`MAX_LIST`] elements at most.

pub mod boot;
pub mod fix;
pub mod need;
pub mod outcome;
pub mod report;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr};

/// Most characters of a text that a guest gave.
pub const MAX_TEXT: usize = 256;
/// Most elements of a list.
pub const MAX_LIST: usize = 128;

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Guest {
    pub family: Family,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OperatingSystem>,
    /// In the order of the source.
    pub disks: Vec<GuestDisk>,
    /// Partitions, logical volumes and whole disks, with what each holds.
    pub volumes: Vec<Volume>,
    /// Name of the volume that holds the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// btrfs: the subvolume that holds the system, where it is not the one that is mounted by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_subvolume: Option<String>,
    /// Further volumes that hold a system each; they were not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_roots: Vec<String>,
    pub firmware: Firmware,
    pub kernels: Vec<Kernel>,
    /// Lines of fstab and crypttab that name a device.
    pub mounts: Vec<Mount>,
    /// Places in the boot loaders' files that say where the root is.
    pub boot: Vec<BootRoot>,
    pub network: Vec<NetworkBinding>,
    /// Whether LVM knows its disks by a file (`/etc/lvm/devices/system.devices`), which may name them by serial number.
    pub lvm_devices_file: bool,
    /// Tools of another hypervisor that are installed: `open-vm-tools`, `VirtualBox Guest Additions`.
    pub tools: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Windows>,
    pub virtio: Virtio,
    /// What must be changed, the most urgent first.
    pub fixes: Vec<Fix>,
    /// What could not be found out, and why.
    pub doubts: Vec<Doubt>,
}

/// A family of operating systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "lowercase")]
pub enum Family {
    Linux,
    Windows,
    /// No system was found: a data disk, an encrypted one, or one that cannot be read.
    #[default]
    Unknown,
}

/// The operating system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OperatingSystem {
    /// `debian`, `rhel`, `windows`.
    pub id: String,
    /// For a person: `Debian GNU/Linux 12 (bookworm)`.
    pub name: String,
    /// `12`, `10.0.20348`.
    pub version: String,
    /// As the kernel names it: `x86_64`, `aarch64`, `i386`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
}

/// One disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestDisk {
    /// Name of the source's member.
    pub member: String,
    pub size_bytes: u64,
    pub table: PartitionTable,
    pub partitions: Vec<Partition>,
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "lowercase")]
pub enum PartitionTable {
    Gpt,
    Mbr,
    /// No table: the disk is empty, or one volume.
    #[default]
    None,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Partition {
    /// As Linux counts them: logical ones from 5.
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
    /// GPT: the type's GUID, in lower case. MBR: two hexadecimal digits.
    pub kind: String,
    /// GPT: the partition's own GUID. MBR: the disk's signature and the number, as in PARTUUID.
    pub uuid: String,
    /// MBR: marked as active.
    pub active: bool,
}

/// Something with a content of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// `disk 0`, `disk 0 partition 1`, `vg/lv`, `md/0` (a mirror, read through one of its members).
    pub name: String,
    pub size_bytes: u64,
    /// `ext4`, `xfs`, `btrfs`, `ntfs`, `vfat`, `iso9660`, `swap`, `swsuspend` (a system that sleeps), `lvm2`, `luks`, `bitlocker`, `mdraid`, others by name.
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What else is known of a content that is only named: `LUKS 2`, `RAID 5 of 3 disks, md 1.2`, `boots by BIOS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Whether it was not unmounted; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty: Option<bool>,
}

/// What the machine can be started by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Firmware {
    pub bios: Answer,
    pub efi: Answer,
    /// Whether the EFI system partition has `\EFI\BOOT\BOOTX64.EFI` (or another architecture's), which starts without
    /// NVRAM.
    pub fallback_loader: Answer,
    /// Loaders on the EFI system partition, by path.
    pub loaders: Vec<String>,
}

/// An answer that may not be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "lowercase")]
pub enum Answer {
    Yes,
    No,
    #[default]
    Unknown,
}

/// A kernel that may be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kernel {
    /// `6.1.0-18-amd64`; of a kernel without one in its name, that of its modules.
    pub version: String,
    /// Path in the guest.
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<String>,
    /// `zstd`, `xz`, `gzip` … or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// By name of the driver, with `_`.
    pub drivers: BTreeMap<String, Driver>,
}

/// Where a kernel has a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "lowercase")]
pub enum Driver {
    BuiltIn,
    /// In the initramfs: there before the root is mounted.
    Initramfs,
    /// Only on the root, which serves for the network and not for the disk.
    Root,
    Absent,
    #[default]
    Unknown,
}

/// A line of fstab or crypttab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    pub file: String,
    /// As it stands there: `UUID=…`, `/dev/sda1`.
    pub device: String,
    /// Where it is mounted, or the name of the decrypted device.
    pub target: String,
    pub naming: Naming,
    /// Name of the volume that this is, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// How a device is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "lowercase")]
pub enum Naming {
    /// By an UUID or a label of what it holds, or a logical volume: the same on every bus.
    Content,
    /// `/dev/sda1`, `hd0`: the same on a bus of the same kind, another one on virtio-blk.
    Name,
    /// `/dev/disk/by-path`, `by-id`: tied to the controller or to the disk's serial number.
    Path,
    /// No device: `tmpfs`, a network file system.
    #[default]
    Other,
}

/// A place that says where the root is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BootRoot {
    /// File and, where it has several, the entry.
    pub file: String,
    pub root: String,
    pub naming: Naming,
    /// Name of the volume that this is, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Network configuration that is bound to a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkBinding {
    pub file: String,
    /// `ifupdown`, `netplan`, `networkManager`, `ifcfg`, `networkd`, `wicked`, `udev`.
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What only Windows has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Windows {
    /// Start values of the services that matter: 0 at boot, 1 by the system, 3 on demand, 4 disabled. A missing one is
    /// not installed.
    pub services: BTreeMap<String, u32>,
    /// Those of them whose driver file is in System32\drivers.
    pub driver_files: Vec<String>,
    /// Hibernated, or shut down with fast startup: its volumes may not be written to.
    pub hibernated: Answer,
    /// Whether fast startup is on.
    pub fast_startup: Answer,
}

/// Whether the guest runs on virtio devices as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Virtio {
    /// Boots from a disk of virtio-blk.
    pub block: Answer,
    /// Boots from a disk of virtio-scsi.
    pub scsi: Answer,
    /// Has a driver for virtio-net.
    pub network: Answer,
    /// Boots from a disk of an AHCI controller, where virtio is not possible.
    pub sata: Answer,
    /// Why, a sentence each.
    pub reasons: Vec<String>,
}

/// Something to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    pub kind: FixKind,
    /// 1: it does not boot without; 2: it boots, but is not reachable or not whole; 3: it works without.
    pub need: u8,
    /// File or device.
    pub what: String,
    /// A whole sentence.
    pub why: String,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum FixKind {
    /// Add virtio's modules to an initramfs.
    InitramfsVirtio,
    /// Name a device by its content.
    DeviceNames,
    /// Remove LVM's file of known devices.
    LvmDevices,
    /// Copy a loader to `\EFI\BOOT`.
    FallbackLoader,
    /// Install a driver for Windows.
    WindowsDrivers,
    /// Shut Windows down wholly.
    Hibernation,
    /// Keep the names of network cards, or their MAC addresses.
    NetworkNames,
    /// Remove another hypervisor's tools.
    Tools,
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Doubt {
    /// Volume, file or question.
    pub what: String,
    pub why: String,
}
