// SPDX-License-Identifier: Apache-2.0
//! An Alpine, as mkinitfs makes its initramfs.

use super::*;

/// An Alpine whose initramfs has a module and lists of it, packed with this.
fn alpine(compression: &str) -> (Files, Guest) {
    let files = Files::debian();
    let own = format!("lib/modules/{VERSION_OF_KERNEL}");
    for list in ["modules.alias", "modules.dep.bin", "modules.alias.bin"] {
        files.write(&format!("/{own}/{list}"), format!("all of {list}").as_bytes());
    }
    files.write("/etc/mkinitfs/mkinitfs.conf", b"features=\"base ext4 scsi\"");
    let mut archive = Archive::new();
    for path in ["init", "sbin/nlplug-findfs", "bin/busybox"] {
        archive.file(path, 0o755, b"").unwrap();
    }
    for list in ["modules.dep", "modules.dep.bin", "kernel/drivers/scsi/mptspi.ko.gz"] {
        archive.file(&format!("{own}/{list}"), 0o644, b"few").unwrap();
    }
    let archive = archive.finish();
    let packed = match compression {
        "zstd" => zstd::encode_all(&archive[..], 1).unwrap(),
        "gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, &archive).unwrap();
            gzip.finish().unwrap()
        }
        _ => archive,
    };
    files.write(INITRD, &packed);
    let kernel = Kernel { compression: Some(compression.into()), ..kernel(Driver::Root) };
    (files, Guest { kernels: vec![kernel], ..good() })
}

#[test]
fn alpines_initramfs_gets_modules_and_lists_of_them_behind_its_own() {
    let own = format!("lib/modules/{VERSION_OF_KERNEL}");
    for compression in ["none", "gzip", "zstd"] {
        let (files, guest) = alpine(compression);
        let plan = files.plan(&guest).unwrap();
        let paths: Vec<_> = plan.changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, [INITRD, "/etc/mkinitfs/features.d/hyper2kvm.modules", "/etc/mkinitfs/mkinitfs.conf"]);
        let Act::Append(more) = &plan.changes[0].act else { panic!("{:?}", plan.changes[0]) };
        let old = fs::read(files.root.path().join(&INITRD[1..])).unwrap();
        let listed = entries(&[old, more.clone()].concat());
        let mut expected: Vec<_> = ["init", "sbin/nlplug-findfs", "bin/busybox"].map(str::to_owned).into();
        let few = ["modules.dep", "modules.dep.bin", "kernel/drivers/scsi/mptspi.ko.gz"];
        let modules = ["virtio_ring", "virtio", "virtio_pci", "virtio_blk", "virtio_scsi"];
        let modules = modules.map(|module| format!("{module}.ko.zst"));
        let lists = ["modules.dep", "modules.alias", "modules.dep.bin", "modules.alias.bin"];
        let of_modules = few.into_iter().chain(modules.iter().map(String::as_str)).chain(lists);
        expected.extend(of_modules.map(|name| format!("{own}/{name}")));
        assert_eq!(listed, expected, "{compression}");
        assert_eq!(
            written(&plan, "/etc/mkinitfs/mkinitfs.conf"),
            "features=\"base ext4 scsi\"\n# Drivers of the disks of a virtual machine on KVM.\nfeatures=\"$features hyper2kvm\"\n"
        );
        assert!(
            written(&plan, "/etc/mkinitfs/features.d/hyper2kvm.modules")
                .contains("kernel/drivers/block/virtio_blk.*\n")
        );
    }
    let (files, guest) = alpine("lz4");
    assert!(files.refusal(&guest).1.contains("is packed with lz4, behind which no kernel looks for more"));
    let (files, guest) = alpine("gzip");
    fs::remove_file(files.root.path().join(&own).join("modules.dep.bin")).unwrap();
    assert_eq!(files.refusal(&guest).0, Unfixed::GuestDriversMissing);
}
