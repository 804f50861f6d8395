// SPDX-License-Identifier: Apache-2.0
//! What exporters write beside the items: firmware, secure boot, TPM, UUID.

use roxmltree::Node;

use super::super::xml::{attribute, children};
use super::{is_true, text_of};
use crate::conversion::machine::{Firmware, Machine, uuid};

/// Adds what the elements of `system` say. VMware has keys with values (`Config`, `ExtraConfig`), oVirt a number,
/// `XenCenter` parameters in one text, `VirtualBox` elements.
pub(super) fn add(system: Node, machine: &mut Machine) {
    for node in system.descendants() {
        match node.tag_name().name() {
            "Config" | "ExtraConfig" => {
                if let (Some(key), Some(value)) = (attribute(node, "key"), attribute(node, "value")) {
                    add_key(key, value, machine);
                }
            }
            _ if node.children().all(|child| child.is_text()) && add_word(node, machine) => {}
            "BiosType" => add_bios_type(node.text().unwrap_or_default().trim(), machine),
            "Firmware" => {
                if let Some(kind) = attribute(node, "type") {
                    set_firmware(kind, machine);
                }
            }
            "SecureBoot" => {
                if let Some(enabled) = attribute(node, "enabled") {
                    machine.secure_boot = Some(is_true(enabled));
                }
            }
            "TrustedPlatformModule" => {
                machine.tpm |= attribute(node, "type").is_some_and(|kind| !kind.eq_ignore_ascii_case("none"));
            }
            _ => {
                if let Some(name) =
                    attribute(node, "Name").filter(|name| matches!(*name, "HVM_boot_params" | "platform"))
                {
                    let value = text_of(node, "Value").or_else(|| attribute(node, "Value")).or(node.text());
                    add_parameters(name, value.unwrap_or_default(), machine);
                }
            }
        }
    }
    if machine.uuid.is_none() {
        machine.uuid = find_uuid(system);
    }
}

fn add_key(key: &str, value: &str, machine: &mut Machine) {
    match key.trim().to_ascii_lowercase().as_str() {
        "firmware" => set_firmware(value, machine),
        "bootoptions.efisecurebootenabled" | "uefi.secureboot.enabled" => machine.secure_boot = Some(is_true(value)),
        "vtpm.present" => machine.tpm |= is_true(value),
        "uuid.bios" => machine.uuid = uuid(value),
        key => {
            add_setting(key.rsplit('.').next().unwrap_or_default(), value, machine);
        }
    }
}

/// An element whose text is a setting: `<BootType>UEFI</BootType>`.
fn add_word(node: Node, machine: &mut Machine) -> bool {
    let text = node.text().map(str::trim).filter(|text| !text.is_empty());
    text.is_some_and(|text| add_setting(node.tag_name().name(), text, machine))
}

/// A setting in the words of Nutanix' interfaces, whatever its case and dashes: `boot_type` is `LEGACY`, `UEFI` or
/// `SECURE_BOOT`. Says whether it is one.
fn add_setting(name: &str, value: &str, machine: &mut Machine) -> bool {
    let plain = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    match plain(name).as_str() {
        "boottype" | "bootfirmware" | "firmwaretype" => match plain(value).as_str() {
            "secureboot" | "uefisecureboot" => {
                machine.firmware.get_or_insert(Firmware::Efi);
                machine.secure_boot = Some(true);
            }
            "uefi" | "efi" => {
                machine.firmware.get_or_insert(Firmware::Efi);
            }
            "legacy" | "legacybios" | "bios" => {
                machine.firmware.get_or_insert(Firmware::Bios);
            }
            _ => {}
        },
        "uefiboot" | "isuefi" | "uefibootenabled" => {
            machine.firmware.get_or_insert(if is_true(value) { Firmware::Efi } else { Firmware::Bios });
        }
        "secureboot" | "securebootenabled" | "issecureboot" | "issecurebootenabled" => {
            machine.secure_boot = Some(is_true(value));
        }
        "vtpm" | "vtpmenabled" | "isvtpmenabled" => machine.tpm |= is_true(value),
        _ => return false,
    }
    true
}

fn set_firmware(said: &str, machine: &mut Machine) {
    // VirtualBox: EFI, EFI32, EFI64, EFIDUAL.
    let said = said.trim().to_ascii_lowercase();
    let firmware = if said.starts_with("efi") || said.starts_with("uefi") { Firmware::Efi } else { Firmware::Bios };
    machine.firmware.get_or_insert(firmware);
}

/// oVirt's `BiosType`: 0 the cluster's, 1 i440fx and 2 q35 with `SeaBIOS`, 3 q35 with OVMF, 4 with secure boot.
fn add_bios_type(said: &str, machine: &mut Machine) {
    let (firmware, secure) = match said.to_ascii_uppercase().as_str() {
        "1" | "2" | "I440FX_SEA_BIOS" | "Q35_SEA_BIOS" => (Firmware::Bios, false),
        "3" | "Q35_OVMF" => (Firmware::Efi, false),
        "4" | "Q35_SECURE_BOOT" => (Firmware::Efi, true),
        _ => return,
    };
    machine.firmware.get_or_insert(firmware);
    machine.secure_boot = Some(secure);
}

/// `XenCenter`'s `firmware=uefi;order=cdn` and `secureboot=true;vtpm=true`.
fn add_parameters(name: &str, text: &str, machine: &mut Machine) {
    for (key, value) in text.split([';', ',', ' ']).filter_map(|pair| pair.split_once('=')) {
        match (name, key.trim().to_ascii_lowercase().as_str()) {
            ("HVM_boot_params", "firmware") => set_firmware(value, machine),
            ("platform", "secureboot") => {
                machine.secure_boot = Some(is_true(value) || value.eq_ignore_ascii_case("auto"));
            }
            ("platform", "vtpm") => machine.tpm |= is_true(value),
            _ => {}
        }
    }
}

/// `VirtualBox`'s machine, the system's identifier, or an id that is a UUID: oVirt's, `XenCenter`'s, Nutanix's.
fn find_uuid(system: Node) -> Option<String> {
    let virtualbox = children(system, "Machine").find_map(|machine| attribute(machine, "uuid"));
    let hardware = children(system, "VirtualHardwareSection").next();
    let identifier = hardware.and_then(|h| children(h, "System").find_map(|s| text_of(s, "VirtualSystemIdentifier")));
    let by_system = children(system, "OperatingSystemSection").next().and_then(|section| attribute(section, "id"));
    let said = [virtualbox, attribute(system, "id"), identifier, by_system];
    said.into_iter().flatten().find_map(uuid)
}
