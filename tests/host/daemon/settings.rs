// SPDX-License-Identifier: Apache-2.0
//! Settings of conversions, seen in what is published.

use std::fs;

use serde_json::Value;

use crate::support::daemon::{Site, disk};

#[test]
fn what_is_configured_for_a_conversion_is_what_comes_out_of_it() {
    let site = Site::new(
        "to_output: disk.qcow2\ncompress: zstd\ncompress_level: 3\nchecksum: true\nemit_domain_xml: true\n\
         vm_name: web01\nmemory: 777\nvcpus: 3\nuefi: true\nmachine: pc-q35-7.2\ndisk_bus: sata\n\
         net_model: e1000e\nlibvirt_network: lab",
    );
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(0));
    daemon.until("it is archived", || site.archived() == ["vm.raw"]);
    assert_eq!(site.disks(), ["disk.qcow2"]);
    let day = site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
    let folder = site.output().join(day).join("vm");
    // Byte 104 of a version 3 header is the compression type; 1 is zstd.
    assert_eq!(fs::read(folder.join("disk.qcow2")).unwrap()[104], 1);
    let metadata: Value = serde_json::from_slice(&fs::read(folder.join("metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata["disks"][0]["sha256"].as_str().map(str::len), Some(64), "{metadata}");
    let domain = fs::read_to_string(folder.join("domain.xml")).unwrap();
    for part in [
        "<name>web01</name>",
        "<memory unit='MiB'>777</memory>",
        "<vcpu>3</vcpu>",
        "<os firmware='efi'>",
        "machine='pc-q35-7.2'",
        "bus='sata'",
        "<source network='lab'/>",
        "<model type='e1000e'/>",
        &format!("<source file='{}'/>", folder.join("disk.qcow2").display()),
    ] {
        assert!(domain.contains(part), "{part} is missing:\n{domain}");
    }
}
