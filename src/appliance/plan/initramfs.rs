// SPDX-License-Identifier: Apache-2.0
//! Gives an initramfs the guest's own virtio modules: a small archive before it, with a hook that loads them; or behind it,
//! with lists of modules in place of its own.

use std::fmt::Write as _;
use std::time::Duration;

use super::generator::{Generator, Unpacked};
use super::{Act, Plan, Refusal, persist};
use crate::appliance::modules::{self, Modules, unpack};
use crate::appliance::mounted::Mounted;
use crate::appliance::{cpio, modules::file_name};
use crate::conversion::guest::fix::{FixedKernel, Unfixed};
use crate::conversion::guest::{Answer, Driver, FixKind, Guest, Kernel};
use crate::guest::{Limits, list_initramfs};

/// LVM's file of known devices.
pub(super) const LVM_DEVICES: &str = "/etc/lvm/devices/system.devices";
/// Where everything of ours is in an initramfs.
const HOME: &str = "usr/lib/hyper2kvm";
/// Drivers without which no root on virtio-blk is found.
const NEEDED: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Where an initramfs has its modules, by the kernel's version.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// Lists by which modules are found: for busybox, and for kmod.
const LISTS: [&str; 4] = ["modules.dep", "modules.alias", "modules.dep.bin", "modules.alias.bin"];
/// zstd's level, as mkinitfs has it by default.
const LEVEL: i32 = 3;
/// Drivers that are taken along where the kernel has them as modules.
const WELCOME: [&str; 2] = ["virtio_scsi", "sd_mod"];

/// What listing one initramfs may cost: under emulation it takes longer than on a host.
fn limits() -> Limits {
    Limits { time: Duration::from_secs(60), ..Limits::default() }
}

/// Loads the modules, in a shell of any kind. A module that is there already is no fault.
const LOAD: &str = "\
while read -r module; do
  /usr/lib/hyper2kvm/insmod \"/usr/lib/hyper2kvm/$module\" 2>/dev/null
done </usr/lib/hyper2kvm/order
:
";

/// Plans a change for each initramfs that lacks the drivers; the newest kernel must start in the end.
pub(super) fn plan(guest: &Guest, files: &Mounted, plan: &mut Plan) -> Result<(), Refusal> {
    if guest.kernels.is_empty() {
        let unified = guest.doubts.iter().find(|doubt| doubt.what.to_ascii_lowercase().ends_with(".efi"));
        return Err(Refusal::unsupported(unified.map_or("No kernel was found in /boot.".to_owned(), |doubt| {
            format!("Its kernel {} {}.", doubt.what, doubt.why)
        })));
    }
    let mut generators = Vec::new();
    let mut done: Vec<&str> = Vec::new();
    for (index, kernel) in guest.kernels.iter().enumerate() {
        let before = has(kernel, &NEEDED);
        let with_lvm = guest.lvm_devices_file && guest.root.as_deref().is_some_and(|root| root.contains('/'));
        let planned = match &kernel.initramfs {
            Some(path) if done.contains(&path.as_str()) => continue,
            None if before == Answer::Yes => Ok(None),
            None => Err(Refusal::unsupported(format!(
                "The kernel {} has no initramfs, and lacks virtio's drivers without one.",
                kernel.version
            ))),
            Some(path) => {
                done.push(path);
                archive(kernel, path, before, with_lvm, files)
            }
        };
        let mut after = before;
        match planned {
            Ok(None) => {}
            Ok(Some((generator, act))) => {
                let path = kernel.initramfs.as_deref().expect("an archive is for an initramfs");
                plan.change(FixKind::InitramfsVirtio, path, act);
                after = Answer::Yes;
                if !generators.contains(&generator) {
                    generators.push(generator);
                }
            }
            Err(refusal) if index == 0 => return Err(refusal),
            Err(refusal) => plan.leave(kernel.initramfs.as_ref().unwrap_or(&kernel.image), refusal.message),
        }
        plan.kernels.push(FixedKernel {
            version: kernel.version.clone(),
            initramfs: kernel.initramfs.clone().unwrap_or_default(),
            virtio_before: before,
            virtio_after: after,
        });
    }
    for generator in &generators {
        persist::persist(generator, files, plan)?;
    }
    Ok(())
}

/// Whether `kernel` has all `drivers` before its root is mounted.
fn has(kernel: &Kernel, drivers: &[&str]) -> Answer {
    let found = drivers.iter().map(|name| kernel.drivers.get(*name).copied().unwrap_or_default());
    found.fold(Answer::Yes, |all, driver| match (all, driver) {
        (Answer::No, _) | (_, Driver::Absent | Driver::Root) => Answer::No,
        (Answer::Unknown, _) | (_, Driver::Unknown) => Answer::Unknown,
        (Answer::Yes, Driver::BuiltIn | Driver::Initramfs) => Answer::Yes,
    })
}

/// The archive that `path` lacks; `None` where it lacks nothing.
fn archive(
    kernel: &Kernel,
    path: &str,
    before: Answer,
    with_lvm: bool,
    files: &Mounted,
) -> Result<Option<(Generator, Act)>, Refusal> {
    if before == Answer::Yes && !with_lvm {
        return Ok(None);
    }
    if path.to_ascii_lowercase().ends_with(".efi") {
        let message = format!("{path} is a unified kernel image, which is made anew in the guest and not changed.");
        return Err(Refusal::unsupported(message));
    }
    if before == Answer::Unknown {
        let message = format!("Whether {path} has virtio's drivers for the kernel {} is not known.", kernel.version);
        return Err(Refusal::unsupported(message));
    }
    if let Some(signature) = [".sig", ".p7s", ".asc"].iter().map(|end| format!("{path}{end}")).find(|p| files.exists(p))
    {
        return Err(Refusal::unsupported(format!("{path} is signed by {signature}, so it cannot be changed.")));
    }
    let missing = || Refusal::unsupported(format!("{path} is not there."));
    let listed = list_initramfs(files.file(path)?.ok_or_else(missing)?, &limits());
    let listed = listed.map_err(|error| Refusal::unsupported(format!("{path} {error}.")))?;
    let unpacked = Unpacked::new(&listed);
    let generator = unpacked.generator();
    let generator = generator.map_err(|what| Refusal::unsupported(format!("{path} is {what}.")))?;
    let mut entries = Vec::new();
    if before == Answer::No {
        entries = match generator {
            Generator::Mkinitfs => listing(kernel, path, &unpacked, files)?,
            _ => loading(kernel, path, &generator, &unpacked, files)?,
        };
    }
    if with_lvm && unpacked.has_below("etc/lvm/devices") {
        if unpacked.has("etc/lvm/lvmlocal.conf") {
            return Err(Refusal::unsupported(format!(
                "{path} has an etc/lvm/lvmlocal.conf, which cannot be replaced."
            )));
        }
        let local = b"devices {\n\tuse_devicesfile = 0\n}\n".to_vec();
        entries.push(("etc/lvm/lvmlocal.conf".into(), Entry::File(0o644, local)));
    }
    if entries.is_empty() {
        return Ok(None);
    }
    if let Some((entry, link)) = entries.iter().find_map(|(entry, _)| Some((entry, unpacked.link_above(entry)?))) {
        return Err(Refusal::unsupported(format!("{path} has a link {link}, below which {entry} cannot be added.")));
    }
    let mut archive = cpio::Archive::new();
    for (entry, content) in entries {
        let added = match content {
            Entry::File(mode, content) => archive.file(&entry, mode, &content),
            Entry::Link(target) => archive.link(&entry, &target),
        };
        added.map_err(|error| Refusal::unsupported(format!("{path}: {error}.")))?;
    }
    let archive = archive.finish();
    let act = match generator {
        Generator::Mkinitfs => Act::Append(behind(kernel, path, archive, files)?),
        _ => Act::Prepend(archive),
    };
    Ok(Some((generator, act)))
}

/// The archive as it may stand behind an initramfs: at a multiple of four bytes, or packed as that is where its decoder takes
/// all that follows for more of the same.
fn behind(kernel: &Kernel, path: &str, archive: Vec<u8>, files: &Mounted) -> Result<Vec<u8>, Refusal> {
    let wrong = |why: String| Refusal::unsupported(format!("{path} {why}."));
    match kernel.compression.as_deref() {
        Some("none" | "gzip" | "xz") => {
            let length = files.place(path)?.length()?.unwrap_or_default();
            let gap = usize::try_from(length.next_multiple_of(4) - length).expect("it is less than four");
            Ok([vec![0; gap], archive].concat())
        }
        Some("zstd") => {
            zstd::bulk::compress(&archive, LEVEL).map_err(|error| wrong(format!("cannot be added to: {error}")))
        }
        other => {
            let other = other.unwrap_or("an unknown program");
            Err(wrong(format!("is packed with {other}, behind which no kernel looks for more")))
        }
    }
}

enum Entry {
    File(u32, Vec<u8>),
    Link(String),
}

/// A module: its file as `modules.dep` names it, the content of that, and the same unpacked.
struct Module {
    file: String,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
}

/// The modules that `kernel` needs, each behind what it needs itself.
fn needed(kernel: &Kernel, files: &Mounted) -> Result<Vec<Module>, Refusal> {
    let directory = format!("/lib/modules/{}", kernel.version);
    let Some(dep) = files.text(&format!("{directory}/modules.dep"))? else {
        return Err(drivers_missing(format!("The kernel {} has no {directory}/modules.dep.", kernel.version)));
    };
    let modules = Modules::parse(&dep);
    let is_module = |name: &&str| kernel.drivers.get(*name) != Some(&Driver::BuiltIn);
    let mut wanted: Vec<&str> = NEEDED.into_iter().filter(is_module).collect();
    wanted.extend(WELCOME.into_iter().filter(is_module).filter(|name| modules.has(name)));
    let order = modules.closure(&wanted);
    let order = order.map_err(|error| drivers_missing(format!("Kernel {}: {error}.", kernel.version)))?;
    let module = |file: String| -> Result<Module, Refusal> {
        let place = if file.starts_with('/') { file.clone() } else { format!("{directory}/{file}") };
        let packed = files.read(&place)?;
        let packed = packed.ok_or_else(|| drivers_missing(format!("{place} is not there.")))?;
        let unpacked =
            unpack(&place, packed.clone()).map_err(|error: modules::Error| drivers_missing(format!("{error}.")))?;
        Ok(Module { file, packed, unpacked })
    };
    order.into_iter().map(module).collect()
}

fn drivers_missing(message: String) -> Refusal {
    Refusal::new(Unfixed::GuestDriversMissing, message)
}

/// The modules, what loads them, and the generator's hook.
fn loading(
    kernel: &Kernel,
    path: &str,
    generator: &Generator,
    unpacked: &Unpacked<'_>,
    files: &Mounted,
) -> Result<Vec<(String, Entry)>, Refusal> {
    let modules = needed(kernel, files)?;
    let loader = unpacked.loader();
    let loader = loader.ok_or_else(|| Refusal::unsupported(format!("{path} has no program that loads modules.")))?;
    let mut entries = Vec::new();
    let mut names = String::new();
    for Module { file, unpacked, .. } in modules {
        let name =
            file_name(&file).ok_or_else(|| drivers_missing(format!("modules.dep names no module by {file}.")))?;
        names.push_str(name);
        names.push('\n');
        entries.push((format!("{HOME}/{name}"), Entry::File(0o644, unpacked)));
    }
    entries.push((format!("{HOME}/insmod"), Entry::Link(format!("/{loader}"))));
    entries.extend(hooks(generator, &names));
    entries.push((format!("{HOME}/order"), Entry::File(0o644, names.into_bytes())));
    Ok(entries)
}

/// The modules where the initramfs has its own, and the guest's lists of all modules in place of those of the few that are
/// there. Its init finds drivers by the lists; one that is listed and not there is as one that is not listed.
fn listing(
    kernel: &Kernel,
    path: &str,
    unpacked: &Unpacked<'_>,
    files: &Mounted,
) -> Result<Vec<(String, Entry)>, Refusal> {
    let homes = MODULES.iter().map(|above| format!("{above}/{}", kernel.version));
    let home = homes.into_iter().find(|home| unpacked.is_directory(home));
    let home = home.ok_or_else(|| Refusal::unsupported(format!("{path} has no modules of {}.", kernel.version)))?;
    let directory = format!("/lib/modules/{}", kernel.version);
    let mut entries = Vec::new();
    for Module { file, packed, .. } in needed(kernel, files)? {
        let below = file.strip_prefix(&format!("{directory}/")).unwrap_or(&file);
        entries.push((format!("{home}/{below}"), Entry::File(0o644, packed)));
    }
    for list in LISTS {
        let place = format!("{directory}/{list}");
        match files.read(&place)? {
            Some(content) => entries.push((format!("{home}/{list}"), Entry::File(0o644, content))),
            None if unpacked.has(&format!("{home}/{list}")) => {
                return Err(drivers_missing(format!("{place} is not there, and {path} has one.")));
            }
            None => {}
        }
    }
    Ok(entries)
}

/// What makes `generator`'s init load the modules of `names`, a line each.
fn hooks(generator: &Generator, names: &str) -> Vec<(String, Entry)> {
    match generator {
        Generator::InitramfsTools => {
            vec![("conf/conf.d/zz-hyper2kvm".into(), Entry::File(0o644, LOAD.as_bytes().to_vec()))]
        }
        Generator::Dracut(directories) => {
            let script = format!("#!/bin/sh\n{LOAD}").into_bytes();
            let hook = |directory: &&str| {
                (format!("{directory}/pre-udev/00-hyper2kvm.sh"), Entry::File(0o755, script.clone()))
            };
            // By this file lsinitrd knows that another archive follows.
            let early = ("early_cpio".to_owned(), Entry::File(0o644, b"1\n".to_vec()));
            directories.iter().map(hook).chain([early]).collect()
        }
        Generator::Mkinitcpio(rules) => {
            // For every device of virtio's maker; the modules are there already for all but the first.
            let mut rule = r#"ACTION=="add", SUBSYSTEM=="pci", ATTR{vendor}=="0x1af4""#.to_owned();
            for name in names.lines() {
                write!(rule, r#", RUN+="/{HOME}/insmod /{HOME}/{name}""#).expect("writing to a string does not fail");
            }
            rule.push('\n');
            vec![(format!("{rules}/00-hyper2kvm.rules"), Entry::File(0o644, rule.into_bytes()))]
        }
        // It finds them by itself.
        Generator::Mkinitfs => Vec::new(),
    }
}
