// SPDX-License-Identifier: Apache-2.0
//! The executor with a shell script in the worker's place.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::conversion::status::End;
use crate::conversion::{CONTRACT_VERSION, Claim, Class, FailureReport, Member, TerminationMessage};
use crate::executor::progress::STALL_AFTER;
use crate::ledger::{Ledger, NewConversion};

/// A deadline for what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

struct Bench {
    directory: TempDir,
    ledger: ledger::Writer,
    executor: ProcessExecutor,
}

/// Writes a program from another process, so that no fork of this one inherits the file open for writing (ETXTBSY).
fn write_script(path: &Path, body: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

fn bench(script: &str, limit: usize, stall_after: Duration) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("worker.sh");
    write_script(&program, script);
    let ledger = ledger::Writer::start(Ledger::open(&directory.path().join("ledger.db")).unwrap());
    let config = ProcessConfig {
        program,
        paths: Paths::new(directory.path().join("queue"), directory.path().join("output")),
        options: ConversionOptions::default(),
        policy: RetryPolicy::default(),
        limit,
        require_landlock: false,
        appliance: "/none".into(),
        stall_after,
    };
    let executor = ProcessExecutor::new(config, ledger.clone()).unwrap();
    Bench { directory, ledger, executor }
}

impl Bench {
    async fn submit(&mut self, name: &str, n: u32, status: ConversionStatus) -> ConversionId {
        let claim = Claim {
            contract_version: CONTRACT_VERSION,
            id: ConversionId::for_file(name, n),
            queue_uid: String::new(),
            origin: String::new(),
            folder: None,
            disks: Vec::new(),
            primary: name.to_owned(),
            members: vec![Member { name: name.to_owned(), size_bytes: 1, mtime_ns: 0, inode: 1, alone: None }],
            claimed_at: Timestamp::UNIX_EPOCH,
            seen_at: None,
            complete_by: None,
            beginning: None,
            fingerprint: None,
            emit: None,
            date: "1970-01-01".to_owned(),
        };
        let id = claim.id.clone();
        let new = NewConversion { claim: claim.clone(), filepath: format!("/q/{name}"), md5: None, duplicate_of: None };
        let (key, change) = (id.clone(), Change::Shown { status: status.clone(), uid: None });
        self.ledger
            .call(move |ledger| {
                ledger.claim(new)?;
                ledger.update(&key, &change).map(|_| ())
            })
            .await
            .unwrap();
        self.executor.submit(Submission { claim, duplicate_of: None, status, uid: None }).await.unwrap();
        id
    }

    async fn stage(&mut self, id: &ConversionId, attempt: u32) {
        let attempt = Attempt(attempt);
        std::fs::create_dir_all(self.work(id, attempt)).unwrap();
        self.executor.staged(id, attempt).await.unwrap();
    }

    fn work(&self, id: &ConversionId, attempt: Attempt) -> PathBuf {
        self.executor.config.paths.work_dir(id, attempt)
    }

    /// The first update of `id` for which `wanted` is true.
    async fn until(&mut self, id: &ConversionId, wanted: impl Fn(&Update) -> bool) -> Update {
        let search = async {
            loop {
                let update = self.executor.next().await;
                if update.id == *id && wanted(&update) {
                    return update;
                }
            }
        };
        tokio::time::timeout(SOON, search).await.expect("the update comes")
    }

    async fn end_of(&mut self, id: &ConversionId) -> ConversionStatus {
        let ended = |update: &Update| {
            !update.may_run
                && update.status.as_ref().is_some_and(|s| !s.attempts.is_empty() && s.open_attempt().is_none())
        };
        self.until(id, ended).await.status.unwrap()
    }

    async fn recorded(&self, id: &ConversionId) -> ConversionStatus {
        let id = id.clone();
        self.ledger.call(move |ledger| ledger.conversion(&id)).await.unwrap().unwrap().status
    }
}

#[tokio::test]
async fn a_child_that_exits_well_has_converted_and_the_ledger_knows() {
    let mut bench = bench("mkdir \"$HYPER2KVM_WORK/$HYPER2KVM_FOLDER\"; exit 0", 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let status = bench.end_of(&id).await;
    assert_eq!(next_step(&status), Step::Publish { attempt: Attempt(1), folder: "worker".to_owned() });
    assert_eq!(bench.recorded(&id).await, status);
    assert!(bench.work(&id, Attempt(1)).join("worker").is_dir());
}

#[tokio::test]
async fn a_start_that_the_ledger_never_heard_of_is_known_by_what_the_child_made() {
    let mut bench = bench("exit 0", 1, STALL_AFTER);
    bench.executor.set_run_state(RunState::Paused).await.unwrap();
    let policy = RetryPolicy::default();
    let staged =
        advance(ConversionStatus::default(), Observation::Staged(Attempt(1)), &policy, Timestamp::UNIX_EPOCH).0;
    for (n, status, is_started, next) in [
        (1, ConversionStatus::default(), true, Step::Stage(Attempt(2))),
        (2, staged.clone(), true, Step::Stage(Attempt(2))),
        (3, staged, false, Step::Start(Attempt(1))),
    ] {
        let work = bench.work(&ConversionId::for_file("vm.raw", n), Attempt(1));
        std::fs::create_dir_all(if is_started { work.join(FOLDER) } else { work }).unwrap();
        let id = bench.submit("vm.raw", n, status).await;
        let status = bench.until(&id, |_| true).await.status.unwrap();
        assert_eq!(next_step(&status), next);
        let disruptions = status.attempts.iter().filter(|attempt| attempt.reason == Some(Reason::Disrupted)).count();
        assert_eq!(disruptions, usize::from(is_started));
    }
}

#[tokio::test]
async fn what_a_child_says_where_it_can_write_no_report_is_believed_and_no_file_is_left_of_it() {
    let full = Failure::new(Reason::OutputFull, "the output volume is full");
    let message = TerminationMessage { contract_version: CONTRACT_VERSION, failure: full.clone() }.to_json();
    let mut bench = bench(&format!("echo '{message}' > \"$HYPER2KVM_TERMINATION_LOG\"; exit 12"), 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    assert_eq!(bench.end_of(&id).await.attempts[0].reason, Some(full.reason));
    let mut left: Vec<_> =
        std::fs::read_dir(bench.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    left.retain(|name| !name.to_string_lossy().starts_with("ledger.db"));
    assert_eq!(left, ["output", "worker.sh"]);
}

#[tokio::test]
async fn a_child_gets_its_orders_by_environment_and_no_secrets() {
    let mut bench = bench("env > \"$HYPER2KVM_WORK/env\"; echo \"$0 $*\" > \"$HYPER2KVM_WORK/args\"", 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    bench.end_of(&id).await;
    let work = bench.work(&id, Attempt(1));
    let environment = std::fs::read_to_string(work.join("env")).unwrap();
    let claim =
        format!("HYPER2KVM_CLAIM={}", bench.directory.path().join("queue/.processing").join(id.as_str()).display());
    assert!(environment.lines().any(|line| line == claim), "{environment}");
    assert!(environment.lines().any(|line| line == "HYPER2KVM_ATTEMPT=1"));
    // Cargo sets many variables, of which none may reach a worker.
    assert!(!environment.contains("CARGO_"), "{environment}");
    let arguments = std::fs::read_to_string(work.join("args")).unwrap();
    assert!(arguments.trim_end().ends_with(" worker"), "{arguments}");
}

#[tokio::test]
async fn a_childs_report_decides_what_follows() {
    let failure = Failure::new(Reason::SourceIO, "EIO at 4096");
    let report = FailureReport { contract_version: CONTRACT_VERSION, failure, error_chain: vec![], log_tail: vec![] };
    let json = serde_json::to_string(&report).unwrap();
    let mut bench = bench(&format!("echo '{json}' > \"$HYPER2KVM_WORK/failure.json\"; exit 12"), 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let status = bench.end_of(&id).await;
    assert!(matches!(next_step(&status), Step::Park { next: Attempt(2), .. }));
    assert_eq!(status.failure.unwrap().message, "EIO at 4096");
}

#[tokio::test]
async fn a_child_that_dies_without_a_report_leaves_its_log() {
    let mut bench = bench("echo 'last words' >&2; exit 10", 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let status = bench.end_of(&id).await;
    assert_eq!(status.end, Some(End::Failed));
    let left = std::fs::read(bench.work(&id, Attempt(1)).join("failure.json")).unwrap();
    let report: FailureReport = serde_json::from_slice(&left).unwrap();
    assert_eq!(report.log_tail, ["last words"]);
    assert_eq!((report.failure.reason, report.failure.class), (Reason::Internal, Class::Permanent));
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_a_failed_attempt() {
    let mut bench = bench("exit 0", 1, STALL_AFTER);
    bench.executor.config.program = "/nonexistent/hyper2kvm".into();
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let status = bench.end_of(&id).await;
    assert_eq!(status.failure.map(|failure| failure.reason), Some(Reason::Internal));
}

#[tokio::test]
async fn never_more_than_the_limit_run_and_the_oldest_first() {
    let mut bench = bench("read forever < /dev/zero; sleep 1000", 2, STALL_AFTER);
    bench.executor.config.program = "/bin/sleep".into();
    // `sleep worker` fails at once; the test only looks at which conversions start.
    let mut ids = Vec::new();
    bench.executor.set_run_state(RunState::Paused).await.unwrap();
    for n in 0..4 {
        let id = bench.submit("vm.raw", n, ConversionStatus::default()).await;
        bench.stage(&id, 1).await;
        ids.push(id);
    }
    assert!(bench.executor.known.values().all(|known| known.child.is_none()));
    bench.executor.set_run_state(RunState::Running).await.unwrap();
    let running: Vec<bool> = ids.iter().map(|id| bench.executor.known[id].child.is_some()).collect();
    assert_eq!(running, [true, true, false, false]);
    let all_end = async {
        // In whatever order.
        while !ids.is_empty() {
            let update = bench.executor.next().await;
            let has_ended = update.status.is_some_and(|s| !s.attempts.is_empty() && s.open_attempt().is_none());
            ids.retain(|id| *id != update.id || !has_ended || update.may_run);
        }
    };
    tokio::time::timeout(SOON, all_end).await.expect("all end");
}

#[tokio::test]
async fn a_stop_ends_children_uncounted_even_those_that_ignore_it() {
    let script = "trap '' TERM; : > \"$HYPER2KVM_WORK/ready\"; while :; do sleep 0.1; done";
    let mut bench = bench(script, 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let ready = bench.work(&id, Attempt(1)).join("ready");
    tokio::time::timeout(SOON, async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    bench.executor.set_run_state(RunState::Stopped).await.unwrap();
    let status = bench.end_of(&id).await;
    assert_eq!(next_step(&status), Step::Stage(Attempt(2)));
    assert_eq!(status.counted_attempts(), 0);
    assert_eq!(status.attempts[0].reason, Some(Reason::Disrupted));
}

#[tokio::test]
async fn an_attempt_that_makes_no_progress_is_ended() {
    let mut bench = bench("exec sleep 1000", 1, Duration::from_millis(200));
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let status = bench.end_of(&id).await;
    assert_eq!(status.failure.map(|failure| failure.reason), Some(Reason::Stalled));
}

#[tokio::test]
async fn a_cancelled_conversion_ends_when_its_child_is_gone() {
    let mut bench = bench("exec sleep 1000", 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    bench.executor.cancel(&id, Failure::new(Reason::Recalled, "its OVF came")).await.unwrap();
    let status = bench.end_of(&id).await;
    assert_eq!(next_step(&status), Step::GiveBack(Reason::Recalled));
}

#[tokio::test]
async fn what_was_open_at_a_start_was_disrupted() {
    let mut bench = bench("exit 0", 1, STALL_AFTER);
    let policy = RetryPolicy::default();
    let now = Timestamp::UNIX_EPOCH;
    let (status, _) = advance(ConversionStatus::default(), Observation::Staged(Attempt(1)), &policy, now);
    let starting = Observation::Starting { attempt: Attempt(1), job_name: None };
    let (status, _) = advance(status, starting, &policy, now);
    let id = bench.submit("vm.raw", 1, status).await;
    let status = bench.end_of(&id).await;
    assert_eq!(next_step(&status), Step::Stage(Attempt(2)));
    bench.stage(&id, 2).await;
    let done = |update: &Update| update.status.as_ref().is_some_and(|status| status.converted.is_some());
    bench.until(&id, done).await;
}

#[tokio::test]
async fn progress_is_shown_while_it_changes() {
    let progress = Progress {
        contract_version: CONTRACT_VERSION,
        stage: crate::conversion::Stage::Copy,
        bytes_done: 5,
        bytes_total: 10,
        updated_time: Timestamp::UNIX_EPOCH,
    };
    let json = serde_json::to_string(&progress).unwrap();
    let mut bench =
        bench(&format!("echo '{json}' > \"$HYPER2KVM_WORK/progress.json\"; exec sleep 1000"), 1, STALL_AFTER);
    let id = bench.submit("vm.raw", 1, ConversionStatus::default()).await;
    bench.stage(&id, 1).await;
    let update = bench.until(&id, |update| update.progress.is_some()).await;
    assert_eq!((update.progress, update.may_run), (Some(progress), true));
}

#[tokio::test]
async fn a_wait_that_is_dropped_leaves_no_slot_free() {
    let mut bench = bench("exit 0", 1, STALL_AFTER);
    let first = bench.submit("a.raw", 1, ConversionStatus::default()).await;
    let second = bench.submit("b.raw", 2, ConversionStatus::default()).await;
    bench.stage(&first, 1).await;
    bench.stage(&second, 1).await;
    // A caller that waits for the ledger waits again at its next call, longer than a wait here lasts.
    let ledger = bench.ledger.clone();
    let busy = tokio::spawn(async move {
        for _ in 0..200 {
            let pause = |_: &mut Ledger| {
                std::thread::sleep(Duration::from_millis(4));
                Ok(())
            };
            ledger.call(pause).await.unwrap();
        }
    });
    let begun = std::time::Instant::now();
    let has_run = |executor: &ProcessExecutor| {
        let status = &executor.known[&second].status;
        !status.attempts.is_empty() && status.open_attempt().is_none()
    };
    // Each wait is a little longer, so that a slow disk's syncs fit in at last.
    for wait in 2.. {
        if has_run(&bench.executor) {
            break;
        }
        assert!(begun.elapsed() < SOON, "the second never starts");
        // As the engine does when another of its inputs is ready first.
        drop(tokio::time::timeout(Duration::from_millis(wait), bench.executor.next()).await);
    }
    busy.abort();
}
