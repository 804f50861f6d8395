// SPDX-License-Identifier: Apache-2.0
//! Packed images, packed by the programs that people have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{converts_to_every_output, have_qemu_img, hyper2kvm, qemu_img, text, truth};

/// Packs `source` into `target`; false where the program isn't installed.
fn pack(program: &str, arguments: &[&str], source: &Path, target: &Path) -> bool {
    let output = Command::new(program).args(arguments).arg(source).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            fs::write(target, output.stdout).unwrap();
            true
        }
        Err(error) => {
            eprintln!("left out: {program}: {error}");
            false
        }
    }
}

fn inspected(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&hyper2kvm(&["inspect", "--json", text(path)]).stdout).unwrap()
}

#[test]
fn a_packed_raw_disk_becomes_every_output_and_one_of_each_packing_the_same() {
    if !have_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    let mut packed: Vec<PathBuf> = Vec::new();
    for (program, arguments, ending) in [
        ("gzip", ["-1", "-c"].as_slice(), "gz"),
        ("xz", &["-0", "-c"], "xz"),
        ("zstd", &["-1", "-c", "-q"], "zst"),
        ("bzip2", &["-1", "-c"], "bz2"),
    ] {
        let target = place.path().join(format!("disk.img.{ending}"));
        if pack(program, arguments, &truth, &target) {
            packed.push(target);
        }
    }
    converts_to_every_output(&packed[0], &truth);
    for source in &packed[1..] {
        let output = place.path().join("out.qcow2");
        let converted = hyper2kvm(&["convert", text(source), "-o", text(&output), "--force", "--progress", "json"]);
        let said = String::from_utf8_lossy(&converted.stderr).into_owned();
        assert!(converted.status.success(), "{said}");
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&output), text(&truth)]);
        // Packed bytes are the progress.
        let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(last["bytesDone"], fs::metadata(source).unwrap().len(), "{last}");
    }
}

#[test]
fn the_output_has_the_disk_s_stem_and_an_inspection_tells_what_is_in_it() {
    if !have_qemu_img() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    let qcow2 = place.path().join("vm.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&truth), text(&qcow2)]);
    let source = place.path().join("vm.qcow2.xz");
    if !pack("xz", &["-0", "-c"], &qcow2, &source) {
        return;
    }
    let told = inspected(&source);
    assert_eq!(told["accepted"], true, "{told}");
    assert_eq!(told["format"], "qcow2 version 3 in xz");
    assert_eq!(told["disks"][0]["virtualSizeBytes"], fs::metadata(&truth).unwrap().len());
    fs::remove_file(&qcow2).unwrap();
    let converted = hyper2kvm(&["convert", text(&source)]);
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&qcow2), text(&truth)]);
}

#[test]
fn a_cut_or_damaged_stream_is_refused_with_its_place_and_nothing_is_left() {
    let place = tempfile::tempdir().unwrap();
    let truth = truth(&place);
    let source = place.path().join("disk.img.gz");
    if !pack("gzip", &["-1", "-c"], &truth, &source) {
        return;
    }
    let whole = fs::read(&source).unwrap();
    let mut damaged = whole.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    let directory = tempfile::tempdir().unwrap();
    for (bytes, word) in [(&whole[..whole.len() / 2], "ends too early (at byte "), (&damaged, "is wrong (at byte ")] {
        fs::write(&source, bytes).unwrap();
        let ran = hyper2kvm(&["convert", text(&source), "--output-dir", text(directory.path())]);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(10), "{said}");
        assert!(said.contains("disk.img.gz") && said.contains(word), "{said}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// A volume of so many bytes, while this value lives; `None`, reported on standard error, where it can't be mounted.
struct Volume(tempfile::TempDir);

impl Volume {
    fn mount(bytes: u64) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "hyper2kvm-test"]).arg(place.path()).output();
        if mounted.is_ok_and(|done| done.status.success()) {
            return Some(Self(place));
        }
        eprintln!("left out: a small volume: only root mounts one");
        None
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn scratch_that_has_no_room_is_told_before_it_is_filled_and_a_raw_disk_needs_none() {
    let Some(volume) = Volume::mount(16 << 20).filter(|_| have_qemu_img()) else { return };
    let place = tempfile::tempdir().unwrap();
    let raw = place.path().join("vm.img");
    let noise = super::noise(1 << 20).repeat(12);
    fs::write(&raw, &noise).unwrap();
    let vdi = place.path().join("vm.vdi");
    qemu_img(&["convert", "-f", "raw", "-O", "vdi", text(&raw), text(&vdi)]);
    let big = place.path().join("big.img");
    fs::write(&big, [noise.as_slice(), &noise].concat()).unwrap();
    let stored = place.path().join("big.vdi");
    qemu_img(&["convert", "-f", "raw", "-O", "vdi", text(&big), text(&stored)]);
    for (source, code) in [(&raw, 0), (&stored, 10), (&vdi, 11)] {
        let packed = place.path().join(format!("{}.xz", source.file_name().unwrap().to_str().unwrap()));
        if !pack("xz", &["-0", "-c"], source, &packed) {
            return;
        }
        let ran = hyper2kvm(&["convert", text(&packed), "--output-dir", text(volume.0.path())]);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(code), "{}: {said}", source.display());
        for left in fs::read_dir(volume.0.path()).unwrap().map(|entry| entry.unwrap()) {
            assert_eq!((code, left.file_name().to_str()), (0, Some("vm.qcow2")));
            fs::remove_file(left.path()).unwrap();
        }
    }
}
