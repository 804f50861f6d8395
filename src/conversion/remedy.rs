// SPDX-License-Identifier: Apache-2.0
//! What a person can do about a refusal whose cause is known more exactly than its reason.
//!
//! A [`Reason`](super::Reason) has one suggestion, which fits most of its causes. Where another helps, the error carries
//! it from the place that knows the cause. `docs/formats.md` has the same table.

use strum::VariantArray;

/// A cause that has a remedy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, VariantArray)]
pub enum Remedy {
    /// A VHDX whose log has to be replayed by its own program.
    ReplayLog,
    /// A differencing VHD or VHDX.
    MergeVhd,
    /// A child VDI.
    MergeVdi,
    /// A qcow2 with a backing file or a data file.
    FlattenQcow2,
    /// A qcow2 whose tables contradict themselves or that is marked as corrupt.
    CheckQcow2,
    /// A VMDK whose tables contradict themselves.
    RepairVmdk,
    /// A file whose line ends were converted.
    CopyAsBinary,
    /// A file that ends early.
    CopyAgain,
    /// A flat extent that is an image of its own.
    ConvertExtentAlone,
    /// A fixed VHD that begins like a dynamic one.
    MakeDynamic,
    /// Tables that lie too widely scattered to be checked.
    WriteTablesAnew,
    /// A disk that an OVF names with a path.
    PutBesideOvf,
    /// A disk that an OVF names with a URL.
    Download,
    /// A disk that an OVF gives no name, or an OVF without a disk.
    ExportWithDisks,
    /// An archive whose paths leave it.
    PackWithoutPaths,
    /// An archive with several files that one name may mean.
    LeaveOne,
    /// An archive whose members leave out their holes.
    PackWithoutHoles,
    /// A zip whose files are compressed in a way that is not read.
    ZipAgain,
    /// A flat extent without its descriptor.
    BringDescriptor,
    /// Extents named in an encoding that the descriptor does not tell.
    NameEncoding,
    /// A deployment option that the OVF does not have.
    ChooseOption,
    /// A FIFO, a socket or a device.
    CopyToFile,
    /// A source whose name no output can be called after.
    NameOutput,
    /// A source that is not there.
    CheckName,
    /// A source that may not be read by who asked.
    LetRead,
    /// An output directory on a file system that is mounted read-only.
    MountWritable,
    /// An appliance that was not built, or is elsewhere.
    BuildAppliance,
    /// A program that is not installed.
    InstallQemu,
    /// A format that only other programs read.
    ConvertByQemuImg,
    /// An image of a Macintosh's disk.
    ConvertDmg,
    /// Raw bytes of a disk that are called otherwise.
    RenameToRaw,
    /// A disk of an OVF in a packing that OVFs do not have.
    UnpackBeside,
    /// An OVF with more disks than are read.
    SplitOvf,
    /// A file that several disks of an OVF name.
    NameFilesOnce,
    /// An archive of a kind that is not read, or packed twice.
    Unpack,
    /// A file that is no disk.
    NoDisk,
    /// A file that differs from its manifest.
    RemoveManifest,
    /// The message says it.
    InMessage,
    /// A symbolic link.
    NameTarget,
    /// A directory.
    NameImage,
    /// More files than the process may open.
    RaiseOpenFiles,
    /// An output beyond the largest file that the process or the file system allows.
    RaiseFileSize,
    /// A process that reads images by hand and can't be contained.
    RunUncontained,
    /// An output that the whole volume could not hold.
    LargerVolume,
}

impl Remedy {
    /// One sentence, which a person can follow.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::ReplayLog => {
                "Attach the disk once where it was made, which replays its log \
                 (Hyper-V: Mount-VHD and Dismount-VHD), then copy it again"
            }
            Self::MergeVhd => {
                "Merge it into its parent first (Hyper-V: Merge-VHD, or Edit Disk), then bring the merged disk"
            }
            Self::MergeVdi => "Clone it into one disk first: VBoxManage clonemedium disk FILE whole.vdi",
            Self::FlattenQcow2 => {
                "Make one self-contained image of it, where its other file is: qemu-img convert -O qcow2 FILE whole.qcow2"
            }
            Self::CheckQcow2 => {
                "Copy the file again from a machine that is shut off; if that helps not: qemu-img check FILE"
            }
            Self::RepairVmdk => {
                "Copy the file again from a machine that is powered off; if that helps not, repair it: \
                 vmware-vdiskmanager -R FILE"
            }
            Self::CopyAsBinary => "Copy the file again in binary mode, for a transfer changed its line ends",
            Self::CopyAgain => "Copy the file again and compare its size with the original's, for it ends early",
            Self::ConvertExtentAlone => {
                "Convert the file that the descriptor names by itself, under the extension of its format"
            }
            Self::MakeDynamic => {
                "Convert it where it was made (Hyper-V: Convert-VHD -VHDType Dynamic), then bring the new disk"
            }
            Self::WriteTablesAnew => "Copy it once with the program that made it, which writes its tables in order",
            Self::PutBesideOvf => "Put the disk beside the OVF, and write only its name into the href of the OVF",
            Self::Download => {
                "Download the disk, put it beside the OVF, and write only its name into the href of the OVF"
            }
            Self::ExportWithDisks => "Export the machine again together with its disks",
            Self::PackWithoutPaths => "Pack the files again from inside their folder: tar -cf NAME.ova *",
            Self::LeaveOne => {
                "Leave only the file that is meant in the archive, or unpack it and bring the OVF with its disks"
            }
            Self::PackWithoutHoles => "Pack the files again without --sparse: tar -cf NAME.ova *",
            Self::ZipAgain => "Unpack it and bring the disk image itself, or zip it again: zip NAME.zip FILE",
            Self::BringDescriptor => {
                "Bring the descriptor (NAME.vmdk for NAME-flat.vmdk), or rename the file to NAME.raw if it is the whole disk"
            }
            Self::NameEncoding => {
                "Write the encoding of its names into the descriptor (encoding=\"GBK\"), or rename the extents there and on the disk"
            }
            Self::ChooseOption => {
                "Ask for one of its options by --ovf-option NAME, or leave that out for the default one"
            }
            Self::CopyToFile => "Copy its content into a regular file, then convert that",
            Self::NameOutput => "Rename the file, or name the output by --output FILE",
            Self::CheckName => "Check the name",
            Self::LetRead => "Let this user read it (chmod, chown), or run this as a user who may",
            Self::MountWritable => "Mount its file system writable, or name another output directory",
            Self::BuildAppliance => {
                "Make it by hyper2kvm appliance build, or name another directory by --appliance DIR (of a daemon: appliance_dir)"
            }
            Self::InstallQemu => "Install QEMU (Debian: qemu-system-x86 and qemu-utils)",
            Self::ConvertByQemuImg => "Convert it first: qemu-img convert -O qcow2 FILE NAME.qcow2",
            Self::ConvertDmg => "Convert it first: qemu-img convert -f dmg -O raw FILE NAME.raw",
            Self::RenameToRaw => {
                "If it is a raw disk, rename it to NAME.raw (in its OVF too); else copy it again from where it was made"
            }
            Self::UnpackBeside => "Unpack the disk beside the OVF, and write its new name into the href of the OVF",
            Self::SplitOvf => "Bring the machine in OVFs of at most 128 disks each, or bring each disk by itself",
            Self::NameFilesOnce => {
                "Give each disk of the OVF a file of its own, or take out the disks that are meant only once"
            }
            Self::Unpack => "Unpack it, then bring the disk image in it",
            Self::NoDisk => "Bring a disk image: docs/formats.md lists what is read",
            Self::RemoveManifest => {
                "Copy the files again; where somebody changed the OVF on purpose, remove its manifest (NAME.mf)"
            }
            Self::InMessage => "",
            Self::NameTarget => "Name the file that the link points to",
            Self::NameImage => "Name the disk image, the OVF or the VMDK descriptor in it",
            Self::RaiseOpenFiles => "Raise the limit of open files (ulimit -n, LimitNOFILE= of the service)",
            Self::RaiseFileSize => {
                "Raise the limit of a file's size (ulimit -f), or write to a file system that takes larger files"
            }
            Self::RunUncontained => "Run it with --no-sandbox, if this image is trusted",
            Self::LargerVolume => "Use a larger output volume, or a compressed output",
        }
    }

    /// Whether something of the installation has to be set right, whatever the reason's class.
    #[must_use]
    pub(super) const fn is_of_installation(self) -> bool {
        matches!(self, Self::BuildAppliance | Self::InstallQemu | Self::RaiseOpenFiles)
    }

    /// The remedy with exactly this text: another process told it.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|remedy| remedy.text() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_remedy_is_one_sentence_known_by_its_text_and_stands_in_the_documentation() {
        let formats = include_str!("../../docs/formats.md");
        for &remedy in Remedy::VARIANTS {
            let text = remedy.text();
            assert_eq!(Remedy::of_text(text), Some(remedy));
            assert!(!text.ends_with('.') && !text.contains(". ") && text.len() < 200, "{text}");
            assert!(formats.contains(text), "docs/formats.md lacks: {text}");
        }
        assert_eq!(Remedy::of_text("Call 0900-HELP"), None);
    }
}
