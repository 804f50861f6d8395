// SPDX-License-Identifier: Apache-2.0
//! NTFS, mounted by ntfs-3g: kernels of Debian 12 cannot write it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use super::machine;

const PROGRAM: &str = "/sbin/ntfs-3g";
/// How long it may take to mount, and to end once it is unmounted.
const PATIENCE: Duration = Duration::from_secs(60);
/// It stays this process's child; a log is not replayed, and names that Windows cannot have are not made.
const OPTIONS: &str = "no_detach,norecover,windows_names,noatime,nodev,nosuid,noexec,big_writes";

/// A mounted NTFS.
pub(crate) struct Ntfs {
    server: Child,
    place: &'static str,
}

impl Ntfs {
    /// Mounts `device` on `place`.
    pub(crate) fn mount(device: &Path, place: &'static str, access: &str) -> Result<Self, String> {
        if !Path::new(PROGRAM).exists() {
            return Err("the appliance has no ntfs-3g: install it, and build the appliance again".to_owned());
        }
        machine::load("ntfs").map_err(|error| error.to_string())?;
        let server = Command::new(PROGRAM)
            .arg(device)
            .arg(place)
            .args(["-o", &format!("{access},{OPTIONS}")])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("ntfs-3g cannot be started: {error}"))?;
        let mut mounted = Self { server, place };
        let end = Instant::now() + PATIENCE;
        while !is_mounted(place) {
            if let Some(status) = mounted.server.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("ntfs-3g refuses it ({status})"));
            }
            if Instant::now() >= end {
                let _ = mounted.server.kill();
                return Err("ntfs-3g did not mount it in time".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(mounted)
    }

    /// Unmounts it, and waits until all is written.
    pub(crate) fn unmount(mut self) -> io::Result<()> {
        rustix::fs::sync();
        unmount(self.place, UnmountFlags::NOFOLLOW)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match self.server.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(io::Error::other(format!("ntfs-3g ended with {status}"))),
                None if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn is_mounted(place: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(place))
}
