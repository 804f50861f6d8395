// SPDX-License-Identifier: Apache-2.0
//! Machines in the dialects of their exporters.

mod dialects;

use proptest::prelude::*;

use crate::conversion::machine::{Card, Controller, Description, Firmware, Machine};
use crate::disk::descriptor::ovf::{Ovf, parse};

/// An envelope with disks `a` and `b` of files, and this rest.
fn envelope(rest: &str) -> Ovf {
    parse("vm.ovf", text(rest).as_bytes(), None).unwrap()
}

fn text(rest: &str) -> String {
    format!(
        "<Envelope xmlns:ovf='o' xmlns:rasd='r' xmlns:vmw='v' xmlns:vbox='b' xmlns:xsi='x'>\
         <References><File ovf:id='fa' ovf:href='a.vmdk'/><File ovf:id='fb' ovf:href='b.vmdk'/></References>\
         <DiskSection><Disk ovf:diskId='a' ovf:fileRef='fa'/>\
         <Disk ovf:diskId='b' ovf:fileRef='fb'/></DiskSection>{rest}</Envelope>"
    )
}

fn only(rest: &str) -> Machine {
    let mut machines = envelope(rest).machines;
    assert_eq!(machines.len(), 1);
    machines.remove(0)
}

/// The same with oVirt's attributes of disks: `a` is virtio, `b` is started from.
fn only_of_ovirt(rest: &str) -> Machine {
    let text = text(rest)
        .replace("ovf:fileRef='fa'", "ovf:fileRef='fa' ovf:boot='false' ovf:disk-interface='VirtIO'")
        .replace("ovf:fileRef='fb'", "ovf:fileRef='fb' ovf:boot='true'");
    parse("vm.ovf", text.as_bytes(), None).unwrap().machines.remove(0)
}

fn system(items: &str, others: &str) -> String {
    format!(
        "<VirtualSystem ovf:id='vm'><VirtualHardwareSection>{items}</VirtualHardwareSection>{others}</VirtualSystem>"
    )
}

fn item(fields: &[(&str, &str)]) -> String {
    let fields = fields.iter().map(|(name, text)| format!("<rasd:{name}>{text}</rasd:{name}>"));
    format!("<Item>{}</Item>", fields.collect::<String>())
}

fn controller(id: &str, kind: &str, model: &str, address: &str) -> String {
    item(&[("InstanceID", id), ("ResourceType", kind), ("ResourceSubType", model), ("Address", address)])
}

fn disk(id: &str, disk: &str, parent: &str, unit: &str) -> String {
    let resource = format!("ovf:/disk/{disk}");
    item(&[
        ("InstanceID", id),
        ("ResourceType", "17"),
        ("HostResource", &resource),
        ("Parent", parent),
        ("AddressOnParent", unit),
    ])
}

fn order(machine: &Machine) -> Vec<&str> {
    machine.disks.iter().map(|disk| disk.file.as_str()).collect()
}

#[test]
fn disks_are_in_the_order_of_their_controllers_and_addresses_as_numbers() {
    // Controller 1 is listed before controller 0; as texts, "10" is before "9".
    let controllers = controller("9", "6", "lsilogic", "1") + &controller("10", "6", "VirtualSCSI", "0");
    let machine = only(&system(&(controllers.clone() + &disk("1", "a", "9", "0") + &disk("2", "b", "10", "10")), ""));
    assert_eq!(order(&machine), ["b", "a"]);
    let second = &machine.disks[1];
    let told =
        (second.controller, second.model.as_deref(), second.controller_address, second.address, second.boot_order);
    assert_eq!(told, (Some(Controller::Scsi), Some("lsilogic"), Some(1), Some(0), None));
    let machine = only(&system(&(controllers + &disk("1", "a", "10", "10") + &disk("2", "b", "10", "9")), ""));
    assert_eq!(order(&machine), ["b", "a"]);
    // No item attaches `b`.
    let machine = only(&system(&(controller("3", "5", "", "0") + &disk("1", "a", "3", "0")), ""));
    assert_eq!((order(&machine), machine.doubts.len()), (vec!["a", "b"], 1));
}

#[test]
fn the_boot_order_is_the_one_that_the_exporter_wrote() {
    let items = controller("3", "6", "lsilogic", "0") + &disk("8", "a", "3", "0") + &disk("9", "b", "3", "1");
    let sections = "<vmw:BootOrderSection vmw:instanceId='9' vmw:type='disk'><Info/></vmw:BootOrderSection>\
                    <vmw:BootOrderSection vmw:instanceId='8' vmw:type='disk'><Info/></vmw:BootOrderSection>";
    let machine = only(&system(&items, sections));
    assert_eq!((order(&machine), machine.disks[1].boot_order), (vec!["b", "a"], Some(2)));
    let network = "<vmw:BootOrderSection vmw:instanceId='7' vmw:type='net'><Info/></vmw:BootOrderSection>";
    let machine = only_of_ovirt(&system(&items, network));
    // Then it is oVirt's mark at the disk.
    assert_eq!((order(&machine), machine.disks[0].boot_order), (vec!["b", "a"], Some(1)));
    assert_eq!(machine.doubts, ["it was started from net first: here the first disk is"]);
}

#[test]
fn vmware_is_read_whole() {
    let items = item(&[("InstanceID", "1"), ("ResourceType", "3"), ("VirtualQuantity", "8"), ("CoresPerSocket", "4")])
        + &item(&[("ResourceType", "4"), ("AllocationUnits", "byte * 2^20"), ("VirtualQuantity", "4096")])
        + &item(&[("ResourceType", "1"), ("ResourceSubType", "vmware.vtpm")])
        + &item(&[("ResourceType", "24"), ("ResourceSubType", "VirtualVideoCard")]).repeat(2)
        + &item(&[("ResourceType", "21")])
        + &item(&[
            ("ResourceType", "10"),
            ("ResourceSubType", "VmxNet3"),
            ("Address", "00:50:56:9A:12:34"),
            ("Connection", "VM Network"),
            ("AutomaticAllocation", "false"),
        ])
        + "<vmw:Config vmw:key='firmware' vmw:value='EFI'/>\
           <vmw:Config vmw:key='bootOptions.efiSecureBootEnabled' vmw:value='true'/>\
           <vmw:ExtraConfig vmw:key='uuid.bios' vmw:value='42 0a 5c 1e 5f 0e 4b 3e-9a 0c 7f 0d 3b 9c 2a 11'/>";
    let others = "<Name>Web &amp; 01</Name><OperatingSystemSection ovf:id='80' vmw:osType='windows9Server64Guest'/>\
                  <AnnotationSection><Info/><Annotation> the\nfirst </Annotation></AnnotationSection>";
    let machine = only(&system(&items, others));
    let expected = Machine {
        described_by: Description::Ovf,
        name: Some("Web & 01".to_owned()),
        sockets: Some(2),
        cores_per_socket: Some(4),
        memory_mib: Some(4096),
        firmware: Some(Firmware::Efi),
        secure_boot: Some(true),
        tpm: true,
        uuid: Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11".to_owned()),
        guest_os: Some("windows9Server64Guest".to_owned()),
        annotation: Some("the first".to_owned()),
        cards: vec![Card {
            mac: Some("00:50:56:9a:12:34".to_owned()),
            network: Some("VM Network".to_owned()),
            model: Some("VmxNet3".to_owned()),
            connected: false,
            ..Card::default()
        }],
        doubts: vec![
            "serial ports of the source are not carried over".to_owned(),
            "video cards of the source but the first are not carried over".to_owned(),
            "disks of the OVF are attached to no controller: they are the last ones".to_owned(),
        ],
        disks: machine.disks.clone(),
    };
    assert_eq!(machine, expected);
}

#[test]
fn virtualbox_is_read_whole() {
    let items = controller("5", "20", "VirtioSCSI", "0")
        + &disk("7", "a", "5", "0")
        + &item(&[("ResourceType", "10"), ("ResourceSubType", "E1000"), ("Connection", "NAT")]);
    let others = "<vbox:Machine uuid='{420A5C1E-5F0E-4B3E-9A0C-7F0D3B9C2A11}'><Description>notes</Description><Hardware>\
        <Firmware type='EFI'/><TrustedPlatformModule type='v2_0' location=''/>\
        <BIOS><NVRAM path='x'/><SecureBoot enabled='true'/></BIOS><Display VRAMSize='16' monitorCount='2'/>\
        <Network><Adapter slot='0' enabled='true' MACAddress='080027AABBCC' cable='false'/></Network>\
        <UART><Port slot='0' enabled='true'/></UART></Hardware></vbox:Machine>\
        <OperatingSystemSection ovf:id='96'><Info/><Description>Debian_64</Description></OperatingSystemSection>";
    let machine = only(&system(&items, others));
    assert_eq!((machine.firmware, machine.secure_boot, machine.tpm), (Some(Firmware::Efi), Some(true), true));
    assert_eq!(machine.uuid.as_deref(), Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11"));
    assert_eq!((machine.guest_os.as_deref(), machine.annotation.as_deref()), (Some("Debian_64"), Some("notes")));
    assert_eq!(machine.disks[0].controller, Some(Controller::VirtioScsi));
    assert_eq!((machine.cards[0].mac.as_deref(), machine.cards[0].connected), (Some("08:00:27:aa:bb:cc"), false));
    assert_eq!(machine.doubts.len(), 3, "{:?}", machine.doubts);
}

#[test]
fn ovirt_is_read_whole() {
    for (bios_type, firmware, secure_boot) in [
        ("0", None, None),
        ("1", Some(Firmware::Bios), Some(false)),
        ("2", Some(Firmware::Bios), Some(false)),
        ("3", Some(Firmware::Efi), Some(false)),
        ("4", Some(Firmware::Efi), Some(true)),
        ("Q35_OVMF", Some(Firmware::Efi), Some(false)),
    ] {
        let rest = format!(
            "<Content ovf:id='out' xsi:type='ovf:VirtualSystem_Type'><Name>vm</Name><Description>d</Description>\
             <BiosType>{bios_type}</BiosType>\
             <Section ovf:id='420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11' xsi:type='ovf:OperatingSystemSection_Type'>\
             <Description>rhel_8x64</Description></Section>\
             <Section xsi:type='ovf:VirtualHardwareSection_Type'><Item><rasd:InstanceId>1</rasd:InstanceId>\
             <rasd:ResourceType>3</rasd:ResourceType><rasd:num_of_sockets>2</rasd:num_of_sockets>\
             <rasd:cpu_per_socket>2</rasd:cpu_per_socket><rasd:threads_per_cpu>1</rasd:threads_per_cpu>\
             <rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>\
             <Item><rasd:InstanceId>x</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>\
             <rasd:HostResource>fa/a</rasd:HostResource><Type>disk</Type><BootOrder>0</BootOrder></Item>\
             <Item><rasd:InstanceId>y</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>\
             <rasd:HostResource>group/fb</rasd:HostResource><Type>disk</Type><BootOrder>1</BootOrder>\
             <rasd:Address>{{type=drive, bus=0, controller=0, target=0, unit=1}}</rasd:Address></Item>\
             <Item><rasd:ResourceType>10</rasd:ResourceType><rasd:ResourceSubType>3</rasd:ResourceSubType>\
             <rasd:Connection>ovirtmgmt</rasd:Connection><rasd:Linked>false</rasd:Linked>\
             <rasd:MACAddress>56:6f:9a:12:34:56</rasd:MACAddress><Type>interface</Type></Item>\
             <Item><rasd:ResourceType>0</rasd:ResourceType><Type>tpm</Type></Item></Section></Content>"
        );
        let machine = only_of_ovirt(&rest);
        assert_eq!((machine.firmware, machine.secure_boot), (firmware, secure_boot), "{bios_type}");
        assert_eq!(order(&machine), ["b", "a"]);
        assert_eq!((machine.disks[0].boot_order, machine.disks[0].address), (Some(1), Some(1)));
        assert_eq!(machine.disks[1].controller, Some(Controller::Virtio));
        assert_eq!((machine.sockets, machine.cores_per_socket, machine.tpm), (Some(2), Some(2), true));
        assert_eq!(machine.uuid.as_deref(), Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11"));
        assert_eq!(machine.cards[0].mac.as_deref(), Some("56:6f:9a:12:34:56"));
        assert!(!machine.cards[0].connected);
        assert_eq!(machine.guest_os.as_deref(), Some("rhel_8x64"));
    }
}

#[test]
fn xencenter_hides_the_firmware_in_parameters() {
    let others = "<xenovf:Other Name='HVM_boot_params'><Value>firmware=uefi;order=cdn</Value></xenovf:Other>\
                  <xenovf:Other Name='platform'><Value>vga=std;secureboot=true;vtpm=true</Value></xenovf:Other>";
    let others = others.replace("xenovf:", "vmw:");
    let machine = only(&system("", &others));
    assert_eq!((machine.firmware, machine.secure_boot, machine.tpm), (Some(Firmware::Efi), Some(true), true));
}

#[test]
fn several_machines_have_each_its_own_disks() {
    let one = |id: &str, name: &str| {
        format!(
            "<VirtualSystem ovf:id='{name}'><Name>{name}</Name><VirtualHardwareSection>{}{}</VirtualHardwareSection>\
             </VirtualSystem>",
            controller("3", "6", "lsilogic", "0"),
            disk("8", id, "3", "0")
        )
    };
    let rest = format!("<VirtualSystemCollection>{}{}</VirtualSystemCollection>", one("a", "app"), one("b", "db"));
    let ovf = envelope(&rest);
    let told: Vec<_> = ovf.machines.iter().map(|m| (m.name.as_deref().unwrap(), order(m))).collect();
    assert_eq!(told, [("app", vec!["a"]), ("db", vec!["b"])]);
    assert_eq!(ovf.hardware, None);
    assert_eq!(ovf.warnings, ["the OVF describes 2 machines: each gets files of its own"]);
    let doubt = "another machine of the OVF has one of its disks too: start one of them only, or give it a copy";
    let doubts = |ovf: &Ovf| ovf.machines.iter().map(|m| m.doubts.iter().any(|d| d == doubt)).collect::<Vec<_>>();
    assert_eq!(doubts(&ovf), [false, false]);
    let systems = [one("a", "app"), one("b", "db"), one("a", "copy")].concat();
    assert_eq!(
        doubts(&envelope(&format!("<VirtualSystemCollection>{systems}</VirtualSystemCollection>"))),
        [true, false, true]
    );
}

#[test]
fn numbers_that_no_machine_has_are_a_doubt_and_no_other_number() {
    let machine = only(&system(
        &(item(&[("ResourceType", "3"), ("VirtualQuantity", "5000")])
            + &item(&[("ResourceType", "4"), ("AllocationUnits", "byte * 2^40"), ("VirtualQuantity", "1000")])),
        "",
    ));
    assert_eq!((machine.sockets, machine.cores_per_socket, machine.memory_mib), (None, None, None));
    for what in ["processors", "memory"] {
        let doubt = format!("the source tells more {what} than any machine has");
        assert!(machine.doubts.contains(&doubt), "{:?}", machine.doubts);
    }
}

#[test]
fn what_no_machine_can_have_is_left_out_with_a_doubt() {
    let card = |mac: &str| item(&[("ResourceType", "10"), ("Address", mac)]);
    let machine = only(&system(
        &(card("00:50:56:00:00:01")
            + &card("00:50:56:00:00:01")
            + &card("ff:ff:ff:ff:ff:ff")
            + &item(&[("ResourceType", "3"), ("VirtualQuantity", "6"), ("CoresPerSocket", "4")])),
        "",
    ));
    let macs: Vec<_> = machine.cards.iter().map(|card| card.mac.is_some()).collect();
    assert_eq!((macs, machine.sockets, machine.cores_per_socket), (vec![true, false, false], Some(1), Some(6)));
    for doubt in [
        "6 processors do not fill sockets of 4 cores: they are in one socket",
        "two network cards have one address: the later one gets another",
        "an address of a network card is none that a card can have: it gets another",
    ] {
        assert!(machine.doubts.iter().any(|d| d == doubt), "{doubt}: {:?}", machine.doubts);
    }
    let crowd = only(&system(&card("").repeat(1000), ""));
    assert_eq!(crowd.cards.len(), crate::conversion::machine::MAX_CARDS);
    let systems = "<VirtualSystem/>".repeat(100);
    assert_eq!(envelope(&systems).machines.len(), crate::conversion::machine::MAX_MACHINES);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,40}", number in "[0-9]{0,25}") {
        let text = text.replace(['<', '>', '&', '\''], "");
        let items = item(&[("ResourceType", "3"), ("VirtualQuantity", &number), ("CoresPerSocket", &number)])
            + &item(&[("ResourceType", "4"), ("AllocationUnits", &text), ("VirtualQuantity", &number)])
            + &controller(&text, "6", &text, &number) + &disk(&text, "a", &text, &number)
            + &item(&[("ResourceType", "10"), ("Address", &text), ("ResourceSubType", &text)]);
        let machine = only(&system(&items, &format!("<Name>{text}</Name><BiosType>{text}</BiosType>")));
        prop_assert_eq!(machine.clone().bounded(), machine);
    }
}
