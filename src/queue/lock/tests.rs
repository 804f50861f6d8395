// SPDX-License-Identifier: Apache-2.0
//! Two who want one directory.

use std::fs;
use std::process::Command;

use tempfile::{TempDir, tempdir};

use super::*;
use crate::queue::identity;

fn paths(dir: &TempDir) -> Paths {
    let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
    for path in paths.standing() {
        fs::create_dir_all(path).unwrap();
    }
    paths
}

fn owner(token: &str, boot_id: &str, stateful_set: &str, beat: u64) -> Owner {
    Owner {
        holder: format!("pod {token}"),
        stateful_set: stateful_set.to_owned(),
        boot_id: boot_id.to_owned(),
        token: token.to_owned(),
        beat,
        time: Timestamp::UNIX_EPOCH,
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn won(paths: &Paths, me: Owner) -> Locks {
    match Contender::new(paths, me).unwrap().poll(s(0)).unwrap() {
        Contest::Won(locks) => locks,
        waiting @ Contest::Waiting { .. } => panic!("{waiting:?}"),
    }
}

/// What a machine that crashed leaves in the queue's directory.
fn left_behind(paths: &Paths, owner: &Owner) {
    store::write_json(&paths.processing().join(OWNER_FILE), owner).unwrap();
}

#[test]
fn the_lock_decides_at_once_between_those_whom_it_reaches() {
    let me = owner("me", "boot-1", "set-1", 0);
    for (found, decision) in [
        (None, Decision::Take),
        (Some(owner("x", "boot-1", "", 9)), Decision::Take),
        (Some(owner("x", "boot-2", "set-1", 9)), Decision::Take),
        (Some(owner("x", "boot-2", "set-2", 9)), Decision::Wait { until: s(37) }),
        (Some(owner("x", "boot-2", "", 9)), Decision::Wait { until: s(37) }),
    ] {
        assert_eq!(decide(found.as_ref(), &me, &mut None, s(7)), decision, "{found:?}");
    }
    // Two daemons on two hosts have no set in common.
    let host = owner("me", "boot-1", "", 0);
    let other = owner("x", "boot-2", "", 9);
    assert_eq!(decide(Some(&other), &host, &mut None, s(7)), Decision::Wait { until: s(37) });
}

#[test]
fn anothers_heartbeat_must_stand_still_for_thirty_seconds_on_our_clock() {
    let me = owner("me", "boot-1", "", 0);
    let mut watched = None;
    for (now, token, beat, decision) in [
        (0, "x", 5, Decision::Wait { until: s(30) }),
        (29, "x", 5, Decision::Wait { until: s(30) }),
        (30, "x", 6, Decision::Wait { until: s(60) }),
        (40, "y", 6, Decision::Wait { until: s(70) }),
        (69, "y", 6, Decision::Wait { until: s(70) }),
        (70, "y", 6, Decision::Take),
    ] {
        let other = owner(token, "boot-2", "", beat);
        assert_eq!(decide(Some(&other), &me, &mut watched, s(now)), decision, "at {now}");
    }
}

#[test]
fn a_second_one_is_refused_at_once_and_told_by_whom() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let first = won(&paths, owner("a", "boot", "", 0));
    let error = Contender::new(&paths, owner("b", "boot", "", 0)).unwrap_err();
    assert!(matches!(error, LockError::Held { ref holder, .. } if holder == "pod a"), "{error:?}");
    drop(first);
    won(&paths, owner("b", "boot", "", 0));
}

#[test]
fn one_directory_in_common_is_enough_to_be_refused() {
    let dir = tempdir().unwrap();
    let first = paths(&dir);
    let _locks = won(&first, owner("a", "boot", "", 0));
    let second = Paths::new(dir.path().join("q2"), first.output());
    fs::create_dir_all(second.processing()).unwrap();
    let error = Contender::new(&second, owner("b", "boot", "", 0)).unwrap_err();
    assert!(matches!(error, LockError::Held { ref dir, .. } if *dir == first.daemon()), "{error:?}");
    // And the queue that it had locked already is free again.
    let third = Paths::new(second.queue(), dir.path().join("o3"));
    fs::create_dir_all(third.daemon()).unwrap();
    won(&third, owner("c", "boot", "", 0));
}

#[test]
fn whom_the_lock_does_not_reach_is_waited_for_and_then_replaced() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut other = owner("far", "boot-2", "", 5);
    left_behind(&paths, &other);
    let contender = Contender::new(&paths, owner("me", "boot-1", "", 0)).unwrap();
    let Contest::Waiting { contender, until, holder } = contender.poll(s(0)).unwrap() else { panic!() };
    assert_eq!((until, holder.as_str()), (s(5), "pod far"));
    other.beat = 6;
    left_behind(&paths, &other);
    let Contest::Waiting { contender, .. } = contender.poll(s(29)).unwrap() else { panic!() };
    let Contest::Waiting { contender, until, .. } = contender.poll(s(58)).unwrap() else { panic!() };
    assert_eq!(until, s(59));
    let Contest::Won(mut locks) = contender.poll(s(59)).unwrap() else { panic!() };
    locks.beat(Timestamp::UNIX_EPOCH).unwrap();
    let found = super::owner(&paths.processing()).unwrap().unwrap();
    assert_eq!((found.token.as_str(), found.beat), ("me", 2));
}

#[test]
fn after_a_clean_end_nobody_waits() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    won(&paths, owner("a", "boot-1", "", 0)).release().unwrap();
    won(&paths, owner("b", "boot-2", "", 0));
}

#[test]
fn one_who_slept_while_another_took_over_notices() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut locks = won(&paths, owner("a", "boot-1", "", 0));
    locks.check().unwrap();
    left_behind(&paths, &owner("far", "boot-2", "", 1));
    assert!(matches!(locks.check(), Err(LockError::Lost { holder, .. }) if holder == "pod far"));
    assert!(matches!(locks.beat(Timestamp::UNIX_EPOCH), Err(LockError::Lost { .. })));
    // Its owner file is not ours to remove.
    assert!(locks.release().is_err());
    assert_eq!(super::owner(&paths.processing()).unwrap().unwrap().token, "far");
}

#[test]
fn another_lock_file_is_a_lost_lock_a_missing_one_is_not_and_a_removed_owner_file_is_written_again() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut locks = won(&paths, owner("a", "boot-1", "", 0));
    fs::remove_file(paths.daemon().join(OWNER_FILE)).unwrap();
    locks.beat(Timestamp::UNIX_EPOCH).unwrap();
    assert!(paths.daemon().join(OWNER_FILE).exists());
    fs::rename(paths.daemon().join(LOCK_FILE), paths.daemon().join("aside")).unwrap();
    assert!(matches!(locks.beat(Timestamp::UNIX_EPOCH), Err(LockError::Look { .. })));
    fs::write(paths.daemon().join(LOCK_FILE), "").unwrap();
    assert!(matches!(locks.beat(Timestamp::UNIX_EPOCH), Err(LockError::Lost { .. })));
}

fn keeper(paths: &Paths) -> Keeper {
    let volumes = identity::plan(paths.queue(), paths.output(), false).unwrap().carry_out(paths).unwrap();
    Keeper::new(won(paths, owner("a", "boot-1", "", 0)), volumes, s(0))
}

#[test]
fn a_failed_look_is_no_loss_until_another_may_have_taken_over() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut keeper = keeper(&paths);
    let mut beat = |now| keeper.beat(Timestamp::UNIX_EPOCH, s(now));
    assert!(matches!(beat(5), Beat::Held));
    let (lock, aside) = (paths.processing().join(LOCK_FILE), paths.processing().join("aside"));
    fs::rename(&lock, &aside).unwrap();
    assert!(matches!(beat(10), Beat::Doubtful(_)));
    assert!(matches!(beat(34), Beat::Doubtful(_)));
    fs::rename(&aside, &lock).unwrap();
    assert!(matches!(beat(36), Beat::Held));
    fs::rename(&lock, &aside).unwrap();
    assert!(matches!(beat(65), Beat::Doubtful(_)));
    assert!(matches!(beat(66), Beat::Lost(LockError::Look { .. })));
}

#[test]
fn a_volume_that_is_away_is_no_loss_however_long_and_another_on_it_is_one() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut keeper = keeper(&paths);
    let mut beat = |now| keeper.beat(Timestamp::UNIX_EPOCH, s(now));
    let aside = dir.path().join("aside");
    fs::rename(paths.queue(), &aside).unwrap();
    fs::create_dir_all(paths.processing()).unwrap();
    fs::write(paths.processing().join(LOCK_FILE), "").unwrap();
    assert!(matches!(beat(5), Beat::Away(_)));
    assert!(matches!(beat(500), Beat::Away(_)));
    assert_eq!(fs::read_dir(paths.processing()).unwrap().count(), 1, "nothing is written there");
    fs::remove_dir_all(paths.queue()).unwrap();
    fs::rename(&aside, paths.queue()).unwrap();
    assert!(matches!(beat(505), Beat::Held));
    // A mount of a copy looks like this.
    fs::rename(paths.queue(), &aside).unwrap();
    assert!(Command::new("cp").arg("-a").args([&aside, paths.queue()]).status().unwrap().success());
    assert!(matches!(beat(507), Beat::Lost(LockError::Anew(Away::Anew(_)))));
    fs::remove_dir_all(paths.queue()).unwrap();
    fs::rename(&aside, paths.queue()).unwrap();
    left_behind(&paths, &owner("far", "boot-2", "", 1));
    assert!(matches!(beat(510), Beat::Lost(LockError::Lost { .. })));
}

#[test]
fn an_owner_file_of_rubbish_holds_nobody_up() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    fs::write(paths.processing().join(OWNER_FILE), "{").unwrap();
    won(&paths, owner("a", "boot-1", "", 0));
}

#[test]
fn this_process_knows_its_boot() {
    let me = Owner::this("host", "", "token").unwrap();
    assert_eq!(me.boot_id.len(), 36);
}
