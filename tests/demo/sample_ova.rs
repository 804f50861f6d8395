// SPDX-License-Identifier: Apache-2.0
//! Writes a sample appliance for the demonstration: `sample_ova FILE MIB`. Its disk is streamOptimized as ESXi exports
//! it; two thirds of its grains hold data that shrinks to about half, as a used file system does, the rest is empty.

#[path = "../images/ova.rs"]
mod ova;
#[path = "../images/vmdk.rs"]
mod vmdk;

use std::fs;
use std::io::Cursor;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: sample_ova FILE MIB";
    let path = arguments.next().context(usage)?;
    let capacity = arguments.next().context(usage)?.parse::<u64>().context(usage)? << 20;
    let mut disk = Cursor::new(Vec::new());
    vmdk::Sparse::stream_optimized(capacity).write(&mut disk, grain)?;
    let appliance = ova::ova("web01", &[("web01-disk1.vmdk", disk.get_ref(), capacity)]);
    fs::write(&path, appliance).with_context(|| format!("cannot write {path}"))
}

/// The grain's bytes, by its number alone: lines of text, empty records and noise.
fn grain(number: u64) -> Option<Vec<u8>> {
    if number / 7 % 3 == 1 {
        return None;
    }
    let len = usize::try_from(vmdk::GRAIN).expect("64 KiB");
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 8 {
            0..=3 => {
                bytes.extend_from_slice(format!("{:x} record {} of the file\n", state >> 40, state % 977).as_bytes());
            }
            4 | 5 => bytes.extend_from_slice(&[0; 24]),
            _ => bytes.extend_from_slice(&state.to_le_bytes()),
        }
    }
    bytes.truncate(len);
    Some(bytes)
}
