// SPDX-License-Identifier: Apache-2.0
//! A daemon that dies exactly between two steps, at each of them in turn; its successor finishes correctly.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::thread;

use hyper2kvm::queue::failpoint::{ORDER_FILE, Step};
use rustix::process::Signal;

use crate::support::daemon::{Daemon, SOON, Site, disk};

/// What the dying daemon converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// One file.
    Alone,
    /// A descriptor and its extent.
    Group,
    /// A folder with a descriptor and its extent.
    Folder,
    /// The same, whose first attempt fails and is tried again.
    FolderRetried,
    /// The same, whose first attempt finds that the source changed.
    FolderReturned,
    /// A descriptor whose extent was converted alone before.
    TakenBack,
    /// Nothing that can be converted.
    Broken,
    /// Its first attempt fails and is tried again.
    Retried,
    /// Its first attempt finds that the source changed.
    Returned,
}

impl Case {
    /// The steps that it passes.
    fn steps(self) -> Vec<Step> {
        let claim = [
            Step::ClaimWritten,
            Step::ClaimNoted,
            Step::MembersTaken,
            Step::SubmissionNoted,
            Step::Submitted,
            Step::WorkMade,
            Step::Staged,
        ];
        let publication = [Step::PublicationNoted, Step::Published];
        let end = [Step::EndNoted, Step::Disposed, Step::Reported, Step::Tidied];
        match self {
            Self::Alone | Self::Group | Self::Folder => [&claim[..], &publication, &end].concat(),
            Self::TakenBack => [&claim[..], &publication, &end, &[Step::Superseded]].concat(),
            Self::Broken => end.to_vec(),
            Self::Retried | Self::FolderRetried => vec![Step::ParkNoted, Step::Parked, Step::TakenBack],
            Self::Returned | Self::FolderReturned => {
                vec![Step::ReturnNoted, Step::Returned, Step::Reported, Step::Tidied]
            }
        }
    }

    fn fault(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Retried | Self::FolderRetried => Some(("HYPER2KVM_TEST_FAIL", "SourceIO:1")),
            Self::Returned | Self::FolderReturned => Some(("HYPER2KVM_TEST_FAIL", "SourceChanged")),
            Self::Alone | Self::Group | Self::Folder | Self::TakenBack | Self::Broken => None,
        }
    }

    fn drop_into(self, site: &Site) -> Vec<&'static str> {
        match self {
            Self::Broken => {
                site.drop_file("vm.vhdx", &[7; 4096]);
                vec!["vm.vhdx"]
            }
            Self::Group => {
                site.drop_file("vm-flat.vmdk", &disk(1));
                site.drop_file("vm.vmdk", super::kill::flat_descriptor("vm-flat.vmdk", 128).as_bytes());
                vec!["vm-flat.vmdk", "vm.vmdk"]
            }
            Self::Folder | Self::FolderRetried | Self::FolderReturned => {
                let aside = site.dir.path().join("folder");
                fs::create_dir(&aside).unwrap();
                fs::write(aside.join("any-flat.vmdk"), disk(1)).unwrap();
                fs::write(aside.join("any.vmdk"), super::kill::flat_descriptor("any-flat.vmdk", 128)).unwrap();
                fs::rename(aside, site.queue().join("vm")).unwrap();
                vec!["any-flat.vmdk", "any.vmdk"]
            }
            Self::TakenBack => {
                site.drop_file("part.raw", &disk(1));
                let mut daemon = site.start();
                daemon.until("the part is converted", || has_ended(site, 1));
                end(&mut daemon);
                site.drop_file("vm.vmdk", super::kill::flat_descriptor("part.raw", 128).as_bytes());
                vec!["part.raw", "vm.vmdk"]
            }
            Self::Alone | Self::Retried | Self::Returned => {
                site.drop_file("vm.raw", &disk(1));
                vec!["vm.raw"]
            }
        }
    }
}

fn has_ended(site: &Site, sources: usize) -> bool {
    let is_idle = |below: &str| site.names(below).iter().all(|name| name.starts_with('.'));
    let settled = site.archived().len() + site.in_errors().len() == sources;
    settled && is_idle("queue/.processing") && is_idle("output/.work") && site.waiting().is_empty()
}

/// Dies after the step; after the restart nothing is lost or doubled.
fn survives(case: Case, step: Step) {
    let site = Site::new("out_format: raw\nretry_policy: {max_retries: 3, retry_delay: 1, backoff_multiplier: 1}");
    let order = site.output().join(".daemon").join(ORDER_FILE);
    fs::create_dir_all(order.parent().unwrap()).unwrap();
    let mut sources = case.drop_into(&site);
    sources.sort_unstable();
    fs::write(&order, format!("{step:?}")).unwrap();
    let mut daemon = site.spawn(case.fault().as_slice());
    let ended = daemon.end_within(SOON);
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()), "{case:?} {step:?}: {ended}\n{}", daemon.log());
    assert!(!order.exists());

    let mut daemon = site.start();
    daemon.until(&format!("{case:?} {step:?} ends"), || has_ended(&site, sources.len()));
    let stats = daemon.stats();
    let counted = ["total_processed", "total_failed", "total_retried", "current_queue_depth"].map(|key| &stats[key]);
    end(&mut daemon);
    let here = format!("{case:?} {step:?}: {stats}\n{}", daemon.log());
    let is_broken = case == Case::Broken;
    let is_taken_back = case == Case::TakenBack;
    let retries = u64::from(matches!(case, Case::Retried | Case::FolderRetried));
    assert_eq!(
        counted,
        [u64::from(!is_broken) + u64::from(is_taken_back), u64::from(is_broken), retries, 0]
            .map(serde_json::Value::from)
            .each_ref(),
        "{here}"
    );
    let (archived, in_errors, published) = (site.archived(), site.in_errors(), site.published());
    if is_broken {
        assert_eq!((archived, in_errors, published), (vec![], vec!["vm.vhdx".to_owned()], vec![]), "{here}");
        let error = site.error_file("vm.vhdx");
        // The last writer of the report still knew what the worker had left.
        assert!(error["reason"] == "Corrupt" && error["exception_traceback"].is_string(), "{error} {here}");
        return;
    }
    assert_eq!(
        (archived, in_errors, published),
        (
            sources.iter().map(|&n| n.to_owned()).collect(),
            vec![],
            ["part", "vm"].into_iter().filter(|name| is_taken_back || *name == "vm").map(str::to_owned).collect()
        ),
        "{here}"
    );
    let days = site.names("output");
    let day = days.iter().find(|name| !name.starts_with('.')).unwrap();
    if is_taken_back {
        let metadata = fs::read_to_string(site.output().join(day).join("part/metadata.json")).unwrap();
        assert!(metadata.contains("\"supersededBy\""), "{metadata} {here}");
        assert_eq!(stats["total_superseded"], 1, "{here}");
    }
    assert_eq!(site.names(&format!("output/{day}/vm")), ["metadata.json", "vm.raw"], "{here}");
    assert!(fs::read(site.output().join(day).join("vm/vm.raw")).unwrap() == disk(1), "{here}");
}

fn end(daemon: &mut Daemon<'_>) {
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(SOON).success());
}

#[test]
fn a_daemon_that_dies_between_any_two_steps_is_followed_by_one_that_finishes() {
    let cases = [Case::Alone, Case::Group, Case::TakenBack, Case::Broken, Case::Retried, Case::Returned];
    let folders = [Case::Folder, Case::FolderRetried, Case::FolderReturned];
    let all: Vec<(Case, Step)> = cases
        .into_iter()
        .chain(folders)
        .flat_map(|case| case.steps().into_iter().map(move |step| (case, step)))
        .collect();
    let tried: BTreeSet<String> = all.iter().map(|(_, step)| format!("{step:?}")).collect();
    assert_eq!(tried.len() + AFTERWARDS.len(), Step::ALL.len(), "a step is not tried");
    // Each spends most of its time waiting for files to settle.
    let failed: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = all.iter().map(|&(case, step)| scope.spawn(move || survives(case, step))).collect();
        running.into_iter().zip(&all).filter_map(|(one, at)| one.join().is_err().then_some(at)).collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
}

/// The steps of what is done with what ended conversions left.
const AFTERWARDS: [Step; 3] = [Step::EndedPlanNoted, Step::EndedMoved, Step::EndedGone];

#[test]
fn a_daemon_that_dies_while_it_removes_what_is_old_is_followed_by_one_that_removes_and_counts_it_once() {
    let day = ("HYPER2KVM_TEST_RETENTION_DAY_MS", "1000");
    for step in AFTERWARDS {
        let site = Site::new("retention: {processed_days: 1, errors_days: 1, outputs_days: 1}");
        let order = site.output().join(".daemon").join(ORDER_FILE);
        site.drop_file("vm.raw", &disk(1));
        site.drop_file("bad.vhdx", &[7; 4096]);
        let mut daemon = site.start();
        daemon.until("both have ended", || has_ended(&site, 2));
        end(&mut daemon);
        // Once for each kind of files.
        fs::write(&order, format!("{step:?}\n{step:?}\n{step:?}")).unwrap();
        for _ in 0..3 {
            let mut daemon = site.spawn(&[day]);
            let ended = daemon.end_within(SOON);
            assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()), "{step:?}: {ended}\n{}", daemon.log());
        }
        let daemon = site.start_with(&[day]);
        let is_gone =
            || site.archived().is_empty() && site.published().is_empty() && site.names("queue/.errors").is_empty();
        daemon.until("all is removed", is_gone);
        let kinds = ["processed", "errors", "outputs"].map(|kind| format!("total_removed_{kind}"));
        daemon.until("each is counted once", || kinds.iter().all(|kind| daemon.stats()[kind] == 1));
        for trash in ["queue/.processing/.trash", "output/.work/.trash"] {
            assert_eq!(site.names(trash), Vec::<String>::new(), "{step:?}");
        }
    }
}

#[test]
fn a_daemon_that_dies_while_it_takes_a_group_up_is_followed_by_one_that_takes_up_all_of_it() {
    for step in [Step::EndedPlanNoted, Step::EndedMoved] {
        let site = Site::new("quiet_period: 0");
        let order = site.output().join(".daemon").join(ORDER_FILE);
        site.drop_file("vm-flat.vmdk", &disk(1));
        site.drop_file("vm.vmdk", super::kill::flat_descriptor("vm-flat.vmdk", 128).as_bytes());
        let mut daemon = site.start();
        daemon.until("it is converted", || has_ended(&site, 2));
        end(&mut daemon);
        let archive = site.queue().join(".processed").join(site.names("queue/.processed").remove(0));
        fs::write(archive.join("vm-flat.vmdk"), disk(2)).unwrap();
        fs::write(&order, format!("{step:?}")).unwrap();
        let mut daemon = site.spawn(&[]);
        assert_eq!(daemon.end_within(SOON).signal(), Some(Signal::ABORT.as_raw()), "{step:?}\n{}", daemon.log());
        let daemon = site.start();
        daemon.until("it is converted again", || site.published() == ["vm", "vm-1"] && has_ended(&site, 2));
    }
}
