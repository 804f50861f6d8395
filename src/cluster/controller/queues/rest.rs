// SPDX-License-Identifier: Apache-2.0
//! Whether a queue that is stopped needs its pod any more.

use kube::ResourceExt;
use kube::runtime::reflector::Store;

use crate::cluster::api::{ConditionState, ConditionType, ConversionJob, HyperConversion, condition};
use crate::cluster::controller::decision;
use crate::conversion::admission::RunState;
use crate::conversion::lifecycle::{Step, next_step};

/// How far a queue has come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is not to rest, or its watcher is not through.
    None,
    /// Its watcher said so, but a conversion is not seen to rest.
    Told,
    /// It is stopped and needs no pod.
    Complete,
}

/// Whether the queue is stopped and its watcher has said of this very specification that it is through. A conversion
/// that runs, or waits to be published, keeps the watcher, or brings it back.
pub(super) fn of(queue: &HyperConversion, conversions: &Store<ConversionJob>) -> Rest {
    let said = queue.status.as_ref().and_then(|status| condition(&status.conditions, ConditionType::Stopped));
    let is_told = said.is_some_and(|c| c.status == "True" && c.observed_generation == queue.metadata.generation);
    if queue.spec.run_state != RunState::Stopped || !is_told {
        return Rest::None;
    }
    let name = queue.name_any();
    let is_busy = |conversion: &ConversionJob| {
        conversion.metadata.namespace == queue.metadata.namespace
            && conversion.spec.queue_ref.name == name
            && matches!(next_step(&decision::state(conversion)), Step::Watch(_) | Step::Publish { .. })
    };
    if conversions.find(is_busy).is_some() { Rest::Told } else { Rest::Complete }
}

/// What is said of a queue without a pod.
pub(super) fn without_pod(name: &str) -> ConditionState {
    let message = format!(
        "the queue is stopped and has no pod; `kubectl hyper2kvm resume {name}`, or spec.runState Running, brings it back"
    );
    ConditionState::new("False", HyperConversion::AT_REST, message)
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;

    fn queue(run_state: &str, said: &Value) -> HyperConversion {
        serde_json::from_value(json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
            "metadata": {"name": "q", "namespace": "n", "generation": 2},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}, "runState": run_state},
            "status": {"conditions": said},
        }))
        .unwrap()
    }

    fn conversions(of: &str, status: &Value) -> Store<ConversionJob> {
        let (store, mut writer) = reflector::store();
        let object = json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob",
            "metadata": {"name": "a-00000001", "namespace": "n"},
            "spec": {"queueRef": {"name": of}, "source": {"path": "a.ova"}}, "status": status,
        });
        writer.apply_watcher_event(&Event::Apply(serde_json::from_value(object).unwrap()));
        store
    }

    #[test]
    fn a_queue_rests_when_its_watcher_says_so_of_this_specification_and_nothing_runs_or_waits_to_be_published() {
        let said = |status: &str, generation: u32| {
            json!([{"type": "Stopped", "status": status, "reason": "AtRest", "message": "m",
                    "observedGeneration": generation, "lastTransitionTime": "2026-01-17T09:00:00Z"}])
        };
        let at = "2026-01-17T09:00:00Z";
        let disrupted = json!({"number": 1, "startTime": at, "endTime": at, "reason": "Disrupted"});
        let waits = json!({"staged": 1, "attempts": [disrupted]});
        let runs = json!({"staged": 1, "attempts": [{"number": 1, "startTime": at}]});
        let converted =
            json!({"staged": 1, "converted": "p", "attempts": [{"number": 1, "startTime": at, "endTime": at}]});
        for (run_state, said, of, status, expected) in [
            ("Stopped", &said("True", 2), "q", &waits, Rest::Complete),
            ("Stopped", &said("True", 2), "q", &runs, Rest::Told),
            ("Stopped", &said("True", 2), "q", &converted, Rest::Told),
            ("Stopped", &said("True", 2), "other", &runs, Rest::Complete),
            ("Stopped", &said("True", 1), "q", &waits, Rest::None),
            ("Stopped", &said("False", 2), "q", &waits, Rest::None),
            ("Stopped", &json!([]), "q", &waits, Rest::None),
            ("Running", &said("True", 2), "q", &waits, Rest::None),
            ("Paused", &said("True", 2), "q", &waits, Rest::None),
        ] {
            assert_eq!(super::of(&queue(run_state, said), &conversions(of, status)), expected, "{run_state} {status}");
        }
    }
}
