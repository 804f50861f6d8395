// SPDX-License-Identifier: Apache-2.0
//! What a Windows guest says of itself: its registry, its drivers, and whether it sleeps.

pub(super) mod hive;

use std::collections::BTreeMap;

use self::hive::{Hive, Key};
use super::error::{Error, Result, existing};
use super::fields::clean;
use super::tree::Tree;
use crate::conversion::guest::{Answer, OperatingSystem, Windows};

/// Services whose start value matters: virtio's, those of other buses, and tools.
const SERVICES: [&str; 13] = [
    "viostor",
    "vioscsi",
    "netkvm",
    "storahci",
    "msahci",
    "stornvme",
    "atapi",
    "lsi_sas",
    "pvscsi",
    "vmxnet3ndis6",
    "e1i65x64",
    "VMTools",
    "VBoxService",
];
/// Services of other hypervisors' tools.
const TOOLS: [(&str, &str); 2] = [("VMTools", "VMware Tools"), ("VBoxService", "VirtualBox Guest Additions")];
const HIVES: &str = "/Windows/System32/config";
const DRIVERS: &str = "/Windows/System32/drivers";

/// Everything about Windows.
pub(super) struct Told {
    pub(super) os: Option<OperatingSystem>,
    pub(super) windows: Option<Windows>,
    pub(super) tools: Vec<String>,
    /// Questions that could not be answered.
    pub(super) doubts: Vec<(&'static str, Error)>,
}

/// Asks the system in `tree`.
pub(super) fn ask(tree: &Tree) -> Result<Told> {
    let mut told = Told { os: None, windows: None, tools: Vec::new(), doubts: Vec::new() };
    match software(tree) {
        Ok(os) => told.os = Some(os),
        Err(error) if error.is_final() => return Err(error),
        Err(error) => told.doubts.push(("SOFTWARE", error)),
    }
    match system(tree, &mut told) {
        Ok(windows) => told.windows = Some(windows),
        Err(error) if error.is_final() => return Err(error),
        Err(error) => told.doubts.push(("SYSTEM", error)),
    }
    Ok(told)
}

fn open(tree: &Tree, name: &str) -> Result<Hive> {
    Hive::open(tree.find(&format!("{HIVES}/{name}"))?, tree.budget())
}

/// The release, by the hive of software.
fn software(tree: &Tree) -> Result<OperatingSystem> {
    let hive = open(tree, "SOFTWARE")?;
    let key = hive.key(&["Microsoft", "Windows NT", "CurrentVersion"])?;
    let text = |name: &str| existing(hive.text(&key, name)).map(|text| text.map(|text| clean(&text)));
    let build = match text("CurrentBuild")? {
        Some(build) => build,
        None => text("CurrentBuildNumber")?.unwrap_or_default(),
    };
    let number = |name: &str| existing(hive.number(&key, name));
    let version = match (number("CurrentMajorVersionNumber")?, number("CurrentMinorVersionNumber")?) {
        (Some(major), Some(minor)) => format!("{major}.{minor}"),
        _ => text("CurrentVersion")?.unwrap_or_default(),
    };
    let mut name = text("ProductName")?.unwrap_or_else(|| "Windows".into());
    // Windows 11 still calls itself 10 there.
    if build.parse().is_ok_and(|build: u32| build >= 22_000) && !name.contains("Server") {
        name = name.replace("Windows 10", "Windows 11");
    }
    Ok(OperatingSystem { id: "windows".into(), name, version: format!("{version}.{build}"), architecture: None })
}

/// Services, and how the system was left.
fn system(tree: &Tree, told: &mut Told) -> Result<Windows> {
    let hive = open(tree, "SYSTEM")?;
    if hive.is_dirty() {
        let why = "has changes in its log that were not looked at";
        told.doubts.push(("SYSTEM", Error::unsupported(why)));
    }
    let current = hive.number(&hive.key(&["Select"])?, "Current")?;
    let set = format!("ControlSet{current:03}");
    let services = hive.key(&[&set, "Services"])?;
    let mut windows = Windows::default();
    for name in SERVICES {
        let Some(key) = existing(hive.child(&services, name))? else { continue };
        let start = existing(hive.number(&key, "Start"))?.unwrap_or(u32::MAX);
        windows.services.insert(name.to_owned(), start);
        if tree.exists(&format!("{DRIVERS}/{name}.sys"))? {
            windows.driver_files.push(name.to_owned());
        }
    }
    let named = |(service, name): &(&str, &str)| windows.services.contains_key(*service).then(|| (*name).to_owned());
    told.tools = TOOLS.iter().filter_map(named).collect();
    let power = existing(hive.key(&[&set, "Control", "Session Manager", "Power"]))?;
    let number = |key: &Key, name: &str| existing(hive.number(key, name));
    windows.fast_startup = match power.map(|key| number(&key, "HiberbootEnabled")).transpose()?.flatten() {
        Some(0) => Answer::No,
        Some(_) => Answer::Yes,
        None => Answer::Unknown,
    };
    windows.hibernated = hibernated(tree)?;
    let environment = existing(hive.key(&[&set, "Control", "Session Manager", "Environment"]))?;
    let architecture =
        environment.map(|key| existing(hive.text(&key, "PROCESSOR_ARCHITECTURE"))).transpose()?.flatten();
    if let (Some(os), Some(architecture)) = (&mut told.os, architecture) {
        let kernels_words: BTreeMap<_, _> = [("AMD64", "x86_64"), ("x86", "i386"), ("ARM64", "aarch64")].into();
        os.architecture = kernels_words.get(architecture.as_str()).map(|name| (*name).to_owned());
    }
    Ok(windows)
}

/// Whether the file of a hibernated system holds one: after a resume, its signature is overwritten.
fn hibernated(tree: &Tree) -> Result<Answer> {
    let Some(found) = existing(tree.find("/hiberfil.sys"))? else { return Ok(Answer::No) };
    let mut head = [0; 4];
    let len = found.read(0, &mut head)?;
    let is_hibernated = len == 4 && head.eq_ignore_ascii_case(b"hibr");
    Ok(if is_hibernated { Answer::Yes } else { Answer::No })
}
