// SPDX-License-Identifier: Apache-2.0
//! Loaders on the EFI system partition.

use super::error::Result;
use super::layout::Layout;
use super::tree::Tree;
use crate::conversion::guest::{Answer, Firmware, MAX_LIST};

/// What firmware starts where its NVRAM names nothing, by architecture.
const FALLBACKS: [&str; 4] = ["BOOTX64.EFI", "BOOTAA64.EFI", "BOOTIA32.EFI", "BOOTRISCV64.EFI"];

/// Lists the loaders into `firmware`.
pub(super) fn loaders(layout: &Layout, firmware: &mut Firmware) -> Result<()> {
    for held in layout.volumes.iter().filter(|held| held.is_esp) {
        let Some(files) = &held.files else { continue };
        firmware.fallback_loader = Answer::No;
        let tree = Tree::new(files.clone(), files.root(), &held.volume.budget);
        for vendor in tree.names("/EFI")? {
            for name in tree.names(&format!("/EFI/{vendor}"))? {
                if name.to_ascii_lowercase().ends_with(".efi") {
                    firmware.loaders.push(format!("\\EFI\\{vendor}\\{name}"));
                }
            }
        }
        let is_fallback = |name: &&str| tree.exists(&format!("/EFI/BOOT/{name}"));
        for name in &FALLBACKS {
            if is_fallback(name)? {
                firmware.fallback_loader = Answer::Yes;
            }
        }
        // Windows' loader lies a directory deeper.
        if tree.exists("/EFI/Microsoft/Boot/bootmgfw.efi")? {
            firmware.loaders.push("\\EFI\\Microsoft\\Boot\\bootmgfw.efi".into());
        }
    }
    firmware.loaders.truncate(MAX_LIST);
    Ok(())
}
