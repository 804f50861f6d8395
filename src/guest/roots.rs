// SPDX-License-Identifier: Apache-2.0
//! Finds the volume that holds the system, and what is mounted on it.

use super::error::{Result, existing};
use super::files::{FileSystem, Kind, Node, Shared};
use super::layout::{Held, Layout};
use super::linux::tables::Line;
use super::tree::Tree;
use crate::conversion::guest::{Doubt, Family, Guest, MAX_LIST};

/// Directories that only matter here.
const TARGETS: [&str; 7] = ["/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc", "/boot/grub2"];
/// Subvolumes of btrfs that distributions put the root into.
const SUBVOLUMES: [&str; 5] = ["", "@", "root", "@rootfs", "@root"];

/// The system's volume.
pub(super) struct Root {
    pub(super) volume: String,
    /// Where it is not the root that is mounted by default.
    pub(super) subvolume: Option<String>,
    pub(super) family: Family,
    pub(super) tree: Tree,
}

/// The volume with the system; several are a doubt, and the first is taken.
pub(super) fn find(layout: &Layout, guest: &mut Guest) -> Result<Option<Root>> {
    let mut roots = Vec::new();
    for held in &layout.volumes {
        let Some(files) = &held.files else { continue };
        match root_of(held, files) {
            Ok(root) => roots.extend(root),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => guest.doubts.push(Doubt { what: held.told.name.clone(), why: error.to_string() }),
        }
    }
    if let [first, others @ ..] = roots.as_slice()
        && !others.is_empty()
    {
        let others: Vec<_> = others.iter().map(|root| root.volume.clone()).take(MAX_LIST).collect();
        let why = format!("holds a system, but so does {}: only the first was looked at", others.join(", "));
        guest.other_roots = others;
        guest.doubts.push(Doubt { what: first.volume.clone(), why });
    }
    Ok(roots.into_iter().next())
}

/// The system on one volume.
fn root_of(held: &Held, files: &Shared) -> Result<Option<Root>> {
    let root = |family, node, subvolume: &str| {
        let tree = Tree::new(files.clone(), node, &held.volume.budget);
        let subvolume = Some(subvolume.to_owned()).filter(|name| !name.is_empty());
        Root { volume: held.told.name.clone(), subvolume, family, tree }
    };
    for name in SUBVOLUMES {
        let above = if name.is_empty() { files.root() } else { files.top() };
        let Some(node) = below(&**files, above, name)? else { continue };
        let tree = Tree::new(files.clone(), node, &held.volume.budget);
        if tree.exists("/Windows/System32/config/SYSTEM")? {
            return Ok(Some(root(Family::Windows, node, name)));
        }
        if is_linux(&tree)? {
            return Ok(Some(root(Family::Linux, node, name)));
        }
    }
    Ok(None)
}

/// Whether these are the files of a Linux system, of which /usr may lie elsewhere.
fn is_linux(tree: &Tree) -> Result<bool> {
    let release = ["/etc/os-release", "/etc/lsb-release", "/etc/redhat-release", "/etc/debian_version", "/etc/fstab"];
    for path in release {
        if tree.find(path).is_ok_and(|found| found.stat.kind == Kind::File) {
            return Ok(true);
        }
    }
    // A link that leads to another volume.
    Ok(tree.exists("/etc/passwd")? && tree.exists("/usr")?)
}

/// The directory `path` below `node`; `None` where there is none.
fn below(files: &dyn FileSystem, mut node: Node, path: &str) -> Result<Option<Node>> {
    for name in path.split('/').filter(|name| !name.is_empty()) {
        match existing(files.child(node, name.as_bytes()))? {
            Some(child) if files.stat(child)?.kind == Kind::Directory => node = child,
            _ => return Ok(None),
        }
    }
    Ok(Some(node))
}

/// Mounts what fstab says on `tree`; what cannot be found becomes a doubt.
pub(super) fn mount(layout: &Layout, tree: &mut Tree, fstab: &[Line], doubts: &mut Vec<Doubt>) {
    let mut lines: Vec<&Line> = fstab.iter().filter(|line| TARGETS.contains(&line.target.as_str())).collect();
    lines.sort_by_key(|line| line.target.len());
    for line in lines {
        let mut doubt = |why: String| doubts.push(Doubt { what: line.target.clone(), why });
        let Some(held) = layout.volumes.iter().find(|held| is_named(held, &line.device)) else {
            doubt(format!("its device {} was not found", super::fields::clean(&line.device)));
            continue;
        };
        let Some(files) = &held.files else {
            doubt(format!("its file system on {} is not read", held.told.name));
            continue;
        };
        let subvolume = line.option("subvol").unwrap_or_default();
        let above = if subvolume.is_empty() { files.root() } else { files.top() };
        match below(&**files, above, subvolume) {
            Ok(Some(node)) => tree.mount(&line.target, files.clone(), node),
            Ok(None) => doubt(format!("its subvolume {} was not found", super::fields::clean(subvolume))),
            Err(error) => doubt(error.to_string()),
        }
    }
    // Without a line, the system mounts its EFI system partition by itself, or not at all.
    if !fstab.iter().any(|line| line.target == "/boot/efi" || line.target == "/efi")
        && let Some(files) = layout.volumes.iter().find(|held| held.is_esp).and_then(|held| held.files.clone())
    {
        let node = files.root();
        tree.mount("/boot/efi", files, node);
    }
}

/// The name of the volume that `device`, a word of fstab or of a command line, names.
///
/// A path by the controller's place (`/dev/disk/by-path/…-part2`) or by a serial number tells only the partition, so it is
/// known where there is one disk.
pub(super) fn named(layout: &Layout, disks: usize, device: &str) -> Option<String> {
    let by_place = || {
        let path = device.strip_prefix("/dev/disk/").filter(|_| disks == 1)?;
        let is_place = path.starts_with("by-path/") || path.starts_with("by-id/");
        let number = path.rsplit_once("-part")?.1.parse().ok().filter(|_| is_place)?;
        layout.volumes.iter().find(|held| held.partition == Some((0, number)))
    };
    let found = layout.volumes.iter().find(|held| is_named(held, device)).or_else(by_place)?;
    Some(found.told.name.clone())
}

/// Whether `device`, a word of fstab, names this volume.
fn is_named(held: &Held, device: &str) -> bool {
    let equals = |value: &Option<String>, word: &str| {
        value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case(word.trim_matches('"')))
    };
    let after = |prefixes: [&str; 2]| prefixes.iter().find_map(|prefix| device.strip_prefix(prefix));
    if let Some(uuid) = after(["UUID=", "/dev/disk/by-uuid/"]) {
        return equals(&held.told.uuid, uuid);
    }
    if let Some(label) = after(["LABEL=", "/dev/disk/by-label/"]) {
        return equals(&held.told.label, label);
    }
    if let Some(uuid) = after(["PARTUUID=", "/dev/disk/by-partuuid/"]) {
        return held.partition_uuid.eq_ignore_ascii_case(uuid);
    }
    if let Some((disk, number)) = held.partition {
        return disk_name(device).is_some_and(|(letter, partition)| (letter, partition) == (disk, number));
    }
    // Arrays with a number have two names.
    if held.told.name.strip_prefix("md/").is_some_and(|name| device.strip_prefix("/dev/md") == Some(name)) {
        return true;
    }
    let (group, volume) = held.told.name.split_once('/').unwrap_or_default();
    let mapped = format!("/dev/mapper/{}-{}", group.replace('-', "--"), volume.replace('-', "--"));
    device == mapped || device == format!("/dev/{group}/{volume}")
}

/// `/dev/sdb2` is the second disk's second partition, as far as the order of the disks is that of their names.
fn disk_name(device: &str) -> Option<(usize, u32)> {
    let name = device.strip_prefix("/dev/")?;
    let rest = ["xvd", "sd", "hd", "vd"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let letter = rest.bytes().next().filter(u8::is_ascii_lowercase)?;
    let number = &rest[1..];
    let number = if number.is_empty() { 0 } else { number.parse().ok()? };
    Some((usize::from(letter - b'a'), number))
}
