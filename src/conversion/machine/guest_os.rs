// SPDX-License-Identifier: Apache-2.0
//! What the name of a guest system tells. Names: VMware's `VirtualMachineGuestOsIdentifier`, `VirtualBox`'s OS types,
//! oVirt's, and CIM's descriptions.

/// Whether Windows runs in the guest. VMware calls servers `winNetStandardGuest`, `winLonghorn64Guest`,
/// `windows9Server64Guest`; oVirt `windows_2019x64`; `VirtualBox` `Windows2019_64`.
pub(super) fn is_windows(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("windows") || name.starts_with("win") || name.contains("microsoft")
}

/// Parts of the names of systems that are older than AHCI.
const OLD: [&str; 17] = [
    "winxp",
    "windowsxp",
    "winnet",
    "windows2003",
    "windowsserver2003",
    "win2003",
    "win2000",
    "windows2000",
    "winnt",
    "windowsnt",
    "win98",
    "windows98",
    "win95",
    "win31",
    "other24xlinux",
    "rhel2",
    "rhel3",
];

/// Whether the system is so old that it has no driver of AHCI disks by itself: Windows before Vista, Linux 2.4.
pub(super) fn is_legacy(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace([' ', '_', '-'], "");
    OLD.iter().any(|old| name.contains(old))
}
