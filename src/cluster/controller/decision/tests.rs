// SPDX-License-Identifier: Apache-2.0
//! A table of what the caches may show, and the decision for each.

use serde_json::{Value, json};

use super::*;
use crate::conversion::status::End;

const N: Attempt = Attempt(1);
const TEMPLATE: &str = "t1";

fn template() -> TemplateDigest {
    TemplateDigest::of_test(TEMPLATE, "s1")
}

fn conversion(status: &Value) -> ConversionJob {
    serde_json::from_value(json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob",
        "metadata": {"name": "a-0000002a", "namespace": "n", "uid": "u"},
        "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.ova"}},
        "status": status,
    }))
    .unwrap()
}

fn open(uid: Option<&str>, pod: Option<&str>) -> Value {
    json!({"staged": 1, "attempts": [{"number": 1, "jobName": "a-0000002a-1", "jobUID": uid, "podName": pod, "startTime": "2026-01-17T09:00:00Z"}]})
}

fn job(uid: &str, template: &str, conditions: &Value) -> Job {
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "a-0000002a-1", "uid": uid, "labels": {"hyper2kvm.io/attempt": "1"}, "annotations": {"hyper2kvm.io/template": template}},
        "spec": {"template": {}}, "status": {"conditions": conditions},
    }))
    .unwrap()
}

fn plain_job() -> Job {
    job("j", TEMPLATE, &json!([]))
}

fn pod(state: &Value, phase: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []},
        "status": {"phase": phase, "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }]},
    }))
    .unwrap()
}

fn decide_on(conversion: &ConversionJob, run_state: RunState, job: Option<&Job>, pods: &[&Pod]) -> Decision {
    decide(&View { conversion, run_state, template: &template(), job, pods })
}

fn reason(decision: &Decision) -> Option<Reason> {
    match decision {
        Decision::Record(Observation::Failed { failure, .. } | Observation::Unpublishable { failure }) => {
            Some(failure.reason)
        }
        _ => None,
    }
}

#[test]
fn an_attempt_starts_once_it_is_staged_and_the_queue_runs() {
    for (staged, run_state, expected) in [
        (0, RunState::Running, Decision::Wait),
        (1, RunState::Running, Decision::Start(N)),
        (1, RunState::Draining, Decision::Start(N)),
        (1, RunState::Paused, Decision::Wait),
        (1, RunState::Stopped, Decision::Wait),
    ] {
        let conversion = conversion(&json!({"staged": staged}));
        assert_eq!(decide_on(&conversion, run_state, None, &[]), expected, "{staged} {run_state:?}");
    }
}

#[test]
fn a_recorded_attempt_gets_its_job_once_and_never_again() {
    let unknown = conversion(&open(None, None));
    let known = conversion(&open(Some("j"), None));
    assert_eq!(decide_on(&unknown, RunState::Running, None, &[]), Decision::Create(N));
    let found = Observation::Running { attempt: N, job_uid: Some("j".into()), pod_name: None, node_name: None };
    assert_eq!(decide_on(&unknown, RunState::Running, Some(&plain_job()), &[]), Decision::Record(found));
    assert_eq!(decide_on(&known, RunState::Running, None, &[]), Decision::Search(N));
    let other = job("k", TEMPLATE, &json!([]));
    assert_eq!(decide_on(&known, RunState::Running, Some(&other), &[]), Decision::Search(N));
}

#[test]
fn an_attempt_that_the_watcher_calls_stalled_is_ended_once() {
    let running = pod(&json!({"running": {"startedAt": "2026-01-17T09:00:01Z"}}), "Running");
    let told = |kind: &str, status: &str| {
        let mut object = open(Some("j"), Some("p"));
        object["conditions"] = json!([{
            "type": kind, "status": status, "reason": "NoProgress", "message": "attempt 1 made no progress",
            "lastTransitionTime": "2026-01-17T09:20:00Z",
        }]);
        conversion(&object)
    };
    let stalled = |holds: &str| told("Progressing", if holds == "True" { "False" } else { "True" });
    for conversion in [stalled("True"), told("Stalled", "True")] {
        let decision = decide_on(&conversion, RunState::Running, Some(&plain_job()), &[&running]);
        assert_eq!(reason(&decision), Some(Reason::Stalled));
    }
    assert_eq!(decide_on(&stalled("False"), RunState::Running, Some(&plain_job()), &[&running]), Decision::Wait);
    // An attempt that has ended meanwhile ended by itself; one that doesn't run can't stall.
    let done = pod(&json!({"terminated": {"exitCode": 0, "startedAt": "2026-01-17T09:00:01Z"}}), "Succeeded");
    let decision = decide_on(&stalled("True"), RunState::Running, Some(&plain_job()), &[&done]);
    assert!(matches!(decision, Decision::Record(Observation::Done { .. })), "{decision:?}");
    let decision = decide_on(&stalled("True"), RunState::Running, Some(&plain_job()), &[]);
    assert_eq!(decision, Decision::Pending(None));
}

#[test]
fn what_runs_is_noted_once_and_what_ended_is_noted() {
    let running = pod(&json!({"running": {"startedAt": "2026-01-17T09:00:01Z"}}), "Running");
    let noted = Observation::Running { attempt: N, job_uid: None, pod_name: Some("p".into()), node_name: None };
    let new = conversion(&open(Some("j"), None));
    assert_eq!(decide_on(&new, RunState::Running, Some(&plain_job()), &[&running]), Decision::Record(noted));
    let old = conversion(&open(Some("j"), Some("p")));
    assert_eq!(decide_on(&old, RunState::Running, Some(&plain_job()), &[&running]), Decision::Wait);
    let done = pod(&json!({"terminated": {"exitCode": 0, "startedAt": "2026-01-17T09:00:01Z"}}), "Succeeded");
    let ended = Decision::Record(Observation::Done { attempt: N, folder: "p".into() });
    assert_eq!(decide_on(&old, RunState::Running, Some(&plain_job()), &[&done]), ended);
    assert_eq!(decide_on(&old, RunState::Stopped, Some(&plain_job()), &[&done]), ended, "done before it was stopped");
}

#[test]
fn stopping_ends_what_runs_and_what_was_about_to_without_counting_it() {
    let running = pod(&json!({"running": {}}), "Running");
    let conversion = conversion(&open(Some("j"), Some("p")));
    let stopped = decide_on(&conversion, RunState::Stopped, Some(&plain_job()), &[&running]);
    assert_eq!(reason(&stopped), Some(Reason::Disrupted));
    assert_eq!(decide_on(&conversion, RunState::Paused, Some(&plain_job()), &[&running]), Decision::Wait);
}

#[test]
fn a_job_that_never_ran_is_superseded_by_another_template() {
    let waiting = pod(&json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}), "Pending");
    let fresh = conversion(&open(Some("j"), None));
    let old_job = job("j", "t0", &json!([]));
    let pending = Decision::Pending(Some(Failure::new(Reason::WorkerImage, "ImagePullBackOff: no such image")));
    assert_eq!(decide_on(&fresh, RunState::Running, Some(&plain_job()), &[&waiting]), pending);
    let superseded = decide_on(&fresh, RunState::Running, Some(&old_job), &[&waiting]);
    assert_eq!(reason(&superseded), Some(Reason::Superseded));
    let running = pod(&json!({"running": {}}), "Running");
    let ran = conversion(&open(Some("j"), Some("p")));
    assert_eq!(decide_on(&ran, RunState::Running, Some(&old_job), &[&running]), Decision::Wait);
}

#[test]
fn a_job_that_waits_to_be_admitted_keeps_its_place_with_its_image_but_not_with_its_specification() {
    let waiting = |specification: &str| -> Job {
        let mut waiting = job("j", "t0", &json!([]));
        waiting.spec = serde_json::from_value(json!({"suspend": true})).unwrap();
        let annotations = waiting.metadata.annotations.as_mut().unwrap();
        annotations.insert("hyper2kvm.io/specification".to_owned(), specification.to_owned());
        waiting
    };
    let fresh = conversion(&open(Some("j"), None));
    let same = decide_on(&fresh, RunState::Running, Some(&waiting("s1")), &[]);
    assert_eq!(same, Decision::Pending(None));
    let other = decide_on(&fresh, RunState::Running, Some(&waiting("s0")), &[]);
    assert_eq!(reason(&other), Some(Reason::Superseded));
}

#[test]
fn a_job_that_waits_in_a_queue_whose_name_was_corrected_is_made_anew() {
    let fresh = conversion(&open(Some("j"), None));
    for (wanted, found, is_made_anew) in [
        (Some("migration"), "migration", false),
        (Some("migration"), "migratoin", true),
        (None, "migration", true),
        // Kueue's own doing: it would do it again.
        (None, "default", false),
    ] {
        let mut waiting = job("j", TEMPLATE, &json!([]));
        waiting.spec = serde_json::from_value(json!({"suspend": true})).unwrap();
        let labels = waiting.metadata.labels.as_mut().unwrap();
        labels.insert("kueue.x-k8s.io/queue-name".to_owned(), found.to_owned());
        let (run_state, template) = (RunState::Running, template().admitted_by(wanted));
        let decided =
            decide(&View { conversion: &fresh, run_state, template: &template, job: Some(&waiting), pods: &[] });
        assert_eq!(reason(&decided) == Some(Reason::Superseded), is_made_anew, "{wanted:?} {found}");
    }
}

#[test]
fn what_can_t_be_published_fails_its_attempt_by_the_watcher_s_word() {
    let mut status = json!({"staged": 1, "converted": "p", "attempts": [
        {"number": 1, "jobUID": "j", "podName": "p", "startTime": "2026-01-17T09:00:00Z", "endTime": "2026-01-17T09:01:00Z"},
    ]});
    assert_eq!(decide_on(&conversion(&status), RunState::Running, None, &[]), Decision::Wait);
    status["conditions"] = json!([{
        "type": "Published", "status": "False", "reason": "Internal", "message": "no metadata.json",
        "lastTransitionTime": "2026-01-17T09:01:01Z",
    }]);
    let decision = decide_on(&conversion(&status), RunState::Running, None, &[]);
    assert_eq!(reason(&decision), Some(Reason::Internal));
}

#[test]
fn a_duplicate_and_what_is_being_deleted_get_no_job() {
    let mut duplicate = conversion(&json!({"staged": 1}));
    duplicate.spec.duplicate_of = "b".into();
    assert_eq!(decide_on(&duplicate, RunState::Running, None, &[]), Decision::Wait);
}

#[test]
fn a_job_goes_when_its_attempt_s_end_is_recorded_and_a_failed_one_an_hour_later() {
    let end: Timestamp = "2026-01-17T09:00:00Z".parse().unwrap();
    let finished = job("j", TEMPLATE, &json!([{"type": "Failed", "status": "True"}]));
    let state = |reason: Option<Reason>, ended: bool, over: Option<End>| {
        let record = AttemptRecord {
            kind: None,
            number: N,
            job_name: None,
            job_uid: None,
            pod_name: None,
            node_name: None,
            start_time: None,
            end_time: ended.then_some(end),
            reason,
        };
        ConversionStatus { attempts: vec![record], end: over, ..ConversionStatus::default() }
    };
    let later: Timestamp = "2026-01-17T10:00:00Z".parse().unwrap();
    for (name, state, job, due) in [
        ("not known yet", ConversionStatus::default(), &plain_job(), None),
        ("under way", state(None, false, None), &plain_job(), None),
        ("succeeded", state(None, true, None), &plain_job(), Some(Timestamp::UNIX_EPOCH)),
        ("failed", state(Some(Reason::Corrupt), true, None), &finished, Some(later)),
        ("failed, the Job says so later", state(Some(Reason::Corrupt), true, None), &plain_job(), Some(later)),
        ("stalled, still running", state(Some(Reason::Stalled), true, None), &plain_job(), Some(Timestamp::UNIX_EPOCH)),
        (
            "stopped, still running",
            state(Some(Reason::Disrupted), true, None),
            &plain_job(),
            Some(Timestamp::UNIX_EPOCH),
        ),
        ("cancelled under way", state(None, false, Some(End::Cancelled)), &plain_job(), Some(Timestamp::UNIX_EPOCH)),
    ] {
        assert_eq!(removal(&state, job), due, "{name}");
    }
}

#[test]
fn jobs_of_attempts_that_are_listed_no_more_are_looked_for_and_go_at_once() {
    let listed = [1, 41, 42].map(|number| json!({"number": number, "endTime": "2026-01-17T09:00:00Z"}));
    let state = state(&conversion(&json!({"attempts": listed})));
    let numbers: Vec<_> = attempts_with_jobs(&state).map(|attempt| attempt.0).collect();
    assert_eq!(numbers, [(21..=40).collect(), vec![1, 41, 42]].concat());
    let numbered = |number: &str| {
        let mut job = plain_job();
        job.metadata.labels.as_mut().unwrap().insert("hyper2kvm.io/attempt".to_owned(), number.to_owned());
        job
    };
    assert_eq!(removal(&state, &numbered("40")), Some(Timestamp::UNIX_EPOCH));
    assert_eq!(removal(&state, &numbered("43")), None, "the conversions' cache is behind");
    assert_eq!(attempts_with_jobs(&ConversionStatus::default()).count(), 0);
}

#[test]
fn an_attempt_that_nobody_saw_running_is_recorded_with_its_pod_all_the_same() {
    let conversion = conversion(&open(Some("j"), None));
    let ran = pod(&json!({"terminated": {"exitCode": 0, "startedAt": "2026-01-17T09:00:01Z"}}), "Succeeded");
    let never = pod(&json!({"waiting": {"reason": "ContainerCreating"}}), "Failed");
    let name_after = |pod: &Pod| witnessed(state(&conversion), &[pod]).attempts[0].pod_name.clone();
    assert_eq!((name_after(&ran).as_deref(), name_after(&never)), (Some("p"), None));
}
