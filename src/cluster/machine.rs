// SPDX-License-Identifier: Apache-2.0
//! The `VirtualMachine` of a conversion: a pure function of its plan, its claims and its queue's settings. The
//! controller makes it, and the kubectl plugin prints it.

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::api::{
    ConversionJob, HyperConversion, InvalidSetting, MacAddresses, MachineCreation, MachineDevices, MachineSettings,
    NetworkRule,
};
use super::names;
use crate::conversion::contract::CONTRACT_VERSION;
use crate::conversion::emit;
use crate::conversion::guest::outcome::GuestOutcome;
use crate::conversion::machine::{
    Card, CardModel, DiskBus, Firmware, MAX_DOUBTS, MAX_NAME, Machine, doubts_beside_devices, one_line,
};
use crate::conversion::options::OutputFormat;
use crate::conversion::plan::Plan;
use crate::conversion::report::{DiskReport, Metadata, SourceReport};

/// Longest name of a machine: suffixes of its claims and its pod have to fit as well.
pub const MAX_MACHINE_NAME: usize = 50;

/// API version and kind of what [`manifest`] makes.
pub const API_VERSION: &str = "kubevirt.io/v1";
pub const KIND: &str = "VirtualMachine";

/// A machine, and what was guessed of it or left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub object: Value,
    /// One sentence each. With any of them the machine is not started by itself.
    pub doubts: Vec<String>,
}

/// Why there is no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMachine {
    #[error("the conversion has no plan yet: its source has not been looked at")]
    NoPlan,
    #[error("the conversion makes files, not claims: virtualmachine.yaml lies beside them where emit has kubevirt")]
    NoClaims,
    #[error("its claims have no names yet")]
    NotNamed,
    #[error(
        "{disk} belongs to several machines of the source, and a claim has one at a time: set spec.virtualMachine.create \
         to Never, and make the machines from the claims by hand"
    )]
    Shared { disk: String },
    #[error(
        "the source asks for {asked} processors, and spec.virtualMachine.limits.cpus of the queue is {limit}: raise it \
         if the source is trusted"
    )]
    TooManyProcessors { asked: u32, limit: u32 },
    #[error(
        "the source asks for {asked_mib} MiB of memory, and spec.virtualMachine.limits.memory of the queue is {limit}: \
         raise it if the source is trusted"
    )]
    TooMuchMemory { asked_mib: u64, limit: String },
    #[error("spec.{0}")]
    Invalid(#[from] InvalidSetting),
}

/// The settings that hold for a conversion.
#[must_use]
pub fn settings(conversion: &ConversionJob, queue: &HyperConversion) -> MachineSettings {
    conversion.spec.virtual_machine.clone().unwrap_or_default().over(queue.spec.virtual_machine.as_ref())
}

/// The names that a conversion's machines should have, from which those of their claims are made: one for each machine of
/// the plan, all of them different.
#[must_use]
pub fn wanted_names(conversion: &ConversionJob, plan: &Plan) -> Vec<String> {
    let asked = conversion.spec.virtual_machine.as_ref().and_then(|machine| machine.name.as_deref());
    let stem = crate::conversion::stem(conversion.spec.source.path.rsplit('/').next().unwrap_or_default());
    let mut names: Vec<String> = Vec::new();
    for machine in &plan.machines {
        let of_machine = machine.name.as_deref();
        let wanted = match (asked, plan.machines.len()) {
            (Some(asked), 1) => asked.to_owned(),
            (Some(asked), _) => emit::label(&format!("{asked}-{}", of_machine.unwrap_or("vm")), MAX_MACHINE_NAME),
            (None, _) => emit::label(of_machine.unwrap_or(stem), MAX_MACHINE_NAME),
        };
        let others = (2..).map(|number| numbered(&wanted, number, MAX_MACHINE_NAME));
        names.extend(std::iter::once(wanted.clone()).chain(others).find(|name| !names.contains(name)));
    }
    names
}

/// The name with a number, at most `most` characters.
#[must_use]
pub fn numbered(name: &str, number: u32, most: usize) -> String {
    let suffix = format!("-{number}");
    let kept = &name[..name.floor_char_boundary(most.saturating_sub(suffix.len()))];
    format!("{}{suffix}", kept.trim_end_matches('-'))
}

/// The number of the machine that has a disk, and the disk's place among that machine's in the plan; of a disk that none
/// has, as if the first had it.
#[must_use]
pub fn place_of(plan: &Plan, disk: usize) -> (usize, usize) {
    let of = |n: usize| {
        let file = plan.disks.get(n).map(|disk| disk.file.as_str());
        let has = |machine: &Machine| machine.disks.iter().any(|disk| Some(disk.file.as_str()) == file);
        plan.machines.iter().position(has).unwrap_or(0)
    };
    let machine = of(disk);
    (machine, (0..disk).filter(|earlier| of(*earlier) == machine).count())
}

/// The machines of a conversion whose claims are named, as `settings` want them: one for each of the plan.
///
/// # Errors
/// Where there is none, and what to do.
pub fn manifests(conversion: &ConversionJob, settings: &MachineSettings) -> Result<Vec<Manifest>, NoMachine> {
    let status = conversion.status.as_ref();
    let plan = status.and_then(|status| status.plan.as_ref()).ok_or(NoMachine::NoPlan)?;
    (0..plan.machines.len()).map(|n| manifest(conversion, settings, n)).collect()
}

/// The machine of this number.
///
/// # Errors
/// As [`manifests`].
pub fn manifest(conversion: &ConversionJob, settings: &MachineSettings, n: usize) -> Result<Manifest, NoMachine> {
    let status = conversion.status.as_ref();
    let plan = status.and_then(|status| status.plan.as_ref()).ok_or(NoMachine::NoPlan)?;
    let status = status.filter(|status| status.target.is_some()).ok_or(NoMachine::NoClaims)?;
    if status.volumes.len() != plan.disks.len() {
        return Err(NoMachine::NotNamed);
    }
    not_shared(plan)?;
    let recorded = status.virtual_machines().nth(n);
    let name = recorded.map(|machine| machine.name.clone());
    let name = name.or_else(|| wanted_names(conversion, plan).into_iter().nth(n)).ok_or(NoMachine::NoPlan)?;
    let mut machine = plan.machines.get(n).ok_or(NoMachine::NoPlan)?.clone();
    // Of several machines nobody knows which one it is about.
    let guest = status.guest.as_ref().filter(|_| plan.machines.len() == 1);
    if let Some(guest) = guest {
        machine.doubts.clone_from(&guest.doubts);
    }
    let machine = with_devices(machine, settings.devices, guest);
    let report = metadata(conversion, plan, machine.clone());
    within_limits(&report, settings)?;
    let mut object = emit::kubevirt_machine(&report, &name).ok_or(NoMachine::NoPlan)?;
    let is_its = |file: &str| machine.disks.iter().any(|disk| disk.file == file);
    let has_fallback = plan.disks.iter().any(|d| d.boot && d.fallback_loader == Some(true) && is_its(&d.file));
    let mut doubts = doubts_beside_devices(&machine, has_fallback);
    doubts.extend(plan.doubts.iter().cloned());
    object["metadata"]["namespace"] = json!(conversion.namespace());
    object["metadata"]["labels"][names::LABEL_MANAGED_BY] = json!(names::MANAGED_BY);
    object["metadata"]["annotations"][names::ANNOTATION_CONVERSION_UID] = json!(conversion.uid().unwrap_or_default());
    let claims = status.volumes.iter().map(|volume| volume.claim_name.as_str());
    let claims: Vec<(&str, &str)> = plan.disks.iter().map(|disk| disk.file.as_str()).zip(claims).collect();
    let pod = &mut object["spec"]["template"]["spec"];
    pod["volumes"] = volumes(&machine, &claims);
    let taken = recorded.map(|machine| machine.taken_addresses.as_slice()).unwrap_or_default();
    connect(pod, &machine.cards, settings, taken, &mut doubts);
    keep_state(pod, &machine, settings, &mut doubts);
    doubts.truncate(MAX_DOUBTS);
    if let Some(preference) = &settings.preference {
        object["spec"]["preference"] = json!({"kind": "VirtualMachineClusterPreference", "name": preference});
    }
    let starts = settings.create == MachineCreation::Running && doubts.is_empty();
    object["spec"]["runStrategy"] = json!(if starts { "Always" } else { "Halted" });
    Ok(Manifest { object, doubts })
}

/// Whether a conversion's machines can be made, and are within the limits of `settings`; those of a conversion without a
/// plan are.
///
/// # Errors
/// What is beyond them.
pub fn limits(conversion: &ConversionJob, settings: &MachineSettings) -> Result<(), NoMachine> {
    let Some(plan) = conversion.status.as_ref().and_then(|status| status.plan.as_ref()) else { return Ok(()) };
    not_shared(plan)?;
    plan.machines.iter().try_for_each(|machine| within_limits(&metadata(conversion, plan, machine.clone()), settings))
}

/// Refuses machines that share a disk.
fn not_shared(plan: &Plan) -> Result<(), NoMachine> {
    let users =
        |file: &str| plan.machines.iter().filter(|machine| machine.disks.iter().any(|d| d.file == file)).count();
    match plan.disks.iter().find(|disk| users(&disk.file) > 1) {
        Some(disk) => Err(NoMachine::Shared { disk: disk.file.clone() }),
        None => Ok(()),
    }
}

/// The addresses that a conversion's machine would keep.
#[must_use]
pub fn kept_addresses(conversion: &ConversionJob, settings: &MachineSettings, n: usize) -> Vec<String> {
    let plan = conversion.status.as_ref().and_then(|status| status.plan.as_ref());
    let cards = plan.and_then(|plan| plan.machines.get(n)).map(|machine| machine.cards.as_slice()).unwrap_or_default();
    let kept = cards.iter().filter(|card| card.connected && settings.mac_addresses == MacAddresses::Keep);
    kept.filter_map(|card| card.mac.clone()).collect()
}

/// What the builder of files is told: the plan as if it were done.
fn metadata(conversion: &ConversionJob, plan: &Plan, machine: Machine) -> Metadata {
    let disks = plan.disks.iter().map(|disk| DiskReport {
        file: disk.file.clone(),
        target: None,
        format: OutputFormat::Raw,
        virtual_size_bytes: disk.virtual_size_bytes,
        allocated_bytes: 0,
        sha256: None,
        source_member: disk.member.clone(),
    });
    Metadata {
        contract_version: CONTRACT_VERSION,
        id: conversion.name_any(),
        tool_version: String::new(),
        start_time: Timestamp::UNIX_EPOCH,
        end_time: Timestamp::UNIX_EPOCH,
        duration_ms: 0,
        source: SourceReport {
            name: conversion.spec.source.path.rsplit('/').next().unwrap_or_default().to_owned(),
            size_bytes: 0,
            format: String::new(),
            sha256: None,
        },
        disks: disks.collect(),
        hardware: None,
        guest: None,
        machines: vec![machine],
        stages: Vec::new(),
        side_files: Vec::new(),
        warnings: Vec::new(),
        superseded_by: None,
        source_changed_at: None,
    }
}

fn with_devices(mut machine: Machine, wanted: MachineDevices, guest: Option<&GuestOutcome>) -> Machine {
    let ready = guest.filter(|guest| guest.is_ready());
    let bus = ready.and_then(|guest| guest.bus).filter(|bus| *bus != DiskBus::Sata);
    let has_net = ready.is_some_and(|guest| guest.nic == Some(CardModel::Virtio));
    for disk in &mut machine.disks {
        disk.bus = match wanted {
            MachineDevices::Compatible => bus.unwrap_or(DiskBus::Sata),
            MachineDevices::FromSource => bus.unwrap_or(disk.bus),
            MachineDevices::Virtio => DiskBus::Virtio,
        };
    }
    for card in &mut machine.cards {
        card.device = match (wanted, card.device) {
            (MachineDevices::Virtio, _) => CardModel::Virtio,
            _ if has_net => CardModel::Virtio,
            (MachineDevices::Compatible, CardModel::Virtio) => CardModel::E1000e,
            (_, device) => device,
        };
    }
    machine
}

fn within_limits(report: &Metadata, settings: &MachineSettings) -> Result<(), NoMachine> {
    let (cpus, memory_mib) = emit::kubevirt_size(report).ok_or(NoMachine::NoPlan)?;
    let limits = &settings.limits;
    if cpus > limits.cpus {
        return Err(NoMachine::TooManyProcessors { asked: cpus, limit: limits.cpus });
    }
    if memory_mib > limits.memory_bytes()? >> 20 {
        return Err(NoMachine::TooMuchMemory { asked_mib: memory_mib, limit: limits.memory.clone() });
    }
    Ok(())
}

/// The volumes of the machine's disks, which it has in an order of its own.
fn volumes(machine: &Machine, claims: &[(&str, &str)]) -> Value {
    let claim = |file: &str| claims.iter().find(|(disk, _)| *disk == file).map(|(_, claim)| *claim);
    let claims = machine.disks.iter().filter_map(|disk| claim(&disk.file));
    let volume =
        |(n, claim): (usize, &str)| json!({"name": format!("disk-{n}"), "persistentVolumeClaim": {"claimName": claim}});
    claims.enumerate().map(volume).collect()
}

/// The network that a card gets.
enum Network<'a> {
    Pod,
    Multus(&'a str),
    Ignored,
    /// No rule says anything.
    Open,
}

fn network<'a>(card: &Card, rules: &'a [NetworkRule]) -> Network<'a> {
    let source = card.network.as_deref().unwrap_or_default();
    let rule = rules.iter().find(|rule| rule.source == source).or_else(|| rules.iter().find(|rule| rule.source == "*"));
    match rule {
        Some(NetworkRule { ignore: Some(_), .. }) => Network::Ignored,
        Some(NetworkRule { multus: Some(multus), .. }) => Network::Multus(&multus.network_name),
        Some(NetworkRule { pod: Some(_), .. }) => Network::Pod,
        _ => Network::Open,
    }
}

/// Gives the machine its cards. KubeVirt takes one card on the pod's network, and adds one where there is none unless
/// it is told not to. A card does not keep an address that is `taken`.
fn connect(pod: &mut Value, cards: &[Card], settings: &MachineSettings, taken: &[String], doubts: &mut Vec<String>) {
    let (mut interfaces, mut networks) = (Vec::new(), Vec::new());
    let mut has_pod = false;
    for (n, card) in cards.iter().enumerate() {
        let on = one_line(card.network.as_deref().unwrap_or("no network"), MAX_NAME);
        let mut left_out = |why: &str| doubts.push(format!("network card {} ({on}) is left out: {why}", n + 1));
        if !card.connected {
            left_out("it was not connected");
            continue;
        }
        let name = format!("net-{n}");
        let (binding, network) = match network(card, &settings.networks) {
            Network::Ignored => continue,
            Network::Multus(multus) => ("bridge", json!({"name": name, "multus": {"networkName": multus}})),
            Network::Pod | Network::Open if has_pod => {
                left_out("a machine has one card on the pod's network");
                continue;
            }
            of_pod => {
                has_pod = true;
                if matches!(of_pod, Network::Open) {
                    doubts.push(format!("network card {} ({on}) is on the pod's network: no rule is for it", n + 1));
                }
                ("masquerade", json!({"name": name, "pod": {}}))
            }
        };
        let mut interface = json!({"name": name, "model": card.device.as_str(), binding: {}});
        if let Some(mac) = card.mac.as_ref().filter(|_| settings.mac_addresses == MacAddresses::Keep) {
            if taken.contains(mac) {
                doubts.push(format!("network card {} ({on}) gets a new address: another machine has {mac}", n + 1));
            } else {
                interface["macAddress"] = json!(mac);
            }
        }
        interfaces.push(interface);
        networks.push(network);
    }
    pod["networks"] = json!(networks);
    let devices = &mut pod["domain"]["devices"];
    let Some(devices) = devices.as_object_mut() else { return };
    devices.remove("autoattachPodInterface");
    devices.remove("interfaces");
    if !interfaces.is_empty() {
        devices.insert("interfaces".to_owned(), json!(interfaces));
    }
    if !has_pod {
        devices.insert("autoattachPodInterface".to_owned(), json!(false));
    }
}

/// What the machine keeps between two starts besides its disks, and its clock.
fn keep_state(pod: &mut Value, machine: &Machine, settings: &MachineSettings, doubts: &mut Vec<String>) {
    let domain = &mut pod["domain"];
    if settings.persistent_state && machine.firmware == Some(Firmware::Efi) {
        domain["firmware"]["bootloader"]["efi"]["persistent"] = json!(true);
    }
    if machine.tpm && settings.persistent_state {
        domain["devices"]["tpm"] = json!({"persistent": true});
    } else if machine.tpm {
        doubts.push("its TPM is left out: it keeps nothing without persistentState".to_owned());
    }
    if machine.is_windows() {
        match &settings.guest_timezone {
            Some(zone) => {
                let Some(clock) = domain["clock"].as_object_mut() else { return };
                clock.remove("utc");
                clock.insert("timezone".to_owned(), json!(zone));
            }
            None => doubts.push("Windows keeps its clock in local time, and guestTimezone is not set".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
