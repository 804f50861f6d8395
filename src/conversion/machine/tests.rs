// SPDX-License-Identifier: Apache-2.0
//! Machines with hostile texts, and the devices that guests get.

use super::*;

#[test]
fn hostile_text_is_one_visible_line_of_bounded_length() {
    for (text, line) in [
        ("  web\n01\t ", "web 01"),
        ("a\u{202e}b\u{2028}c\u{85}d\u{feff}e\u{ffff}f", "a b c d e f"),
        ("\u{1b}[31mred", "[31mred"),
        ("ü🙂", "ü🙂"),
        ("", ""),
    ] {
        assert_eq!(one_line(text, MAX_NAME), line, "{text:?}");
    }
    assert_eq!(one_line(&"ü".repeat(500), MAX_NAME), "ü".repeat(128));
    assert_eq!(one_line(&"🙂".repeat(500), 7), "🙂");
}

#[test]
fn addresses_are_written_in_one_form() {
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
    for (text, found) in [
        ("{420A5C1E-5F0E-4B3E-9A0C-7F0D3B9C2A11}", Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11")),
        ("42 0a 5c 1e 5f 0e 4b 3e-9a 0c 7f 0d 3b 9c 2a 11", Some("420a5c1e-5f0e-4b3e-9a0c-7f0d3b9c2a11")),
        ("00000000-0000-0000-0000-000000000000", None),
        ("web01", None),
        ("", None),
    ] {
        assert_eq!(uuid(text).as_deref(), found, "{text}");
    }
}

#[test]
fn a_report_holds_no_more_than_its_limits_and_says_so() {
    let machine = Machine {
        name: Some("n\u{0}".repeat(1000)),
        sockets: Some(0),
        cores_per_socket: Some(u32::MAX),
        memory_mib: Some(u64::MAX),
        uuid: Some("no".to_owned()),
        cards: vec![Card { mac: Some("x".to_owned()), ..Card::default() }; 40],
        doubts: (0..100).map(|n| format!("{n} {}", "x".repeat(1000))).collect(),
        ..Machine::default()
    };
    let bounded = machine.bounded();
    assert!(bounded.name.as_ref().unwrap().len() <= MAX_NAME);
    assert_eq!(
        (bounded.sockets, bounded.cores_per_socket, bounded.memory_mib, &bounded.uuid),
        (None, None, None, &None)
    );
    assert_eq!((bounded.cards.len(), bounded.doubts.len()), (MAX_CARDS, MAX_DOUBTS));
    assert_eq!(bounded.cards[0].mac, None);
    assert!(bounded.doubts[0].starts_with("it has 24 network cards more"));
    assert_eq!(bounded.doubts.last().unwrap(), "72 doubts more are not listed");
    assert!(bounded.doubts.iter().all(|doubt| doubt.len() <= MAX_DOUBT));
    assert_eq!(bounded.clone().bounded(), bounded);
}

#[test]
fn virtio_is_for_guests_that_are_known_to_have_its_drivers() {
    let disk = |controller| MachineDisk { controller, ..MachineDisk::default() };
    let nobody = Drivers::default();
    let looked =
        Drivers { virtio_disk: Some(true), virtio_scsi: Some(true), virtio_net: Some(true), ..Drivers::default() };
    for (controller, drivers, bus, doubts) in [
        (Some(Controller::Virtio), nobody, DiskBus::Virtio, 0),
        (Some(Controller::VirtioScsi), nobody, DiskBus::VirtioScsi, 0),
        (Some(Controller::Scsi), nobody, DiskBus::Sata, 1),
        (Some(Controller::Sata), looked, DiskBus::Virtio, 0),
        (None, Drivers { virtio_disk: Some(false), ..nobody }, DiskBus::Sata, 1),
        (None, Drivers { virtio_scsi: Some(true), ..nobody }, DiskBus::VirtioScsi, 0),
        (None, nobody, DiskBus::Sata, 1),
    ] {
        let mut machine =
            Machine { disks: vec![disk(controller); 2], firmware: Some(Firmware::Bios), ..Machine::default() };
        decide(&mut machine, drivers);
        assert_eq!((machine.disks[1].bus, machine.doubts.len()), (bus, doubts), "{controller:?} {:?}", machine.doubts);
        let again = machine.clone();
        decide(&mut machine, drivers);
        assert_eq!(machine, again);
    }
}

#[test]
fn a_card_stays_what_it_was_where_qemu_has_it() {
    for (model, device) in [
        ("VmxNet3", CardModel::E1000e),
        ("E1000", CardModel::E1000),
        ("E1000E", CardModel::E1000e),
        ("PCNet32", CardModel::Pcnet),
        ("82540EM", CardModel::E1000),
        ("virtio", CardModel::Virtio),
        ("3", CardModel::Virtio),
        ("2", CardModel::E1000),
        ("1", CardModel::Rtl8139),
        ("", CardModel::E1000e),
    ] {
        let card = Card { model: Some(model.to_owned()), ..Card::default() };
        let mut machine = Machine { cards: vec![card], firmware: Some(Firmware::Bios), ..Machine::default() };
        decide(&mut machine, Drivers::default());
        assert_eq!(machine.cards[0].device, device, "{model}");
        let guessed = matches!(model, "VmxNet3" | "");
        assert_eq!(machine.doubts.len(), usize::from(guessed), "{model}");
    }
}

#[test]
fn the_system_is_known_by_the_names_that_exporters_give_it() {
    for name in
        ["windows9Server64Guest", "winNetStandardGuest", "Windows2019_64", "windows_2022", "Microsoft Windows 10"]
    {
        assert!(Machine { guest_os: Some(name.to_owned()), ..Machine::default() }.is_windows(), "{name}");
    }
    for name in ["ubuntu64Guest", "Darwin", "darwin19_64Guest", "rhel_8x64", "80"] {
        assert!(!Machine { guest_os: Some(name.to_owned()), ..Machine::default() }.is_windows(), "{name}");
    }
    for (name, legacy) in
        [("winXPProGuest", true), ("Windows 2003", true), ("WindowsXP", true), ("Windows10_64", false)]
    {
        assert_eq!(Machine { guest_os: Some(name.to_owned()), ..Machine::default() }.is_legacy(), legacy, "{name}");
    }
}
