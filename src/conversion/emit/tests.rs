// SPDX-License-Identifier: Apache-2.0
//! Files of machines and of bare disks: whole ones by snapshots, hostile ones by the parsers that read them.

mod hostile;

use std::process::Command;

use super::*;
use crate::conversion::OutputFormat;
use crate::conversion::machine::{Card, Controller, Description, DiskBus, Drivers, Firmware, MachineDisk, decide};
use crate::conversion::report::{DiskReport, Hardware, Nic, SourceReport};

const GIB: u64 = 1 << 30;

pub(super) fn metadata(machines: Vec<Machine>, disks: &[(&str, OutputFormat)]) -> Metadata {
    let disk = |(file, format): &(&str, OutputFormat)| DiskReport {
        file: (*file).to_owned(),
        target: None,
        format: *format,
        virtual_size_bytes: GIB + 1,
        allocated_bytes: 1 << 20,
        sha256: None,
        source_member: "vm-disk1.vmdk".to_owned(),
    };
    Metadata {
        contract_version: 2,
        id: "web01-4e1a1fe6".to_owned(),
        tool_version: "1".to_owned(),
        start_time: jiff::Timestamp::UNIX_EPOCH,
        end_time: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 0,
        source: SourceReport { name: "web01.ova".to_owned(), size_bytes: 1, format: "ova".to_owned(), sha256: None },
        disks: disks.iter().map(disk).collect(),
        hardware: None,
        machines,
        guest: None,
        stages: Vec::new(),
        side_files: Vec::new(),
        warnings: Vec::new(),
        superseded_by: None,
        source_changed_at: None,
    }
}

fn disk(file: &str, controller: Controller, boot_order: Option<u32>) -> MachineDisk {
    MachineDisk { file: file.to_owned(), controller: Some(controller), boot_order, ..MachineDisk::default() }
}

/// A Windows server with two disks, the second of which boots, and two cards.
pub(super) fn windows() -> Machine {
    let mut machine = Machine {
        described_by: Description::Ovf,
        name: Some("dc & <02>".to_owned()),
        sockets: Some(2),
        cores_per_socket: Some(4),
        memory_mib: Some(8192),
        firmware: Some(Firmware::Efi),
        secure_boot: Some(true),
        tpm: true,
        uuid: Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11".to_owned()),
        guest_os: Some("windows2019srv_64Guest".to_owned()),
        annotation: Some("the domain's controller".to_owned()),
        disks: vec![disk("b.qcow2", Controller::Scsi, Some(1)), disk("a.qcow2", Controller::Scsi, None)],
        cards: vec![
            Card { network: Some("Backup".to_owned()), connected: false, ..Card::default() },
            Card {
                mac: Some("00:50:56:9a:12:34".to_owned()),
                network: Some("VM Network".to_owned()),
                model: Some("VmxNet3".to_owned()),
                ..Card::default()
            },
        ],
        ..Machine::default()
    };
    decide(&mut machine, Drivers::default());
    machine
}

/// A Linux guest of which virtio is proved.
pub(super) fn linux() -> Machine {
    let mut machine = Machine {
        name: Some("web01".to_owned()),
        sockets: Some(1),
        cores_per_socket: Some(2),
        memory_mib: Some(2048),
        firmware: Some(Firmware::Bios),
        guest_os: Some("ubuntu64Guest".to_owned()),
        disks: vec![disk("web01.raw", Controller::Virtio, Some(1))],
        cards: vec![Card { model: Some("virtio".to_owned()), ..Card::default() }],
        ..Machine::default()
    };
    decide(&mut machine, Drivers::default());
    machine
}

pub(super) fn emitted(metadata: &Metadata, options: &DomainOptions) -> Vec<Emitted> {
    files(metadata, &Platform::ALL.into_iter().collect(), options, "/out/2026-01-17/it's", Names::Alone)
}

fn text(metadata: &Metadata, name: &str) -> String {
    let file = emitted(metadata, &DomainOptions::default()).into_iter().find(|file| file.name == name);
    file.unwrap_or_else(|| panic!("{name} is not written")).text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

fn two_disks() -> Metadata {
    metadata(vec![windows()], &[("a.qcow2", OutputFormat::Qcow2), ("b.qcow2", OutputFormat::Qcow2)])
}

fn one_disk() -> Metadata {
    metadata(vec![linux()], &[("web01.raw", OutputFormat::Raw)])
}

/// Panics unless libvirt's schema accepts it. Says so where libvirt isn't installed.
pub(super) fn validate(xml: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("domain.xml");
    std::fs::write(&file, xml).unwrap();
    match Command::new("virt-xml-validate").arg(&file).arg("domain").output() {
        Ok(output) => assert!(output.status.success(), "{xml}\n{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("left out: virt-xml-validate: {error}"),
    }
}

#[test]
fn every_platform_gets_the_whole_machine() {
    for (name, metadata) in [("windows", two_disks()), ("linux", one_disk())] {
        for file in ["domain.xml", "virtualmachine.yaml", "proxmox.sh", "glance.json", "openstack.sh"] {
            insta::assert_snapshot!(format!("{name}_{file}"), text(&metadata, file));
        }
        validate(&text(&metadata, "domain.xml"));
    }
}

#[test]
fn a_bare_disk_gets_a_machine_by_default() {
    let mut machine = Machine {
        disks: vec![MachineDisk { file: "web01.raw".to_owned(), ..MachineDisk::default() }],
        cards: vec![Card::default()],
        ..Machine::default()
    };
    decide(&mut machine, Drivers::default());
    let xml = text(&metadata(vec![machine], &[("web01.raw", OutputFormat::Raw)]), "domain.xml");
    for line in [
        "<name>web01</name>",
        "<memory unit='MiB'>2048</memory>",
        "<vcpu>2</vcpu>",
        "<os>",
        "<driver name='qemu' type='raw'/>",
        "<source file='/out/2026-01-17/it&apos;s/web01.raw'/>",
        "<target dev='sda' bus='sata'/>",
        "<boot order='1'/>",
        "<source network='default'/>",
        "<model type='e1000e'/>",
        "Doubt: neither the source nor a partition table tells the firmware: bios is a guess.",
        "Doubt: the disks are on sata: whether the guest has a virtio driver, which is faster, is not known.",
    ] {
        assert!(xml.contains(line), "{line} in {xml}");
    }
    validate(&xml);
}

#[test]
fn a_report_of_the_first_contract_version_gives_the_machine_that_it_knows() {
    let hardware = Hardware {
        name: Some("old".to_owned()),
        vcpus: Some(4),
        memory_mib: Some(512),
        firmware: Some("efi".to_owned()),
        nics: vec![Nic { mac: Some("00:50:56:AA:BB:CC".to_owned()), ..Nic::default() }],
        ..Hardware::default()
    };
    let old = Metadata { hardware: Some(hardware), ..metadata(Vec::new(), &[("a.qcow2", OutputFormat::Qcow2)]) };
    let xml = text(&old, "domain.xml");
    for line in ["<name>old</name>", "<vcpu>4</vcpu>", "firmware='efi'", "00:50:56:aa:bb:cc", "a.qcow2"] {
        assert!(xml.contains(line), "{line} in {xml}");
    }
    validate(&xml);
    let bare = text(&metadata(Vec::new(), &[("a.qcow2", OutputFormat::Qcow2)]), "domain.xml");
    assert!(bare.contains("<interface type='network'>"), "{bare}");
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
    let files = emitted(&two_disks(), &options);
    let xml = &files[0].text;
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
    ] {
        assert!(xml.contains(line), "{line} in {xml}");
    }
    validate(xml);
    assert!(files[1].text.contains("name: other\n"));
}

#[test]
fn several_machines_never_share_a_domain() {
    let machine = |name: &str, file: &str| Machine {
        name: Some(name.to_owned()),
        disks: vec![disk(file, Controller::Sata, None)],
        firmware: Some(Firmware::Bios),
        ..Machine::default()
    };
    let machines = vec![machine("App / 1", "x-disk0.qcow2"), machine("app 1", "x-disk1.qcow2"), machine("db", "gone")];
    let metadata =
        metadata(machines, &[("x-disk0.qcow2", OutputFormat::Qcow2), ("x-disk1.qcow2", OutputFormat::Qcow2)]);
    let emit = Emit::domain_xml(true);
    let of = |names| files(&metadata, &emit, &DomainOptions::default(), "/o", names);
    let alone = of(Names::Alone);
    let names: Vec<&str> = alone.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["app-1.xml", "app-1-2.xml", "db.xml"]);
    for (file, disks) in alone.iter().zip([&["x-disk0.qcow2"][..], &["x-disk1.qcow2"], &[]]) {
        let held: Vec<&str> =
            ["x-disk0.qcow2", "x-disk1.qcow2", "gone"].into_iter().filter(|d| file.text.contains(*d)).collect();
        assert_eq!(held, disks, "{}", file.name);
        validate(&file.text);
    }
    let beside: Vec<String> = of(Names::Beside("x")).into_iter().map(|file| file.name).collect();
    assert_eq!(beside, ["x-app-1.xml", "x-app-1-2.xml", "x-db.xml"]);
}

#[test]
fn names_of_files_are_known_before_there_are_disks() {
    let emit: Emit = Platform::ALL.into_iter().collect();
    assert_eq!(
        names(&emit, Names::Beside("web01")),
        ["web01.xml", "web01.virtualmachine.yaml", "web01.proxmox.sh", "web01.glance.json", "web01.openstack.sh"]
    );
    let alone = files(&two_disks(), &emit, &DomainOptions::default(), "/o", Names::Alone);
    assert_eq!(published_names(&two_disks()), alone.into_iter().map(|file| file.name).collect::<Vec<_>>());
    for names in [Names::Alone, Names::Beside("x")] {
        for file in files(&two_disks(), &emit, &DomainOptions::default(), "/o", names) {
            assert!(is_reserved(&file.name), "{}", file.name);
        }
    }
    for name in ["web01.qcow2", "proxmox.sh.qcow2", "xml", "a-proxmox.sh"] {
        assert!(!is_reserved(name), "{name}");
    }
}

#[test]
fn a_set_of_platforms_is_read_as_a_list_and_as_the_flag_of_old() {
    for (json, emit) in [
        ("true", Emit::domain_xml(true)),
        ("false", Emit::default()),
        (r#"["proxmox","libvirt","proxmox"]"#, [Platform::Libvirt, Platform::Proxmox].into_iter().collect()),
    ] {
        assert_eq!(serde_json::from_str::<Emit>(json).unwrap(), emit, "{json}");
    }
    assert!(serde_json::from_str::<Emit>(r#"["vmware"]"#).is_err());
    let emit: Emit = [Platform::Openstack].into_iter().collect();
    assert_eq!(serde_json::to_string(&emit).unwrap(), r#"["openstack"]"#);
    assert_eq!(serde_json::to_string(&emit.with_domain_xml(Some(true))).unwrap(), r#"["libvirt","openstack"]"#);
}

#[test]
fn more_disks_than_a_bus_has_ports_find_a_place() {
    let names: Vec<String> = (0..40).map(|n| format!("d{n}.qcow2")).collect();
    let on = |bus| MachineDisk { bus, ..MachineDisk::default() };
    for (bus, last) in
        [(DiskBus::Sata, "--virtio2 "), (DiskBus::Virtio, "--scsi23 "), (DiskBus::VirtioScsi, "--virtio8 ")]
    {
        let disks = names.iter().map(|file| MachineDisk { file: file.clone(), ..on(bus) }).collect();
        let machine = Machine { disks, firmware: Some(Firmware::Bios), ..Machine::default() };
        let reports: Vec<_> = names.iter().map(|name| (name.as_str(), OutputFormat::Qcow2)).collect();
        let metadata = metadata(vec![machine], &reports);
        let script = text(&metadata, "proxmox.sh");
        assert!(script.contains(last) && script.contains("--scsihw virtio-scsi-pci"), "{script}");
        assert!(!script.contains("--scsi31 ") && script.matches("import-from=").count() == 40, "{script}");
        validate(&text(&metadata, "domain.xml"));
    }
}

#[test]
fn proxmox_leaves_out_disks_beyond_its_ports_and_says_so() {
    let names: Vec<String> = (0..60).map(|n| format!("d{n}.qcow2")).collect();
    let disks = names.iter().map(|file| MachineDisk { file: file.clone(), ..MachineDisk::default() }).collect();
    let machine = Machine { disks, memory_mib: Some(1), ..Machine::default() };
    let reports: Vec<_> = names.iter().map(|name| (name.as_str(), OutputFormat::Qcow2)).collect();
    let script = text(&metadata(vec![machine], &reports), "proxmox.sh");
    assert_eq!((script.matches("import-from=").count(), script.matches("ln -s").count()), (53, 53));
    assert!(script.contains("a machine of Proxmox has no more ports: the last disks (7) are left out"), "{script}");
    assert!(script.contains("--memory 16 "), "{script}");
}

#[test]
fn libvirt_gives_more_than_255_processors_what_addresses_them() {
    let with = |cores: u32| {
        let machine = Machine { sockets: Some(2), cores_per_socket: Some(cores), ..linux() };
        text(&metadata(vec![machine], &[("web01.raw", OutputFormat::Raw)]), "domain.xml")
    };
    let (few, many) = (with(127), with(128));
    for element in ["<ioapic driver='qemu'/>", "<driver intremap='on' eim='on'/>"] {
        assert!(many.contains(element) && !few.contains(element), "{many}");
    }
    validate(&many);
}
