// SPDX-License-Identifier: Apache-2.0
//! What a pod's status says of our own containers.
//!
//! Webhooks inject other containers into any pod, and a status lists all of them in an order of its own. So ours are
//! found by name, here and nowhere else.

use crate::cluster::names;
use crate::cluster::seen::{ContainerStateTerminated, ContainerStatus, Pod};

/// Every container of a pod, those that run before the others first.
pub(crate) fn all(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    init.into_iter().chain(status.and_then(|status| status.container_statuses.as_ref())).flatten()
}

/// Whether a container is one that the operator puts into its pods.
pub(crate) fn is_ours(container: &ContainerStatus) -> bool {
    let ours = [names::CONTAINER_WORKER, names::CONTAINER_WATCHER, names::CONTAINER_SIDECAR];
    container.name.as_deref().is_some_and(|name| ours.contains(&name))
}

/// Whether this is the container that converts.
pub(crate) fn is_worker(container: &ContainerStatus) -> bool {
    container.name.as_deref() == Some(names::CONTAINER_WORKER)
}

fn worker(pod: &Pod) -> Option<&ContainerStatus> {
    all(pod).find(|container| is_worker(container))
}

/// How the worker ended; `None` as long as it has not.
pub(crate) fn worker_end(pod: &Pod) -> Option<&ContainerStateTerminated> {
    worker(pod)?.state.as_ref()?.terminated.as_ref()
}

/// Whether the worker runs now.
pub(crate) fn worker_runs(pod: &Pod) -> bool {
    worker(pod).and_then(|worker| worker.state.as_ref()).is_some_and(|state| state.running.is_some())
}

/// Whether the worker runs or ran.
pub(crate) fn worker_has_started(pod: &Pod) -> bool {
    // A container that never ran is reported as terminated too when its pod fails, but without a start time.
    worker_runs(pod) || worker_end(pod).is_some_and(|end| end.started_at.is_some())
}

/// Whether the worker succeeded. Other containers of its pod may still run, or fail.
pub(crate) fn worker_succeeded(pod: &Pod) -> bool {
    phase(pod) == "Succeeded" || worker_end(pod).is_some_and(|end| end.exit_code == 0)
}

/// Whether the worker has ended, or will never start. A worker is never restarted.
pub(crate) fn worker_is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed") || worker_end(pod).is_some()
}

/// A pod's phase, which depends on all its containers.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A worker's pod with containers injected before and after ours.
    fn pod(phase: &str, worker: &Value) -> Pod {
        let runs = json!({"running": {"startedAt": "2026-01-17T09:00:01Z"}});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {
            "phase": phase,
            "initContainerStatuses": [{"name": "a-setup", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [
                {"name": "a-proxy", "state": runs}, {"name": "worker", "state": worker}, {"name": "z-proxy", "state": runs},
            ],
        }}))
        .unwrap()
    }

    #[test]
    fn a_worker_s_state_is_its_own_whatever_others_in_its_pod_do() {
        let started = "2026-01-17T09:00:01Z";
        for (phase, state, [runs, started, succeeded, over]) in [
            ("Pending", json!({"waiting": {"reason": "PodInitializing"}}), [false, false, false, false]),
            ("Running", json!({"waiting": {"reason": "ContainerCreating"}}), [false, false, false, false]),
            ("Running", json!({"running": {"startedAt": started}}), [true, true, false, false]),
            ("Running", json!({"terminated": {"exitCode": 0, "startedAt": started}}), [false, true, true, true]),
            ("Running", json!({"terminated": {"exitCode": 1, "startedAt": started}}), [false, true, false, true]),
            ("Failed", json!({"terminated": {"exitCode": 0, "startedAt": started}}), [false, true, true, true]),
            ("Failed", json!({"waiting": {"reason": "PodInitializing"}}), [false, false, false, true]),
        ] {
            let pod = pod(phase, &state);
            let found = [worker_runs(&pod), worker_has_started(&pod), worker_succeeded(&pod), worker_is_over(&pod)];
            assert_eq!(found, [runs, started, succeeded, over], "{phase} {state}");
        }
    }
}
