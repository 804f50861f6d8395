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

#[test]
fn a_database_of_the_original_is_adopted_and_its_failures_do_not_match() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    let original = Connection::open(&path).unwrap();
    original
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE processed_files (id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL,
                 filepath TEXT NOT NULL, file_size INTEGER NOT NULL, md5_hash TEXT, processed_at TEXT NOT NULL,
                 output_path TEXT, status TEXT NOT NULL, UNIQUE(filename, file_size));
             INSERT INTO processed_files(filename, filepath, file_size, md5_hash, processed_at, status) VALUES
                 ('ok.vmdk', '/q/ok.vmdk', 10, 'aa', '2026-01-17T09:45:00.123456', 'success'),
                 ('bad.vmdk', '/q/bad.vmdk', 10, 'bb', '2026-01-17T09:45:00.123456', 'failed');",
        )
        .unwrap();
    drop(original);
    let ledger = open(&directory);
    assert!(ledger.find_success("ok.vmdk", 10, &Content::default()).unwrap().is_some());
    assert!(ledger.find_success("other.vmdk", 99, &md5("aa")).unwrap().is_some());
    assert_eq!(ledger.find_success("bad.vmdk", 10, &md5("bb")).unwrap(), None);
    assert!(!path.with_extension("db-wal").exists());
    let now: Timestamp = "2026-04-17T09:00:00Z".parse().unwrap();
    let clock = |days: i64| Clock {
        wall: now + (24 * days).hours(),
        boot_id: "a".to_owned(),
        uptime: Duration::from_secs(24 * 3600 * u64::try_from(days + 91).unwrap()),
    };
    // The first look happens at the time of the newest row.
    assert_eq!(ledger.prune(&clock(-91)).unwrap(), 0);
    assert_eq!(ledger.prune(&Clock { wall: now + (24 * 3650).hours(), ..clock(-90) }).unwrap(), 0);
    assert_eq!(ledger.prune(&clock(0)).unwrap(), 0);
    assert_eq!(ledger.prune(&clock(1)).unwrap(), 2);
}

#[test]
fn a_damaged_or_foreign_or_newer_database_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("move it aside"));

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE processed_files (filename TEXT)").unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::Foreign { column: "filepath", .. }));

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(Ledger::open(&path).unwrap_err(), Error::TooNew { found: 99, .. }));
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
fn a_link_in_the_databases_place_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    let victim = directory.path().join("victim");
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    assert!(matches!(Ledger::open(&path).unwrap_err(), Error::Open { .. }));
    assert!(!victim.exists());
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

#[test]
fn the_history_keeps_the_last_ten() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let status = published(attempt(ConversionStatus::default(), Ok(()), 0), 2);
    for n in 0..13 {
        let claim = claim(&format!("vm{n}.raw"), n);
        ledger.claim(new(claim.clone())).unwrap();
        ledger.update(&claim.id, &with_status(&status)).unwrap();
    }
    let names: Vec<_> = ledger.history().unwrap().into_iter().map(|entry| entry.filename).collect();
    assert_eq!(names, (3..13).map(|n| format!("vm{n}.raw")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_writer_answers_in_order_and_several_hold_it() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Writer::start(open(&directory));
    let other = writer.clone();
    writer.call(|ledger| ledger.set_paused(true)).await.unwrap();
    assert!(other.call(|ledger| ledger.is_paused()).await.unwrap());
}

#[test]
fn what_is_deferred_is_seen_here_at_once_and_by_others_with_the_next_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let (first, second) = (claim("a.raw", 1), claim("b.raw", 2));
    let elsewhere = Connection::open(directory.path().join("deduplication.db")).unwrap();
    let on_disk = |id: &ConversionId| -> Option<String> {
        elsewhere.query_row("SELECT state FROM conversions WHERE id = ?1", [id.as_str()], |row| row.get(0)).ok()
    };
    let submitted = Change::Submitted(ConversionStatus::default());
    let row = ledger.claim(new(first.clone())).unwrap();
    assert_eq!((row.state, on_disk(&first.id)), (ClaimState::Claimed, None));
    let row = ledger.update(&first.id, &submitted).unwrap();
    assert_eq!((row.state.clone(), ledger.conversion(&first.id).unwrap()), (ClaimState::Submitted, Some(row)));
    assert_eq!(on_disk(&first.id), None);
    ledger.claim(new(second.clone())).unwrap();
    let publishing = Change::State(ClaimState::Publishing { target: "d/b".to_owned() });
    ledger.update(&second.id, &publishing).unwrap();
    assert_eq!(on_disk(&first.id).as_deref(), Some("\"submitted\""));
    assert_eq!(on_disk(&second.id).as_deref(), Some(r#"{"publishing":{"target":"d/b"}}"#));

    ledger.forget(&first.id);
    assert_eq!(ledger.conversion(&first.id).unwrap(), None);
    assert!(on_disk(&first.id).is_some());
    ledger.flush().unwrap();
    assert_eq!(on_disk(&first.id), None);
    // This changes nothing, but what was deferred must be on the disk now.
    ledger.update(&second.id, &submitted).unwrap();
    ledger.update(&second.id, &Change::State(ClaimState::Submitted)).unwrap();
    assert_eq!(on_disk(&second.id).as_deref(), Some("\"submitted\""));
}

#[test]
fn a_name_that_is_used_again_at_once_is_the_new_claims() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let first = claim("a.raw", 1);
    ledger.claim(new(first.clone())).unwrap();
    ledger.flush().unwrap();
    ledger.forget(&first.id);
    let second = Claim { origin: ".errors".to_owned(), claimed_at: at(2_000), ..first };
    let row = ledger.claim(new(second)).unwrap();
    ledger.flush().unwrap();
    assert_eq!(ledger.conversions().unwrap(), [row]);
}

#[test]
fn a_claim_of_which_the_ledger_knows_more_than_its_file_says_is_on_the_disk_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let (hashed, duplicate) = (claim("a.raw", 1), claim("b.raw", 2));
    let hashed = NewConversion { md5: Some("aa".to_owned()), ..new(hashed) };
    let duplicate = NewConversion { duplicate_of: Some("a.raw".to_owned()), ..new(duplicate) };
    let rows = [hashed, duplicate].map(|new| ledger.claim(new).unwrap());
    drop(ledger);
    let mut ledger = open(&directory);
    assert_eq!(ledger.conversions().unwrap().iter().map(|row| &row.id).collect::<Vec<_>>(), [&rows[0].id, &rows[1].id]);
    assert_eq!(ledger.claim(NewConversion { duplicate_of: None, ..new(claim("b.raw", 2)) }).unwrap(), rows[1]);
}

#[test]
fn the_database_stays_open_to_those_who_query_it_and_who_delete_rows() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let path = directory.path().join("deduplication.db");
    let status = published(attempt(ConversionStatus::default(), Ok(()), 2_000), 2_003);
    let convert = |ledger: &mut Ledger, n: u32| {
        let claim = claim(&format!("{n}.raw"), n);
        ledger.claim(new(claim.clone())).unwrap();
        ledger.update(&claim.id, &with_status(&status)).unwrap();
    };
    convert(&mut ledger, 1);
    // The user's connection keeps no journal, and removes ours after it has written.
    let theirs = Connection::open(&path).unwrap();
    let seen = || theirs.query_row("SELECT count(*) FROM processed_files", [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(seen(), 1);
    theirs.execute("DELETE FROM processed_files", []).unwrap();
    assert!(!path.with_extension("db-journal").exists());
    assert_eq!(ledger.find_success("1.raw", 4096, &Content::default()).unwrap(), None);
    convert(&mut ledger, 2);
    assert_eq!(seen(), 1);
    assert!(path.with_extension("db-journal").exists());
}

#[test]
fn a_transaction_that_a_crash_cut_short_is_undone_whoever_began_it() {
    for mode in ["DELETE", "PERSIST"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deduplication.db");
        open(&directory).set_paused(true).unwrap();
        let copy = tempfile::tempdir().unwrap();
        {
            let dying = Connection::open(&path).unwrap();
            // Without a cache, changed pages go into the database before the commit.
            dying
                .execute_batch(&format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 1; BEGIN IMMEDIATE"))
                .unwrap();
            dying.execute("UPDATE settings SET value = '0' WHERE key = 'paused'", []).unwrap();
            for n in 0..200 {
                dying.execute("INSERT INTO history(entry) VALUES (?1)", [format!("{n:4000}")]).unwrap();
            }
            for name in ["deduplication.db", "deduplication.db-journal"] {
                std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
            }
        }
        let ledger = open(&copy);
        assert!(ledger.is_paused().unwrap(), "{mode}");
        assert_eq!(ledger.history().unwrap(), [], "{mode}");
    }
}

#[test]
fn what_a_restart_would_not_find_out_again_is_on_the_disk_at_once() {
    let claim = claim("a.raw", 1);
    let first = crate::conversion::Attempt::FIRST;
    let status = ConversionStatus { staged: 1, ..ConversionStatus::default() };
    let observed = |observation| Change::Observed { observation, status: status.clone() };
    let shown = |uid: Option<&str>| Change::Shown { status: status.clone(), uid: uid.map(str::to_owned) };
    let failed = Observation::Failed { attempt: first, failure: Failure::new(Reason::Disrupted, "it was") };
    for (change, may_wait) in [
        (Change::Submitted(status.clone()), true),
        (observed(Observation::Staged(first)), true),
        (observed(Observation::Starting { attempt: first, job_name: None }), true),
        (observed(Observation::Done { attempt: first, folder: "worker".to_owned() }), true),
        (observed(failed), false),
        (shown(None), true),
        (shown(Some("u")), false),
        (Change::State(ClaimState::Submitted), false),
        (Change::State(ClaimState::Publishing { target: "d/a".to_owned() }), false),
        (ended(&claim, &status, "/out/a"), false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = open(&directory);
        ledger.claim(new(claim.clone())).unwrap();
        ledger.update(&claim.id, &change).unwrap();
        assert_eq!(ledger.has_deferred(), may_wait, "{change:?}");
    }
}

#[test]
fn what_counts_is_never_deferred() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("a.raw", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let status = published(attempt(ConversionStatus::default(), Ok(()), 2_000), 2_003);
    ledger.update(&claim.id, &with_status(&status)).unwrap();
    drop(ledger);
    assert_eq!(open(&directory).totals().unwrap().all.succeeded, 1);
}

#[test]
fn the_writer_brings_deferred_changes_to_the_disk_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("a.raw", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let writer = Writer::start(ledger);
    let id = claim.id.clone();
    let forget = move |ledger: &mut Ledger| {
        ledger.forget(&id);
        Ok(())
    };
    writer.wait(forget).unwrap();
    let elsewhere = Connection::open(directory.path().join("deduplication.db")).unwrap();
    let rows = || elsewhere.query_row("SELECT count(*) FROM conversions", [], |row| row.get::<_, u32>(0)).unwrap();
    let begun = std::time::Instant::now();
    while rows() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it stays deferred");
        std::thread::yield_now();
    }
}

#[test]
fn the_source_of_a_file_converted_alone_is_known_until_a_whole_is_made_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let lone = claim("disk.vmdk", 1);
    ledger.claim(new(lone.clone())).unwrap();
    let status = published(attempt(ConversionStatus::default(), Ok(()), 2_000), 2_003);
    ledger.update(&lone.id, &ended(&lone, &status, "/out/disk")).unwrap();
    drop(ledger);
    let mut ledger = open(&directory);
    let found = ledger.alone("disk.vmdk", at(2_003), at(2_004)).unwrap();
    let [source] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((&source.id, source.output_path.as_deref()), (&lone.id, Some("/out/disk")));
    assert_eq!((source.size_bytes, source.mtime_ns, source.is_duplicate, source.is_recent), (4096, -5, false, false));
    assert_eq!(ledger.alone("disk.vmdk", at(2_004), at(2_004)).unwrap(), []);
    assert_eq!(ledger.alone("other.vmdk", at(0), at(0)).unwrap(), []);

    let mut whole = claim("vm.ovf", 2);
    let alone = Alone { id: lone.id, location: "disk.vmdk".to_owned(), output_path: source.output_path.clone() };
    whole.members.push(Member { alone: Some(Box::new(alone)), ..claim("disk.vmdk", 1).members.remove(0) });
    for (n, failed) in [(3, true), (4, false)] {
        let whole = Claim { id: ConversionId::for_file("vm.ovf", n), ..whole.clone() };
        ledger.claim(new(whole.clone())).unwrap();
        let outcome = if failed { Err(Reason::Corrupt) } else { Ok(()) };
        let status = attempt(ConversionStatus::default(), outcome, 2_010);
        let status = if failed { status } else { published(status, 2_013) };
        let change = ended(&whole, &status, "/out/vm");
        let Change::Ended { placement, .. } = &change else { panic!() };
        let target = placement.moves[1].to.clone();
        ledger.update(&whole.id, &change).unwrap();
        // A failed artifact leaves the source for the next one.
        let found: Vec<_> = ledger.alone("disk.vmdk", at(0), at(0)).unwrap().into_iter().map(|s| s.path).collect();
        assert_eq!(found, if failed { vec![target] } else { vec![] });
    }
    assert_eq!(ledger.totals().unwrap().superseded, 1);
}

fn announced(channel: &'static str, n: i64) -> NewNotification {
    let decided_at = Timestamp::from_second(n).unwrap();
    NewNotification { channel, event: format!("event {n}"), decided_at }
}

#[test]
fn an_end_and_its_notification_are_one_and_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let claim = claim("vm.vmdk", 1);
    ledger.claim(new(claim.clone())).unwrap();
    let status = published(attempt(ConversionStatus::default(), Ok(()), 1), 9);
    let Change::Ended { placement, status, output_path, left, .. } = ended(&claim, &status, "/out/vm") else {
        unreachable!("that is what it makes")
    };
    let notifications = vec![announced("webhook", 7), announced("email", 7)];
    let change = Change::Ended { placement, status, output_path, left, notifications };
    ledger.update(&claim.id, &change).unwrap();
    // A caller that could not tell whether it was written writes it again.
    ledger.update(&claim.id, &change).unwrap();
    drop(ledger);

    let mut ledger = open(&directory);
    assert_eq!(ledger.notification_totals().unwrap(), NotificationTotals { pending: 2, sent: 0, given_up: 0 });
    let next = ledger.next_notification("webhook").unwrap().unwrap();
    let expected = Notification {
        number: 1,
        event: "event 7".to_owned(),
        decided_at: Timestamp::from_second(7).unwrap(),
        not_before: None,
    };
    assert_eq!(next, expected);
    let later = Timestamp::from_second(99).unwrap();
    ledger.hold_notification(next.number, later).unwrap();
    assert_eq!(ledger.next_notification("webhook").unwrap().unwrap().not_before, Some(later));

    ledger.close_notification(next.number, Fate::Sent);
    let after = NotificationTotals { pending: 1, sent: 1, given_up: 0 };
    assert_eq!((ledger.next_notification("webhook").unwrap(), ledger.notification_totals().unwrap()), (None, after));
    ledger.flush().unwrap();
    ledger.close_notification(next.number, Fate::GivenUp);
    ledger.flush().unwrap();
    assert_eq!(ledger.notification_totals().unwrap(), after, "what is gone is counted once");
}

#[test]
fn the_outbox_is_bounded_and_what_no_channel_delivers_goes_after_its_day() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let many: Vec<_> = (0..1003).map(|n| announced(if n % 2 == 0 { "webhook" } else { "email" }, n)).collect();
    ledger.post(&many).unwrap();
    assert_eq!(ledger.notification_totals().unwrap(), NotificationTotals { pending: 1000, sent: 0, given_up: 3 });
    assert_eq!(ledger.next_notification("email").unwrap().unwrap().event, "event 3");

    let at = Timestamp::from_second(103).unwrap();
    assert_eq!(ledger.give_up_notifications(at, &["webhook"]).unwrap(), 50);
    assert_eq!(ledger.next_notification("email").unwrap().unwrap().event, "event 103");
    assert_eq!(ledger.next_notification("webhook").unwrap().unwrap().event, "event 4");
    assert_eq!(ledger.notification_totals().unwrap(), NotificationTotals { pending: 950, sent: 0, given_up: 53 });
}

#[test]
fn a_ledger_of_an_older_program_gets_the_outbox_and_stays_one_that_it_opens() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&directory));
    let path = directory.path().join("deduplication.db");
    Connection::open(&path).unwrap().execute_batch("DROP TABLE outbox").unwrap();
    open(&directory).post(&[announced("webhook", 1)]).unwrap();
    let version: i64 = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 1);
}

fn md5(hash: &str) -> Content {
    Content { md5: Some(hash.to_owned()), fingerprint: None }
}

#[test]
fn a_file_of_one_name_and_size_is_a_duplicate_only_with_the_content_that_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(&directory);
    let sampled = |text: &str| Content { md5: None, fingerprint: Some(text.to_owned()) };
    let both = |hash: &str, text: &str| Content { fingerprint: Some(text.to_owned()), ..md5(hash) };
    let record = |content: &Content| {
        let outcome = processed::Outcome {
            filename: "vm.raw",
            filepath: "/queue/vm.raw",
            size_bytes: 4096,
            md5: content.md5.as_deref(),
            fingerprint: content.fingerprint.as_deref(),
            processed_at: at(0),
            output_path: None,
            succeeded: true,
        };
        processed::record(&ledger.connection, &outcome).unwrap();
    };
    let is_found = |content: &Content| ledger.find_success("vm.raw", 4096, content).unwrap().is_some();
    // As the original program wrote it: only name and size are known.
    record(&Content::default());
    assert!(is_found(&sampled("aa")) && is_found(&both("11", "aa")));
    record(&both("11", "aa"));
    assert!(is_found(&sampled("aa")) && is_found(&both("11", "aa")) && is_found(&Content::default()));
    assert!(!is_found(&sampled("bb")), "a repaired upload");
    assert!(!is_found(&both("22", "aa")), "samples that are equal by chance");
    // What is known of the earlier content is not kept for the later one.
    record(&sampled("bb"));
    assert!(is_found(&sampled("bb")) && is_found(&both("22", "bb")));
    assert!(!is_found(&both("11", "aa")) && !is_found(&sampled("aa")));
}

#[test]
fn what_ended_conversions_left_is_known_by_its_place_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let mut ids = Vec::new();
    for random in 1..=2 {
        let claim = claim("vm.raw", random);
        let row = ledger.claim(new(claim.clone())).unwrap();
        let status = published(attempt(row.status, Ok(()), 2_000), 2_010);
        ledger.update(&claim.id, &ended(&claim, &status, "/out/vm")).unwrap();
        ids.push(claim.id);
    }
    let clock = |uptime| Clock { wall: at(3_000), boot_id: "a".to_owned(), uptime: Duration::from_secs(uptime) };
    let files = |ledger: &Ledger| -> Vec<usize> {
        ledger.ended_since(at(0)).unwrap().iter().map(|ended| ended.files.len()).collect()
    };
    assert_eq!(files(&ledger), [0, 1], "the second has the place of the first");
    assert_eq!(ledger.ended_at(Path::new("/nowhere/vm.raw")).unwrap().unwrap().id, ids[1]);
    assert_eq!(ledger.ended_since(at(9_000)).unwrap(), []);
    assert_eq!(ledger.aged_since(u64::MAX, 0, 9).unwrap(), [], "nothing was looked at yet");
    assert_eq!((ledger.advance_age(&clock(10)).unwrap(), ledger.advance_age(&clock(70)).unwrap()), (0, 60));
    assert_eq!(ledger.aged_since(0, 0, 1).unwrap().len(), 1);
    assert_eq!(ledger.aged_since(0, 1, 9).unwrap()[0].id, ids[1]);
    // A plan is carried out, and counted once.
    let plan = EndedPlan::RemoveOutput { from: "/out/vm".into(), to: "/out/.work/.trash/vm".into(), bytes: 7 };
    ledger.plan_ended(&ids[1], Some(&plan)).unwrap();
    assert_eq!(
        ledger.ended_plans().unwrap().iter().map(|(ended, plan)| (&ended.id, (**plan).clone())).collect::<Vec<_>>(),
        [(&ids[1], plan)]
    );
    assert_eq!(files(&ledger), [0]);
    assert!(ledger.find_success("vm.raw", 4096, &Content::default()).unwrap().is_some());
    ledger.removed(&ids[1], Removal::Output, 7).unwrap();
    assert_eq!(ledger.find_success("vm.raw", 4096, &Content::default()).unwrap(), None, "it is no duplicate");
    assert_eq!(ledger.ended_plans().unwrap(), []);
    ledger.removed(&ids[1], Removal::Processed, 5).unwrap();
    let removed = ledger.totals().unwrap().removed;
    assert_eq!((removed.processed, removed.errors, removed.outputs, removed.bytes), (1, 0, 1, 12));
    assert_eq!(files(&ledger), [0, 0]);
    ledger.forget_ended(&ids[1]).unwrap();
    assert_eq!(ledger.ended_since(at(0)).unwrap().len(), 1);
}

#[test]
fn the_history_is_read_page_by_page_beside_the_ledger_s_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    assert!(matches!(Page::read(&path, None, 9), Err(Error::Open { .. })), "nothing is made");
    let mut ledger = open(&directory);
    for random in 1..=3 {
        let claim = claim("vm.raw", random);
        let row = ledger.claim(new(claim.clone())).unwrap();
        let status = published(attempt(row.status, Ok(()), 2_000), 2_010);
        ledger.update(&claim.id, &ended(&claim, &status, "/out/vm")).unwrap();
    }
    let numbers = |page: &Page| -> Vec<i64> { page.conversions.iter().map(|past| past.number).collect() };
    let first = Page::read(&path, None, 2).unwrap();
    assert_eq!((numbers(&first), first.next), (vec![3, 2], Some(2)));
    let second = Page::read(&path, first.next, 2).unwrap();
    assert_eq!((numbers(&second), second.next), (vec![1], None));
    let past = &second.conversions[0];
    assert_eq!((past.source.as_str(), past.end, past.attempts), ("vm.raw", End::Succeeded, 1));
    assert_eq!((past.start_time, past.end_time, past.reason), (Some(at(2_000)), at(2_010), None));
    assert_eq!(past.output.as_deref(), Some("/out/vm"));
    // Of an end that an earlier version recorded less is known.
    ledger.connection.execute("UPDATE ended SET details = NULL WHERE number = 1", []).unwrap();
    assert_eq!(Page::read(&path, Some(2), 2).unwrap().conversions[0].attempts, 0);
}

#[test]
fn a_ledger_without_details_of_its_ends_gets_a_place_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(&directory);
    ledger.connection.execute_batch("ALTER TABLE ended DROP COLUMN details").unwrap();
    drop(ledger);
    let path = directory.path().join("deduplication.db");
    assert!(Page::read(&path, None, 9).is_err());
    drop(open(&directory));
    assert_eq!(Page::read(&path, None, 9).unwrap().conversions, []);
}
