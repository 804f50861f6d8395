// SPDX-License-Identifier: Apache-2.0
//! What is on the disk when: deferred changes, crashes, restarts.

use super::*;

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
