// SPDX-License-Identifier: Apache-2.0
//! The section that `VirtualBox` adds to an envelope: its own settings of the machine, which say more than the items.

use roxmltree::Node;

use super::super::xml::attribute;
use super::is_true;
use crate::conversion::machine::{Card, Machine, mac_address};

/// `VirtualBox` writes network cards without addresses. The addresses stand in a section of its own, in the same order,
/// with the state of the cable.
pub(super) fn add_addresses(system: Node, cards: &mut [Card]) {
    let adapters = system.descendants().filter(|n| n.tag_name().name() == "Adapter");
    let enabled = adapters.filter(|adapter| attribute(*adapter, "enabled").is_some_and(is_true));
    for (card, adapter) in cards.iter_mut().filter(|card| card.mac.is_none()).zip(enabled) {
        card.mac = attribute(adapter, "MACAddress").map(super::shortened);
        card.connected &= attribute(adapter, "cable").is_none_or(is_true);
    }
}

/// Adds what of that section is lost, and writes addresses in their usual form.
pub(super) fn add(system: Node, machine: &mut Machine) {
    for card in &mut machine.cards {
        card.mac = card.mac.as_deref().and_then(mac_address);
    }
    for node in system.descendants() {
        match node.tag_name().name() {
            "Display"
                if attribute(node, "monitorCount").is_some_and(|n| n.trim().parse().is_ok_and(|n: u32| n > 1)) =>
            {
                machine.doubt("video cards of the source but the first are not carried over");
            }
            "Port" if is_in(node, "UART") && attribute(node, "enabled").is_some_and(is_true) => {
                machine.doubt("serial ports of the source are not carried over");
            }
            _ => {}
        }
    }
}

fn is_in(node: Node, name: &str) -> bool {
    node.parent().is_some_and(|parent| parent.tag_name().name() == name)
}
