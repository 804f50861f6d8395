// SPDX-License-Identifier: Apache-2.0
//! The script that makes a machine of Proxmox VE and imports its disks.
//!
//! Options: qm(1) of Proxmox VE 8, `qm create`; `import-from` takes absolute paths from root alone.

use super::guest::{Guest, label};
use super::shell::{begin, command, word};
use crate::conversion::machine::{DiskBus, Firmware};

/// Disks that Proxmox gives a machine on each bus.
const SATA_PORTS: usize = 6;
const VIRTIO_DISKS: usize = 16;
const SCSI_DISKS: usize = 31;

/// The least memory that qm takes, in MiB.
const LEAST_MEMORY: u64 = 16;

pub(super) fn script(guest: &Guest<'_>, file: &str) -> String {
    let (slots, lost) = slots(guest);
    let usage = [
        format!("To use it, as root on a Proxmox VE host that sees this directory: sh {file} VMID STORAGE [BRIDGE]"),
        "It makes a machine, which it does not start, and copies the disks into STORAGE.".to_owned(),
    ];
    let mut text = begin(&guest.head(&usage, &lost));
    text.push_str("[ $# -ge 2 ] || { echo \"usage: sh $0 VMID STORAGE [BRIDGE]\" >&2; exit 2; }\n");
    text.push_str("id=${1:?VMID} storage=${2:?STORAGE} bridge=${3:-vmbr0}\n");
    // The names of disks may hold a comma, which separates the options of a disk.
    text.push_str("links=$(mktemp -d)\ntrap 'rm -rf \"$links\"' EXIT\n");
    for (n, (disk, _)) in guest.disks.iter().zip(&slots).enumerate().filter(|(_, (_, slot))| slot.is_some()) {
        let link = format!("disk-{n}.{}", disk.report.format.as_str());
        text.extend(["ln -s \"$here\"/", &word(&disk.report.file), " \"$links\"/", &link, "\n"]);
    }
    text.push_str(&command(&words(guest, &slots)));
    text
}

fn words(guest: &Guest<'_>, slots: &[Option<String>]) -> Vec<String> {
    let mut words: Vec<String> = ["qm", "create", "\"$id\""].map(str::to_owned).into();
    let mut add = |option: &str, value: String| words.extend([format!("--{option}"), value]);
    add("name", word(&label(&guest.name, 63)));
    add("memory", guest.memory_mib.max(LEAST_MEMORY).to_string());
    add("sockets", guest.sockets.to_string());
    add("cores", guest.cores.to_string());
    add("cpu", "host".to_owned());
    add("machine", "q35".to_owned());
    add("ostype", os_type(guest).to_owned());
    match guest.firmware {
        Firmware::Bios => add("bios", "seabios".to_owned()),
        Firmware::Efi => {
            add("bios", "ovmf".to_owned());
            let keys = u8::from(guest.secure_boot);
            add("efidisk0", format!("\"$storage\":0,efitype=4m,pre-enrolled-keys={keys}"));
        }
    }
    if guest.tpm {
        add("tpmstate0", "\"$storage\":0,version=v2.0".to_owned());
    }
    if let Some(uuid) = guest.uuid {
        add("smbios1", format!("uuid={uuid}"));
    }
    if guest.is_windows {
        add("localtime", "1".to_owned());
    }
    add("tablet", "1".to_owned());
    if slots.iter().flatten().any(|slot| slot.starts_with("scsi")) {
        add("scsihw", "virtio-scsi-pci".to_owned());
    }
    for (n, (disk, slot)) in guest.disks.iter().zip(slots).enumerate() {
        let Some(slot) = slot else { continue };
        let link = format!("disk-{n}.{}", disk.report.format.as_str());
        add(slot, format!("\"$storage\":0,import-from=\"$links\"/{link}"));
    }
    let boot: Vec<&str> = guest.boot_disks().into_iter().filter_map(|n| slots[n].as_deref()).collect();
    add("boot", word(&format!("order={}", boot.join(";"))));
    for (n, card) in guest.cards.iter().enumerate() {
        let mac = card.mac.as_ref().map(|mac| format!("={}", mac.to_ascii_uppercase())).unwrap_or_default();
        let link = if card.connected { "" } else { ",link_down=1" };
        add(&format!("net{n}"), format!("{}{mac},bridge=\"$bridge\"{link}", card.device.as_str()));
    }
    add("description", word(&description(guest)));
    words
}

/// The slot of each disk, `None` where there is no more, and what did not find its own.
///
/// What is too many for its bus goes to virtio SCSI, which has most slots, then wherever there is one.
fn slots(guest: &Guest<'_>) -> (Vec<Option<String>>, Vec<String>) {
    let mut sata = free("sata", SATA_PORTS);
    let mut virtio = free("virtio", VIRTIO_DISKS);
    let mut scsi = free("scsi", SCSI_DISKS);
    let own = guest.disks.iter().map(|disk| match disk.machine.bus {
        DiskBus::Sata => sata.next(),
        DiskBus::Virtio => virtio.next(),
        DiskBus::VirtioScsi => scsi.next(),
    });
    let mut slots: Vec<Option<String>> = own.collect();
    let moved = slots.iter().filter(|slot| slot.is_none()).count();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = scsi.next().or_else(|| virtio.next()).or_else(|| sata.next());
    }
    let left_out = slots.iter().filter(|slot| slot.is_none()).count();
    let mut lost = Vec::new();
    if moved > left_out {
        lost.push("Proxmox has no more ports of the disks' bus: the last ones are on another".to_owned());
    }
    if left_out > 0 {
        lost.push(format!("a machine of Proxmox has no more ports: the last disks ({left_out}) are left out"));
    }
    (slots, lost)
}

/// The slots of a bus.
fn free(bus: &'static str, most: usize) -> impl Iterator<Item = String> {
    (0..most).map(move |n| format!("{bus}{n}"))
}

/// Proxmox's words for systems (qm(1), `ostype`).
fn os_type(guest: &Guest<'_>) -> &'static str {
    let Some(name) = guest.system.map(|name| name.to_ascii_lowercase().replace([' ', '_'], "")) else {
        return "other";
    };
    if !guest.is_windows {
        let others = ["darwin", "solaris", "freebsd", "openbsd", "netbsd", "dos", "os2", "netware"];
        return if others.iter().any(|other| name.contains(other)) { "other" } else { "l26" };
    }
    let known = WINDOWS.iter().find(|(words, _)| words.iter().any(|word| name.contains(word)));
    known.map_or("win10", |(_, os_type)| os_type)
}

/// Parts of the names of Windows and Proxmox's word for it, the first that fits. VMware calls Server 2022
/// `windows2019srvNext`, Server 2016 `windows9Server64`.
const WINDOWS: [(&[&str], &str); 7] = [
    (&["windows11", "win11", "2022", "2025", "2019srvnext"], "win11"),
    (&["windows8", "win8", "2012"], "win8"),
    (&["windows7", "win7", "2008"], "win7"),
    (&["vista", "longhorn"], "w2k8"),
    (&["2003", "winnet"], "w2k3"),
    (&["xp"], "wxp"),
    (&["2000"], "w2k"),
];

fn description(guest: &Guest<'_>) -> String {
    let annotation = guest.annotation.map(|text| format!("\n{text}")).unwrap_or_default();
    format!("{} from {}{annotation}", guest.name, guest.source)
}
