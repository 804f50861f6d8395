// SPDX-License-Identifier: Apache-2.0
//! Disks of guests, and what QEMU finds on them.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{left_out, run};

/// A guest's disk of some MiB: data by its seed, and holes.
pub(crate) fn guest(mib: usize, seed: u64) -> Vec<u8> {
    let mut disk = vec![0; mib << 20];
    let mut state = seed | 1;
    for (number, grain) in disk.chunks_mut(64 << 10).enumerate() {
        if number % 3 == 1 {
            continue;
        }
        for word in grain.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
    disk
}

/// Whether a guest would find these bytes on the disk, according to QEMU.
pub(crate) fn holds(disk: &Path, truth: &[u8]) {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return left_out("comparing the disks: qemu-img is missing (Debian: qemu-utils)");
    }
    let raw = tempfile::NamedTempFile::new().unwrap();
    fs::write(raw.path(), truth).unwrap();
    let said = run(Command::new("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw"]).arg(disk).arg(raw.path()));
    assert!(said.contains("Images are identical."), "{}: {said}", disk.display());
}
