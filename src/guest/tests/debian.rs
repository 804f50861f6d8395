// SPDX-License-Identifier: Apache-2.0
//! A real Debian, made by debootstrap: what it is and what the look costs. Only where `HYPER2KVM_GUESTS` names a directory
//! to make it in (`make test-long`), for it takes minutes and a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::look;
use super::makers::{MIB, Maker, ROOT, has, run};
use crate::conversion::guest::{Answer, Driver};

/// The files of a Debian 12 with a kernel; made once.
fn files() -> Option<PathBuf> {
    let Some(place) = std::env::var_os("HYPER2KVM_GUESTS") else {
        println!("LEFT OUT: a real Debian (make test-long)");
        return None;
    };
    let made = Path::new(&place).join("debian");
    if !["debootstrap", "mkfs.ext4", "sfdisk"].map(has).iter().all(|has| *has) {
        return None;
    }
    if !made.join("boot").exists() {
        fs::create_dir_all(&place).unwrap();
        let packages = "--include=linux-image-cloud-amd64,initramfs-tools,ifupdown";
        let suite = "http://deb.debian.org/debian";
        run("debootstrap", &["--variant=minbase", packages, "bookworm", made.to_str().unwrap(), suite]);
    }
    Some(made)
}

#[test]
fn a_real_debian_boots_from_virtio() {
    let Some(files) = files() else { return };
    let maker = Maker::new();
    run("cp", &["-a", &format!("{}/.", files.display()), maker.files().to_str().unwrap()]);
    maker.file("etc/fstab", format!("UUID={ROOT} / ext4 errors=remount-ro 0 1\n"));
    maker.file("etc/network/interfaces", "auto ens192\niface ens192 inet dhcp\n");
    let root = maker.ext4("root", 1500 * MIB, &maker.files());
    let script = "label: gpt\nstart=2048,type=linux\n";
    let disk = maker.disk("disk", 8192 * MIB, script, &[(MIB, &root)]);
    let start = Instant::now();
    let guest = look(&[&disk]);
    println!("looked for {:?}, peak {} KiB", start.elapsed(), peak());
    assert_eq!(guest.doubts, []);
    assert!(guest.os.unwrap().name.starts_with("Debian GNU/Linux 12"));
    let kernel = &guest.kernels[0];
    println!("{kernel:?}");
    assert_eq!(kernel.drivers["virtio_blk"], Driver::Initramfs);
    assert_eq!((guest.virtio.block, guest.virtio.network), (Answer::Yes, Answer::Yes));
    assert_eq!(guest.network[0].interface.as_deref(), Some("ens192"));
}

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
