// SPDX-License-Identifier: Apache-2.0
//! A guest that runs in QEMU until it powers itself off.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs QEMU with these arguments, for at most `limit`, and returns what the guest said on its serial console. What QEMU
/// itself says goes into `place/qemu.log`.
pub(crate) fn boot(arguments: &[String], place: &Path, limit: Duration) -> String {
    let console = place.join("console");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(arguments)
        .args(["-serial", &format!("file:{}", console.display())])
        .stdin(Stdio::null())
        .stderr(File::create(place.join("qemu.log")).unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while qemu.try_wait().unwrap().is_none() && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = qemu.kill();
    qemu.wait().unwrap();
    println!("the guest ran for {:?}", start.elapsed());
    String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned()
}
