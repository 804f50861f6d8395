// SPDX-License-Identifier: Apache-2.0
//! Checksums of changed images.
//!
//! Formats: *VHDX Format Specification* (MS-VHDX), *Virtual Hard Disk Image Format Specification*, POSIX' ustar.

use crate::support::ova::sum;

const KIB: usize = 1024;
/// A VHDX's two headers and its two tables of regions: place, signature, length.
const SEALED: [(usize, &[u8; 4], usize); 4] = [
    (64 * KIB, b"head", 4 * KIB),
    (128 * KIB, b"head", 4 * KIB),
    (192 * KIB, b"regi", 64 * KIB),
    (256 * KIB, b"regi", 64 * KIB),
];
/// The region of the block allocation table.
const BAT: [u8; 16] = *b"\x66\x77\xC2\x2D\x23\xF6\x00\x42\x9D\x64\x11\x5E\x9B\xFD\x4A\x08";
const LOG_GUID: [u8; 16] = [0x4C; 16];

/// Gives the structures of an image the checksums that they must have, as far as they are where they belong.
pub(super) fn mend(name: &str, image: &mut [u8]) {
    match name.rsplit('.').next() {
        Some("vhdx") => mend_vhdx(image),
        Some("vhd") => mend_vhd(image),
        Some("tar" | "ova") => {
            for block in image.as_chunks_mut::<512>().0.iter_mut().filter(|block| block[257..262] == *b"ustar") {
                sum(block);
            }
        }
        _ => {}
    }
}

fn mend_vhdx(image: &mut [u8]) {
    for (at, signature, len) in SEALED {
        if let Some(part) = image.get_mut(at..at + len).filter(|part| part.starts_with(signature)) {
            seal(part);
        }
    }
    let log = number(image, 64 * KIB + 72, 8);
    let len = number(image, log.saturating_add(8), 4);
    if let Some(entry) = image.get_mut(log..log.saturating_add(len)).filter(|entry| entry.starts_with(b"loge")) {
        seal(entry);
    }
}

/// Sets the checksum behind the signature of a part of a VHDX.
fn seal(part: &mut [u8]) {
    if part.len() >= 8 {
        part[4..8].fill(0);
        let sum = crc32c::crc32c(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The footer, its copy, and the header of a dynamic one.
fn mend_vhd(image: &mut [u8]) {
    let last = image.len().saturating_sub(512);
    for (at, signature, len, field) in
        [(0, b"conectix", 512, 64), (last, b"conectix", 512, 64), (512, b"cxsparse", 1024, 36)]
    {
        if let Some(part) = image.get_mut(at..at + len).filter(|part| part.starts_with(signature)) {
            part[field..field + 4].fill(0);
            let sum = part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}

/// A little-endian number of `len` bytes; 0 where the image ends before.
fn number(image: &[u8], at: usize, len: usize) -> usize {
    let bytes = image.get(at..at.saturating_add(len)).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// A VHDX that was not closed: the first sector of its table lies in its log alone.
pub(super) fn unclosed(mut image: Vec<u8>) -> Vec<u8> {
    let entries = (0..2).map(|index| 192 * KIB + 16 + index * 32);
    let table = entries.filter(|at| image[*at..at + 16] == BAT).map(|at| number(&image, at + 16, 8)).next();
    let table = table.expect("it has a table");
    let log = number(&image, 64 * KIB + 72, 8);
    for header in [64 * KIB, 128 * KIB] {
        image[header + 48..header + 64].copy_from_slice(&LOG_GUID);
    }
    let mut entry = vec![0; 4 * KIB];
    let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"loge");
    put(8, &(8 * 1024_u32).to_le_bytes());
    for (at, number) in
        [(16, 1), (24, 1), (48, image.len() as u64), (56, image.len() as u64), (80, table as u64), (88, 1)]
    {
        put(at, &number.to_le_bytes());
    }
    put(32, &LOG_GUID);
    let sector = &mut image[table..table + 4 * KIB];
    put(64, b"desc");
    put(68, &sector[4092..]);
    put(72, &sector[..8]);
    entry.extend_from_slice(sector);
    entry[4096..4104].copy_from_slice(b"data\0\0\0\0");
    entry[8188..].copy_from_slice(&1_u32.to_le_bytes());
    sector.fill(0xEE);
    image[log..log + entry.len()].copy_from_slice(&entry);
    mend_vhdx(&mut image);
    image
}
