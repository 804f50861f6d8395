// SPDX-License-Identifier: Apache-2.0
//! How a device is named: by what it holds, or by where it is.

use crate::conversion::guest::Naming;

/// Prefixes of what names a device by its content.
const CONTENT: [&str; 11] = [
    "UUID=",
    "LABEL=",
    "PARTUUID=",
    "PARTLABEL=",
    "/dev/disk/by-uuid/",
    "/dev/disk/by-label/",
    "/dev/disk/by-partuuid/",
    "/dev/disk/by-partlabel/",
    "/dev/mapper/",
    "/dev/md",
    "/dev/dm-",
];

/// Names of disks, each followed by a letter or a digit.
const DISKS: [&str; 6] = ["sd", "hd", "vd", "xvd", "nvme", "mmcblk"];

/// How `device`, a word of fstab or of a command line, names its device.
pub(in crate::guest) fn naming(device: &str) -> Naming {
    let device = device.trim_matches('"');
    if CONTENT.iter().any(|prefix| device.starts_with(prefix)) {
        return Naming::Content;
    }
    if device.starts_with("/dev/disk/") || device.starts_with("ID=") {
        return Naming::Path;
    }
    let Some(name) = device.strip_prefix("/dev/") else { return Naming::Other };
    if let Some((group, volume)) = name.split_once('/') {
        // A logical volume; other directories hold no disks.
        let is_volume = !group.is_empty() && !volume.is_empty() && !["shm", "pts", "cdrom", "loop"].contains(&group);
        return if is_volume { Naming::Content } else { Naming::Other };
    }
    let follows = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    if DISKS.iter().any(|prefix| follows(prefix)) { Naming::Name } else { Naming::Other }
}
