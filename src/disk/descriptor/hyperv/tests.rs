// SPDX-License-Identifier: Apache-2.0
//! Settings as Hyper-V writes them, and what is no settings.

use proptest::prelude::*;

use super::*;

fn drive(number: u32, path: &str, kind: &str) -> String {
    format!(
        "<drive{number}><iops_limit type=\"integer\">0</iops_limit><pathname type=\"string\">{path}</pathname>\
         <type type=\"string\">{kind}</type></drive{number}>"
    )
}

/// Settings of a machine with an IDE controller and a SCSI controller with these drives, and one card.
fn settings(generation: u32, ide: &str, scsi: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-16\" standalone=\"yes\"?>\r\n<configuration>\
         <_83f8638b-8dca-4152-9eda-2ca8b33039b4_><controller0>{ide}</controller0>\
         <controller1><drive0><pathname type=\"string\">C:\\iso\\setup.iso</pathname><type type=\"string\">ISO</type></drive0>\
         </controller1></_83f8638b-8dca-4152-9eda-2ca8b33039b4_>\
         <_d422512d-2bf2-4752-809d-7b82b5fcb1b4_><ChannelInstanceGuid type=\"string\">{{x}}</ChannelInstanceGuid>\
         <FriendlyName type=\"string\">SCSI Controller</FriendlyName><controller0>{scsi}</controller0>\
         </_d422512d-2bf2-4752-809d-7b82b5fcb1b4_>\
         <_2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778_><ChannelInstanceGuid type=\"string\">{{y}}</ChannelInstanceGuid>\
         <Connection><AltPortName type=\"string\">Port</AltPortName><AltSwitchName type=\"string\">LAN &amp; DMZ</AltSwitchName>\
         </Connection><FriendlyName type=\"string\">Network Adapter</FriendlyName>\
         <IsConnected type=\"bool\">False</IsConnected><MacAddress type=\"string\">00-15-5D-01-02-03</MacAddress>\
         </_2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778_>\
         <properties><global_id type=\"string\">1A2B3C4D-0000-0000-0000-000000000001</global_id>\
         <name type=\"string\">Web 01</name><notes type=\"string\">of the shop</notes>\
         <subtype type=\"integer\">{generation}</subtype></properties>\
         <settings><memory><bank><dynamic_memory_enabled type=\"bool\">True</dynamic_memory_enabled>\
         <limit type=\"integer\">8192</limit><size type=\"integer\">2048</size></bank></memory>\
         <processors><count type=\"integer\">4</count></processors></settings>\
         <bios><bios_guid type=\"string\">{{420A5C1E-5F0E-4B3E-9A0C-7F0D3B9C2A11}}</bios_guid></bios>\
         <secure_boot_enabled type=\"bool\">True</secure_boot_enabled></configuration>"
    )
}

fn utf16(text: &str) -> Vec<u8> {
    [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

fn alone(_: &str) -> Option<String> {
    None
}

#[test]
fn a_machine_is_read_whole() {
    let text = settings(1, "", &drive(0, "D:\\VMs\\Web01.VHDX", "VHD"));
    let machine = read(&utf16(&text), "web01.vhdx", &alone).unwrap();
    let expected = Machine {
        described_by: Description::HyperV,
        name: Some("Web 01".to_owned()),
        sockets: Some(1),
        cores_per_socket: Some(4),
        memory_mib: Some(2048),
        firmware: Some(Firmware::Efi),
        secure_boot: Some(true),
        uuid: Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11".to_owned()),
        annotation: Some("of the shop".to_owned()),
        disks: vec![MachineDisk {
            file: "web01.vhdx".to_owned(),
            controller: Some(Controller::Scsi),
            controller_address: Some(0),
            address: Some(0),
            ..MachineDisk::default()
        }],
        cards: vec![Card {
            mac: Some("00:15:5d:01:02:03".to_owned()),
            network: Some("LAN & DMZ".to_owned()),
            model: Some("Network Adapter".to_owned()),
            connected: false,
            ..Card::default()
        }],
        doubts: vec!["its memory was dynamic, up to 8192 MiB: it gets what it started with".to_owned()],
        ..Machine::default()
    };
    assert_eq!(machine, expected);
}

#[test]
fn disks_are_those_that_are_here_in_the_order_of_their_controllers() {
    let ide = drive(1, "C:\\b.vhd", "VHD") + &drive(0, "C:\\a.vhd", "VHD");
    let scsi = drive(0, "C:\\c.vhd", "VHD") + &drive(1, "", "NONE") + &drive(2, "C:\\away.vhd", "VHD");
    let text = settings(0, &ide, &scsi);
    let here = |name: &str| ["b.vhd", "c.vhd"].contains(&name).then(|| name.to_owned());
    let machine = read(text.replace("UTF-16", "UTF-8").as_bytes(), "a.vhd", &here).unwrap();
    let disks: Vec<_> = machine.disks.iter().map(|d| (d.file.as_str(), d.controller, d.address)).collect();
    let (ide, scsi) = (Some(Controller::Ide), Some(Controller::Scsi));
    assert_eq!(disks, [("a.vhd", ide, Some(0)), ("b.vhd", ide, Some(1)), ("c.vhd", scsi, Some(0))]);
    assert_eq!(machine.firmware, Some(Firmware::Bios));
    assert!(machine.doubts.iter().any(|doubt| doubt.contains("further disks (1)")), "{:?}", machine.doubts);
}

#[test]
fn a_checkpoint_of_the_disk_is_told() {
    let scsi = drive(0, "C:\\web01_0D1E2F3A-0000-0000-0000-000000000000.avhdx", "VHD");
    let machine = read(settings(1, "", &scsi).replace("UTF-16", "UTF-8").as_bytes(), "web01.vhdx", &alone).unwrap();
    assert_eq!(machine.disks.len(), 1);
    assert!(machine.doubts.iter().any(|doubt| doubt.contains("merge it first")), "{:?}", machine.doubts);
}

#[test]
fn other_texts_are_no_settings() {
    let of_another = settings(0, &drive(0, "C:\\db.vhd", "VHD"), "");
    let with_dtd = of_another.replace("<configuration>", "<!DOCTYPE x [<!ENTITY a \"b\">]><configuration>");
    for text in
        [&of_another, &with_dtd, "<domain type='kvm'><name>web01</name></domain>", "", "web01.vhd", "<configuration>"]
    {
        assert_eq!(read(text.replace("UTF-16", "UTF-8").as_bytes(), "web01.vhd", &alone), None);
    }
    assert!(read(of_another.replace("UTF-16", "UTF-8").as_bytes(), "db.vhd", &alone).is_some());
}

#[test]
fn settings_are_called_after_a_guid() {
    for name in ["1A2B3C4D-0000-1111-2222-0123456789AB.xml", "1a2b3c4d-0000-1111-2222-0123456789ab.VMCX"] {
        assert!(is_settings(name), "{name}");
    }
    for name in
        ["web01.xml", "1A2B3C4D-0000-1111-2222-0123456789AB.vmrs", "1A2B3C4D-0000-1111-2222-0123456789AX.xml", ".xml"]
    {
        assert!(!is_settings(name), "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..4000, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut text = settings(1, &drive(0, "C:\\a.vhd", "VHD"), "").replace("UTF-16", "UTF-8").into_bytes();
        let at = at % text.len();
        text.splice(at..at, bytes);
        if let Some(machine) = read(&text, "a.vhd", &alone) {
            prop_assert_eq!(machine.clone().bounded(), machine);
        }
    }
}
