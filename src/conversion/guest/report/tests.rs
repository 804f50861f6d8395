// SPDX-License-Identifier: Apache-2.0
//! What a machine is told of its guest.

use super::*;

fn guest(block: Answer, scsi: Answer) -> GuestReport {
    let reasons = ["Not from virtio-blk: /boot/initrd.img-6.1 has no virtio_blk for kernel 6.1.".to_owned()];
    GuestReport {
        family: Family::Linux,
        virtio: Virtio { block, scsi, reasons: reasons.to_vec(), ..Virtio::default() },
        fixes: [(FixKind::InitramfsVirtio, 1), (FixKind::NetworkNames, 2), (FixKind::Tools, 3)]
            .map(|(kind, need)| Fix { kind, need, what: format!("{kind}"), why: "It is so.".to_owned() })
            .to_vec(),
        doubts: vec![Doubt { what: "/boot".to_owned(), why: "LVM is not read.".to_owned() }],
        ..GuestReport::default()
    }
}

#[test]
fn the_reason_against_virtio_is_told_only_where_the_disks_are_not_on_it() {
    let network = "networkNames may have to be changed in the guest: it is so";
    let unread = "of the guest's /boot: LVM is not read";
    let against = "not from virtio-blk: /boot/initrd.img-6.1 has no virtio_blk for kernel 6.1";
    assert_eq!(guest(Answer::No, Answer::Unknown).sentences(), [against, network, unread]);
    let must = "initramfsVirtio must be changed in the guest: it is so";
    assert_eq!(guest(Answer::No, Answer::Yes).sentences(), [must, network, unread]);
    assert_eq!(guest(Answer::No, Answer::Yes).drivers().virtio_scsi, Some(true));
}

#[test]
fn a_hostile_guest_takes_no_more_room_than_a_report_has() {
    let mut hostile = guest(Answer::Unknown, Answer::Unknown);
    hostile.doubts = vec![Doubt { what: "a\nb".repeat(300), why: "\u{1b}c".repeat(900) }; 500];
    hostile.kernels = vec![KernelReport { version: "v\u{0}".repeat(900), ..KernelReport::default() }; 500];
    let bounded = hostile.bounded();
    assert_eq!((bounded.doubts.len(), bounded.kernels.len()), (MAX_REPORTED, MAX_REPORTED));
    assert!(bounded.doubts.iter().all(|doubt| doubt.what.len() <= MAX_NAME && doubt.why.len() <= MAX_DOUBT));
    assert!(!bounded.doubts[0].what.contains('\n') && !bounded.kernels[0].version.contains('\0'));
    assert_eq!(bounded.clone().bounded(), bounded);
    assert_eq!(bounded.sentences().len(), 2 + MAX_TOLD + 1);
}
