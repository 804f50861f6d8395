// SPDX-License-Identifier: Apache-2.0
//! QEMU's arguments for the devices of a machine that is tried.

use std::path::Path;

use serde_json::json;

use super::error::CheckError;
use super::run::{Overlay, text};
use crate::conversion::emit::{Trial, TrialCard};

/// Places on the first PCI bus for disks and cards; q35 has 32, and some are its own.
const PLACES: usize = 26;
/// Ports of a SATA controller.
const PORTS: usize = 6;
/// Most of a frame that is kept: whether one was sent is all that is asked.
const FRAME_BYTES: u32 = 64;

/// The disks, one for each of the trial's.
pub(super) fn disks(trial: &Trial, disks: &[Overlay<'_>]) -> Result<Vec<String>, CheckError> {
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    if trial.disks.iter().any(|disk| disk.bus == "scsi") {
        add("-device", "virtio-scsi-pci,id=scsi".to_owned());
    }
    let sata = trial.disks.iter().filter(|disk| disk.bus == "sata").count();
    for controller in 0..sata.div_ceil(PORTS) {
        add("-device", format!("ich9-ahci,id=sata{controller}"));
    }
    let mut port = 0;
    for (n, (disk, overlay)) in trial.disks.iter().zip(disks).enumerate() {
        let mut node = overlay.node(true);
        node["node-name"] = json!(format!("disk{n}"));
        // Nothing of it is needed once the machine is gone.
        node["cache"] = json!({"direct": false, "no-flush": true});
        add("-blockdev", node.to_string());
        let device = match disk.bus.as_str() {
            "virtio" => "virtio-blk-pci".to_owned(),
            "scsi" => "scsi-hd,bus=scsi.0".to_owned(),
            "sata" => {
                port += 1;
                format!("ide-hd,bus=sata{}.{}", (port - 1) / PORTS, (port - 1) % PORTS)
            }
            other => return Err(CheckError::Device(format!("disks on {other}"))),
        };
        let order = disk.boot_order.map(|order| format!(",bootindex={order}")).unwrap_or_default();
        add("-device", format!("{device},drive=disk{n}{order}"));
    }
    Ok(arguments)
}

/// The network cards, in a network that leads nowhere, and for each the file that its first frames go into. QEMU says
/// itself which models it does not have. Cards for which there is no place are left out.
pub(super) fn cards(trial: &Trial, frames: &[impl AsRef<Path>]) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    for (n, (TrialCard { mac, model }, frames)) in trial.cards.iter().zip(frames).enumerate() {
        let device = if model == "virtio" { "virtio-net-pci" } else { model };
        let device = json!({
            "driver": device, "netdev": format!("card{n}"), "mac": mac.as_deref().unwrap_or(&default_mac(n)),
            // No program that starts from the network.
            "romfile": "",
        });
        add("-netdev", format!("user,id=card{n},restrict=on"));
        add("-device", device.to_string());
        // `rx` is what the network receives, which is what the guest sends.
        let dump = json!({
            "qom-type": "filter-dump", "id": dump(n), "netdev": format!("card{n}"), "queue": "rx",
            "file": text(frames.as_ref()), "maxlen": FRAME_BYTES,
        });
        add("-object", dump.to_string());
    }
    arguments
}

/// The name of a card's filter.
pub(super) fn dump(n: usize) -> String {
    format!("frames{n}")
}

/// How many cards are tried.
pub(super) fn card_count(trial: &Trial) -> usize {
    trial.cards.len().min(PLACES.saturating_sub(trial.disks.len()))
}

/// An address of QEMU's own, as it gives them.
fn default_mac(n: usize) -> String {
    format!("52:54:00:12:34:{:02x}", 0x56 + n)
}
