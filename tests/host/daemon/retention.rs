// SPDX-License-Identifier: Apache-2.0
//! What ended conversions left goes by its age, and nothing else does.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

use super::groups::{CAPACITY, stream_optimized};
use crate::support::daemon::{Daemon, SOON, Site, disk};
use crate::support::ova;

/// A day of retention that lasts two seconds.
const SHORT_DAY: (&str, &str) = ("HYPER2KVM_TEST_RETENTION_DAY_MS", "2000");

/// Longer than such a day, and a round over everything after it.
const LONG: Duration = Duration::from_secs(6);

fn end(mut daemon: Daemon<'_>) {
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(SOON).success());
}

/// The only directory of a day below this one.
fn day(site: &Site, below: &str) -> PathBuf {
    let day = site.names(below).into_iter().find(|name| !name.starts_with('.')).unwrap();
    site.dir.path().join(below).join(day)
}

#[test]
fn each_kind_of_files_goes_at_its_age_and_nobody_elses() {
    let site = Site::new("");
    let daemon = site.start();
    site.drop_file("vm.raw", &disk(1));
    site.drop_file("bad.vhdx", &[7; 4096]);
    daemon.until("one is archived", || site.archived() == ["vm.raw"]);
    daemon.until("one has failed", || site.names("queue/.errors") == ["bad.vhdx", "bad.vhdx.error.json"]);
    end(daemon);
    let (archive, published) = (day(&site, "queue/.processed"), day(&site, "output"));
    for stranger in [archive.join("notes.raw"), site.queue().join(".errors/notes.raw"), published.join("notes.txt")] {
        fs::write(stranger, "not ours").unwrap();
    }
    fs::create_dir(published.join("mine")).unwrap();
    site.configure("retention: {processed_days: 1, errors_days: 1, outputs_days: 1}");
    let daemon = site.start_with(&[SHORT_DAY]);
    daemon.until("the source is removed", || site.archived() == ["notes.raw"]);
    daemon.until("what failed is removed", || site.names("queue/.errors") == ["notes.raw"]);
    daemon.until("the output is removed", || site.published() == ["mine", "notes.txt"]);
    let kinds = ["processed", "errors", "outputs"].map(|kind| format!("total_removed_{kind}"));
    daemon.until("all is counted", || kinds.iter().all(|kind| daemon.stats()[kind] == 1));
    let stats = daemon.stats();
    assert!(stats["total_removed_bytes"].as_u64().unwrap() >= (disk(1).len() + 4096) as u64, "{stats}");
    assert_eq!(daemon.lines("retention removed ").len(), 3, "{}", daemon.log());
    // It is no duplicate of something that is gone.
    site.configure("");
    site.write_config();
    daemon.signal(Signal::HUP);
    daemon.until("nothing more is removed", || !daemon.lines("applied=\"retention\"").is_empty());
    site.drop_file("vm.raw", &disk(1));
    daemon.until("it is converted again", || site.published().contains(&"vm".to_owned()));
    sleep(LONG);
    assert_eq!(site.archived(), ["notes.raw", "vm.raw"]);
}

#[test]
fn the_last_copy_of_a_machine_is_kept_where_one_kind_has_a_limit() {
    for (limit, is_source_kept) in [("outputs_days", false), ("processed_days", true)] {
        let site = Site::new(&format!("retention: {{{limit}: 1}}"));
        let daemon = site.start();
        for name in ["whole.raw", "half.raw"] {
            site.drop_file(name, &disk(u8::try_from(name.len()).unwrap()));
        }
        daemon.until("both are archived", || site.archived() == ["half.raw", "whole.raw"]);
        end(daemon);
        if is_source_kept {
            fs::remove_dir_all(day(&site, "output").join("half")).unwrap();
        } else {
            fs::remove_file(day(&site, "queue/.processed").join("half.raw")).unwrap();
        }
        let daemon = site.start_with(&[SHORT_DAY]);
        daemon.until("one is held", || daemon.lines("so that its").len() == 1);
        daemon.until("the other goes", || daemon.lines("retention removed ").len() == 1);
        sleep(LONG);
        let (sources, outputs): (&[&str], &[&str]) =
            if is_source_kept { (&["half.raw"], &["whole"]) } else { (&["whole.raw"], &["half"]) };
        assert_eq!((site.archived(), site.published()), (own(sources), own(outputs)), "{}", daemon.log());
    }
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn a_superseded_output_goes_only_while_what_supersedes_it_is_there() {
    for is_there in [true, false] {
        let site = Site::new("");
        let daemon = site.start();
        site.drop_file("vm-1.vmdk", &stream_optimized(1));
        daemon.until("the disk is converted alone", || site.archived() == ["vm-1.vmdk"]);
        site.drop_file("vm.ovf", ova::ovf(&[("vm-1.vmdk", CAPACITY)]).as_bytes());
        daemon.until("the whole is archived", || site.archived() == ["vm-1.vmdk", "vm.ovf"]);
        end(daemon);
        if !is_there {
            fs::remove_dir_all(day(&site, "output").join("vm")).unwrap();
        }
        site.configure("retention: {processed_days: 1, errors_days: 1, outputs_days: 1}");
        let daemon = site.start_with(&[SHORT_DAY]);
        daemon.until("the sources go", || site.archived().is_empty());
        if is_there {
            daemon.until("both outputs go", || site.published().is_empty());
            let removed = daemon.lines("retention removed ");
            let part = removed.iter().position(|line| line.ends_with("/vm-1\"") || line.contains("/vm-1 ")).unwrap();
            let whole = removed.iter().position(|line| line.ends_with("/vm\"") || line.contains("/vm ")).unwrap();
            assert!(part < whole, "{removed:?}");
        } else {
            daemon.until("it is held", || daemon.lines("what supersedes its output is not there").len() == 1);
            sleep(LONG);
            assert_eq!(site.published(), ["vm-1"]);
        }
    }
}

#[test]
fn an_output_that_somebody_uses_or_put_files_into_stays() {
    let site = Site::new("retention: {processed_days: 1, outputs_days: 1}");
    let daemon = site.start();
    for name in ["open.raw", "ran.raw", "notes.raw", "idle.raw"] {
        site.drop_file(name, &disk(name.as_bytes()[0]));
    }
    daemon.until("all are archived", || site.archived().len() == 4);
    end(daemon);
    let output = day(&site, "output");
    fs::write(output.join("notes/notes.txt"), "mine").unwrap();
    let open = File::options().append(true).open(output.join("open/open.qcow2")).unwrap();
    File::options().append(true).open(output.join("ran/ran.qcow2")).unwrap().write_all(&[0; 512]).unwrap();
    let daemon = site.start_with(&[SHORT_DAY]);
    daemon.until("the idle one goes", || site.published() == ["notes", "open", "ran"]);
    daemon.until("the sources go", || site.archived().is_empty());
    sleep(LONG);
    assert_eq!(site.published(), ["notes", "open", "ran"], "{}", daemon.log());
    assert_eq!(site.names(output.join("notes").to_str().unwrap()), ["metadata.json", "notes.qcow2", "notes.txt"]);
    drop(open);
    daemon.until("what is closed goes", || site.published() == ["notes", "ran"]);
}

/// A folder of one machine, moved into the queue.
fn drop_folder(site: &Site, name: &str, files: &[(&str, &[u8])]) {
    let folder = site.dir.path().join("elsewhere").join(name);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::rename(&folder, site.queue().join(name)).unwrap();
}

/// What lies in the archive's days: folders, here.
fn archived(site: &Site) -> Vec<String> {
    let days = site.names("queue/.processed").into_iter();
    days.flat_map(|day| site.names(&format!("queue/.processed/{day}"))).collect()
}

#[test]
fn a_folder_goes_with_its_machine_and_what_else_lies_in_it_stays() {
    let site = Site::new("");
    let daemon = site.start();
    let ovf = ova::ovf(&[("disk1.vmdk", CAPACITY)]);
    for (name, n) in [("web01", 1), ("web02", 2)] {
        let image = stream_optimized(n);
        drop_folder(&site, name, &[("vm.ovf", ovf.as_bytes()), ("Virtual Hard Disks/disk1.vmdk", &image)]);
    }
    drop_folder(&site, "bad", &[("vm.vhdx", &[7; 4096]), ("notes.txt", b"kept with it")]);
    daemon.until("both are archived", || archived(&site) == ["web01", "web02"]);
    daemon.until("one has failed", || site.names("queue/.errors") == ["bad", "bad.error.json"]);
    end(daemon);
    let archive = day(&site, "queue/.processed");
    fs::write(archive.join("web02/Virtual Hard Disks/notes.txt"), "mine").unwrap();
    site.configure("retention: {processed_days: 1, errors_days: 1, outputs_days: 1}");
    let daemon = site.start_with(&[SHORT_DAY]);
    daemon.until("what failed is removed, but for what no disk needs", || site.names("queue/.errors") == ["bad"]);
    assert_eq!(site.names("queue/.errors/bad"), ["notes.txt"]);
    daemon.until("the outputs are removed", || site.published().is_empty());
    daemon.until("the sources are removed", || archived(&site) == ["web02"]);
    sleep(LONG);
    assert_eq!(site.names(archive.join("web02").to_str().unwrap()), ["Virtual Hard Disks"], "{}", daemon.log());
    let left = site.names(archive.join("web02/Virtual Hard Disks").to_str().unwrap());
    assert_eq!(left, ["notes.txt"], "{}", daemon.log());
}

#[test]
fn the_last_copy_of_a_folder_is_kept() {
    let site = Site::new("retention: {processed_days: 1}");
    let daemon = site.start();
    for (name, n) in [("whole", 1), ("half", 2)] {
        drop_folder(&site, name, &[("a.raw", &disk(n)), ("b.raw", &disk(n + 2))]);
    }
    daemon.until("both are archived", || archived(&site) == ["half", "whole"]);
    end(daemon);
    let half = day(&site, "output").join("half");
    fs::remove_file(half.join("half-disk1.qcow2")).unwrap();
    let daemon = site.start_with(&[SHORT_DAY]);
    daemon.until("one is held", || daemon.lines("so that its").len() == 1);
    daemon.until("the other goes", || archived(&site) == ["half"]);
    sleep(LONG);
    let kept = day(&site, "queue/.processed").join("half");
    assert_eq!(site.names(kept.to_str().unwrap()), ["a.raw", "b.raw"], "{}", daemon.log());
}

#[test]
fn a_restart_between_a_folder_and_its_removal_removes_it() {
    let site = Site::new("");
    let daemon = site.start();
    drop_folder(&site, "web01", &[("a.raw", &disk(1))]);
    daemon.until("it is archived", || archived(&site) == ["web01"]);
    end(daemon);
    site.configure("retention: {processed_days: 1}");
    for _ in 0..3 {
        let mut daemon = site.start_with(&[SHORT_DAY]);
        sleep(Duration::from_millis(1500));
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
    }
    let daemon = site.start_with(&[SHORT_DAY]);
    daemon.until("it is removed", || archived(&site).is_empty());
    daemon.until("and counted once", || daemon.stats()["total_removed_processed"] == 1);
    assert_eq!(site.names("queue/.processing/.trash"), Vec::<String>::new());
}
