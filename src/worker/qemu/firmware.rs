// SPDX-License-Identifier: Apache-2.0
//! Where distributions put EFI's firmware for QEMU.

use std::path::{Path, PathBuf};

/// Code and an empty store of variables, of Debian, Fedora, Arch and QEMU itself. Without secure boot: that would be a
/// test of keys.
const PLACES: [[&str; 2]; 5] = [
    ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"],
    ["/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"],
    ["/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"],
    ["/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"],
    ["/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"],
];

/// The firmware's code and variables, where they are installed.
pub(super) fn efi() -> Option<[PathBuf; 2]> {
    let found = PLACES.iter().find(|pair| pair.iter().all(|file| Path::new(file).is_file()));
    found.map(|pair| pair.map(PathBuf::from))
}
