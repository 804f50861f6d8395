// SPDX-License-Identifier: Apache-2.0
//! What a report says of a fix, and which devices follow.

use super::*;
use crate::conversion::guest::fix::Change;
use crate::conversion::guest::{Answer, Doubt, Family, Fix, FixKind, Virtio};
use crate::conversion::machine::{Card, CardModel, DiskBus, MachineDisk};

/// The report of a guest that does not start from virtio.
fn report() -> Metadata {
    let guest = GuestReport {
        family: Family::Linux,
        virtio: Virtio {
            block: Answer::No,
            network: Answer::No,
            reasons: vec!["Not from virtio-blk: /boot/initrd has no virtio_blk for kernel 6.1.".to_owned()],
            ..Virtio::default()
        },
        fixes: [(FixKind::InitramfsVirtio, "/boot/initrd"), (FixKind::NetworkNames, "/etc/network/interfaces")]
            .map(|(kind, what)| Fix { kind, need: 1, what: what.to_owned(), why: "It is so.".to_owned() })
            .to_vec(),
        ..GuestReport::default()
    };
    let mut machine = Machine {
        disks: vec![MachineDisk { file: "a.qcow2".to_owned(), ..MachineDisk::default() }],
        cards: vec![Card::default()],
        ..Machine::default()
    };
    decide(&mut machine, guest.drivers());
    for sentence in guest.sentences() {
        machine.doubt(sentence);
    }
    let mut report: Metadata = serde_json::from_value(serde_json::json!({
        "contractVersion": 2, "toolVersion": "0", "startTime": "2026-01-17T09:45:00Z",
        "endTime": "2026-01-17T09:45:01Z", "durationMs": 1,
        "source": {"name": "a.vmdk", "sizeBytes": 1, "format": "vmdk"}, "disks": [],
    }))
    .unwrap();
    report.machines.push(machine);
    report.guest = Some(guest);
    report
}

#[test]
fn a_fixed_guest_gets_virtio_and_loses_the_doubts_that_were_about_its_drivers() {
    let mut report = report();
    assert!(report.machines[0].doubts.iter().any(|doubt| doubt.starts_with("not from virtio-blk")));
    let change = |fix| Change { fix, file: "/f".to_owned(), backup: Some("/f.hyper2kvm".to_owned()) };
    let fix = GuestFix {
        outcome: Outcome::Fixed,
        changes: vec![change(FixKind::InitramfsVirtio), change(FixKind::NetworkNames)],
        left: vec![Doubt { what: "vmware-tools".to_owned(), why: "They do no harm.".to_owned() }],
        ..GuestFix::default()
    };
    note(&mut report, &fix, None, 5);
    let machine = &report.machines[0];
    assert_eq!((machine.disks[0].bus, machine.cards[0].device), (DiskBus::Virtio, CardModel::Virtio));
    let expected = [
        "neither the source nor a partition table tells the firmware: bios is a guess",
        "vmware-tools was left as it was: they do no harm",
    ];
    assert_eq!(machine.doubts, expected);
    assert!(report.warnings.is_empty());
    let told = serde_json::to_value(&report.guest).unwrap();
    assert_eq!(
        (&told["outcome"], &told["bus"], &told["engine"]),
        (&"fixed".into(), &"virtio".into(), &"native".into())
    );
    assert_eq!(told["changes"][1]["fix"], "networkNames");
    let read: Option<GuestReport> = serde_json::from_value(told).unwrap();
    assert_eq!(read, report.guest);
}

#[test]
fn an_unfixed_guest_keeps_sata_and_says_why() {
    let mut report = report();
    let failure = Failure::new(Reason::GuestNoSpace, "/boot has 1 MiB free");
    note(&mut report, &GuestFix::default(), Some(failure), 5);
    let machine = &report.machines[0];
    assert_eq!((machine.disks[0].bus, machine.cards[0].device), (DiskBus::Sata, CardModel::E1000e));
    assert!(machine.doubts.contains(&"the guest was not fixed: /boot has 1 MiB free".to_owned()), "{machine:?}");
    assert_eq!(report.warnings, ["the guest was not fixed: GuestNoSpace: /boot has 1 MiB free"]);
    let told = serde_json::to_value(&report.guest).unwrap();
    assert_eq!((&told["outcome"], &told["reason"]), (&"unfixed".into(), &"GuestNoSpace".into()));
}
