// SPDX-License-Identifier: Apache-2.0
//! Guests as people have them: what they are, and whether they boot from virtio.

use std::fs;
use std::path::Path;

use super::look;
use super::makers::{Hive, KERNEL, Key, MIB, Maker, ROOT, Value, can_mount, has, key, run};
use crate::conversion::guest::{Answer, Driver, Family, FixKind, Guest, Naming, PartitionTable};

const ALL: [&str; 6] = ["virtio_blk", "virtio_scsi", "virtio_net", "ahci", "sd_mod", "nvme"];
/// An EFI system partition of 40 MiB and a root behind it.
const GPT: &str = "label: gpt\nstart=2048,size=81920,type=uefi\nstart=83968,type=linux\n";
const ROOT_AT: u64 = 41 * MIB;

fn kinds(guest: &Guest) -> Vec<(FixKind, u8)> {
    guest.fixes.iter().map(|fix| (fix.kind, fix.need)).collect()
}

/// What every small Debian of these tests must show.
fn is_debian(guest: &Guest) {
    assert_eq!((guest.family, &guest.doubts[..]), (Family::Linux, &[][..]));
    let os = guest.os.as_ref().unwrap();
    assert_eq!((os.id.as_str(), os.version.as_str(), os.architecture.as_deref()), ("debian", "12", Some("x86_64")));
    assert_eq!(guest.kernels.len(), 1);
    assert_eq!(guest.kernels[0].version, KERNEL);
    assert_eq!(guest.network[0].interface.as_deref(), Some("ens192"));
    assert_eq!(guest.tools, ["open-vm-tools"]);
}

#[test]
fn a_debian_with_virtio_boots_and_says_why() {
    if !["mkfs.ext4", "sfdisk", "mkfs.vfat", "mcopy"].map(has).iter().all(|has| *has) {
        return;
    }
    let maker = Maker::new();
    maker.linux(&ALL);
    let root = maker.ext4("root", 64 * MIB, &maker.files());
    let loaders = Maker::new();
    loaders.file("EFI/BOOT/BOOTX64.EFI", "loader");
    loaders.file("EFI/debian/a long name of a loader.efi", "loader");
    let esp = loaders.fat("esp", 40 * MIB, 32, &loaders.files());
    let disk = maker.disk("disk", 112 * MIB, GPT, &[(MIB, &esp), (ROOT_AT, &root)]);
    let guest = look(&[&disk]);
    is_debian(&guest);
    assert_eq!(guest.disks[0].table, PartitionTable::Gpt);
    assert_eq!(guest.root.as_deref(), Some("disk 0 partition 2"));
    assert_eq!((guest.firmware.efi, guest.firmware.fallback_loader), (Answer::Yes, Answer::Yes));
    assert!(guest.firmware.loaders.contains(&"\\EFI\\debian\\a long name of a loader.efi".to_owned()));
    let drivers = &guest.kernels[0].drivers;
    assert_eq!((drivers["virtio_pci"], drivers["virtio_blk"]), (Driver::BuiltIn, Driver::Initramfs));
    assert_eq!(guest.kernels[0].compression.as_deref(), Some("zstd"));
    let virtio = &guest.virtio;
    assert_eq!([virtio.block, virtio.scsi, virtio.network, virtio.sata], [Answer::Yes; 4]);
    assert_eq!(guest.mounts[0].naming, Naming::Content);
    assert_eq!(guest.boot[0].root, format!("UUID={ROOT}"));
    assert_eq!(kinds(&guest), [(FixKind::NetworkNames, 2), (FixKind::Tools, 3)]);
    let volumes: Vec<_> = guest.volumes.iter().map(|volume| (volume.content.as_str(), volume.dirty)).collect();
    assert_eq!(volumes, [("vfat", Some(false)), ("ext4", Some(false))]);
}

#[test]
fn an_initramfs_without_virtio_must_be_mended_first() {
    if !has("mkfs.ext4") {
        return;
    }
    let maker = Maker::new();
    maker.linux(&["ahci", "sd_mod"]);
    let guest = look(&[&maker.ext4("root", 64 * MIB, &maker.files())]);
    is_debian(&guest);
    assert_eq!(guest.root.as_deref(), Some("disk 0"));
    let virtio = &guest.virtio;
    assert_eq!(
        [virtio.block, virtio.scsi, virtio.network, virtio.sata],
        [Answer::No, Answer::No, Answer::Yes, Answer::Yes]
    );
    assert_eq!(guest.kernels[0].drivers["virtio_blk"], Driver::Root);
    assert_eq!(kinds(&guest)[0], (FixKind::InitramfsVirtio, 1));
    assert!(virtio.reasons[0].contains("has no virtio_blk"), "{:?}", virtio.reasons);
}

#[test]
fn devices_by_name_must_be_named_otherwise() {
    if !["mkfs.ext4", "sfdisk"].map(has).iter().all(|has| *has) {
        return;
    }
    let maker = Maker::new();
    maker.linux_without_boot();
    maker.file(
        "etc/fstab",
        "/dev/sda2 / ext4 defaults 0 1\n/dev/sda1 /boot ext4 defaults 0 1\n/dev/sda3 none swap sw 0 0\n",
    );
    maker.file("etc/crypttab", "data /dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:1:0 none luks\n");
    fs::create_dir_all(maker.files().join("boot")).unwrap();
    let root = maker.ext4("root", 48 * MIB, &maker.files());
    let other = Maker::new();
    other.boot(".", &ALL);
    let boot = other.ext4("boot", 32 * MIB, &other.files());
    let script = "label: dos\nstart=2048,size=65536,type=83,bootable\nstart=67584,size=98304,type=83\n";
    let disk = maker.disk("disk", 100 * MIB, script, &[(MIB, &boot), (33 * MIB, &root)]);
    let guest = look(&[&disk]);
    is_debian(&guest);
    assert_eq!(guest.disks[0].table, PartitionTable::Mbr);
    let names: Vec<_> = guest.mounts.iter().map(|mount| (mount.device.as_str(), mount.naming)).collect();
    assert_eq!(names[0], ("/dev/sda2", Naming::Name));
    assert_eq!(names[3].1, Naming::Path);
    let virtio = &guest.virtio;
    assert_eq!([virtio.block, virtio.scsi], [Answer::No, Answer::No]);
    let fixes = kinds(&guest);
    assert_eq!(fixes.iter().filter(|fix| **fix == (FixKind::DeviceNames, 1)).count(), 3, "{fixes:?}");
}

#[test]
fn a_kernel_on_the_efi_system_partition_is_found_by_its_entry() {
    if !["mkfs.ext4", "sfdisk", "mkfs.vfat", "mcopy"].map(has).iter().all(|has| *has) {
        return;
    }
    let maker = Maker::new();
    maker.linux_without_boot();
    fs::create_dir_all(maker.files().join("boot/efi")).unwrap();
    let root = maker.ext4("root", 64 * MIB, &maker.files());
    let loaders = Maker::new();
    loaders.file("EFI/systemd/systemd-bootx64.efi", "loader");
    loaders.file(&format!("0a1b/{KERNEL}/linux"), "MZ");
    loaders.file(&format!("0a1b/{KERNEL}/initrd"), super::makers::initramfs(&ALL));
    let entry = format!(
        "title Debian\nversion {KERNEL}\noptions root=/dev/sda2 ro\nlinux /0a1b/{KERNEL}/linux\ninitrd /0a1b/{KERNEL}/initrd\n"
    );
    loaders.file("loader/entries/debian.conf", entry);
    let esp = loaders.fat("esp", 40 * MIB, 32, &loaders.files());
    let disk = maker.disk("disk", 112 * MIB, GPT, &[(MIB, &esp), (ROOT_AT, &root)]);
    let guest = look(&[&disk]);
    is_debian(&guest);
    assert_eq!(guest.kernels[0].drivers["virtio_blk"], Driver::Initramfs);
    assert_eq!((guest.firmware.fallback_loader, guest.boot[0].naming), (Answer::No, Naming::Name));
    let virtio = &guest.virtio;
    assert_eq!([virtio.block, virtio.scsi], [Answer::No, Answer::Yes], "{:?}", virtio.reasons);
    assert_eq!(kinds(&guest)[..2], [(FixKind::DeviceNames, 1), (FixKind::FallbackLoader, 1)]);
}

#[test]
fn an_xfs_of_either_version_is_read() {
    if !has("mkfs.xfs") {
        return;
    }
    for options in [&["-m", "crc=1"][..], &["-m", "crc=0", "-n", "ftype=0"], &["-b", "size=1024", "-n", "size=8192"]] {
        let maker = Maker::new();
        maker.linux(&ALL);
        // Directories in blocks, and in trees.
        for number in 0..3000 {
            maker.file(&format!("boot/many/{number:060}"), "");
        }
        for number in 0..20 {
            maker.file(&format!("boot/few/{number:060}"), "");
        }
        let guest = look(&[&maker.xfs("root", 320 * MIB, &maker.files(), options)]);
        is_debian(&guest);
        assert_eq!(guest.virtio.block, Answer::Yes, "{options:?}");
        assert_eq!(guest.volumes[0].content, "xfs");
    }
}

#[test]
fn a_btrfs_is_read_packed_or_not_and_by_its_subvolume() {
    if !has("mkfs.btrfs") || !can_mount() {
        return;
    }
    for compress in ["no", "zlib", "zstd"] {
        let maker = Maker::new();
        maker.linux(&ALL);
        maker
            .file("etc/fstab", format!("UUID={ROOT} / btrfs subvol=@ 0 0\nUUID={ROOT} /boot btrfs subvol=@boot 0 0\n"));
        let volume = maker.empty("root", 256 * MIB);
        run("mkfs.btrfs", &["-q", "-U", ROOT, volume.to_str().unwrap()]);
        let place = maker.path("mounted");
        fs::create_dir(&place).unwrap();
        let options = format!("loop,compress-force={compress}");
        run("mount", &["-o", &options, volume.to_str().unwrap(), place.to_str().unwrap()]);
        for (name, from) in [("@", "."), ("@boot", "boot")] {
            let target = place.join(name);
            run("btrfs", &["-q", "subvolume", "create", target.to_str().unwrap()]);
            run("cp", &["-a", &format!("{}/{from}/.", maker.files().display()), target.to_str().unwrap()]);
        }
        fs::remove_dir_all(place.join("@/boot")).unwrap();
        run("umount", &[place.to_str().unwrap()]);
        let guest = look(&[&volume]);
        is_debian(&guest);
        assert_eq!((guest.virtio.block, guest.volumes[0].dirty), (Answer::Yes, Some(false)), "{compress}");
    }
}

#[test]
fn logical_volumes_are_found_on_two_disks() {
    if !["mkfs.ext4", "pvcreate"].map(has).iter().all(|has| *has) || !can_mount() {
        return;
    }
    let maker = Maker::new();
    maker.linux(&ALL);
    maker.file("etc/lvm/devices/system.devices", "IDTYPE=sys_wwid\n");
    let root = maker.ext4("root", 96 * MIB, &maker.files());
    let disks = ["one", "two"].map(|name| maker.empty(name, 80 * MIB));
    let group = format!("h2k-{}", std::process::id());
    lvm(&maker, &group, &disks);
    // What the kernel would do: 64 KiB on each in turn, from the first extent on.
    let (bytes, unit, start) = (fs::read(&root).unwrap(), 65_536, MIB);
    for (index, stripe) in bytes.chunks(unit).enumerate() {
        let place = start + (index / 2 * unit) as u64;
        fs::write(maker.path("stripe"), stripe).unwrap();
        super::makers::lay(&disks[index % 2], place, &maker.path("stripe"));
    }
    let guest = look(&[&disks[0], &disks[1]]);
    is_debian(&guest);
    assert_eq!(guest.root, Some(format!("{group}/root")));
    assert_eq!(kinds(&guest)[0], (FixKind::LvmDevices, 1));
    let half = look(&[&disks[0]]);
    assert_eq!(half.family, Family::Unknown);
    assert!(half.doubts.iter().any(|doubt| doubt.why.contains("a disk that is not here")), "{:?}", half.doubts);
}

/// A group on both disks with a striped volume, whose unit is 64 KiB.
pub(super) fn lvm(maker: &Maker, group: &str, disks: &[std::path::PathBuf; 2]) {
    let script = maker.path("lvm.sh");
    // The kernel here has no device-mapper, and needs none: nothing is activated.
    fs::write(
        &script,
        "set -e; a=$(losetup -f --show \"$1\"); b=$(losetup -f --show \"$2\"); trap 'losetup -d $a $b' EXIT\n\
         pvcreate -q -ff -y $a $b; vgcreate -q \"$3\" $a $b\n\
         lvcreate -q --driverloaded n -an -Zn -Wn -y -i 2 -I 64k -L 96M -n root \"$3\"\n",
    )
    .unwrap();
    run("sh", &[script.to_str().unwrap(), disks[0].to_str().unwrap(), disks[1].to_str().unwrap(), group]);
}

/// The hives of a Windows whose virtio services start with these values.
pub(super) fn windows(maker: &Maker, start: Option<u32>) {
    let number = |name, number| (name, Value::Number(number));
    let text = |name, text| (name, Value::Text(text));
    let service = |name, start| Key { name, values: vec![number("Start", start)], keys: Vec::new() };
    let mut services = vec![service("storahci", 0), service("VMTools", 2)];
    if let Some(start) = start {
        services.extend([service("viostor", start), service("vioscsi", 0), service("NetKVM", 3)]);
    }
    let session = vec![
        Key { name: "Power", values: vec![number("HiberbootEnabled", 1)], keys: Vec::new() },
        Key { name: "Environment", values: vec![text("PROCESSOR_ARCHITECTURE", "AMD64")], keys: Vec::new() },
    ];
    let set =
        key("ControlSet001", vec![key("Services", services), key("Control", vec![key("Session Manager", session)])]);
    let select = Key { name: "Select", values: vec![number("Current", 1)], keys: Vec::new() };
    maker.file("Windows/System32/config/SYSTEM", Hive::file(&key("ROOT", vec![select, set])));
    let values = vec![
        text("ProductName", "Windows Server 2022 Standard"),
        text("CurrentBuild", "20348"),
        number("CurrentMajorVersionNumber", 10),
        number("CurrentMinorVersionNumber", 0),
    ];
    let version = Key { name: "CurrentVersion", values, keys: Vec::new() };
    let software = key("ROOT", vec![key("Microsoft", vec![key("Windows NT", vec![version])])]);
    maker.file("Windows/System32/config/SOFTWARE", Hive::file(&software));
    for driver in ["viostor", "vioscsi", "netkvm", "storahci"] {
        maker.file(&format!("Windows/System32/drivers/{driver}.sys"), "MZ");
    }
}

pub(super) fn ntfs(maker: &Maker) -> std::path::PathBuf {
    let volume = maker.empty("windows", 64 * MIB);
    run("mkntfs", &["-F", "-Q", "-q", volume.to_str().unwrap()]);
    maker.fill(&volume, &["ntfs-3g"], &maker.files());
    volume
}

pub(super) fn can_make_windows() -> bool {
    ["mkntfs", "ntfs-3g"].map(has).iter().all(|has| *has) && can_mount() && Path::new("/dev/fuse").exists()
}

#[test]
fn a_windows_says_its_version_and_which_drivers_start() {
    if !can_make_windows() {
        return;
    }
    let maker = Maker::new();
    windows(&maker, Some(0));
    let guest = look(&[&ntfs(&maker)]);
    assert_eq!((guest.family, &guest.doubts[..]), (Family::Windows, &[][..]));
    let os = guest.os.as_ref().unwrap();
    assert_eq!(
        (os.name.as_str(), os.version.as_str(), os.architecture.as_deref()),
        ("Windows Server 2022 Standard", "10.0.20348", Some("x86_64"))
    );
    let virtio = &guest.virtio;
    assert_eq!([virtio.block, virtio.scsi, virtio.network, virtio.sata], [Answer::Yes; 4], "{:?}", virtio.reasons);
    let found = guest.windows.unwrap();
    assert_eq!((found.fast_startup, found.hibernated), (Answer::Yes, Answer::No));
    assert_eq!(guest.tools, ["VMware Tools"]);
}

#[test]
fn a_windows_without_drivers_or_asleep_must_be_treated_first() {
    if !can_make_windows() {
        return;
    }
    let maker = Maker::new();
    windows(&maker, None);
    maker.file("hiberfil.sys", b"HIBR and more".repeat(1000));
    let guest = look(&[&ntfs(&maker)]);
    let virtio = &guest.virtio;
    assert_eq!(
        [virtio.block, virtio.scsi, virtio.network, virtio.sata],
        [Answer::No, Answer::No, Answer::No, Answer::Yes]
    );
    assert_eq!(
        kinds(&guest)[..3],
        [(FixKind::WindowsDrivers, 1), (FixKind::Hibernation, 1), (FixKind::WindowsDrivers, 2)]
    );
    // Installed, but not to start at boot.
    windows(&maker, Some(3));
    assert_eq!(look(&[&ntfs(&maker)]).virtio.block, Answer::No);
}
