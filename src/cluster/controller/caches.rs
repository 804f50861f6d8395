// SPDX-License-Identifier: Apache-2.0
//! What the controller's caches keep of objects, and which reconcilers a change wakes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;

use super::admission::{Admission, Key, Message, SlotNeed};
use super::context::Caches;
use super::decision;
use super::metrics::Metrics;
use super::{outcome, status};
use crate::cluster::api::{ConditionType, ConversionJob, ConversionJobStatus, HyperConversion, condition};
use crate::cluster::cache::{self, Change, Scope, Unlisted};
use crate::cluster::defaults::QueueDefaults;
use crate::cluster::names;
use crate::cluster::seen::{Job, Pod, StatefulSet};
use crate::conversion::lifecycle::{Step, next_step};
use crate::conversion::status::End;
use crate::conversion::{Attempt, ConversionId};

/// Sends objects to a reconciler.
pub(super) type Trigger<K> = mpsc::UnboundedSender<ObjectRef<K>>;

/// Starts the watches that fill the caches. Each change goes to `receivers` after its cache has it.
pub(super) fn watch_all(
    client: &Client,
    namespaces: &[String],
    defaults: QueueDefaults,
    receivers: &Receivers,
    metrics: &Arc<Metrics>,
) -> (Caches, [Unlisted; 5]) {
    let everything = watcher::Config::default();
    let ours = watcher::Config::default().labels(&format!("{}={}", names::LABEL_MANAGED_BY, names::MANAGED_BY));
    let (of_queues, to) = (Arc::clone(metrics), receivers.clone());
    let (metrics, mut census) = (Arc::clone(metrics), Census::default());
    let (conversions, conversions_listed) =
        cache::watch(client, namespaces, &everything, slim_conversion, move |change| {
            census.changed(&change, &metrics);
            to.conversion_changed(&change);
        });
    let (to, all, mut changes) = (receivers.clone(), conversions.clone(), QueueChanges::default());
    let fill_in = move |queue: &mut HyperConversion| defaults.apply(&mut queue.spec);
    let (queues, queues_listed) = cache::watch(client, namespaces, &everything, fill_in, move |change| {
        match &change {
            Change::Seen(queue) => of_queues.queue_seen(queue),
            Change::Gone(queue) => of_queues.queue_gone(queue),
        }
        to.queue_changed(&change, &mut changes, &all);
    });
    let to = receivers.clone();
    let (jobs, jobs_listed) = cache::watch(client, namespaces, &ours, whole, move |change| to.job_changed(&change));
    let to = receivers.clone();
    let (pods, pods_listed) = cache::watch(client, namespaces, &ours, whole, move |change| to.pod_changed(&change));
    let to = receivers.clone();
    let (_, sets_listed) =
        cache::watch(client, namespaces, &ours, whole, move |change| to.stateful_set_changed(&change));
    let caches = Caches { queues, conversions, jobs, pods };
    (caches, [queues_listed, conversions_listed, jobs_listed, pods_listed, sets_listed])
}

/// Scopes of which all kinds are listed.
#[must_use]
pub(super) fn listed(scopes: &[Scope], unlisted: &[Unlisted]) -> HashSet<Scope> {
    let is_listed = |scope: &&Scope| unlisted.iter().all(|kind| !kind.borrow().contains(*scope));
    scopes.iter().filter(is_listed).cloned().collect()
}

/// Keeps of a finished conversion only what shows that it has finished: there may be ten thousand of them.
fn slim_conversion(conversion: &mut ConversionJob) {
    if let Some(status) = &mut conversion.status {
        status.outputs.clear();
        status.machine = None;
        status.other_machines.clear();
        if status.state.is_terminal() {
            status.plan = None;
            status.progress = None;
        }
    }
}

/// Keeps all of an object.
fn whole<K>(_: &mut K) {}

/// Receives changes of all kinds: admission, and the triggers of both reconcilers.
#[derive(Clone)]
pub(super) struct Receivers {
    pub admission: Admission,
    pub queues: Trigger<HyperConversion>,
    pub conversions: Trigger<ConversionJob>,
}

impl Receivers {
    /// Reports a change of a conversion to admission and wakes its reconciler.
    fn conversion_changed(&self, change: &Change<ConversionJob>) {
        let (Change::Seen(conversion) | Change::Gone(conversion)) = change;
        let Ok(id) = conversion.name_any().parse::<ConversionId>() else {
            // Its reconcile reports the problem on the object.
            let _ = self.conversions.send(ObjectRef::from_obj(conversion));
            return;
        };
        let namespace = conversion.namespace().unwrap_or_default();
        if matches!(change, Change::Gone(_)) {
            return self.admission.send(Message::ConversionGone { namespace, id });
        }
        let queue = Key { namespace, name: conversion.spec.queue_ref.name.clone() };
        let created = conversion.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        if status::refused(conversion).is_some() {
            let _ = self.queues.send(ObjectRef::new(&queue.name).within(&queue.namespace));
        }
        self.admission.send(Message::Conversion { queue, id, created, need: slot_need(conversion) });
        let _ = self.conversions.send(ObjectRef::from_obj(conversion));
    }

    /// Reports a change of a queue to admission, and wakes its reconciler and those of its conversions in `all`.
    fn queue_changed(&self, change: &Change<HyperConversion>, changes: &mut QueueChanges, all: &Store<ConversionJob>) {
        if changes.changed(change, &self.admission, &self.queues) {
            let (Change::Seen(queue) | Change::Gone(queue)) = change;
            self.wake_conversions_of(queue, all);
        }
    }

    /// Wakes the conversions of a queue that have not ended, after its specification changed.
    fn wake_conversions_of(&self, queue: &HyperConversion, all: &Store<ConversionJob>) {
        let (name, namespace) = (queue.name_any(), queue.namespace());
        let concerned = all.state_filter(|conversion| {
            conversion.metadata.namespace == namespace
                && conversion.spec.queue_ref.name == name
                && conversion.status.as_ref().is_none_or(|status| !status.state.is_terminal())
        });
        for conversion in concerned {
            let _ = self.conversions.send(ObjectRef::from_obj(conversion.as_ref()));
        }
    }

    /// Reports a change of a Job to admission and wakes its conversion's reconciler.
    fn job_changed(&self, change: &Change<Job>) {
        let (Change::Seen(job) | Change::Gone(job)) = change;
        let Some((queue, id, attempt)) = identity(job) else { return };
        let conversion = ObjectRef::new(id.as_str()).within(&queue.namespace);
        self.admission.send(match change {
            Change::Seen(job) => Message::Job { queue, id, attempt, finished: outcome::is_finished(job) },
            Change::Gone(_) => Message::JobGone { queue, id, attempt },
        });
        let _ = self.conversions.send(conversion);
    }

    /// Wakes the conversion of a worker's pod, or the queue of a watcher's pod.
    fn pod_changed(&self, change: &Change<Pod>) {
        let (Change::Seen(pod) | Change::Gone(pod)) = change;
        let namespace = pod.namespace().unwrap_or_default();
        let labels = pod.labels();
        if let Some(conversion) = labels.get(names::LABEL_CONVERSION) {
            let _ = self.conversions.send(ObjectRef::new(conversion).within(&namespace));
        } else if let Some(queue) = labels.get(names::LABEL_QUEUE) {
            let _ = self.queues.send(ObjectRef::new(queue).within(&namespace));
        }
    }

    /// Wakes the queue of a watcher's stateful set.
    fn stateful_set_changed(&self, change: &Change<StatefulSet>) {
        let (Change::Seen(set) | Change::Gone(set)) = change;
        if let Some(queue) = set.labels().get(names::LABEL_QUEUE) {
            let _ = self.queues.send(ObjectRef::new(queue).within(&set.namespace().unwrap_or_default()));
        }
    }
}

/// Counts ends of conversions: only of those seen open before, so that a restart counts none again.
#[derive(Debug, Default)]
struct Census {
    open: HashSet<ObjectRef<ConversionJob>>,
}

impl Census {
    /// Counts by a change.
    fn changed(&mut self, change: &Change<ConversionJob>, metrics: &Metrics) {
        let (Change::Seen(conversion) | Change::Gone(conversion)) = change;
        let name = ObjectRef::from_obj(*conversion);
        let state = decision::state(conversion);
        let Some(end) = state.end else {
            match change {
                Change::Seen(_) => self.open.insert(name),
                Change::Gone(_) => self.open.remove(&name),
            };
            return;
        };
        if self.open.remove(&name) {
            let bytes = conversion.spec.source.size_bytes.filter(|_| end == End::Succeeded).unwrap_or_default();
            metrics.conversion_ended(end, bytes);
            if let (End::Failed, Some(failure)) = (end, &state.failure) {
                let namespace = conversion.namespace().unwrap_or_default();
                metrics.conversion_failed(&namespace, &conversion.spec.queue_ref.name, failure.reason);
            }
        }
    }
}

/// What the conversion needs of slots.
fn slot_need(conversion: &ConversionJob) -> SlotNeed {
    if decision::needs_no_job(conversion) {
        return SlotNeed::Idle;
    }
    match next_step(&decision::state(conversion)) {
        // What is left to do takes no worker.
        Step::Watch(_) if conversion.status.as_ref().is_some_and(ConversionJobStatus::is_delivering) => SlotNeed::Idle,
        Step::Start(attempt) => SlotNeed::Ready(attempt),
        Step::Watch(attempt) => SlotNeed::Open(attempt),
        _ => SlotNeed::Idle,
    }
}

fn identity(job: &Job) -> Option<(Key, ConversionId, Attempt)> {
    let labels = job.labels();
    let name = labels.get(names::LABEL_QUEUE)?.clone();
    let id = labels.get(names::LABEL_CONVERSION)?.parse().ok()?;
    let attempt = Attempt(labels.get(names::LABEL_ATTEMPT)?.parse().ok()?);
    Some((Key { namespace: job.namespace()?, name }, id, attempt))
}

/// What of a queue matters to the controller. Its watcher writes counters all the time, which do not.
#[derive(Debug, PartialEq, Eq)]
struct Concern {
    uid: Option<String>,
    generation: Option<i64>,
    annotations: BTreeMap<String, String>,
    /// The watcher's words on which the controller's own depend.
    said: [Option<(String, String, Option<i64>)>; 2],
    deleting: bool,
}

/// Reports queues to admission, and wakes reconcilers when a specification changed.
#[derive(Debug, Default)]
struct QueueChanges {
    seen: HashMap<ObjectRef<HyperConversion>, Concern>,
}

impl QueueChanges {
    /// Handles a change; true if the queue's conversions should be reconciled, too.
    fn changed(
        &mut self,
        change: &Change<HyperConversion>,
        admission: &Admission,
        wake: &Trigger<HyperConversion>,
    ) -> bool {
        let (Change::Seen(queue) | Change::Gone(queue)) = change;
        let name = ObjectRef::from_obj(*queue);
        if matches!(change, Change::Gone(_)) {
            self.seen.remove(&name);
            admission.send(Message::QueueGone { queue: Key::of(*queue) });
            return true;
        }
        let conditions = queue.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let said = [ConditionType::StorageReady, ConditionType::Stopped].map(|kind| {
            let said = condition(conditions, kind)?;
            Some((said.status.clone(), said.reason.clone(), said.observed_generation))
        });
        let concern = Concern {
            uid: queue.uid(),
            generation: queue.metadata.generation,
            annotations: queue.annotations().clone(),
            said,
            deleting: queue.metadata.deletion_timestamp.is_some(),
        };
        let before = self.seen.get(&name);
        if before == Some(&concern) {
            return false;
        }
        let specification = before.is_none_or(|before| {
            before.generation != concern.generation
                || before.annotations != concern.annotations
                || before.uid != concern.uid
        });
        self.seen.insert(name.clone(), concern);
        let limit = usize::try_from(queue.spec.max_concurrent_jobs).unwrap_or(usize::MAX);
        admission.send(Message::Queue { queue: Key::of(*queue), limit, run_state: queue.spec.run_state });
        let _ = wake.send(name);
        specification
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn queue(conditions: &Value, queued: u32) -> HyperConversion {
        serde_json::from_value(json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "HyperConversion",
            "metadata": {"name": "q", "namespace": "n", "uid": "u", "generation": 1},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}},
            "status": {"queued": queued, "conditions": conditions},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn of_what_a_watcher_writes_only_what_the_controller_s_words_depend_on_wakes_it() {
        let admission = Admission::start(mpsc::unbounded_channel().0, |_, _| {});
        let (wake, mut woken) = mpsc::unbounded_channel();
        let mut changes = QueueChanges::default();
        let said = |kind: &str, status: &str| json!([{"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-17T09:00:00Z"}]);
        for (seen, wakes) in [
            ((json!([]), 0), true),
            ((json!([]), 1), false),
            ((said("StorageReady", "True"), 1), true),
            ((said("StorageReady", "False"), 1), true),
            ((said("Stopped", "False"), 1), true),
            ((said("Stopped", "True"), 1), true),
            ((said("Stopped", "True"), 2), false),
        ] {
            let seen = queue(&seen.0, seen.1);
            changes.changed(&Change::Seen(&seen), &admission, &wake);
            assert_eq!(woken.try_recv().is_ok(), wakes, "{seen:?}");
        }
    }
}
