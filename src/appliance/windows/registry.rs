// SPDX-License-Identifier: Apache-2.0
//! What `SYSTEM` is told: viostor starts at boot and is for virtio-blk's devices, and the first boot runs a script.
//!
//! The keys are those that virt-v2v is known to write, with other names. Windows 8 and later find the driver of the boot disk
//! by `DriverDatabase`, older ones by `CriticalDeviceDatabase`.

use super::{BLOCK, SCRIPT};
use crate::guest::hive::{Editor, HiveError, Value};

/// The information file that the database names. There is none: Windows writes its own once it has the driver in its store.
const INF: &str = "hyper2kvm.inf";
const PACKAGE: &str = "hyper2kvm.inf_tmp";
const CONFIGURATION: &str = "hyper2kvm_conf";
/// The service of the first boot.
const SERVICE: &str = "hyper2kvm";
/// The class of controllers for disks, {4D36E97B-E325-11CE-BFC1-08002BE10318}, as text and as Windows stores it.
const CLASS: &str = "{4D36E97B-E325-11CE-BFC1-08002BE10318}";
const CLASS_BYTES: [u8; 16] =
    [0x7B, 0xE9, 0x36, 0x4D, 0x25, 0xE3, 0xCE, 0x11, 0xBF, 0xC1, 0x08, 0x00, 0x2B, 0xE1, 0x03, 0x18];
/// How well a driver fits a device, as the database has it.
const RANK: [u8; 4] = [0x01, 0xFF, 0, 0];
/// Kinds of services: of the kernel, and a program of its own.
const KERNEL_DRIVER: u32 = 1;
const OWN_PROCESS: u32 = 0x10;
/// When services start: with the loader, and by themselves.
const BOOT: u32 = 0;
const AUTOMATIC: u32 = 2;

/// Makes the changes. `processor` is Windows' number of it.
pub(super) fn edit(editor: &mut Editor, devices: &[&str], processor: u8) -> Result<(), HiveError> {
    let current = editor.number(&["Select"], "Current")?;
    let current = current.filter(|number| (1..=999).contains(number));
    let current = current.ok_or_else(|| HiveError::Broken("does not say which control set is current".to_owned()))?;
    let set = format!("ControlSet{current:03}");
    if !editor.has(&[&set, "Services"])? {
        return Err(HiveError::Broken(format!("has no services in {set}")));
    }
    if editor.has(&["DriverDatabase"])? {
        database(editor, devices, processor)?;
    } else {
        for device in devices {
            let key = format!("PCI#{device}");
            let path = [&*set, "Control", "CriticalDeviceDatabase", &key];
            editor.set(&path, "Service", &Value::Text(BLOCK))?;
            editor.set(&path, "ClassGUID", &Value::Text(CLASS))?;
        }
    }
    let service = [&*set, "Services", BLOCK];
    editor.set(&service, "Type", &Value::Number(KERNEL_DRIVER))?;
    editor.set(&service, "Start", &Value::Number(BOOT))?;
    editor.set(&service, "Group", &Value::Text("SCSI miniport"))?;
    editor.set(&service, "ErrorControl", &Value::Number(1))?;
    editor.set(&service, "ImagePath", &Value::Expandable("system32\\drivers\\viostor.sys"))?;
    first_boot(editor, &set)
}

fn database(editor: &mut Editor, devices: &[&str], processor: u8) -> Result<(), HiveError> {
    let base = "DriverDatabase";
    let file = [base, "DriverInfFiles", INF];
    editor.set(&file, "", &Value::Texts(&[PACKAGE]))?;
    editor.set(&file, "Active", &Value::Text(PACKAGE))?;
    editor.set(&file, "Configurations", &Value::Texts(&[CONFIGURATION]))?;
    let package = [base, "DriverPackages", PACKAGE];
    // Flags, processor, class, date, version: the last two are not known, and zero will do.
    let version = [&[0, 0xFF, processor, 0, 0, 0, 0, 0][..], &CLASS_BYTES, &[0; 24]].concat();
    editor.set(&package, "Version", &Value::Bytes(&version))?;
    let configuration = [base, "DriverPackages", PACKAGE, "Configurations", CONFIGURATION];
    editor.set(&configuration, "ConfigFlags", &Value::Number(0))?;
    editor.set(&configuration, "Service", &Value::Text(BLOCK))?;
    for device in devices {
        editor.set(&[base, "DeviceIds", "PCI", device], INF, &Value::Bytes(&RANK))?;
        let descriptor = [base, "DriverPackages", PACKAGE, "Descriptors", "PCI", device];
        editor.set(&descriptor, "Configuration", &Value::Text(CONFIGURATION))?;
    }
    Ok(())
}

/// A service that starts the script and goes. Windows waits in vain for its answer and logs that; the script runs on.
fn first_boot(editor: &mut Editor, set: &str) -> Result<(), HiveError> {
    let command = "%SystemRoot%\\System32\\cmd.exe";
    let program = format!("{command} /c start \"\" /b {command} /c %SystemRoot%\\hyper2kvm\\{SCRIPT}");
    let service = [set, "Services", SERVICE];
    editor.set(&service, "Type", &Value::Number(OWN_PROCESS))?;
    editor.set(&service, "Start", &Value::Number(AUTOMATIC))?;
    editor.set(&service, "ErrorControl", &Value::Number(0))?;
    editor.set(&service, "ImagePath", &Value::Expandable(&program))?;
    editor.set(&service, "DisplayName", &Value::Text("hyper2kvm: drivers of the first boot"))?;
    editor.set(&service, "ObjectName", &Value::Text("LocalSystem"))
}
