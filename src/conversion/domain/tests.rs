// SPDX-License-Identifier: Apache-2.0
//! Domains of machines and of bare disks, by libvirt's own schema.

use std::process::Command;

use super::*;
use crate::conversion::OutputFormat;
use crate::conversion::report::{DiskReport, SourceReport};

fn metadata(hardware: Option<Hardware>, disks: &[(&str, OutputFormat)]) -> Metadata {
    let disk = |(file, format): &(&str, OutputFormat)| DiskReport {
        file: (*file).to_owned(),
        format: *format,
        virtual_size_bytes: 1 << 30,
        allocated_bytes: 1 << 20,
        sha256: None,
        source_member: "vm-disk1.vmdk".to_owned(),
    };
    Metadata {
        contract_version: 1,
        id: String::new(),
        tool_version: "1".to_owned(),
        start_time: jiff::Timestamp::UNIX_EPOCH,
        end_time: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 0,
        source: SourceReport { name: "web01.ova".to_owned(), size_bytes: 1, format: "ova".to_owned(), sha256: None },
        disks: disks.iter().map(disk).collect(),
        hardware,
        side_files: Vec::new(),
        warnings: Vec::new(),
        superseded_by: None,
        source_changed_at: None,
    }
}

/// Panics unless libvirt's schema accepts it. Returns early where libvirt isn't installed.
fn validate(xml: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("domain.xml");
    std::fs::write(&file, xml).unwrap();
    match Command::new("virt-xml-validate").arg(&file).arg("domain").output() {
        Ok(output) => assert!(output.status.success(), "{xml}\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("left out: virt-xml-validate: {error}"),
    }
}

fn machine() -> Hardware {
    Hardware {
        name: Some("web & <01>".to_owned()),
        vcpus: Some(4),
        memory_mib: Some(8192),
        firmware: Some("efi".to_owned()),
        nics: vec![
            Nic { mac: Some("00:50:56:AA:BB:CC".to_owned()), network: Some("VM Network".to_owned()), model: None },
            Nic { mac: Some("not one".to_owned()), ..Nic::default() },
        ],
        ..Hardware::default()
    }
}

#[test]
fn a_machine_keeps_what_its_ovf_says() {
    let disks = [("web01-disk0.qcow2", OutputFormat::Qcow2), ("web01-disk1.qcow2", OutputFormat::Qcow2)];
    let xml = domain_xml(&metadata(Some(machine()), &disks), &DomainOptions::default(), "/out/2026-01-17/web's");
    insta::assert_snapshot!(xml, @r"
    <domain type='kvm'>
      <name>web &amp; &lt;01&gt;</name>
      <memory unit='MiB'>8192</memory>
      <vcpu>4</vcpu>
      <os firmware='efi'>
        <type arch='x86_64' machine='q35'>hvm</type>
        <boot dev='hd'/>
      </os>
      <features>
        <acpi/>
        <apic/>
      </features>
      <cpu mode='host-passthrough'/>
      <clock offset='utc'/>
      <devices>
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2'/>
          <source file='/out/2026-01-17/web&apos;s/web01-disk0.qcow2'/>
          <target dev='vda' bus='virtio'/>
        </disk>
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2'/>
          <source file='/out/2026-01-17/web&apos;s/web01-disk1.qcow2'/>
          <target dev='vdb' bus='virtio'/>
        </disk>
        <interface type='network'>
          <mac address='00:50:56:aa:bb:cc'/>
          <source network='default'/>
          <model type='virtio'/>
        </interface>
        <interface type='network'>
          <source network='default'/>
          <model type='virtio'/>
        </interface>
        <console type='pty'/>
        <graphics type='vnc'/>
        <video>
          <model type='virtio'/>
        </video>
      </devices>
    </domain>
    ");
    validate(&xml);
}

#[test]
fn a_bare_disk_gets_a_machine_by_default() {
    let xml = domain_xml(&metadata(None, &[("web01.raw", OutputFormat::Raw)]), &DomainOptions::default(), "/out/");
    for line in [
        "<name>web01</name>",
        "<memory unit='MiB'>2048</memory>",
        "<vcpu>2</vcpu>",
        "<os>",
        "<driver name='qemu' type='raw'/>",
        "<source file='/out/web01.raw'/>",
        "<source network='default'/>",
    ] {
        assert!(xml.contains(line), "{line} in {xml}");
    }
    validate(&xml);
}

#[test]
fn options_win_over_the_source() {
    let options = DomainOptions {
        name: Some("other".to_owned()),
        memory_mib: Some(512),
        vcpus: Some(1),
        uefi: Some(false),
        machine: Some("pc".to_owned()),
        disk_bus: Some("scsi".to_owned()),
        net_model: Some("e1000e".to_owned()),
        network: Some("lab".to_owned()),
    };
    let xml = domain_xml(&metadata(Some(machine()), &[("a.vdi", OutputFormat::Vdi)]), &options, "/out");
    for line in [
        "<name>other</name>",
        "<memory unit='MiB'>512</memory>",
        "<vcpu>1</vcpu>",
        "<os>",
        "machine='pc'",
        "<controller type='scsi' model='virtio-scsi'/>",
        "<target dev='sda' bus='scsi'/>",
        "<source network='lab'/>",
        "<model type='e1000e'/>",
        "type='vdi'",
    ] {
        assert!(xml.contains(line), "{line} in {xml}");
    }
    validate(&xml);
}

#[test]
fn hostile_text_stays_text() {
    let hardware = Hardware {
        name: Some("a'/><devices>\u{1}\n../\u{ffff}".to_owned()),
        vcpus: Some(u32::MAX),
        memory_mib: Some(0),
        nics: vec![Nic { mac: Some("ff:ff:ff:ff:ff:ff".to_owned()), ..Nic::default() }],
        ..Hardware::default()
    };
    let xml =
        domain_xml(&metadata(Some(hardware), &[("a&'b.qcow2", OutputFormat::Qcow2)]), &DomainOptions::default(), "/o");
    assert!(xml.contains("<name>a&apos;-&gt;&lt;devices&gt;--..-</name>"), "{xml}");
    assert!(!xml.contains("<mac"));
    validate(&xml);
    let nameless = Hardware { name: Some(" .. ".to_owned()), ..Hardware::default() };
    assert!(domain_xml(&metadata(Some(nameless), &[]), &DomainOptions::default(), "/o").contains("<name>vm</name>"));
}

#[test]
fn every_disk_has_a_name_of_its_own() {
    for (bus, index, name) in
        [("virtio", 0, "vda"), ("virtio", 25, "vdz"), ("sata", 26, "sdaa"), ("ide", 3, "hdd"), ("virtio", 127, "vddx")]
    {
        assert_eq!(target(bus, index), name);
    }
}

#[test]
fn addresses_are_written_as_libvirt_wants_them() {
    for (text, mac) in [
        ("00:50:56:AA:bb:0c", Some("00:50:56:aa:bb:0c")),
        ("080027AABBCC", Some("08:00:27:aa:bb:cc")),
        ("08-00-27-AA-BB-CC", Some("08:00:27:aa:bb:cc")),
        ("01:00:5e:00:00:01", None),
        ("00:00:00:00:00:00", None),
        ("+0:50:56:AA:BB:C", None),
        ("", None),
        ("00:50:56:AA:BB", None),
    ] {
        assert_eq!(mac_address(text).as_deref(), mac, "{text}");
    }
}
