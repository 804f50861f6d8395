// SPDX-License-Identifier: Apache-2.0
//! Files that may not be moved, for their attributes or a sticky directory: they fail, stay, and keep nobody from being
//! converted. Needs root, and a file system with attributes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::daemon::{Daemon, Site, disk};

/// More than are claimed at once: slots, and those ahead.
const MANY: u8 = 40;

fn names() -> Vec<String> {
    (0..MANY).map(|n| format!("fixed{n:02}.raw")).collect()
}

/// `false`, loudly, where files have no attributes.
fn change(attribute: &str, dir: &Path, names: &[String]) -> bool {
    let paths = names.iter().map(|name| dir.join(name));
    let is_done = Command::new("chattr").arg(attribute).args(paths).output().is_ok_and(|done| done.status.success());
    if !is_done {
        eprintln!("left out: files that may not be moved: no chattr {attribute} in {}", dir.display());
    }
    is_done
}

/// Takes the attribute away again, so that the directory can be removed.
struct Fixed<'a>(&'a Site);

impl Drop for Fixed<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-i"]).arg(self.0.queue()).output();
    }
}

fn stop(mut daemon: Daemon<'_>) {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end_within(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn immovable_files_fail_where_they_lie_and_are_converted_once_they_may_be_moved() {
    let site = Site::new("");
    let _fixed = Fixed(&site);
    for (n, name) in (0..).zip(names()) {
        fs::write(site.queue().join(name), disk(n)).unwrap();
    }
    if !change("+i", &site.queue(), &names()) {
        return;
    }
    let daemon = site.start();
    site.drop_file("good.raw", &disk(99));
    daemon.until("the good one is converted", || site.archived() == ["good.raw"]);
    daemon.until("all others have failed", || daemon.stats()["total_failed"] == MANY);
    let report = site.error_file("fixed00.raw");
    assert_eq!((&report["reason"], &report["class"]), (&"PermissionDenied".into(), &"Configuration".into()));
    assert!(report["suggestion"].as_str().unwrap().contains("chattr -i"), "{report}");
    assert_eq!(site.waiting(), names());
    let told = |daemon: &Daemon<'_>| daemon.lines("❌ Failed: fixed").len();
    assert_eq!(told(&daemon), usize::from(MANY));
    daemon.until("nothing waits", || daemon.status("queue_depth") == 0);
    stop(daemon);

    // A restart finds them as they were: there is nothing new to tell.
    let daemon = site.start();
    site.drop_file("next.raw", &disk(98));
    daemon.until("the next good one is converted", || site.archived() == ["good.raw", "next.raw"]);
    daemon.until("nothing waits", || daemon.status("queue_depth") == 0 && daemon.status("active_jobs") == 0);
    assert_eq!((told(&daemon), &daemon.stats()["total_failed"]), (0, &MANY.into()));
    assert!(change("-i", &site.queue(), &names()));
    daemon.until("all are converted", || site.waiting().is_empty() && site.archived().len() == usize::from(MANY) + 2);
    daemon.until("nothing is said of them any more", || site.names("queue/.errors").is_empty());
}

#[test]
fn anothers_files_in_a_sticky_directory_fail_and_are_converted_once_it_is_none() {
    // A user of no rights, as the service has.
    const USER: &str = "65534";
    let site = Site::new("");
    for dir in [site.dir.path().to_owned(), site.queue(), site.output()] {
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let privileged = ["--reuid", USER, "--regid", USER, "--clear-groups"];
    let Some(daemon) = site.spawn_by("setpriv", &privileged) else {
        eprintln!("left out: a sticky directory: no setpriv");
        return;
    };
    daemon.until("it answers", || daemon.try_ask("status").is_some());
    site.drop_file("anothers.raw", &disk(0));
    daemon.until("it fails", || daemon.stats()["total_failed"] == 1);
    assert_eq!(site.waiting(), ["anothers.raw"]);
    fs::set_permissions(site.queue(), fs::Permissions::from_mode(0o777)).unwrap();
    daemon.until("it is converted", || site.archived() == ["anothers.raw"]);
}

#[test]
fn a_folder_that_the_daemon_may_not_write_to_fails_where_it_lies_and_is_converted_once_it_may() {
    const USER: &str = "65534";
    let site = Site::new("");
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    for dir in [site.dir.path().to_owned(), site.queue(), site.output()] {
        fs::create_dir_all(&dir).unwrap();
        open(&dir);
    }
    let privileged = ["--reuid", USER, "--regid", USER, "--clear-groups"];
    let Some(daemon) = site.spawn_by("setpriv", &privileged) else {
        eprintln!("left out: a folder that may not be moved: no setpriv");
        return;
    };
    let folder = site.queue().join("web01");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("vm.raw"), disk(1)).unwrap();
    let is_told = || site.queue().join(".errors/web01.error.json").exists();
    daemon.until("it has failed", || is_told() && daemon.stats()["total_failed"] == 1);
    let report = site.error_file("web01");
    assert_eq!(report["reason"], "PermissionDenied", "{report}");
    assert!(report["suggestion"].as_str().unwrap().contains("let it write to the folder"), "{report}");
    assert_eq!(site.waiting(), ["web01"]);
    open(&folder);
    daemon.until("it is converted", || site.published() == ["web01"] && site.archived() == ["vm.raw"]);
    daemon.until("nothing is said of it any more", || !is_told());
    assert_eq!(daemon.stats()["total_failed"], 1);
}
