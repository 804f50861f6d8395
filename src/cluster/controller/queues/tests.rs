// SPDX-License-Identifier: Apache-2.0
//! Checks that no schema can express, and what makes a queue ready.

use serde_json::{Value, json};

use super::*;
use crate::cluster::api::owners::tests::{OF_QUEUE, assert_whole};

fn queue(name: &str, second: u32, queue: &Value, output: &Value) -> HyperConversion {
    serde_json::from_value(json!({
        "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
        "metadata": {"name": name, "namespace": "n", "uid": name, "creationTimestamp": format!("2026-01-17T09:00:{second:02}Z")},
        "spec": {"queue": queue, "output": output},
    }))
    .unwrap()
}

fn path(claim: &str, sub_path: &str) -> Value {
    json!({"claimName": claim, "subPath": sub_path})
}

fn refusal(result: Result<(), Error>) -> Option<(&'static str, String)> {
    result.err().map(|error| (error.reason(), error.chain()))
}

#[test]
fn of_two_queues_on_one_directory_the_younger_is_refused_by_the_fields_that_name_it() {
    let first = queue("b", 1, &path("c", "in"), &path("c", "out"));
    for (name, (input, output), fields) in [
        ("same queue", (path("c", "in"), path("d", "")), Some(("queue", "queue"))),
        ("same output", (path("d", ""), path("c", "out")), Some(("output", "output"))),
        ("queue in its output", (path("c", "out/in"), path("d", "")), Some(("queue", "output"))),
        ("the whole volume", (path("d", ""), path("c", "")), Some(("output", "queue"))),
        ("another claim", (path("d", "in"), path("d", "out")), None),
        ("a name that only begins alike", (path("c", "input"), path("c", "output")), None),
    ] {
        let second = queue("a", 2, &input, &output);
        let both = [first.clone(), second.clone()];
        let message = fields.map(|(field, theirs)| {
            format!(
                "spec.{field} is a directory of HyperConversion b too (its spec.{theirs}), or one of the two lies in the \
                 other: give it a claimName or subPath of its own, or delete HyperConversion b"
            )
        });
        let refused = message.map(|message| ("DirectoryTaken", message));
        assert_eq!(refusal(validate(&second, &[], both.iter())), refused, "{name}");
        assert_eq!(refusal(validate(&first, &[], both.iter())), None, "{name}: the older one");
    }
}

#[test]
fn a_claim_of_one_pod_is_refused_by_the_field_that_names_it() {
    let queue = queue("a", 1, &path("c", "in"), &path("d", "out"));
    let claims = |claim: &str, mode: &str| vec![ClaimModes { claim: claim.to_owned(), modes: vec![mode.to_owned()] }];
    for (claim, field) in [("c", "queue"), ("d", "output")] {
        let message = format!(
            "spec.{field}.claimName: claim {claim} has the access mode ReadWriteOncePod, and watcher and workers have to \
             share it; name a claim of ReadWriteMany, or of ReadWriteOnce"
        );
        let refused = refusal(validate(&queue, &claims(claim, "ReadWriteOncePod"), [].iter()));
        assert_eq!(refused, Some(("AccessMode", message)));
    }
    assert_eq!(refusal(validate(&queue, &claims("c", "ReadWriteOnce"), [].iter())), None);
}

#[test]
fn a_queue_is_ready_when_its_watcher_runs_and_its_volumes_are_in_order() {
    let running = ConditionState::new("True", "Running", "");
    let storage = |status: &str, reason: &str| {
        serde_json::from_value::<Condition>(json!({
            "type": "StorageReady", "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-17T09:00:00Z",
        }))
        .unwrap()
    };
    let seen = |storage: Condition, generation: i64| Condition { observed_generation: Some(generation), ..storage };
    for (available, storage, expected) in [
        (&running, None, ("Unknown", "StorageUnchecked")),
        (&running, Some(storage("False", "NoSpace")), ("False", "NoSpace")),
        (&running, Some(storage("True", "Probed")), ("True", "Watching")),
        (&running, Some(seen(storage("True", "Probed"), 2)), ("True", "Watching")),
        (&running, Some(seen(storage("True", "Probed"), 1)), ("Unknown", "SpecificationUnseen")),
        (&running, Some(seen(storage("False", "Locked"), 1)), ("False", "Locked")),
        (
            &ConditionState::new("False", "WorkerImage", "no such image"),
            Some(storage("True", "Probed")),
            ("False", "WatcherUnavailable"),
        ),
    ] {
        let said = ready(available, storage.as_ref(), Some(2));
        assert_eq!((said.status, said.reason.as_str()), expected);
    }
}

#[test]
fn a_watcher_that_does_not_run_is_told_of_in_its_pod_s_words_with_the_remedy() {
    let set = |ready: i32| -> StatefulSet {
        let metadata = json!({"name": "q-watcher", "generation": 1});
        let status = json!({"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": 1});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    };
    let pod = |state: Value| -> Pod {
        let statuses = json!([{"name": "sidecar", "state": state, "lastState": {"terminated": {"exitCode": 1}}}]);
        let status = json!({"initContainerStatuses": statuses});
        serde_json::from_value(json!({"metadata": {"name": "q-watcher-0"}, "status": status})).unwrap()
    };
    let waiting = |reason: &str| pod(json!({"waiting": {"reason": reason, "message": "m"}}));
    for (set, pod, told) in [
        (set(1), None, Some(("True", "Running", "the watcher runs"))),
        (
            set(0),
            Some(waiting("ImagePullBackOff")),
            Some(("False", "WatcherImage", "ImagePullBackOff: m. Check the image name and pull secrets")),
        ),
        (
            set(0),
            Some(waiting("CrashLoopBackOff")),
            Some((
                "False",
                "Crashing",
                "container sidecar ended with exit code 1 (Error). Read its log: kubectl logs q-watcher-0 -c sidecar",
            )),
        ),
        (set(0), Some(pod(json!({"running": {}}))), Some(("False", "Starting", "the watcher's pod is not ready yet"))),
        // Its events decide.
        (set(0), Some(serde_json::from_value(json!({"metadata": {"name": "q-watcher-0"}})).unwrap()), None),
        (set(0), None, None),
    ] {
        let said = available(&set, pod.as_ref(), Timestamp::UNIX_EPOCH);
        let said = said.as_ref().map(|said| (said.status, said.reason.as_str(), said.message.as_str()));
        assert_eq!(said, told, "{pod:?}");
    }
}

#[test]
fn a_patch_of_the_controller_applies_its_own_fields_of_a_queue_and_all_of_them() {
    let mut status =
        HyperConversionStatus { observed_generation: Some(1), queued: Some(3), ..HyperConversionStatus::default() };
    for kind in ConditionType::OF_QUEUE {
        set_condition(&mut status.conditions, *kind, not_ready_yet(), None, Timestamp::UNIX_EPOCH);
    }
    let patch = patch(&queue("q", 1, &path("c", ""), &path("d", "")), &status);
    assert_whole(&patch["status"], &OF_QUEUE, ConditionType::OF_QUEUE, Writer::Controller);
}

#[test]
fn a_ready_pod_of_an_earlier_specification_is_not_the_watcher_that_is_wanted() {
    for (updated, expected) in [(0, None), (1, Some("Running"))] {
        let status = json!({"observedGeneration": 2, "readyReplicas": 1, "updatedReplicas": updated});
        let set = serde_json::from_value(json!({"metadata": {"generation": 2}, "status": status})).unwrap();
        let said = available(&set, None, Timestamp::UNIX_EPOCH);
        assert_eq!(said.as_ref().map(|said| said.reason.as_str()), expected);
    }
}

/// A watcher's pod whose containers run and which has not been ready since nine o'clock.
fn unready(deleted: &Value) -> Pod {
    let runs = |name: &str| json!({"name": name, "state": {"running": {}}});
    serde_json::from_value(json!({
        "metadata": {"name": "q-watcher-0", "deletionTimestamp": deleted},
        "spec": {"nodeName": "node1"},
        "status": {
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-17T09:00:00Z"}],
            "initContainerStatuses": [runs("sidecar")], "containerStatuses": [runs("watcher")],
        },
    }))
    .unwrap()
}

#[test]
fn a_watcher_that_runs_and_is_not_ready_for_long_is_silent_in_the_words_of_its_probe() {
    let set = serde_json::from_value(json!({"metadata": {}, "status": {}})).unwrap();
    let at = |time: &str| time.parse::<Timestamp>().unwrap();
    let since = at("2026-01-17T09:00:00Z");
    assert_eq!(available(&set, Some(&unready(&Value::Null)), since), None, "its events decide");
    // It is looked at again when its time is over, although nothing about it changes.
    assert_eq!(grace(since, at("2026-01-17T09:00:29Z")), Some(Duration::from_secs(1)));
    assert_eq!(grace(since, at("2026-01-17T09:00:30Z")), None);
    assert_eq!(grace(since, at("2026-01-17T08:59:00Z")), None, "the clock was set back");
    let told = Silence { reason: SilenceReason::NoApiAccess, message: "no way there".to_owned() };
    let said = silent(Some(told), since);
    assert_eq!((said.status, said.reason.as_str()), ("False", "NoApiAccess"));
    assert_eq!(said.message, "the watcher has not been ready since 2026-01-17T09:00:00Z: no way there");
    assert_eq!(silent(None, since).reason, "Silent");
}

#[test]
fn a_pod_that_should_have_gone_a_minute_ago_was_lost_with_its_node() {
    let set = serde_json::from_value(json!({"metadata": {}, "status": {}})).unwrap();
    let pod = unready(&json!("2026-01-17T09:10:00Z"));
    let at = |time: &str| available(&set, Some(&pod), time.parse().unwrap());
    assert_ne!(at("2026-01-17T09:10:59Z").map(|said| said.reason), Some("NodeLost".to_owned()));
    let said = at("2026-01-17T09:11:00Z").unwrap();
    assert_eq!(said.reason, "NodeLost");
    assert!(said.message.contains("kubectl delete node node1"), "{}", said.message);
    // It is looked at again then: whatever happens to the node, its pod does not change any more.
    let rest = |time: &str| starting::until_lost(&pod, time.parse().unwrap());
    assert_eq!(rest("2026-01-17T09:09:50Z"), Some(Duration::from_secs(70)));
    assert_eq!(rest("2026-01-17T09:11:00Z"), None);
}

#[test]
fn an_api_server_that_is_busy_says_nothing_of_the_queue() {
    let api = |code: u16| {
        let status = kube::core::Status { code, ..kube::core::Status::default() };
        Error::api("apply an object")(kube::Error::Api(Box::new(status)))
    };
    for (error, passes) in [
        (api(500), true),
        (api(503), true),
        (api(429), true),
        (api(403), false),
        (api(422), false),
        (Error::TimedOut, true),
        (Error::ObjectTaken { kind: "Role".to_owned(), name: "q-watcher".to_owned() }, false),
    ] {
        assert_eq!(error.refusal().passes, passes, "{error}");
    }
}

#[test]
fn what_the_api_server_refuses_is_told_once_in_its_own_words() {
    let message = "jobs.batch \"a-1\" is forbidden: exceeded quota: q, used: count/jobs.batch=0".to_owned();
    let status = kube::core::Status { code: 403, message, ..kube::core::Status::default() };
    let refused = Error::api("create an object")(kube::Error::Api(Box::new(status)));
    assert_eq!(
        refused.chain(),
        "cannot create an object: jobs.batch \"a-1\" is forbidden: exceeded quota: q, used: count/jobs.batch=0; it is tried \
         again by itself"
    );
}

#[test]
fn a_watcher_that_a_limit_range_refuses_is_told_with_the_fields_to_write() {
    let refused = Failure::new(Reason::WorkerConfig, "maximum cpu usage per Container is 500m, but limit is 1");
    let said = unavailable(&refused).message;
    assert!(said.starts_with("maximum cpu usage per Container is 500m, but limit is 1. "), "{said}");
    assert!(said.contains("spec.watcher.resources and spec.watcher.sidecarResources"), "{said}");
}
