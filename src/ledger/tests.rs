// SPDX-License-Identifier: Apache-2.0

use futures::FutureExt as _;
use jiff::{Timestamp, ToSpan as _};
use rusqlite::Connection;

use crate::conversion::lifecycle::{Observation, RetryPolicy, advance};
use crate::conversion::retention::Removal;
use crate::conversion::status::{ConversionStatus, End};
use crate::conversion::{Alone, CONTRACT_VERSION, Claim, ConversionId, Failure, Member, Reason};

use crate::files::placement::Placement;
use crate::stats::{JobStatus, NotificationTotals, Totals};

use super::*;

mod afterwards;
mod durability;
mod opening;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a small number")
}

fn claim(name: &str, random: u32) -> Claim {
    Claim {
        contract_version: CONTRACT_VERSION,
        id: ConversionId::for_file(name, random),
        queue_uid: String::new(),
        origin: String::new(),
        folder: None,
        disks: Vec::new(),
        primary: name.to_owned(),
        members: vec![Member { name: name.to_owned(), size_bytes: 4096, mtime_ns: -5, inode: 7, alone: None }],
        claimed_at: at(1_000),
        seen_at: None,
        complete_by: None,
        beginning: None,
        fingerprint: None,
        emit: None,
        date: "1970-01-01".to_owned(),
    }
}

fn new(claim: Claim) -> NewConversion {
    let filepath = format!("/queue/{}", claim.primary);
    NewConversion { claim, filepath, md5: None, duplicate_of: None }
}

fn open(directory: &tempfile::TempDir) -> Ledger {
    Ledger::open(&directory.path().join("deduplication.db")).expect("a fresh directory takes a database")
}

/// One attempt from staging to its end.
fn attempt(status: ConversionStatus, end: std::result::Result<(), Reason>, now: i64) -> ConversionStatus {
    let policy = RetryPolicy::default();
    let n = status.next_attempt();
    let (status, _) = advance(status, Observation::Staged(n), &policy, at(now));
    let (status, _) = advance(status, Observation::Starting { attempt: n, job_name: None }, &policy, at(now));
    let observation = match end {
        Ok(()) => Observation::Done { attempt: n, folder: "worker".to_owned() },
        Err(reason) => Observation::Failed { attempt: n, failure: Failure::new(reason, "it broke") },
    };
    advance(status, observation, &policy, at(now + 2)).0
}

fn published(status: ConversionStatus, now: i64) -> ConversionStatus {
    advance(status, Observation::Published, &RetryPolicy::default(), at(now)).0
}

fn with_status(status: &ConversionStatus) -> Change {
    Change::Shown { status: status.clone(), uid: None }
}

fn placement(claim: &Claim) -> Placement {
    let nowhere = Path::new("/nowhere");
    Placement::choose(claim, nowhere, nowhere).expect("names that are free")
}

fn ended(claim: &Claim, status: &ConversionStatus, output: &str) -> Change {
    Change::Ended {
        placement: placement(claim),
        status: Some(status.clone()),
        output_path: Some(output.to_owned()),
        left: Vec::new(),
        notifications: Vec::new(),
    }
}

fn md5(hash: &str) -> Content {
    Content { md5: Some(hash.to_owned()), fingerprint: None }
}

fn announced(channel: &'static str, n: i64) -> NewNotification {
    let decided_at = Timestamp::from_second(n).unwrap();
    NewNotification { channel, event: format!("event {n}"), decided_at }
}

#[test]
fn a_success_is_counted_once_and_found_as_a_duplicate() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("vm.VMDK", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let status = published(attempt(ConversionStatus::default(), Ok(()), 2_000), 2_003);
    let change = ended(&claim, &status, "/out/1970-01-01/vm");
    for _ in 0..3 {
        ledger.update(&claim.id, &change).unwrap();
    }
    let mut expected = Totals::default();
    expected.count_success("vm.VMDK", Duration::from_secs(3), claim.size_bytes(), at(2_003));
    assert_eq!(ledger.totals().unwrap(), expected);
    drop(ledger);

    let ledger = open(&directory);
    assert_eq!(ledger.totals().unwrap(), expected);
    let found = ProcessedFile {
        number: 1,
        has_same_md5: false,
        filename: "vm.VMDK".to_owned(),
        processed_at: "1970-01-01T00:33:23.000000Z".to_owned(),
        output_path: Some("/out/1970-01-01/vm".to_owned()),
    };
    assert_eq!(ledger.find_success("vm.VMDK", 4096, &Content::default()).unwrap(), Some(found));
    assert_eq!(ledger.find_success("vm.VMDK", 4097, &Content::default()).unwrap(), None);
    assert_eq!(ledger.history().unwrap().len(), 1);
}

#[test]
fn retries_are_counted_when_they_are_scheduled_and_a_failure_when_it_is_final() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("vm.raw", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let mut status = ConversionStatus::default();
    for (now, retried) in [(0, 1), (300, 2), (900, 3), (2100, 3)] {
        status = attempt(status, Err(Reason::SourceIO), now);
        ledger.update(&claim.id, &with_status(&status)).unwrap();
        assert_eq!(ledger.totals().unwrap().retried, retried);
    }
    let totals = ledger.totals().unwrap();
    assert_eq!((totals.all.failed, totals.all.succeeded), (1, 0));
    assert_eq!(ledger.find_success("vm.raw", 4096, &Content::default()).unwrap(), None);
    let history = ledger.history().unwrap();
    assert_eq!((history[0].status, history[0].retry_count), (JobStatus::Failed, 3));
}

#[test]
fn interrupted_attempts_count_neither_as_retries_nor_as_failures() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("vm.raw", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let status = attempt(ConversionStatus::default(), Err(Reason::Disrupted), 0);
    let status = published(attempt(status, Ok(()), 10), 12);
    ledger.update(&claim.id, &with_status(&status)).unwrap();
    let totals = ledger.totals().unwrap();
    assert_eq!((totals.retried, totals.all.failed, totals.all.succeeded), (0, 0, 1));
}

#[test]
fn what_is_given_back_is_not_counted_and_what_is_cancelled_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    for (n, reason, cancelled) in [(1, Reason::SourceChanged, 0), (2, Reason::Cancelled, 1)] {
        let claim = claim("vm.raw", n);
        ledger.claim(new(claim.clone())).unwrap();
        let status = attempt(ConversionStatus::default(), Err(reason), 0);
        assert_eq!(status.end, Some(End::Cancelled));
        ledger.update(&claim.id, &with_status(&status)).unwrap();
        assert_eq!(ledger.totals().unwrap().cancelled, cancelled);
    }
}

#[test]
fn rows_come_back_as_they_were_written_in_the_order_of_their_claims() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let ids: Vec<_> = [("z.vmdk", 1), ("a.vmdk", 2)]
        .into_iter()
        .map(|(name, random)| {
            let claim = Claim { claimed_at: at(i64::from(random)), ..claim(name, random) };
            ledger.claim(new(claim.clone())).unwrap();
            claim.id
        })
        .collect();
    let placement = Placement::choose(&claim("z.vmdk", 1), directory.path(), directory.path()).unwrap();
    let state = ClaimState::Parked { placement };
    let row = ledger.update(&ids[0], &Change::State(state.clone())).unwrap();
    assert_eq!(row.state, state);
    drop(ledger);

    let mut ledger = open(&directory);
    let rows = ledger.conversions().unwrap();
    assert_eq!(rows.iter().map(|row| &row.id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    assert_eq!(rows[0], row);
    assert_eq!(rows[1].state, ClaimState::Claimed);
    ledger.forget(&ids[0]);
    assert_eq!(ledger.conversions().unwrap().len(), 1);
}

#[test]
fn a_failure_does_not_hide_an_earlier_success() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let success = published(attempt(ConversionStatus::default(), Ok(()), 0), 2);
    let failure = attempt(ConversionStatus::default(), Err(Reason::Corrupt), 10);
    for (n, status) in [(1, success), (2, failure)] {
        let claim = claim("vm.raw", n);
        ledger.claim(new(claim.clone())).unwrap();
        ledger.update(&claim.id, &with_status(&status)).unwrap();
    }
    assert!(ledger.find_success("vm.raw", 4096, &Content::default()).unwrap().is_some());
}

#[tokio::test]
async fn a_database_that_is_damaged_while_it_is_open_is_broken_and_one_that_somebody_reads_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    let ledger = open(&directory);
    ledger.connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    let writer = Writer::start(ledger);
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM settings").unwrap();
    let error = writer.call(|ledger| ledger.try_write()).await.unwrap_err();
    assert!(chain(&error).ends_with("database is locked"), "{}", chain(&error));
    reader.execute_batch("ROLLBACK").unwrap();
    writer.call(|ledger| ledger.try_write()).await.unwrap();
    assert_eq!(writer.broken().now_or_never(), None);

    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    let error = writer.call(|ledger| ledger.try_write()).await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { path: damaged, .. } if *damaged == path), "{error:?}");
    assert!(error.to_string().contains("move it aside"), "{error}");
    assert_eq!(writer.broken().await, error.to_string());
    writer.ended().await;
}

#[test]
fn a_pause_and_sources_left_in_place_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    assert!(!ledger.is_paused().unwrap());
    ledger.set_paused(true).unwrap();
    let claim = claim("vm.raw", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let left = LeftSource { path: "vm.raw".to_owned(), inode: u64::MAX, size_bytes: 4096, mtime_ns: -5 };
    let change = Change::Ended {
        placement: placement(&claim),
        status: None,
        output_path: None,
        left: vec![left.clone()],
        notifications: vec![],
    };
    ledger.update(&claim.id, &change).unwrap();
    drop(ledger);
    let ledger = open(&directory);
    assert!(ledger.is_paused().unwrap());
    assert_eq!(ledger.left_in_place().unwrap(), [left]);
}

#[tokio::test]
async fn the_writer_answers_in_order_and_several_hold_it() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Writer::start(open(&directory));
    let other = writer.clone();
    writer.call(|ledger| ledger.set_paused(true)).await.unwrap();
    assert!(other.call(|ledger| ledger.is_paused()).await.unwrap());
}
