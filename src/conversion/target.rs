// SPDX-License-Identifier: Apache-2.0
//! The targets of a conversion's disks: block devices, or directories of file systems of their own.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::machine::MAX_DISKS;

/// Name of the file that a disk becomes in a directory.
pub const DISK_IMAGE: &str = "disk.img";
/// Name of that file until all of it is written.
pub const DISK_IMAGE_PART: &str = "disk.img.part";

/// Unit of a disk image's length, in bytes: the disk's size is rounded up to it.
pub const DISK_IMAGE_UNIT: u64 = 1 << 20;

/// Longest list that is read, in bytes.
const MAX_BYTES: usize = 64 << 10;
/// Longest path, in bytes, with its final zero (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Where one disk goes. In JSON `{"path": "/dev/hyper2kvm-target-0"}` or `{"directory": "/targets/0"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskTarget {
    /// A block device. Its first bytes are the disk's; the rest are zeros.
    Path(PathBuf),
    /// A directory, which gets a [`DISK_IMAGE`].
    Directory(PathBuf),
}

/// Why a list of targets is refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTargets {
    #[error("the list of targets has {0} bytes, and at most {MAX_BYTES} are read")]
    TooLong(usize),
    #[error("no list of targets")]
    Malformed(#[from] serde_json::Error),
    #[error("{0} targets, from 1 to {MAX_DISKS} are possible")]
    Count(usize),
    #[error("target {0} is not a plain absolute path")]
    NotPlain(usize),
    #[error("targets {0} and {1} are the same")]
    Same(usize, usize),
}

impl DiskTarget {
    /// Where the device of disk `n` lies in a worker's pod.
    #[must_use]
    pub fn device(n: usize) -> Self {
        Self::Path(format!("/dev/hyper2kvm-target-{n}").into())
    }

    /// Where the file system of disk `n` is mounted in a worker's pod.
    #[must_use]
    pub fn file_system(n: usize) -> Self {
        Self::Directory(format!("/targets/{n}").into())
    }

    /// The device, where it is one.
    #[must_use]
    pub fn as_device(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Directory(_) => None,
        }
    }

    /// What the disk is in until it is complete: the device, or the image's file under its first name.
    #[must_use]
    pub fn unfinished(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Directory(path) => path.join(DISK_IMAGE_PART),
        }
    }

    /// The device or the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Path(path) | Self::Directory(path) => path,
        }
    }
}

/// Bytes of the disk image of a disk of `virtual_size` bytes; `None` beyond what a file can hold.
#[must_use]
pub const fn disk_image_bytes(virtual_size: u64) -> Option<u64> {
    virtual_size.checked_next_multiple_of(DISK_IMAGE_UNIT)
}

/// The list as it is handed to a worker, in the order of the plan's disks.
#[must_use]
pub fn to_json(targets: &[DiskTarget]) -> String {
    serde_json::to_string(targets).expect("paths of ours serialise")
}

/// Reads a list of targets.
///
/// # Errors
/// What is wrong with it.
pub fn read(text: &str) -> Result<Vec<DiskTarget>, InvalidTargets> {
    if text.len() > MAX_BYTES {
        return Err(InvalidTargets::TooLong(text.len()));
    }
    let targets: Vec<DiskTarget> = serde_json::from_str(text)?;
    if !(1..=MAX_DISKS).contains(&targets.len()) {
        return Err(InvalidTargets::Count(targets.len()));
    }
    for (n, target) in targets.iter().enumerate() {
        if !is_plain(target.path()) {
            return Err(InvalidTargets::NotPlain(n));
        }
        if let Some(first) = targets[..n].iter().position(|other| other.path() == target.path()) {
            return Err(InvalidTargets::Same(first, n));
        }
    }
    Ok(targets)
}

/// Whether a path is absolute, leads nowhere back, and is no longer than the system takes.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut components = path.components();
    bytes.len() < MAX_PATH
        && !bytes.contains(&0)
        && components.next() == Some(Component::RootDir)
        && path.file_name().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_targets_is_read_as_it_was_written() {
        let targets = [DiskTarget::device(0), DiskTarget::file_system(1)];
        let json = r#"[{"path":"/dev/hyper2kvm-target-0"},{"directory":"/targets/1"}]"#;
        assert_eq!(to_json(&targets), json);
        assert_eq!(read(json).unwrap(), targets);
    }

    #[test]
    fn a_list_that_is_no_list_of_different_plain_paths_is_refused() {
        let long = format!(r#"[{{"path":"/{}"}}]"#, "a".repeat(4096));
        let longer = " ".repeat(MAX_BYTES + 1);
        let many = format!("[{}{{}}]", r#"{"path":"/a"},"#.repeat(MAX_DISKS));
        for (text, expected) in [
            ("[]", "0 targets, from 1 to 256 are possible"),
            ("{}", "no list of targets"),
            (r#"[{"path":"/a","directory":"/b"}]"#, "no list of targets"),
            (r#"[{"file":"/a"}]"#, "no list of targets"),
            (r#"[{"path":"a"}]"#, "target 0 is not a plain absolute path"),
            (r#"[{"path":"/"}]"#, "target 0 is not a plain absolute path"),
            (r#"[{"path":"/a"},{"directory":"/b/../c"}]"#, "target 1 is not a plain absolute path"),
            (r#"[{"path":"/a\u0000"}]"#, "target 0 is not a plain absolute path"),
            (r#"[{"path":"/a"},{"directory":"/a"}]"#, "targets 0 and 1 are the same"),
            (&long, "target 0 is not a plain absolute path"),
            (&longer, "the list of targets has 65537 bytes, and at most 65536 are read"),
            (&many, "no list of targets"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn a_disk_image_is_whole_mebibytes() {
        for (size, bytes) in [(1, 1 << 20), (1 << 20, 1 << 20), ((1 << 20) + 512, 2 << 20)] {
            assert_eq!(disk_image_bytes(size), Some(bytes));
        }
        assert_eq!(disk_image_bytes(u64::MAX), None);
    }
}
