// SPDX-License-Identifier: Apache-2.0
//! `convert` and `inspect` with hostile images: the process that reads them is contained, and nothing of an image reaches
//! the terminal as it is.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::ova::{ovf, tar};
use crate::support::vmdk::{Sparse, built};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hyper2kvm");

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that take long to compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33).to_le_bytes()[0] & 0x3F
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// A conversion that takes some seconds.
fn long_conversion(place: &Path) -> Child {
    let source = place.join("long.raw");
    fs::write(&source, noise(24 << 20)).unwrap();
    Command::new(PROGRAM)
        .args(["convert", "--compress=zstd", "--compress-level=22", "--threads=1", "--output-dir"])
        .arg(place.join("out"))
        .arg(source)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The process id of the only child of `process`, as soon as it has one that may gain no privilege any more.
fn contained_child(process: u32) -> u32 {
    let since = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next() {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            if status.lines().any(|line| line == "NoNewPrivs:\t1") {
                return child.parse().unwrap();
            }
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no contained child of {process}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the process is gone or a zombie.
fn until_gone(process: u32) {
    let since = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{process} lives on");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_process_that_reads_the_image_is_contained_and_ends_with_the_one_that_waits() {
    let place = tempfile::tempdir().unwrap();
    let mut conversion = long_conversion(place.path());
    let child = contained_child(conversion.id());
    let limits = fs::read_to_string(format!("/proc/{child}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(limit("Max address space").contains(" 8589934592 "), "{limits}");
    assert!(limit("Max core file size").split_whitespace().any(|word| word == "0"), "{limits}");
    conversion.kill().unwrap();
    conversion.wait().unwrap();
    until_gone(child);
}

#[test]
fn a_conversion_that_is_told_to_end_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let conversion = long_conversion(place.path());
    contained_child(conversion.id());
    let id = conversion.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let ended = conversion.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(143), "{said}");
    assert!(said.contains("interrupted; nothing was left"), "{said}");
    assert!(!place.path().join("out").exists());
}

#[test]
fn without_a_sandbox_it_converts_the_same_and_warns() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("a.raw");
    fs::write(&source, noise(1 << 20)).unwrap();
    let mut digests = Vec::new();
    for flags in [&[][..], &["--no-sandbox"]] {
        let output = place.path().join(format!("{}.qcow2", flags.len()));
        let arguments = [&["convert", "--json", "--checksum", text(&source), "-o", text(&output)][..], flags].concat();
        let converted = run(&arguments);
        let said = String::from_utf8_lossy(&converted.stderr);
        assert!(converted.status.success(), "{said}");
        assert_eq!(said.contains("warning: --no-sandbox"), !flags.is_empty(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&converted.stdout).unwrap();
        digests.push(report["disks"][0]["sha256"].clone());
        let inspected = run(&[&["inspect", text(&source)][..], flags].concat());
        assert!(inspected.status.success());
        assert_eq!(String::from_utf8_lossy(&inspected.stderr).contains("warning: --no-sandbox"), !flags.is_empty());
    }
    assert_eq!(digests[0], digests[1]);
    let mut left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["0.qcow2", "1.qcow2", "a.raw"]);
}

#[test]
fn an_output_goes_wherever_this_user_may_write() {
    let place = tempfile::tempdir().unwrap();
    let (sources, other) = (place.path().join("sources"), place.path().join("other/place"));
    fs::create_dir_all(&sources).unwrap();
    fs::create_dir_all(&other).unwrap();
    fs::write(sources.join("a.raw"), noise(1 << 20)).unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&other, &link).unwrap();
    for output in [link.join("through-a-link.qcow2"), PathBuf::from("../other/relative.qcow2"), other.join("new.raw")] {
        let ran = Command::new(PROGRAM).current_dir(&sources).args(["convert", "a.raw", "-o", text(&output)]).output();
        let ran = ran.unwrap();
        assert!(ran.status.success(), "{}: {}", output.display(), String::from_utf8_lossy(&ran.stderr));
        assert!(sources.join(&output).exists());
    }
    let ran = Command::new(PROGRAM).current_dir(&sources).args(["convert", "a.raw", "--emit-domain-xml"]).output();
    assert!(ran.unwrap().status.success() && sources.join("a.xml").exists() && sources.join("a.qcow2").exists());
}

/// Characters that would end a line, move a cursor or turn text around.
const EVIL: &str = "a\u{9b}31m\u{202e}\u{2066}\u{85}\u{2028}\u{200b}b";

fn is_clean(output: &Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let said = String::from_utf8(bytes.clone()).unwrap();
        let evil = said.chars().find(|c| (c.is_control() && *c != '\n') || EVIL[1..].contains(*c) && !c.is_ascii());
        assert_eq!(evil, None, "{said:?}");
    }
}

#[test]
fn nothing_of_an_image_reaches_the_terminal_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let disk = built(&Sparse::stream_optimized(1 << 20), &noise(1 << 20));
    // Control characters alone are no part of a member's name.
    let name = format!("{}.vmdk", EVIL.replace(char::is_control, ""));
    // Everywhere that a text of an OVF is shown: names of files, disks, machines, networks, kinds.
    let text_of = ovf(&[(&name, 1 << 20)]).replace("<Name>", &format!("<Name>{EVIL}"));
    let evil = place.path().join(format!("{EVIL}.ova"));
    fs::write(&evil, tar(&[("vm.ovf", text_of.as_bytes()), (&name, &disk)])).unwrap();
    let missing = place.path().join("missing.ova");
    fs::write(&missing, tar(&[("vm.ovf", text_of.as_bytes()), ("other.vmdk", &disk)])).unwrap();
    let descriptor = place.path().join("a\u{1b}[2J\nhyper2kvm: forged.vmdk");
    fs::write(&descriptor, format!("# Disk DescriptorFile\ncreateType=\"{EVIL}\"\nRW 1 FLAT \"{EVIL}\" 0\n")).unwrap();
    let output = place.path().join(format!("out{EVIL}\u{1b}"));
    for source in [&evil, &missing, &descriptor] {
        for arguments in [
            &["inspect", text(source)][..],
            &["inspect", "--json", text(source)],
            &["convert", text(source), "--output-dir", text(&output)],
            &["convert", "--json", "--force", text(source), "--output-dir", text(&output)],
        ] {
            is_clean(&run(arguments));
        }
    }
    assert!(output.exists(), "the good one was converted");
    let told = run(&["inspect", "--json", text(&evil)]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["disks"][0]["member"], name.as_str(), "JSON keeps the name");
    let refused = run(&["convert", text(&descriptor)]);
    assert_eq!(String::from_utf8_lossy(&refused.stderr).lines().filter(|l| l.starts_with("hyper2kvm:")).count(), 1);
}

#[test]
fn sockets_and_devices_are_refused_for_good_with_what_helps() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("socket.vmdk");
    let _listener = UnixListener::bind(&socket).unwrap();
    let fifo = place.path().join("fifo.raw");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (path, kind) in [(socket.as_path(), "a socket"), (&fifo, "a FIFO"), (Path::new("/dev/null"), "a device")] {
        let ran = run(&["convert", text(path), "--output-dir", text(place.path())]);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(10), "{said}");
        assert!(
            said.contains(&format!("UnsupportedFormat: {}", path.file_name().unwrap().to_str().unwrap())),
            "{said}"
        );
        assert!(said.contains(&format!("is {kind}, not a regular file")), "{said}");
        assert!(said.contains("\n  Copy its content into a regular file, then convert that\n"), "{said}");
        let inspected = run(&["inspect", text(path)]);
        let told = String::from_utf8_lossy(&inspected.stdout);
        assert_eq!(
            (inspected.status.code(), told.trim_end().ends_with("then convert that")),
            (Some(10), true),
            "{told}"
        );
    }
}

#[test]
fn an_output_beyond_the_largest_file_is_told_and_kills_nobody() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("a.raw");
    fs::write(&source, noise(4 << 20)).unwrap();
    for flags in [&[][..], &["--no-sandbox"]] {
        let ran = Command::new("prlimit")
            .args(["--fsize=1048576", PROGRAM, "convert", text(&source), "-o"])
            .arg(place.path().join("out.raw"))
            .args(flags)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!((ran.status.signal(), ran.status.code()), (None, Some(12)), "{said}");
        assert!(said.contains("OutputIO: ") && said.contains("ulimit -f"), "{said}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left");
    }
}

#[test]
fn a_split_disk_of_508_extents_is_read_under_a_low_limit_of_open_files() {
    let place = tempfile::tempdir().unwrap();
    let mut descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                          createType=\"twoGbMaxExtentFlat\"\n"
        .to_owned();
    let mut disk = Vec::new();
    for number in 1..=508_u16 {
        let extent = [number.to_le_bytes()[0]; 512];
        disk.extend(extent);
        fs::write(place.path().join(format!("vm-f{number:03}.vmdk")), extent).unwrap();
        writeln!(descriptor, "RW 1 FLAT \"vm-f{number:03}.vmdk\" 0").unwrap();
    }
    let source = place.path().join("vm.vmdk");
    fs::File::create(&source).unwrap().write_all(descriptor.as_bytes()).unwrap();
    let output = place.path().join("out.raw");
    let ran = Command::new("prlimit")
        .args(["--nofile=256:4096", PROGRAM, "convert", text(&source), "-o", text(&output)])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(fs::read(&output).unwrap() == disk);
}

/// A VHD's last sector (Virtual Hard Disk Image Format Specification, *Hard Disk Footer Format*).
fn vhd_footer(size: u64, kind: u32) -> [u8; 512] {
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[12..16].copy_from_slice(&0x1_0000_u32.to_be_bytes());
    footer[28..32].copy_from_slice(b"win ");
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[56..60].copy_from_slice(&[0xFF, 0xFF, 16, 255]);
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    let sum = footer.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

#[test]
fn what_helps_is_told_by_the_cause() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let disk = noise(1 << 20);
    fs::write(at("disk.raw"), &disk).unwrap();
    for format in ["qcow2", "vdi"] {
        let made = at(&format!("made.{format}"));
        assert!(run(&["convert", text(&at("disk.raw")), "-o", text(&made)]).status.success());
    }
    let changed = |name: &str, of: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(at(of)).unwrap();
        change(&mut bytes);
        fs::write(at(name), bytes).unwrap();
    };
    changed("backed.qcow2", "made.qcow2", &|bytes| bytes[14] = 4);
    changed("marked.qcow2", "made.qcow2", &|bytes| bytes[79] |= 2);
    changed("child.vdi", "made.vdi", &|bytes| bytes[0x4C] = 4);
    changed("child.vhd", "disk.raw", &|bytes| bytes.extend(vhd_footer(1 << 20, 4)));
    changed("within.vhd", "disk.raw", &|bytes| {
        bytes[..8].copy_from_slice(b"conectix");
        bytes.extend(vhd_footer(1 << 20, 2));
    });
    fs::write(at("whole.vmdk"), built(&Sparse::stream_optimized(1 << 20), &disk)).unwrap();
    changed("text.vmdk", "whole.vmdk", &|bytes| bytes[73..77].copy_from_slice(b"\r\n\r\n"));
    changed("short.vmdk", "whole.vmdk", &|bytes| bytes.truncate(bytes.len() - 512));
    let flat = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                RW 1 FLAT \"whole.vmdk\" 0\n";
    fs::write(at("flat.vmdk"), flat).unwrap();
    std::os::unix::fs::symlink("disk.raw", at("link.raw")).unwrap();
    fs::create_dir(at("folder.vmdk")).unwrap();
    changed("short.vdi", "made.vdi", &|bytes| bytes.truncate(bytes.len() / 2));
    fs::write(at("empty.vhdx"), "").unwrap();
    fs::write(at("vm.qed"), [b"QED\0".as_slice(), &[0; 5000]].concat()).unwrap();
    fs::write(at("notes.txt"), "some text").unwrap();
    fs::write(at("cd.iso"), [0; 4096]).unwrap();
    fs::write(at("web01.mf"), format!("SHA256(web01.ovf)= {}\n", "0".repeat(64))).unwrap();
    fs::write(at("web01.ovf"), ovf(&[("whole.vmdk", 1 << 20)])).unwrap();
    for (name, reason, words) in [
        ("backed.qcow2", "UnsafeReference", "qemu-img convert -O qcow2"),
        ("marked.qcow2", "Corrupt", "qemu-img check"),
        ("child.vdi", "UnsafeReference", "VBoxManage clonemedium"),
        ("child.vhd", "UnsafeReference", "Merge-VHD"),
        ("within.vhd", "FormatMismatch", "Convert-VHD -VHDType Dynamic"),
        ("text.vmdk", "Corrupt", "in binary mode"),
        ("short.vmdk", "Truncated", "compare its size"),
        ("flat.vmdk", "UnsafeReference", "Convert the file that the descriptor names by itself"),
        ("short.vdi", "Truncated", "compare its size"),
        ("empty.vhdx", "Truncated", "compare its size"),
        ("vm.qed", "UnsupportedFormat", "qemu-img convert -O qcow2 vm.qed vm.qcow2"),
        ("notes.txt", "UnsupportedFormat", "Bring a disk image"),
        ("cd.iso", "UnsupportedFormat", "Bring a disk image"),
        ("link.raw", "UnsupportedFormat", "Name the file that the link points to"),
        ("folder.vmdk", "UnsupportedFormat", "Name the disk image"),
    ] {
        let told = run(&["inspect", text(&at(name))]);
        let told = String::from_utf8_lossy(&told.stdout);
        let (refusal, remedy) = told.trim_end().rsplit_once('\n').unwrap();
        assert!(refusal.contains(&format!("accepted       no: {reason}: ")), "{name}: {told}");
        assert!(remedy.contains(words), "{name}: {told}");
        let refused = run(&["convert", text(&at(name)), "--output-dir", text(&at("out"))]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(said.trim_end().rsplit_once('\n').unwrap().1.trim(), remedy.trim(), "{name}");
        assert_eq!(refused.status.code(), Some(10));
    }
    let refused = run(&["convert", text(&at("web01.ovf")), "--output-dir", text(&at("out"))]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("ManifestMismatch") && said.contains("remove its manifest web01.mf\n"), "{said}");
}

#[test]
fn a_packed_stream_is_accepted_as_far_as_its_beginning_shows() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("a.raw");
    fs::write(&source, noise(1 << 20)).unwrap();
    assert!(Command::new("gzip").arg(&source).status().unwrap().success());
    let packed = place.path().join("a.raw.gz");
    let whole = fs::read(&packed).unwrap();
    fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
    let told = run(&["inspect", text(&packed)]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains("size unknown until it is unpacked"), "{told}");
    assert!(told.contains("accepted       as far as its beginning shows (convert reads the whole stream)"), "{told}");
    assert!(!told.contains("0 B"), "{told}");
    let refused = run(&["convert", text(&packed)]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the gzip stream ends too early"));
}

#[test]
fn a_refusal_shows_what_is_known_of_the_file_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let bad = place.path().join("text.ovf");
    fs::write(&bad, "no xml").unwrap();
    let missing = place.path().join("miss.ovf");
    fs::write(&missing, ovf(&[("gone.vmdk", 1 << 20)])).unwrap();
    for path in [&bad, &missing] {
        let told = run(&["inspect", text(path)]);
        let told = String::from_utf8_lossy(&told.stdout);
        assert!(told.starts_with(&format!("file           {}\nformat         ovf\nsize ", path.display())), "{told}");
        assert!(!told.contains(" 0 B"), "{told}");
    }
    let told = run(&["inspect", "/dev/null"]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.starts_with("file           /dev/null\naccepted       no: "), "{told}");
}
