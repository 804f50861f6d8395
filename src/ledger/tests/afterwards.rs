// SPDX-License-Identifier: Apache-2.0
//! What is known of conversions that ended: history, duplicates, sources, notifications.

use super::*;

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
fn an_output_in_the_trash_is_removed_although_another_artifact_takes_its_source_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let convert = |ledger: &mut Ledger, claim: &Claim| {
        let row = ledger.claim(new(claim.clone())).unwrap();
        let status = published(attempt(row.status, Ok(()), 2_000), 2_010);
        ledger.update(&claim.id, &ended(claim, &status, "/out/disk")).unwrap();
    };
    let (alone, mut whole) = (claim("disk.vmdk", 1), claim("disk.vmdk", 2));
    convert(&mut ledger, &alone);
    let taken_back = Alone { id: alone.id.clone(), location: "disk.vmdk".to_owned(), output_path: None };
    whole.members[0].alone = Some(Box::new(taken_back));
    let plan = EndedPlan::RemoveOutput { from: "/out/disk".into(), to: "/out/.work/.trash/disk".into(), bytes: 7 };
    ledger.plan_ended(&alone.id, Some(&plan)).unwrap();
    convert(&mut ledger, &whole);
    assert_eq!(ledger.ended_plans().unwrap().len(), 1);
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
