// SPDX-License-Identifier: Apache-2.0
//! The steps of a guest of Windows, once it was inspected.

use std::fs;
use std::path::Path;

use hyper2kvm::appliance::apply::apply;
use hyper2kvm::appliance::mounted::Mounted;
use hyper2kvm::appliance::plan::{Plan, Refusal};
use hyper2kvm::appliance::protocol::{DRIVERS, DriverFile, Job, Step};
use hyper2kvm::appliance::windows::plan;
use hyper2kvm::conversion::chain;
use hyper2kvm::conversion::guest::Guest;
use hyper2kvm::conversion::guest::fix::{GuestFix, Outcome, Unfixed};

use super::guest::{Devices, ROOT};
use super::ntfs::Ntfs;
use super::work::failed;
use super::{Port, check};

/// Plans on the guest mounted read-only, then makes the changes.
pub(crate) fn run(
    report: &mut GuestFix,
    port: &mut Port,
    guest: &Guest,
    devices: &Devices,
    job: &Job,
) -> Result<Outcome, Refusal> {
    let root = guest.root.as_deref().unwrap_or_default();
    let unmountable = |why: &str| Refusal::new(Unfixed::GuestUnsupported, format!("{root} cannot be mounted: {why}."));
    let content = guest.volumes.iter().find(|volume| volume.name == root).map(|volume| volume.content.as_str());
    if content != Some("ntfs") {
        return Err(unmountable("it is no NTFS"));
    }
    let device = devices.of(root).ok_or_else(|| unmountable("it has no device"))?;
    let drivers = drivers(job).map_err(|error| failed(&format!("The drivers cannot be read: {error}.")))?;
    port.step(Step::Plan);
    let Plan { changes, left, .. } = mounted(&device, "ro", &unmountable, |files| plan(guest, files, job, &drivers))?;
    report.left = left;
    port.step(Step::Apply);
    report.changes = mounted(&device, "rw", &unmountable, |files| {
        changes.iter().map(|planned| apply(files, planned).map_err(|error| failed(&chain(&error)))).collect()
    })?;
    port.step(Step::Check);
    match check::check(&device, "ntfs") {
        Some(fault) => Err(failed(&fault)),
        None => Ok(Outcome::Fixed),
    }
}

/// What `ask` says of the guest's files, which are mounted as long.
fn mounted<T>(
    device: &Path,
    access: &str,
    unmountable: &dyn Fn(&str) -> Refusal,
    ask: impl FnOnce(&Mounted) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mounted = Ntfs::mount(device, ROOT, access).map_err(|why| unmountable(&why))?;
    let asked =
        Mounted::new(Path::new(ROOT)).map_err(|error| unmountable(&error.to_string())).and_then(|files| ask(&files));
    let ended = mounted.unmount().map_err(|error| failed(&format!("The guest cannot be unmounted: {error}.")));
    let asked = asked?;
    ended.map(|()| asked)
}

/// The files that the job's archive brought.
fn drivers(job: &Job) -> std::io::Result<Vec<DriverFile>> {
    let base = Path::new("/").join(DRIVERS);
    let mut files = Vec::new();
    for driver in &job.drivers {
        for name in &driver.files {
            let content = fs::read(base.join(&driver.name).join(name))?;
            files.push(DriverFile { driver: driver.name.clone(), name: name.clone(), content });
        }
    }
    Ok(files)
}
