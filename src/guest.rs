// SPDX-License-Identifier: Apache-2.0
//! Looks into a guest, read-only: what system it is, whether it boots from virtio, and what must be changed first.
//!
//! Nothing is mounted and nothing is run. Bytes come from the engine's readers ([`crate::disk::view`]); every reader of a
//! guest's structures spends from one [`Limits`], because they are hostile input. What cannot be read is a doubt in the
//! result, never an error.
//!
//! ```text
//! disks ─▶ partitions ─▶ volumes (RAID 1, LVM2) ─▶ file systems ─▶ tree ─▶ facts ─▶ verdict
//! ```

mod budget;
mod disk;
mod error;
mod esp;
mod fields;
mod files;
mod iso;
mod layout;
mod linux;
mod lvm;
mod partitions;
mod probe;
mod raid;
mod roots;
mod tree;
mod verdict;
mod windows;

use std::io::Read;
use std::rc::Rc;

use self::budget::Budget;
pub use self::budget::Limits;
use self::error::{Error, Result};
pub use self::linux::initramfs::Entry as InitramfsEntry;
pub use self::windows::hive::edit as hive;
use crate::conversion::guest::{BootRoot, Doubt, Family, Guest, Mount};
use crate::disk::Image;

/// Looks into the guest on `disks`, each with the name of its member.
#[must_use]
pub fn inspect(disks: &[(&str, &Image)], limits: &Limits) -> Guest {
    let budget = Rc::new(Budget::new(limits));
    let mut guest = Guest::default();
    let layout = layout::read(disks, &budget, &mut guest);
    if let Err(error) = look(&layout, &mut guest) {
        guest.doubts.push(Doubt { what: "guest".into(), why: error.to_string() });
    }
    verdict::decide(&mut guest);
    guest.doubts.truncate(crate::conversion::guest::MAX_LIST);
    guest
}

/// An initramfs whose entries cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unlisted(String);

/// The entries of the initramfs that `source` gives, whatever its archives are packed with.
pub fn list_initramfs(source: impl Read, limits: &Limits) -> std::result::Result<Vec<InitramfsEntry>, Unlisted> {
    let budget = Rc::new(Budget::new(limits));
    linux::initramfs::list(source, &budget).map_err(|error| Unlisted(error.to_string()))
}

/// Finds the system and asks it.
fn look(layout: &layout::Layout, guest: &mut Guest) -> Result<()> {
    let loaders = esp::loaders(layout, &mut guest.firmware);
    Asked { doubts: &mut guest.doubts }.about("EFI system partition", loaders)?;
    let Some(root) = roots::find(layout, guest)? else { return Ok(()) };
    (guest.root, guest.root_subvolume) = (Some(root.volume), root.subvolume);
    guest.family = root.family;
    if root.family == Family::Linux { ask_linux(layout, root.tree, guest) } else { ask_windows(&root.tree, guest) }
}

fn ask_windows(tree: &tree::Tree, guest: &mut Guest) -> Result<()> {
    let told = windows::ask(tree)?;
    (guest.os, guest.windows, guest.tools) = (told.os, told.windows, told.tools);
    guest
        .doubts
        .extend(told.doubts.into_iter().map(|(what, error)| Doubt { what: what.into(), why: error.to_string() }));
    Ok(())
}

fn ask_linux(layout: &layout::Layout, mut tree: tree::Tree, guest: &mut Guest) -> Result<()> {
    let Guest { doubts, .. } = guest;
    let mut ask = Asked { doubts };
    guest.os = ask.about("release", linux::release::system(&tree))?;
    let architecture = ask.about("architecture", linux::release::architecture(&tree))?.flatten();
    if let Some(os) = &mut guest.os {
        os.architecture = architecture;
    }
    let fstab = ask.about("/etc/fstab", linux::tables::fstab(&tree))?.unwrap_or_default();
    roots::mount(layout, &mut tree, &fstab, ask.doubts);
    guest.mounts = ask.about("/etc/fstab", linux::tables::mounts(&tree, &fstab))?.unwrap_or_default();
    guest.boot = ask.about("boot loader", linux::boot::roots(&tree))?.unwrap_or_default();
    let disks = guest.disks.len();
    for Mount { device, volume, .. } in &mut guest.mounts {
        *volume = roots::named(layout, disks, device);
    }
    for BootRoot { root, volume, .. } in &mut guest.boot {
        *volume = roots::named(layout, disks, root);
    }
    guest.network = ask.about("network", linux::network::bindings(&tree))?.unwrap_or_default();
    guest.tools = ask.about("tools", linux::release::tools(&tree))?.unwrap_or_default();
    let devices = ask.about("LVM", tree.exists("/etc/lvm/devices/system.devices"))?;
    guest.lvm_devices_file = devices == Some(true);
    // Last, because it is the longest.
    let kernels = linux::kernels::kernels(&tree, ask.doubts);
    guest.kernels = ask.about("kernels", kernels)?.unwrap_or_default();
    Ok(())
}

/// Turns what could not be answered into doubts.
struct Asked<'a> {
    doubts: &'a mut Vec<Doubt>,
}

impl Asked<'_> {
    /// The answer, or nothing and a doubt; an error once nothing more can be read.
    fn about<T>(&mut self, what: &str, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_final() => Err(error),
            Err(Error::Missing) => Ok(None),
            Err(error) => {
                self.doubts.push(Doubt { what: what.into(), why: error.to_string() });
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests;
