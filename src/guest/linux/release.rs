// SPDX-License-Identifier: Apache-2.0
//! Which distribution, which release, which architecture; and tools of other hypervisors.

use std::collections::BTreeMap;

use crate::conversion::guest::OperatingSystem;
use crate::guest::error::{Result, existing};
use crate::guest::fields::{byte, clean, le16};
use crate::guest::tree::Tree;

/// Files that name the release in one line, where os-release is missing, and the distribution that has them.
const RELEASE_LINES: [(&str, &str); 6] = [
    ("/etc/redhat-release", "rhel"),
    ("/etc/SuSE-release", "sles"),
    ("/etc/alpine-release", "alpine"),
    ("/etc/debian_version", "debian"),
    ("/etc/slackware-version", "slackware"),
    ("/etc/gentoo-release", "gentoo"),
];

/// Programs whose header names the machine's architecture.
const PROGRAMS: [&str; 4] = ["/bin/sh", "/usr/bin/env", "/sbin/init", "/bin/busybox"];

/// Files of other hypervisors' tools, and what they belong to.
const TOOLS: [(&str, &str); 10] = [
    ("/usr/bin/vmtoolsd", "open-vm-tools"),
    ("/etc/vmware-tools/locations", "VMware Tools"),
    ("/usr/bin/vmware-toolbox-cmd", "VMware Tools"),
    ("/usr/sbin/VBoxService", "VirtualBox Guest Additions"),
    ("/opt/VBoxGuestAdditions", "VirtualBox Guest Additions"),
    ("/usr/sbin/hv_kvp_daemon", "Hyper-V daemons"),
    ("/usr/sbin/hypervkvpd", "Hyper-V daemons"),
    ("/usr/sbin/xe-daemon", "XenServer tools"),
    ("/usr/bin/prltoolsd", "Parallels tools"),
    ("/usr/sbin/waagent", "Azure agent"),
];

/// The system, by its release files.
pub(in crate::guest) fn system(tree: &Tree) -> Result<OperatingSystem> {
    let mut system = OperatingSystem { id: "linux".into(), name: "Linux".into(), ..OperatingSystem::default() };
    for path in ["/etc/os-release", "/usr/lib/os-release", "/etc/lsb-release"] {
        let Some(text) = existing(tree.text(path))? else { continue };
        let fields = assignments(&text);
        let field = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)).map(|value| clean(value));
        if let Some(id) = field(["ID", "DISTRIB_ID"]) {
            system.id = id.to_lowercase();
            system.version = field(["VERSION_ID", "DISTRIB_RELEASE"]).unwrap_or_default();
            system.name = field(["PRETTY_NAME", "DISTRIB_DESCRIPTION"]).unwrap_or_else(|| system.id.clone());
            return Ok(system);
        }
    }
    for (path, id) in RELEASE_LINES {
        let Some(text) = existing(tree.text(path))? else { continue };
        let line = clean(text.lines().next().unwrap_or_default());
        system.id = if line.starts_with("CentOS") { "centos".into() } else { id.into() };
        let version = line.split([' ', '-']).find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        system.version = version.map(str::to_owned).unwrap_or_default();
        system.name = if line.starts_with(|c: char| c.is_ascii_digit()) { format!("{id} {line}") } else { line };
        break;
    }
    Ok(system)
}

/// The architecture by the header of a program.
pub(in crate::guest) fn architecture(tree: &Tree) -> Result<Option<String>> {
    for path in PROGRAMS {
        let Some(found) = existing(tree.find(path))? else { continue };
        let mut header = [0; 20];
        if found.read(0, &mut header)? < header.len() || !header.starts_with(b"\x7fELF") {
            continue;
        }
        let name = match (le16(&header, 18)?, byte(&header, 4)?) {
            (3, _) => "i386",
            (62, 2) => "x86_64",
            (62, _) => "x32",
            (183, _) => "aarch64",
            (40, _) => "arm",
            (243, _) => "riscv64",
            (21, _) => "ppc64le",
            (22, _) => "s390x",
            _ => continue,
        };
        return Ok(Some(name.to_owned()));
    }
    Ok(None)
}

/// Tools of other hypervisors.
pub(in crate::guest) fn tools(tree: &Tree) -> Result<Vec<String>> {
    let mut tools = Vec::new();
    for (path, name) in TOOLS {
        if !tools.iter().any(|tool| tool == name) && tree.exists(path)? {
            tools.push(name.to_owned());
        }
    }
    Ok(tools)
}

/// Lines `NAME=value` of a file that a shell reads; quotes are taken off.
pub(in crate::guest) fn assignments(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), unquoted(value.trim()).to_owned())).collect()
}

pub(in crate::guest) fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}
