//! Writes a sample VMDK: `sample_vmdk FILE MIB [sparse]`. Two thirds of its grains hold data that shrinks to about half,
//! as a used file system does; the rest is empty.

#[path = "../tests/images/vmdk.rs"]
mod vmdk;

use std::fs::File;
use std::io::BufWriter;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: sample_vmdk FILE MIB [sparse]";
    let path = arguments.next().context(usage)?;
    let capacity = arguments.next().context(usage)?.parse::<u64>().context(usage)? << 20;
    let kind = match arguments.next().as_deref() {
        None => vmdk::Sparse::stream_optimized(capacity),
        Some("sparse") => vmdk::Sparse::monolithic_sparse(capacity),
        Some(other) => anyhow::bail!("unknown kind {other}; {usage}"),
    };
    let file = File::create(&path).with_context(|| format!("cannot create {path}"))?;
    kind.write(&mut BufWriter::with_capacity(1 << 20, file), grain).with_context(|| format!("cannot write {path}"))
}

/// The grain's bytes, by its number alone: words from a small dictionary, binary records and noise.
fn grain(number: u64) -> Option<Vec<u8>> {
    if number / 7 % 3 == 1 {
        return None;
    }
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(usize::try_from(vmdk::GRAIN).expect("64 KiB") + 64);
    while bytes.len() < bytes.capacity() - 64 {
        let random = next();
        match random % 8 {
            0..=3 => {
                let text = format!("{:x} record {} of the file\n", random >> 40, random % 977);
                bytes.extend_from_slice(text.as_bytes());
            }
            4 | 5 => bytes.extend_from_slice(&[0; 24]),
            _ => bytes.extend_from_slice(&random.to_le_bytes()),
        }
    }
    bytes.truncate(usize::try_from(vmdk::GRAIN).expect("64 KiB"));
    Some(bytes)
}
