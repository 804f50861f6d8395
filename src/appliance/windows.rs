// SPDX-License-Identifier: Apache-2.0
//! What must be changed so that Windows starts from virtio: viostor as a driver of the boot, and drivers that the first boot
//! adds to Windows' store. Nothing is written here.
//!
//! ```text
//! job's drivers ─▶ files in System32\drivers and \Windows\hyper2kvm ─┐
//! SYSTEM ─▶ service, driver database, service of the first boot ─────┴▶ room ─▶ changes
//! ```

mod inf;
mod registry;

use std::io::Read as _;
use std::time::Duration;

use super::mounted::{self, Mounted};
use super::plan::{Act, Plan, Refusal, check_room};
use super::protocol::{DriverFile, Job};
use crate::conversion::guest::fix::Unfixed;
use crate::conversion::guest::{FixKind, Guest};
use crate::guest::Limits;
use crate::guest::hive::{Editor, HiveError, MAX_HIVE};

/// The drivers that are treated, by their services.
pub const BLOCK: &str = "viostor";
pub const NETWORK: &str = "netkvm";
/// Where the drivers wait for the first boot, and what it runs.
const DIRECTORY: &str = "/Windows/hyper2kvm";
const SCRIPT: &str = "firstboot.cmd";
const HIVE: &str = "/Windows/System32/config/SYSTEM";
const DRIVERS: &str = "/Windows/System32/drivers";

/// What the first boot runs as the system. pnputil takes this form of its words from Windows 7 on. It ends with 259 where no
/// device uses the driver yet, and with 3010 where one will after the next boot.
const FIRST_BOOT: &str = r#"@echo off
rem Written by hyper2kvm: adds the drivers beside this file to Windows' store, and removes its own service.
setlocal EnableDelayedExpansion
set log=%SystemRoot%\Temp\hyper2kvm-drivers.log
set done=1
for /d %%d in ("%~dp0*") do (
  "%SystemRoot%\System32\pnputil.exe" -i -a "%%d\%%~nxd.inf" >>"%log%" 2>&1
  set code=!errorlevel!
  echo %%~nxd: !code!>>"%log%"
  if not !code!==0 if not !code!==259 if not !code!==3010 set done=0
)
if !done!==1 "%SystemRoot%\System32\sc.exe" delete hyper2kvm >>"%log%" 2>&1
"#;

/// Plans the changes of the Windows whose files are `files`; `drivers` are the files of the job's drivers.
pub fn plan(guest: &Guest, files: &Mounted, job: &Job, drivers: &[DriverFile]) -> Result<Plan, Refusal> {
    let architecture = supported(guest)?;
    let block = drivers_of(drivers, BLOCK);
    let (Some(system), Some(information)) = (file(&block, "viostor.sys"), file(&block, "viostor.inf")) else {
        let message = "Windows has no virtio driver that starts at boot, and the job brings none.";
        return Err(Refusal::new(Unfixed::GuestDriversMissing, message));
    };
    let devices = inf::devices(&information.content);
    if devices.is_empty() {
        let message = "viostor.inf names none of virtio-blk's devices (PCI\\VEN_1AF4&DEV_1001 or DEV_1042).";
        return Err(Refusal::new(Unfixed::GuestDriversMissing, message));
    }
    let mut plan = Plan::default();
    let driver = files.any_case(&format!("{DRIVERS}/viostor.sys"));
    if files.read(&driver)?.as_ref() != Some(&system.content) {
        plan.change(FixKind::WindowsDrivers, &driver, Act::Install(system.content.clone()));
    }
    let base = files.any_case(DIRECTORY);
    for DriverFile { driver, name, content } in drivers {
        plan.change(FixKind::WindowsDrivers, &format!("{base}/{driver}/{name}"), Act::Install(content.clone()));
    }
    let script = FIRST_BOOT.replace('\n', "\r\n").into_bytes();
    plan.change(FixKind::WindowsDrivers, &format!("{base}/{SCRIPT}"), Act::Install(script));
    let path = files.any_case(HIVE);
    let hive = hive(files, &path)?;
    let wrong = |error: HiveError| unusable(&path, &error);
    let limits = Limits { time: Duration::from_secs(job.limits.inspection_seconds), ..Limits::default() };
    let mut editor = Editor::open(hive, &limits).map_err(wrong)?;
    registry::edit(&mut editor, &devices, architecture).map_err(wrong)?;
    // Last: with the driver in its place, the registry may name it.
    plan.change(FixKind::WindowsDrivers, &path, Act::Edit(editor.finish()));
    tell_of_network(drivers, &mut plan);
    check_room(&plan, files, job.limits.growth_bytes.saturating_add(MAX_HIVE))?;
    Ok(plan)
}

/// The architecture of a Windows that is treated, as the driver database has it.
fn supported(guest: &Guest) -> Result<u8, Refusal> {
    // A doubt about a registry that was read is about its log, which is told where it is opened, with what to do.
    let is_foundation =
        |what: &str| matches!(what, "guest" | "SOFTWARE") || what == "SYSTEM" && guest.windows.is_none();
    let doubt = guest.doubts.iter().find(|doubt| is_foundation(&doubt.what));
    if let Some(doubt) = doubt {
        let message = format!("An answer about its {} is missing: {}.", doubt.what, doubt.why);
        return Err(Refusal::unsupported(message));
    }
    let (version, architecture) =
        guest.os.as_ref().map(|os| (os.version.as_str(), os.architecture.as_deref())).unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default();
    if major < 6 {
        return Err(Refusal::unsupported(format!(
            "Its version {version:?} is older than Windows Vista, or not known."
        )));
    }
    match architecture {
        // As Windows' headers number processors.
        Some("x86_64") => Ok(9),
        Some("i386") => Ok(0),
        other => {
            let other = other.unwrap_or("a processor that is not known");
            Err(Refusal::unsupported(format!("It is for {other}, and the machine has x86_64.")))
        }
    }
}

/// Tells what becomes of the network cards.
fn tell_of_network(drivers: &[DriverFile], plan: &mut Plan) {
    if drivers_of(drivers, NETWORK).is_empty() {
        plan.leave(NETWORK, "Virtio-win's directory has none for this Windows, so the cards are not virtio's.");
        return;
    }
    let why = "The first boot adds it to Windows' store; until then the cards are not virtio's. See \
               \\Windows\\Temp\\hyper2kvm-drivers.log, then change their model.";
    plan.leave(NETWORK, why);
}

fn drivers_of<'a>(drivers: &'a [DriverFile], name: &str) -> Vec<&'a DriverFile> {
    drivers.iter().filter(|file| file.driver == name).collect()
}

fn file<'a>(files: &[&'a DriverFile], name: &str) -> Option<&'a DriverFile> {
    files.iter().find(|file| file.name == name).copied()
}

/// The bytes of a hive, which is larger than what is read elsewhere.
fn hive(files: &Mounted, path: &str) -> Result<Vec<u8>, Refusal> {
    let wrong = |source| mounted::Error { act: "read", path: path.to_owned(), source };
    let file = files.file(path)?.ok_or_else(|| Refusal::unsupported(format!("{path} is not there.")))?;
    let mut bytes = Vec::new();
    file.take(MAX_HIVE + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > MAX_HIVE {
        return Err(Refusal::unsupported(format!("{path} has more than {} MiB.", MAX_HIVE >> 20)));
    }
    Ok(bytes)
}

fn unusable(path: &str, error: &HiveError) -> Refusal {
    match error {
        HiveError::Dirty => {
            let message =
                format!("{path} cannot be changed, because {error}: start Windows once and shut it down wholly.");
            Refusal::new(Unfixed::GuestHibernated, message)
        }
        HiveError::Broken(_) => Refusal::unsupported(format!("{path} cannot be changed: {error}.")),
    }
}

#[cfg(test)]
mod tests;
