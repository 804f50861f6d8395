// SPDX-License-Identifier: Apache-2.0
//! Placements, cut short at every step.

use rstest::rstest;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::conversion::ConversionId;
use crate::queue::scan;

/// A claim of these files, which are made in `from/`.
fn claim(dir: &TempDir, names: &[&str]) -> (Claim, PathBuf, PathBuf) {
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    let members = names.iter().map(|name| {
        fs::write(from.join(name), name).unwrap();
        scan::look(&from, name).unwrap().unwrap().member()
    });
    let claim = Claim {
        contract_version: 1,
        id: ConversionId::for_file(names[0], 1),
        queue_uid: String::new(),
        origin: String::new(),
        folder: None,
        disks: Vec::new(),
        primary: names[0].to_owned(),
        members: members.collect(),
        claimed_at: jiff::Timestamp::UNIX_EPOCH,
        seen_at: None,
        complete_by: None,
        beginning: None,
        fingerprint: None,
        emit: None,
        date: "2026-01-17".to_owned(),
    };
    (claim, from, to)
}

fn carry_out(placement: &Placement, method: Method) -> Result<(), PlacementError> {
    Recorded::found(placement.clone()).carry_out(method)
}

fn is_carried_out(placement: &Placement) -> bool {
    placement.moves.iter().all(|planned| planned.whereabouts() == Whereabouts::AtTarget)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_single_file_gets_a_suffix_and_a_group_a_directory() {
    let dir = tempdir().unwrap();
    let (single, from, to) = claim(&dir, &["vm.vmdk"]);
    for expected in ["vm.vmdk", "vm-1.vmdk", "vm-2.vmdk"] {
        let placement = Placement::choose(&single, &from, &to).unwrap();
        assert_eq!(placement.primary(), to.join(expected));
        fs::write(placement.primary(), "").unwrap();
    }
    let (group, from, to) = claim(&dir, &["vm.ovf", "vm.vmdk"]);
    let placement = Placement::choose(&group, &from, &to).unwrap();
    assert_eq!(placement.primary(), to.join("vm-1/vm.ovf"));
    carry_out(&placement, Method::NoReplace).unwrap();
    assert_eq!(names(&to.join("vm-1")), ["vm.ovf", "vm.vmdk"]);
    let (group, from, to) = claim(&dir, &["vm.ovf", "vm.vmdk"]);
    assert_eq!(Placement::choose(&group, &from, &to).unwrap().dir, to.join("vm-2"));
}

#[rstest]
fn a_group_arrives_whole_wherever_it_was_cut_short(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
    #[values(0, 1, 2, 3)] moved: usize,
    #[values(false, true)] half_linked: bool,
) {
    let dir = tempdir().unwrap();
    let (group, from, to) = claim(&dir, &["vm.ovf", "a.vmdk", "b.vmdk"]);
    let placement = Placement::choose(&group, &from, &to).unwrap();
    for planned in &placement.moves[..moved] {
        fs::rename(&planned.from, &planned.to).unwrap();
    }
    if half_linked && let Some(planned) = placement.moves.get(moved) {
        fs::hard_link(&planned.from, &planned.to).unwrap();
        assert_eq!(planned.whereabouts(), Whereabouts::AtBoth);
    }
    carry_out(&placement, method).unwrap();
    carry_out(&placement, method).unwrap();
    assert!(is_carried_out(&placement));
    assert_eq!((names(&from), names(&to).len()), (vec![], 3));
    carry_out(&placement.reversed(&from), method).unwrap();
    assert_eq!((names(&from).len(), names(&to)), (3, vec![]));
}

#[rstest]
fn a_name_taken_on_the_way_sends_the_whole_group_elsewhere(
    #[values(Method::NoReplace, Method::Fallback)] method: Method,
) {
    let dir = tempdir().unwrap();
    let (group, from, to) = claim(&dir, &["vm.ovf", "a.vmdk"]);
    let placement = Placement::choose(&group, &from, &to).unwrap();
    fs::write(to.join("a.vmdk"), "somebody else's").unwrap();
    assert!(matches!(carry_out(&placement, method), Err(PlacementError::Taken(_))));
    let again = placement.again(&to, group.stem()).unwrap();
    carry_out(&again, method).unwrap();
    assert_eq!(names(&to), ["a.vmdk", "vm-1"]);
    assert_eq!(names(&to.join("vm-1")), ["a.vmdk", "vm.ovf"]);
    assert_eq!(fs::read_to_string(to.join("a.vmdk")).unwrap(), "somebody else's");
    assert_eq!(names(&from), Vec::<String>::new());
}

#[test]
fn a_member_that_somebody_took_away_is_named_and_the_others_arrive() {
    let dir = tempdir().unwrap();
    let (group, from, to) = claim(&dir, &["vm.ovf", "a.vmdk"]);
    let placement = Placement::choose(&group, &from, &to).unwrap();
    fs::remove_file(from.join("vm.ovf")).unwrap();
    let error = carry_out(&placement, Method::NoReplace).unwrap_err();
    assert!(matches!(error, PlacementError::Gone(ref names) if names == &["vm.ovf"]), "{error:?}");
    assert_eq!(names(&to), ["a.vmdk"]);
}

#[test]
fn original_names_are_kept_or_not_used_at_all() {
    let dir = tempdir().unwrap();
    let (group, from, to) = claim(&dir, &["vm.ovf", "a.vmdk"]);
    let placement = Placement::original(&group, &from, &to).unwrap().unwrap();
    // Cut short and chosen again: the one that arrived is no stranger.
    fs::rename(from.join("vm.ovf"), to.join("vm.ovf")).unwrap();
    assert_eq!(Placement::original(&group, &from, &to).unwrap(), Some(placement));
    fs::write(to.join("a.vmdk"), "somebody else's").unwrap();
    assert_eq!(Placement::original(&group, &from, &to).unwrap(), None);
}

#[test]
fn a_placement_survives_the_ledger_whatever_the_names_are() {
    let dir = tempdir().unwrap();
    for name in ["new\nline.raw", "-rf.raw", "a:b,c.raw", &format!("{}.raw", "x".repeat(251))] {
        let (single, from, to) = claim(&dir, &[name]);
        fs::write(to.join(name), "").unwrap();
        let placement = Placement::choose(&single, &from, &to).unwrap();
        let json = serde_json::to_string(&placement).unwrap();
        assert_eq!(serde_json::from_str::<Placement>(&json).unwrap(), placement);
        carry_out(&placement, Method::NoReplace).unwrap();
        assert!(is_carried_out(&placement));
    }
}
