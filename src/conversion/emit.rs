// SPDX-License-Identifier: Apache-2.0
//! Files that platforms run the converted disks by, written beside them: pure functions of metadata.json.
//!
//! ```text
//!  metadata.json ─▶ guest ─┬▶ domain      domain.xml             libvirt
//!                          ├▶ kubevirt    virtualmachine.yaml    KubeVirt, OpenShift Virtualization
//!                          ├▶ proxmox     proxmox.sh             Proxmox VE
//!                          └▶ openstack   glance.json, openstack.sh
//! ```
//!
//! No text of a source reaches a file but through the file's own way to quote.

mod domain;
mod guest;
mod kubevirt;
mod openstack;
mod proxmox;
mod shell;
mod trial;
mod xml;
mod yaml;

pub use self::guest::label;
use self::guest::{Guest, machines};
pub use self::trial::{Trial, TrialCard, TrialDisk};
use serde_json::Value;

use super::machine::Machine;
use super::options::DomainOptions;
use super::platform::{self, Emit, Platform};
use super::report::Metadata;

/// A file to write beside the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Its base name.
    pub name: String,
    pub text: String,
}

/// What the files are called.
#[derive(Clone, Copy, Debug)]
pub enum Names<'a> {
    /// In a directory of their own: `domain.xml`, `proxmox.sh`; of several machines `NAME.xml`, `NAME.proxmox.sh`.
    Alone,
    /// Among other files: `STEM.xml`, `STEM.proxmox.sh`; of several machines `STEM-NAME.xml`.
    Beside(&'a str),
}

/// The files of `emit` for disks that lie in the directory `published` (an absolute path).
#[must_use]
pub fn files(
    metadata: &Metadata,
    emit: &Emit,
    options: &DomainOptions,
    published: &str,
    names: Names<'_>,
) -> Vec<Emitted> {
    let machines = machines(metadata);
    let mut files = Vec::new();
    for (machine, name) in machines.iter().zip(base_names(&machines, names)) {
        let guest = Guest::new(metadata, machine, options);
        for platform in emit.platforms() {
            for (file, text) in texts(platform, &guest, options, published, name.as_deref()) {
                files.push(Emitted { name: file_name(file, name.as_deref()), text });
            }
        }
    }
    files
}

/// The only machine as a boot check tries it; `None` where there are several.
#[must_use]
pub fn trial(metadata: &Metadata, options: &DomainOptions) -> Option<Trial> {
    let machines = machines(metadata);
    let [machine] = &machines[..] else { return None };
    Some(trial::trial(&Guest::new(metadata, machine, options), options))
}

/// `KubeVirt`'s `VirtualMachine` of the first machine, with `name`, on claims that are called after it.
#[must_use]
pub fn kubevirt_machine(metadata: &Metadata, name: &str) -> Option<Value> {
    let machines = machines(metadata);
    let guest = Guest::new(metadata, machines.first()?, &DomainOptions::default());
    Some(kubevirt::machine(&guest, name))
}

/// Processors and MiB of memory that such a machine gets.
#[must_use]
pub fn kubevirt_size(metadata: &Metadata) -> Option<(u32, u64)> {
    let machines = machines(metadata);
    let guest = Guest::new(metadata, machines.first()?, &DomainOptions::default());
    Some((guest.sockets.saturating_mul(guest.cores), guest.memory_mib))
}

/// Text of a manifest, one YAML document.
#[must_use]
pub fn yaml_document(value: &Value) -> String {
    yaml::document(value)
}

/// Names of the files that [`files`] writes, before the disks are there. As many machines as metadata will have are
/// only known afterwards, so that these are the names of one machine.
#[must_use]
pub fn names(emit: &Emit, names: Names<'_>) -> Vec<String> {
    let stem = match names {
        Names::Alone => None,
        Names::Beside(stem) => Some(stem),
    };
    emit.platforms().flat_map(Platform::files).map(|file| file_name(file, stem)).collect()
}

/// Names of every file that may lie beside published disks, whatever platforms were wanted.
#[must_use]
pub fn published_names(metadata: &Metadata) -> Vec<String> {
    let stems = base_names(&machines(metadata), Names::Alone);
    let of_one = |stem: &Option<String>| {
        let files = Platform::ALL.into_iter().flat_map(Platform::files);
        files.map(|file| file_name(file, stem.as_deref())).collect::<Vec<_>>()
    };
    stems.iter().flat_map(of_one).collect()
}

/// Whether a file of this name could be one of [`files`].
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    Platform::ALL.into_iter().flat_map(Platform::files).any(|file| {
        let ending = if *file == platform::DOMAIN { "xml" } else { file };
        name == *file || name.strip_suffix(ending).is_some_and(|stem| stem.ends_with('.'))
    })
}

fn texts<'a>(
    platform: Platform,
    guest: &Guest<'_>,
    options: &DomainOptions,
    published: &str,
    name: Option<&str>,
) -> Vec<(&'a str, String)> {
    let own = |file: &str| file_name(file, name);
    let [first, rest @ ..] = platform.files() else { return Vec::new() };
    match platform {
        Platform::Libvirt => vec![(*first, domain::domain_xml(guest, options, published, &own(first)))],
        Platform::Kubevirt => vec![(*first, kubevirt::virtual_machine(guest, &own(first)))],
        Platform::Proxmox => vec![(*first, proxmox::script(guest, &own(first)))],
        Platform::Openstack => {
            let script = rest.first().map(|file| (*file, openstack::script(guest, &own(file))));
            [(*first, openstack::properties(guest))].into_iter().chain(script).collect()
        }
    }
}

/// The stem of each machine's files; `None` for names without one.
fn base_names(machines: &[Machine], names: Names<'_>) -> Vec<Option<String>> {
    if let [_] = machines {
        return vec![match names {
            Names::Alone => None,
            Names::Beside(stem) => Some(stem.to_owned()),
        }];
    }
    let mut known: Vec<String> = Vec::new();
    for machine in machines {
        let label = label(machine.name.as_deref().unwrap_or_default(), 40);
        let stem = match names {
            Names::Alone => label,
            Names::Beside(stem) => format!("{stem}-{label}"),
        };
        let numbered = (2..).map(|n| format!("{stem}-{n}"));
        let free = std::iter::once(stem.clone()).chain(numbered).find(|name| !known.contains(name));
        known.extend(free);
    }
    known.into_iter().map(Some).collect()
}

fn file_name(file: &str, stem: Option<&str>) -> String {
    match stem {
        None => file.to_owned(),
        Some(stem) if file == platform::DOMAIN => format!("{stem}.xml"),
        Some(stem) => format!("{stem}.{file}"),
    }
}

#[cfg(test)]
mod tests;
