// SPDX-License-Identifier: Apache-2.0
//! Lets interfaces keep the names that the guest's configuration has. Addresses are never changed.

use std::collections::BTreeSet;

use super::{Act, Plan};
use crate::appliance::mounted::Mounted;
use crate::appliance::protocol::Card;
use crate::conversion::guest::{FixKind, Guest, NetworkBinding};

/// systemd's udev, which reads .link files.
const SYSTEMD: [&str; 2] = ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"];
/// Longest name of an interface (IFNAMSIZ with its NUL).
const MAX_NAME: usize = 15;

/// Plans a file for each interface.
pub(super) fn plan(guest: &Guest, files: &Mounted, cards: &[Card], plan: &mut Plan) {
    let is_naming = |binding: &&NetworkBinding| binding.kind == "udev" || binding.file.strip_suffix(".link").is_some();
    let by_udev = guest.network.iter().find(is_naming);
    if let Some(binding) = by_udev {
        plan.leave(&binding.file, "The guest names its cards by itself: give the new ones the same MAC addresses.");
        return;
    }
    let bound: BTreeSet<&str> = guest.network.iter().filter_map(|binding| binding.interface.as_deref()).collect();
    let (names, others): (Vec<&str>, Vec<&str>) = bound.into_iter().partition(|name| is_card(name));
    for name in others.iter().filter(|name| !is_software(name)) {
        plan.leave(name, "Whether a network interface of this name is a card is not known.");
    }
    let names: Vec<&str> =
        names.into_iter().filter(|name| !(is_kernels(name) && has_kernel_names(guest, files))).collect();
    match pair(guest, &names, cards) {
        Ok(pairs) => {
            let is_systemd = SYSTEMD.iter().any(|path| files.exists(path));
            for (name, mac) in &pairs {
                let (path, text) = if is_systemd { link(name, mac.as_deref()) } else { rule(name, mac.as_deref()) };
                plan.change(FixKind::NetworkNames, &path, Act::Write(text.into_bytes()));
            }
        }
        Err(why) => plan.leave(&names.join(", "), why),
    }
}

/// Each name with the MAC address of its card; without one where there is one card only.
fn pair(guest: &Guest, names: &[&str], cards: &[Card]) -> Result<Vec<(String, Option<String>)>, String> {
    let mut names = names.to_vec();
    names.sort_by_key(|name| order(name));
    let stated = |name: &str| {
        let binding = guest.network.iter().find(|binding| binding.interface.as_deref() == Some(name))?;
        binding.mac.clone()
    };
    if names.iter().all(|name| stated(name).is_some()) {
        return Ok(names.iter().map(|name| ((*name).to_owned(), stated(name))).collect());
    }
    match (names.as_slice(), cards) {
        ([name], [] | [_]) => Ok(vec![((*name).to_owned(), None)]),
        (names, cards) if names.len() == cards.len() && cards.iter().all(|card| card.mac.is_some()) => {
            let macs = cards.iter().map(|card| card.mac.as_ref().map(|mac| mac.to_lowercase()));
            Ok(names.iter().map(|name| (*name).to_owned()).zip(macs).collect())
        }
        (names, cards) => {
            let known = cards.iter().filter(|card| card.mac.is_some()).count();
            let count = names.len();
            Err(format!("Which of its cards has which of {count} names is not known: {known} MAC addresses are told."))
        }
    }
}

/// Whether an interface of this name is a card, by the schemes that name cards.
fn is_card(name: &str) -> bool {
    let starts = ["en", "eth", "em", "ib"].iter().any(|start| {
        let rest = name.strip_prefix(start);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    });
    let by_slot = name.strip_prefix('p').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_plain = name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_plain && (starts || by_slot)
}

/// Whether it is made by configuration: a bond, a bridge, a VLAN of a card.
fn is_software(name: &str) -> bool {
    let starts = ["bond", "br", "team", "vlan", "ppp", "vmbr", "ovs", "dummy", "wl"];
    name.contains(['.', ':', '@']) || starts.iter().any(|start| name.starts_with(start))
}

/// Whether the kernel gives such names by itself, in the order of the cards.
fn is_kernels(name: &str) -> bool {
    name.strip_prefix("eth").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether the guest was told to leave the kernel's names.
fn has_kernel_names(guest: &Guest, files: &Mounted) -> bool {
    let mut boots = guest.boot.iter().map(|boot| &boot.file);
    boots.any(|file| files.text(file).ok().flatten().is_some_and(|text| text.contains("net.ifnames=0")))
}

/// The order in which a hypervisor's cards have such names: VMware's first slots are 160, 192, 224, 256, 161, …; else by
/// number.
fn order(name: &str) -> (u32, String) {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let number: Option<u32> = digits.parse().ok();
    let place = match number {
        Some(slot @ 160..288) if name.starts_with("ens") => (slot - 160) % 32 * 4 + (slot - 160) / 32,
        Some(number) => number,
        None => u32::MAX,
    };
    (place, name.to_owned())
}

/// A file of systemd's udev, before those of the distribution.
fn link(name: &str, mac: Option<&str>) -> (String, String) {
    let card = mac.map_or("Driver=virtio_net".to_owned(), |mac| format!("MACAddress={mac}"));
    let text =
        format!("# The name that this card had on its former hypervisor.\n[Match]\n{card}\n\n[Link]\nName={name}\n");
    (format!("/etc/systemd/network/10-hyper2kvm-{name}.link"), text)
}

/// A rule of udev without systemd.
fn rule(name: &str, mac: Option<&str>) -> (String, String) {
    let card = mac.map_or(r#"DRIVERS=="virtio_net""#.to_owned(), |mac| format!(r#"ATTR{{address}}=="{mac}""#));
    let text = format!(
        "# The name that this card had on its former hypervisor.\nSUBSYSTEM==\"net\", ACTION==\"add\", {card}, ATTR{{type}}==\"1\", NAME=\"{name}\"\n"
    );
    (format!("/etc/udev/rules.d/70-hyper2kvm-{name}.rules"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(bindings: &[(&str, Option<&str>)]) -> Guest {
        let binding = |(name, mac): &(&str, Option<&str>)| NetworkBinding {
            file: "/etc/network/interfaces".into(),
            kind: "ifupdown".into(),
            interface: Some((*name).to_owned()),
            mac: mac.map(str::to_owned),
        };
        Guest { network: bindings.iter().map(binding).collect(), ..Guest::default() }
    }

    fn planned(guest: &Guest, macs: &[Option<&str>], systemd: bool) -> (Vec<(String, String)>, usize) {
        let root = tempfile::tempdir().unwrap();
        if systemd {
            std::fs::create_dir_all(root.path().join("usr/lib/systemd")).unwrap();
            std::fs::write(root.path().join("usr/lib/systemd/systemd-udevd"), "").unwrap();
        }
        let cards: Vec<Card> = macs.iter().map(|mac| Card { mac: mac.map(str::to_owned) }).collect();
        let mut found = Plan::default();
        plan(guest, &Mounted::new(root.path()).unwrap(), &cards, &mut found);
        let lines = found.changes.iter().map(|change| {
            let Act::Write(text) = &change.act else { panic!("{change:?}") };
            let text = String::from_utf8(text.clone()).unwrap();
            let lines: Vec<_> = text.lines().skip(1).filter(|line| !line.is_empty()).collect();
            (change.path.clone(), lines.join(" "))
        });
        (lines.collect(), found.left.len())
    }

    #[test]
    fn one_card_is_named_by_its_driver_and_several_by_their_addresses() {
        let link = |name: &str, card: &str| {
            (format!("/etc/systemd/network/10-hyper2kvm-{name}.link"), format!("[Match] {card} [Link] Name={name}"))
        };
        let (one, two) = ("00:50:56:00:00:01", "00:50:56:00:00:02");
        for (bindings, cards, expected, left) in [
            (&[("ens192", None)][..], &[][..], vec![link("ens192", "Driver=virtio_net")], 0),
            (&[("ens192", None)], &[None], vec![link("ens192", "Driver=virtio_net")], 0),
            (&[("ens192", Some(one))], &[], vec![link("ens192", &format!("MACAddress={one}"))], 0),
            (
                &[("ens192", None), ("ens161", None), ("ens160", None)],
                &[Some(one), Some("00:50:56:00:00:0A"), Some(two)],
                vec![
                    link("ens160", &format!("MACAddress={one}")),
                    link("ens192", "MACAddress=00:50:56:00:00:0a"),
                    link("ens161", &format!("MACAddress={two}")),
                ],
                0,
            ),
            // A bond of cards, and a VLAN of the bond.
            (&[("bond0", None), ("bond0.7", None), ("eno1", None)], &[], vec![link("eno1", "Driver=virtio_net")], 0),
            (&[("ens160", None), ("ens192", None)], &[], vec![], 1),
            (&[("ens160", None), ("ens192", None)], &[Some(one), None], vec![], 1),
            (&[("ens160", None)], &[Some(one), Some(two)], vec![], 1),
            (&[("lan-name", None)], &[], vec![], 1),
            (&[("ens\n[Link]", None)], &[], vec![], 1),
            (&[], &[Some(one)], vec![], 0),
        ] {
            assert_eq!(planned(&guest(bindings), cards, true), (expected, left), "{bindings:?}");
        }
    }

    #[test]
    fn without_systemd_a_rule_of_udev_does_it() {
        let (planned, _) = planned(&guest(&[("eth0", None)]), &[], false);
        let rule = r#"SUBSYSTEM=="net", ACTION=="add", DRIVERS=="virtio_net", ATTR{type}=="1", NAME="eth0""#;
        assert_eq!(planned, [("/etc/udev/rules.d/70-hyper2kvm-eth0.rules".to_owned(), rule.to_owned())]);
    }

    #[test]
    fn a_guest_that_names_its_cards_itself_is_left() {
        let mut by_rule = guest(&[("eth0", Some("00:50:56:00:00:01"))]);
        by_rule.network[0].kind = "udev".into();
        assert_eq!(planned(&by_rule, &[], true), (vec![], 1));
        let mut by_link = guest(&[("lan0", None)]);
        by_link.network[0].file = "/etc/systemd/network/10-lan.link".into();
        assert_eq!(planned(&by_link, &[], true), (vec![], 1));
    }
}
