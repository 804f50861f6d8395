// SPDX-License-Identifier: Apache-2.0
//! Moves by both methods.

use std::os::unix::fs::symlink;

use rstest::rstest;
use tempfile::tempdir;

use super::*;
use crate::files::volume::simulated::{Fault, Keeps, Volume};

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_file_arrives_whole_under_any_name(#[case] method: Method) {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("to")).unwrap();
    for name in ["a", "-rf", "a:b,c.vmdk", "new\nline.vmdk", &"x".repeat(255)] {
        let (from, to) = (dir.path().join(name), dir.path().join("to").join(name));
        fs::write(&from, name).unwrap();
        move_file(&from, &to, method).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), name);
        assert!(!from.exists());
    }
}

#[test]
fn a_directory_that_was_made_is_on_the_disk_whatever_failed_before() {
    for seed in 0..64 {
        let dir = tempdir().unwrap();
        let volume = Volume::new(dir.path(), seed);
        let made = dir.path().join("made");
        let _entered = volume.enter();
        volume.fail(Some(Fault::Io(2)));
        while create_dir(&made).is_err() {}
        volume.fail(None);
        volume.cut(Keeps::Any);
        assert!(made.exists(), "seed {seed}: {:?}", volume.trace());
    }
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn what_is_there_is_never_replaced(#[case] method: Method) {
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&from, "new").unwrap();
    for make in [
        (|p: &Path| fs::write(p, "old").unwrap()) as fn(&Path),
        |p| fs::create_dir(p).unwrap(),
        |p| symlink("nowhere", p).unwrap(),
    ] {
        make(&to);
        let error = move_file(&from, &to, method).unwrap_err();
        assert!(matches!(error, MoveError::Taken(ref path) if *path == to), "{error:?}");
        assert_eq!(fs::read_to_string(&from).unwrap(), "new");
        if to.is_dir() { fs::remove_dir(&to).unwrap() } else { fs::remove_file(&to).unwrap() }
    }
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_directory_never_takes_the_place_of_another(#[case] method: Method) {
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("new"), "").unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(to.join("old"), "").unwrap();
    assert!(matches!(move_dir(&from, &to, method), Err(MoveError::Taken(_))));
    fs::remove_dir_all(&to).unwrap();
    fs::write(&to, "a file").unwrap();
    assert!(matches!(move_dir(&from, &to, method), Err(MoveError::Taken(_))));
    fs::remove_file(&to).unwrap();
    move_dir(&from, &to, method).unwrap();
    assert!(to.join("new").exists() && !from.exists());
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_source_that_is_gone_is_told_apart_from_a_missing_target_directory(#[case] method: Method) {
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("none/b"));
    assert!(matches!(move_file(&from, &dir.path().join("b"), method), Err(MoveError::Gone(_))));
    fs::write(&from, "").unwrap();
    assert!(matches!(move_file(&from, &to, method), Err(MoveError::Move { .. })));
}

#[test]
fn a_symlink_is_moved_as_itself() {
    let dir = tempdir().unwrap();
    for method in [Method::NoReplace, Method::Fallback] {
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        symlink("/etc/passwd", &from).unwrap();
        move_file(&from, &to, method).unwrap();
        assert_eq!(fs::read_link(&to).unwrap(), Path::new("/etc/passwd"));
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn a_link_that_a_crash_left_half_moved_is_finished() {
    let dir = tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&from, "x").unwrap();
    fs::hard_link(&from, &to).unwrap();
    move_file(&from, &to, Method::Fallback).unwrap();
    assert!(to.exists() && !from.exists());
}

#[test]
fn directories_are_made_with_their_parents_and_again_without_harm() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a/b/c");
    create_dir(&path).unwrap();
    create_dir(&path).unwrap();
    assert!(path.is_dir());
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(create_dir(&dir.path().join("file")).is_err());
}
