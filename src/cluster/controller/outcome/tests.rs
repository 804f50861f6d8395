// SPDX-License-Identifier: Apache-2.0
//! A table of Jobs and pods as the API server shows them, and what each means.
#![expect(clippy::needless_pass_by_value, reason = "json! reads best where it is used")]

use serde_json::{Value, json};

use super::*;
use crate::conversion::guest::fix::Unfixed;
use crate::conversion::{Phase, Stage};

const N: Attempt = Attempt(2);

fn job(conditions: Value, suspend: bool) -> Job {
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a-2"},
        "spec": {"suspend": suspend, "template": {}},
        "status": {"conditions": conditions},
    }))
    .unwrap()
}

fn running_job() -> Job {
    job(json!([]), false)
}

fn pod(status: Value) -> Pod {
    named_pod("a-2-x", false, status)
}

fn named_pod(name: &str, deleting: bool, status: Value) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "creationTimestamp": "2026-01-17T09:00:00Z"},
        "spec": {"nodeName": "node1", "containers": []},
        "status": status,
    });
    if deleting {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-17T09:10:00Z");
    }
    serde_json::from_value(pod).unwrap()
}

/// A pod whose worker ended.
fn ended(code: i32, reason: &str, message: &str) -> Value {
    json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": "2026-01-17T09:00:01Z"}},
    }]})
}

fn with(mut status: Value, key: &str, value: Value) -> Value {
    status[key] = value;
    status
}

fn disrupted() -> Value {
    json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}])
}

fn waiting_for(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }]})
}

fn running() -> Value {
    json!({"phase": "Running", "containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-17T09:00:01Z"}},
    }]})
}

fn message(reason: Reason) -> String {
    let failure = Failure::in_phase(reason, Phase::Conversion, "grain 7 is short").at_stage(Stage::Copy);
    TerminationMessage { contract_version: 1, failure }.to_json()
}

fn outcome_of_one(job: &Job, pod: &Pod) -> Outcome {
    outcome_of(N, job, &[pod], None)
}

fn reason_of(outcome: &Outcome) -> (Option<Reason>, Option<Class>) {
    match outcome {
        Outcome::Ended(Observation::Failed { failure, .. }) => (Some(failure.reason), Some(failure.class)),
        _ => (None, None),
    }
}

#[test]
fn a_worker_that_succeeded_tells_of_its_guest_and_is_not_believed_everything() {
    let told = |text: &str| guest(&[&pod(ended(0, "Completed", text))]);
    let text = json!({"contractVersion": 2, "guest": {
        "outcome": "unfixed", "reason": "GuestNoSpace", "message": "a\u{1b}b", "bus": "sata", "nic": "e1000e", "changes": 0,
        "doubts": vec!["d"; 99],
    }});
    let guest = told(&text.to_string()).unwrap();
    assert_eq!((guest.reason, guest.message.as_deref()), (Some(Unfixed::GuestNoSpace), Some("a b")));
    assert_eq!(guest.doubts.len(), 16);
    let check = json!({"result": "notBooting", "message": "a\u{1b}b", "accelerator": "t\u{1b}g"});
    let tried = told(&json!({"contractVersion": 2, "guest": {"bootCheck": check}}).to_string()).unwrap();
    assert_eq!((tried.outcome, tried.bus, tried.nic), (None, None, None), "nothing was to be done to it");
    let check = tried.boot_check.unwrap();
    assert_eq!((check.message.as_deref(), check.accelerator.as_deref()), (Some("a b"), Some("t g")));
    for text in ["", "oops", r#"{"contractVersion":2,"guest":{"outcome":"unfixed","reason":"Corrupt"}}"#] {
        assert_eq!(told(text), None, "{text}");
    }
}

#[test]
fn what_ended_is_judged_by_disruption_then_message_then_exit_code_then_status() {
    let told = |reason| message(reason);
    for (name, status, reason, class) in [
        (
            "disruption before the message",
            with(ended(10, "Error", &told(Reason::Corrupt)), "conditions", disrupted()),
            Reason::Disrupted,
            Class::NoAttempt,
        ),
        (
            "the message before the exit code",
            ended(12, "Error", &told(Reason::ManifestMismatch)),
            Reason::ManifestMismatch,
            Class::Permanent,
        ),
        ("a full volume", ended(11, "Error", &told(Reason::OutputFull)), Reason::OutputFull, Class::Configuration),
        ("a changed source", ended(13, "Error", &told(Reason::SourceChanged)), Reason::SourceChanged, Class::GivenBack),
        (
            "out of memory by its own word",
            ended(137, "Error", &told(Reason::OutOfMemory)),
            Reason::OutOfMemory,
            Class::Transient,
        ),
        (
            "a worker that excuses itself",
            ended(143, "Error", &told(Reason::Disrupted)),
            Reason::Killed,
            Class::Transient,
        ),
        ("a message that is no JSON", ended(10, "Error", "oops"), Reason::Internal, Class::Permanent),
        (
            "a reason from the future",
            ended(11, "Error", r#"{"contractVersion":9,"reason":"New"}"#),
            Reason::Internal,
            Class::Configuration,
        ),
        ("exit 12 alone", ended(12, "Error", ""), Reason::Internal, Class::Transient),
        ("exit 13 alone", ended(13, "Error", ""), Reason::SourceChanged, Class::GivenBack),
        ("a panic", ended(101, "Error", ""), Reason::Internal, Class::Transient),
        ("OOMKilled", ended(137, "OOMKilled", ""), Reason::OutOfMemory, Class::Transient),
        ("SIGKILL", ended(137, "Error", ""), Reason::Killed, Class::Transient),
        ("SIGTERM, deleted by hand", ended(143, "Error", ""), Reason::Killed, Class::Transient),
        (
            "the pod's deadline",
            with(ended(143, "Error", ""), "reason", json!("DeadlineExceeded")),
            Reason::DeadlineExceeded,
            Class::Permanent,
        ),
        (
            "a storage limit",
            with(ended(137, "Error", ""), "reason", json!("Evicted")),
            Reason::Killed,
            Class::Permanent,
        ),
        ("a node that refuses", json!({"phase": "Failed", "reason": "OutOfcpu"}), Reason::Killed, Class::Transient),
        ("deleted before it ran", json!({"phase": "Failed"}), Reason::Killed, Class::Transient),
    ] {
        let outcome = outcome_of_one(&running_job(), &pod(status));
        assert_eq!(reason_of(&outcome), (Some(reason), Some(class)), "{name}: {outcome:?}");
    }
}

#[test]
fn the_worker_s_account_is_kept_whole() {
    let outcome = outcome_of_one(&running_job(), &pod(ended(10, "Error", &message(Reason::Corrupt))));
    let failure = Failure::in_phase(Reason::Corrupt, Phase::Conversion, "grain 7 is short").at_stage(Stage::Copy);
    assert_eq!(outcome, Outcome::Ended(Observation::Failed { attempt: N, failure }));
}

#[test]
fn a_pod_that_succeeded_wins_with_its_name_even_beside_a_disrupted_one() {
    let lost = named_pod("a-2-x", true, with(ended(143, "Error", ""), "conditions", disrupted()));
    let won = named_pod("a-2-y", false, ended(0, "Completed", ""));
    let outcome =
        outcome_of(N, &job(json!([{"type": "Complete", "status": "True"}]), false), &[&lost, &won], Some("a-2-y"));
    assert_eq!(outcome, Outcome::Ended(Observation::Done { attempt: N, folder: "a-2-y".into() }));
}

#[test]
fn an_announced_disruption_counts_once_the_pod_is_on_its_way_out() {
    let status = with(running(), "conditions", disrupted());
    assert!(matches!(outcome_of_one(&running_job(), &pod(status.clone())), Outcome::Running { .. }));
    let outcome = outcome_of_one(&running_job(), &named_pod("a-2-x", true, status));
    assert_eq!(reason_of(&outcome).0, Some(Reason::Disrupted));
}

#[test]
fn a_job_suspended_in_the_middle_is_suspended_and_one_not_yet_released_waits() {
    let suspended = job(json!([{"type": "Suspended", "status": "True"}]), true);
    assert_eq!(outcome_of(N, &suspended, &[], None), Outcome::Waiting(None));
    assert_eq!(reason_of(&outcome_of(N, &suspended, &[], Some("a-2-x"))).0, Some(Reason::Suspended));
    let dying = named_pod("a-2-x", true, ended(143, "Error", ""));
    assert_eq!(reason_of(&outcome_of(N, &suspended, &[&dying], None)).0, Some(Reason::Suspended));
}

#[test]
fn a_pod_that_does_not_start_says_why_in_its_own_words() {
    let unscheduled = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available",
    }]});
    for (status, failure) in [
        (
            waiting_for("ImagePullBackOff", "no such image"),
            Some((Reason::WorkerImage, "ImagePullBackOff: no such image")),
        ),
        (
            waiting_for("CreateContainerConfigError", "subPath"),
            Some((Reason::WorkerConfig, "CreateContainerConfigError: subPath")),
        ),
        (unscheduled, Some((Reason::Unschedulable, "Unschedulable: 0/3 nodes are available"))),
        (waiting_for("ContainerCreating", ""), None),
        (json!({}), None),
    ] {
        let expected = failure.map(|(reason, message)| Failure::new(reason, message));
        assert_eq!(outcome_of_one(&running_job(), &pod(status)), Outcome::Waiting(expected));
    }
}

#[test]
fn a_running_pod_names_itself_and_its_node() {
    let outcome = outcome_of_one(&running_job(), &pod(running()));
    assert_eq!(outcome, Outcome::Running { pod_name: "a-2-x".into(), node_name: Some("node1".into()) });
}

#[test]
fn a_job_that_failed_without_a_pod_failed_in_its_own_words() {
    let conditions =
        json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it did"}]);
    let outcome = outcome_of(N, &job(conditions, false), &[], Some("a-2-x"));
    let failure = Failure::new(Reason::Killed, "BackoffLimitExceeded: it did");
    assert_eq!(outcome, Outcome::Ended(Observation::Failed { attempt: N, failure }));
}

#[test]
fn a_job_that_is_complete_while_its_pod_is_gone_is_done_by_the_folder_of_the_pod_that_ran() {
    let complete = job(json!([{"type": "Complete", "status": "True"}]), false);
    let done = Outcome::Ended(Observation::Done { attempt: N, folder: "a-2-x".into() });
    assert_eq!(outcome_of(N, &complete, &[], Some("a-2-x")), done);
    let unseen = Outcome::Ended(Observation::Done { attempt: N, folder: ONLY_FOLDER.to_owned() });
    assert_eq!(outcome_of(N, &complete, &[], None), unseen, "no pod was ever seen");
}

#[test]
fn a_worker_that_finished_before_its_pod_was_disrupted_has_finished() {
    let status = with(ended(0, "Completed", ""), "conditions", disrupted());
    let done = Outcome::Ended(Observation::Done { attempt: N, folder: "a-2-x".into() });
    assert_eq!(outcome_of_one(&running_job(), &named_pod("a-2-x", true, status.clone())), done);
    let suspended = job(json!([{"type": "Suspended", "status": "True"}]), true);
    assert_eq!(outcome_of_one(&suspended, &pod(status)), done);
}

#[test]
fn a_job_that_is_over_is_not_judged_by_pods_that_seem_to_run_or_to_be_missing() {
    let over =
        job(json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}]), false);
    let ended = pod(ended(10, "Error", ""));
    let running = pod(json!({"phase": "Running"}));
    assert!(awaits_its_pods(&over, &[]));
    assert!(awaits_its_pods(&over, &[&running]));
    assert!(!awaits_its_pods(&over, &[&running, &ended]));
    let proxied = pod(beside(with(self::ended(0, "Completed", ""), "phase", json!("Running")), json!({"running": {}})));
    assert!(!awaits_its_pods(&over, &[&proxied]), "the worker's end is known");
    assert!(!awaits_its_pods(&running_job(), &[]));
}

/// The same status with another container, injected and listed before the worker's.
fn beside(mut status: Value, state: Value) -> Value {
    let other =
        json!({"name": "a-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    status["initContainerStatuses"] = json!([{
        "name": "a-setup", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "startedAt": "2026-01-17T09:00:00Z"}},
    }]);
    status["containerStatuses"].as_array_mut().unwrap().insert(0, other);
    status
}

#[test]
fn an_attempt_is_judged_by_our_container_and_not_by_one_that_was_injected_before_it() {
    let runs = || json!({"running": {"startedAt": "2026-01-17T09:00:00Z"}});
    let ends = |code| json!({"terminated": {"exitCode": code, "reason": "Error", "startedAt": "2026-01-17T09:00:00Z"}});
    let done = || Outcome::Ended(Observation::Done { attempt: N, folder: "a-2-x".into() });
    let goes_on = || Outcome::Running { pod_name: "a-2-x".into(), node_name: Some("node1".into()) };
    let corrupt = || {
        let failure = Failure::in_phase(Reason::Corrupt, Phase::Conversion, "grain 7 is short").at_stage(Stage::Copy);
        Outcome::Ended(Observation::Failed { attempt: N, failure })
    };
    let failed = || ended(10, "Error", &message(Reason::Corrupt));
    let image = Failure::new(Reason::WorkerImage, "ImagePullBackOff: no such image");
    for (name, status, other, outcome) in [
        ("ours runs, it ended well", running(), ends(0), goes_on()),
        ("ours runs, it failed", running(), ends(1), goes_on()),
        ("ours is done, it goes on", with(ended(0, "Completed", ""), "phase", json!("Running")), runs(), done()),
        ("ours is done, it failed", with(ended(0, "Completed", ""), "phase", json!("Failed")), ends(1), done()),
        ("ours failed, it goes on", with(failed(), "phase", json!("Running")), runs(), corrupt()),
        ("ours failed, it ended well", failed(), ends(0), corrupt()),
        (
            "ours has no image, it runs",
            waiting_for("ImagePullBackOff", "no such image"),
            runs(),
            Outcome::Waiting(Some(image)),
        ),
        ("ours is being made, it runs", waiting_for("ContainerCreating", ""), runs(), Outcome::Waiting(None)),
    ] {
        assert_eq!(outcome_of_one(&running_job(), &pod(beside(status, other))), outcome, "{name}");
    }
}
