// SPDX-License-Identifier: Apache-2.0
//! Claims that are cut short everywhere, and files that change under way.

use jiff::Timestamp;
use rstest::rstest;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::queue::scan;

const NAMES: [&str; 3] = ["vm.ovf", "-a:b,c\n.vmdk", "b.vmdk"];

pub(in crate::queue) fn paths(dir: &TempDir) -> Paths {
    let paths = Paths::new(dir.path().join("q"), dir.path().join("o"));
    for path in paths.standing() {
        fs::create_dir_all(path).unwrap();
    }
    paths
}

pub(in crate::queue) fn dropped(paths: &Paths, names: &[&str]) -> Claim {
    let members = names.iter().map(|name| {
        fs::write(paths.queue().join(name), name).unwrap();
        scan::look(paths.queue(), name).unwrap().unwrap().member()
    });
    Claim {
        contract_version: 1,
        id: ConversionId::for_file(names[0], 7),
        queue_uid: String::new(),
        origin: String::new(),
        folder: None,
        disks: Vec::new(),
        primary: names[0].to_owned(),
        members: members.collect(),
        claimed_at: Timestamp::UNIX_EPOCH,
        seen_at: None,
        complete_by: None,
        beginning: None,
        fingerprint: None,
        emit: None,
        date: "2026-01-17".to_owned(),
    }
}

pub(in crate::queue) fn visible(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn sorted(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
    names.sort();
    names
}

#[rstest]
fn a_claim_cut_short_anywhere_is_completed(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
    #[values(0, 1, 2, 3)] moved: usize,
    #[values(false, true)] half_linked: bool,
) {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &NAMES);
    record(&paths, &claim).unwrap();
    let inward = inward(&paths, &claim);
    for planned in &inward.moves[..moved] {
        fs::rename(&planned.from, &planned.to).unwrap();
    }
    if half_linked && let Some(planned) = inward.moves.get(moved) {
        fs::hard_link(&planned.from, &planned.to).unwrap();
    }
    assert_eq!(list(&paths, "").unwrap().own, std::slice::from_ref(&claim));
    assert_eq!(resume(&paths, &claim, method).unwrap(), Taken::Whole);
    assert_eq!(take(&paths, &claim, method).unwrap(), Taken::Whole);
    assert_eq!(visible(paths.queue()), Vec::<String>::new());
    assert_eq!(changed(&paths.claim_dir(&claim.id), &claim).unwrap(), Vec::<String>::new());
    // And the way back, cut short as well.
    let (placement, to) = plan_return(&paths, &claim).unwrap();
    assert_eq!(to, ReturnTo::Origin);
    for planned in &placement.moves[..moved] {
        fs::rename(&planned.from, &planned.to).unwrap();
    }
    Recorded::found(placement).carry_out(method).unwrap();
    remove(&paths, &claim.id).unwrap();
    remove(&paths, &claim.id).unwrap();
    assert_eq!(visible(paths.queue()), sorted(&NAMES));
    assert!(!paths.claim_dir(&claim.id).exists());
}

#[rstest]
fn a_member_that_changed_reverses_the_claim_wherever_it_was_cut_short(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
    #[values(0, 1, 2, 3)] moved: usize,
    #[values(0, 1, 2)] changed: usize,
) {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &NAMES);
    record(&paths, &claim).unwrap();
    let inward = inward(&paths, &claim);
    for planned in &inward.moves[..moved] {
        fs::rename(&planned.from, &planned.to).unwrap();
    }
    let planned = &inward.moves[changed];
    let path = if changed < moved { &planned.to } else { &planned.from };
    fs::write(path, "longer than before").unwrap();
    let reversed = Taken::Reversed { changed: vec![NAMES[changed].to_owned()] };
    assert_eq!(resume(&paths, &claim, method).unwrap(), reversed);
    assert_eq!(visible(paths.queue()), sorted(&NAMES));
    assert_eq!(visible(&paths.processing()), Vec::<String>::new());
}

#[test]
fn a_member_that_went_reverses_the_claim_and_leaves_the_rest() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &NAMES);
    fs::remove_file(paths.queue().join("b.vmdk")).unwrap();
    let reversed = Taken::Reversed { changed: vec!["b.vmdk".to_owned()] };
    assert_eq!(take(&paths, &claim, Method::NoReplace).unwrap(), reversed);
    assert_eq!(visible(paths.queue()), sorted(&NAMES[..2]));
}

#[test]
fn a_member_swapped_for_a_symlink_is_not_taken() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &["a.raw"]);
    let canary = dir.path().join("canary");
    fs::rename(paths.queue().join("a.raw"), &canary).unwrap();
    std::os::unix::fs::symlink(&canary, paths.queue().join("a.raw")).unwrap();
    assert!(matches!(take(&paths, &claim, Method::NoReplace).unwrap(), Taken::Reversed { .. }));
    assert!(!paths.claim_dir(&claim.id).exists());
}

#[test]
fn what_is_given_back_goes_to_errors_where_its_name_is_taken() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &NAMES);
    take(&paths, &claim, Method::NoReplace).unwrap();
    fs::write(paths.queue().join("b.vmdk"), "a corrected one").unwrap();
    let (placement, to) = plan_return(&paths, &claim).unwrap();
    assert_eq!(to, ReturnTo::Errors);
    Recorded::found(placement).carry_out(Method::NoReplace).unwrap();
    remove(&paths, &claim.id).unwrap();
    assert_eq!(visible(&paths.errors()), sorted(&NAMES));
    assert_eq!(visible(paths.queue()), ["b.vmdk"]);
}

#[test]
fn half_a_claim_whose_name_was_taken_meanwhile_is_reversed_into_errors() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &NAMES);
    record(&paths, &claim).unwrap();
    let inward = inward(&paths, &claim);
    fs::rename(&inward.moves[0].from, &inward.moves[0].to).unwrap();
    fs::write(paths.queue().join("vm.ovf"), "the next one").unwrap();
    fs::remove_file(paths.queue().join("b.vmdk")).unwrap();
    resume(&paths, &claim, Method::NoReplace).unwrap();
    assert_eq!(visible(paths.queue()), sorted(&NAMES[..2]));
    assert_eq!(fs::read_to_string(paths.errors().join("vm.ovf")).unwrap(), "vm.ovf");
}

#[test]
fn a_conversion_made_by_hand_is_given_back_to_where_it_came_from() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let mut claim = dropped(&paths, &["a.raw"]);
    claim.origin = ".processed/2026-01-01".to_owned();
    let origin = origin(&paths, &claim);
    fs::create_dir_all(&origin).unwrap();
    fs::rename(paths.queue().join("a.raw"), origin.join("a.raw")).unwrap();
    assert_eq!(take(&paths, &claim, Method::NoReplace).unwrap(), Taken::Whole);
    assert_eq!(list(&paths, "").unwrap().own, std::slice::from_ref(&claim));
    Recorded::found(plan_return(&paths, &claim).unwrap().0).carry_out(Method::NoReplace).unwrap();
    assert!(origin.join("a.raw").exists());
}

#[test]
fn only_a_directory_with_a_sound_record_is_a_claim() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let own = dropped(&paths, &["own.raw"]);
    record(&paths, &own).unwrap();
    let foreign = Claim { queue_uid: "u-2".to_owned(), ..dropped(&paths, &["foreign.raw"]) };
    record(&paths, &foreign).unwrap();
    let at = |name: &str| paths.processing().join(name);
    // A crash before claim.json; one in the middle of writing it.
    fs::create_dir(at("crashed-1")).unwrap();
    fs::create_dir(at("crashed-2")).unwrap();
    fs::write(at("crashed-2").join(names::temporary(CLAIM_FILE)), "{").unwrap();
    fs::write(at(".lock"), "").unwrap();
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("keeps-1")).unwrap();
    fs::write(at("keeps-1/vm.raw"), "").unwrap();
    fs::create_dir(at("link-1")).unwrap();
    std::os::unix::fs::symlink(paths.claim_file(&own.id), at("link-1/claim.json")).unwrap();
    let mut escaping = dropped(&paths, &["escaping.raw"]);
    for (n, (primary, origin)) in [("../x", ""), ("x", "../.."), ("x", "/etc")].into_iter().enumerate() {
        escaping.id = format!("escaping-{n}").parse().unwrap();
        escaping.primary = primary.to_owned();
        escaping.members[0].name = primary.to_owned();
        escaping.origin = origin.to_owned();
        record(&paths, &escaping).unwrap();
    }
    let claims = list(&paths, "").unwrap();
    assert_eq!((claims.own, claims.foreign), (vec![own], vec![foreign]));
    let strays: Vec<_> = claims.strays.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(strays, ["escaping-0", "escaping-1", "escaping-2", "file", "keeps-1", "link-1"]);
    assert!(!at("crashed-1").exists() && !at("crashed-2").exists());
}

#[test]
fn a_claim_that_still_holds_a_file_is_not_removed() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped(&paths, &["a.raw"]);
    take(&paths, &claim, Method::NoReplace).unwrap();
    let error = remove(&paths, &claim.id).unwrap_err();
    assert!(matches!(error, ClaimError::NotEmpty { ref names, .. } if names == &["a.raw"]), "{error:?}");
    assert_eq!(read(&paths, &claim.id).unwrap(), Some(claim));
}

#[test]
fn an_id_that_is_taken_is_not_given_to_another_artifact() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let first = dropped(&paths, &["a.raw"]);
    take(&paths, &first, Method::NoReplace).unwrap();
    let second = Claim { id: first.id.clone(), ..dropped(&paths, &["b.raw"]) };
    assert!(matches!(take(&paths, &second, Method::NoReplace), Err(ClaimError::Exists(_))));
    assert_eq!(read(&paths, &first.id).unwrap(), Some(first));
}

#[test]
fn names_of_255_bytes_are_claimed_and_given_back() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let long = format!("{}.raw", "x".repeat(251));
    let claim = dropped(&paths, &[&long]);
    assert_eq!(take(&paths, &claim, Method::Fallback).unwrap(), Taken::Whole);
    fs::write(paths.queue().join(&long), "").unwrap();
    fs::write(paths.errors().join(&long), "").unwrap();
    Recorded::found(plan_return(&paths, &claim).unwrap().0).carry_out(Method::Fallback).unwrap();
    assert_eq!(visible(&paths.errors()).len(), 2);
}

/// A folder with two members and another file.
fn dropped_folder(paths: &Paths) -> Claim {
    fs::create_dir_all(paths.queue().join("web01/disks")).unwrap();
    fs::write(paths.queue().join("web01/notes.txt"), "kept").unwrap();
    let claim = dropped(paths, &["web01/vm.ovf", "web01/disks/a.vmdk"]);
    let folder = scan::look(paths.queue(), "web01").unwrap().unwrap().member();
    Claim { folder: Some(folder), ..claim }
}

#[rstest]
fn a_folder_moves_as_a_whole_wherever_it_was_cut_short(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
    #[values(false, true)] is_moved: bool,
) {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped_folder(&paths);
    record(&paths, &claim).unwrap();
    assert!(is_outside(&paths, &claim));
    let inside = paths.claim_dir(&claim.id).join("web01");
    if is_moved {
        fs::rename(paths.queue().join("web01"), &inside).unwrap();
    }
    assert_eq!(list(&paths, "").unwrap().own, std::slice::from_ref(&claim));
    for _ in 0..2 {
        assert_eq!(resume(&paths, &claim, method).unwrap(), Taken::Whole);
    }
    assert!(!is_outside(&paths, &claim));
    assert_eq!((visible(paths.queue()), visible(&inside)), (vec![], sorted(&["disks", "notes.txt", "vm.ovf"])));
    assert_eq!(changed(&paths.claim_dir(&claim.id), &claim).unwrap(), Vec::<String>::new());
    // Somebody has dropped another folder of the name meanwhile: this one goes elsewhere.
    fs::create_dir(paths.queue().join("web01")).unwrap();
    fs::write(paths.queue().join("web01/new.raw"), "new").unwrap();
    let (placement, to) = plan_return(&paths, &claim).unwrap();
    assert_eq!((to, placement.primary()), (ReturnTo::Errors, paths.errors().join("web01").as_path()));
    Recorded::found(placement).carry_out(method).unwrap();
    remove(&paths, &claim.id).unwrap();
    assert_eq!(visible(&paths.errors().join("web01")), sorted(&["disks", "notes.txt", "vm.ovf"]));
}

#[rstest]
fn a_folder_that_changed_goes_back_whole(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
    #[values(false, true)] is_moved: bool,
    #[values("web01/disks/a.vmdk", "web01/late.raw")] path: &str,
) {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let claim = dropped_folder(&paths);
    record(&paths, &claim).unwrap();
    if is_moved {
        fs::rename(paths.queue().join("web01"), paths.claim_dir(&claim.id).join("web01")).unwrap();
    }
    let at = if is_moved { paths.claim_dir(&claim.id) } else { paths.queue().to_owned() };
    fs::write(at.join(path), "longer than before").unwrap();
    assert_eq!(resume(&paths, &claim, method).unwrap(), Taken::Reversed { changed: vec![path.to_owned()] });
    assert!(paths.queue().join("web01/disks/a.vmdk").exists());
    assert_eq!(visible(&paths.processing()), Vec::<String>::new());
}

#[test]
fn a_claim_of_a_folder_names_nothing_outside_of_it() {
    let dir = tempdir().unwrap();
    let paths = paths(&dir);
    let sound = dropped_folder(&paths);
    assert_eq!(fault(&sound, &sound.id), None);
    for name in ["vm.raw", "web02/vm.raw", "web01/../vm.raw", "web01//vm.raw", "/web01/vm.raw"] {
        let mut claim = sound.clone();
        claim.members[1].name = name.to_owned();
        assert!(fault(&claim, &claim.id).is_some(), "{name}");
    }
}
