// SPDX-License-Identifier: Apache-2.0
//! Tells the generator of an initramfs of virtio's drivers, so that the guest's next one has them by itself.

use super::generator::Generator;
use super::{Act, Plan, Refusal};
use crate::appliance::mounted::Mounted;
use crate::conversion::guest::FixKind;

/// What mkinitfs takes along for a feature of ours, by patterns below the directory of modules; and the line of its
/// configuration, which is a shell's, that asks for it.
const FEATURE: &str = "/etc/mkinitfs/features.d/hyper2kvm.modules";
const FEATURE_MODULES: &str = "\
kernel/drivers/virtio/virtio_pci.*
kernel/drivers/block/virtio_blk.*
kernel/drivers/scsi/virtio_scsi.*
";
const FEATURES: &str = "features=\"$features hyper2kvm\"";

/// Plans the file of its configuration that names the drivers.
pub(super) fn persist(generator: &Generator, files: &Mounted, plan: &mut Plan) -> Result<(), Refusal> {
    let lines = "virtio_pci\nvirtio_blk\nvirtio_scsi\n";
    let (path, content) = match generator {
        Generator::InitramfsTools => {
            let path = "/etc/initramfs-tools/modules";
            let mut text = files.text(path)?.unwrap_or_default();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            (path, format!("{text}# Drivers of the disks of a virtual machine on KVM.\n{lines}"))
        }
        Generator::Dracut(_) => (
            "/etc/dracut.conf.d/90-hyper2kvm.conf",
            "# Drivers of the disks of a virtual machine on KVM.\nadd_drivers+=\" virtio_pci virtio_blk virtio_scsi \"\n".into(),
        ),
        Generator::Mkinitcpio(_) => (
            "/etc/mkinitcpio.conf.d/hyper2kvm.conf",
            "# Drivers of the disks of a virtual machine on KVM.\nMODULES+=(virtio_pci virtio_blk virtio_scsi)\n".into(),
        ),
        Generator::Mkinitfs => {
            plan.change(FixKind::InitramfsVirtio, FEATURE, Act::Write(FEATURE_MODULES.as_bytes().to_vec()));
            let path = "/etc/mkinitfs/mkinitfs.conf";
            let mut text = files.text(path)?.unwrap_or_default();
            if text.lines().any(|line| line == FEATURES) {
                return Ok(());
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            (path, format!("{text}# Drivers of the disks of a virtual machine on KVM.\n{FEATURES}\n"))
        }
    };
    plan.change(FixKind::InitramfsVirtio, path, Act::Write(content.into_bytes()));
    Ok(())
}
