// SPDX-License-Identifier: Apache-2.0
//! The same, with images from other makers: QEMU and GNU tar. Tests return early where these aren't installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Runs a program in `directory`; false where it isn't installed.
fn run(program: &str, arguments: &[&str], directory: &Path) -> bool {
    match Command::new(program).args(arguments).current_dir(directory).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) => {
            eprintln!("left out: {program}: {error}");
            false
        }
    }
}

fn file_region(path: &Path) -> Region {
    let file = std::fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Region::whole(Arc::new(file), path.file_name().unwrap().to_str().unwrap(), len)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn open_path(path: &Path) -> Result<Source, Error> {
    let others = files(path.parent().unwrap()).into_iter().filter(|other| other != path);
    let siblings: Vec<_> = others.map(|other| file_region(&other)).collect();
    open(&file_region(path), &siblings, &LIMITS, &mut || Ok(tempfile::tempfile().unwrap()))
}

#[test]
fn every_kind_of_vmdk_that_qemu_makes_reads_the_same() {
    let source = tempfile::tempdir().unwrap();
    let bytes = content(9, 1_000_448);
    let raw = source.path().join("source.raw");
    std::fs::write(&raw, &bytes).unwrap();
    for kind in ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"]
    {
        let directory = tempfile::tempdir().unwrap();
        let subformat = format!("subformat={kind}");
        let arguments = ["convert", "-O", "vmdk", "-o", &subformat, raw.to_str().unwrap(), "vm.vmdk"];
        if !run("qemu-img", &arguments, directory.path()) {
            return;
        }
        let source = open_path(&directory.path().join("vm.vmdk")).unwrap();
        assert_eq!(source.format, format!("vmdk {kind}"));
        let read = guest(&source.disks[0].image);
        assert!(read[..bytes.len()] == bytes && read[bytes.len()..].iter().all(|b| *b == 0), "{kind}");
        assert_eq!(source.members.len(), files(directory.path()).len(), "{kind}");
    }
}

#[test]
fn every_other_format_that_qemu_makes_reads_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = content(9, 2 << 20);
    std::fs::write(directory.path().join("source.raw"), &bytes).unwrap();
    for (format, options, name, kind) in [
        ("vpc", "subformat=dynamic,force_size=on", "vm.vhd", "vhd dynamic"),
        ("vpc", "subformat=fixed,force_size=on", "vm.vhd", "vhd fixed"),
        ("vhdx", "subformat=dynamic", "vm.vhdx", "vhdx dynamic"),
        ("vhdx", "subformat=fixed", "vm.vhdx", "vhdx fixed"),
        ("vdi", "static=off", "vm.vdi", "vdi dynamic"),
        ("vdi", "static=on", "vm.vdi", "vdi static"),
        ("qcow2", "compat=1.1", "vm.qcow2", "qcow2 version 3"),
        ("qcow2", "compat=0.10", "vm.img", "qcow2 version 2"),
    ] {
        let arguments = ["convert", "-f", "raw", "-O", format, "-o", options, "source.raw", name];
        if !run("qemu-img", &arguments, directory.path()) {
            return;
        }
        let source = open_path(&directory.path().join(name)).unwrap();
        assert_eq!(source.format, kind);
        assert!(guest(&source.disks[0].image) == bytes, "{kind}");
    }
}

#[test]
fn a_split_disk_of_three_files_is_read_in_order() {
    let directory = tempfile::tempdir().unwrap();
    for kind in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let subformat = format!("subformat={kind}");
        if !run("qemu-img", &["create", "-f", "vmdk", "-o", &subformat, "vm.vmdk", "5G"], directory.path()) {
            return;
        }
        for (offset, pattern) in [("0", "1"), ("2147450880", "2"), ("4294967296", "3"), ("5368643584", "4")] {
            let write = format!("write -P {pattern} {offset} 65536");
            assert!(run("qemu-io", &["-f", "vmdk", "-c", &write, "vm.vmdk"], directory.path()));
        }
        let image = open_path(&directory.path().join("vm.vmdk")).unwrap().disks.remove(0).image;
        assert_eq!((image.virtual_size(), image.regions.len()), (5 << 30, 3));
        let mut runs: Vec<(u64, u8, u64)> = Vec::new();
        replay(&image, &CopyControl::default(), |start, found| {
            let GuestBytes::Data(bytes) = found else { return Ok(()) };
            for (at, byte) in (start..).zip(bytes).filter(|(_, byte)| **byte != 0) {
                match runs.last_mut().filter(|(first, value, len)| value == byte && first + len == at) {
                    Some((_, _, len)) => *len += 1,
                    None => runs.push((at, *byte, 1)),
                }
            }
            Ok(())
        })
        .unwrap();
        let written = [(0, 1), (2_147_450_880, 2), (4_294_967_296, 3), (5_368_643_584, 4)];
        assert_eq!(runs, written.map(|(at, pattern)| (at, pattern, 65_536)), "{kind}");
        for file in files(directory.path()) {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[test]
fn archives_of_gnu_tar_are_read() {
    let disk = stream(&content(1, 65_536));
    for format in ["ustar", "gnu", "pax", "posix"] {
        let (input, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let long = format!("{}.vmdk", "x".repeat(200));
        let name = if format == "ustar" { "d.vmdk" } else { &long };
        std::fs::write(input.path().join("vm.ovf"), ovf(&[(name, 65_536)])).unwrap();
        std::fs::write(input.path().join(name), &disk).unwrap();
        let ova = output.path().join("vm.ova");
        let arguments = ["--format", format, "-cf", ova.to_str().unwrap(), "vm.ovf", name];
        if !run("tar", &arguments, input.path()) {
            return;
        }
        let source = open_path(&ova).unwrap();
        assert!(guest(&source.disks[0].image) == content(1, 65_536), "{format}");
    }
}

#[test]
fn whatever_qemu_would_probe_is_no_raw_output() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["qcow", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc", "parallels"] {
        if !run("qemu-img", &["create", "-f", format, "image", "1M"], directory.path()) {
            return;
        }
        let image = file_region(&directory.path().join("image"));
        let (head, tail) = detect::ends(&image).unwrap();
        assert!(detect::would_probe(&head, &tail).is_some(), "{format}");
    }
}
