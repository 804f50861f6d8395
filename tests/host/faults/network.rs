// SPDX-License-Identifier: Apache-2.0
//! A queue on a volume that a server serves, as a network volume is: other writers' events and open files are not seen,
//! and the server stops, hangs and comes back. bindfs is the server: it passes another directory on through FUSE.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::hangs::{END, answers_at_once, health, is_leaving};
use crate::support::daemon::{SOON, Site, disk, until};
use crate::support::{ova, vmdk};

/// A site whose queue directory is served.
struct Served {
    site: Site,
    /// The directory on the server, where other machines write.
    other: PathBuf,
    server: RefCell<Option<Child>>,
}

impl Served {
    /// `None`, loudly, where nothing can be served.
    fn new(config: &str) -> Option<Self> {
        let site = Site::new(config);
        let other = site.dir.path().join("served");
        fs::create_dir(&other).unwrap();
        let served = Self { site, other, server: RefCell::default() };
        if served.serve() {
            return Some(served);
        }
        eprintln!("SKIPPED: a served volume: it takes root, /dev/fuse and bindfs (Debian: bindfs)");
        None
    }

    fn serve(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let before = device(&self.other);
        let started =
            Command::new("bindfs").arg("-f").args([&self.other, &self.site.queue()]).stderr(Stdio::null()).spawn();
        let Ok(mut server) = started else { return false };
        let begun = Instant::now();
        while device(&self.site.queue()).is_none_or(|served| Some(served) == before) {
            if server.try_wait().unwrap().is_some() || begun.elapsed() > SOON {
                return false;
            }
            sleep(Duration::from_millis(10));
        }
        self.server.replace(Some(server));
        true
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.server.borrow().as_ref().unwrap()), signal).unwrap();
    }

    /// The server dies; its mount stays, and answers with errors.
    fn stop(&self) {
        self.signal(Signal::KILL);
        self.server.take().unwrap().wait().unwrap();
    }

    fn unmount(&self) {
        let _ = Command::new("umount").arg("-q").arg("-l").arg(self.site.queue()).status();
    }

    /// Metadata of a published directory.
    fn metadata(&self, stem: &str) -> Value {
        serde_json::from_slice(&fs::read(self.published(stem).join("metadata.json")).unwrap()).unwrap()
    }

    fn published(&self, stem: &str) -> PathBuf {
        let day = self.site.names("output").into_iter().find(|name| !name.starts_with('.')).unwrap();
        self.site.output().join(day).join(stem)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may be stopped.
            let _ = server.kill();
            let _ = server.wait();
        }
        self.unmount();
    }
}

#[test]
fn a_writer_on_another_machine_is_waited_for_and_a_mistake_heals() {
    let Some(served) = Served::new("out_format: raw\nquiet_period: 6") else { return };
    let site = &served.site;
    let daemon = site.start();
    let whole = disk(1);
    let half = whole.len() / 2;
    // One writer stalls for less than the quiet period, one for longer; the third has preallocated all of its file.
    let mut short = File::create(served.other.join("short.raw")).unwrap();
    let mut long = File::create(served.other.join("long.raw")).unwrap();
    let mut sparse = File::create(served.other.join("sparse.raw")).unwrap();
    sparse.set_len(whole.len() as u64).unwrap();
    for file in [&mut short, &mut long, &mut sparse] {
        file.write_all(&whole[..half]).unwrap();
    }
    // The format of an OVA tells that its end is missing.
    let stream = vmdk::built(&vmdk::Sparse::stream_optimized(whole.len() as u64), &whole);
    let archive = ova::ova("vm", &[("disk1.vmdk", &stream, whole.len() as u64)]);
    let mut upload = File::create(served.other.join("vm.ova")).unwrap();
    upload.write_all(&archive[..archive.len() / 2]).unwrap();
    sleep(Duration::from_secs(3));
    for file in [&mut short, &mut sparse] {
        file.write_all(&whole[half..]).unwrap();
    }
    drop((short, sparse));
    daemon.until("three are published", || site.published() == ["long", "short", "sparse"]);
    assert_eq!(fs::read(served.published("short").join("short.raw")).unwrap(), whole);
    assert_eq!(fs::read(served.published("sparse").join("sparse.raw")).unwrap(), whole);
    assert_eq!(daemon.lines("vm.ova stands still, and its end is missing").len(), 1, "{}", daemon.log());
    // Nobody could know of the second writer. It goes on, wherever its file lies by now.
    daemon.until("the half is archived", || site.archived().contains(&"long.raw".to_owned()));
    long.seek(SeekFrom::End(0)).unwrap();
    long.write_all(&whole[half..]).unwrap();
    drop(long);
    daemon.until("it is converted again", || site.published().contains(&"long-1".to_owned()));
    assert_eq!(fs::read(served.published("long-1").join("long.raw")).unwrap(), whole);
    assert!(served.metadata("long")["sourceChangedAt"].is_string());
    upload.write_all(&archive[archive.len() / 2..]).unwrap();
    drop(upload);
    daemon.until("the OVA is published", || site.published().contains(&"vm".to_owned()));
    assert_eq!(daemon.stats()["total_failed"], 0);
}

#[test]
fn a_server_that_dies_and_comes_back_costs_no_file() {
    let Some(served) = Served::new("quiet_period: 1") else { return };
    let site = &served.site;
    let daemon = site.start();
    fs::write(served.other.join("one.raw"), disk(1)).unwrap();
    daemon.until("the first is published", || site.published() == ["one"]);
    daemon.until("it is archived", || site.archived() == ["one.raw"]);
    served.stop();
    daemon.until("it is told", || !daemon.lines("nothing is touched until it is back").is_empty());
    answers_at_once(&daemon);
    fs::write(served.other.join("two.raw"), disk(2)).unwrap();
    served.unmount();
    assert!(served.serve());
    // Its lock lies on the old mount, and on this one somebody else may have taken the lock: it begins anew.
    daemon.until("the second is published", || site.published() == ["one", "two"]);
    daemon.until("all is archived", || site.archived() == ["one.raw", "two.raw"]);
    assert_eq!((daemon.stats()["total_processed"].as_u64(), site.in_errors()), (Some(2), vec![]));
}

#[test]
fn a_server_that_hangs_holds_up_no_answer_and_no_end() {
    let Some(mut served) = Served::new("quiet_period: 1") else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    served.site.listen = Some(port);
    let mut daemon = served.site.start();
    assert_eq!(health(port).0, 200);
    served.signal(Signal::STOP);
    until("the health turns", || {
        answers_at_once(&daemon);
        health(port).0 == 503
    });
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let pid = daemon.child.id();
    until("it ends as far as the kernel lets it", || is_leaving(pid));
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    served.signal(Signal::CONT);
    daemon.end_within(END);
    drop(daemon);
    fs::write(served.other.join("vm.raw"), disk(1)).unwrap();
    let daemon = served.site.start();
    daemon.until("it is published", || served.site.published() == ["vm"]);
}
