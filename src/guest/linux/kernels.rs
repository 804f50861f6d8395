// SPDX-License-Identifier: Apache-2.0
//! Kernels in /boot, and where each has the drivers that matter.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::boot::ENTRIES;
use super::initramfs::{self, Initramfs, module_name};
use super::unified::{self, Unified};
use crate::conversion::guest::{Doubt, Driver, Kernel};
use crate::guest::error::{Error, Result, existing};
use crate::guest::fields::clean;
use crate::guest::tree::Tree;

/// The drivers that matter, for virtio's disks and cards, and for what else a hypervisor may offer.
pub(in crate::guest) const DRIVERS: [&str; 7] =
    ["virtio_blk", "virtio_scsi", "virtio_net", "virtio_pci", "nvme", "ahci", "sd_mod"];
/// Kernels that are looked at.
const MAX_KERNELS: usize = 16;
/// Versions with modules that are looked at.
const MAX_VERSIONS: usize = 1024;
/// Directories with kernels.
const BOOT: &str = "/boot";

/// The kernels, the newest first; what could not be read becomes a doubt.
pub(in crate::guest) fn kernels(tree: &Tree, doubts: &mut Vec<Doubt>) -> Result<Vec<Kernel>> {
    let names = tree.names(BOOT)?;
    let versions = module_versions(tree)?;
    let mut kernels: Vec<Kernel> = names.iter().filter_map(|name| kernel(name, &names, &versions)).collect();
    for directory in ENTRIES {
        let volume = directory.trim_end_matches("/loader/entries");
        for path in tree.ending(directory, ".conf")?.into_iter().take(MAX_KERNELS) {
            let Some(text) = existing(tree.text(&path))? else { continue };
            let found = entry(tree, &text, volume, &versions)?;
            kernels.extend(found.filter(|found| kernels.iter().all(|known| known.image != found.image)));
        }
    }
    let unified = add_unified(tree, &versions, &mut kernels, doubts)?;
    kernels.sort_by(|a, b| compare(&b.version, &a.version));
    if kernels.len() > MAX_KERNELS {
        doubts.push(doubt(BOOT, format!("has {} kernels; the newest {MAX_KERNELS} were looked at", kernels.len())));
        kernels.truncate(MAX_KERNELS);
    }
    let mut spent = false;
    for kernel in &mut kernels {
        match drivers(tree, kernel, unified.get(&kernel.image), spent) {
            Ok(()) => {}
            Err(error) => {
                spent |= error.is_final();
                let what = kernel.initramfs.clone().unwrap_or_else(|| kernel.image.clone());
                doubts.push(doubt(&what, error.to_string()));
            }
        }
    }
    Ok(kernels)
}

/// Adds the unified kernel images, and gives them by their paths; what is none becomes a doubt.
fn add_unified(
    tree: &Tree,
    versions: &[String],
    kernels: &mut Vec<Kernel>,
    doubts: &mut Vec<Doubt>,
) -> Result<BTreeMap<String, Unified>> {
    let mut found = BTreeMap::new();
    for path in unified::paths(tree)?.into_iter().take(MAX_KERNELS) {
        let opened = Unified::open(tree, &path).and_then(|image| Ok((image.version()?, image)));
        let (stated, image) = match opened {
            Ok(opened) => opened,
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                doubts.push(doubt(&path, error.to_string()));
                continue;
            }
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        let name = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let in_path = versions.iter().find(|version| name.contains(version.as_str())).cloned();
        let initramfs = image.has_initramfs().then(|| path.clone());
        let version = stated.or(in_path).unwrap_or_else(|| version(name, versions));
        kernels.push(Kernel { version, image: path.clone(), initramfs, ..Kernel::default() });
        found.insert(path, image);
    }
    Ok(found)
}

fn doubt(what: &str, why: String) -> Doubt {
    Doubt { what: what.to_owned(), why }
}

/// Versions that have modules.
fn module_versions(tree: &Tree) -> Result<Vec<String>> {
    let mut versions = tree.names("/lib/modules")?;
    versions.retain(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    versions.truncate(MAX_VERSIONS);
    Ok(versions)
}

/// The kernel in the file `name` of /boot, with its initramfs.
fn kernel(name: &str, names: &[String], versions: &[String]) -> Option<Kernel> {
    let prefixes = ["vmlinuz-", "vmlinux-", "kernel-", "bzImage-", "Image-"];
    let bare = ["vmlinuz", "vmlinux", "bzImage", "kernel"];
    let suffix = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).or_else(|| {
        // A bare name is a link to another kernel where there are others.
        let has_others = names.iter().any(|other| prefixes.iter().any(|prefix| other.starts_with(prefix)));
        (bare.contains(&name) && !has_others).then_some("")
    })?;
    if suffix.contains("rescue") || [".hmac", ".old", ".gz"].iter().any(|end| suffix.ends_with(end)) {
        return None;
    }
    let candidates = [
        format!("initrd.img-{suffix}"),
        format!("initramfs-{suffix}.img"),
        format!("initrd-{suffix}"),
        format!("initrd-{suffix}.img"),
        format!("initramfs-{suffix}"),
        format!("initramfs-linux-{suffix}.img"),
        "initrd.img".to_owned(),
        "initrd".to_owned(),
    ];
    let candidates = candidates.iter().take(if suffix.is_empty() { 8 } else { 6 });
    let initramfs =
        candidates.into_iter().find(|name| names.binary_search(name).is_ok()).map(|name| format!("{BOOT}/{name}"));
    Some(Kernel { version: version(suffix, versions), image: format!("{BOOT}/{name}"), initramfs, ..Kernel::default() })
}

/// The kernel of an entry of the Boot Loader Specification, whose paths count from the volume that is mounted on `volume`;
/// `None` where its file is not there.
fn entry(tree: &Tree, text: &str, volume: &str, versions: &[String]) -> Result<Option<Kernel>> {
    let values = |key: &str| -> Vec<String> {
        let pairs = text.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| format!("{volume}{}", value.trim())).collect()
    };
    let Some(image) = values("linux").pop().map(|path| clean(&path)) else { return Ok(None) };
    if !tree.exists(&image)? {
        return Ok(None);
    }
    // The last is the main one: microcode comes before it. Words may follow that name further ones.
    let mut initramfs = None;
    for path in values("initrd").iter().filter_map(|value| value.split_ascii_whitespace().next()) {
        if tree.exists(path)? {
            initramfs = Some(clean(path));
        }
    }
    let stated = text.lines().find_map(|line| line.trim().strip_prefix("version")).map(clean);
    let stated = stated.filter(|stated| versions.contains(stated));
    let in_path = versions.iter().find(|version| image.contains(version.as_str())).cloned();
    let name = image.rsplit('/').next().unwrap_or_default().trim_start_matches("vmlinuz-").to_owned();
    let version = stated.or(in_path).unwrap_or_else(|| version(&name, versions));
    Ok(Some(Kernel { version, image, initramfs, ..Kernel::default() }))
}

/// The version that the end of a kernel's name means: itself, or the modules of its flavour (`lts`), or the only ones.
fn version(suffix: &str, versions: &[String]) -> String {
    if suffix.starts_with(|c: char| c.is_ascii_digit()) {
        return suffix.to_owned();
    }
    let flavour = suffix.strip_prefix("linux-").unwrap_or(suffix);
    let of_flavour = versions.iter().filter(|version| !flavour.is_empty() && version.ends_with(flavour));
    match (of_flavour.max_by(|a, b| compare(a, b)), versions) {
        (Some(version), _) => version.clone(),
        (None, [only]) => only.clone(),
        _ => clean(suffix),
    }
}

/// Compares versions by their numbers.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| one.cmp(other))
}

/// Fills in where `kernel`, which may be `unified` with its initramfs, has its drivers. With `spent`, its initramfs is not read any more.
fn drivers(tree: &Tree, kernel: &mut Kernel, unified: Option<&Unified>, spent: bool) -> Result<()> {
    kernel.drivers = DRIVERS.iter().map(|name| ((*name).to_owned(), Driver::Unknown)).collect();
    let modules = format!("/lib/modules/{}", kernel.version);
    let builtin = existing(tree.text(&format!("{modules}/modules.builtin")))?;
    let mut known = builtin.as_deref().map(modules_in);
    let on_root = existing(tree.text(&format!("{modules}/modules.dep")))?.as_deref().map(modules_in);
    let set_builtin = |drivers: &mut BTreeMap<String, Driver>, known: &BTreeSet<String>| {
        for (name, driver) in drivers.iter_mut().filter(|(name, _)| known.contains(*name)) {
            debug_assert!(DRIVERS.contains(&name.as_str()));
            *driver = Driver::BuiltIn;
        }
    };
    if let Some(known) = &known {
        set_builtin(&mut kernel.drivers, known);
    }
    let wanted: BTreeSet<&str> =
        DRIVERS.into_iter().filter(|name| kernel.drivers.get(*name) != Some(&Driver::BuiltIn)).collect();
    let elsewhere = |name: &str| match &on_root {
        Some(on_root) if on_root.contains(name) => Driver::Root,
        Some(_) => Driver::Absent,
        None => Driver::Unknown,
    };
    // A card's driver may come from the root, whatever the initramfs has.
    if elsewhere("virtio_net") == Driver::Root && wanted.contains("virtio_net") {
        kernel.drivers.insert("virtio_net".into(), Driver::Root);
    }
    let found = match (&kernel.initramfs, unified.and_then(Unified::initramfs)) {
        (None, _) => Initramfs { builtin: None, ..Initramfs::default() },
        (Some(_), _) if spent => return Ok(()),
        (Some(_), Some(source)) => initramfs::read(source, &wanted, tree.budget())?,
        (Some(path), None) => initramfs::read(tree.find(path)?.open(), &wanted, tree.budget())?,
    };
    kernel.compression = kernel.initramfs.as_ref().map(|_| found.compression.unwrap_or("none").to_owned());
    if known.is_none()
        && let Some(text) = &found.builtin
    {
        set_builtin(&mut kernel.drivers, known.insert(modules_in(text)));
    }
    for name in &wanted {
        if kernel.drivers.get(*name) == Some(&Driver::BuiltIn) {
            continue;
        }
        let driver = if found.modules.contains(*name) {
            Driver::Initramfs
        } else if known.is_some() || elsewhere(name) == Driver::Root {
            // It is a module, and not here.
            match elsewhere(name) {
                Driver::Unknown => Driver::Absent,
                other => other,
            }
        } else {
            Driver::Unknown
        };
        kernel.drivers.insert((*name).to_owned(), driver);
    }
    if known.is_none() {
        return Err(Error::unsupported("which drivers its kernel has built in is not known: no modules.builtin"));
    }
    Ok(())
}

/// Names of the modules that the lines of modules.builtin or modules.dep begin with.
fn modules_in(text: &str) -> BTreeSet<String> {
    let paths = text.lines().map(|line| line.split(':').next().unwrap_or_default());
    paths.filter_map(|path| module_name(path.rsplit('/').next()?.as_bytes())).collect()
}
