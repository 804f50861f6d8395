// SPDX-License-Identifier: Apache-2.0
//! Why an entry of the queue directory is left where it is, and what a person can do about it.

use std::borrow::Cow;

use super::{Kind, extension, is_change_tracking};
use crate::conversion::file_name::MACHINES;

/// Why an entry is never taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    Symlink,
    /// A directory of another volume.
    Mounted,
    Fifo,
    Socket,
    Device,
    /// It is empty, and still was when it settled.
    Empty,
    /// Its name is not UTF-8.
    Name,
    /// Several files in one.
    Archive,
    /// One compressed file that no OVF names, and whose name does not tell what is in it.
    Compressed,
    /// One compressed file that no OVF names, in a form that is not read.
    Unread,
    /// A disk, by its content or the end of its name, that should end in this.
    Misnamed(&'static str),
    /// A machine's description in its product's own form.
    Machine,
    /// Changes of a disk that is elsewhere.
    Checkpoint,
    /// Which blocks of a disk changed since a backup.
    ChangeTracking,
    /// Another file that nothing here names.
    Other,
    /// A folder of this name would be taken for a record of ours.
    Reserved,
    /// A folder in a folder of a folder.
    Deep,
    /// A disk of a folder with the base name of another one.
    Twin,
    /// One of several files of a Parallels disk: it is split, or has snapshots.
    Bundle,
    /// A folder with more than one machine.
    Several,
    /// A folder without a disk image.
    NoDisk,
    /// A folder with more files than a machine has.
    Crowded,
    /// A folder that may not be read.
    Closed,
    /// The directory of another queue or output, or a folder with one in it.
    Queue,
}

impl Refusal {
    /// Why a regular file of this name is not claimed where it is no disk and no descriptor names it.
    #[must_use]
    pub fn of_companion(name: &str) -> Self {
        match extension(name).as_str() {
            _ if is_change_tracking(name) => Self::ChangeTracking,
            "7z" | "rar" | "cab" => Self::Archive,
            "gz" | "xz" | "bz2" | "zst" => Self::Compressed,
            "lz4" | "lz" | "lzo" | "lzma" | "z" | "br" => Self::Unread,
            "dd" => Self::Misnamed("raw"),
            "vhdfixed" => Self::Misnamed("vhd"),
            other if MACHINES.contains(&other) => Self::Machine,
            "avhd" | "avhdx" | "vmsn" | "vmsd" | "vmem" | "vmss" | "vmrs" => Self::Checkpoint,
            _ => Self::Other,
        }
    }

    /// Why an entry of this kind, which is no regular file, is not claimed.
    #[must_use]
    pub const fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Symlink => Self::Symlink,
            Kind::Fifo => Self::Fifo,
            Kind::Socket => Self::Socket,
            Kind::Regular | Kind::Directory | Kind::Device => Self::Device,
        }
    }

    /// Whether a file of this name may yet become a member: manifests, certificates, firmware variables and chunks come
    /// before their OVF. An OVF takes others that it names, too; but whoever drops a text or a CD image by itself learns
    /// at once that it is never taken.
    #[must_use]
    pub fn may_be_named_later(self, name: &str) -> bool {
        let extension = extension(name);
        let is_chunk = || !extension.is_empty() && extension.bytes().all(|byte| byte.is_ascii_digit());
        self == Self::Other && (matches!(extension.as_str(), "mf" | "cert" | "nvram") || is_chunk())
    }

    /// For a person: what the entry is, and what to do.
    #[must_use]
    pub fn text(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Symlink => "is a symbolic link, which is never followed; move the file itself here",
            Self::Mounted => "is a mount point, which can't be moved; copy the folder itself here",
            Self::Fifo => "is a FIFO, not a disk image; copy its content into a file",
            Self::Socket => "is a socket, not a disk image; copy its content into a file",
            Self::Device => "is a device, which is never read; make an image of it",
            Self::Empty => "is empty; copy it again",
            Self::Name => "has a name that is not UTF-8; rename it",
            Self::Archive => "is an archive of a kind that is not read; unpack it and move the disk images here",
            Self::Compressed => {
                "is compressed, and neither its name nor an OVF tells what is in it; let its name end in that, as in .img.gz \
                 or .qcow2.xz"
            }
            Self::Unread => "is compressed, and no OVF names it; unpack it and move the disk image here",
            Self::Misnamed(fitting) => {
                return Cow::Owned(format!(
                    "seems to be a disk image under another name; rename it to end in .{fitting}"
                ));
            }
            Self::Machine => {
                "describes a machine in a form that is not read; export the machine as OVF or OVA, or move its disks here"
            }
            Self::Checkpoint => "belongs to a snapshot; merge or delete the snapshot and move the disk here",
            Self::ChangeTracking => {
                "lists changed blocks of a disk for backups, and is no disk; move it here with its disk or delete it, and \
                 rename it if it is a disk"
            }
            Self::Other => {
                "is no disk image, and nothing here names it; disk images end in .vmdk, .ova, .ovf, .vhd, .vhdx, .vdi, \
                 .qcow2, .raw, .img, .ami, .hdd or .hds, and .gz, .xz, .zst, .bz2 or .zip behind that"
            }
            Self::Reserved => "has a name that is kept for records; rename it",
            Self::Deep => "lies too deep in a dropped folder; move its files up, to one level below the folder at most",
            Self::Twin => {
                "has the name of another disk of its folder; rename one of them, or give each machine its folder"
            }
            Self::Bundle => {
                "is one of several files of a Parallels disk; delete its snapshots and join its parts in Parallels, then move \
                 the one file here"
            }
            Self::Several => "holds more than one machine; give each of them a folder of its own",
            Self::NoDisk => "is a folder without a disk image; put the machine's disks into it, or move it away",
            Self::Closed => "may not be read; let the daemon read and write the folder (chmod -R g+rwX)",
            Self::Queue => {
                "is a directory of another queue or output (.hyper2kvm-volume lies in it); move it out of this queue"
            }
            Self::Crowded => "holds more files than a machine has; give each machine a folder of its own",
        })
    }
}
