// SPDX-License-Identifier: Apache-2.0
//! Progress, by a clock that the tests control.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::tempdir;

use super::*;
use crate::conversion::CONTRACT_VERSION;
use crate::executor::progress::STALL_AFTER;

const N: Attempt = Attempt(1);

fn id() -> ConversionId {
    "a-0000002a".parse().unwrap()
}

fn wall() -> Timestamp {
    Timestamp::from_second(1).unwrap()
}

fn running(attempt: Attempt) -> Running {
    Running { id: id(), attempt, work: PathBuf::new() }
}

fn copied(bytes_done: u64) -> PolledProgress {
    let progress = Progress {
        contract_version: CONTRACT_VERSION,
        stage: Stage::Copy,
        bytes_done,
        bytes_total: 1000,
        updated_time: Timestamp::UNIX_EPOCH,
    };
    PolledProgress { id: id(), attempt: N, found: Ok(Some(progress)) }
}

fn watching(begun: Instant) -> Watch {
    let mut watch = Watch::new(STALL_AFTER);
    watch.keep(&[running(N)], begun);
    watch
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn progress_is_written_at_most_every_five_seconds_and_every_percent() {
    let begun = Instant::now();
    let mut watch = watching(begun);
    let mut written = Vec::new();
    for (after, bytes) in [(0, 100), (1, 200), (4, 300), (5, 300), (11, 301), (12, 309), (13, 310)] {
        let now = begun + seconds(after);
        watch.receive(copied(bytes), now, wall());
        written.extend(watch.due(now).into_iter().map(|(_, report)| (after, report.percent)));
    }
    assert_eq!(written, [(0, 10), (5, 30), (13, 31)]);
}

#[test]
fn ten_minutes_without_progress_by_our_own_clock_are_a_stall() {
    let begun = Instant::now();
    let mut watch = watching(begun);
    assert!(watch.receive(copied(1), begun + seconds(300), wall()));
    // Polled rarely: the stall is decided after the poll, which shows progress.
    assert!(watch.receive(copied(2), begun + seconds(2000), wall()));
    assert!(!watch.receive(copied(2), begun + seconds(2599), wall()));
    assert_eq!(watch.stalled(), []);
    assert!(!watch.receive(copied(2), begun + seconds(2600), wall()));
    assert_eq!(watch.stalled(), [(id(), N)]);
}

#[test]
fn a_worker_that_says_nothing_or_nonsense_stalls_and_a_directory_that_cannot_be_read_says_nothing() {
    let begun = Instant::now();
    let read = || StoreError::Read { path: "p".into(), source: std::io::ErrorKind::TimedOut.into() };
    for (found, stalled) in
        [(Ok(None), vec![(id(), N)]), (Err(StoreError::NotRegular("p".into())), vec![(id(), N)]), (Err(read()), vec![])]
    {
        let mut watch = watching(begun);
        watch.receive(PolledProgress { id: id(), attempt: N, found }, begun + seconds(600), wall());
        assert_eq!(watch.stalled(), stalled);
    }
}

#[test]
fn the_clock_runs_only_while_the_container_does_and_anew_for_each_attempt() {
    let begun = Instant::now();
    let mut watch = watching(begun);
    watch.receive(copied(1), begun, wall());
    watch.keep(&[running(Attempt(2))], begun + seconds(700));
    assert_eq!(watch.of(&id()), None);
    // A late result of the attempt before.
    assert!(!watch.receive(copied(1), begun + seconds(700), wall()));
    watch.receive(PolledProgress { attempt: Attempt(2), ..copied(1) }, begun + seconds(1200), wall());
    assert_eq!(watch.stalled(), []);
}

#[test]
fn numbers_that_no_object_holds_are_cut() {
    let begun = Instant::now();
    let mut watch = watching(begun);
    let huge = Progress { bytes_done: u64::MAX, bytes_total: u64::MAX - 1, ..copied(0).found.unwrap().unwrap() };
    watch.receive(PolledProgress { found: Ok(Some(huge)), ..copied(0) }, begun, wall());
    let (_, report) = watch.due(begun).remove(0);
    assert_eq!(
        (report.percent, report.bytes_done, report.bytes_total),
        (100, i64::MAX.unsigned_abs(), i64::MAX.unsigned_abs())
    );
}

#[tokio::test]
async fn a_link_in_place_of_the_progress_is_not_followed() {
    let directory = tempdir().unwrap();
    let found = serde_json::to_vec(&copied(7).found.unwrap()).unwrap();
    fs::write(directory.path().join("secret"), found).unwrap();
    symlink("secret", directory.path().join("progress.json")).unwrap();
    let polled = poll(vec![Running { work: directory.path().to_owned(), ..running(N) }]).await.unwrap();
    assert!(matches!(polled[0].found, Err(StoreError::NotRegular(_))), "{polled:?}");
}
