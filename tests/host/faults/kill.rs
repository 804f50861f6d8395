// SPDX-License-Identifier: Apache-2.0
//! `kill -9` at random moments, of the daemon and of its children: nothing is lost, nothing left half done, nothing
//! counted twice. `HYPER2KVM_KILLS` sets the number of kills.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::support::daemon::{Daemon, SOON, Site};
use crate::support::random::{Random, number};

/// Conversions in a run.
const FILES: usize = 50;

const KILLS: u64 = 10;

/// Longest time from work to a kill, where there are few kills; many are spread over the time that fifty conversions
/// take. The eleventh kill of one conversion ends it in `.errors/`, as it should.
const LATEST: Duration = Duration::from_millis(600);

/// A killed child is a counted failure, so there must be enough retries for all of them.
const CONFIG: &str = "out_format: raw
retry_policy: {max_retries: 100, retry_delay: 1, backoff_multiplier: 1}";

#[test]
fn a_daemon_killed_at_any_moment_loses_nothing_and_counts_everything_once() {
    let mut run = Run::new("kills of the daemon");
    let mut left = number("HYPER2KVM_KILLS").unwrap_or(KILLS);
    let latest = u64::try_from(LATEST.as_millis()).unwrap() * 20 / left.max(20);
    let mut killed = 0;
    while left > 0 {
        run.drop_files();
        while left > 0 {
            let daemon = run.site.spawn(&[]);
            // Some die while they start, the others while they work.
            if run.random.below(4) == 0 {
                sleep(Duration::from_millis(run.random.below(150)));
            } else if wait_for_work(&run, &daemon) {
                daemon.until("it answers", || daemon.try_ask("status").is_some());
                sleep(Duration::from_millis(run.random.below(latest)));
            } else {
                break;
            }
            drop(daemon);
            killed += 1;
            left -= 1;
            run.check_places();
            run.check_published();
        }
        if run.has_ended() {
            continue;
        }
        let mut daemon = run.site.start();
        daemon.until("the run ends", || run.has_ended());
        daemon.signal(Signal::TERM);
        assert!(daemon.end_within(SOON).success());
    }
    run.check_end(killed);
}

#[test]
fn children_killed_at_any_moment_are_started_again_until_all_is_done() {
    let mut run = Run::new("kills of children");
    let mut left = number("HYPER2KVM_KILLS").unwrap_or(KILLS);
    while left > 0 {
        run.drop_files();
        let mut daemon = run.site.start();
        while left > 0 && wait_for_work(&run, &daemon) {
            sleep(Duration::from_millis(run.random.below(20)));
            left -= u64::from(kill_child(&daemon, &mut run.random));
        }
        daemon.until("the run ends", || run.has_ended());
        daemon.signal(Signal::TERM);
        assert!(daemon.end_within(SOON).success());
        run.check_places();
    }
    run.check_end(0);
}

#[test]
fn a_signal_right_after_the_first_answer_is_obeyed() {
    let site = Site::new("");
    for _ in 0..10 {
        let mut daemon = site.spawn(&[]);
        // Not a moment later: the time of the kill matters.
        while daemon.try_ask("status").is_none() {
            std::thread::yield_now();
        }
        daemon.signal(Signal::TERM);
        let status = daemon.end_within(SOON);
        assert!(status.success(), "{status}");
    }
}

/// Waits until something is claimed. `false` where everything ended before.
fn wait_for_work(run: &Run, daemon: &Daemon<'_>) -> bool {
    let begun = Instant::now();
    while run.site.names("queue/.processing").iter().all(|name| name.starts_with('.')) {
        if run.has_ended() {
            return false;
        }
        assert!(begun.elapsed() < SOON, "nothing is claimed:\n{}", daemon.log());
        sleep(Duration::from_millis(5));
    }
    true
}

fn kill_child(daemon: &Daemon<'_>, random: &mut Random) -> bool {
    let workers = daemon.workers();
    if workers.is_empty() {
        return false;
    }
    let chosen = workers[usize::try_from(random.below(workers.len() as u64)).unwrap()];
    let Ok(child) = pidfd_open(Pid::from_raw(chosen.cast_signed()).unwrap(), PidfdFlags::empty()) else { return false };
    // Checked after the descriptor was opened: it is still the daemon's child, so the PID was not reused.
    daemon.workers().contains(&chosen) && pidfd_send_signal(child, Signal::KILL).is_ok()
}

/// Runs of fifty conversions on one site, and the expected results.
struct Run {
    site: Site,
    random: Random,
    /// Content of every disk that is to be converted, by the name of its source.
    disks: BTreeMap<String, Vec<u8>>,
    /// Everything that was dropped.
    names: BTreeSet<String>,
    /// Sources that no retry can convert.
    broken: BTreeSet<String>,
    runs: usize,
}

impl Run {
    fn new(test: &str) -> Self {
        let (disks, names, broken) = Default::default();
        Self { site: Site::new(CONFIG), random: Random::seeded(test), disks, names, broken, runs: 0 }
    }

    fn drop_files(&mut self) {
        for n in 0..FILES {
            let stem = format!("run{}-{n}", self.runs);
            let sectors = 64 + self.random.below(1024);
            let disk = self.random.bytes(usize::try_from(sectors * 512).unwrap());
            if n % 8 == 0 {
                let extent = format!("{stem}-flat.vmdk");
                self.put(&extent, &disk);
                self.put(&format!("{stem}.vmdk"), flat_descriptor(&extent, sectors).as_bytes());
                self.disks.insert(format!("{stem}.vmdk"), disk);
            } else {
                self.put(&format!("{stem}.raw"), &disk);
                self.disks.insert(format!("{stem}.raw"), disk);
            }
        }
        let broken = format!("run{}-broken.vhdx", self.runs);
        let content = self.random.bytes(4096);
        self.put(&broken, &content);
        self.broken.insert(broken);
        self.runs += 1;
    }

    fn put(&mut self, name: &str, content: &[u8]) {
        self.site.drop_file(name, content);
        self.names.insert(name.to_owned());
    }

    fn has_ended(&self) -> bool {
        self.site.waiting().is_empty()
            && self.site.names("queue/.processing").iter().all(|name| name.starts_with('.'))
            && self.archived().len() + self.in_errors().len() == self.names.len()
            // Except those that wait for a retry.
            && self.in_errors().iter().all(|name| self.is_final(name))
    }

    fn archived(&self) -> Vec<String> {
        visible(self.site.archived())
    }

    fn in_errors(&self) -> Vec<String> {
        visible(self.site.in_errors())
    }

    fn is_final(&self, name: &str) -> bool {
        // A group's report lies beside its descriptor.
        let primary = name.replace("-flat.vmdk", ".vmdk");
        let report = self.site.queue().join(format!(".errors/{primary}.error.json"));
        let report = fs::read(report).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        report.is_some_and(|report| report["retry_info"]["next_retry_at"].is_null())
    }

    /// Every source lies in exactly one place, whatever has just been killed.
    fn check_places(&self) {
        let mut found = Vec::new();
        walk(&self.site.queue(), &mut |path| {
            // Left by a daemon that was killed while it tried the directory.
            if path.to_string_lossy().contains("/.probe-") {
                return;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            if self.names.contains(name) {
                found.push(name.to_owned());
            } else {
                let is_known = name == "claim.json" || name.ends_with(".error.json") || name.starts_with('.');
                assert!(is_known, "what is {}?", path.display());
            }
        });
        found.sort();
        assert_eq!(found, self.names.iter().cloned().collect::<Vec<_>>());
    }

    /// Published directories by the name of their source; each is whole.
    fn check_published(&self) -> BTreeMap<String, PathBuf> {
        let mut published = BTreeMap::new();
        for day in self.site.names("output").iter().filter(|name| !name.starts_with('.')) {
            for stem in self.site.names(&format!("output/{day}")) {
                let dir = self.site.output().join(day).join(&stem);
                let metadata = fs::read(dir.join("metadata.json")).unwrap();
                let metadata: Value = serde_json::from_slice(&metadata).unwrap();
                let source = metadata["source"]["name"].as_str().unwrap().to_owned();
                let [disk] = metadata["disks"].as_array().unwrap().as_slice() else {
                    panic!("not one disk: {metadata}")
                };
                let disk = disk["file"].as_str().unwrap();
                assert_eq!(self.site.names(&format!("output/{day}/{stem}")), ["metadata.json", disk]);
                let same = fs::read(dir.join(disk)).unwrap() == self.disks[&source];
                assert!(same, "{} is not what was dropped", dir.display());
                assert_eq!(published.insert(source, dir), None, "published twice");
            }
        }
        published
    }

    fn check_end(&self, kills: usize) {
        let mut daemon = self.site.start();
        let stats = daemon.stats();
        daemon.signal(Signal::TERM);
        assert!(daemon.end_within(SOON).success());
        self.check_places();

        let published: Vec<String> = self.check_published().into_keys().collect();
        let failed: Vec<String> = self.in_errors();
        let disrupted: Vec<&String> = failed.iter().filter(|name| !self.broken.contains(*name)).collect();
        assert!(disrupted.len() * 11 <= kills * 3, "failed for good: {disrupted:?}");
        for name in disrupted.iter().filter(|name| self.disks.contains_key(**name)) {
            assert_eq!(self.site.error_file(name)["reason"], "DisruptedTooOften", "{name}");
        }
        let wanted: Vec<String> = self.disks.keys().filter(|name| !failed.contains(name)).cloned().collect();
        assert_eq!(published, wanted);
        let archived: Vec<String> = self.names.iter().filter(|name| !failed.contains(name)).cloned().collect();
        let mut found = self.archived();
        found.sort();
        assert_eq!(found, archived);

        let of_ended = failed.iter().filter(|n| self.broken.contains(*n) || self.disks.contains_key(*n)).count();
        assert_eq!(stats["total_processed"], wanted.len());
        assert_eq!(stats["total_failed"], of_ended);
        assert_eq!(stats["current_queue_depth"], 0);
        let by_type = stats["by_file_type"].as_object().unwrap();
        let sum: u64 = by_type.values().map(|of| of["processed"].as_u64().unwrap()).sum();
        assert_eq!(sum, wanted.len() as u64);

        let ledger = rusqlite::Connection::open(self.site.output().join(".daemon/deduplication.db")).unwrap();
        let count = |sql: &str| ledger.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(
            count("SELECT count(*) FROM processed_files WHERE status = 'success'"),
            i64::try_from(wanted.len()).unwrap()
        );
        assert_eq!(count("SELECT count(*) FROM conversions"), 0);
        assert_eq!(visible(self.site.names("queue/.processing")), Vec::<String>::new());
        assert_eq!(visible(self.site.names("output/.work")), Vec::<String>::new());
        eprintln!("{} runs, {} published, {} disrupted too often", self.runs, wanted.len(), disrupted.len());
    }
}

fn visible(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| !name.starts_with('.'));
    names
}

pub(super) fn flat_descriptor(extent: &str, sectors: u64) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
         # Extent description\nRW {sectors} FLAT \"{extent}\" 0\n\n# The Disk Data Base\n#DDB\n\
         ddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"7\"\n"
    )
}

fn walk(dir: &Path, see: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), see);
        } else {
            see(&entry.path());
        }
    }
}
