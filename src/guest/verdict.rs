// SPDX-License-Identifier: Apache-2.0
//! Whether the guest boots from virtio, and what must be changed first: from what was found, and from nothing else.

use crate::conversion::guest::{
    Answer, Driver, Family, Fix, FixKind, Guest, Kernel, MAX_LIST, Naming, NetworkBinding, Virtio,
};

/// Fills in `virtio` and `fixes`.
pub(super) fn decide(guest: &mut Guest) {
    match guest.family {
        Family::Linux => linux(guest),
        Family::Windows => windows(guest),
        Family::Unknown => unknown(guest),
    }
    loader(guest);
    if !guest.tools.is_empty() {
        let why = "They belong to the hypervisor that is left; the guest works with them.".to_owned();
        guest.fixes.push(Fix { kind: FixKind::Tools, need: 3, what: guest.tools.join(", "), why });
    }
    guest.fixes.sort_by_key(|fix| fix.need);
    guest.fixes.truncate(MAX_LIST);
    guest.virtio.reasons.truncate(MAX_LIST);
}

fn unknown(guest: &mut Guest) {
    let closed =
        guest.volumes.iter().filter(|volume| ["luks", "bitlocker", "mdraid"].contains(&volume.content.as_str()));
    let closed: Vec<_> = closed.map(|volume| format!("{} ({})", volume.name, volume.content)).collect();
    let cd = guest.volumes.iter().find(|volume| volume.content == "iso9660");
    let reason = if let (Some(cd), true) = (cd, closed.is_empty()) {
        format!("No system was found on its disks: {} is the image of a CD, not a disk.", cd.name)
    } else if closed.is_empty() {
        "No system was found on its disks.".to_owned()
    } else {
        format!("No system was found, but there are volumes that cannot be read: {}.", closed.join(", "))
    };
    guest.virtio.reasons.push(reason);
}

/// Says no where one does, else unknown where one is, else yes.
fn all(answers: impl IntoIterator<Item = Answer>) -> Answer {
    answers.into_iter().fold(Answer::Yes, |all, answer| match (all, answer) {
        (Answer::No, _) | (_, Answer::No) => Answer::No,
        (Answer::Unknown, _) | (_, Answer::Unknown) => Answer::Unknown,
        _ => Answer::Yes,
    })
}

fn linux(guest: &mut Guest) {
    let mut virtio = Virtio::default();
    let mut fixes = Vec::new();
    match guest.kernels.first() {
        None => virtio.reasons.push("No kernel was found in /boot: its drivers are not known.".into()),
        Some(newest) => {
            virtio.block = early(newest, &["virtio_pci", "virtio_blk"], "virtio-blk", &mut virtio.reasons);
            virtio.scsi = early(newest, &["virtio_pci", "virtio_scsi", "sd_mod"], "virtio-scsi", &mut virtio.reasons);
            virtio.sata = early(newest, &["ahci", "sd_mod"], "SATA", &mut virtio.reasons);
            virtio.network = late(newest, &mut virtio.reasons);
        }
    }
    for (index, kernel) in guest.kernels.iter().enumerate() {
        if early(kernel, &["virtio_pci", "virtio_blk"], "", &mut Vec::new()) == Answer::No {
            fixes.push(initramfs(kernel, index == 0));
        }
    }
    names(guest, &mut virtio, &mut fixes);
    if guest.lvm_devices_file {
        let is_root = guest.root.as_deref().is_some_and(|root| root.contains('/'));
        fixes.push(Fix {
            kind: FixKind::LvmDevices,
            need: if is_root { 1 } else { 2 },
            what: "/etc/lvm/devices/system.devices".into(),
            why: "LVM uses only the disks that it names, and disks have another serial number on another bus.".into(),
        });
    }
    network(guest, &mut fixes);
    guest.virtio = virtio;
    guest.fixes = fixes;
}

/// Whether `kernel` can find its root on a bus that needs `drivers`.
fn early(kernel: &Kernel, drivers: &[&str], bus: &str, reasons: &mut Vec<String>) -> Answer {
    let mut answers = Vec::new();
    for name in drivers {
        answers.push(match kernel.drivers.get(*name).copied().unwrap_or_default() {
            Driver::BuiltIn | Driver::Initramfs => Answer::Yes,
            Driver::Absent | Driver::Root => {
                let place = kernel.initramfs.as_deref().unwrap_or("an initramfs, of which there is none,");
                reasons.push(format!("Not from {bus}: {place} has no {name} for kernel {}.", kernel.version));
                Answer::No
            }
            Driver::Unknown => {
                reasons.push(format!("Not known for {bus}: whether kernel {} has {name}.", kernel.version));
                Answer::Unknown
            }
        });
    }
    let answer = all(answers);
    if answer == Answer::Yes {
        reasons.push(format!(
            "Kernel {} has {} when it looks for its root on {bus}.",
            kernel.version,
            drivers.join(", ")
        ));
    }
    answer
}

/// Whether `kernel` has a driver for virtio's cards.
fn late(kernel: &Kernel, reasons: &mut Vec<String>) -> Answer {
    match kernel.drivers.get("virtio_net").copied().unwrap_or_default() {
        Driver::Absent => {
            reasons.push(format!("No virtio-net: kernel {} has no such module.", kernel.version));
            Answer::No
        }
        Driver::Unknown => Answer::Unknown,
        Driver::BuiltIn | Driver::Initramfs | Driver::Root => Answer::Yes,
    }
}

fn initramfs(kernel: &Kernel, is_newest: bool) -> Fix {
    let what = kernel.initramfs.clone().unwrap_or_else(|| kernel.image.clone());
    Fix {
        kind: FixKind::InitramfsVirtio,
        need: if is_newest { 1 } else { 2 },
        what,
        why: format!(
            "Kernel {} does not find a virtio disk without virtio_pci and virtio_blk in its initramfs.",
            kernel.version
        ),
    }
}

/// Devices by name: those of a disk on SCSI or SATA are others on virtio-blk, and the other way round.
fn names(guest: &Guest, virtio: &mut Virtio, fixes: &mut Vec<Fix>) {
    let mounts = guest.mounts.iter().map(|mount| (&mount.file, &mount.device, mount.naming, mount.target.as_str()));
    let roots = guest.boot.iter().map(|boot| (&boot.file, &boot.root, boot.naming, "/"));
    for (file, device, naming, target) in mounts.chain(roots) {
        if target == "none" || target == "swap" {
            continue;
        }
        let why = match naming {
            Naming::Name => format!("{device} has another name on another bus: name it by UUID."),
            Naming::Path => format!("{device} is tied to the controller or to a serial number: name it by UUID."),
            Naming::Content | Naming::Other => continue,
        };
        let stays_on_block = device.starts_with("/dev/vd");
        let stays_on_scsi = device.starts_with("/dev/sd");
        for (answer, bus, stays) in [
            (&mut virtio.block, "virtio-blk", stays_on_block),
            (&mut virtio.scsi, "virtio-scsi", stays_on_scsi),
            (&mut virtio.sata, "SATA", stays_on_scsi),
        ] {
            if !stays && *answer != Answer::No {
                *answer = Answer::No;
                virtio.reasons.push(format!("Not from {bus}: {file} names {device}."));
            }
        }
        fixes.push(Fix { kind: FixKind::DeviceNames, need: 1, what: file.clone(), why });
    }
}

/// Configuration by names that change with the card, or by addresses that must be kept.
fn network(guest: &Guest, fixes: &mut Vec<Fix>) {
    for NetworkBinding { file, interface, mac, .. } in &guest.network {
        let why = match (interface, mac) {
            (_, Some(mac)) => format!("It is for the card with the MAC address {mac}: give the new card the same."),
            (Some(name), None) => {
                format!("It is for the interface {name}, and the card's name may change with its place on the bus.")
            }
            (None, None) => continue,
        };
        fixes.push(Fix { kind: FixKind::NetworkNames, need: 2, what: file.clone(), why });
    }
}

fn loader(guest: &mut Guest) {
    let firmware = &guest.firmware;
    if firmware.efi == Answer::Yes && firmware.fallback_loader == Answer::No {
        guest.fixes.push(Fix {
            kind: FixKind::FallbackLoader,
            need: if firmware.bios == Answer::Yes { 2 } else { 1 },
            what: "\\EFI\\BOOT".into(),
            why: "Without NVRAM, which no image brings along, the firmware starts only a loader of this directory."
                .into(),
        });
    }
}

fn windows(guest: &mut Guest) {
    let Some(windows) = &guest.windows else {
        guest.virtio.reasons.push("It is Windows, but its registry could not be read.".into());
        return;
    };
    let mut virtio = Virtio::default();
    let mut fixes = Vec::new();
    let mut service = |names: &[&str], at_boot: bool, bus: &str| {
        let found = names.iter().find_map(|name| windows.services.get(*name).map(|start| (*name, *start)));
        let (answer, reason) = match found {
            None => (Answer::No, format!("Not from {bus}: the service {} is not installed.", names[0])),
            Some((name, start)) if start == 4 || (at_boot && start != 0) => {
                (Answer::No, format!("Not from {bus}: the service {name} has the start value {start}."))
            }
            Some((name, _)) if !windows.driver_files.iter().any(|file| file == name) => {
                (Answer::No, format!("Not from {bus}: {name}.sys is not in System32\\drivers."))
            }
            Some((name, start)) => {
                (Answer::Yes, format!("{name} is installed for {bus}, with the start value {start}."))
            }
        };
        virtio.reasons.push(reason);
        answer
    };
    let block = service(&["viostor"], true, "virtio-blk");
    let scsi = service(&["vioscsi"], true, "virtio-scsi");
    let network = service(&["netkvm"], false, "virtio-net");
    let sata = service(&["storahci", "msahci"], true, "SATA");
    (virtio.block, virtio.scsi, virtio.network, virtio.sata) = (block, scsi, network, sata);
    for (answer, driver, need) in [(block, "viostor", 1), (network, "netkvm", 2)] {
        if answer == Answer::No {
            fixes.push(Fix {
                kind: FixKind::WindowsDrivers,
                need,
                what: driver.into(),
                why: format!("Windows has no working {driver}: install virtio-win's drivers."),
            });
        }
    }
    if windows.hibernated == Answer::Yes {
        fixes.push(Fix {
            kind: FixKind::Hibernation,
            need: 1,
            what: "hiberfil.sys".into(),
            why: "Windows is hibernated, or was shut down with fast startup, and resumes with the devices that it had."
                .into(),
        });
    }
    guest.virtio = virtio;
    guest.fixes = fixes;
}
