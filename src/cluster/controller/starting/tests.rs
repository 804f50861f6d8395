// SPDX-License-Identifier: Apache-2.0
//! Pods that don't start or don't keep running, as the API server shows them, and the report of each.
#![expect(clippy::needless_pass_by_value, reason = "json! reads best where it is used")]

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "q-watcher-0"}, "status": status})).unwrap()
}

/// A watcher's pod with its sidecar in the first state and its watcher in the second.
fn watcher(sidecar: Value, watcher: Value) -> Pod {
    pod(json!({
        "initContainerStatuses": [{"name": "sidecar", "state": sidecar["state"], "lastState": sidecar["lastState"]}],
        "containerStatuses": [{"name": "watcher", "state": watcher["state"], "lastState": watcher["lastState"]}],
    }))
}

fn running() -> Value {
    json!({"state": {"running": {"startedAt": "2026-01-17T09:00:01Z"}}})
}

fn waiting_for(reason: &str, message: &str) -> Value {
    json!({"state": {"waiting": {"reason": reason, "message": message}}})
}

/// Waits for its restart after it ended like this.
fn ended_before(code: i32, reason: &str, message: &str) -> Value {
    let mut waits = waiting_for("CrashLoopBackOff", "back-off 10s restarting failed container");
    waits["lastState"] = json!({"terminated": {"exitCode": code, "reason": reason, "message": message}});
    waits
}

#[test]
fn any_container_that_waits_says_why() {
    let image = Some(Failure::new(Reason::WorkerImage, "ImagePullBackOff: no such image"));
    let config = Some(Failure::new(Reason::WorkerConfig, "CreateContainerConfigError: image will run as root"));
    for (pod, told) in [
        (watcher(waiting_for("ImagePullBackOff", "no such image"), waiting_for("PodInitializing", "")), image.clone()),
        (watcher(running(), waiting_for("ImagePullBackOff", "no such image")), image),
        (watcher(waiting_for("CreateContainerConfigError", "image will run as root"), json!({})), config),
        (watcher(waiting_for("PodInitializing", ""), waiting_for("PodInitializing", "")), None),
        (watcher(running(), running()), None),
        (pod(json!({})), None),
    ] {
        assert_eq!(waiting(&pod), told, "{pod:?}");
    }
}

#[test]
fn a_container_that_does_not_stay_says_how_it_ended_and_where_to_read_more() {
    let locked = "cannot lock /var/lib/hyper2kvm/queue";
    let by_watcher = format!(
        "container watcher ended with exit code 1 (Error): {locked}. Read its log: kubectl logs q-watcher-0 -c watcher"
    );
    let by_sidecar = "container sidecar ended with exit code 128 (StartError): no such file. \
                      Read its log: kubectl logs q-watcher-0 -c sidecar";
    let just_ended = json!({"state": {"terminated": {"exitCode": 1, "reason": "Error", "message": locked}}});
    let again = json!({"state": running()["state"], "lastState": just_ended["state"]});
    for (pod, told) in [
        (watcher(running(), ended_before(1, "Error", locked)), Some(by_watcher.as_str())),
        (watcher(running(), just_ended), Some(by_watcher.as_str())),
        (
            watcher(ended_before(128, "StartError", "no such file"), waiting_for("PodInitializing", "")),
            Some(by_sidecar),
        ),
        (watcher(running(), again), None),
        (watcher(running(), running()), None),
        (watcher(waiting_for("ContainerCreating", ""), waiting_for("PodInitializing", "")), None),
    ] {
        assert_eq!(crashing(&pod).as_deref(), told, "{pod:?}");
    }
    let mut leaving = watcher(running(), ended_before(143, "Error", ""));
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
    assert_eq!(crashing(&leaving), None, "it is to end");
}

#[test]
fn text_from_outside_is_bounded_and_harmless() {
    let text = format!("{}\u{1b}[31m", "é".repeat(MAX_TEXT));
    let failure = waiting(&watcher(waiting_for("ErrImagePull", &text), json!({}))).unwrap();
    assert!(failure.message.len() <= MAX_TEXT && !failure.message.contains('\u{1b}'));
}

#[test]
fn of_a_long_log_its_end_is_told() {
    let log = format!("{}the last word", "a line of before\n".repeat(1000));
    let said = crashing(&watcher(running(), ended_before(1, "Error", &log))).unwrap();
    assert!(said.contains("the last word") && said.len() < 2 * MAX_TEXT && !said.contains('\n'), "{said}");
}

#[test]
fn a_pod_has_begun_once_a_container_of_it_ran() {
    for (pod, begun) in [
        (watcher(running(), waiting_for("PodInitializing", "")), true),
        (watcher(ended_before(1, "Error", ""), waiting_for("PodInitializing", "")), true),
        (watcher(waiting_for("PodInitializing", ""), waiting_for("PodInitializing", "")), false),
        (pod(json!({})), false),
    ] {
        assert_eq!(has_begun(&pod), begun, "{pod:?}");
    }
}

#[test]
fn only_events_that_explain_a_wait_are_taken_over() {
    let mount = from_event("FailedMount", "MountVolume.SetUp failed: no such claim");
    assert_eq!(mount, Some(Failure::new(Reason::Unschedulable, "MountVolume.SetUp failed: no such claim")));
    let quota = from_event("FailedCreate", "create Pod q-watcher-0 failed: exceeded quota: none");
    assert_eq!(quota, Some(Failure::new(Reason::WorkerConfig, "create Pod q-watcher-0 failed: exceeded quota: none")));
    assert_eq!(from_event("Pulled", "done"), None);
}

#[test]
fn containers_of_others_in_the_pod_neither_hide_ours_nor_stand_for_them() {
    let injected = |mut pod: Pod, setup: Value, proxy: Value| {
        let status = pod.status.as_mut().unwrap();
        let container = |name: &str, at: &Value| {
            serde_json::from_value(json!({"name": name, "state": at["state"], "lastState": at["lastState"]})).unwrap()
        };
        status.init_container_statuses.as_mut().unwrap().insert(0, container("a-setup", &setup));
        status.container_statuses.as_mut().unwrap().insert(0, container("a-proxy", &proxy));
        pod
    };
    let done = || json!({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let initializing = || watcher(waiting_for("PodInitializing", ""), waiting_for("PodInitializing", ""));
    let begins = injected(initializing(), done(), waiting_for("PodInitializing", ""));
    assert_eq!((crashing(&begins), has_begun(&begins)), (None, false), "an end that was to come is no crash");

    let no_image = || waiting_for("ImagePullBackOff", "no such image");
    let theirs = injected(initializing(), done(), no_image());
    assert_eq!(waiting(&theirs), Some(Failure::new(Reason::WorkerImage, "ImagePullBackOff: no such image")));
    let config = waiting_for("CreateContainerConfigError", "image will run as root");
    let both = injected(watcher(running(), config), done(), no_image());
    let ours = Failure::new(Reason::WorkerConfig, "CreateContainerConfigError: image will run as root");
    assert_eq!(waiting(&both), Some(ours), "ours first");

    let both =
        injected(watcher(running(), ended_before(1, "Error", "locked")), done(), ended_before(7, "Error", "off"));
    assert!(crashing(&both).unwrap().starts_with("container watcher ended with exit code 1"), "ours first");
    let theirs = injected(watcher(running(), running()), done(), ended_before(7, "Error", "off"));
    assert!(crashing(&theirs).unwrap().starts_with("container a-proxy ended with exit code 7"));
}

#[test]
fn what_a_probe_said_is_read_from_its_event_alone() {
    let note = r#"Readiness probe failed: {"reason":"NoApiAccess","message":"no way"}
"#;
    let told = from_probe("Unhealthy", note).unwrap();
    assert_eq!((told.reason.as_str(), told.message.as_str()), ("NoApiAccess", "no way"));
    assert_eq!(from_probe("Killing", note), None);
    assert_eq!(from_probe("Unhealthy", "Readiness probe failed: command timed out"), None);
}

#[test]
fn an_object_is_early_for_five_seconds_and_never_where_our_clock_lags_and_is_looked_at_ever_less_often() {
    let at = |time: &str| time.parse::<Timestamp>().unwrap();
    let made = ObjectMeta {
        creation_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at("2026-01-17T09:00:00Z"))),
        ..ObjectMeta::default()
    };
    for (now, wait, poll) in [
        ("2026-01-17T09:00:02Z", Some(3), 5),
        ("2026-01-17T09:00:05Z", None, 5),
        ("2026-01-17T09:01:20Z", None, 20),
        ("2026-01-17T10:00:00Z", None, 60),
        ("2026-01-17T08:50:00Z", None, 5),
    ] {
        let found = (early(&made, at(now)).map(|wait| wait.as_secs()), next_poll(&made, at(now)).as_secs());
        assert_eq!(found, (wait, poll), "{now}");
    }
}

#[test]
fn a_directory_that_the_kubelet_can_t_prepare_has_a_remedy_of_its_own() {
    let text = r#"failed to prepare subPath for volumeMount "queue" of container "watcher""#;
    let failure = waiting(&watcher(running(), waiting_for("CreateContainerConfigError", text))).unwrap();
    assert_eq!(failure.reason, Reason::WorkerConfig);
    assert!(failure.advice().contains("root_squash"), "{}", failure.advice());
}

#[test]
fn volumes_of_other_nodes_are_told_from_nodes_that_are_full() {
    let unscheduled = |message: &str| {
        pod(
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": "2026-01-17T09:00:00Z"}]}),
        )
    };
    for (message, expected) in [
        ("0/1 nodes are available: 1 node(s) had volume node affinity conflict.", true),
        ("0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.", true),
        (
            "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) had \
             volume node affinity conflict.",
            true,
        ),
        ("0/2 nodes are available: 1 Insufficient memory, 1 node(s) had volume node affinity conflict.", false),
        ("0/2 nodes are available: 1 Too many pods, 1 node(s) had volume node affinity conflict.", false),
        ("0/2 nodes are available: 2 Insufficient cpu.", false),
    ] {
        assert_eq!(out_of_reach(&unscheduled(message)).is_some(), expected, "{message}");
    }
}
