// SPDX-License-Identifier: Apache-2.0
mod alpine;

use std::fs;

use super::*;
use crate::appliance::cpio::Archive;
use crate::appliance::protocol::{Limits, VERSION};
use crate::conversion::guest::{Answer, BootRoot, Driver, Kernel, Mount, Naming, NetworkBinding, Volume};
use crate::guest::list_initramfs;

const VERSION_OF_KERNEL: &str = "6.1.0-1-amd64";
const INITRD: &str = "/boot/initrd.img-6.1.0-1-amd64";
const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// The files of a guest.
struct Files {
    root: tempfile::TempDir,
}

impl Files {
    /// A Debian without virtio in its initramfs, whose modules are packed.
    fn debian() -> Self {
        let files = Self { root: tempfile::tempdir().unwrap() };
        let modules = format!("/lib/modules/{VERSION_OF_KERNEL}");
        let module = |name: &str| [b"\x7FELF ", name.as_bytes()].concat();
        for name in ["virtio", "virtio_ring", "virtio_pci", "virtio_blk", "virtio_scsi"] {
            files.write(&format!("{modules}/{name}.ko.zst"), &zstd::encode_all(&module(name)[..], 1).unwrap());
        }
        let dep = "virtio.ko.zst: virtio_ring.ko.zst\nvirtio_ring.ko.zst:\nvirtio_pci.ko.zst: virtio.ko.zst virtio_ring.ko.zst\n\
                   virtio_blk.ko.zst: virtio.ko.zst virtio_ring.ko.zst\nvirtio_scsi.ko.zst: virtio.ko.zst virtio_ring.ko.zst\n";
        files.write(&format!("{modules}/modules.dep"), dep.as_bytes());
        files.write("/usr/lib/systemd/systemd-udevd", b"");
        files.initramfs(&["conf/arch.conf", "scripts/functions", "usr/bin/kmod"], &[("lib", "usr/lib")]);
        files
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn initramfs(&self, files: &[&str], links: &[(&str, &str)]) {
        let mut archive = Archive::new();
        for path in files {
            archive.file(path, 0o755, b"").unwrap();
        }
        for (path, target) in links {
            archive.link(path, target).unwrap();
        }
        self.write(INITRD, &zstd::encode_all(&archive.finish()[..], 1).unwrap());
    }

    fn plan(&self, guest: &Guest) -> Result<Plan, Refusal> {
        plan(guest, &Mounted::new(self.root.path()).unwrap(), &job())
    }

    fn refusal(&self, guest: &Guest) -> (Unfixed, String) {
        let refusal = self.plan(guest).unwrap_err();
        (refusal.reason, refusal.message)
    }
}

fn job() -> Job {
    Job {
        version: VERSION,
        disks: Vec::new(),
        guest_names: GuestNames::Keep,
        cards: Vec::new(),
        drivers: Vec::new(),
        limits: Limits::default(),
    }
}

fn kernel(blk: Driver) -> Kernel {
    let drivers = [("virtio_pci", blk), ("virtio_blk", blk), ("virtio_scsi", blk), ("sd_mod", Driver::Initramfs)];
    Kernel {
        version: VERSION_OF_KERNEL.into(),
        image: "/boot/vmlinuz-6.1.0-1-amd64".into(),
        initramfs: Some(INITRD.into()),
        drivers: drivers.map(|(name, driver)| (name.to_owned(), driver)).into(),
        ..Kernel::default()
    }
}

/// What an inspection says of a guest that needs nothing.
fn good() -> Guest {
    Guest {
        family: Family::Linux,
        root: Some("disk 0 partition 1".into()),
        volumes: vec![Volume {
            name: "disk 0 partition 1".into(),
            content: "ext4".into(),
            uuid: Some(UUID.into()),
            ..Volume::default()
        }],
        kernels: vec![kernel(Driver::Initramfs)],
        ..Guest::default()
    }
}

fn broken() -> Guest {
    Guest { kernels: vec![kernel(Driver::Root)], ..good() }
}

fn entries(archive: &[u8]) -> Vec<String> {
    let listed = list_initramfs(archive, &crate::guest::Limits::default()).unwrap();
    listed.into_iter().filter(|entry| entry.mode & 0o170_000 != 0o040_000).map(|entry| entry.path).collect()
}

fn written<'a>(plan: &'a Plan, path: &str) -> &'a str {
    let found = plan.changes.iter().find(|change| change.path == path).expect("it is planned");
    let Act::Write(content) = &found.act else { panic!("{found:?}") };
    std::str::from_utf8(content).unwrap()
}

#[test]
fn a_guest_that_needs_nothing_gets_nothing() {
    let plan = Files::debian().plan(&good()).unwrap();
    assert_eq!((plan.changes, plan.left), (vec![], vec![]));
    assert_eq!((plan.kernels[0].virtio_before, plan.kernels[0].virtio_after), (Answer::Yes, Answer::Yes));
}

#[test]
fn an_initramfs_gets_the_modules_in_their_order_and_a_hook() {
    let files = Files::debian();
    let plan = files.plan(&broken()).unwrap();
    let paths: Vec<_> = plan.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, [INITRD, "/etc/initramfs-tools/modules"]);
    let Act::Prepend(archive) = &plan.changes[0].act else { panic!("{:?}", plan.changes[0]) };
    let home = "usr/lib/hyper2kvm";
    let modules = ["virtio_ring", "virtio", "virtio_pci", "virtio_blk", "virtio_scsi"];
    let mut expected: Vec<_> = modules.iter().map(|name| format!("{home}/{name}.ko")).collect();
    expected.extend([format!("{home}/insmod"), "conf/conf.d/zz-hyper2kvm".into(), format!("{home}/order")]);
    assert_eq!(entries(archive), expected);
    let text = String::from_utf8_lossy(archive);
    assert!(text.contains("\x7FELF virtio_ring") && text.contains("virtio_ring.ko\nvirtio.ko\nvirtio_pci.ko\n"));
    assert!(written(&plan, "/etc/initramfs-tools/modules").ends_with("virtio_pci\nvirtio_blk\nvirtio_scsi\n"));
    assert_eq!((plan.kernels[0].virtio_before, plan.kernels[0].virtio_after), (Answer::No, Answer::Yes));
}

#[test]
fn every_generator_gets_a_hook_of_its_own_kind() {
    let files = Files::debian();
    for (paths, hook, persisted) in [
        (
            &["usr/lib/dracut/hooks/pre-udev/30.sh", "usr/sbin/insmod"][..],
            "usr/lib/dracut/hooks/pre-udev/00-hyper2kvm.sh",
            "/etc/dracut.conf.d/90-hyper2kvm.conf",
        ),
        (
            &["lib/dracut/hooks/pre-udev/30.sh", "bin/kmod"],
            "lib/dracut/hooks/pre-udev/00-hyper2kvm.sh",
            "/etc/dracut.conf.d/90-hyper2kvm.conf",
        ),
        (
            &["init_functions", "usr/lib/udev/rules.d/50.rules", "usr/bin/busybox"],
            "usr/lib/udev/rules.d/00-hyper2kvm.rules",
            "/etc/mkinitcpio.conf.d/hyper2kvm.conf",
        ),
    ] {
        files.initramfs(paths, &[]);
        let plan = files.plan(&broken()).unwrap();
        let Act::Prepend(archive) = &plan.changes[0].act else { panic!("{:?}", plan.changes[0]) };
        assert!(entries(archive).iter().any(|entry| entry == hook), "{paths:?}");
        assert!(written(&plan, persisted).contains("virtio_blk"));
    }
}

#[test]
fn an_initramfs_that_cannot_be_changed_is_refused_by_name() {
    let tools = ["conf/arch.conf", "scripts/functions", "usr/bin/kmod"];
    let unsupported = Unfixed::GuestUnsupported;
    for (paths, links, expected) in [
        (&["init", "sbin/nlplug-findfs"][..], &[][..], "has no modules of 6.1.0-1-amd64"),
        (&["init"], &[], "is made by a program that is not known"),
        (&tools[..2], &[], "has no program that loads modules"),
        (&["conf/arch.conf", "scripts/functions", "bin/kmod"], &[("usr", ".")], "has a link usr, below which"),
        (&["conf/arch.conf", "scripts/functions", "bin/kmod"], &[("conf/conf.d", "/etc")], "has a link conf/conf.d"),
    ] {
        let files = Files::debian();
        files.initramfs(paths, links);
        let (reason, message) = files.refusal(&broken());
        assert!(reason == unsupported && message.contains(expected), "{message}");
    }
    let files = Files::debian();
    files.write(&format!("{INITRD}.sig"), b"");
    assert!(files.refusal(&broken()).1.contains("is signed by"));
    files.write(INITRD, b"text");
    fs::remove_file(files.root.path().join(&INITRD[1..]).with_extension("0-1-amd64.sig")).unwrap();
    assert!(files.refusal(&broken()).1.contains("is packed in an unknown way"));
    let unified = || Some("/boot/efi/EFI/Linux/a.efi".to_owned());
    let named = BootRoot { file: unified().unwrap(), root: "/dev/sda2".into(), naming: Naming::Name, volume: None };
    for guest in [
        Guest { kernels: vec![Kernel { initramfs: unified(), ..kernel(Driver::Root) }], ..good() },
        Guest { boot: vec![named], ..good() },
    ] {
        let (reason, message) = files.refusal(&guest);
        assert!(reason == unsupported && message.contains("unified kernel image"), "{message}");
    }
    let without = Guest { kernels: Vec::new(), ..good() };
    assert_eq!(files.refusal(&without), (unsupported, "No kernel was found in /boot.".into()));
    let unknown = Guest { kernels: vec![kernel(Driver::Unknown)], ..good() };
    assert_eq!(files.refusal(&unknown).0, unsupported);
}

#[test]
fn drivers_that_the_guest_does_not_have_are_named() {
    let files = Files::debian();
    let modules = files.root.path().join("lib/modules").join(VERSION_OF_KERNEL);
    let drivers = Unfixed::GuestDriversMissing;
    fs::remove_file(modules.join("virtio_blk.ko.zst")).unwrap();
    let (reason, message) = files.refusal(&broken());
    assert!(reason == drivers && message.contains("virtio_blk.ko.zst is not there"), "{message}");
    fs::write(modules.join("virtio_blk.ko.zst"), "text").unwrap();
    assert_eq!(files.refusal(&broken()).0, drivers);
    fs::write(modules.join("modules.dep"), "").unwrap();
    assert_eq!(
        files.refusal(&broken()),
        (drivers, format!("Kernel {VERSION_OF_KERNEL}: modules.dep has no module virtio_pci."))
    );
    fs::remove_file(modules.join("modules.dep")).unwrap();
    assert_eq!(files.refusal(&broken()).0, drivers);
}

#[test]
fn an_older_kernel_that_cannot_be_helped_is_left() {
    let mut guest = good();
    guest.kernels.push(Kernel { version: "5.10".into(), initramfs: Some("/boot/old".into()), ..kernel(Driver::Root) });
    let plan = Files::debian().plan(&guest).unwrap();
    assert_eq!((plan.changes.len(), plan.left.len()), (0, 1));
    assert_eq!(plan.left[0].what, "/boot/old");
    assert_eq!(plan.kernels[1].virtio_after, Answer::No);
}

#[test]
fn devices_are_named_by_what_they_hold() {
    let files = Files::debian();
    files.write("/etc/fstab", b"# root\n/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data ext4 nofail 0 2\n");
    files.write("/boot/grub/grub.cfg", b"linux /vmlinuz root=/dev/sda1 ro\n");
    let mount = |device: &str, target: &str, volume: Option<&str>| Mount {
        file: "/etc/fstab".into(),
        device: device.into(),
        target: target.into(),
        naming: Naming::Name,
        volume: volume.map(str::to_owned),
    };
    let boot = BootRoot {
        file: "/boot/grub/grub.cfg".into(),
        root: "/dev/sda1".into(),
        naming: Naming::Name,
        volume: Some("disk 0 partition 1".into()),
    };
    let root = mount("/dev/sda1", "/", Some("disk 0 partition 1"));
    let mut guest = Guest { mounts: vec![root, mount("/dev/sdb1", "/data", None)], boot: vec![boot], ..good() };
    let plan = files.plan(&guest).unwrap();
    let expected = format!("# root\nUUID={UUID} / ext4 defaults 0 1\n/dev/sdb1 /data ext4 nofail 0 2\n");
    assert_eq!(written(&plan, "/etc/fstab"), expected);
    assert_eq!(written(&plan, "/boot/grub/grub.cfg"), format!("linux /vmlinuz root=UUID={UUID} ro\n"));
    assert_eq!(plan.left.len(), 1);
    // A mount that the guest waits for in vain.
    files.write("/etc/fstab", b"/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data ext4 defaults 0 2\n");
    let (reason, message) = files.refusal(&guest);
    assert!(reason == Unfixed::GuestUnsupported && message.contains("/dev/sdb1 for /data"), "{message}");
    guest.mounts.pop();
    guest.boot[0].volume = None;
    guest.mounts.clear();
    assert!(files.refusal(&guest).1.contains("root=/dev/sda1"));
}

#[test]
fn lvms_file_of_known_devices_goes_and_its_copy_does_not_count() {
    let files = Files::debian();
    files.initramfs(&["usr/lib/dracut/hooks/a.sh", "usr/bin/kmod", "etc/lvm/devices/system.devices"], &[]);
    let guest = Guest { lvm_devices_file: true, root: Some("rl/root".into()), ..good() };
    let plan = files.plan(&guest).unwrap();
    let Act::Prepend(archive) = &plan.changes[0].act else { panic!("{:?}", plan.changes[0]) };
    assert_eq!(entries(archive), ["etc/lvm/lvmlocal.conf"]);
    let last = plan.changes.last().unwrap();
    assert_eq!((last.path.as_str(), &last.act), ("/etc/lvm/devices/system.devices", &Act::Remove));
}

#[test]
fn a_plan_without_its_foundation_is_refused() {
    let files = Files::debian();
    let doubt = |what: &str| Doubt { what: what.into(), why: "too many symbolic links".into() };
    let guest = Guest { doubts: vec![doubt("boot loader")], ..broken() };
    let message = "An answer about its boot loader is missing, so a plan could be wrong: too many symbolic links.";
    assert_eq!(files.refusal(&guest), (Unfixed::GuestUnsupported, message.into()));
    assert!(files.plan(&Guest { doubts: vec![doubt("architecture")], ..broken() }).is_ok());
}

#[test]
fn names_are_kept_unless_they_are_to_be_left() {
    let binding = NetworkBinding {
        file: "/etc/network/interfaces".into(),
        kind: "ifupdown".into(),
        interface: Some("ens192".into()),
        mac: None,
    };
    let (files, guest) = (Files::debian(), Guest { network: vec![binding], ..good() });
    let plan = files.plan(&guest).unwrap();
    assert_eq!(plan.changes[0].path, "/etc/systemd/network/10-hyper2kvm-ens192.link");
    files.write(&plan.changes[0].path, written(&plan, &plan.changes[0].path).as_bytes());
    assert_eq!(files.plan(&guest).unwrap().changes, [], "it is done already");
    let job = Job { guest_names: GuestNames::Leave, ..job() };
    let left = super::plan(&guest, &Mounted::new(files.root.path()).unwrap(), &job).unwrap();
    assert!(left.changes.is_empty());
}

#[test]
fn changes_that_have_no_room_are_refused() {
    let files = Files::debian();
    let job = Job { limits: Limits { growth_bytes: 100, ..Limits::default() }, ..job() };
    let refusal = plan(&broken(), &Mounted::new(files.root.path()).unwrap(), &job).unwrap_err();
    assert_eq!(refusal.reason, Unfixed::GuestNoSpace);
}

#[test]
fn what_is_no_single_linux_is_no_guest_to_treat() {
    let volume = |content: &str| Volume { name: "disk 0".into(), content: content.into(), ..Volume::default() };
    let with = |content: &str| Guest { volumes: vec![volume(content)], ..Guest::default() };
    assert_eq!(triage(&with("ext4")), Ok(false));
    assert_eq!(triage(&good()), Ok(true));
    let doubt = |what: &str| Doubt { what: what.into(), why: "unsupported features".into() };
    assert_eq!(triage(&Guest { doubts: vec![doubt("disk 0")], ..with("iso9660") }), Ok(false));
    for (guest, expected) in [
        (Guest { doubts: vec![doubt("disk 0")], ..with("ext4") }, Unfixed::GuestUnsupported),
        (Guest { doubts: vec![doubt("rl/root")], ..with("lvm2") }, Unfixed::GuestUnsupported),
        (with("luks"), Unfixed::GuestEncrypted),
        (with("bitlocker"), Unfixed::GuestEncrypted),
        (with("mdraid"), Unfixed::GuestUnsupported),
        (Guest { volumes: vec![volume("swsuspend")], ..good() }, Unfixed::GuestHibernated),
        (Guest { other_roots: vec!["disk 1".into()], ..good() }, Unfixed::GuestAmbiguous),
        (Guest { root: Some("md/0".into()), ..good() }, Unfixed::GuestUnsupported),
    ] {
        assert_eq!(triage(&guest).unwrap_err().reason, expected);
    }
}
