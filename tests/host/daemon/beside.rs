// SPDX-License-Identifier: Apache-2.0
//! A folder of an ESXi host: what lies beside a disk is archived with it, and is no disk of its own.

use crate::support::daemon::{Site, disk};

const EXTENT: usize = 64 << 10;

/// The head of a file that tracks changed blocks.
const TRACKING: &[u8] = &[0xA2, 0x72, 0x19, 0xF6, 1, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0];

fn descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=3\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\
         # Extent description\nRW {} VMFS \"{extent}\"\n\n# Change Tracking File\nchangeTrackPath=\"vm-ctk.vmdk\"\n",
        EXTENT / 512
    )
}

#[test]
fn a_folder_of_an_esxi_host_is_archived_as_a_whole() {
    let site = Site::new("companion_timeout: 60");
    let daemon = site.start();
    let (descriptor, extent) = (descriptor("vm-flat.vmdk"), disk(0));
    let files: [(&str, &[u8]); 8] = [
        ("vm.vmx", b"displayName = \"Web 01\"\nmemSize = \"3072\"\nnumvcpus = \"3\"\nfirmware = \"efi\"\n"),
        ("vm-ctk.vmdk", TRACKING),
        ("vm.nvram", b"nvram"),
        ("vm.vmsd", b"vmsd"),
        ("vm.vmxf", b"<Foundry/>"),
        ("vmware.log", b"log"),
        ("vm-flat.vmdk", &extent[..EXTENT]),
        ("vm.vmdk", descriptor.as_bytes()),
    ];
    for (name, content) in files {
        site.drop_file(name, content);
    }
    let mut names = files.map(|(name, _)| name.to_owned());
    names.sort();
    daemon.until("all is archived", || site.archived() == names);
    assert_eq!(site.disks(), ["vm.qcow2"]);
    assert_eq!(site.waiting(), Vec::<String>::new());
    let stats = daemon.stats();
    assert_eq!(
        (&stats["total_processed"], &stats["total_failed"], &stats["ignored"]),
        (&1.into(), &0.into(), &0.into())
    );
    // The VMX is the machine, in a queue as by hand.
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    let metadata = std::fs::read(site.output().join(day).join("vm/metadata.json")).unwrap();
    let machine = serde_json::from_slice::<serde_json::Value>(&metadata).unwrap()["machines"][0].clone();
    assert_eq!((&machine["describedBy"], &machine["name"]), (&"vmx".into(), &"Web 01".into()), "{machine}");
    assert_eq!((&machine["memoryMib"], &machine["firmware"]), (&3072.into(), &"efi".into()), "{machine}");
}

#[test]
fn a_file_of_changed_blocks_alone_is_told_once_and_left() {
    let site = Site::new("companion_timeout: 2");
    let daemon = site.start();
    site.drop_file("vm-ctk.vmdk", TRACKING);
    site.drop_file("vm-flat.vmdk", &disk(0)[..EXTENT]);
    daemon.until("it is told", || daemon.lines("vm-ctk.vmdk lists changed blocks of a disk").len() == 1);
    daemon.until("the report is there", || site.queue().join(".errors/vm-flat.vmdk.error.json").exists());
    let error = site.error_file("vm-flat.vmdk")["error"].as_str().unwrap().to_owned();
    assert!(error.contains("bring the descriptor (vm.vmdk)"), "{error}");
    assert!(error.contains(&format!("rename it to vm.raw if its {EXTENT} bytes")), "{error}");
    assert_eq!(site.waiting(), ["vm-ctk.vmdk"]);
    assert_eq!(daemon.stats()["ignored"], 1);
}
