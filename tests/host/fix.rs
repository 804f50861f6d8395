// SPDX-License-Identifier: Apache-2.0
//! `--fix-guest` from outside, with a program in QEMU's place that says and does what an appliance may.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Finds the overlays among QEMU's arguments, and does what the appliance's directory says. A shell is enough: QEMU's
/// part is to write to the overlays, and to say something on its standard output.
const QEMU: &str = r#"#!/bin/sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
overlays= does=does
while [ $# -gt 0 ]; do
  case $1 in
    -kernel) appliance=${2%/vmlinuz} ;;
    -mon) does=monitor ;;
    -blockdev) node=$2 overlays="$overlays $(echo "$2" | grep -o '[^"]*fix.tmp/[0-9]*.qcow2')" ;;
  esac
  shift
done
if [ $does = monitor ]; then . "${0%/bin/*}/appliance/monitor"; exit 0; fi
echo '{"step":{"name":"start","atMs":1}}'
write() {
  for overlay in $overlays; do
    qemu-io -f qcow2 -c "write -q -P 0x41 1M ${1:-64k}" -c 'write -q -z 0 64k' -c 'write -q -z 12M 128k' "$overlay" >&2
  done
}
. "$appliance/does"
"#;

const FIXED: &str = r#"{"report":{"outcome":"fixed","kernels":[],"left":[],
"changes":[{"fix":"deviceNames","file":"/etc/fstab","backup":"/etc/fstab.hyper2kvm"}]}}"#;
pub(crate) const NO_SPACE: &str = r#"{"report":{"outcome":"unfixed","reason":"GuestNoSpace","message":"/boot is full.",
"kernels":[],"changes":[],"left":[]}}"#;

const APPLIANCE: [&str; 2] = ["--appliance", "appliance"];
/// KVM would be tried with the program in QEMU's place.
const TCG: [&str; 2] = ["--accelerator", "tcg"];

pub(crate) struct Bench {
    pub(crate) place: TempDir,
}

impl Bench {
    /// A guest whose fstab names a disk by its place, and an appliance that does this; `None` without mkfs or qemu-io.
    pub(crate) fn new(does: &str) -> Option<Self> {
        let bench = Self { place: tempfile::tempdir().unwrap() };
        let here = bench.place.path();
        for directory in ["bin", "appliance", "out", "files/etc", "files/boot"] {
            fs::create_dir_all(here.join(directory)).unwrap();
        }
        fs::write(here.join("bin/qemu-system-x86_64"), QEMU).unwrap();
        fs::set_permissions(here.join("bin/qemu-system-x86_64"), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["vmlinuz", "initrd"] {
            fs::write(here.join("appliance").join(name), "x").unwrap();
        }
        bench.appliance_does(does);
        fs::write(here.join("files/etc/os-release"), "ID=debian\nPRETTY_NAME=\"Debian 12\"\n").unwrap();
        fs::write(here.join("files/etc/fstab"), "/dev/sda1 / ext4 defaults 0 1\n").unwrap();
        fs::write(here.join("files/boot/vmlinuz-6.1.0"), "MZ").unwrap();
        bench.disk("vm.raw", true).then_some(bench)
    }

    pub(crate) fn appliance_does(&self, does: &str) {
        fs::write(self.place.path().join("appliance/does"), does).unwrap();
    }

    /// A disk with the guest's files, or with none.
    fn disk(&self, name: &str, is_guest: bool) -> bool {
        let here = self.place.path();
        let image = here.join(name);
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let files = here.join(if is_guest { "files" } else { "out" });
        let made =
            Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(files).arg(&image).env("PATH", path(here)).status();
        let has = made.is_ok_and(|made| made.success()) && Command::new("qemu-io").arg("--version").output().is_ok();
        if !has {
            println!(
                "LEFT OUT: fixes of guests: mkfs.ext4 or qemu-io is not installed (Debian: e2fsprogs, qemu-utils)"
            );
        }
        has
    }

    fn convert(&self, source: &str, out: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
            .args(["convert", "--json", "--output-dir", out, "--guest-limit", "60"])
            .args(more)
            .args(TCG)
            .args(if more.iter().any(|word| word.starts_with("--fix-guest")) { &APPLIANCE[..] } else { &[] })
            .arg(source)
            .current_dir(self.place.path())
            .env("PATH", path(self.place.path()))
            .output()
            .unwrap()
    }

    /// Converts it well, and returns the report.
    fn converted(&self, out: &str, more: &[&str]) -> Value {
        let output = self.convert("vm.raw", out, more);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn output(&self, out: &str, name: &str) -> PathBuf {
        self.place.path().join(out).join(name)
    }
}

/// Where programs are found, that in QEMU's place before all others.
pub(crate) fn path(place: &Path) -> String {
    format!("{}:{}:/usr/sbin:/sbin", place.join("bin").display(), std::env::var("PATH").unwrap_or_default())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the appliance does where it goes well.
pub(crate) fn fixes() -> String {
    format!("write; echo '{}'", FIXED.replace('\n', ""))
}

/// Whether the guest's bytes are those that the appliance wrote.
fn is_fixed(disk: &Path, format: &str) -> bool {
    let read =
        Command::new("qemu-io").args(["-r", "-f", format, "-c", "read -P 0x41 1M 64k"]).arg(disk).output().unwrap();
    read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed")
}

#[test]
fn a_fixed_guest_is_published_fixed_in_every_format_and_gets_virtio() {
    let Some(bench) = Bench::new(&fixes()) else { return };
    for (out, format, more) in [
        ("a", "qcow2", &[][..]),
        ("b", "raw", &["--format", "raw"]),
        ("c", "vdi", &["--format", "vdi"]),
        ("d", "qcow2", &["--compress=zstd", "--verify", "full", "--checksum"]),
        ("e", "qcow2", &["--no-sandbox"]),
    ] {
        let told = bench.converted(out, &[&["--fix-guest=require", "--emit", "libvirt"], more].concat());
        let disk = bench.output(out, &format!("vm.{format}"));
        assert!(is_fixed(&disk, format), "{format}: {told:#}");
        let guest = &told["guest"];
        assert_eq!((&guest["outcome"], &guest["bus"]), (&"fixed".into(), &"virtio".into()), "{told:#}");
        assert_eq!(guest["changes"][0]["backup"], "/etc/fstab.hyper2kvm");
        assert_eq!(told["machines"][0]["disks"][0]["bus"], "virtio");
        let names: Vec<_> =
            fs::read_dir(disk.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        if format != "raw" {
            let check = Command::new("qemu-img").args(["check", "-f", format]).arg(&disk).output().unwrap();
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
    }
}

#[test]
fn a_guest_that_is_not_fixed_is_published_as_it_was_converted_or_not_at_all() {
    let no_space = format!("write; echo '{}'", NO_SPACE.replace('\n', ""));
    let Some(bench) = Bench::new(&no_space) else { return };
    let plain = bench.converted("plain", &["--checksum"]);
    for (n, (does, reason, code)) in [
        (no_space.as_str(), "GuestNoSpace", 10),
        ("write; echo '{\"report\":{\"outcome\":\"fixed\"}}'", "GuestFixFailed", 12),
        ("write; echo nonsense", "GuestFixFailed", 12),
        ("write; exit 0", "GuestFixFailed", 12),
        (&format!("{}; exit 1", fixes()), "GuestFixFailed", 12),
        (&format!("{}; kill -9 $$", fixes()), "GuestFixFailed", 12),
        ("write; yes '{\"step\":{\"name\":\"plan\",\"atMs\":1}}'", "GuestFixFailed", 12),
        ("echo x > /tmp/hyper2kvm-escaped && echo x > \"$appliance/x\"; echo nonsense", "GuestFixFailed", 12),
    ]
    .into_iter()
    .enumerate()
    {
        bench.appliance_does(does);
        let out = format!("out{n}");
        let told = bench.converted(&out, &["--fix-guest", "--checksum", "--emit", "libvirt"]);
        assert_eq!(
            (&told["guest"]["outcome"], &told["guest"]["reason"]),
            (&"unfixed".into(), &reason.into()),
            "{does}"
        );
        assert_eq!(told["disks"][0]["sha256"], plain["disks"][0]["sha256"], "{does}");
        assert_eq!((&told["guest"]["bus"], &told["guest"]["nic"]), (&"sata".into(), &"e1000e".into()));
        let xml = fs::read_to_string(bench.output(&out, "vm.xml")).unwrap();
        assert!(xml.contains("Doubt: the guest was not fixed: "), "{xml}");
        assert!(told["warnings"][0].as_str().unwrap().starts_with(&format!("the guest was not fixed: {reason}: ")));

        let output = bench.convert("vm.raw", &format!("require{n}"), &["--fix-guest=require"]);
        assert_eq!(output.status.code(), Some(code), "{does}: {}", said(&output));
        assert!(said(&output).contains(reason) && !bench.output(&format!("require{n}"), "vm.qcow2").exists());
    }
    assert!(!Path::new("/tmp/hyper2kvm-escaped").exists() && !bench.place.path().join("appliance/x").exists());
}

#[test]
fn a_qemu_that_dies_is_told_by_its_own_words() {
    let Some(bench) = Bench::new("echo 'no memory is left' >&2; exit 1") else { return };
    let output = bench.convert("vm.raw", "out", &["--fix-guest=require"]);
    assert_eq!(output.status.code(), Some(12), "{}", said(&output));
    let expected = "qemu-system-x86_64 ended with exit status: 1: no memory is left";
    assert!(said(&output).contains(expected), "{}", said(&output));
}

#[test]
fn no_appliance_starts_where_it_is_known_that_none_is_needed() {
    let Some(bench) = Bench::new("echo nonsense") else { return };
    bench.disk("data.raw", false);
    let told = bench.convert("data.raw", "out", &["--fix-guest=require"]);
    assert!(told.status.success(), "{}", said(&told));
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["guest"]["outcome"], "notAGuest");
    // What is asked for and is not there is told with the one thing to do.
    fs::remove_dir_all(bench.place.path().join("appliance")).unwrap();
    let output = bench.convert("vm.raw", "out", &["--fix-guest=require"]);
    assert_eq!(output.status.code(), Some(11), "{}", said(&output));
    assert!(
        said(&output).contains("vmlinuz is missing\n  Make it by hyper2kvm appliance build, or"),
        "{}",
        said(&output)
    );
    let output = bench.convert("vm.raw", "out", &["--guest-names", "leave"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// A worker's attempt at the bench's disk, in the work directory `work`.
fn worker(bench: &Bench) -> Command {
    let here = bench.place.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
    command
        .arg("worker")
        .env("PATH", path(here))
        .env("HYPER2KVM_CLAIM", here.join("claim"))
        .env("HYPER2KVM_WORK", here.join("work"))
        .env("HYPER2KVM_FOLDER", "pod")
        .env("HYPER2KVM_OPTIONS", r#"{"outFormat":"qcow2","guest":{"fix":"require","accelerator":"tcg"}}"#)
        .env("HYPER2KVM_ATTEMPT", "1")
        .env("HYPER2KVM_APPLIANCE", here.join("appliance"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn claim(bench: &Bench) {
    let here = bench.place.path();
    for directory in ["claim", "work"] {
        fs::create_dir(here.join(directory)).unwrap();
    }
    let member = here.join("claim/vm.raw");
    fs::copy(here.join("vm.raw"), &member).unwrap();
    let stat = fs::metadata(&member).unwrap();
    let mtime = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
    let claim = json!({
        "contractVersion": 2, "id": "vm-0badcafe", "primary": "vm.raw", "claimedAt": "2026-01-17T09:45:00Z",
        "date": "2026-01-17",
        "members": [{"name": "vm.raw", "sizeBytes": stat.len(), "mtimeNs": mtime, "inode": stat.ino()}],
    });
    fs::write(here.join("claim/claim.json"), claim.to_string()).unwrap();
}

#[test]
fn a_worker_goes_on_behind_a_fix_and_never_fixes_twice() {
    let counted = format!("{}; echo >&2", fixes());
    let Some(bench) = Bench::new(&counted) else { return };
    claim(&bench);
    let died = worker(&bench).env("HYPER2KVM_TEST_DIE", "fixed.json").output().unwrap();
    assert!(died.status.code().is_none(), "{}", said(&died));
    let folder = bench.place.path().join("work/pod");
    assert!(folder.join("fixed.json").exists() && folder.join("copied.json").exists());
    // The appliance would fail now.
    bench.appliance_does("echo nonsense");
    let output = worker(&bench).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(is_fixed(&folder.join("vm.qcow2"), "qcow2"));
    let told: Value = serde_json::from_slice(&fs::read(folder.join("metadata.json")).unwrap()).unwrap();
    assert_eq!(told["guest"]["outcome"], "fixed");
}

/// Kills a worker again and again, each time at another moment; whatever it leaves, the disk that is complete in the end
/// is the fixed one, and a marker never stands beside a disk between.
#[test]
fn kills_leave_the_disk_converted_or_fixed_and_never_between() {
    let kills: u32 = std::env::var("HYPER2KVM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let whole = format!("write 4M; echo '{}'", FIXED.replace('\n', ""));
    let Some(bench) = Bench::new(&whole) else { return };
    claim(&bench);
    let folder = bench.place.path().join("work/pod");
    let begun = std::time::Instant::now();
    let output = worker(&bench).output().unwrap();
    let takes = begun.elapsed();
    assert!(output.status.success(), "{}", said(&output));
    let expected = guest_bytes(&folder.join("vm.qcow2"));
    let converted = guest_bytes(&bench.place.path().join("vm.raw"));
    assert_ne!(expected, converted);
    for n in 0..kills {
        fs::remove_dir_all(&folder).unwrap();
        let mut child = worker(&bench).spawn().unwrap();
        std::thread::sleep(takes * 3 / 10 + takes * n / kills);
        let _ = child.kill();
        child.wait().unwrap();
        let has = |name: &str| folder.join(name).exists();
        if has("copied.json") {
            let found = guest_bytes(&folder.join("vm.qcow2"));
            let wanted = if has("fixed.json") { &expected } else { &converted };
            assert!(found == *wanted, "kill {n}: {:?}", fs::read_dir(&folder).unwrap().collect::<Vec<_>>());
        }
        let output = worker(&bench).output().unwrap();
        assert!(output.status.success(), "kill {n}: {}", said(&output));
        assert!(guest_bytes(&folder.join("vm.qcow2")) == expected, "kill {n}");
        assert!(!has("fix.tmp"));
    }
}

/// The guest's disk as bytes.
fn guest_bytes(disk: &Path) -> Vec<u8> {
    let format = disk.extension().unwrap().to_str().unwrap();
    let place = TempDir::new().unwrap();
    let raw = place.path().join("raw");
    let done =
        Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(disk).arg(&raw).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    fs::read(raw).unwrap()
}

#[test]
fn an_interrupted_fix_ends_its_qemu_and_leaves_nothing() {
    let Some(bench) = Bench::new("echo $$ > /dev/null; exec sleep 600") else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"))
        .args(["convert", "--output-dir", "out", "--appliance", "appliance", "--fix-guest=require", "vm.raw"])
        .args(TCG)
        .current_dir(bench.place.path())
        .env("PATH", path(bench.place.path()))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mark = bench.place.path().display().to_string();
    let started = std::time::Instant::now();
    let is_fixing = || {
        let scratch = fs::read_dir(bench.place.path().join("out")).unwrap().flatten();
        scratch.into_iter().any(|entry| entry.path().join("fix.tmp/initrd").exists())
    };
    while !is_fixing() {
        assert!(started.elapsed() < Duration::from_secs(60), "{mark}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(fs::read_dir(bench.place.path().join("out")).unwrap().count(), 0);
}

/// What QEMU's monitor says: it greets, and answers each command with what was written by then.
pub(crate) fn monitor(writes: u32, more: &str) -> String {
    let stats = json!([{"node-name": "disk0", "stats": {
        "rd_operations": 9, "wr_operations": writes, "wr_bytes": 4096, "flush_operations": writes.min(1),
    }}]);
    format!(
        r#"echo '{{"QMP":{{}}}}'
while read -r line; do
  case $line in
    *blockstats*) {more}; echo '{{"return":{stats}}}' ;;
    *) echo '{{"return":{{}}}}' ;;
  esac
done"#
    )
}

#[test]
fn a_boot_check_tells_what_it_saw_and_leaves_the_disk_as_it_is() {
    let Some(bench) = Bench::new("exit 1") else { return };
    bench.converted("plain", &[]);
    let plain = fs::read(bench.output("plain", "vm.qcow2")).unwrap();
    let off = r#"echo '{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}'"#;
    let scribbles = "for file in /proc/self/fd/*; do :; done";
    for (n, (does, result, reason, code)) in [
        (monitor(26, off), "booted", "", 0),
        (monitor(0, off), "notBooting", "GuestNotBooting", 10),
        (monitor(0, "echo nonsense"), "unchecked", "GuestFixFailed", 12),
        (monitor(0, "exit 3"), "unchecked", "GuestFixFailed", 12),
        (format!("echo >&2 'no such device'; {scribbles}; exit 1"), "unchecked", "GuestFixFailed", 12),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(bench.place.path().join("appliance/monitor"), &does).unwrap();
        let out = format!("out{n}");
        let told = bench.converted(&out, &["--boot-check", "--fix-guest=best-effort"]);
        let check = &told["guest"]["bootCheck"];
        assert_eq!(check["result"], result, "{n}: {told:#}");
        let warned = told["warnings"].as_array().unwrap().iter().filter(|w| w.as_str().unwrap().contains("boot"));
        assert_eq!(warned.count(), usize::from(code != 0), "{n}: {told:#}");
        assert!(fs::read(bench.output(&out, "vm.qcow2")).unwrap() == plain, "{n}");
        assert_eq!(fs::read_dir(bench.place.path().join(&out)).unwrap().count(), 1, "{n}");
        let required = bench.convert("vm.raw", &format!("required{n}"), &["--boot-check=require,20", "--fix-guest"]);
        assert_eq!(required.status.code(), Some(code), "{n}: {}", said(&required));
        assert!(said(&required).contains(reason), "{n}: {}", said(&required));
    }
}

#[test]
fn a_boot_check_is_bounded_and_ended_by_a_signal() {
    let Some(bench) = Bench::new("exit 1") else { return };
    fs::write(bench.place.path().join("appliance/monitor"), monitor(4, ":")).unwrap();
    let begun = std::time::Instant::now();
    let told = bench.converted("out", &["--boot-check=10", "--fix-guest"]);
    assert_eq!(told["guest"]["bootCheck"]["result"], "notBooting", "{told:#}");
    assert!(begun.elapsed() > Duration::from_secs(10));
    claim(&bench);
    let options =
        r#"{"guest":{"fix":"best-effort","bootCheck":{"mode":"require","timeoutSeconds":500},"accelerator":"tcg"}}"#;
    let mut child = worker(&bench).env("HYPER2KVM_OPTIONS", options).spawn().unwrap();
    let progress = bench.place.path().join("work/progress.json");
    let begun = std::time::Instant::now();
    while !fs::read_to_string(&progress).is_ok_and(|text| text.contains("\"boot\"")) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let folder = bench.place.path().join("work/pod");
    assert!(folder.join("fixed.json").exists() && !folder.join("fix.tmp").exists(), "the next attempt goes on here");
}
