// SPDX-License-Identifier: Apache-2.0
//! Which finished conversions are kept: the newest of each outcome, up to the queue's limits. The others go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::Instant;

use crate::cluster::api::{ConditionType, ConversionJob, HyperConversionSpec, condition};
use crate::cluster::client::told;
use crate::conversion::ConversionId;
use crate::conversion::status::End;

use super::state::{ClusterExecutor, PRUNE_INTERVAL};

/// How soon the next round follows where there may be more to remove.
const NEXT_BATCH: Duration = Duration::from_secs(10);

/// Most that are removed in one round: a lowered limit must not make everything else wait.
const BATCH: usize = 100;

/// A conversion whose end is completely reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finished {
    completed: Timestamp,
    name: String,
    /// The UID, because a new object may have the same name.
    uid: String,
    has_succeeded: bool,
}

/// The finished conversion in `object`; `None` where its end is not reported yet.
fn finished(object: &ConversionJob) -> Option<Finished> {
    let status = object.status.as_ref()?;
    let end = status.state.end?;
    let reported = condition(&status.conditions, ConditionType::Succeeded).is_some_and(|c| c.status != "Unknown");
    if !reported || object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(Finished {
        completed: status.state.completion_time.or_else(|| object.creation_timestamp().map(|time| time.0))?,
        name: object.name_any(),
        uid: object.uid()?,
        has_succeeded: matches!(end, End::Succeeded | End::Duplicate),
    })
}

/// Those beyond the limits, the oldest first.
fn beyond(mut all: Vec<Finished>, spec: &HyperConversionSpec) -> Vec<Finished> {
    all.sort();
    let count = |wanted: bool| all.iter().filter(|finished| finished.has_succeeded == wanted).count();
    let limit = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    let mut successes = count(true).saturating_sub(limit(spec.successful_history_limit));
    let mut failures = count(false).saturating_sub(limit(spec.failed_history_limit));
    let is_beyond = |finished: &Finished| {
        let excess = if finished.has_succeeded { &mut successes } else { &mut failures };
        let goes = *excess > 0;
        *excess = excess.saturating_sub(1);
        goes
    };
    all.into_iter().filter(is_beyond).take(BATCH).collect()
}

impl ClusterExecutor {
    /// Removes finished conversions beyond the queue's limits, but only those that the ledger no longer holds.
    pub(super) fn prune(&mut self) {
        let now = Instant::now();
        if now < self.next_prune {
            return;
        }
        self.next_prune = now + PRUNE_INTERVAL;
        let is_forgotten = |object: &Arc<ConversionJob>| {
            object.name_any().parse::<ConversionId>().is_ok_and(|id| !self.known.contains_key(&id))
        };
        let all = self.conversions.state();
        let all = all.iter().filter(|object| is_forgotten(object)).filter_map(|object| finished(object));
        let old = beyond(all.collect(), &self.queue.spec);
        if old.is_empty() {
            return;
        }
        if old.len() == BATCH {
            self.next_prune = now + NEXT_BATCH;
        }
        tracing::info!(conversions = old.len(), "removing finished conversions beyond the history limits");
        let api = self.api();
        tokio::spawn(async move {
            for finished in old {
                let preconditions = Preconditions { uid: Some(finished.uid), resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
                match api.delete(&finished.name, &params).await {
                    Ok(_) => {}
                    // Already gone, or another object has the name.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => {
                        tracing::warn!(
                            conversion = finished.name,
                            error = told(&error),
                            "cannot remove a finished conversion"
                        );
                        return;
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, end: &str, second: u32, succeeded: &str) -> ConversionJob {
        serde_json::from_value(json!({
            "apiVersion": "hyper2kvm.io/v1alpha1", "kind": "ConversionJob",
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"queueRef": {"name": "q"}, "source": {"path": "a.ova"}},
            "status": {
                "end": end, "completionTime": format!("2026-01-17T09:00:{second:02}Z"),
                "conditions": [{
                    "type": "Succeeded", "status": succeeded, "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-17T09:00:00Z",
                }],
            },
        }))
        .unwrap()
    }

    fn pruned(objects: &[ConversionJob], successful: u32, failed: u32) -> Vec<String> {
        let mut spec: HyperConversionSpec =
            serde_json::from_value(json!({"queue": {"claimName": "a"}, "output": {"claimName": "b"}})).unwrap();
        spec.successful_history_limit = successful;
        spec.failed_history_limit = failed;
        let all = objects.iter().filter_map(finished).collect();
        beyond(all, &spec).into_iter().map(|finished| finished.name).collect()
    }

    #[test]
    fn the_oldest_go_each_outcome_by_its_own_limit() {
        let objects = [
            object("s3", "Succeeded", 3, "True"),
            object("s1", "Succeeded", 1, "True"),
            object("d2", "Duplicate", 2, "True"),
            object("f4", "Failed", 4, "False"),
            object("c1", "Cancelled", 1, "False"),
        ];
        assert_eq!(pruned(&objects, 9, 9), [""; 0]);
        assert_eq!(pruned(&objects, 1, 1), ["c1", "s1", "d2"]);
        assert_eq!(pruned(&objects, 0, 2), ["s1", "d2", "s3"]);
    }

    #[test]
    fn what_is_not_reported_or_goes_already_stays_and_does_not_count() {
        let mut going = object("g", "Succeeded", 1, "True");
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let objects = [going, object("u", "Succeeded", 2, "Unknown"), object("s", "Succeeded", 3, "True")];
        assert_eq!(pruned(&objects, 1, 1), [""; 0]);
        assert_eq!(pruned(&objects, 0, 0), ["s"]);
    }
}
