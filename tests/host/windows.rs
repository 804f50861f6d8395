// SPDX-License-Identifier: Apache-2.0
//! A guest of Windows from outside: a tree with its directories and its own registries on NTFS, drivers that are only named
//! like virtio-win's, the built program and QEMU.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::appliance::Bench;
use crate::hive;

const BUILT: &str = env!("CARGO_BIN_EXE_hyper2kvm");
const MIB: u64 = 1 << 20;
/// Where the partition begins, and its length.
const START: u64 = MIB;
const LENGTH: u64 = 64 * MIB;
const SYSTEM: &str = "Windows/System32/config/SYSTEM";
/// Keys of a Windows Server 2022, as few as an inspection and a fix need.
const SYSTEM_KEYS: &str = "Windows Registry Editor Version 5.00

[\\Select]
\"Current\"=dword:00000001

[\\ControlSet001]

[\\ControlSet001\\Control]

[\\ControlSet001\\Control\\Session Manager]

[\\ControlSet001\\Control\\Session Manager\\Environment]
\"PROCESSOR_ARCHITECTURE\"=\"AMD64\"

[\\ControlSet001\\Services]

[\\ControlSet001\\Services\\storahci]
\"Start\"=dword:00000000

[\\ControlSet001\\Services\\zzz]
\"Start\"=dword:00000003

[\\DriverDatabase]
\"Version\"=dword:06020000

[\\DriverDatabase\\DeviceIds]

[\\DriverDatabase\\DeviceIds\\PCI]

[\\DriverDatabase\\DeviceIds\\PCI\\VEN_8086&DEV_2922]
\"other.inf\"=hex:01,ff,00,00
";
const SOFTWARE_KEYS: &str = "Windows Registry Editor Version 5.00

[\\Microsoft]

[\\Microsoft\\Windows NT]

[\\Microsoft\\Windows NT\\CurrentVersion]
\"ProductName\"=\"Windows Server 2022 Standard\"
\"CurrentMajorVersionNumber\"=dword:0000000a
\"CurrentMinorVersionNumber\"=dword:00000000
\"CurrentBuild\"=\"20348\"
";
const INF: &str = "[Standard.NTamd64]\r\n%v% = i, PCI\\VEN_1AF4&DEV_1001&SUBSYS_00021AF4&REV_00\r\n\
                   %v% = i, PCI\\VEN_1AF4&DEV_1042&SUBSYS_11001AF4&REV_01\r\n";

fn run(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether all that makes and reads the guest is here.
fn is_possible() -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let has = |name: &&str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    let needed = ["mkntfs", "ntfs-3g", "ntfsfix", "hivexregedit", "qemu-img", "sfdisk"];
    let missing = needed.iter().find(|name| !has(name));
    if let Some(missing) = missing {
        println!("LEFT OUT: a guest of Windows: {missing} is not installed");
        return false;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("LEFT OUT: a guest of Windows: only root may mount NTFS, by /dev/fuse");
        return false;
    }
    true
}

/// Calls `ask` with a directory on which the NTFS in `volume` is mounted.
fn mounted<T>(volume: &Path, options: &str, ask: impl FnOnce(&Path) -> T) -> T {
    let place = tempfile::tempdir().unwrap();
    run("ntfs-3g", &["-o", options, text(volume), text(place.path())]);
    let asked = ask(place.path());
    run("umount", &[text(place.path())]);
    asked
}

/// A registry with these keys, made by hivex.
fn registry(place: &Path, keys: &str) -> Vec<u8> {
    let (file, list) = (place.join("hive"), place.join("keys.reg"));
    fs::write(&file, hive::empty(5)).unwrap();
    fs::write(&list, keys).unwrap();
    run("hivexregedit", &["--merge", text(&file), text(&list)]);
    fs::read(&file).unwrap()
}

/// A disk with one NTFS, whose tree `change` may change.
fn disk(place: &Path, name: &str, table: &str, change: impl FnOnce(&Path)) -> PathBuf {
    let volume = place.join("volume");
    File::create(&volume).unwrap().set_len(LENGTH).unwrap();
    run("mkntfs", &["-F", "-Q", "-q", "-p", "2048", "-H", "255", "-S", "63", text(&volume)]);
    let (system, software) = (registry(place, SYSTEM_KEYS), registry(place, SOFTWARE_KEYS));
    mounted(&volume, "rw", |root| {
        for directory in ["Windows/System32/config", "Windows/System32/drivers", "Users/x"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join(SYSTEM), system).unwrap();
        fs::write(root.join("Windows/System32/config/SOFTWARE"), software).unwrap();
        fs::write(root.join("Windows/System32/drivers/storahci.sys"), "inbox").unwrap();
        for n in 0..300_u32 {
            fs::write(root.join(format!("Users/x/file {n} ä.txt")), n.to_le_bytes().repeat(1 + n as usize)).unwrap();
        }
        change(root);
    });
    let path = place.join(name);
    let mut file = File::create(&path).unwrap();
    file.set_len(START + LENGTH + MIB).unwrap();
    file.seek(SeekFrom::Start(START)).unwrap();
    file.write_all(&fs::read(&volume).unwrap()).unwrap();
    let kind = if table == "gpt" { "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7" } else { "7,bootable" };
    let script = format!("label: {table}\nstart=2048, size={}, type={kind}\n", LENGTH / 512);
    let mut sfdisk = Command::new("/usr/sbin/sfdisk").args(["-q", text(&path)]).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    path
}

/// A directory as virtio-win has it.
fn virtio_win(place: &Path) -> PathBuf {
    let root = place.join("virtio-win");
    for (directory, name, inf) in [("viostor", "viostor", INF), ("NetKVM", "netkvm", "[Version]\r\n")] {
        let directory = root.join(directory).join("2k22/amd64");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{name}.inf")), inf).unwrap();
        fs::write(directory.join(format!("{name}.sys")), format!("driver {name}").repeat(9000)).unwrap();
        fs::write(directory.join(format!("{name}.cat")), "signature").unwrap();
    }
    root
}

fn convert(bench: &Bench, disk: &Path, more: &[&str]) -> Output {
    Command::new(BUILT)
        .args(["convert", "--json", "--output-dir", "out", "--force", "--emit", "libvirt"])
        .args(["--appliance", "appliance", "--guest-limit", "60", "--progress", "none"])
        .args(more)
        .arg(disk)
        .current_dir(bench.place.path())
        .output()
        .unwrap()
}

/// What a conversion tells of its guest.
fn guest(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["guest"].clone()
}

/// The partition of a converted disk.
fn volume(bench: &Bench, output: &str) -> PathBuf {
    let place = bench.place.path();
    let (raw, volume) = (place.join("raw"), place.join("volume"));
    run("qemu-img", &["convert", "-O", "raw", text(&place.join("out").join(output)), text(&raw)]);
    let mut file = File::open(&raw).unwrap();
    file.seek(SeekFrom::Start(START)).unwrap();
    let mut bytes = Vec::new();
    file.take(LENGTH).read_to_end(&mut bytes).unwrap();
    fs::write(&volume, bytes).unwrap();
    volume
}

/// The digests of all files.
fn digests(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                ahead.push(entry.path());
            } else {
                let digest = Sha256::digest(fs::read(entry.path()).unwrap());
                let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, format!("{digest:x?}"));
            }
        }
    }
    found
}

fn exported(hive: &Path) -> Vec<String> {
    let output = run("hivexregedit", &["--export", "--unsafe-printable-strings", text(hive), "\\"]);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The security descriptor of a file on a mounted NTFS.
fn security(path: &Path) -> Vec<u8> {
    let mut value = vec![0; 65_536];
    let len = rustix::fs::getxattr(path, "system.ntfs_acl", &mut value[..]).unwrap();
    value.truncate(len);
    value
}

#[test]
fn windows_gets_its_boot_driver_and_every_other_file_stays() {
    if !is_possible() {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    bench.build("appliance");
    let place = bench.place.path();
    let drivers = virtio_win(place);
    for table in ["gpt", "dos"] {
        let disk = disk(place, &format!("{table}.raw"), table, |_| {});
        let (before, acl) = mounted(&place.join("volume"), "ro", |root| (digests(root), security(&root.join(SYSTEM))));
        let output = convert(&bench, &disk, &["--fix-guest=require", "--virtio-win", text(&drivers)]);
        let guest = guest(&output);
        let ended = ["outcome", "bus", "nic"].map(|name| guest[name].as_str().unwrap());
        assert_eq!(ended, ["fixed", "virtio", "e1000e"], "{guest:#}");
        assert_eq!(guest["left"][0]["what"], "netkvm");
        let volume = volume(&bench, &format!("{table}.qcow2"));
        let checked = run("ntfsfix", &["-n", text(&volume)]);
        println!("{}", String::from_utf8_lossy(&checked.stdout));
        mounted(&volume, "ro", |root| {
            let after = digests(root);
            for (file, digest) in &before {
                assert!(file == SYSTEM || after.get(file) == Some(digest), "{file} changed");
            }
            assert_eq!(after[&format!("{SYSTEM}.hyper2kvm")], before[SYSTEM], "the registry is kept as it was");
            let mut added: Vec<_> = after.keys().filter(|file| !before.contains_key(*file)).cloned().collect();
            added.sort();
            let of = |name: &str| ["cat", "inf", "sys"].map(|end| format!("Windows/hyper2kvm/{name}/{name}.{end}"));
            let mut expected: Vec<String> = [of("netkvm"), of("viostor")].concat();
            expected.push("Windows/hyper2kvm/firstboot.cmd".to_owned());
            expected.push("Windows/System32/drivers/viostor.sys".to_owned());
            expected.push(format!("{SYSTEM}.hyper2kvm"));
            expected.sort();
            assert_eq!(added, expected);
            let copied = fs::read(root.join("Windows/System32/drivers/viostor.sys")).unwrap();
            assert!(copied == fs::read(drivers.join("viostor/2k22/amd64/viostor.sys")).unwrap());
            keys(root, place);
            // Nobody but administrators may change what the system will run.
            assert_eq!(security(&root.join(SYSTEM)), acl, "the registry keeps its security");
            let everybody = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
            for path in ["Windows/hyper2kvm", "Windows/hyper2kvm/netkvm", "Windows/hyper2kvm/firstboot.cmd"] {
                let security = security(&root.join(path));
                assert!(!security.windows(12).any(|sid| sid == everybody), "everybody may change {path}");
            }
        });
        // Once more: it starts from virtio now.
        let fixed = place.join(format!("out/{table}.qcow2"));
        let again = place.join(format!("again-{table}.qcow2"));
        fs::rename(fixed, &again).unwrap();
        let output = convert(&bench, &again, &["--fix-guest=require", "--virtio-win", text(&drivers)]);
        assert_eq!(self::guest(&output)["outcome"], "nothingToDo");
    }
}

/// What hivex reads of the fixed registry: all that was there, and what belongs to the driver.
fn keys(root: &Path, place: &Path) {
    let (old, new) = (place.join("old"), place.join("new"));
    fs::copy(root.join(format!("{SYSTEM}.hyper2kvm")), &old).unwrap();
    fs::copy(root.join(SYSTEM), &new).unwrap();
    let (old, new) = (exported(&old), exported(&new));
    for line in &old {
        assert!(new.contains(line), "{line} is gone");
    }
    // By key: values that other keys have, too, are lines that are not new.
    let values = |key: &str| -> Vec<String> {
        let start = new.iter().position(|line| *line == format!("[\\{key}]")).unwrap_or_else(|| panic!("no {key}"));
        let mut values: Vec<String> = new[start + 1..].iter().take_while(|line| !line.is_empty()).cloned().collect();
        values.sort();
        values
    };
    let service = [
        "\"ErrorControl\"=dword:00000001",
        "\"Group\"=str(1):\"SCSI miniport\"",
        "\"ImagePath\"=str(2):\"system32\\drivers\\viostor.sys\"",
        "\"Start\"=dword:00000000",
        "\"Type\"=dword:00000001",
    ];
    assert_eq!(values("ControlSet001\\Services\\viostor"), service);
    let base = "DriverDatabase";
    let package = format!("{base}\\DriverPackages\\hyper2kvm.inf_tmp");
    for device in ["VEN_1AF4&DEV_1001&REV_00", "VEN_1AF4&DEV_1042&REV_01"] {
        let found = values(&format!("{base}\\DeviceIds\\PCI\\{device}"));
        assert_eq!(found, ["\"hyper2kvm.inf\"=hex(3):01,ff,00,00"]);
        let found = values(&format!("{package}\\Descriptors\\PCI\\{device}"));
        assert_eq!(found, ["\"Configuration\"=str(1):\"hyper2kvm_conf\""]);
    }
    let configuration = values(&format!("{package}\\Configurations\\hyper2kvm_conf"));
    assert_eq!(configuration, ["\"ConfigFlags\"=dword:00000000", "\"Service\"=str(1):\"viostor\""]);
    let version = "\"Version\"=hex(3):00,ff,09,00,00,00,00,00,7b,e9,36,4d,25,e3,ce,11,bf,c1,08,00,2b,e1,03,18,";
    assert_eq!(values(&package), [version.to_owned() + &["00"; 24].join(",")]);
    let active = "\"Active\"=str(1):\"hyper2kvm.inf_tmp\"";
    assert!(values(&format!("{base}\\DriverInfFiles\\hyper2kvm.inf")).contains(&active.to_owned()));
    assert!(values("ControlSet001\\Services\\hyper2kvm").contains(&"\"Start\"=dword:00000002".to_owned()));
}

#[test]
fn windows_that_cannot_be_fixed_is_refused_by_name_with_its_exit_code() {
    if !is_possible() {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    bench.build("appliance");
    let place = bench.place.path();
    let drivers = virtio_win(place);
    let other = place.join("other");
    fs::create_dir_all(other.join("viostor/w10/amd64")).unwrap();
    let plain = disk(place, "plain.raw", "gpt", |_| {});
    let dirty = disk(place, "dirty.raw", "gpt", |root| {
        let path = root.join(SYSTEM);
        let mut bytes = fs::read(&path).unwrap();
        bytes[4] += 1;
        fs::write(path, bytes).unwrap();
    });
    let sleeping = disk(place, "sleeping.raw", "gpt", |root| fs::write(root.join("hiberfil.sys"), "hibr").unwrap());
    for (disk, given, code, expected) in [
        (&plain, None, 11, "name a directory with virtio-win's drivers"),
        (&plain, Some(&other), 11, "looked for viostor/2k22/amd64, viostor/2k19/amd64, viostor/2k16/amd64"),
        (&dirty, Some(&drivers), 10, "start Windows once and shut it down wholly"),
        (&sleeping, Some(&drivers), 10, "hibernated"),
    ] {
        let mut arguments = vec!["--fix-guest=require"];
        arguments.extend(given.iter().flat_map(|path| ["--virtio-win", text(path)]));
        let output = convert(&bench, disk, &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    // What is converted all the same is the disk as it was, with devices that Windows drives.
    let output = convert(&bench, &plain, &["--fix-guest", "--virtio-win", text(&other)]);
    let told = guest(&output);
    let ended = ["outcome", "reason", "bus", "nic"].map(|name| told[name].as_str().unwrap());
    assert_eq!(ended, ["unfixed", "GuestDriversMissing", "sata", "e1000e"]);
    run("qemu-img", &["compare", "-f", "raw", text(&plain), text(&place.join("out/plain.qcow2"))]);
}
