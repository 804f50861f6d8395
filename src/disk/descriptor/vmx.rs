// SPDX-License-Identifier: Apache-2.0
//! VMX files: the machine that VMware runs a disk in, one `key = "value"` a line.
//!
//! The format is nowhere specified; keys are those that Workstation and ESXi write. Nothing that it names is opened.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::MAX_BYTES;
use crate::conversion::file_name::{folded, stem};
use crate::conversion::machine::{Card, Controller, Description, Firmware, Machine, MachineDisk, mac_address, uuid};
use crate::disk::text;

/// Most lines that are read; machines have some 200.
const MAX_LINES: usize = 10_000;

/// Cards that VMware gives a machine, and controllers of a kind.
const CARDS: usize = 10;
const CONTROLLERS: u32 = 4;

/// Most disks of a controller: VMware's paravirtual one has 64 with hardware version 21.
const UNITS: u32 = 256;

/// The machine of a VMX whose disk `member` is converted; its other disks are left out with a doubt. Texts that are no
/// VMX give a machine that says nothing.
pub(crate) fn read(bytes: &[u8], member: &str) -> Machine {
    let text = decoded(&bytes[..bytes.len().min(MAX_BYTES)]);
    let settings = Settings(text.lines().take(MAX_LINES).filter_map(setting).collect());
    let mut machine = Machine {
        described_by: Description::Vmx,
        name: settings.text("displayname"),
        memory_mib: settings.number("memsize"),
        firmware: Some(match settings.text("firmware").as_deref() {
            Some(said) if said.eq_ignore_ascii_case("efi") => Firmware::Efi,
            // It is written for EFI alone.
            _ => Firmware::Bios,
        }),
        secure_boot: settings.text("uefi.secureboot.enabled").map(|_| settings.is("uefi.secureboot.enabled")),
        tpm: settings.is("vtpm.present"),
        uuid: settings.text("uuid.bios").as_deref().and_then(uuid),
        guest_os: settings.text("guestos"),
        annotation: settings.text("annotation"),
        ..Machine::default()
    };
    add_processors(&settings, &mut machine);
    add_disk(&settings, member, &mut machine);
    machine.cards = (0..CARDS).filter_map(|n| card(&settings, n)).collect();
    add_doubts(&settings, &mut machine);
    machine.bounded()
}

/// The text in the encoding that it names, as in `.encoding = "GBK"`; else in UTF-8, what is none replaced.
fn decoded(bytes: &[u8]) -> Cow<'_, str> {
    let plain = String::from_utf8_lossy(bytes);
    let said = plain.lines().take(MAX_LINES).filter_map(setting).find(|(key, _)| key == ".encoding");
    let encoding = said.and_then(|(_, label)| text::encoding(&label)).filter(|encoding| encoding.is_ascii_compatible());
    encoding.and_then(|encoding| text::decode_as(encoding, bytes).ok()).map_or_else(|| plain.clone(), Cow::from)
}

/// Values by their keys in lower case.
struct Settings(BTreeMap<String, String>);

impl Settings {
    fn text(&self, key: &str) -> Option<String> {
        self.0.get(key).filter(|value| !value.trim().is_empty()).cloned()
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.0.get(key)?.trim().parse().ok()
    }

    fn is(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }
}

/// A line's key and value; `|22` in a value is the byte 0x22.
fn setting(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let key = key.trim().to_ascii_lowercase();
    if key.is_empty() || key.starts_with('#') {
        return None;
    }
    let value = value.trim().trim_matches('"');
    let mut plain = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('|') {
        plain.push_str(before);
        match after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                rest = &after[2..];
            }
            _ => {
                plain.push('|');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    Some((key, plain))
}

fn add_processors(settings: &Settings, machine: &mut Machine) {
    let count: u32 = settings.number("numvcpus").filter(|n| *n > 0).unwrap_or(1);
    let cores: u32 = settings.number("cpuid.corespersocket").filter(|n| *n > 0).unwrap_or(1);
    let (sockets, cores) = if count.is_multiple_of(cores) { (count / cores, cores) } else { (1, count) };
    (machine.sockets, machine.cores_per_socket) = (Some(sockets), Some(cores));
}

fn add_disk(settings: &Settings, member: &str, machine: &mut Machine) {
    let kinds =
        [("scsi", Controller::Scsi), ("sata", Controller::Sata), ("nvme", Controller::Nvme), ("ide", Controller::Ide)];
    let mut others = 0;
    let slots = kinds.into_iter().flat_map(|kind| (0..CONTROLLERS).map(move |n| (kind, n)));
    for ((word, kind), controller) in slots {
        for unit in 0..UNITS {
            let slot = format!("{word}{controller}:{unit}");
            let Some(file) = settings.text(&format!("{slot}.filename")) else { continue };
            let is_disk = settings.text(&format!("{slot}.devicetype")).is_none_or(|kind| !kind.contains("cdrom"));
            if !is_disk || !settings.is(&format!("{slot}.present")) {
                continue;
            }
            // Workstation and ESXi write a path where the disk lies elsewhere.
            let name = file.rsplit(['/', '\\']).next().unwrap_or(&file);
            let is_snapshot = is_snapshot(name, member);
            if (is_snapshot || folded(name) == folded(member)) && machine.disks.is_empty() {
                if is_snapshot {
                    machine.doubt(format!(
                        "it wrote to {name} last, a snapshot of {member}: what is in that is not in this disk; \
                         consolidate its snapshots first"
                    ));
                }
                machine.disks.push(MachineDisk {
                    file: member.to_owned(),
                    controller: Some(kind),
                    model: settings.text(&format!("{word}{controller}.virtualdev")),
                    controller_address: Some(controller),
                    address: Some(unit),
                    ..MachineDisk::default()
                });
            } else {
                others += 1;
            }
        }
    }
    if machine.disks.is_empty() {
        machine.disks.push(MachineDisk { file: member.to_owned(), ..MachineDisk::default() });
    }
    if others > 0 {
        machine.doubt(format!(
            "its VMX names further disks ({others}): each is converted by itself, attach them to this machine"
        ));
    }
}

/// Whether a disk of this name holds what was written after a snapshot of `member`: `web-000001.vmdk` of `web.vmdk`.
fn is_snapshot(name: &str, member: &str) -> bool {
    let (name, disk) = (folded(stem(name)), folded(stem(member)));
    let number = name.strip_prefix(&disk).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| number.len() == 6 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn card(settings: &Settings, n: usize) -> Option<Card> {
    let key = |name: &str| format!("ethernet{n}.{name}");
    if !settings.is(&key("present")) {
        return None;
    }
    let network = ["networkname", "vnet", "connectiontype"].iter().find_map(|name| settings.text(&key(name)));
    let mac = settings.text(&key("address")).or_else(|| settings.text(&key("generatedaddress")));
    Some(Card {
        mac: mac.as_deref().and_then(mac_address),
        network,
        model: settings.text(&key("virtualdev")),
        connected: !settings.has(&key("startconnected")) || settings.is(&key("startconnected")),
        ..Card::default()
    })
}

/// What is lost.
fn add_doubts(settings: &Settings, machine: &mut Machine) {
    let any = |word: &str, most: usize| (0..most).any(|n| settings.is(&format!("{word}{n}.present")));
    for (is_there, what) in [
        (any("serial", 4), "serial ports of the source are"),
        (any("parallel", 3), "parallel ports of the source are"),
        (any("pcipassthru", 16), "devices of the source's host are"),
        (
            settings.number("svga.numdisplays").is_some_and(|n: u32| n > 1),
            "video cards of the source but the first are",
        ),
    ] {
        if is_there {
            machine.doubt(format!("{what} not carried over"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VMX: &str = r#".encoding = "UTF-8"
displayName = "Web |2201|22"
numvcpus = "4"
cpuid.coresPerSocket = "2"
memSize = "4096"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
vtpm.present = "TRUE"
uuid.bios = "56 4d aa bb cc dd ee ff-00 11 22 33 44 55 66 77"
guestOS = "ubuntu-64"
annotation = "first|0Asecond"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "data.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/x/web.vmdk"
sata0:0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "web.iso"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.generatedAddress = "00:0c:29:aa:bb:cc"
ethernet0.startConnected = "FALSE"
ethernet1.present = "FALSE"
serial0.present = "TRUE"
"#;

    #[test]
    fn a_machine_is_read_whole() {
        let machine = read(VMX.as_bytes(), "web.vmdk");
        let expected = Machine {
            described_by: Description::Vmx,
            name: Some("Web \"01\"".to_owned()),
            sockets: Some(2),
            cores_per_socket: Some(2),
            memory_mib: Some(4096),
            firmware: Some(Firmware::Efi),
            secure_boot: Some(true),
            tpm: true,
            uuid: Some("564daabb-ccdd-eeff-0011-223344556677".to_owned()),
            guest_os: Some("ubuntu-64".to_owned()),
            annotation: Some("first second".to_owned()),
            disks: vec![MachineDisk {
                file: "web.vmdk".to_owned(),
                controller: Some(Controller::Scsi),
                model: Some("pvscsi".to_owned()),
                controller_address: Some(0),
                address: Some(1),
                ..MachineDisk::default()
            }],
            cards: vec![Card {
                mac: Some("00:0c:29:aa:bb:cc".to_owned()),
                network: Some("VM Network".to_owned()),
                model: Some("vmxnet3".to_owned()),
                connected: false,
                ..Card::default()
            }],
            doubts: vec![
                "its VMX names further disks (1): each is converted by itself, attach them to this machine".to_owned(),
                "serial ports of the source are not carried over".to_owned(),
            ],
        };
        assert_eq!(machine, expected);
        let bare = read(b"", "web.vmdk");
        assert_eq!((bare.firmware, bare.memory_mib, bare.disks.len()), (Some(Firmware::Bios), None, 1));
    }

    #[test]
    fn a_disk_that_was_written_to_behind_a_snapshot_is_a_doubt() {
        let of = |file: &str| {
            read(format!("scsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"{file}\"\n").as_bytes(), "web.vmdk")
        };
        let machine = of("/vmfs/volumes/x/web-000002.vmdk");
        assert_eq!(machine.disks[0].controller, Some(Controller::Scsi));
        let doubt = "it wrote to web-000002.vmdk last, a snapshot of web.vmdk: what is in that is not in this disk; \
                     consolidate its snapshots first";
        assert_eq!(machine.doubts, [doubt]);
        assert_eq!((of("WEB.vmdk").disks[0].controller, of("WEB.vmdk").doubts.len()), (Some(Controller::Scsi), 0));
        assert!(of("web-1.vmdk").doubts[0].contains("names further disks (1)"));
    }

    #[test]
    fn names_are_in_the_encoding_that_the_file_says() {
        let name = |bytes: &[u8]| read(bytes, "web.vmdk").name.unwrap();
        assert_eq!(name(b".encoding = \"GBK\"\ndisplayName = \"\xCE\xC4\"\n"), "\u{6587}");
        assert_eq!(name(b".encoding = \"windows-1252\"\ndisplayName = \"caf\xE9\"\n"), "caf\u{e9}");
        assert_eq!(name("displayName = \"caf\u{e9}\"\n".as_bytes()), "caf\u{e9}");
        assert_eq!(name(b"displayName = \"caf\xE9\"\n"), "caf");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0usize..2000, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut text = VMX.as_bytes().to_vec();
            let at = at % text.len();
            text.splice(at..at, bytes);
            let machine = read(&text, "web.vmdk");
            prop_assert_eq!(machine.clone().bounded(), machine);
        }
    }
}
