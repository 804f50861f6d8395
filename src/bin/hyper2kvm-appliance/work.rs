// SPDX-License-Identifier: Apache-2.0
//! The steps, from the job to the outcome.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper2kvm::appliance::apply::apply;
use hyper2kvm::appliance::plan::{Refusal, plan, triage};
use hyper2kvm::appliance::protocol::{JOB_PATH, Job, Step};
use hyper2kvm::conversion::chain;
use hyper2kvm::conversion::guest::fix::{Outcome, Root, Unfixed};
use hyper2kvm::conversion::guest::{Family, Guest};
use hyper2kvm::disk::{Image, Region};
use hyper2kvm::guest::Limits;

use super::guest::{Devices, deactivate, make_writable, unmount_all};
use super::{GuestFix, Port, check, machine, windows};

/// Does the job; what is found out on the way stands in `report`.
pub(crate) fn run(report: &mut GuestFix, port: &mut Port) -> Result<Outcome, Refusal> {
    port.step(Step::Start);
    let job = fs::read(Path::new("/").join(JOB_PATH)).map_err(|error| failed(&format!("There is no job: {error}.")))?;
    let job = Job::parse(&job).map_err(|error| failed(&chain(&error)))?;
    port.step(Step::Disks);
    let devices = Devices { disks: machine::disks(&job.disks).map_err(|why| failed(&why))? };
    devices.settle();
    port.step(Step::Inspect);
    let guest = inspect(&devices, &job)?;
    report.os.clone_from(&guest.os);
    if !triage(&guest)? {
        return Ok(Outcome::NotAGuest);
    }
    let root = guest.volumes.iter().find(|volume| Some(&volume.name) == guest.root.as_ref());
    report.root = root.map(|root| Root { volume: root.name.clone(), content: root.content.clone() });
    if guest.family == Family::Windows {
        return windows::run(report, port, &guest, &devices, &job);
    }
    let (files, volumes) = devices.mount(&guest)?;
    port.step(Step::Plan);
    let plan = plan(&guest, &files, &job)?;
    report.left = plan.left;
    report.kernels = plan.kernels;
    if plan.changes.is_empty() {
        return Ok(Outcome::NothingToDo);
    }
    port.step(Step::Apply);
    make_writable(&files, &volumes)?;
    for planned in &plan.changes {
        report.changes.push(apply(&files, planned).map_err(|error| failed(&chain(&error)))?);
    }
    unmount_all(files).map_err(|error| failed(&format!("The guest cannot be unmounted: {error}.")))?;
    port.step(Step::Check);
    for volume in &volumes {
        if let Some(fault) = check::check(&volume.device, &volume.content) {
            return Err(failed(&fault));
        }
    }
    deactivate();
    rustix::fs::sync();
    Ok(Outcome::Fixed)
}

/// Looks into the guest, by the readers that the host has, too.
fn inspect(devices: &Devices, job: &Job) -> Result<Guest, Refusal> {
    let mut images = Vec::new();
    for disk in &devices.disks {
        let path = Path::new("/dev").join(disk);
        let file =
            File::open(&path).map_err(|error| failed(&format!("{} cannot be read: {error}.", path.display())))?;
        let size = machine::size(disk).ok_or_else(|| failed(&format!("{disk} has no size.")))?;
        let image = Image::raw(&Region::whole(Arc::new(file), disk.as_str(), size));
        images.push(image.map_err(|error| failed(&chain(&error)))?);
    }
    let disks: Vec<(&str, &Image)> = devices.disks.iter().map(String::as_str).zip(&images).collect();
    let time = Duration::from_secs(job.limits.inspection_seconds);
    let guest = hyper2kvm::guest::inspect(&disks, &Limits { time, ..Limits::default() });
    for doubt in &guest.doubts {
        println!("doubt: {}: {}", doubt.what, doubt.why);
    }
    Ok(guest)
}

pub(crate) fn failed(message: &str) -> Refusal {
    Refusal::new(Unfixed::GuestFixFailed, message)
}
