// SPDX-License-Identifier: Apache-2.0
//! What the controller counts: by kind and reason, never by object.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

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
    pub(super) fn conversion_ended(&self, outcome: String, bytes: u64) {
        self.conversions.get_or_create(&Outcome { outcome }).inc();
        self.bytes.inc_by(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_shown_under_the_product_s_name() {
        let metrics = Metrics::default();
        metrics.reconciled("ConversionJob", Duration::from_millis(3), Some("Api"));
        metrics.attempt_ended("Succeeded".into(), Duration::from_secs(3));
        metrics.conversion_ended("Succeeded".into(), 7);
        metrics.slots(2, 5);
        metrics.leads(true);
        let text = metrics.text();
        for line in [
            "hyper2kvm_reconciles_total{kind=\"ConversionJob\"} 1",
            "hyper2kvm_reconcile_errors_total{kind=\"ConversionJob\",reason=\"Api\"} 1",
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
