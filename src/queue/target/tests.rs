// SPDX-License-Identifier: Apache-2.0
//! Deliveries: to taken names, cut short, and of folders that are swapped meanwhile.

use std::os::unix::fs::symlink;

use rstest::rstest;
use rustix::fs::{CWD, Mode, mkfifoat};

use super::super::claim::tests::visible;
use super::super::publish::Inspection;
use super::super::publish::tests::{Attempted, attempted};
use super::*;
use crate::conversion::Reason;
use crate::conversion::emit::Emitted;

const DOMAIN_FILE: &str = "domain.xml";

fn domain(text: &str) -> [Emitted; 1] {
    [Emitted { name: DOMAIN_FILE.to_owned(), text: text.to_owned() }]
}

const DATE: &str = "2026-01-17";

/// Plans, seals, records and delivers as the engine does; `recorded` hears of each target that is recorded.
fn publish(
    attempted: &Attempted,
    finished: &Finished,
    method: Method,
    mut recorded: impl FnMut(&Path),
) -> Result<PathBuf, PublishError> {
    loop {
        let plan = Target::plan(&attempted.paths, DATE, "vm")?;
        let disk = plan.path().join(&finished.metadata.disks[0].file);
        finished.seal(&domain(&format!("<domain>{}</domain>", disk.display())))?;
        recorded(plan.path());
        let target = Recorded::found(Target::read(&attempted.paths, &plan.name(&attempted.paths)));
        assert_eq!(*target, plan);
        if target.deliver(finished, method)? == Delivery::Moved {
            target.confirm(finished, method)?;
            return Ok(target.path().to_owned());
        }
    }
}

fn has_arrived(attempted: &Attempted, target: &Path) -> bool {
    let target = Recorded::found(Target { path: target.to_owned() });
    target.has_arrived(&attempted.paths, &attempted.claim.id, Attempt::FIRST, "worker").unwrap()
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_finished_folder_appears_whole_and_with_what_it_names_only(#[case] method: Method) {
    let attempted = attempted();
    let canary = attempted.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("kept"), "").unwrap();
    let folder = &attempted.folder;
    fs::write(folder.join("unnamed"), "").unwrap();
    fs::write(folder.join(DOMAIN_FILE), "the worker's own").unwrap();
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    symlink(&canary, folder.join("deep/link")).unwrap();
    symlink(&canary, folder.join("link")).unwrap();
    mkfifoat(CWD, folder.join("fifo"), Mode::RWXU).unwrap();
    let mut recorded = Vec::new();
    let target = publish(&attempted, &attempted.finished(), method, |target| recorded.push(target.to_owned())).unwrap();
    assert_eq!(target, attempted.paths.published(DATE).join("vm"));
    assert_eq!(recorded, std::slice::from_ref(&target));
    assert_eq!(visible(&target), ["domain.xml", "metadata.json", "vm-disk0.qcow2", "vm-disk1.qcow2"]);
    let domain = fs::read_to_string(target.join(DOMAIN_FILE)).unwrap();
    assert_eq!(domain, format!("<domain>{}/vm-disk0.qcow2</domain>", target.display()));
    assert!(canary.join("kept").exists());
    let id = &attempted.claim.id;
    assert!(has_arrived(&attempted, &target));
    assert_eq!(read_published(&target, id).unwrap().disks.len(), 2);
    assert!(read_published(&target, &"other-1".parse().unwrap()).is_none());
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_taken_name_gets_a_number_and_its_own_domain(#[case] method: Method) {
    let attempted = attempted();
    let day = attempted.paths.published(DATE);
    fs::create_dir_all(day.join("vm")).unwrap();
    fs::write(day.join("vm/old"), "").unwrap();
    fs::write(day.join("vm-1"), "a file").unwrap();
    let target = publish(&attempted, &attempted.finished(), method, |_| {}).unwrap();
    assert_eq!(target, day.join("vm-2"));
    assert!(fs::read_to_string(target.join(DOMAIN_FILE)).unwrap().contains("/vm-2/"));
    assert_eq!(visible(&day.join("vm")), ["old"]);
}

#[rstest]
#[case::no_replace(Method::NoReplace)]
#[case::fallback(Method::Fallback)]
fn a_name_taken_between_record_and_rename_is_recorded_anew(#[case] method: Method) {
    let attempted = attempted();
    let mut recorded = Vec::new();
    let take_the_first = |target: &Path| {
        if recorded.is_empty() {
            fs::create_dir(target).unwrap();
            fs::write(target.join("theirs"), "").unwrap();
        }
        recorded.push(target.to_owned());
    };
    let target = publish(&attempted, &attempted.finished(), method, take_the_first).unwrap();
    let day = attempted.paths.published(DATE);
    assert_eq!(recorded, [day.join("vm"), day.join("vm-1")]);
    assert_eq!(target, day.join("vm-1"));
    assert_eq!(visible(&day.join("vm")), ["theirs"]);
}

#[test]
fn a_crash_before_the_rename_is_published_by_doing_it_again() {
    let attempted = attempted();
    let plan = Target::plan(&attempted.paths, DATE, "vm").unwrap();
    attempted.finished().seal(&domain("half")).unwrap();
    assert!(!has_arrived(&attempted, plan.path()));
    let target = publish(&attempted, &attempted.finished(), Method::NoReplace, |_| {}).unwrap();
    assert_eq!(target, attempted.paths.published(DATE).join("vm"));
    assert!(fs::read_to_string(target.join(DOMAIN_FILE)).unwrap().starts_with("<domain>"));
}

#[test]
fn a_work_directory_that_a_power_cut_took_was_published_only_where_its_folder_stands_at_the_target() {
    let attempted = attempted();
    let id = &attempted.claim.id;
    let target = publish(&attempted, &attempted.finished(), Method::NoReplace, |_| {}).unwrap();
    let has_left = || has_arrived(&attempted, &target);
    fs::remove_dir_all(attempted.paths.work_of(id)).unwrap();
    assert!(has_left(), "published, and not yet said to be");
    fs::remove_dir_all(&target).unwrap();
    assert!(!has_left(), "recorded, and nothing of it on the disk");
    let Inspection::Unpublishable(failure) = attempted.inspect() else { panic!("nothing is there") };
    assert_eq!(failure.reason, Reason::Disrupted, "{failure}");
    fs::create_dir_all(attempted.paths.work_dir(id, Attempt::FIRST)).unwrap();
    assert!(has_left(), "published, and taken away by whoever waited for it");
}

#[test]
fn a_folder_of_which_nobody_knows_the_name_has_arrived_where_it_stands_at_the_target_only() {
    let attempted = attempted();
    let id = &attempted.claim.id;
    let plan = Target::plan(&attempted.paths, DATE, "vm").unwrap();
    let target = Recorded::found(plan);
    let has_arrived = || target.has_arrived(&attempted.paths, id, Attempt::FIRST, ONLY_FOLDER).unwrap();
    assert!(!has_arrived(), "it is where it was");
    let finished = attempted.finished();
    finished.seal(&[]).unwrap();
    target.deliver(&finished, Method::NoReplace).unwrap();
    assert!(has_arrived());
    fs::remove_dir_all(target.path()).unwrap();
    assert!(!has_arrived());
}

#[rstest]
fn a_folder_swapped_at_any_moment_is_noticed_and_harms_nobody(
    #[values(false, true)] early: bool,
    #[values(false, true)] for_a_directory: bool,
) {
    let attempted = attempted();
    let finished = attempted.finished();
    let canary = attempted.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("kept"), "").unwrap();
    let swap = || {
        fs::rename(&attempted.folder, attempted.dir.path().join("aside")).unwrap();
        if for_a_directory {
            fs::create_dir(&attempted.folder).unwrap();
        } else {
            symlink(&canary, &attempted.folder).unwrap();
        }
    };
    if early {
        swap();
    }
    let late = |_: &Path| {
        if !early {
            swap();
        }
    };
    let published = publish(&attempted, &finished, Method::NoReplace, late);
    assert!(matches!(published, Err(PublishError::Swapped { .. })), "{published:?}");
    assert_eq!(visible(&attempted.paths.published(DATE)), Vec::<String>::new());
    assert_eq!(visible(&canary), ["kept"]);
}
