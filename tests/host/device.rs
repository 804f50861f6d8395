// SPDX-License-Identifier: Apache-2.0
//! Disks that go onto block devices and into file systems of their own: loop devices, full of what the last tenant left.

mod by_hand;
mod fix;
mod worker;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// What the last tenant left.
const STALE: u8 = 0xA5;

/// A loop device over a file of stale bytes; gone in the end.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    /// `None`, with a word on standard error, where there can be none.
    fn new(place: &TempDir, bytes: u64, sector: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("left out: disks on block devices: they take root and loop devices");
            return None;
        }
        let number = fs::read_dir(place.path()).unwrap().count();
        let path = place.path().join(format!("device-{number}"));
        let file = File::create_new(&path).unwrap();
        for at in (0..bytes).step_by(1 << 20) {
            let len = usize::try_from(MIB.min(bytes - at)).unwrap();
            file.write_all_at(&vec![STALE; len], at).unwrap();
        }
        file.sync_all().unwrap();
        // Other tests have some of them meanwhile.
        let started = Instant::now();
        loop {
            let mut losetup = Command::new("losetup");
            losetup.args(["--find", "--show", "--sector-size"]).arg(sector.to_string()).arg(&path);
            let made = losetup.output().expect("losetup is there where root is");
            if made.status.success() {
                let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
                return Some(Self { device, file: path });
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{}", String::from_utf8_lossy(&made.stderr));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn name(&self) -> &str {
        self.device.to_str().unwrap()
    }

    /// Every byte of it, as it is on stable storage.
    fn content(&self) -> Vec<u8> {
        run("blockdev", &["--flushbufs", self.name()]);
        fs::read(&self.device).unwrap()
    }

    /// Whether it holds `disk`, and zeros behind it.
    fn holds(&self, disk: &[u8]) -> bool {
        let content = self.content();
        content.starts_with(disk) && content[disk.len()..].iter().all(|&byte| byte == 0)
    }

    fn is_untouched(&self) -> bool {
        self.content().iter().all(|&byte| byte == STALE)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
        let _ = fs::remove_file(&self.file);
    }
}

/// A device with an ext4 file system, mounted; unmounted in the end.
struct Mounted {
    directory: PathBuf,
    _device: Loop,
}

impl Mounted {
    fn new(place: &TempDir, bytes: u64) -> Option<Self> {
        let device = Loop::new(place, bytes, 512)?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", device.name()]);
        let directory = place.path().join(format!("mounted-{}", device.name().replace('/', "-")));
        fs::create_dir(&directory).unwrap();
        run("mount", &[device.name(), directory.to_str().unwrap()]);
        Some(Self { directory, _device: device })
    }

    fn image(&self) -> PathBuf {
        self.directory.join("disk.img")
    }

    /// Bytes that somebody who is not root may write.
    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.directory).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.directory).output();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A guest's disk of `size` bytes with data at both ends, noise that no batch ends with, and long and short zeros.
fn guest(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut fill = |start: u64, len: u64| {
        for at in start.min(size)..(start + len).min(size) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes[usize::try_from(at).unwrap()] = (state >> 32).to_le_bytes()[0] | 1;
        }
    };
    fill(0, 700);
    fill(40_000, 3);
    fill(MIB - 5000, 9000);
    fill(3 * MIB + 512, 2 * MIB);
    fill(7 * MIB, 10);
    fill(size.saturating_sub(512), 512);
    bytes
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
