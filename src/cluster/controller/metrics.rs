// SPDX-License-Identifier: Apache-2.0
//! What the controller counts: by kind and reason, and of queues what they are like. Never by conversion.

use std::time::Duration;

use kube::ResourceExt;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::Error;
use crate::cluster::api::{ConditionType, HyperConversion, condition};
use crate::conversion::Reason;
use crate::conversion::admission::RunState;
use crate::conversion::status::End;
use crate::telemetry::metrics::exposition;

/// Buckets of a reconcile, in seconds.
const RECONCILE: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];
/// Buckets of an attempt, in seconds.
const ATTEMPT: [f64; 9] = [1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21_600.0, 86_400.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindReason {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Namespace {
    namespace: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailureOfQueue {
    namespace: String,
    queue: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQueue {
    namespace: String,
    queue: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionOfQueue {
    namespace: String,
    queue: String,
    r#type: String,
    status: &'static str,
}

/// What a condition may say.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// Outcomes of conversions, in the words of the daemon's metrics.
const fn outcome(end: End) -> &'static str {
    match end {
        End::Succeeded => "succeeded",
        End::Failed => "failed",
        End::Duplicate => "duplicate",
        End::Cancelled => "cancelled",
    }
}

/// The metrics and the registry that shows them.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    reconciles: Family<Kind, Counter>,
    durations: Family<Kind, Histogram>,
    errors: Family<KindReason, Counter>,
    attempts: Family<Outcome, Counter>,
    attempt_seconds: Histogram,
    conversions: Family<Outcome, Counter>,
    bytes: Counter,
    running: Gauge,
    queued: Gauge,
    leader: Gauge,
    served: Family<Namespace, Gauge>,
    conditions: Family<ConditionOfQueue, Gauge>,
    queue_queued: Family<OfQueue, Gauge>,
    queue_active: Family<OfQueue, Gauge>,
    queue_failed: Family<OfQueue, Gauge>,
    queue_failures: Family<FailureOfQueue, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hyper2kvm");
        let metrics = Self {
            registry: Registry::default(),
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(RECONCILE)),
            errors: Family::default(),
            attempts: Family::default(),
            attempt_seconds: Histogram::new(ATTEMPT),
            conversions: Family::default(),
            bytes: Counter::default(),
            running: Gauge::default(),
            queued: Gauge::default(),
            leader: Gauge::default(),
            served: Family::default(),
            conditions: Family::default(),
            queue_queued: Family::default(),
            queue_active: Family::default(),
            queue_failed: Family::default(),
            queue_failures: Family::default(),
        };
        let Self { reconciles, durations, errors, attempts, .. } = &metrics;
        registry.register("reconciles", "Reconciles", reconciles.clone());
        registry.register("reconcile_duration_seconds", "Time that a reconcile took", durations.clone());
        registry.register("reconcile_errors", "Failed reconciles, by reason", errors.clone());
        registry.register("attempts", "Ended attempts, by outcome", attempts.clone());
        registry.register("attempt_duration_seconds", "Time that an attempt took", metrics.attempt_seconds.clone());
        registry.register("conversions", "Ended conversions, by outcome", metrics.conversions.clone());
        registry.register("converted_bytes", "Size of the sources of successful conversions", metrics.bytes.clone());
        registry.register("running", "Attempts that hold a slot", metrics.running.clone());
        registry.register("queued", "Conversions that wait for a slot", metrics.queued.clone());
        registry.register("leader", "Whether this replica leads", metrics.leader.clone());
        registry.register(
            "namespace_served",
            "Whether the objects of a watched namespace are listed",
            metrics.served.clone(),
        );
        registry.register("queue_condition", "Conditions of queues, by type and status", metrics.conditions.clone());
        registry.register("queue_queued", "Artifacts of a queue that wait", metrics.queue_queued.clone());
        registry.register("queue_active", "Conversions of a queue that run", metrics.queue_active.clone());
        registry.register(
            "queue_failed",
            "Conversions of a queue that failed for good, ever",
            metrics.queue_failed.clone(),
        );
        registry.register(
            "queue_failures",
            "Conversions of a queue that failed for good since this replica leads, by reason",
            metrics.queue_failures.clone(),
        );
        metrics.initialise();
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The version that runs", build);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// One reconcile ended.
    pub(super) fn reconciled(&self, kind: &'static str, took: Duration, error: Option<&'static str>) {
        self.reconciles.get_or_create(&Kind { kind }).inc();
        self.durations.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
        if let Some(reason) = error {
            self.errors.get_or_create(&KindReason { kind, reason }).inc();
        }
    }

    /// One attempt ended: `Succeeded`, or its reason.
    pub(super) fn attempt_ended(&self, outcome: String, took: Duration) {
        self.attempts.get_or_create(&Outcome { outcome }).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    /// One conversion ended; `bytes` of source if it succeeded.
    pub(super) fn conversion_ended(&self, end: End, bytes: u64) {
        self.conversions.get_or_create(&Outcome { outcome: outcome(end).to_owned() }).inc();
        self.bytes.inc_by(bytes);
    }

    /// One conversion of a queue failed for good.
    pub(super) fn conversion_failed(&self, namespace: &str, queue: &str, reason: Reason) {
        self.queue_failures.get_or_create(&failure_of(namespace, queue, reason)).inc();
    }

    /// Shows every series from the start: of one that begins at 1, no increase is seen.
    fn initialise(&self) {
        for end in [End::Succeeded, End::Failed, End::Duplicate, End::Cancelled] {
            drop(self.conversions.get_or_create(&Outcome { outcome: outcome(end).to_owned() }));
        }
        let reasons = Reason::ALL.iter().map(ToString::to_string);
        for outcome in reasons.chain(["Succeeded".to_owned()]) {
            drop(self.attempts.get_or_create(&Outcome { outcome }));
        }
        for kind in ["HyperConversion", "ConversionJob"] {
            drop(self.reconciles.get_or_create(&Kind { kind }));
            for reason in Error::REASONS {
                drop(self.errors.get_or_create(&KindReason { kind, reason }));
            }
        }
    }

    /// Whether all objects of a watched namespace are listed.
    pub(super) fn served(&self, namespace: &str, served: bool) {
        self.served.get_or_create(&Namespace { namespace: namespace.to_owned() }).set(served.into());
    }

    /// What a queue is like now.
    pub(super) fn queue_seen(&self, queue: &HyperConversion) {
        let of = of_queue(queue);
        let status = queue.status.clone().unwrap_or_default();
        for (gauge, value) in [
            (&self.queue_queued, status.queued.unwrap_or_default()),
            (&self.queue_active, status.active.unwrap_or_default()),
            (&self.queue_failed, status.totals.unwrap_or_default().failed),
        ] {
            gauge.get_or_create(&of).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        for kind in ConditionType::OF_QUEUE {
            // A queue that goes on is not stopped any more, even where no watcher comes to say so.
            let holds = *kind != ConditionType::Stopped || queue.spec.run_state == RunState::Stopped;
            let said = condition(&status.conditions, kind).filter(|_| holds).map(|said| said.status.as_str());
            for label in condition_labels(&of, *kind) {
                if let Some(said) = said {
                    self.conditions.get_or_create(&label).set((label.status == said).into());
                } else {
                    self.conditions.remove(&label);
                }
            }
        }
    }

    /// A queue is gone.
    pub(super) fn queue_gone(&self, queue: &HyperConversion) {
        let of = of_queue(queue);
        for gauge in [&self.queue_queued, &self.queue_active, &self.queue_failed] {
            gauge.remove(&of);
        }
        for reason in Reason::ALL {
            self.queue_failures.remove(&failure_of(&of.namespace, &of.queue, *reason));
        }
        for kind in ConditionType::OF_QUEUE {
            for label in condition_labels(&of, *kind) {
                self.conditions.remove(&label);
            }
        }
    }

    /// How many attempts hold a slot, and how many conversions wait for one.
    pub(super) fn slots(&self, running: usize, queued: usize) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
    }

    /// Whether this replica leads.
    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// All of them, as [`exposition`] writes them.
    #[must_use]
    pub(super) fn text(&self) -> String {
        exposition(&self.registry)
    }
}

fn failure_of(namespace: &str, queue: &str, reason: Reason) -> FailureOfQueue {
    FailureOfQueue { namespace: namespace.to_owned(), queue: queue.to_owned(), reason: reason.to_string() }
}

fn of_queue(queue: &HyperConversion) -> OfQueue {
    OfQueue { namespace: queue.namespace().unwrap_or_default(), queue: queue.name_any() }
}

fn condition_labels(of: &OfQueue, kind: ConditionType) -> impl Iterator<Item = ConditionOfQueue> + '_ {
    STATUSES.into_iter().map(move |status| ConditionOfQueue {
        namespace: of.namespace.clone(),
        queue: of.queue.clone(),
        r#type: kind.as_str().to_owned(),
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_shows_what_it_is_like_and_leaves_nothing_behind() {
        let metrics = Metrics::default();
        let queue: HyperConversion = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "q", "namespace": "n"},
            "spec": {"queue": {"claimName": "a"}, "output": {"claimName": "b"}},
            "status": {"queued": 3, "totals": {"failed": 2}, "conditions": [
                {"type": "Ready", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2026-01-17T09:00:00Z"},
            ]},
        }))
        .unwrap();
        metrics.queue_seen(&queue);
        let text = metrics.text();
        for line in [
            "hyper2kvm_queue_condition{namespace=\"n\",queue=\"q\",type=\"Ready\",status=\"False\"} 1",
            "hyper2kvm_queue_condition{namespace=\"n\",queue=\"q\",type=\"Ready\",status=\"True\"} 0",
            "hyper2kvm_queue_queued{namespace=\"n\",queue=\"q\"} 3",
            "hyper2kvm_queue_failed{namespace=\"n\",queue=\"q\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        crate::telemetry::metrics::promtool_takes(&text);
        metrics.queue_gone(&queue);
        assert!(!metrics.text().contains("queue=\"q\""));
    }

    #[test]
    fn every_outcome_is_there_before_it_happens() {
        let text = Metrics::default().text();
        for line in [
            "hyper2kvm_conversions_total{outcome=\"succeeded\"} 0",
            "hyper2kvm_conversions_total{outcome=\"failed\"} 0",
            "hyper2kvm_attempts_total{outcome=\"Corrupt\"} 0",
            "hyper2kvm_reconcile_errors_total{kind=\"HyperConversion\",reason=\"NameTaken\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_shown_under_the_product_s_name() {
        let metrics = Metrics::default();
        metrics.reconciled("ConversionJob", Duration::from_millis(3), Some("TimedOut"));
        metrics.attempt_ended("Succeeded".into(), Duration::from_secs(3));
        metrics.conversion_ended(End::Succeeded, 7);
        metrics.slots(2, 5);
        metrics.leads(true);
        let text = metrics.text();
        for line in [
            "hyper2kvm_reconciles_total{kind=\"ConversionJob\"} 1",
            "hyper2kvm_reconcile_errors_total{kind=\"ConversionJob\",reason=\"TimedOut\"} 1",
            "hyper2kvm_attempts_total{outcome=\"Succeeded\"} 1",
            "hyper2kvm_converted_bytes_total 7",
            "hyper2kvm_running 2",
            "hyper2kvm_queued 5",
            "hyper2kvm_leader 1",
            concat!("hyper2kvm_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        crate::telemetry::metrics::promtool_takes(&text);
    }
}
