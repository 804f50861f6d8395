// SPDX-License-Identifier: Apache-2.0
//! A power cut, as far as a test can simulate it: the traced calls of one run show that nothing is reported as
//! published, archived or counted before it is on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::trace::{self, Call};
use crate::support::daemon::{LOOK_INTERVAL, Site, until};
use crate::support::random::Random;

const CALLS: &str = "trace=openat,openat2,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,copy_file_range,\
    fsync,fdatasync,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,unlink,unlinkat,rmdir";

#[test]
fn what_is_reported_is_on_the_disk_before() {
    let Some(traced) = Traced::run() else { return };
    traced.every_file_is_synced_before_it_gets_its_name();
    traced.every_published_disk_is_synced_before_its_directory_is();
    traced.every_move_is_on_the_disk_before_the_ledger_goes_on();
    traced.every_new_directory_is_on_the_disk_before_the_ledger_goes_on();
    traced.what_undoes_a_transaction_is_on_the_disk_before_it_writes_the_ledger();
    traced.every_commit_is_on_the_disk_before_it_is_told();
}

/// The system calls of a daemon and its workers for one good and one broken source.
struct Traced {
    site: Site,
    calls: Vec<Call>,
}

impl Traced {
    fn run() -> Option<Self> {
        if Command::new("strace").arg("-V").output().is_err() {
            eprintln!("left out: the traced power cut: no strace (Debian: strace)");
            return None;
        }
        let site = Site::new("");
        let mut random = Random::seeded("power cut");
        let trace = site.dir.path().join("trace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-qq", "-s", "400", "-e", CALLS, "-e", "signal=none", "-o"]).arg(&trace);
        strace.arg(env!("CARGO_BIN_EXE_hyper2kvm")).arg("daemon");
        strace.env(LOOK_INTERVAL, "50").arg("--watch-dir").arg(site.queue()).arg("--output-dir").arg(site.output());
        strace.stdin(Stdio::null()).stderr(fs::File::create(site.dir.path().join("log")).unwrap());
        let mut strace = strace.spawn().unwrap();
        let is_archived = || site.archived() == ["vm.raw"] && site.names("queue/.errors").len() == 2;
        until("the daemon is ready", || site.output().join(".daemon/control.sock").exists());
        site.drop_file("vm.raw", &random.bytes(3 << 20));
        site.drop_file("broken.vhdx", &random.bytes(4096));
        until("both have ended", || strace.try_wait().unwrap().is_some() || is_archived());
        let daemon = fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.id())).unwrap();
        let daemon = rustix::process::Pid::from_raw(daemon.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(daemon, Signal::TERM).unwrap();
        let status = strace.wait().unwrap();
        assert!(status.success(), "{}", fs::read_to_string(site.dir.path().join("log")).unwrap());
        let calls = trace::read(&fs::read_to_string(&trace).unwrap());
        assert_eq!(site.disks(), ["vm.qcow2"]);
        Some(Self { site, calls })
    }

    fn database(&self) -> PathBuf {
        self.site.output().join(".daemon/deduplication.db")
    }

    fn journal(&self) -> PathBuf {
        self.site.output().join(".daemon/deduplication.db-journal")
    }

    /// Whether the file must survive a power cut: snapshots and heartbeats are written anew after one.
    fn is_promised(&self, path: &Path) -> bool {
        let inside = path.starts_with(self.site.queue()) || path.starts_with(self.site.output());
        let passing = ["progress.json", "stats.json", "owner", ".probe", "control.sock", "-journal", ".lock"];
        inside && !passing.iter().any(|part| path.to_string_lossy().contains(part))
    }

    /// Whether the file or directory was synced completely between these moments.
    fn is_synced(&self, path: &Path, after: usize, before: usize) -> bool {
        self.calls.iter().any(|call| call.syncs() && call.is_of(path) && call.began > after && call.ended < before)
    }

    /// Whether a move is a worker's: one within a work directory.
    fn is_of_a_worker(&self, call: &Call) -> bool {
        let work = self.site.output().join(".work");
        call.paths.iter().all(|path| path.starts_with(&work))
    }

    /// Whether the process that made a call synced this afterwards.
    fn is_synced_by_its_maker(&self, path: &Path, call: &Call) -> bool {
        let mut later = self.calls.iter().filter(|later| later.thread == call.thread && later.began > call.ended);
        later.any(|later| later.syncs() && later.is_of(path))
    }

    /// When the ledger is written for the first time after a moment.
    fn next_commit(&self, after: usize) -> usize {
        let database = self.database();
        let writes = self.calls.iter().filter(|call| call.writes() && call.is_of(&database));
        writes.map(|call| call.began).find(|began| *began > after).unwrap_or(usize::MAX)
    }

    fn last_write(&self, path: &Path, before: usize) -> Option<usize> {
        let writes = self.calls.iter().filter(|call| call.writes() && call.is_of(path));
        writes.map(|call| call.ended).filter(|ended| *ended < before).max()
    }

    fn every_file_is_synced_before_it_gets_its_name(&self) {
        let mut seen = 0;
        for call in self.calls.iter().filter(|call| call.moves()) {
            let [from, to] = call.paths.as_slice() else { panic!("{call:?}") };
            if !self.is_promised(to) {
                continue;
            }
            if let Some(written) = self.last_write(from, call.began) {
                seen += 1;
                assert!(self.is_synced(from, written, call.began), "not synced before: {call:?}");
            }
        }
        // claim.json twice, metadata.json, failure.json or its like, error.json.
        assert!(seen >= 4, "only {seen} files were written and renamed");
    }

    fn every_published_disk_is_synced_before_its_directory_is(&self) {
        let is_publication = |call: &&Call| call.moves() && call.paths[0].ends_with("worker");
        let [publication] = self.calls.iter().filter(is_publication).collect::<Vec<_>>()[..] else {
            panic!("not one publication")
        };
        let folder = &publication.paths[0];
        let disk = folder.join("vm.qcow2");
        let written = self.last_write(&disk, publication.began).expect("the disk is written");
        assert!(self.is_synced(&disk, written, publication.began), "the disk is not synced");
        let within = |call: &&Call| {
            (call.creates() || call.moves() || call.removes())
                && call.ended < publication.began
                && call.paths.iter().any(|path| path.parent() == Some(folder))
        };
        let changed = self.calls.iter().filter(within).map(|call| call.ended).max().expect("the folder is written");
        assert!(self.is_synced(folder, changed, publication.began), "the folder is not synced");
        let work = folder.parent().unwrap();
        let made = self.calls.iter().find(|call| call.creates() && call.is_of(folder)).expect("the folder is made");
        assert!(self.is_synced(work, made.ended, publication.began), "the work directory is not synced");
    }

    fn every_move_is_on_the_disk_before_the_ledger_goes_on(&self) {
        let mut seen = 0;
        for call in self.calls.iter().filter(|call| call.moves() && self.is_promised(&call.paths[1])) {
            if call.paths[0].starts_with(self.site.dir.path().join("aside")) {
                continue;
            }
            seen += 1;
            let before = self.next_commit(call.ended);
            let parents = if call.paths[0].parent() == call.paths[1].parent() { 1..2 } else { 0..2 };
            for path in &call.paths[parents] {
                let parent = path.parent().unwrap();
                // The ledger relies on a worker's moves once the worker has ended, and on all others at any moment.
                let is_synced = if self.is_of_a_worker(call) {
                    self.is_synced_by_its_maker(parent, call)
                } else {
                    self.is_synced(parent, call.ended, before)
                };
                assert!(is_synced, "{} is not synced after {call:?}", parent.display());
            }
        }
        // Two sources into their claims and out of them, one publication, and the small files.
        assert!(seen >= 9, "only {seen} moves");
    }

    fn every_new_directory_is_on_the_disk_before_the_ledger_goes_on(&self) {
        let work = self.site.output().join(".work");
        for call in self.calls.iter().filter(|call| call.name.starts_with("mkdir") && self.is_promised(&call.paths[0]))
        {
            let path = &call.paths[0];
            // Without an attempt's directory, nothing was published and the attempt is repeated; with it, the
            // publication checks its folder.
            if path.starts_with(&work) && *path != work {
                continue;
            }
            let parent = path.parent().unwrap();
            let before = self.next_commit(call.ended);
            assert!(self.is_synced(parent, call.ended, before), "{} is not synced after {call:?}", parent.display());
        }
    }

    fn what_undoes_a_transaction_is_on_the_disk_before_it_writes_the_ledger(&self) {
        let (database, journal) = (self.database(), self.journal());
        let made = self.calls.iter().find(|call| call.creates() && call.is_of(&journal)).expect("a journal is made");
        assert!(self.is_synced(journal.parent().unwrap(), made.ended, self.next_commit(made.ended)), "it has no name");
        for call in self.calls.iter().filter(|call| call.writes() && call.is_of(&database)) {
            let written = self.last_write(&journal, call.began).expect("the journal is written first");
            assert!(self.is_synced(&journal, written, call.began), "the journal is not synced before {call:?}");
        }
        // Its signature and the number of its pages make it valid, so the pages must be there before.
        let makes_it_count = |call: &&Call| call.is_of(&journal) && call.arguments.ends_with(", 12, 0");
        let heads: Vec<&Call> = self.calls.iter().filter(makes_it_count).collect();
        assert!(heads.len() > 4, "{} transactions", heads.len());
        for head in heads {
            let written = self.last_write(&journal, head.began).expect("its pages are written first");
            assert!(self.is_synced(&journal, written, head.began), "the pages are not synced before {head:?}");
        }
    }

    fn every_commit_is_on_the_disk_before_it_is_told(&self) {
        let (database, journal) = (self.database(), self.journal());
        // The commit is the end of the journal: 28 zeros over its head make it invalid.
        let is_commit = |call: &&Call| call.is_of(&journal) && call.blanks(28);
        let commits: Vec<&Call> = self.calls.iter().filter(is_commit).collect();
        assert!(commits.len() > 4, "{} commits", commits.len());
        let written = self.calls.iter().filter(|call| call.writes() && call.is_of(&database)).map(|call| call.ended);
        let begun = commits.first().map_or(0, |first| first.ended);
        assert!(
            written.filter(|at| *at > begun).all(|at| commits.iter().any(|c| c.began > at)),
            "written after the last"
        );
        for commit in &commits {
            let written = self.last_write(&database, commit.began).expect("a transaction writes the database");
            assert!(self.is_synced(&database, written, commit.began), "not synced before {commit:?}");
            let next = self.next_commit(commit.ended);
            assert!(self.is_synced(&journal, commit.ended, next), "not synced after {commit:?}");
        }
        for (told, moved) in [("Completed: vm.raw", "worker"), ("Failed: broken.vhdx", "broken.vhdx")] {
            let line = |call: &&Call| call.name == "write" && call.arguments.contains(told);
            let line = self.calls.iter().find(line).unwrap_or_else(|| panic!("nobody says {told}"));
            let is_before = |call: &&&Call| call.ended < line.began;
            let commit = commits.iter().rfind(is_before).expect("a commit before");
            let done = self.calls.iter().find(|call| call.moves() && call.paths[0].ends_with(moved)).unwrap();
            assert!(done.ended < commit.began, "{told} before its commit");
            assert!(self.is_synced(&journal, commit.ended, line.began), "{told} before its commit lasts");
        }
        let counted = |call: &&Call| {
            call.name.starts_with("write") && call.arguments.contains("total_processed\\\": 1")
                || call.arguments.contains("total_processed\\\":1")
        };
        let counted = self.calls.iter().find(counted).expect("stats.json is written");
        let published = self.calls.iter().find(|c| c.moves() && c.paths[0].ends_with("worker")).unwrap();
        let commit = commits.iter().find(|commit| commit.began > published.ended).expect("the count is committed");
        assert!(self.is_synced(&journal, commit.ended, counted.began), "counted before its commit lasts");
    }
}
