// SPDX-License-Identifier: Apache-2.0
//! Network configuration that is bound to a card: by the name of its interface or by its MAC address.

use std::collections::BTreeSet;

use crate::conversion::guest::{MAX_LIST, NetworkBinding};
use crate::guest::error::{Result, existing};
use crate::guest::fields::clean;
use crate::guest::linux::release::{assignments, unquoted};
use crate::guest::tree::Tree;

/// Files of one kind that are read.
const MAX_FILES: usize = 64;

/// Reads the bindings of one file.
type Parse = fn(&str, &str) -> Vec<(Option<String>, Option<String>)>;

/// Directories, ends of names, kinds, and their readers, which are given the file's name and its text.
const KINDS: [(&str, &str, &str, Parse); 11] = [
    ("/etc/network/interfaces.d", "", "ifupdown", ifupdown),
    ("/etc/netplan", ".yaml", "netplan", netplan),
    ("/etc/NetworkManager/system-connections", "", "networkManager", keyfile),
    ("/etc/sysconfig/network-scripts", "", "ifcfg", ifcfg),
    ("/etc/sysconfig/network", "", "ifcfg", ifcfg),
    ("/etc/systemd/network", ".network", "networkd", networkd),
    ("/etc/systemd/network", ".link", "networkd", networkd),
    ("/etc/wicked/ifconfig", ".xml", "wicked", wicked),
    ("/etc/udev/rules.d", ".rules", "udev", udev),
    ("/etc/conf.d", "", "netifrc", netifrc),
    ("/etc/network", "interfaces", "ifupdown", ifupdown),
];

/// All bindings of the guest.
pub(in crate::guest) fn bindings(tree: &Tree) -> Result<Vec<NetworkBinding>> {
    let mut bindings: Vec<NetworkBinding> = Vec::new();
    for (directory, end, kind, parse) in KINDS {
        for path in tree.ending(directory, end)?.into_iter().take(MAX_FILES) {
            let name = path.rsplit('/').next().unwrap_or_default();
            let is_configuration = match kind {
                "ifcfg" => name.starts_with("ifcfg-") && ![".bak", "~"].iter().any(|end| name.ends_with(end)),
                "netifrc" => name == "net",
                _ => true,
            };
            if !is_configuration {
                continue;
            }
            // A directory among them has no text.
            let Ok(Some(text)) = existing(tree.text(&path)) else { continue };
            let found = parse(name, &text).into_iter().filter(|(interface, mac)| interface.is_some() || mac.is_some());
            let found = found.filter(|(interface, _)| interface.as_deref().is_none_or(is_card)).take(MAX_LIST);
            bindings.extend(found.map(|(interface, mac)| NetworkBinding {
                file: path.clone(),
                kind: kind.to_owned(),
                interface: interface.map(|name| clean(&name)),
                mac: mac.map(|mac| clean(&mac).to_lowercase()),
            }));
        }
    }
    bindings.dedup();
    bindings.truncate(MAX_LIST);
    Ok(bindings)
}

/// Whether an interface of this name is a card. A pattern that any card matches binds to none.
fn is_card(name: &str) -> bool {
    let software =
        ["lo", "docker", "br-", "virbr", "veth", "tun", "tap", "wg", "vnet", "dummy", "podman", "cni", "flannel"];
    let is_any = name.is_empty() || ["*", "en*", "e*", "eth*", "en* eth*"].contains(&name);
    !is_any && name != "all" && name != "default" && !software.iter().any(|prefix| name.starts_with(prefix))
}

fn ifupdown(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let mut found: Vec<(Option<String>, Option<String>)> = Vec::new();
    let mut known = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("iface"), Some(name), _) if known.insert(name) => found.push((Some(name.to_owned()), None)),
            (Some("hwaddress"), Some("ether"), Some(mac)) | (Some("hwaddress"), Some(mac), _) => {
                if let Some(last) = found.last_mut() {
                    last.1 = Some(mac.to_owned());
                }
            }
            _ => {}
        }
    }
    found
}

/// The keys below `ethernets:`, by their indentation, with `match: name:` and `macaddress:`.
fn netplan(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let mut found: Vec<(Option<String>, Option<String>)> = Vec::new();
    let (mut section, mut card): (Option<usize>, Option<usize>) = (None, None);
    for line in text.lines().map(|line| line.split(" #").next().unwrap_or_default()) {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        let (key, value) = content.split_once(':').unwrap_or((content, ""));
        let (key, value) = (unquoted(key.trim()), unquoted(value.trim()));
        if section.is_some_and(|section| depth <= section) {
            (section, card) = (None, None);
        }
        match (section, card) {
            (None, _) if key == "ethernets" => section = Some(depth),
            (Some(_), None) => card = Some(depth),
            _ => {}
        }
        if card == Some(depth) && section.is_some() {
            found.push((Some(key.to_owned()), None));
        } else if card.is_some_and(|card| depth > card)
            && let Some(last) = found.last_mut()
        {
            match key {
                "macaddress" if !value.is_empty() => last.1 = Some(value.to_owned()),
                "name" if !value.is_empty() => last.0 = Some(value.to_owned()),
                _ => {}
            }
        }
    }
    found
}

/// A keyfile of `NetworkManager`.
fn keyfile(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let fields = assignments(text);
    let is_wired = fields.get("type").is_none_or(|kind| kind == "ethernet" || kind == "802-3-ethernet");
    if !is_wired {
        return Vec::new();
    }
    vec![(fields.get("interface-name").cloned(), fields.get("mac-address").cloned())]
}

fn ifcfg(name: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let fields = assignments(text);
    if fields.get("TYPE").is_some_and(|kind| !kind.eq_ignore_ascii_case("ethernet")) {
        return Vec::new();
    }
    let of_name = name.strip_prefix("ifcfg-").map(str::to_owned);
    let interface = fields.get("DEVICE").cloned().or_else(|| of_name.filter(|_| !fields.contains_key("HWADDR")));
    vec![(interface, fields.get("HWADDR").or_else(|| fields.get("LLADDR")).cloned())]
}

/// The `[Match]` section of .network and .link files.
fn networkd(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let lines = text.lines().map(str::trim).skip_while(|line| *line != "[Match]").skip(1);
    let section: Vec<&str> = lines.take_while(|line| !line.starts_with('[')).collect();
    let fields = assignments(&section.join("\n"));
    let name = fields.get("Name").or_else(|| fields.get("OriginalName")).cloned();
    vec![(name, fields.get("MACAddress").or_else(|| fields.get("PermanentMACAddress")).cloned())]
}

fn wicked(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let names = text.split("<name>").skip(1).filter_map(|rest| rest.split_once("</name>"));
    names.map(|(name, _)| (Some(name.trim().to_owned()), None)).collect()
}

/// Rules that give a card its name.
fn udev(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#') && line.contains("net"));
    let value = |line: &str, key: &str| {
        let rest = line.split_once(key)?.1.trim_start_matches(['=', ':', ' ']);
        Some(rest.strip_prefix('"')?.split_once('"')?.0.to_owned())
    };
    let named = lines.filter(|line| line.contains("NAME=") || line.contains("NAME:="));
    named
        .filter_map(|line| {
            let mac = value(line, "ATTR{address}").or_else(|| value(line, "ATTRS{address}"))?;
            let name = line.rsplit_once("NAME").and_then(|(_, rest)| value(&format!("NAME{rest}"), "NAME"));
            Some((name, Some(mac)))
        })
        .collect()
}

/// Gentoo's and old Alpine's `config_eth0=`.
fn netifrc(_: &str, text: &str) -> Vec<(Option<String>, Option<String>)> {
    let names = assignments(text).into_keys().filter_map(|key| key.strip_prefix("config_").map(str::to_owned));
    names.map(|name| (Some(name), None)).collect()
}
