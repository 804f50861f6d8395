// SPDX-License-Identifier: Apache-2.0
//! Plans as workers write them, and as a worker might that is no longer ours.

use serde_json::{Value, json};

use super::*;
use crate::conversion::machine::MachineDisk;

fn plan() -> Plan {
    let disk = |n: u32| PlannedDisk {
        file: format!("web01-disk{n}.raw"),
        member: format!("web01-disk{n}.vmdk"),
        virtual_size_bytes: 40 << 30,
        is_estimate: false,
        data_bytes: Some(9_123_456_789),
        controller: Some(Controller::Scsi),
        address: Some(format!("0:{n}")),
        partition_table: Some(PartitionTable::Gpt),
        firmware: Some(Firmware::Efi),
        fallback_loader: Some(true),
        boot: n == 0,
    };
    let of_machine = |n: u32| MachineDisk { file: format!("web01-disk{n}.raw"), ..MachineDisk::default() };
    Plan {
        disks: vec![disk(0), disk(1)],
        machines: vec![Machine { disks: vec![of_machine(1), of_machine(0)], ..Machine::default() }],
        doubts: vec!["the OVF says another size".to_owned()],
    }
}

fn value() -> Value {
    serde_json::from_str(&plan().to_json().unwrap()).unwrap()
}

#[test]
fn a_plan_is_read_as_it_was_written() {
    assert_eq!(read(plan().to_json().unwrap().as_bytes()).unwrap(), plan());
    assert_eq!(value()["contractVersion"], CONTRACT_VERSION);
    assert_eq!(value()["disks"][0]["partitionTable"], "gpt");
    assert!(value()["disks"][0].get("isEstimate").is_none());
}

#[test]
fn what_can_be_no_plan_is_refused_with_the_place() {
    let alter = |pointer: &str, to: Value| {
        let mut plan = value();
        *plan.pointer_mut(pointer).unwrap() = to;
        plan.to_string()
    };
    let cases = [
        (String::new(), "no plan"),
        ("[".repeat(40_000), "no plan"),
        ("{}".to_owned(), "no plan"),
        (" ".repeat(MAX_PLAN_BYTES + 1), "65537 bytes, and at most 65536 are read"),
        (alter("/contractVersion", json!(99)), "contract version 99, and at most 2 is known"),
        (alter("/disks", json!([])), "0 disks, from 1 to 256 are possible"),
        (alter("/machines", json!([])), "0 machines, from 1 to 16 are possible"),
        (alter("/machines", json!(vec![json!({}); 17])), "17 machines, from 1 to 16 are possible"),
        (alter("/disks/1/file", json!("../disk")), "disk 1: its name or its member's is no file name"),
        (alter("/disks/0/member", json!("a".repeat(256))), "disk 0: its name or its member's is no file name"),
        (alter("/disks/1/file", json!("web01-disk0.raw")), "disk 1: its name is another disk's"),
        (alter("/disks/0/virtualSizeBytes", json!(0)), "disk 0: 0 bytes, from 1 to 9223372036854775807 are possible"),
        (
            alter("/disks/1/virtualSizeBytes", json!(u64::MAX)),
            "disk 1: 18446744073709551615 bytes, from 1 to 9223372036854775807 are possible",
        ),
        (alter("/disks/0/virtualSizeBytes", json!(-1)), "no plan"),
        (alter("/disks/0/partitionTable", json!("amiga")), "no plan"),
        (alter("/machines/0/disks/0/file", json!("other.raw")), "machine 0 has a disk that is none of the plan's"),
    ];
    for (text, expected) in cases {
        let refused = read(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused, expected, "{}", &text[..text.len().min(80)]);
    }
}

#[test]
fn texts_and_numbers_of_a_plan_are_bounded() {
    let mut hostile = plan();
    hostile.doubts = vec!["line\nline \u{1b}[31m".repeat(40); 100];
    hostile.disks[0].address = Some("0\n:1 and a long story of it".to_owned());
    hostile.disks[0].data_bytes = Some(u64::MAX);
    hostile.machines[0].annotation = Some("a\u{202e}b".to_owned());
    let json = serde_json::to_vec(&PlanFile { contract_version: 1, plan: hostile }).unwrap();
    assert!(json.len() > MAX_PLAN_BYTES, "a longer one is not read at all");
    let mut hostile: PlanFile = serde_json::from_slice(&json).unwrap();
    hostile.plan.doubts.truncate(33);
    let read = read(&serde_json::to_vec(&hostile).unwrap()).unwrap();
    assert_eq!(read.doubts.len(), MAX_DOUBTS);
    assert!(read.doubts.iter().all(|doubt| doubt.len() <= MAX_DOUBT && !doubt.contains(['\n', '\u{1b}'])));
    assert_eq!(read.disks[0].address.as_deref(), Some("0 :1 and a long story"));
    assert_eq!(read.disks[0].data_bytes, Some(40 << 30));
    assert_eq!(read.machines[0].annotation.as_deref(), Some("a b"));
}

#[test]
fn a_plan_that_is_too_long_leaves_out_what_nothing_is_decided_by() {
    let mut long = plan();
    long.machines = vec![Machine { annotation: Some("x".repeat(1000)), ..long.machines[0].clone() }; 16];
    for machine in &mut long.machines {
        machine.disks = vec![MachineDisk { model: Some("m".repeat(250)), ..machine.disks[0].clone() }; 20];
    }
    let read = read(long.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(read.machines[15].disks.len(), 20);
    assert_eq!((read.machines[15].annotation.as_deref(), read.machines[15].disks[0].model.as_deref()), (None, None));
    long.doubts = vec!["d".repeat(400); 32];
    let mut disks = vec![long.disks[0].clone(); 200];
    for (n, disk) in disks.iter_mut().enumerate() {
        disk.file = format!("{n:0>250}");
    }
    long.disks.extend(disks);
    assert!(matches!(long.to_json(), Err(InvalidPlan::TooLong(_))));
}
