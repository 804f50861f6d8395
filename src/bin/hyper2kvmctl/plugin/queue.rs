// SPDX-License-Identifier: Apache-2.0
//! `status`, `stats`, and the four commands that change a queue's run state.

use std::fmt::Write as _;

use hyper2kvm::cluster::api::{HyperConversion, HyperConversionStatus, QueueTotals, condition};
use hyper2kvm::conversion::admission::RunState;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::access::{Access, told};
use super::{NAME, Printer, Refusal};
use crate::table::{age, or_dash, table};

pub(super) async fn status(access: &Access, queue: Option<&str>, printer: Printer) -> Result<(), Refusal> {
    let queues = match queue {
        Some(name) => vec![access.queues().get(name).await.map_err(|error| access.about_queue(name, error))?],
        None => access.queues().list(&ListParams::default()).await.map_err(told)?.items,
    };
    let namespace = &access.namespace;
    let object = match (queue, queues.as_slice()) {
        (Some(_), [only]) => serde_json::to_value(only)?,
        (_, all) => json!({ "apiVersion": "v1", "kind": "List", "items": all }),
    };
    printer.print(&object, || if queues.is_empty() { none(namespace) } else { overview(&queues) })
}

fn none(namespace: &str) -> String {
    format!(
        "No HyperConversion in namespace {namespace}.\nMake one with `kubectl apply`, or look elsewhere with -n; \
         `kubectl get hyperconversions -A` shows all.\n"
    )
}

fn overview(queues: &[HyperConversion]) -> String {
    let header =
        ["QUEUE", "STATE", "READY", "QUEUED", "SETTLING", "RETRYING", "ACTIVE", "SUCCEEDED", "FAILED", "ACTIVITY"];
    let now = Timestamp::now();
    let mut text = table(
        &header,
        queues.iter().map(|queue| {
            let status = queue.status.clone().unwrap_or_default();
            let totals = status.totals.unwrap_or_default();
            vec![
                queue.name_any(),
                format!("{:?}", queue.spec.run_state),
                or_dash(condition(&status.conditions, "Ready").map(|ready| ready.status.clone())),
                or_dash(status.queued),
                or_dash(status.settling),
                or_dash(status.retrying),
                or_dash(status.active),
                totals.succeeded.to_string(),
                totals.failed.to_string(),
                age(status.last_activity_time, now),
            ]
        }),
    );
    for queue in queues {
        text.push_str(&remarks(queue));
    }
    text
}

/// What is wrong with a queue, in its conditions' own words, and what its run state means.
fn remarks(queue: &HyperConversion) -> String {
    let name = queue.name_any();
    let mut text = String::new();
    let conditions = queue.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if conditions.is_empty() {
        let _ = writeln!(text, "\n{name}: nobody has looked at it yet; is the operator running?");
    }
    // Unfinished draining is no fault, and Ready only repeats another condition.
    // Nor is a queue that comes to rest, or has no pod because it is stopped.
    let is_asked_for = |c: &Condition| c.type_ == "Drained" || c.type_ == "Stopped" || c.reason == "Stopped";
    let faults = conditions.iter().filter(|c| c.status == "False" && !is_asked_for(c));
    for fault in faults {
        let _ = writeln!(text, "\n{name}: {} is False, {}: {}", fault.type_, fault.reason, fault.message);
    }
    let resume = format!("`kubectl hyper2kvm resume {name}` goes on");
    let is_drained = condition(conditions, "Drained").is_some_and(|c| c.status == "True");
    let remark = match queue.spec.run_state {
        RunState::Running => return text,
        RunState::Paused => format!("paused, nothing new starts; {resume}"),
        RunState::Stopped if queue.is_at_rest() => format!("stopped, it has no pod and every source stays; {resume}"),
        RunState::Stopped => format!("stopped, every source stays; {resume}"),
        RunState::Draining if is_drained => format!("drained; {resume}"),
        RunState::Draining => format!("draining; `kubectl wait --for=condition=Drained hconv/{name}` waits for it"),
    };
    let _ = writeln!(text, "\n{name}: {remark}");
    text
}

pub(super) async fn stats(access: &Access, queue: &str, printer: Printer) -> Result<(), Refusal> {
    let found = access.queues().get(queue).await.map_err(|error| access.about_queue(queue, error))?;
    let status = found.status.unwrap_or_default();
    printer.print(&status, || figures(queue, &status, Timestamp::now()))
}

fn figures(queue: &str, status: &HyperConversionStatus, now: Timestamp) -> String {
    let QueueTotals { succeeded, failed, duplicates, retried, cancelled } = status.totals.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "one decimal of a rate for a person")]
    let rate = match succeeded + failed {
        0 => 0.0,
        ended => succeeded as f64 / ended as f64 * 100.0,
    };
    let rows = [
        ("Processed", succeeded.to_string()),
        ("Failed", failed.to_string()),
        ("Total retried", retried.to_string()),
        ("Cancelled", cancelled.to_string()),
        ("Duplicates", duplicates.to_string()),
        ("Success Rate", format!("{rate:.1}%")),
        ("Queue Depth", or_dash(status.queued)),
        ("Settling", or_dash(status.settling)),
        ("Retrying", or_dash(status.retrying)),
        ("Active", or_dash(status.active)),
        ("Last Activity", age(status.last_activity_time, now)),
    ];
    let lines = rows.iter().fold(String::new(), |text, (key, value)| format!("{text}  {key}: {value}\n"));
    format!("📊 {queue}:\n{lines}")
}

pub(super) async fn ask_for(
    access: &Access,
    queue: &str,
    run_state: RunState,
    printer: Printer,
) -> Result<(), Refusal> {
    let patch = json!({ "spec": { "runState": run_state } });
    let params = PatchParams { field_manager: Some(NAME.to_owned()), ..PatchParams::default() };
    let changed = access
        .queues()
        .patch(queue, &params, &Patch::Merge(patch))
        .await
        .map_err(|error| access.about_queue(queue, error))?;
    printer.print(&changed, || {
        let done = match run_state {
            RunState::Running => "goes on",
            RunState::Paused => "is paused: running conversions finish, nothing new starts",
            RunState::Draining => {
                return format!(
                    "{queue} drains: what is queued is finished, nothing more is taken\n\
                     `kubectl -n {} wait --for=condition=Drained --timeout=-1s hconv/{queue}` waits for it\n",
                    access.namespace
                );
            }
            RunState::Stopped => "is stopped: running conversions end, every source stays",
        };
        format!("{queue} {done}\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(spec: &str) -> HyperConversion {
        let object = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion", "metadata": {"name": "vmware-exit"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}, "runState": spec},
            "status": {"queued": 3, "active": 1, "totals": {"succeeded": 45, "failed": 2}, "conditions": [{
                "type": "StorageReady", "status": "False", "reason": "NoSpace", "message": "make room",
                "lastTransitionTime": "2026-01-17T09:45:00Z",
            }]},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_queue_is_one_line_with_its_faults_and_the_next_step_below() {
        assert_eq!(
            overview(&[queue("Paused")]),
            "\
QUEUE         STATE    READY   QUEUED   SETTLING   RETRYING   ACTIVE   SUCCEEDED   FAILED   ACTIVITY
vmware-exit   Paused   -       3        -          -          1        45          2        -

vmware-exit: StorageReady is False, NoSpace: make room

vmware-exit: paused, nothing new starts; `kubectl hyper2kvm resume vmware-exit` goes on
"
        );
    }

    #[test]
    fn a_stopped_queue_without_a_pod_has_no_fault() {
        let mut stopped = queue("Stopped");
        let said = |kind: &str, status: &str, reason: &str| -> Condition {
            let at = "2026-01-17T09:45:00Z";
            let said =
                json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": at});
            serde_json::from_value(said).unwrap()
        };
        let conditions = &mut stopped.status.as_mut().unwrap().conditions;
        *conditions = vec![said("Stopped", "False", "Ending")];
        let text = overview(&[stopped.clone()]);
        assert!(text.ends_with(
            "\n\nvmware-exit: stopped, every source stays; `kubectl hyper2kvm resume vmware-exit` goes on\n"
        ));
        let conditions = &mut stopped.status.as_mut().unwrap().conditions;
        *conditions = ["Ready", "WatcherAvailable"].map(|kind| said(kind, "False", "Stopped")).to_vec();
        let text = overview(&[stopped]);
        assert!(text.ends_with("\n\nvmware-exit: stopped, it has no pod and every source stays; `kubectl hyper2kvm resume vmware-exit` goes on\n"));
    }

    #[test]
    fn figures_read_like_the_control_client_s() {
        let status = queue("Running").status.unwrap();
        let text = figures("vmware-exit", &status, Timestamp::UNIX_EPOCH);
        assert!(text.starts_with("📊 vmware-exit:\n  Processed: 45\n  Failed: 2\n  Total retried: 0\n"), "{text}");
        assert!(text.contains("  Success Rate: 95.7%\n  Queue Depth: 3\n"), "{text}");
    }
}
