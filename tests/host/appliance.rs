// SPDX-License-Identifier: Apache-2.0
//! The appliance from outside: built by `hyper2kvm appliance build`, started in QEMU over disks that are made here.

mod guests;
mod kills;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyper2kvm::appliance::protocol::{Answer, GuestNames, Job, JobDisk, Limits, VERSION, job_archive};
use hyper2kvm::conversion::guest::fix::{GuestFix, Outcome, Unfixed};
use hyper2kvm::conversion::guest::{Answer as Known, FixKind};
use tempfile::TempDir;

use guests::{Guest, cat, path};

const BUILT: &str = env!("CARGO_BIN_EXE_hyper2kvm");
/// Seconds after which a machine that does nothing is ended.
const MOST_SECONDS: &str = "240";

/// A kernel, unpacked, and where an appliance of it and disks are made.
pub(crate) struct Bench {
    pub(crate) place: TempDir,
    kernel: PathBuf,
    version: String,
}

impl Bench {
    /// `None` where a program is missing or no kernel can be had.
    pub(crate) fn new() -> Option<Self> {
        for (program, package) in [
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("mke2fs", "e2fsprogs"),
            ("sfdisk", "fdisk"),
            ("depmod", "kmod"),
            ("strip", "binutils"),
        ] {
            let found = Command::new("which").arg(program).env("PATH", path()).stdout(Stdio::null()).status();
            if !found.is_ok_and(|found| found.success()) {
                println!("LEFT OUT: the appliance in QEMU: {program} is not installed (Debian: {package})");
                return None;
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let kernel = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is target/tmp").join("guests/kernel");
        let fetched = Command::new(root.join("tests/images/kernel.sh")).arg(&kernel).output().unwrap();
        if !fetched.status.success() {
            println!("LEFT OUT: the appliance in QEMU: no kernel: {}", String::from_utf8_lossy(&fetched.stderr));
            return None;
        }
        let version = String::from_utf8(fetched.stdout).unwrap().trim().to_owned();
        Some(Self { place: tempfile::tempdir().unwrap(), kernel, version })
    }

    fn modules(&self) -> PathBuf {
        self.kernel.join("lib/modules").join(&self.version)
    }

    /// Builds the appliance into `output`, without what only debuggers read.
    pub(crate) fn build(&self, output: &str) {
        let init = self.place.path().join("init");
        let stripped =
            Command::new("strip").arg("-o").arg(&init).arg(env!("CARGO_BIN_EXE_hyper2kvm-appliance")).status();
        assert!(stripped.unwrap().success());
        let built = Command::new(BUILT)
            .args(["appliance", "build", "--kernel"])
            .arg(self.kernel.join("boot").join(format!("vmlinuz-{}", self.version)))
            .arg("--modules")
            .arg(self.modules())
            .arg("--output")
            .arg(self.place.path().join(output))
            .arg("--init")
            .arg(&init)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }

    /// Runs the appliance on raw disks; the answer, or what is wrong with it.
    fn run(&self, disks: &[&Path]) -> Result<GuestFix, String> {
        let here = self.place.path();
        let serial = |n: usize| format!("disk{n}");
        let job = Job {
            version: VERSION,
            disks: (0..disks.len()).map(|n| JobDisk { serial: serial(n) }).collect(),
            guest_names: GuestNames::Keep,
            cards: Vec::new(),
            drivers: Vec::new(),
            limits: Limits::default(),
        };
        let initrd = [fs::read(here.join("appliance/initrd")).unwrap(), job_archive(&job, &[]).unwrap()].concat();
        fs::write(here.join("initrd"), initrd).unwrap();
        let mut qemu = Command::new("timeout");
        qemu.args([MOST_SECONDS, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", "384", "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-kernel", "appliance/vmlinuz"])
            .args(["-initrd", "initrd", "-serial", "file:console", "-serial", "file:answer"]);
        for (n, disk) in disks.iter().enumerate() {
            let drive = format!("file={},format=raw,if=none,id=d{n},cache=unsafe", disk.display());
            let device = format!("virtio-blk-pci,drive=d{n},serial={}", serial(n));
            qemu.args(["-drive", &drive, "-device", &device]);
        }
        let ended = qemu.current_dir(here).stdin(Stdio::null()).output().unwrap();
        let console = String::from_utf8_lossy(&fs::read(here.join("console")).unwrap()).into_owned();
        println!("{}\n{console}", String::from_utf8_lossy(&ended.stderr));
        let mut answer = Answer::default();
        let bytes = fs::read(here.join("answer")).unwrap();
        let mut last = None;
        for piece in bytes.chunks(100) {
            last = answer.push(piece).map_err(|error| error.to_string())?.or(last);
        }
        println!("last step: {last:?}");
        answer.finish().map_err(|error| error.to_string())
    }
}

#[test]
fn an_appliance_that_cannot_be_built_says_what_is_missing() {
    let place = tempfile::tempdir().unwrap();
    let build = |kernel: &str| {
        let output = Command::new(BUILT)
            .args([
                "appliance",
                "build",
                "--kernel",
                kernel,
                "--modules",
                ".",
                "--output",
                "out",
                "--init",
                "/bin/true",
            ])
            .current_dir(place.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let no_kernel = "error: cannot read the kernel vmlinuz: No such file or directory (os error 2)\n";
    assert_eq!(build("vmlinuz"), (Some(1), no_kernel.into()));
    let no_modules = "error: . has no modules.dep: run depmod for this kernel\n";
    assert_eq!(build("/bin/true"), (Some(1), no_modules.into()));
    assert!(!place.path().join("out").exists());
}

#[test]
fn a_guest_is_fixed_by_the_appliance_and_its_other_files_are_whole() {
    let Some(bench) = Bench::new() else { return };
    bench.build("appliance");
    bench.build("again");
    let read = |name: &str| fs::read(bench.place.path().join(name).join("initrd")).unwrap();
    assert!(read("appliance") == read("again"), "the same parts make another initrd");
    let guest = Guest::new(bench.place.path(), &bench.modules(), &bench.version);
    guest.hostile();
    let disk = guest.disk("disk", 96);
    let before = guest.digests(&disk);
    let report = bench.run(&[&disk]).unwrap();
    assert_eq!((report.outcome, report.reason), (Outcome::Fixed, None), "{report:#?}");
    assert_eq!(report.os.as_ref().unwrap().id, "debian");
    assert_eq!((report.kernels[0].virtio_before, report.kernels[0].virtio_after), (Known::No, Known::Yes));
    let initrd = format!("/boot/initrd.img-{}", bench.version);
    let changed: Vec<_> = report.changes.iter().map(|change| (change.fix, change.file.as_str())).collect();
    let expected = [
        (FixKind::InitramfsVirtio, initrd.as_str()),
        (FixKind::InitramfsVirtio, "/etc/initramfs-tools/modules"),
        (FixKind::DeviceNames, "/etc/fstab"),
        (FixKind::DeviceNames, "/boot/grub/grub.cfg"),
        (FixKind::NetworkNames, "/etc/systemd/network/10-hyper2kvm-ens192.link"),
    ];
    assert_eq!(changed, expected);
    let volume = guest.volume(&disk);
    let uuid = guests::UUID;
    assert_eq!(cat(&volume, "/etc/fstab"), format!("UUID={uuid} / ext4 defaults 0 1\n").into_bytes());
    assert_eq!(cat(&volume, "/etc/fstab.hyper2kvm"), b"/dev/sda1 / ext4 defaults 0 1\n");
    assert!(String::from_utf8(cat(&volume, "/boot/grub/grub.cfg")).unwrap().contains(&format!("root=UUID={uuid} ro")));
    let (old, new) = (cat(&volume, &format!("{initrd}.hyper2kvm")), cat(&volume, &initrd));
    assert!(new.ends_with(&old) && new.starts_with(b"070701"), "its own archive follows the other");
    // What no change names is as it was.
    let after = guest.digests(&disk);
    let named: Vec<String> = report.changes.iter().map(|change| change.file.clone()).collect();
    for (file, digest) in &before {
        assert!(named.contains(file) || after.get(file) == Some(digest), "{file} changed");
    }
    // Once more: nothing is left to do.
    assert_eq!(bench.run(&[&disk]).unwrap().outcome, Outcome::NothingToDo);
}

#[test]
fn a_guest_that_cannot_be_fixed_is_refused_by_name_and_left_as_it_is() {
    let Some(bench) = Bench::new() else { return };
    bench.build("appliance");
    let guest = Guest::new(bench.place.path(), &bench.modules(), &bench.version);
    let disk = guest.disk("disk", 96);
    let full = guest.full("full", 12);
    let other = guest.disk("other", 96);
    let broken = guest.broken("broken", 96);
    let empty = guest.empty("empty", 8);
    for (disks, expected) in [
        (vec![&disk, &other], Ok((Outcome::Unfixed, Some(Unfixed::GuestAmbiguous)))),
        (vec![&full], Ok((Outcome::Unfixed, Some(Unfixed::GuestNoSpace)))),
        (vec![&empty], Ok((Outcome::NotAGuest, None))),
        (vec![&broken], Err(())),
    ] {
        let bytes: Vec<_> = disks.iter().map(|disk| fs::read(disk).unwrap()).collect();
        let paths: Vec<&Path> = disks.iter().map(|disk| disk.as_path()).collect();
        let report = bench.run(&paths);
        match expected {
            Ok(expected) => {
                let report = report.unwrap();
                assert_eq!((report.outcome, report.reason), expected, "{report:#?}");
                assert!(report.changes.is_empty());
                let same = disks.iter().zip(&bytes).all(|(disk, bytes)| fs::read(disk).unwrap() == *bytes);
                assert!(same, "{expected:?} changed a disk");
            }
            // The appliance may say anything but that it is well, or die.
            Err(()) => assert!(report.is_err() || report.is_ok_and(|report| report.outcome != Outcome::Fixed)),
        }
    }
}
