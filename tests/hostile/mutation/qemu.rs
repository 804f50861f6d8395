// SPDX-License-Identifier: Apache-2.0
//! What both read, qemu-img reads as the same disk.

use std::fs;
use std::path::Path;
use std::process::Command;

/// QEMU's name of the format of a file, with the options under which it takes a VHD's size as we do; `None` where it has
/// none, or reads a kind of it otherwise than its maker: it leaves out the ZERO extents of a descriptor.
fn driver(name: &str) -> Option<&'static str> {
    Some(match name.rsplit('.').next()? {
        "vmdk" if name == "split.vmdk" => return None,
        "vmdk" => "driver=vmdk",
        "vhd" => "driver=vpc,force_size_calc=current_size",
        "vhdx" => "driver=vhdx",
        "vdi" => "driver=vdi",
        "qcow2" => "driver=qcow2",
        _ => return None,
    })
}

/// Where QEMU takes the image as well, it reads the same disk. It may take less than we do, and more.
pub(super) fn agrees_with_qemu(name: &str, image: &[u8], siblings: &[(&str, Vec<u8>)], disk: &[u8]) {
    let Some(driver) = driver(name) else { return };
    let place = tempfile::tempdir().unwrap();
    for (name, bytes) in siblings.iter().map(|(name, bytes)| (*name, bytes.as_slice())).chain([(name, image)]) {
        fs::write(place.path().join(name), bytes).unwrap();
    }
    let options = format!("{driver},file.driver=file,file.filename={name}");
    let converted = Command::new("timeout")
        .args(["20", "qemu-img", "convert", "--image-opts", "-O", "raw", &options, "by-qemu"])
        .current_dir(place.path())
        .output();
    if !converted.is_ok_and(|done| done.status.success()) {
        return;
    }
    let theirs = fs::read(place.path().join("by-qemu")).unwrap();
    // Virtual PC's own disks have the size of their geometry.
    let (ours, theirs) = if Path::new(name).extension().is_some_and(|extension| extension == "vhd") {
        let len = disk.len().min(theirs.len());
        (&disk[..len], &theirs[..len])
    } else {
        (disk, &theirs[..])
    };
    let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    assert!(first.is_none() && ours.len() == theirs.len(), "qemu-img reads another disk from byte {first:?} on");
}
