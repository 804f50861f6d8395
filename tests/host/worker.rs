// SPDX-License-Identifier: Apache-2.0
//! `hyper2kvm worker`: its contract with the process that starts it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

mod steps;

/// A claim of one raw disk, and an empty work directory.
pub(crate) struct Bench {
    pub(crate) place: TempDir,
    member: PathBuf,
}

impl Bench {
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let place = tempfile::tempdir().unwrap();
        for directory in ["claim", "work"] {
            fs::create_dir(place.path().join(directory)).unwrap();
        }
        let member = place.path().join("claim").join(name);
        fs::write(&member, content).unwrap();
        let bench = Self { place, member };
        bench.write_claim();
        bench
    }

    fn write_claim(&self) {
        let name = self.member.file_name().unwrap().to_str().unwrap();
        let stat = fs::metadata(&self.member).unwrap();
        let mtime = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
        let member = json!({"name": name, "sizeBytes": stat.len(), "mtimeNs": mtime, "inode": stat.ino()});
        let claim = json!({
            "contractVersion": 1, "id": "disk-0badcafe", "primary": name, "members": [member],
            "claimedAt": "2026-01-17T09:45:00Z", "date": "2026-01-17",
        });
        fs::write(self.place.path().join("claim/claim.json"), claim.to_string()).unwrap();
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.place.path().join("work")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyper2kvm"));
        command
            .arg("worker")
            .env("HYPER2KVM_CLAIM", self.place.path().join("claim"))
            .env("HYPER2KVM_WORK", self.work())
            .env("HYPER2KVM_FOLDER", "pod")
            .env("HYPER2KVM_OPTIONS", r#"{"outFormat":"raw"}"#)
            .env("HYPER2KVM_ATTEMPT", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    pub(crate) fn failure(&self) -> Value {
        serde_json::from_slice(&fs::read(self.work().join("failure.json")).unwrap()).unwrap()
    }

    fn folder_is_gone(&self) -> bool {
        !self.work().join("pod").exists()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `wanted` holds.
fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let started = Instant::now();
    while !wanted() {
        assert!(started.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_finished_attempt_leaves_disks_and_metadata_and_exits_with_0() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let output = bench.run();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(fs::read(bench.work().join("pod/disk.raw")).unwrap(), [7; 8192]);
    let metadata: Value = serde_json::from_slice(&fs::read(bench.work().join("pod/metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata["id"], "disk-0badcafe");
    assert_eq!(metadata["disks"][0]["virtualSizeBytes"], 8192);
    assert!(!bench.work().join("failure.json").exists());
}

/// A group of processes with one CPU's quota; `None` where this machine forbids it.
fn one_cpu() -> Option<PathBuf> {
    let first = Path::new("/sys/fs/cgroup/cpu");
    let (parent, key, quota) = if first.exists() {
        (first, "cpu.cfs_quota_us", "100000")
    } else {
        (Path::new("/sys/fs/cgroup"), "cpu.max", "100000")
    };
    let group = parent.join(format!("hyper2kvm-test-{}", std::process::id()));
    fs::create_dir(&group).ok()?;
    if fs::write(group.join(key), quota).is_ok() {
        return Some(group);
    }
    fs::remove_dir(&group).unwrap();
    None
}

#[test]
fn a_worker_with_the_quota_of_one_cpu_decodes_on_one_thread() {
    let Some(group) = one_cpu() else {
        eprintln!("left out: no cgroup with a CPU quota can be made");
        return;
    };
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let order = bench.command();
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&group).arg(order.get_program());
    command.args(order.get_args()).envs(order.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    fs::remove_dir(&group).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let last_words = said(&output) + &String::from_utf8_lossy(&output.stdout);
    assert!(last_words.contains("threads=1") || last_words.contains("\"threads\":1"), "{last_words}");
}

#[test]
fn a_member_that_changed_since_the_claim_exits_with_13() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    fs::write(&bench.member, [8; 4096]).unwrap();
    let output = bench.run();
    assert_eq!(output.status.code(), Some(13), "{}", said(&output));
    let failure = bench.failure();
    assert_eq!(
        (&failure["failure"]["reason"], &failure["failure"]["class"]),
        (&"SourceChanged".into(), &"GivenBack".into())
    );
    assert!(bench.folder_is_gone());
}

#[test]
fn a_refused_image_exits_with_10_and_says_why_in_failure_json_and_in_the_termination_message() {
    let bench = Bench::new("disk.vmdk", &[0; 8192]);
    let log = bench.place.path().join("termination-log");
    fs::write(&log, "").unwrap();
    let output = bench.command().env("HYPER2KVM_TERMINATION_LOG", &log).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    let failure = bench.failure();
    let message: Value = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
    for key in ["reason", "class", "phase", "message"] {
        assert_eq!(failure["failure"][key], message[key], "{key}");
    }
    assert!(failure["failure"]["message"].as_str().unwrap().contains("disk.vmdk"), "{failure}");
    assert!(!failure["logTail"].as_array().unwrap().is_empty());
    assert!(bench.folder_is_gone());
}

#[test]
fn a_disk_above_the_limit_is_refused_before_anything_is_written() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let output = bench.command().env("HYPER2KVM_OPTIONS", r#"{"maxVirtualSize":4096}"#).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    assert_eq!(bench.failure()["failure"]["reason"], "TooLarge");
}

/// A worker that hangs in its attempt, contained already.
fn hanging(bench: &Bench, more: &[(&str, &str)]) -> Child {
    let mut command = bench.command();
    command.env("HYPER2KVM_TEST_HANG", "1").envs(more.iter().copied());
    let child = command.spawn().unwrap();
    until("the attempt's folder is there", || bench.work().join("pod").exists());
    child
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn sigterm_ends_it_within_a_moment_with_143_and_no_output() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let child = hanging(&bench, &[]);
    let told = Instant::now();
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    assert!(told.elapsed() < Duration::from_secs(2));
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert_eq!(bench.failure()["failure"]["reason"], "Disrupted");
    assert!(bench.folder_is_gone());
}

#[test]
fn the_signal_that_asks_a_daemon_for_statistics_harms_no_worker() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let child = hanging(&bench, &[]);
    signal(&child, "USR1");
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(143));
}

#[test]
fn its_command_line_shows_no_path() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let child = hanging(&bench, &[]);
    let line = fs::read_to_string(format!("/proc/{}/cmdline", child.id())).unwrap();
    let arguments: Vec<_> = line.trim_end_matches('\0').split('\0').skip(1).collect();
    assert_eq!(arguments, ["worker"]);
    signal(&child, "TERM");
    child.wait_with_output().unwrap();
}

#[test]
fn while_it_reads_an_image_it_has_no_privileges_to_gain_and_no_core_to_leave() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    let child = hanging(&bench, &[]);
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let line = |file: &Path, key: &str| {
        let text = fs::read_to_string(file).unwrap();
        text.lines()
            .find(|l| l.starts_with(key))
            .map(|l| l[key.len()..].split_whitespace().next().unwrap_or("").to_owned())
    };
    assert_eq!(line(&proc.join("limits"), "Max core file size").as_deref(), Some("0"));
    assert_ne!(line(&proc.join("limits"), "Max address space").as_deref(), Some("unlimited"));
    if !said_no_landlock() {
        assert_eq!(line(&proc.join("status"), "NoNewPrivs:").as_deref(), Some("1"));
    }
    signal(&child, "TERM");
    child.wait_with_output().unwrap();
}

/// Whether this kernel has no Landlock, according to a worker.
fn said_no_landlock() -> bool {
    said(&Bench::new("disk.raw", &[7; 8192]).run()).contains("no Landlock")
}

#[test]
fn a_worker_whose_daemon_is_gone_does_nothing() {
    let bench = Bench::new("disk.raw", &[7; 8192]);
    // Process 1 is not its parent.
    let output = bench.command().env("HYPER2KVM_PARENT", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert_eq!(fs::read_dir(bench.work()).unwrap().count(), 0);
}

#[test]
fn without_its_variables_it_says_which_is_missing() {
    let output = Command::new(env!("CARGO_BIN_EXE_hyper2kvm")).arg("worker").env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("HYPER2KVM_OPTIONS is not set"), "{}", said(&output));
}
