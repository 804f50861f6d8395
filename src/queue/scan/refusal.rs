// SPDX-License-Identifier: Apache-2.0
//! Why an entry of the queue directory is left where it is, and what a person can do about it.

use super::extension;

/// Why an entry is never taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    Symlink,
    Directory,
    Fifo,
    Socket,
    Device,
    /// It is empty, and still was when it settled.
    Empty,
    /// Its name is not UTF-8.
    Name,
    /// Several files in one.
    Archive,
    /// One compressed file that no OVF names.
    Compressed,
    /// A machine's description in its product's own form.
    Machine,
    /// Changes of a disk that is elsewhere.
    Checkpoint,
    /// Another file that nothing here names.
    Other,
}

impl Refusal {
    /// Why a regular file of this name is not claimed where it is no disk and no descriptor names it.
    #[must_use]
    pub fn of_companion(name: &str) -> Self {
        match extension(name).as_str() {
            "zip" | "7z" | "rar" | "tar" | "tgz" | "txz" | "tbz2" | "cab" => Self::Archive,
            "gz" | "xz" | "bz2" | "zst" | "lz4" | "lzo" => Self::Compressed,
            "vmx" | "vmxf" | "vmtx" | "vbox" | "vmcx" | "pvs" | "xva" => Self::Machine,
            "avhd" | "avhdx" | "vmsn" | "vmsd" | "vmem" | "vmss" | "vmrs" => Self::Checkpoint,
            _ => Self::Other,
        }
    }

    /// Whether it may yet become a member: manifests and certificates come before their OVF.
    #[must_use]
    pub const fn may_be_named_later(self) -> bool {
        matches!(self, Self::Other)
    }

    /// For a person: what the entry is, and what to do.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Symlink => "is a symbolic link, which is never followed; move the file itself here",
            Self::Directory => "is a directory; move the files in it here",
            Self::Fifo => "is a FIFO, not a disk image",
            Self::Socket => "is a socket, not a disk image",
            Self::Device => "is a device, which is never read; make an image of it",
            Self::Empty => "is empty; copy it again",
            Self::Name => "has a name that is not UTF-8; rename it",
            Self::Archive => "is an archive, which is never opened; unpack it and move the disk images here",
            Self::Compressed => "is compressed, and no OVF names it; unpack it and move the disk image here",
            Self::Machine => {
                "describes a machine in a form that is not read; export the machine as OVF or OVA, or move its disks here"
            }
            Self::Checkpoint => "belongs to a snapshot; merge or delete the snapshot and move the disk here",
            Self::Other => {
                "is no disk image, and nothing here names it; disk images end in .vmdk, .ova, .ovf, .vhd, .vhdx, .vdi, \
                 .qcow2, .raw, .img or .ami"
            }
        }
    }
}
