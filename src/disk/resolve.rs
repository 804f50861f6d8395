// SPDX-License-Identifier: Apache-2.0
//! Tests only: the guest bytes of a map, computed in the plainest way, and images made by qemu-img.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::frame;
use super::{Error, Extent, Location, Region};

/// The image at `path` as a region under its base name.
pub(crate) fn region_of(path: &Path) -> Region {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Region::whole(Arc::new(file), path.file_name().unwrap().to_str().unwrap(), len)
}

/// A region over `bytes`, in an unnamed temporary file.
pub(crate) fn region_over(bytes: &[u8]) -> Region {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, piece) in bytes.chunks(65536).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, index as u64 * 65536).unwrap();
        }
    }
    Region::whole(Arc::new(file), "image", bytes.len() as u64)
}

/// The guest's disk; panics where the map has gaps, overlaps or another length than `size`.
pub(crate) fn guest_bytes(
    region: &Region,
    size: u64,
    extents: impl Iterator<Item = Result<Extent, Error>>,
) -> Result<Vec<u8>, Error> {
    let mut disk = Vec::new();
    for extent in extents {
        let extent = extent?;
        assert_eq!(extent.guest.start, disk.len() as u64, "the map is in guest order without gaps");
        assert!(!extent.is_empty(), "no extent is empty");
        assert!(extent.guest.end <= size, "the map ends with the disk");
        let len = usize::try_from(extent.len()).unwrap();
        let start = disk.len();
        disk.resize(start + len, 0);
        let buffer = &mut disk[start..];
        match extent.at {
            Location::Zero => {}
            Location::Stored { file: 0, offset } => region.read_exact_at(buffer, offset)?,
            Location::Deflate { file: 0, offset, len, zlib } => {
                let stored = read(region, offset, len)?;
                let inflated = if zlib {
                    flate2::read::ZlibDecoder::new(&stored[..]).read_exact(buffer)
                } else {
                    flate2::read::DeflateDecoder::new(&stored[..]).read_exact(buffer)
                };
                inflated.map_err(|e| Error::corrupt(region.name(), offset, e.to_string()))?;
            }
            Location::Framed { file: 0, offset, .. } => {
                let mut marker = [0; frame::LEN];
                region.read_exact_at(&mut marker, offset)?;
                let len = frame::data_len(marker, extent.guest.start);
                let len = len.map_err(|message| Error::corrupt(region.name(), offset, message))?;
                let stored = read(region, offset + frame::BYTES, len)?;
                let inflated = flate2::read::ZlibDecoder::new(&stored[..]).read_exact(buffer);
                inflated.map_err(|e| Error::corrupt(region.name(), offset, e.to_string()))?;
            }
            Location::Zstd { file: 0, offset, len } => {
                let stored = read(region, offset, len)?;
                let mut decoder = zstd::stream::read::Decoder::new(&stored[..]).unwrap();
                decoder.read_exact(buffer).map_err(|e| Error::corrupt(region.name(), offset, e.to_string()))?;
            }
            other => panic!("{other:?} is in another file"),
        }
    }
    assert_eq!(disk.len() as u64, size, "the map covers the disk");
    Ok(disk)
}

fn read(region: &Region, offset: u64, len: u32) -> Result<Vec<u8>, Error> {
    let mut stored = vec![0; len as usize];
    region.read_exact_at(&mut stored, offset)?;
    Ok(stored)
}

/// Runs qemu-img in `directory`; panics with its words where it fails.
pub(crate) fn qemu_img(directory: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).current_dir(directory).output().expect("qemu-img runs");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk of `len` bytes whose 4 KiB pieces are zeros, text or noise, by a fixed rule: every seventh 256 KiB is data.
pub(crate) fn sample_disk(len: usize) -> Vec<u8> {
    let mut disk = vec![0_u8; len];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for (index, piece) in disk.chunks_mut(4096).enumerate() {
        let kind = match (index / 64) % 7 {
            1 => index % 3,
            3 if index % 64 < 5 => 2,
            _ => 0,
        };
        for (at, byte) in piece.iter_mut().enumerate() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = match kind {
                0 => 0,
                1 => b"all work and no play "[at % 21],
                _ => (state >> 56) as u8,
            };
        }
    }
    disk[..64].copy_from_slice(&[0x5A; 64]);
    let tail = len - 16;
    disk[tail..].copy_from_slice(b"the disk's end.\n");
    disk
}
