// SPDX-License-Identifier: Apache-2.0
//! The guest's file systems: volumes activated, journals replayed, mounted as the guest mounts them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper2kvm::appliance::mounted::Mounted;
use hyper2kvm::appliance::plan::Refusal;
use hyper2kvm::conversion::guest::fix::Unfixed;
use hyper2kvm::conversion::guest::{Guest, Mount};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::machine;

/// Where the guest's root is mounted.
pub(crate) const ROOT: &str = "/guest";
/// Where file systems are mounted for their journals.
const REPLAY: &str = "/tmp";
/// Directories of the guest that matter here, when they are file systems of their own.
const TARGETS: [&str; 6] = ["/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc"];
/// Those without which what is planned could be wrong.
const NEEDED: [&str; 3] = ["/boot", "/usr", "/etc"];
/// The kind of an EFI system partition, in GPT and in MBR.
const ESP: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef"];
/// No process of udev is here, and the guest's file of known devices does not count.
const LVM_CONFIGURATION: &str =
    "activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0} global{event_activation=0}";

/// A file system of the guest that is mounted.
#[derive(Debug)]
pub(crate) struct Volume {
    /// Where the guest has it.
    target: String,
    pub(crate) device: PathBuf,
    pub(crate) content: String,
    data: Option<CString>,
}

/// The guest's devices.
#[derive(Debug)]
pub(crate) struct Devices {
    /// Names of the disks in the job's order.
    pub(crate) disks: Vec<String>,
}

impl Devices {
    /// Activates logical volumes, and replays the journals of all file systems by mounting each once: what is read from the
    /// disks afterwards is what the guest would see.
    pub(crate) fn settle(&self) {
        let mut devices: Vec<PathBuf> = Vec::new();
        for disk in &self.disks {
            let partitions = machine::partitions(disk);
            let names = partitions.iter().map(|(name, _)| name).chain(partitions.is_empty().then_some(disk));
            devices.extend(names.map(|name| Path::new("/dev").join(name)));
        }
        if devices.iter().any(|device| content(device) == Some("lvm")) {
            load("lvm");
            lvm("-ay");
            let mapped = machine::names("/dev/mapper").into_iter().filter(|name| name != "control");
            devices.extend(mapped.map(|name| Path::new("/dev/mapper").join(name)));
        }
        for device in devices {
            let Some(content) = content(&device).filter(|content| *content != "lvm") else { continue };
            load(content);
            let flags = restricted() | MountFlags::RDONLY;
            let mounted = mount(&device, REPLAY, content, flags, data(content, None).as_deref());
            if let Err(error) = mounted.and_then(|()| unmount(REPLAY, UnmountFlags::empty())) {
                eprintln!("the journal of {} is not replayed: {error}", device.display());
            }
        }
    }

    /// The device of a volume, by the name that an inspection gave it.
    pub(crate) fn of(&self, volume: &str) -> Option<PathBuf> {
        if let Some((group, name)) = volume.split_once('/') {
            let mapped = format!("{}-{}", group.replace('-', "--"), name.replace('-', "--"));
            return Some(Path::new("/dev/mapper").join(mapped));
        }
        let rest = volume.strip_prefix("disk ")?;
        let (index, number) = rest.split_once(" partition ").unwrap_or((rest, ""));
        let disk = self.disks.get(index.parse::<usize>().ok()?)?;
        if number.is_empty() {
            return Some(Path::new("/dev").join(disk));
        }
        let number: u32 = number.parse().ok()?;
        let partitions = machine::partitions(disk);
        partitions.iter().find(|(_, other)| *other == number).map(|(name, _)| Path::new("/dev").join(name))
    }

    /// Mounts the guest read-only, with what its fstab says.
    pub(crate) fn mount(&self, guest: &Guest) -> Result<(Mounted, Vec<Volume>), Refusal> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            Refusal::new(Unfixed::GuestUnsupported, format!("{what} cannot be mounted: {why}."))
        };
        let root = guest.root.as_deref().unwrap_or_default();
        let subvolume = guest.root_subvolume.as_deref();
        let root = self.volume(guest, "/", root, subvolume).ok_or_else(|| failed(root, &"it has no device"))?;
        let flags = restricted() | MountFlags::RDONLY;
        mount(&root.device, ROOT, root.content.as_str(), flags, root.data.as_deref())
            .map_err(|error| failed("/", &error))?;
        let files = Mounted::new(Path::new(ROOT)).map_err(|error| failed("/", &error))?;
        let fstab = files.text("/etc/fstab").ok().flatten().unwrap_or_default();
        let mut volumes = vec![root];
        for (target, name) in targets(guest) {
            // Where systemd mounts the EFI system partition by itself.
            let target = if target == "/boot/efi" && !files.is_directory(target) { "/efi" } else { target };
            let is_needed = NEEDED.contains(&target);
            let subvolume = subvolume_of(&fstab, target);
            let found = name.and_then(|name| self.volume(guest, target, name, subvolume));
            let mounted = match (found, files.handle(target)) {
                (None, _) => Err("what fstab names for it was not found".to_owned()),
                (_, Err(error)) => Err(error.to_string()),
                (Some(volume), Ok(handle)) => {
                    load(&volume.content);
                    let place = format!("/proc/self/fd/{}", handle.as_raw_fd());
                    mount(&volume.device, place, volume.content.as_str(), flags, volume.data.as_deref())
                        .map(|()| volume)
                        .map_err(|error| error.to_string())
                }
            };
            match mounted {
                Ok(volume) => volumes.push(volume),
                Err(why) if is_needed => return Err(failed(target, &why)),
                Err(why) => eprintln!("{target} is not mounted: {why}"),
            }
        }
        Ok((files, volumes))
    }

    fn volume(&self, guest: &Guest, target: &str, name: &str, subvolume: Option<&str>) -> Option<Volume> {
        let content = &guest.volumes.iter().find(|volume| volume.name == name)?.content;
        // One driver reads all three.
        let content = if matches!(content.as_str(), "ext2" | "ext3") { "ext4" } else { content }.to_owned();
        let device = self.of(name)?;
        Some(Volume { target: target.to_owned(), device, data: data(&content, subvolume), content })
    }
}

/// The targets of fstab that matter, those above first, each with the name of its volume; and the EFI system partition,
/// which systemd mounts by itself.
fn targets(guest: &Guest) -> Vec<(&str, Option<&str>)> {
    let lines = guest.mounts.iter().filter(|mount| mount.file == "/etc/fstab");
    let matters = |mount: &&Mount| TARGETS.contains(&mount.target.as_str());
    let mut targets: Vec<_> =
        lines.filter(matters).map(|mount| (mount.target.as_str(), mount.volume.as_deref())).collect();
    targets.sort_by_key(|(target, _)| target.len());
    targets.dedup_by_key(|(target, _)| *target);
    if !targets.iter().any(|(target, _)| matches!(*target, "/boot/efi" | "/efi")) {
        let is_esp = |name: &str| {
            let (disk, number) = name.strip_prefix("disk ")?.split_once(" partition ")?;
            let partitions = &guest.disks.get(disk.parse::<usize>().ok()?)?.partitions;
            let partition = partitions.iter().find(|partition| partition.number.to_string() == number)?;
            ESP.contains(&partition.kind.as_str()).then_some(())
        };
        let esp = guest.volumes.iter().find(|volume| volume.content == "vfat" && is_esp(&volume.name).is_some());
        targets.extend(esp.map(|esp| ("/boot/efi", Some(esp.name.as_str()))));
    }
    targets
}

/// The subvolume that a line of fstab mounts on `target`.
fn subvolume_of<'a>(fstab: &'a str, target: &str) -> Option<&'a str> {
    let mut lines = fstab.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.get(1) == Some(&target) && !words[0].starts_with('#'))?;
    line.get(3)?.split(',').find_map(|option| option.strip_prefix("subvol="))
}

/// Makes what is mounted writable.
pub(crate) fn make_writable(files: &Mounted, volumes: &[Volume]) -> Result<(), Refusal> {
    for volume in volumes {
        let failed = |why: &dyn std::fmt::Display| {
            let message = format!("{} cannot be mounted for writing: {why}.", volume.target);
            Refusal::new(Unfixed::GuestUnsupported, message)
        };
        let handle = files.handle(&volume.target).map_err(|error| failed(&error))?;
        let place = format!("/proc/self/fd/{}", handle.as_raw_fd());
        // The file system's own options stay as they are.
        mount_remount(place, restricted(), c"").map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Writes everything and unmounts the guest. Nobody may hold its files any more.
pub(crate) fn unmount_all(files: Mounted) -> io::Result<()> {
    drop(files);
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    let guest: Vec<String> = places.filter(|place| Path::new(place).starts_with(ROOT)).collect();
    for place in guest.iter().rev() {
        unmount(place.as_str(), UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// A path of mountinfo, which writes some bytes in octal: `\040`.
fn unescaped(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Deactivates logical volumes, where any are active.
pub(crate) fn deactivate() {
    if machine::names("/dev/mapper").iter().any(|name| name != "control") {
        lvm("-an");
    }
}

/// No device, no program and no privilege of the guest counts here.
fn restricted() -> MountFlags {
    MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NOATIME
}

/// The options of a file system of this kind.
fn data(content: &str, subvolume: Option<&str>) -> Option<CString> {
    match (content, subvolume) {
        // Two disks may be copies of one another.
        ("xfs", _) => Some(c"nouuid".to_owned()),
        ("btrfs", Some(subvolume)) => CString::new(format!("subvol={subvolume}")).ok(),
        _ => None,
    }
}

/// What a device holds, of the file systems with a journal and LVM, by their signatures. The inspection tells the rest, once
/// the journals are replayed.
fn content(device: &Path) -> Option<&'static str> {
    let mut head = vec![0; 68 << 10];
    let read = File::open(device).and_then(|mut file| file.read(&mut head)).ok()?;
    let has = |at: usize, sign: &[u8]| head[..read].get(at..).is_some_and(|rest| rest.starts_with(sign));
    if (0..4).any(|sector| has(sector * 512, b"LABELONE")) {
        return Some("lvm");
    }
    let signs: [(usize, &[u8], &str); 3] =
        [(1080, &[0x53, 0xEF], "ext4"), (0, b"XFSB", "xfs"), (65_600, b"_BHRfS_M", "btrfs")];
    signs.iter().find(|(at, sign, _)| has(*at, sign)).map(|(_, _, content)| *content)
}

/// Loads the modules of a file system; without them its mount fails, and says so.
fn load(group: &str) {
    if let Err(error) = machine::load(group) {
        eprintln!("cannot load the modules for {group}: {error}");
    }
}

fn lvm(activation: &str) {
    let arguments = ["vgchange", activation, "--config", LVM_CONFIGURATION];
    match Command::new("/sbin/lvm").args(arguments).env("LVM_SUPPRESS_FD_WARNINGS", "1").status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("lvm vgchange {activation}: {status}"),
        Err(error) => eprintln!("cannot run lvm: {error}"),
    }
}
