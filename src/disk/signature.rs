// SPDX-License-Identifier: Apache-2.0
//! What a block device holds, as far as the usual signatures show: partition tables, file systems, parts of volumes.
//!
//! A person is asked before it is overwritten. The places are those of libblkid.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::Geometry;

/// Bytes looked at from each end.
const EDGE: u64 = 1 << 20;

/// Bytes at an offset from the device's start, and what they mean.
const SIGNATURES: [(u64, &[u8], &str); 30] = [
    (512, b"EFI PART", "a GPT"),
    (4096, b"EFI PART", "a GPT"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65_600, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (32_769, b"CD001", "an ISO 9660 file system"),
    (32, b"NXSB", "an APFS container"),
    (4086, b"SWAPSPACE2", "swap space"),
    (65_526, b"SWAPSPACE2", "swap space"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"\xfc\x4e\x2b\xa9", "a part of a RAID"),
    (4096, b"\xfc\x4e\x2b\xa9", "a part of a RAID"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK"),
    (0, b"vhdxfile", "a VHDX"),
    (0, b"conectix", "a VHD"),
    (64, b"\x7f\x10\xda\xbe", "a VDI"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// Where ZFS' uberblocks of the first label lie, and their magic number.
const UBERBLOCKS: std::ops::Range<u64> = 131_072..262_144;
const UBERBLOCK: u64 = 0x00ba_b10c;

/// What `device` holds, in words for a person; `None` where nothing is recognised.
///
/// # Errors
/// The system's.
pub fn find(device: &File, geometry: Geometry) -> io::Result<Option<&'static str>> {
    let len = usize::try_from(EDGE.min(geometry.bytes)).expect("a MiB at most");
    let mut bytes = vec![0; len];
    device.read_exact_at(&mut bytes, 0)?;
    if let Some(found) = at_start(&bytes) {
        return Ok(Some(found));
    }
    device.read_exact_at(&mut bytes, geometry.bytes - len as u64)?;
    Ok(at_end(&bytes, geometry))
}

fn at_start(bytes: &[u8]) -> Option<&'static str> {
    let has = |offset: u64, magic: &[u8]| {
        usize::try_from(offset).ok().and_then(|at| bytes.get(at..at + magic.len())) == Some(magic)
    };
    let found = SIGNATURES.iter().find(|(offset, magic, _)| has(*offset, magic)).map(|(_, _, what)| *what);
    let is_uberblock = |at| has(at, &UBERBLOCK.to_le_bytes()) || has(at, &UBERBLOCK.to_be_bytes());
    found.or_else(|| UBERBLOCKS.step_by(1024).any(is_uberblock).then_some("a part of a ZFS pool"))
}

/// The second header of a GPT, and superblocks of Linux' RAID, versions 0.90 and 1.0.
fn at_end(bytes: &[u8], geometry: Geometry) -> Option<&'static str> {
    let start = geometry.bytes - bytes.len() as u64;
    let has = |at: u64, magic: &[u8]| {
        let at = at.checked_sub(start).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| bytes.get(at..at + magic.len())) == Some(magic)
    };
    let raid = b"\xfc\x4e\x2b\xa9";
    if has(geometry.bytes - u64::from(geometry.sector), b"EFI PART") {
        return Some("the end of a GPT");
    }
    let old = (geometry.bytes & !0xffff).checked_sub(0x10000);
    let new = geometry.bytes.checked_sub(0x2000).map(|at| at & !0xfff);
    [old, new].into_iter().flatten().any(|at| has(at, raid)).then_some("a part of a RAID")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 3 << 20;

    fn found(at: u64, magic: &[u8]) -> Option<&'static str> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        file.write_all_at(magic, at).unwrap();
        find(&file, Geometry { bytes: BYTES, sector: 512 }).unwrap()
    }

    #[test]
    fn what_a_device_holds_is_found_at_both_of_its_ends() {
        for (at, magic, what) in SIGNATURES {
            assert_eq!(found(at, magic), Some(what));
        }
        assert_eq!(found(131_072 + 5 * 1024, &UBERBLOCK.to_be_bytes()), Some("a part of a ZFS pool"));
        assert_eq!(found(BYTES - 512, b"EFI PART"), Some("the end of a GPT"));
        for at in [BYTES - 0x10000, BYTES - 0x2000] {
            assert_eq!(found(at, b"\xfc\x4e\x2b\xa9"), Some("a part of a RAID"));
        }
        assert_eq!(found(0, &[]), None);
        assert_eq!(found(0, &vec![0xA5; 3 << 20]), None, "bytes without a meaning");
    }
}
