// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm convert --to-device`.

use std::process::Stdio;

use super::*;

fn convert(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
    command.arg("convert").args(arguments).stdin(Stdio::null()).output().expect("the built binary runs")
}

/// A source of the format, and the raw disk that qemu-img reads in it; `None` where there is no qemu-img.
fn source(place: &TempDir, name: &str, options: &[&str], size: u64) -> Option<(PathBuf, Vec<u8>)> {
    let (raw, made, read) = (place.path().join("guest.raw"), place.path().join(name), place.path().join("read.raw"));
    fs::write(&raw, guest(size)).unwrap();
    let qemu_img = |arguments: &[&str], from: &Path, to: &Path| {
        Command::new("qemu-img").arg("convert").args(arguments).args([from, to]).status().is_ok_and(|s| s.success())
    };
    if !qemu_img(options, &raw, &made) || !qemu_img(&["-O", "raw"], &made, &read) {
        eprintln!("left out: qemu-img is not installed (Debian: qemu-utils)");
        return None;
    }
    let bytes = fs::read(&read).unwrap();
    Some((made, bytes))
}

const VMDK: &[&str] = &["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
const QCOW2: &[&str] = &["-f", "raw", "-O", "qcow2"];

#[test]
fn every_byte_of_a_device_is_the_disk_or_zero() {
    let place = tempfile::tempdir().unwrap();
    let size = 9 * MIB + 3 * 512;
    let sources = [("disk.vmdk", VMDK), ("disk.qcow2", QCOW2), ("disk.raw", &["-f", "raw", "-O", "raw"])];
    for (name, options) in sources {
        let Some((source, disk)) = source(&place, name, options, size) else { return };
        for (bytes, sector) in
            [(disk.len() as u64, 512), (disk.len() as u64 + 512, 512), (13 * MIB + 512, 512), (90 * MIB, 4096)]
        {
            let Some(device) = Loop::new(&place, bytes, sector) else { return };
            let output = convert(&[source.to_str().unwrap(), "--to-device", device.name(), "--verify", "full"]);
            assert!(output.status.success(), "{name} on {bytes}: {}", said(&output));
            assert!(device.holds(&disk), "{name} on a device of {bytes} bytes in sectors of {sector}");
            assert!(said(&output).contains(device.name()), "{}", said(&output));
        }
        fs::remove_file(source).unwrap();
    }
}

#[test]
fn a_disk_that_is_smaller_than_what_is_held_back_is_written_whole() {
    let place = tempfile::tempdir().unwrap();
    let Some((source, disk)) = source(&place, "disk.qcow2", QCOW2, 70 * 512) else { return };
    for bytes in [70 * 512, 100 * 512, 3 * MIB] {
        let Some(device) = Loop::new(&place, bytes, 512) else { return };
        let output = convert(&[source.to_str().unwrap(), "--to-device", device.name()]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(device.holds(&disk), "on {bytes} bytes");
    }
}

#[test]
fn a_device_that_is_too_small_is_refused_with_the_bytes_needed_and_not_touched() {
    let place = tempfile::tempdir().unwrap();
    let Some((source, disk)) = source(&place, "disk.vmdk", VMDK, 4 * MIB) else { return };
    let Some(device) = Loop::new(&place, disk.len() as u64 - 512, 512) else { return };
    let output = convert(&[source.to_str().unwrap(), "--to-device", device.name()]);
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    assert!(said(&output).contains("4194304 bytes") && said(&output).contains("4193792 bytes"), "{}", said(&output));
    assert!(said(&output).contains("Use a device of at least that size"), "{}", said(&output));
    assert!(device.is_untouched());
}

#[test]
fn a_device_that_is_mounted_or_holds_something_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let Some((source, disk)) = source(&place, "disk.qcow2", QCOW2, 4 * MIB) else { return };
    let Some(device) = Loop::new(&place, 8 * MIB, 512) else { return };
    let to = |more: &[&str]| convert(&[&[source.to_str().unwrap(), "--to-device", device.name()], more].concat());
    run("mkfs.ext4", &["-q", "-F", device.name()]);
    let before = device.content();

    let output = to(&[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("holds an ext2, ext3 or ext4 file system"), "{}", said(&output));
    assert!(said(&output).contains("--force"), "{}", said(&output));

    let mounted = place.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    // In a mount namespace of its own: a container that starts at this moment would take a copy of the mount along.
    let script = r#"mount -o ro "$1" "$2" || exit 99; "$3" convert "$4" --to-device "$1" --force; code=$?; umount "$2"; exit $code"#;
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "sh", "-c", script, "sh", device.name(), mounted.to_str().unwrap()]);
    let output = inside.arg(env!("CARGO_BIN_EXE_hyper2kvm")).arg(&source).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    assert!(said(&output).contains("is mounted, or another program uses it"), "{}", said(&output));
    assert!(before == device.content(), "it was written to");

    let output = to(&["--force", "--json", "--checksum"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(device.holds(&disk));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["disks"][0]["target"]["path"], device.name());
    let digest = Command::new("sha256sum").arg(place.path().join("read.raw")).output().unwrap();
    assert!(digest.stdout.starts_with(report["disks"][0]["sha256"].as_str().unwrap().as_bytes()));
}

#[test]
fn what_is_no_device_and_too_few_or_too_many_of_them_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let Some((source, _)) = source(&place, "disk.qcow2", QCOW2, 4 * MIB) else { return };
    let source = source.to_str().unwrap();
    let file = place.path().join("guest.raw");
    let output = convert(&[source, "--to-device", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    assert!(said(&output).contains("is no block device"), "{}", said(&output));
    let output = convert(&[source, "--to-device", "/dev/none", "--format", "qcow2"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = convert(&[source, "--to-device", "/dev/there-is-none"]);
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    let (Some(one), Some(two)) = (Loop::new(&place, 4 * MIB, 512), Loop::new(&place, 4 * MIB, 512)) else { return };
    let output = convert(&[source, "--to-device", &format!("{},{}", one.name(), two.name())]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("number of its disks: 1, number of devices named: 2"), "{}", said(&output));
    assert!(one.is_untouched() && two.is_untouched());
}

#[test]
fn a_conversion_that_is_killed_leaves_no_beginning_of_a_disk() {
    let place = tempfile::tempdir().unwrap();
    let (raw, size) = (place.path().join("disk.raw"), 96 * MIB);
    let noise: Vec<u8> = guest(6 * MIB)[3 * 1024 * 1024 + 512..][..1 << 20].to_vec();
    fs::write(&raw, noise.repeat(96)).unwrap();
    for _ in 0..20 {
        let Some(device) = Loop::new(&place, size, 512) else { return };
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
        command.args(["convert", raw.to_str().unwrap(), "--to-device", device.name(), "--threads", "1"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let backing = File::open(&device.file).unwrap();
        let mut byte = [STALE];
        while byte == [STALE] && child.try_wait().unwrap().is_none() {
            backing.read_exact_at(&mut byte, 2 * MIB).unwrap();
        }
        child.kill().unwrap();
        let was_killed = child.wait().unwrap().code().is_none();
        // The contained process ends with its parent, and only then can the device be had for oneself.
        let started = Instant::now();
        let exclusive = || {
            use std::os::unix::fs::OpenOptionsExt as _;
            let flags = rustix::fs::OFlags::EXCL.bits().cast_signed();
            File::options().read(true).write(true).custom_flags(flags).open(&device.device)
        };
        while exclusive().is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "the device is in use for ever");
        }
        if was_killed {
            assert!(device.content()[..1 << 20].iter().all(|&byte| byte == 0), "a half disk would boot");
            return;
        }
    }
    panic!("no conversion was still under way when it was killed");
}

#[test]
fn zeros_are_written_where_the_device_zeros_no_range() {
    let place = tempfile::tempdir().unwrap();
    let Some((source, disk)) = source(&place, "disk.qcow2", QCOW2, 9 * MIB + 512) else { return };
    for flags in ["error=EOPNOTSUPP", "error=EINVAL"] {
        let Some(device) = Loop::new(&place, 12 * MIB + 512, 512) else { return };
        let trace = place.path().join("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", trace.to_str().unwrap(), "-e", "trace=fallocate"]);
        strace.args(["-e", &format!("inject=fallocate:{flags}"), env!("CARGO_BIN_EXE_hyper2kvm"), "convert"]);
        strace.args([source.to_str().unwrap(), "--to-device", device.name(), "--no-sandbox"]);
        let Ok(output) = strace.stdin(Stdio::null()).output() else {
            eprintln!("left out: a device that zeros no range (Debian: strace)");
            return;
        };
        if said(&output).contains("ptrace") {
            eprintln!("left out: a device that zeros no range: ptrace is forbidden here");
            return;
        }
        assert!(output.status.success(), "{}", said(&output));
        assert!(fs::read_to_string(&trace).unwrap().contains("INJECTED"));
        assert!(said(&output).contains("can't zero a range by itself"), "{}", said(&output));
        assert!(device.holds(&disk), "{flags}");
    }
}
