// SPDX-License-Identifier: Apache-2.0
//! The appliance's own machine: its kernel's file systems, modules and disks.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hyper2kvm::appliance::initrd::{MODULES, MODULES_LIST};
use hyper2kvm::appliance::protocol::JobDisk;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// How long a disk may take to appear after its driver was loaded.
const DISK_PATIENCE: Duration = Duration::from_secs(20);
/// Bytes before the serial number in a SCSI disk's page 0x80.
const VPD_HEADER: usize = 4;

/// Mounts what the kernel tells, and loads the drivers of disks.
pub(crate) fn prepare() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        mount(kind, place, kind, flags, None)?;
    }
    load("base")
}

/// Loads the modules of a group. One that is there already is no fault.
pub(crate) fn load(group: &str) -> io::Result<()> {
    let list = fs::read_to_string(Path::new("/").join(MODULES_LIST))?;
    for name in
        list.lines().filter_map(|line| line.split_once(' ').filter(|(of, _)| *of == group)).map(|(_, name)| name)
    {
        let (may_fail, name) = name.strip_prefix('?').map_or((false, name), |name| (true, name));
        let file = File::open(Path::new("/").join(MODULES).join(name))?;
        match finit_module(&file, c"", 0) {
            Err(error) if !may_fail && error != Errno::EXIST => {
                return Err(io::Error::other(format!("module {name}: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Milliseconds since the kernel began.
pub(crate) fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default();
    Duration::try_from_secs_f64(seconds).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The kernel's names of the job's disks, in their order: `vda`.
pub(crate) fn disks(wanted: &[JobDisk]) -> Result<Vec<String>, String> {
    let end = Instant::now() + DISK_PATIENCE;
    loop {
        let known: Vec<(String, String)> =
            names("/sys/block").into_iter().filter_map(|name| Some((serial(&name)?, name))).collect();
        let find =
            |disk: &JobDisk| known.iter().find(|(serial, _)| *serial == disk.serial).map(|(_, name)| name.clone());
        let missing = wanted.iter().find(|disk| find(disk).is_none());
        let Some(missing) = missing else { return Ok(wanted.iter().filter_map(find).collect()) };
        if Instant::now() >= end {
            return Err(format!("The appliance has no disk with the serial number {}.", missing.serial));
        }
        // The kernel probes disks on its own, and tells nobody without udev.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A disk's serial number: of virtio-blk by its own file, of SCSI by the disk's page 0x80.
fn serial(disk: &str) -> Option<String> {
    let directory = Path::new("/sys/block").join(disk);
    if let Ok(serial) = fs::read_to_string(directory.join("serial")) {
        return Some(serial.trim().to_owned());
    }
    let page = fs::read(directory.join("device/vpd_pg80")).ok()?;
    Some(String::from_utf8_lossy(page.get(VPD_HEADER..)?).trim().to_owned())
}

/// The partitions of a disk with their numbers: `vda1`, 1.
pub(crate) fn partitions(disk: &str) -> Vec<(String, u32)> {
    let directory = format!("/sys/block/{disk}");
    let number = |name: &str| fs::read_to_string(format!("{directory}/{name}/partition")).ok()?.trim().parse().ok();
    names(&directory).into_iter().filter_map(|name| Some((name.clone(), number(&name)?))).collect()
}

/// Bytes of a disk.
pub(crate) fn size(disk: &str) -> Option<u64> {
    let sectors: u64 = fs::read_to_string(format!("/sys/block/{disk}/size")).ok()?.trim().parse().ok()?;
    sectors.checked_mul(512)
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Ends the machine; the kernel's panic ends it where that fails.
pub(crate) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("cannot power off: {error}");
    }
}
