// SPDX-License-Identifier: Apache-2.0
//! A guest for a person to read.

use std::io::{self, Write};

use hyper2kvm::conversion::guest::{Answer, Driver, Family, Guest};
use hyper2kvm::conversion::options::ByteSize;

/// Prints `guest`, the answers last.
pub(super) fn describe(out: &mut impl Write, guest: &Guest) -> io::Result<()> {
    let mut row = |key: &str, value: &str| writeln!(out, "{key:<14} {value}");
    let system = guest.os.as_ref().map_or_else(
        || guest.family.to_string(),
        |os| {
            let architecture = os.architecture.as_deref().unwrap_or("unknown architecture");
            format!("{} ({architecture})", os.name)
        },
    );
    row("guest", &system)?;
    for volume in &guest.volumes {
        let label = volume.label.as_ref().map(|label| format!(", label {label}")).unwrap_or_default();
        let detail = volume.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        let dirty = if volume.dirty == Some(true) { ", not unmounted" } else { "" };
        let size = ByteSize(volume.size_bytes);
        row("volume", &format!("{}: {}{detail}, {size}{label}{dirty}", volume.name, volume.content))?;
    }
    if let Some(root) = &guest.root {
        row("root", root)?;
    }
    row("firmware", &format!("BIOS {}, EFI {}", guest.firmware.bios, guest.firmware.efi))?;
    for kernel in &guest.kernels {
        let has = kernel.drivers.iter().filter(|(_, driver)| matches!(driver, Driver::BuiltIn | Driver::Initramfs));
        let has: Vec<_> = has.map(|(name, _)| name.as_str()).collect();
        let initramfs = kernel.initramfs.as_deref().unwrap_or("no initramfs");
        row("kernel", &format!("{}: {initramfs}, {}", kernel.version, list(&has)))?;
    }
    for mount in &guest.mounts {
        row("mount", &format!("{}: {} on {}, by {}", mount.file, mount.device, mount.target, mount.naming))?;
    }
    for boot in &guest.boot {
        row("boot", &format!("{}: root {}, by {}", boot.file, boot.root, boot.naming))?;
    }
    for binding in &guest.network {
        let interface = binding.interface.as_deref().unwrap_or("any interface");
        let mac = binding.mac.as_ref().map(|mac| format!(" with {mac}")).unwrap_or_default();
        row("network", &format!("{}: {interface}{mac}", binding.file))?;
    }
    if !guest.tools.is_empty() {
        row("tools", &guest.tools.join(", "))?;
    }
    let virtio = &guest.virtio;
    for (bus, answer) in [
        ("virtio-blk", virtio.block),
        ("virtio-scsi", virtio.scsi),
        ("virtio-net", virtio.network),
        ("SATA", virtio.sata),
    ] {
        row(bus, worded(answer))?;
    }
    for reason in &virtio.reasons {
        row("reason", reason)?;
    }
    if guest.family == Family::Linux && virtio.block != Answer::Yes {
        row("help", "hyper2kvm convert --fix-guest may make it ready for virtio (docs/guest-fixing.md)")?;
    }
    for fix in &guest.fixes {
        let need = ["", "must", "should", "may"].get(usize::from(fix.need)).unwrap_or(&"may");
        row("fix", &format!("{} ({need}): {}: {}", fix.kind, fix.what, fix.why))?;
    }
    for doubt in &guest.doubts {
        row("doubt", &format!("{}: {}", doubt.what, doubt.why))?;
    }
    Ok(())
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "without virtio's drivers".into() } else { format!("with {}", names.join(", ")) }
}

const fn worded(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => "yes",
        Answer::No => "no, see below",
        Answer::Unknown => "not known",
    }
}
